"""Tell whether an engine that runs is sick: hung, or refusing every request.

It must not know how requests are counted, nor read a clock: it is given times and counts. Pure.
"""

from launcher.domain import Noun
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


# --- Errors without a reason --------------------------------------------------------------------------------------


class DoubtPolicy(Noun, frozen=True):
    """When an engine's errors make it doubtful. The requests may be what is wrong: doubt is a reason to ask, no fault."""

    n_failures: int = 5
    """So many in a row, with no success between, of all clients together."""
    window_s: float = 300.0
    """Within so many seconds."""
    again_s: float = 60.0
    """Between two such questions: each may cost a client the prompt that the engine keeps of it."""
    canary_s: float = 60.0
    """For the answer to a request of our own; silence is no answer, and the hang policy's."""


class Tally(Noun, frozen=True):
    """One look at an engine's answers, at a time on the observer's clock; counted since any one moment."""

    at_s: float
    n_succeeded: int
    n_failed: int


def doubt(since: Tally | None, now: Tally, policy: DoubtPolicy, *, asked_s: float | None = None) -> tuple[Tally, bool]:
    """Return since when all answers are failures, and whether these are enough to ask the engine.

    ``asked_s`` is when it was last asked. Where failures and a success fell between two looks their order is unknown: all count as before the success.
    """
    if (
        since is None
        or now.n_succeeded != since.n_succeeded
        or now.n_failed == since.n_failed
        or now.at_s - since.at_s > policy.window_s
    ):
        return now, False
    has_rested = asked_s is None or now.at_s - asked_s >= policy.again_s
    return since, has_rested and now.n_failed - since.n_failed >= policy.n_failures


def refuses(n_failed: int, canary: str) -> Fault:
    """Return the fault of an engine that answers everybody with an error; ``canary`` is how it answered us."""
    meaning = f"it answered the last {n_failed} requests with errors, and one of our own, too: {canary}"
    return Fault(cause=Cause.SICK, meaning=meaning, was_ready=True)
