"""What experience says a plan's figure leaves out, as a residual of each memory.

The footprint is the engine's own account. Beside it lie a driver's context, library workspaces and whatever the formula
does not know: assumed until an engine ran here (or ran out of memory), learnt from then on. It must not know how
anything was measured or where it is kept.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from launcher.domain import Budget, Correction, EngineInstall, Lesson, Plan
from launcher.planner.architecture import Architecture
from launcher.planner.calibration import build_of


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
    plan: Plan, *, memory: str, unaccounted_bytes: int, lesson: Lesson, architecture: Architecture, at: float
) -> Correction:
    """Return what a run of ``plan`` taught of one memory, ``at`` seconds since 1970."""
    return Correction(
        memory=memory,
        build=build_of(plan.install) if plan.install is not None else "",
        model=model_key(architecture),
        configuration=configuration_class(n_devices=len(plan.footprint.devices), flash_attn=plan.flash_attn),
        lesson=lesson,
        planned_bytes=planned_bytes(plan, memory),
        unaccounted_bytes=unaccounted_bytes,
        learnt_at=at,
    )


def planned_bytes(plan: Plan, memory: str) -> int:
    """Return what the plan gives the engine of one memory: of the host, all that cannot be given back."""
    for use in plan.footprint.devices:
        if use.name == memory:
            return use.total_bytes
    return plan.footprint.host.total_bytes


def remember(corrections: Iterable[Correction], new: Correction) -> tuple[Correction, ...]:
    """Return the corrections with a new one among them.

    One is kept of each kind: the larger, so that what one quiet run did not show is not forgotten.
    """
    same = [old for old in corrections if _key(old) == _key(new)]
    kept = max((*same, new), key=lambda item: (item.unaccounted_bytes, item.learnt_at))
    return (*(old for old in corrections if _key(old) != _key(new)), kept)


def _key(item: Correction) -> tuple[object, ...]:
    return (item.memory, item.build, item.model, item.configuration, item.lesson)


def correct_budgets(
    budgets: tuple[Budget, ...],
    corrections: Iterable[Correction],
    *,
    install: EngineInstall | None,
    architecture: Architecture,
    configuration: str,
) -> tuple[Budget, ...]:
    """Return the budgets with the residuals that were learnt for this model, in this build and class of settings.

    Of a model that never ran here only what a run of another one measured in the same build and class is taken over:
    the driver's share is the same. That another one ran out of memory says nothing of this one.
    """
    build = build_of(install) if install is not None else ""
    near = [item for item in corrections if (item.build, item.configuration) == (build, configuration)]
    corrected = []
    for budget in budgets:
        here = [item for item in near if item.memory == budget.name]
        own = [item for item in here if item.model == model_key(architecture)]
        known = own or [item for item in here if item.lesson is Lesson.MEASURED]
        corrected.append(_with_residual(budget, known) if known else budget)
    return tuple(corrected)


def _with_residual(budget: Budget, known: list[Correction]) -> Budget:
    """Replace the residual: a run measured it; running out of memory only says that it is larger than was thought."""
    measured = [item.unaccounted_bytes for item in known if item.lesson is Lesson.MEASURED]
    least = [item.unaccounted_bytes for item in known if item.lesson is Lesson.OUT_OF_MEMORY]
    residual = max([0, *(measured or [budget.residual_bytes]), *least])
    return replace(budget, residual_bytes=residual, residual_learnt=True)
