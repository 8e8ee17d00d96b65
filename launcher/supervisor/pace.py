"""Tell whether an engine generates several times slower than it did, or than was planned, and for which memory.

It must not know how rates or memories are measured, nor read a clock. Pure.

A driver that pages (Windows, WSL, unified memory) gives no error when a device's memory overflows: the engine is then 5 to 20
times slower, by what is published; never measured here, for want of such a machine. Slow alone has other causes, a throttled
GPU or a context grown long among them. So slow is told, and only where the memory of a device is seen to be used up as well
it is a fault.
"""

from collections.abc import Sequence
from statistics import median

from msgspec.structs import replace

from launcher.domain import Noun, Provenance, Speed
from launcher.supervisor.faults import Fault
from launcher.supervisor.signs import Cause


class PacePolicy(Noun, frozen=True):
    """When slow is worth telling. Shares of the expected rate."""

    share: float = 0.2
    """Of what this engine reached after it was ready, or of a speed that was measured for the plan."""
    share_assumed: float = 0.1
    """Where the plan's speed is a prediction, which may itself be wrong by two or three times."""
    n_paces: int = 5
    """Each of so many streams in a row is slow, or none of them any more."""
    sustained_s: float = 30.0
    """Between the ends of the first and the last of them: what passes in a moment is nobody's concern."""


class Pace(Noun, frozen=True):
    """How fast one stream came that ran alone, and when it ended, on the observer's clock."""

    at_s: float
    tps: float


class Slow(Noun, frozen=True):
    """The engine is slow: what it generates, and what was expected on which ground."""

    tps: float
    expected: Speed


class Pacing(Noun, frozen=True):
    """What is remembered of one engine: the first streams after it was ready, the last ones, whether it is slow."""

    since_s: float
    """Streams that ended before are not this engine's, or are counted already."""
    first: tuple[Pace, ...] = ()
    latest: tuple[Pace, ...] = ()
    slow: Slow | None = None


def follow(before: Pacing, paces: Sequence[Pace], planned: Speed | None, policy: PacePolicy) -> Pacing:
    """Return what to remember once the latest streams, oldest first, were seen; some may have been seen before."""
    new = [pace for pace in paces if pace.at_s > before.since_s]
    if not new:
        return before
    first = (*before.first, *new)[: policy.n_paces]
    latest = (*before.latest, *new)[-policy.n_paces :]
    expected = _expected(first, planned, policy)
    after = Pacing(since_s=new[-1].at_s, first=first, latest=latest, slow=before.slow)
    if len(latest) < policy.n_paces or latest[-1].at_s - latest[0].at_s < policy.sustained_s:
        return after
    rates = [pace.tps for pace in latest]
    floors = [speed for speed, floor in expected if max(rates) < floor]
    if floors and before.slow is None:
        return replace(after, slow=Slow(tps=median(rates), expected=floors[0]))
    if all(min(rates) >= floor for _, floor in expected):
        return replace(after, slow=None)
    return after


def _expected(first: Sequence[Pace], planned: Speed | None, policy: PacePolicy) -> list[tuple[Speed, float]]:
    """Return what can be expected, each with the rate below which it is slow; the engine's own first streams go first."""
    found = []
    if len(first) == policy.n_paces:
        own = Speed(generation_tps=median(pace.tps for pace in first), basis=Provenance.MEASURED)
        found.append((own, policy.share * own.generation_tps))
    if planned is not None:
        share = policy.share if planned.basis is Provenance.MEASURED else policy.share_assumed
        found.append((planned, share * planned.generation_tps))
    return found


def describe(slow: Slow) -> str:
    """Return a slow engine in words."""
    return f"it generates {slow.tps:.1f} tokens/s where {slow.expected.generation_tps:.0f} were expected"


def spilled(slow: Slow, memory: str) -> Fault:
    """Return the fault of a slow engine, while a device's ``memory`` (``gpu0``) is used up: it has spilled out of it."""
    meaning = f"{describe(slow)}, and {memory} is used up"
    return Fault(cause=Cause.SPILLED, meaning=meaning, was_ready=True, memory=memory)
