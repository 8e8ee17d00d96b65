"""Do to a served instance, at random moments, what the world does, and follow what becomes of it.

It must not know bars or reports. The kinds (``KINDS``):

- kill: SIGKILL of the engine.
- hang: SIGSTOP of the engine, for good; found by unanswered health checks.
- guard: SIGKILL of the guard that holds the engine's tree.
- oom: another process in the control group takes memory until the kernel kills; the engine is offered to it. What the
  other has it keeps for some time.
- hog: another process fills the group but for a little, so that the ladder steps; it leaves some time later, and the
  instance steps up again by itself.
- squeeze: where no group can be made. The address space of the running engine is limited to what it has, for a while.
- pause: SIGSTOP for three seconds, then SIGCONT: no more than a slow moment, which has to be borne.
- storm: a hundred clients at once, four in ten of which leave.

The launcher runs with its own restart policy, which gives up on an engine that dies five times in ten minutes, and waits
longer after each death until one has been ready for ten minutes. Faults keep within that, as accidents would: after three
deaths only what is to be borne is done (``permitted``), until an engine has been ready for so long.
"""

import asyncio
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
from msgspec.structs import replace

from benchmarks.chaos_episode import Told, address_space
from benchmarks.memory_group import end_hog, held_bytes, limit_of, offer_to_kernel, start_hog
from benchmarks.soak_load import Load
from benchmarks.soak_record import Fault
from benchmarks.soak_serve import Served
from launcher.supervisor.restarts import RestartPolicy
from launcher.units import KIB, MIB

if TYPE_CHECKING:
    import subprocess

_DETECT_S: Final = 120.0
_ABSORB_S: Final = 8.0
_READY_S: Final = 300.0
_STEADY_S: Final = 3.0
"""So long it has to stay ready, to be ready again: a shortage may show as soon as requests come."""
_POLL_S: Final = 0.2
_PAUSE_S: Final = 3.0
_HOG_LEAVES_BYTES: Final = 200 * MIB
_HOG_STAYS_S: Final = (5.0, 30.0)
_MAX_DEATHS: Final = 3
_CLEAR_S: Final = RestartPolicy().healthy_s + 10.0
_OF_MEMORY: Final = frozenset({"overdrawn", "out-of-memory"})
"""Ends that lead to a step or a wait, and are no deaths to the restart policy."""
BORNE: Final = frozenset({"pause", "storm"})
GROUPED: Final = frozenset({"oom", "hog"})
OPENING: Final = ("hog", "storm", "kill", "oom", "squeeze", "pause")
"""What the warm-up consists of, so that all that is loaded on demand is there: planner and ladder above all."""


class Ground:
    """What faults are done to, and by what."""

    def __init__(self, served: Served, load: Load, group: Path | None, dice: random.Random, began_s: float) -> None:
        """Hold it; ``began_s`` is the run's beginning in seconds since 1970."""
        self.served = served
        self.load = load
        self.group = group
        self.dice = dice
        self.began_s = began_s
        self.hog: subprocess.Popen[str] | None = None

    def end_hog(self) -> None:
        """End what takes memory, if it does."""
        hog, self.hog = self.hog, None
        if hog is not None:
            end_hog(hog)


# --- When which -------------------------------------------------------------------------------------------------


def deaths(told: Sequence[Told], now_s: float) -> int:
    """Return how many deaths of engines the launcher's restart policy still remembers at most."""
    n, ready_s = 0, None
    for item in told:
        match item.event:
            case "engine.ready":
                ready_s = item.at_s
            case "engine.failed" if item.facts.get("cause") not in _OF_MEMORY:
                n = 1 if ready_s is not None and item.at_s - ready_s >= _CLEAR_S else n + 1
                ready_s = None
            case "engine.failed" | "instance.drained" | "engine.spawned":
                ready_s = None
            case _:
                pass
    return 0 if ready_s is not None and now_s - ready_s >= _CLEAR_S else n


def permitted(kinds: Sequence[str], n_deaths: int) -> list[str]:
    """Return the kinds that may be played after so many deaths; a step down would begin the ten minutes anew."""
    return [kind for kind in kinds if kind in BORNE or n_deaths < _MAX_DEATHS]


def choose(kinds: Sequence[str], played: Counter[str], n_deaths: int, dice: random.Random) -> str:
    """Return the kind to play next: of those permitted one of the least played."""
    may = permitted(kinds, n_deaths)
    least = min(played[kind] for kind in may)
    return dice.choice([kind for kind in may if played[kind] == least])


def kinds_here(group: Path | None) -> tuple[str, ...]:
    """Return the kinds that this machine permits."""
    return tuple(kind for kind in KINDS if (kind not in GROUPED if group is None else kind != "squeeze"))


# --- What is done ------------------------------------------------------------------------------------------------


async def _kill(ground: Ground) -> None:
    os.kill(ground.served.engine_pid(), signal.SIGKILL)


async def _hang(ground: Ground) -> None:
    os.kill(ground.served.engine_pid(), signal.SIGSTOP)


async def _guard(ground: Ground) -> None:
    os.kill(ground.served.guard_pid(), signal.SIGKILL)


async def _oom(ground: Ground) -> None:
    assert ground.group is not None  # noqa: S101 - such a fault is not drawn without
    offer_to_kernel(ground.served.engine_pid())
    ground.hog = start_hog(ground.group, leave_bytes=0, most_bytes=limit_of(ground.group))


async def _hog(ground: Ground) -> None:
    assert ground.group is not None  # noqa: S101 - as above
    most = limit_of(ground.group) - held_bytes(ground.group) - _HOG_LEAVES_BYTES
    ground.hog = start_hog(ground.group, leave_bytes=_HOG_LEAVES_BYTES, most_bytes=most)


async def _squeeze(ground: Ground) -> None:
    pid = ground.served.engine_pid()
    _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (address_space(pid) + 64 * KIB, hard))
    await asyncio.sleep(_ABSORB_S)
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))


async def _pause(ground: Ground) -> None:
    pid = ground.served.engine_pid()
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(_PAUSE_S)
    os.kill(pid, signal.SIGCONT)


async def _storm(ground: Ground) -> None:
    await ground.load.storm()


KINDS: Final[dict[str, Callable[[Ground], Awaitable[None]]]] = {
    "kill": _kill,
    "hang": _hang,
    "guard": _guard,
    "oom": _oom,
    "hog": _hog,
    "squeeze": _squeeze,
    "pause": _pause,
    "storm": _storm,
}


# --- What becomes of it ---------------------------------------------------------------------------------------------


async def play(kind: str, ground: Ground, *, is_warm_up: bool) -> Fault:
    """Do it, and follow it until completions come again."""
    served = ground.served
    at_s = time.time() - ground.began_s
    fault = Fault(kind=kind, at_s=round(at_s, 1), is_warm_up=is_warm_up)
    if not await until_ready(served, _READY_S):
        return replace(fault, wrong="no engine was ready before it")
    since, began_s = len(served.told), time.time()
    fault = replace(fault, at_s=round(began_s - ground.began_s, 1))
    try:
        await KINDS[kind](ground)
    except (ProcessLookupError, psutil.NoSuchProcess):  # it was being replaced at this very moment
        return replace(fault, wrong="" if await until_ready(served, _READY_S) else "not ready again", story=("missed",))
    try:
        return await _follow(fault, ground, since, began_s)
    finally:
        ground.end_hog()


async def _follow(fault: Fault, ground: Ground, since: int, began_s: float) -> Fault:
    served = ground.served
    patience_s = _ABSORB_S if fault.kind in BORNE or fault.kind == "squeeze" else _DETECT_S
    detected = await _await_told(served, since, _is_detection, patience_s)
    if fault.kind in GROUPED and detected is not None:
        if fault.kind == "oom":  # strain may be told before the kernel kills
            detected = await _await_told(served, since, _is_end, _DETECT_S)
        idx = since if detected is None else served.told.index(detected) + 1
        await _await_told(served, idx, _is_answer, _READY_S)
        await asyncio.sleep(ground.dice.uniform(*_HOG_STAYS_S))
        ground.end_hog()
    is_ready = await until_ready(served, _READY_S, steady_s=_STEADY_S)
    ready_s = served.ready_since()
    is_whole = is_ready and await ground.load.until_whole(time.monotonic(), _READY_S)
    is_borne = detected is None and (fault.kind in BORNE or fault.kind == "squeeze")
    after = [told for told in served.told[since:] if told.at_s >= began_s]
    return replace(
        fault,
        detect_s=None if detected is None else round(detected.at_s - began_s, 2),
        ready_s=None if ready_s is None or ready_s < began_s else round(ready_s - began_s, 2),
        served_s=round(time.time() - began_s, 2) if is_whole else None,
        n_starts=sum(told.event == "engine.spawned" for told in after),
        n_steps=sum(told.event == "ladder.step" for told in after),
        wrong=_what_is_wrong(is_detected=detected is not None or is_borne, is_ready=is_ready, is_whole=is_whole),
        story=tuple(f"{told.at_s - began_s:.2f} {told.event}" for told in after),
    )


def _what_is_wrong(*, is_detected: bool, is_ready: bool, is_whole: bool) -> str:
    if not is_detected:
        return "not detected"
    if not is_ready:
        return "not ready again"
    return "" if is_whole else "no completion after it was ready"


async def until_ready(served: Served, timeout_s: float, *, steady_s: float = 0.0) -> bool:
    """Wait until an engine has been ready for so long; whether it came to that."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s and not served.has_ended:
        served.read()
        ready_s = served.ready_since()
        if ready_s is not None and time.time() - ready_s >= steady_s:
            return True
        await asyncio.sleep(_POLL_S)
    return False


async def _await_told(served: Served, since: int, wanted: Callable[[Told], bool], timeout_s: float) -> Told | None:
    end_s = time.monotonic() + timeout_s
    while True:
        is_last = served.has_ended or time.monotonic() > end_s
        served.read()
        found = next((told for told in served.told[since:] if wanted(told)), None)
        if found is not None or is_last:
            return found
        await asyncio.sleep(_POLL_S)


def _is_detection(told: Told) -> bool:
    return told.event in {"engine.failed", "memory.strained", "instance.drained"}


def _is_end(told: Told) -> bool:
    """Whether the engine was lost, or taken away before the kernel could."""
    return told.event in {"engine.failed", "instance.drained"}


def _is_answer(told: Told) -> bool:
    """Whether it is said what became of a shortage: the hog may leave."""
    return told.event in {"engine.ready", "memory.relieved", "ladder.none", "ladder.wait"}
