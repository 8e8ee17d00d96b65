"""Decide from samples of memory whether an engine has to step down before the kernel or a driver ends it.

It must not know how anything is measured, nor what stepping down is. Pure.

A memory is *low* where less than ``act_bytes`` is free, where others will have used it up within ``lead_s`` at their
present rate, or, of the host, where all tasks wait for memory for more than ``max_stall`` of the time. Low for ``n_low``
samples in a row makes it *strained*; so does half of ``act_bytes`` at once. It is calm again after ``calm_s`` in which
more than ``calm_bytes`` was free: between the two thresholds nothing changes.
"""

from collections.abc import Mapping
from statistics import median
from typing import Final

from launcher.domain import HOST_MEMORY, DeviceLoad, DeviceProcess, Noun
from launcher.units import MIB, format_bytes

_SMALL_SHARE: Final = 32
"""Of those who took memory, who took less than this fraction of the most is not named."""
_N_RATES: Final = 3
"""Of the latest rates the median counts: a process that takes its share once is no trend, a pause does not end one."""


# --- What was measured ------------------------------------------------------------------------------------------


class Gauge(Noun, frozen=True):
    """One memory at one moment, under the plan's name of it.

    ``own_bytes`` is what the engine's own processes hold, ``processes`` everybody that the driver lists, ours included.
    ``limit`` says what bounds host memory: the machine, or a control group. Of a group, ``sharers`` are its processes, as
    far as they are known: nobody else can take of it. ``None`` where everybody can.
    """

    name: str
    total_bytes: int
    free_bytes: int
    own_bytes: int | None = None
    processes: tuple[DeviceProcess, ...] = ()
    limit: str = ""
    sharers: frozenset[int] | None = None


class Sample(Noun, frozen=True):
    """All memories at one moment of the observer's clock, and what the devices do.

    ``stalled`` is the share of time in which all tasks waited for memory, ``own_pids`` the engine's processes.
    """

    at_s: float
    gauges: tuple[Gauge, ...]
    loads: tuple[DeviceLoad, ...] = ()
    stalled: float | None = None
    own_pids: frozenset[int] = frozenset()

    def gauge(self, name: str) -> Gauge | None:
        """Return one memory's gauge."""
        return next((gauge for gauge in self.gauges if gauge.name == name), None)


# --- The policy -------------------------------------------------------------------------------------------------


class Floor(Noun, frozen=True):
    """Free bytes below which a memory is low, and above which it may be called calm again."""

    act_bytes: int
    calm_bytes: int


class StrainPolicy(Noun, frozen=True):
    """When to act. The floors are assumed: below what a plan leaves free, above what a driver or the kernel needs."""

    device: Floor = Floor(act_bytes=128 * MIB, calm_bytes=320 * MIB)
    host: Floor = Floor(act_bytes=256 * MIB, calm_bytes=640 * MIB)
    floors: Mapping[str, Floor] = {}
    """Of single memories, by name: a plan that was forced has its own."""
    n_low: int = 2
    calm_s: float = 30.0
    lead_s: float = 10.0
    max_stall: float = 0.2

    def lacks_bytes(self, gauge: Gauge) -> int:
        """Return what a memory lacks to be calm, at least 0."""
        return max(0, self.floor(gauge.name).calm_bytes - gauge.free_bytes)

    def floor(self, name: str) -> Floor:
        """Return the thresholds of one memory."""
        return self.floors.get(name, self.host if name == HOST_MEMORY else self.device)


class Taker(Noun, frozen=True):
    """Another process that took memory since the baseline; ``n_bytes`` is ``None`` where the driver does not tell."""

    pid: int
    name: str | None = None
    n_bytes: int | None = None


class Strain(Noun, frozen=True):
    """A memory that is about to run out: drain, then step down by ``shortfall_bytes`` on it.

    These are what it lacks to be calm, also after ``lead_s`` at its present rate; 1 where time is lost, not bytes.
    """

    memory: str
    why: str
    free_bytes: int
    shortfall_bytes: int
    takers: tuple[Taker, ...] = ()
    taken_bytes: int = 0
    """What others took since the baseline, named or not."""


class _Mark(Noun, frozen=True):
    """What is remembered of one memory."""

    free_bytes: int
    at_s: float
    own_bytes: int | None = None
    rates: tuple[float, ...] = ()
    """Bytes per second by which it shrank between the latest samples, the engine's own growth left out."""
    n_low: int = 0
    calm_since_s: float | None = None
    is_strained: bool = False


class Watched(Noun, frozen=True):
    """What is remembered between two samples."""

    marks: Mapping[str, _Mark] = {}

    @property
    def strained(self) -> tuple[str, ...]:
        """The memories that are strained now."""
        return tuple(name for name, mark in self.marks.items() if mark.is_strained)


class Outlook(Noun, frozen=True):
    """What one sample changed: memories that became strained, and those that became calm again."""

    strains: tuple[Strain, ...] = ()
    relieved: tuple[str, ...] = ()


def assess(
    watched: Watched, sample: Sample, *, baseline: Sample | None, policy: StrainPolicy
) -> tuple[Watched, Outlook]:
    """Return what to remember of this sample, and what it changed.

    Args:
        watched: What the last call returned; empty at first, and anew after each step.
        sample: What was measured now. A memory that is not in it is not judged.
        baseline: The sample of the moment at which the engine became ready: who took memory is told by the difference.
        policy: The thresholds.
    """
    marks: dict[str, _Mark] = {}
    strains: list[Strain] = []
    relieved: list[str] = []
    for gauge in sample.gauges:
        before = watched.marks.get(gauge.name)
        why, after = _judge(before, gauge, sample, policy)
        marks[gauge.name] = after
        was_strained = before is not None and before.is_strained
        if after.is_strained and not was_strained:
            wanted = policy.floor(gauge.name).calm_bytes + int(_trend(after.rates) * policy.lead_s)
            strains.append(_strain(gauge, why or "", wanted, baseline=baseline, own_pids=sample.own_pids))
        elif was_strained and not after.is_strained:
            relieved.append(gauge.name)
    kept = {name: mark for name, mark in watched.marks.items() if name not in marks}
    return Watched(marks={**kept, **marks}), Outlook(strains=tuple(strains), relieved=tuple(relieved))


def _judge(before: _Mark | None, gauge: Gauge, sample: Sample, policy: StrainPolicy) -> tuple[str | None, _Mark]:
    """Return why a memory is low, if it is, and what to remember of it."""
    floor = policy.floor(gauge.name)
    rates = _rates(before, gauge, sample.at_s)
    rate = _trend(rates)
    stalled = sample.stalled if gauge.name == HOST_MEMORY else None
    why = _why_low(gauge, floor, rate, stalled, policy)
    n_low = 0 if why is None else 1 + (before.n_low if before else 0)
    is_calm = why is None and gauge.free_bytes >= floor.calm_bytes
    calm_since_s = (
        (before.calm_since_s if before and before.calm_since_s is not None else sample.at_s) if is_calm else None
    )
    was_strained = before is not None and before.is_strained
    if was_strained:
        is_strained = calm_since_s is None or sample.at_s - calm_since_s < policy.calm_s
    else:
        is_strained = n_low >= policy.n_low or gauge.free_bytes < floor.act_bytes // 2
    mark = _Mark(
        free_bytes=gauge.free_bytes,
        at_s=sample.at_s,
        own_bytes=gauge.own_bytes,
        rates=rates,
        n_low=n_low,
        calm_since_s=calm_since_s,
        is_strained=is_strained,
    )
    return why, mark


def _rates(before: _Mark | None, gauge: Gauge, at_s: float) -> tuple[float, ...]:
    if before is None or at_s <= before.at_s:
        return ()
    # An engine fills its prompt cache up to what was planned, however quickly: that is no threat.
    own = 0 if before.own_bytes is None or gauge.own_bytes is None else max(0, gauge.own_bytes - before.own_bytes)
    latest = (before.free_bytes - gauge.free_bytes - own) / (at_s - before.at_s)
    return (*before.rates, latest)[-_N_RATES:]


def _trend(rates: tuple[float, ...]) -> float:
    """Return bytes per second by which a memory shrinks; 0 where it was given back just now, or too little is known."""
    return max(0.0, median(rates)) if len(rates) == _N_RATES and rates[-1] >= 0 else 0.0


def _why_low(gauge: Gauge, floor: Floor, rate: float, stalled: float | None, policy: StrainPolicy) -> str | None:
    left = format_bytes(gauge.free_bytes)
    if gauge.free_bytes < floor.act_bytes:
        return f"{left} of {gauge.limit or gauge.name} is free"
    if rate > 0 and rate * policy.lead_s >= gauge.free_bytes:
        return f"{left} of {gauge.limit or gauge.name} is free and {format_bytes(int(rate))} is taken each second"
    if stalled is not None and stalled >= policy.max_stall:
        return f"all tasks wait for memory {stalled:.0%} of the time"
    return None


def _strain(gauge: Gauge, why: str, wanted_bytes: int, *, baseline: Sample | None, own_pids: frozenset[int]) -> Strain:
    then = baseline.gauge(gauge.name) if baseline else None
    return Strain(
        memory=gauge.name,
        why=why,
        free_bytes=gauge.free_bytes,
        shortfall_bytes=max(1, wanted_bytes - gauge.free_bytes),
        takers=() if then is None else takers(then, gauge, own_pids),
        taken_bytes=0 if then is None else taken_bytes(then, gauge),
    )


# --- Who took it --------------------------------------------------------------------------------------------------


def takers(then: Gauge, now: Gauge, own_pids: frozenset[int]) -> tuple[Taker, ...]:
    """Return the other processes that hold more of a memory than they did, most first.

    A process whose bytes the driver does not tell is one if it is new.
    """
    held = {process.pid: process.used_bytes for process in then.processes}
    found = []
    for process in now.processes:
        if process.pid in own_pids or (now.sharers is not None and process.pid not in now.sharers):
            continue
        if process.used_bytes is None:
            if process.pid not in held:
                found.append(Taker(pid=process.pid, name=process.name))
        elif (more := process.used_bytes - (held.get(process.pid) or 0)) > 0:
            found.append(Taker(pid=process.pid, name=process.name, n_bytes=more))
    return tuple(sorted(found, key=lambda taker: -(taker.n_bytes or 0)))


def taken_bytes(then: Gauge, now: Gauge) -> int:
    """Return by how much a memory shrank that is not the engine's own growth: 0 where that explains all of it.

    Where the engine's share is unknown on either side, its growth counts as none.
    """
    own = 0 if then.own_bytes is None or now.own_bytes is None else now.own_bytes - then.own_bytes
    return max(0, then.free_bytes - now.free_bytes - own)


def describe(strain: Strain) -> str:
    """Return a strain in words, with who took the memory where somebody is known to have."""
    most = max((taker.n_bytes or 0 for taker in strain.takers), default=0)
    named = [taker for taker in strain.takers if taker.n_bytes is None or taker.n_bytes * _SMALL_SHARE >= most]
    names = ", ".join(_describe_taker(taker) for taker in named[:3])
    took = f"; taken by {names}" if names else ""
    if not names and strain.taken_bytes >= max(1, min(strain.shortfall_bytes, strain.free_bytes)):
        took = f"; others took {format_bytes(strain.taken_bytes)}"
    return f"{strain.memory}: {strain.why}{took}"


def _describe_taker(taker: Taker) -> str:
    name = taker.name or "a process"
    size = "" if taker.n_bytes is None else f", {format_bytes(taker.n_bytes)}"
    return f"{name} (process {taker.pid}{size})"
