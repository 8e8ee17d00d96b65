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
    doubles from ``first_delay_s`` up to ``max_delay_s``, with up to ``jitter_s`` on top. An instance that was ready for
    ``healthy_s`` has cleared its past, whether one engine was or several were that replaced each other as planned: no
    request was lost between them. A start that other processes' memory prevents is none of these deaths: it is made
    again for ``crowded_s``, at most ``max_crowded_delay_s`` apart.
    """

    n_deaths: int = 5
    window_s: float = 600.0
    n_start_deaths: int = 2
    first_delay_s: float = 1.0
    max_delay_s: float = 300.0
    jitter_s: float = 1.0
    healthy_s: float = 600.0
    crowded_s: float = 600.0
    max_crowded_delay_s: float = 15.0


class Death(Noun, frozen=True):
    """One unasked end of an engine: when, on the supervisor's monotonic clock, and how long it had been ready.

    ``ready_s`` is of this engine and of those before it that were replaced, since the last death; ``None`` where none was
    ready. ``is_crowded``: other processes held the memory, and nothing was wrong with the engine; one that had been ready
    before it came to that begins a row of waits of its own.
    """

    at_s: float
    ready_s: float | None = None
    is_crowded: bool = False


def remember(deaths: Sequence[Death], death: Death, policy: RestartPolicy) -> tuple[Death, ...]:
    """Return the history with this death; one after a healthy period begins a new one."""
    return (*settle(deaths, death.ready_s or 0.0, policy), death)


def settle(deaths: Sequence[Death], ready_s: float, policy: RestartPolicy) -> tuple[Death, ...]:
    """Return what still counts of the history once an instance has been ready for so long, however that ended."""
    return () if ready_s >= policy.healthy_s else tuple(deaths)


def next_delay_s(deaths: Sequence[Death], policy: RestartPolicy) -> float | None:
    """Return how long to wait before the next start, or ``None`` when the deaths were too many."""
    if deaths[-1].is_crowded:
        return _next_crowded_delay_s(deaths, policy)
    own = [death for death in deaths if not death.is_crowded]
    latest = own[-1].at_s
    if sum(latest - death.at_s <= policy.window_s for death in own) >= policy.n_deaths:
        return None
    starts = own[-policy.n_start_deaths :]
    if len(starts) == policy.n_start_deaths and all(death.ready_s is None for death in starts):
        return None
    return _delay_s(len(own), policy.max_delay_s, policy)


def crowded(deaths: Sequence[Death]) -> tuple[Death, ...]:
    """Return the latest of the deaths in a row, oldest first, that other processes' memory is the reason of."""
    row: list[Death] = []
    for death in reversed(deaths):
        if not death.is_crowded:
            break
        row.append(death)
        if death.ready_s is not None:
            break
    return tuple(reversed(row))


def _next_crowded_delay_s(deaths: Sequence[Death], policy: RestartPolicy) -> float | None:
    row = crowded(deaths)
    if row[-1].at_s - row[0].at_s >= policy.crowded_s:
        return None
    return _delay_s(len(row), policy.max_crowded_delay_s, policy)


def _delay_s(n: int, max_s: float, policy: RestartPolicy) -> float:
    wait = tenacity.wait_exponential_jitter(initial=policy.first_delay_s, max=max_s, jitter=policy.jitter_s)
    attempt = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    attempt.attempt_number = n
    return wait(attempt)
