"""What experience changes in a plan, and what it does not."""

from msgspec.structs import replace

from launcher.domain import Calibration, Correction, Lesson, Plan, Refusal, Request, Settings
from launcher.inventory import load_inventory
from launcher.planner.corrections import configuration_class, learn, planned_bytes, remember
from launcher.planner.fit import decide
from launcher.planner.ladder import step_down
from launcher.planner.sizing import prepare
from launcher.planner.target import DEVICE_RESIDUAL_BYTES
from launcher.profiles import load_profile
from launcher.units import GIB, MIB

_GEMMA = load_profile("gemma2-27b")
_ARCHITECTURE = prepare(_GEMMA)[0].architecture
_RTX4090 = load_inventory("rtx4090")


def _plan(*corrections: Correction, settings: Settings | None = None) -> Plan:
    outcome = decide(
        Request(profile=_GEMMA, settings=settings or Settings()),
        _RTX4090,
        calibration=Calibration(machine="here", corrections=corrections),
    )
    assert isinstance(outcome, Plan)
    return outcome


def _lesson(plan: Plan, unaccounted_bytes: int, lesson: Lesson, memory: str = "gpu0") -> Correction:
    return learn(
        plan,
        memory=memory,
        unaccounted_bytes=unaccounted_bytes,
        lesson=lesson,
        architecture=_ARCHITECTURE,
        at=1.0,
    )


def test_a_measured_residual_replaces_the_assumed_one() -> None:
    """More or less than was assumed: the next plan keeps what was measured free, and says so."""
    plan = _plan()
    assert plan.budgets[0].residual_bytes == DEVICE_RESIDUAL_BYTES
    for measured in (100 * MIB, 700 * MIB):
        again = _plan(_lesson(plan, measured, Lesson.MEASURED))
        assert again.budgets[0].residual_bytes == measured
        assert any("learnt from earlier runs here" in note for note in again.notes)


def test_running_out_only_raises_the_residual() -> None:
    """That it needed at least so much says nothing against a larger assumption."""
    plan = _plan()
    assert _plan(_lesson(plan, MIB, Lesson.OUT_OF_MEMORY)).budgets[0].residual_bytes == DEVICE_RESIDUAL_BYTES
    assert _plan(_lesson(plan, GIB, Lesson.OUT_OF_MEMORY)).budgets[0].residual_bytes == GIB


def test_an_out_of_memory_is_not_repeated() -> None:
    """With the lesson that the free memory did not suffice the same plan is not made again."""
    plan = _plan()
    missing = plan.budgets[0].free_bytes - planned_bytes(plan, "gpu0") + 1
    again = _plan(_lesson(plan, missing, Lesson.OUT_OF_MEMORY))
    assert planned_bytes(again, "gpu0") < planned_bytes(plan, "gpu0")


def test_another_model_that_ran_out_teaches_nothing_but_its_measurement_does() -> None:
    """The driver's share is the same for every model; how far a formula is off is not."""
    plan = _plan()
    other = replace(_lesson(plan, 3 * GIB, Lesson.OUT_OF_MEMORY), model="llama-32x4096")
    assert _plan(other).budgets[0].residual_bytes == DEVICE_RESIDUAL_BYTES
    assert _plan(replace(other, lesson=Lesson.MEASURED)).budgets[0].residual_bytes == 3 * GIB


def test_another_build_or_class_teaches_nothing() -> None:
    """A correction is of one build, and of one class of settings."""
    plan = _plan()
    lesson = _lesson(plan, 3 * GIB, Lesson.MEASURED)
    for foreign in (
        replace(lesson, build="another"),
        replace(lesson, configuration=configuration_class(n_devices=2, flash_attn=True)),
        replace(lesson, memory="gpu7"),
    ):
        assert _plan(foreign).budgets == plan.budgets


def test_the_larger_of_two_equal_lessons_is_kept() -> None:
    """One entry per kind, whatever the order they came in."""
    plan = _plan()
    small, large = (_lesson(plan, n, Lesson.MEASURED) for n in (MIB, GIB))
    assert remember(remember((), small), large) == remember(remember((), large), small) == (large,)
    other = replace(small, memory="host")
    assert set(remember((small,), other)) == {small, other}


def test_a_step_down_heeds_what_was_just_learnt() -> None:
    """The lesson of this very failure holds for the next plan: it leaves that much free."""
    plan = _plan()
    missing = plan.budgets[0].free_bytes - planned_bytes(plan, "gpu0") + 512 * MIB
    known = Calibration(machine="here", corrections=(_lesson(plan, missing, Lesson.OUT_OF_MEMORY),))
    outcome = step_down(
        plan,
        memory="gpu0",
        failed_bytes=None,
        request=Request(profile=_GEMMA),
        inventory=_RTX4090,
        calibration=known,
    )
    assert not isinstance(outcome, Refusal)
    budget = outcome.budgets[0]
    assert planned_bytes(outcome, "gpu0") + budget.margin_bytes + missing <= budget.free_bytes


def test_a_class_of_settings_is_named_on_disk() -> None:
    """What was learnt is found again by these words, in later versions too."""
    assert configuration_class(n_devices=1, flash_attn=True) == "1 device, flash attention on"
    assert configuration_class(n_devices=2, flash_attn=False) == "2 devices, flash attention off"
