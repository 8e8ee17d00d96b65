"""Decide whether, and after how long, a dead engine is started again.

It must not know why the engine died, nor wait itself: it is given the times of the deaths.
"""

from collections.abc import Sequence

import tenacity

from launcher.domain import Noun


class RestartPolicy(Noun, frozen=True):
    """How patient the supervisor is. Times in seconds.

    ``n_deaths`` deaths within ``window_s`` are too many (Erlang/OTP's restart intensity), and so are
    ``n_start_deaths`` in a row of engines that never became ready: what has not worked yet seldom does. The delay
    doubles from ``first_delay_s`` up to ``max_delay_s``, with up to ``jitter_s`` on top. An engine that was ready for
    ``healthy_s`` has cleared its past.
    """

    n_deaths: int = 5
    window_s: float = 600.0
    n_start_deaths: int = 2
    first_delay_s: float = 1.0
    max_delay_s: float = 300.0
    jitter_s: float = 1.0
    healthy_s: float = 600.0


class Death(Noun, frozen=True):
    """One unasked end of an engine: when, on the supervisor's monotonic clock, and how long it had been ready."""

    at_s: float
    ready_s: float | None = None


def remember(deaths: Sequence[Death], death: Death, policy: RestartPolicy) -> tuple[Death, ...]:
    """Return the history with this death; one after a healthy period begins a new one."""
    healthy = death.ready_s is not None and death.ready_s >= policy.healthy_s
    return (death,) if healthy else (*deaths, death)


def next_delay_s(deaths: Sequence[Death], policy: RestartPolicy) -> float | None:
    """Return how long to wait before the next start, or ``None`` when the deaths were too many."""
    latest = deaths[-1].at_s
    if sum(latest - death.at_s <= policy.window_s for death in deaths) >= policy.n_deaths:
        return None
    starts = deaths[-policy.n_start_deaths :]
    if len(starts) == policy.n_start_deaths and all(death.ready_s is None for death in starts):
        return None
    wait = tenacity.wait_exponential_jitter(
        initial=policy.first_delay_s, max=policy.max_delay_s, jitter=policy.jitter_s
    )
    attempt = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    attempt.attempt_number = len(deaths)
    return wait(attempt)
