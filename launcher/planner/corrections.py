"""What experience says a plan's figure leaves out, as a residual of each memory.

The footprint is the engine's own account. Beside it lie a driver's context, library workspaces and whatever the formula
does not know: assumed until an engine ran here (or ran out of memory), learnt from then on. It must not know how
anything was measured or where it is kept.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from launcher.domain import HOST_MEMORY, Budget, Correction, EngineInstall, Host, Lesson, Noun, Plan
from launcher.planner.architecture import Architecture
from launcher.planner.calibration import build_of
from launcher.units import format_bytes


def configuration_class(*, n_devices: int, flash_attn: bool) -> str:
    """Return the class of settings within which what is not accounted for carries over from one plan to another.

    A second device brings a second context and copies between the two; without flash attention other kernels run, with
    workspaces of their own. Everything else that memory depends on is in the formula.
    """
    return f"{n_devices} {'device' if n_devices == 1 else 'devices'}, flash attention {'on' if flash_attn else 'off'}"


def model_key(architecture: Architecture) -> str:
    """Return what names a model's shape: its quantizations share what no formula knows of it."""
    return f"{architecture.name}-{architecture.n_layer}x{architecture.n_embd}"


def learn(
    plan: Plan,
    *,
    memory: str,
    unaccounted_bytes: int,
    lesson: Lesson,
    architecture: Architecture,
    at: float,
    limit_bytes: int | None = None,
    missing_bytes: int = 0,
) -> Correction:
    """Return what a run of ``plan`` taught of one memory, ``at`` seconds since 1970.

    ``limit_bytes`` and ``missing_bytes`` are as in `Correction`: of a failure whose cause may be the limit.
    """
    return Correction(
        memory=memory,
        build=build_of(plan.install) if plan.install is not None else "",
        model=model_key(architecture),
        configuration=configuration_class(n_devices=len(plan.footprint.devices), flash_attn=plan.flash_attn),
        lesson=lesson,
        planned_bytes=planned_bytes(plan, memory),
        unaccounted_bytes=unaccounted_bytes,
        learnt_at=at,
        limit_bytes=limit_bytes,
        missing_bytes=missing_bytes,
    )


def planned_bytes(plan: Plan, memory: str) -> int:
    """Return what the plan gives the engine of one memory: of the host, all that cannot be given back."""
    for use in plan.footprint.devices:
        if use.name == memory:
            return use.total_bytes
    return plan.footprint.host.total_bytes


def remember(corrections: Iterable[Correction], new: Correction) -> tuple[Correction, ...]:
    """Return the corrections with a new one among them.

    Of each kind the larger is kept, so that what one quiet run did not show is not forgotten. One that says less but
    counts under a higher limit stays beside it.
    """
    kept = tuple(old for old in corrections if not _covers(new, old))
    return kept if any(_covers(old, new) for old in kept) else (*kept, new)


def _covers(one: Correction, other: Correction) -> bool:
    """Whether a correction says at least as much as another one wherever that one counts."""
    return (
        _key(one) == _key(other)
        and one.holds_upto_bytes >= other.holds_upto_bytes
        and one.unaccounted_bytes >= other.unaccounted_bytes
    )


def _key(item: Correction) -> tuple[object, ...]:
    return (item.memory, item.build, item.model, item.configuration, item.lesson)


def limit_of(memory: str, total_bytes: int, host: Host) -> int:
    """Return what can be had of a memory at most: of a device all it has, of the host what its limits leave."""
    return host.limit_bytes if memory == HOST_MEMORY else total_bytes


class Heeded(Noun, frozen=True):
    """What was learnt of one memory for one model: the lessons that count now, and those that do not."""

    counted: tuple[Correction, ...] = ()
    idle: tuple[Correction, ...] = ()


def heed(
    budget: Budget,
    corrections: Iterable[Correction],
    *,
    install: EngineInstall | None,
    architecture: Architecture,
    configuration: str,
    limit_bytes: int,
) -> Heeded:
    """Return the lessons of one memory for this model, in this build and class of settings.

    Of a model that never ran here only what a run of another one measured in the same build and class is taken over:
    the driver's share is the same. That another one ran out of memory says nothing of this one. That this one did does
    not count where ``limit_bytes``, what can be had of the memory now, exceeds the limit of then by more than was missing.
    """
    where = (budget.name, build_of(install) if install is not None else "", configuration)
    here = [item for item in corrections if (item.memory, item.build, item.configuration) == where]
    own = [item for item in here if item.model == model_key(architecture)]
    idle = tuple(item for item in own if limit_bytes > item.holds_upto_bytes)
    counted = [item for item in own if item not in idle]
    return Heeded(
        counted=tuple(counted or [item for item in here if item.lesson is Lesson.MEASURED]),
        idle=idle,
    )


def correct_budget(budget: Budget, heeded: Heeded) -> Budget:
    """Return the budget with the residual that was learnt.

    A run measured it; running out of memory only says that it is larger than was thought.
    """
    if not heeded.counted:
        return budget
    measured = [item.unaccounted_bytes for item in heeded.counted if item.lesson is Lesson.MEASURED]
    least = [item.unaccounted_bytes for item in heeded.counted if item.lesson is Lesson.OUT_OF_MEMORY]
    residual = max([0, *(measured or [budget.residual_bytes]), *least])
    return replace(budget, residual_bytes=residual, residual_learnt=True)


def describe_lessons(budget: Budget, heeded: Heeded, *, limit_bytes: int) -> tuple[str, ...]:
    """Return in words what is kept free of a corrected budget and why, and what no longer counts."""
    facts = []
    if budget.residual_learnt:
        ran_out = [item.planned_bytes for item in heeded.counted if item.lesson is Lesson.OUT_OF_MEMORY]
        why = f": with {format_bytes(min(ran_out))} planned it ran out" if ran_out else ""
        kept = format_bytes(budget.residual_bytes)
        facts.append(f"{kept} are kept free beside the margin, learnt from earlier runs here{why}")
    facts += [
        f"that it ran out with {format_bytes(item.planned_bytes)} planned does not count: there was a limit of "
        f"{format_bytes(item.limit_bytes or 0)} then, and {format_bytes(limit_bytes)} can be had now"
        for item in heeded.idle
    ]
    return tuple(facts)
