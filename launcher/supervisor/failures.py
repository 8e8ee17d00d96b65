"""Word why an engine is given up: the fact, what a person can do, the telling lines, and what memory ran short.

It must not know phases, nor decide what follows. Pure.
"""

import shlex
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from launcher.domain import Engine, Noun, Plan, Refusal
from launcher.errors import EngineFailedError, LauncherError, PlacementError, PortInUseError
from launcher.supervisor import faults
from launcher.supervisor.preflight import Preflight
from launcher.supervisor.preflight import describe as describe_preflight
from launcher.supervisor.restarts import Death, crowded
from launcher.supervisor.setback import Setback, Shortage, Step
from launcher.supervisor.signs import Cause, Part
from launcher.supervisor.strain import Strain
from launcher.supervisor.strain import describe as describe_strain

_N_PLACEMENT_SHOWN = 12


class Failure(Noun, frozen=True):
    """Why an engine is being given up.

    ``setback`` is there where memory is the cause or a worker was lost, and another plan may help; ``step`` where the plan to go on with is
    known before the engine is given up.
    """

    message: str
    kind: type[LauncherError] = EngineFailedError
    help: str | None = None
    lines: tuple[str, ...] = ()
    setback: Setback | None = None
    step: Step | None = None

    @property
    def leads_on(self) -> bool:
        """Whether another plan can follow."""
        return self.setback is not None or self.step is not None

    def to_error(self) -> LauncherError:
        """Return it as what ends a command."""
        return self.kind(self.message, help=self.help, details=self.lines)


def of_error(error: LauncherError) -> Failure:
    """Return a named fault as the failure of an engine."""
    return Failure(kind=type(error), message=error.message, help=error.help, lines=error.details)


def of_end(found: faults.Fault, how: str, *, plan: Plan | None, name: str, log: Sequence[str]) -> Failure:
    """Word an engine's end; with a ``plan`` that can be stepped down from, a want of memory or a lost worker is a setback."""
    when = "while it served" if found.was_ready else "while it loaded"
    words = f"the engine ended {when} ({how}): {faults.describe(found)}"
    explained = f"; `launch explain {found.sign}` tells more" if found.sign is not None else ""
    may_step = plan is not None and (found.answer is faults.Answer.STEP_DOWN or _lost_worker(found, plan))
    return Failure(
        kind=PortInUseError if found.cause is Cause.PORT else EngineFailedError,
        message=words,
        help=(found.help or f"read its whole log with `launch logs {name}`") + explained,
        lines=found.lines or faults.telling_lines(log),
        setback=setback_of(found, plan, words) if plan is not None and may_step else None,
    )


def _lost_worker(found: faults.Fault, plan: Plan) -> bool:
    return found.cause is Cause.DEVICE_LOST and bool(plan.workers)


def setback_of(found: faults.Fault, plan: Plan, words: str) -> Setback:
    """Describe a want of memory, or the loss of some, to whoever finds the next plan."""
    if _lost_worker(found, plan):
        return Setback(plan=plan, shortage=Shortage.LOST, words=words)
    return Setback(
        plan=plan,
        shortage=Shortage.SERVING if found.was_ready else Shortage.AT_LOAD,
        words=words,
        memory=faults.planned_memory(found, plan),
        failed_bytes=found.n_bytes,
        lacks_cache=found.part is Part.KV_CACHE and found.memory is None and plan.engine is Engine.VLLM,
        n_ctx=found.n_ctx,
    )


def of_unproved(wrong: str, found: faults.Fault, plan: Plan) -> Failure:
    """Word that a loaded engine has no memory left for its first request."""
    words = f"{wrong}: {faults.describe(found)}"
    return Failure(message=words, lines=found.lines, setback=setback_of(found, plan, words))


def of_sickness(found: faults.Fault, plan: Plan) -> Failure:
    """Word that an engine stays up and serves no request, for want of memory."""
    words = f"the engine serves no more: {faults.describe(found)}"
    return Failure(message=words, lines=found.lines, setback=setback_of(found, plan, words))


def of_refusing(found: faults.Fault, log: Sequence[str]) -> Failure:
    """Word that an engine stays up and answers everybody with an error."""
    return Failure(message=f"the engine is sick: {faults.describe(found)}", lines=faults.telling_lines(log))


def of_spill(found: faults.Fault, lacks_bytes: int, plan: Plan) -> Failure:
    """Word that an engine became slow since its device's memory overflowed; it serves on until another plan is known."""
    words = f"the engine has become slow: {faults.describe(found)}"
    setback = Setback(plan=plan, shortage=Shortage.PRESSURE, words=words, memory=found.memory, failed_bytes=lacks_bytes)
    return Failure(message=words, setback=setback)


def of_preflight(verdict: Preflight, plan: Plan, free: Mapping[str, int]) -> Failure:
    """Word that a start would not fit, by the engine's own account; ``free`` is what was seen to be free just then."""
    need = verdict.exceeded[0]
    planned = next((budget.free_bytes for budget in plan.budgets if budget.name == need.name), 0)
    words = f"it would not fit: {describe_preflight(verdict)}"
    setback = Setback(
        plan=plan,
        shortage=Shortage.FORESEEN,
        words=words,
        memory=need.name,
        failed_bytes=need.shortfall_bytes,
        told_bytes=None if need.told is None else need.needed_bytes,
        taken_bytes=max(0, planned - free.get(need.name, planned)),
    )
    return Failure(message=words, setback=setback)


def of_strain(strain: Strain, plan: Plan) -> Failure:
    """Word that a memory runs short while serving."""
    words = f"memory runs short: {describe_strain(strain)}"
    setback = Setback(
        plan=plan,
        shortage=Shortage.PRESSURE,
        words=words,
        memory=strain.memory,
        failed_bytes=strain.shortfall_bytes,
        taken_bytes=strain.taken_bytes,
    )
    return Failure(message=words, setback=setback)


def of_refusal(refusal: Refusal) -> Failure:
    """Word the foot of the ladder: the facts, then the first way out as help."""
    ways = [f"{item.text}: {shlex.join(item.argv)}" for item in refusal.advice] or ["`launch plan` says what would fit"]
    return Failure(message=refusal.fact, help=ways[0], lines=(*refusal.derivation, *ways[1:]))


def of_stall(doing: str, limit_s: float, *, name: str, log: Sequence[str]) -> Failure:
    """Word that nothing moved for too long."""
    return Failure(
        message=f"the engine stalled while {doing}: no output, reading or computing for {limit_s:.0f} s",
        help=f"read its whole log with `launch logs {name}`",
        lines=faults.telling_lines(log),
    )


def of_silence(failure: Failure, plan: Plan) -> Failure:
    """Word that an engine hangs or stalls that may be waiting for a worker: whether it is, the workers have to say."""
    return replace(failure, setback=Setback(plan=plan, shortage=Shortage.LOST, words=failure.message))


def of_placement(difference: str, log: Sequence[str]) -> Failure:
    """Word that the model is not where it was planned; ``log`` are the lines that tell where it is."""
    return Failure(
        kind=PlacementError,
        message=difference,
        help="see what the engine finds with `launch hardware`; `--n-gpu-layers 0` serves from the CPU on purpose",
        lines=tuple(line.strip() for line in log)[-_N_PLACEMENT_SHOWN:],
    )


def of_lost_guard(log: Sequence[str]) -> Failure:
    """Word that the guard is gone."""
    return Failure(
        message="the guard process was killed, and the engine with it",
        help="do not kill the guard; end an instance with `launch stop`",
        lines=faults.telling_lines(log),
    )


def of_many_deaths(last: Failure, deaths: Sequence[Death]) -> Failure:
    """Word that the last death was one too many, or that other processes held the memory for too long."""
    if waits := crowded(deaths):
        waited_s = waits[-1].at_s - waits[0].at_s
        help_ = "end what holds the memory, or ask for less: `launch plan` says what fits now"
        return replace(last, message=f"{last.message} (waited for {waited_s:.0f} s, no further start)", help=help_)
    n_deaths = sum(not death.is_crowded for death in deaths)
    message = f"{last.message} ({n_deaths} deaths, no further start)" if n_deaths > 1 else last.message
    return replace(last, message=message)
