"""Tell whether an engine that runs is sick: hung, or slow because its memory overflowed.

It must not know how requests or rates are measured, nor read a clock: it is given times and counts. Pure.
"""

from collections.abc import Sequence
from statistics import median

from launcher.domain import Noun, Provenance, Speed
from launcher.supervisor.faults import Fault
from launcher.supervisor.signs import Cause


class HangPolicy(Noun, frozen=True):
    """When silence is a hang. Seconds; a health check that was not answered in its own time is a miss."""

    n_misses: int = 3
    idle_s: float = 30.0
    """Requests are in flight, nothing comes, nothing is computed."""
    busy_s: float = 600.0
    """The same while it computes: a long prompt on a slow processor may take minutes to its first token."""


class Pulse(Noun, frozen=True):
    """One look at a serving engine, at a time on the observer's clock. ``n_delivered`` counts tokens or bytes so far."""

    at_s: float
    is_answering: bool
    n_in_flight: int = 0
    n_delivered: int = 0
    is_busy: bool = False
    """Its processes or its devices compute."""


class Watch(Noun, frozen=True):
    """What is remembered between two looks."""

    n_misses: int = 0
    moved_s: float | None = None
    """When it last had nothing to do, or delivered something."""
    n_delivered: int = 0


def look(watch: Watch, pulse: Pulse, policy: HangPolicy) -> tuple[Watch, Fault | None]:
    """Return what to remember of this look, and the fault once the engine has hung."""
    n_misses = 0 if pulse.is_answering else watch.n_misses + 1
    moved = watch.moved_s is None or pulse.n_in_flight == 0 or pulse.n_delivered != watch.n_delivered
    moved_s = pulse.at_s if moved or watch.moved_s is None else watch.moved_s
    after = Watch(n_misses=n_misses, moved_s=moved_s, n_delivered=pulse.n_delivered)
    if n_misses >= policy.n_misses:
        return after, Fault(
            cause=Cause.HUNG, meaning=f"it left {n_misses} health checks in a row unanswered", was_ready=True
        )
    silent_s = pulse.at_s - moved_s
    if silent_s >= (policy.busy_s if pulse.is_busy else policy.idle_s):
        doing = "it computed and delivered" if pulse.is_busy else "it delivered"
        meaning = f"{doing} nothing for {silent_s:.0f} s with {pulse.n_in_flight} requests in flight"
        return after, Fault(cause=Cause.HUNG, meaning=meaning, was_ready=True)
    return after, None


def stalled(doing: str, silent_s: float) -> Fault:
    """Return the fault of an engine that stopped to move while it was ``doing`` something before it was ready."""
    meaning = f"it stalled while {doing}: no output, reading or computing for {silent_s:.0f} s"
    return Fault(cause=Cause.STALLED, meaning=meaning)


# --- Slow without an error ----------------------------------------------------------------------------------------


class SpillPolicy(Noun, frozen=True):
    """When slow is a spill. Shares of the expected rate; published spills are 5 to 20 times slower."""

    share: float = 0.25
    share_assumed: float = 0.1
    """Where the expectation is a prediction from assumed efficiency, which may itself be wrong by two or three times."""
    n_rates: int = 5
    """The median of so many counts: one request may have waited for others."""


def spilled(
    rates_tps: Sequence[float], expected: Speed | None, *, strained: str | None, policy: SpillPolicy
) -> Fault | None:
    """Return the fault where generation is far slower than expected and a memory is known to be short.

    Args:
        rates_tps: Tokens per second of the last requests that ran alone, oldest first; rates of one while others ran are
            no measure of the memory.
        expected: The plan's speed, or what this engine reached after it was ready, as measured.
        strained: The memory that is short at the same time (``gpu0``, ``host``). Without one the cause is another: a busy
            processor, a throttled GPU; a smaller plan would not help.
        policy: Its thresholds.
    """
    if expected is None or strained is None or len(rates_tps) < policy.n_rates:
        return None
    share = policy.share if expected.basis is Provenance.MEASURED else policy.share_assumed
    rate = median(rates_tps[-policy.n_rates :])
    if rate >= share * expected.generation_tps:
        return None
    meaning = f"it generates {rate:.1f} tokens/s where {expected.generation_tps:.0f} were expected, short of {strained}"
    return Fault(cause=Cause.SPILLED, meaning=meaning, was_ready=True, memory=strained)
