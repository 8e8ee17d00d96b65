"""What experience changes in a plan, and what it does not."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.domain import (
    Budget,
    Calibration,
    Correction,
    Host,
    Inventory,
    Lesson,
    Plan,
    Provenance,
    Refusal,
    Request,
    Settings,
)
from launcher.inventory import load_inventory
from launcher.planner.corrections import configuration_class, correct_budget, heed, learn, planned_bytes, remember
from launcher.planner.fit import decide
from launcher.planner.ladder import step_down
from launcher.planner.sizing import prepare
from launcher.planner.target import DEVICE_RESIDUAL_BYTES
from launcher.profiles import load_profile
from launcher.units import GIB, MIB, format_bytes

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
        assert any(note.endswith("beside the margin, learnt from earlier runs here") for note in again.notes)


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
    failed = format_bytes(planned_bytes(plan, "gpu0"))
    assert any(
        note.endswith(f"learnt from earlier runs here: with {failed} planned it ran out") for note in again.notes
    )


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


# --- Limits -----------------------------------------------------------------------------------------------------


def _host(free_bytes: int, limit_bytes: int | None = None, kind: str = "address_space_bytes") -> Inventory:
    host = Host(total_bytes=64 * GIB, available_bytes=free_bytes, n_cpu=8, bandwidth_bytes_per_s=60e9)
    if kind == "address_space_bytes":
        host = replace(host, address_space_bytes=limit_bytes)
    else:
        host = replace(host, cgroup_limit_bytes=limit_bytes)
    return Inventory(name="drawn", host=host, provenance=Provenance.MEASURED)


def _plan_on(machine: Inventory, *corrections: Correction) -> Plan | Refusal:
    return decide(Request(profile=_GEMMA), machine, calibration=Calibration(machine="here", corrections=corrections))


def _ran_out(plan: Plan, machine: Inventory, relief: int) -> Correction:
    """Return the least lesson of a failure: the plan has to be smaller by ``relief``."""
    budget = plan.budgets[-1]
    missing = budget.free_bytes - budget.margin_bytes - planned_bytes(plan, "host") + relief
    lesson = _lesson(plan, missing, Lesson.OUT_OF_MEMORY, memory="host")
    return replace(lesson, limit_bytes=machine.host.limit_bytes, missing_bytes=relief)


_KINDS = st.sampled_from(["cgroup_limit_bytes", "address_space_bytes"])


@pytest.mark.slow
@given(kind=_KINDS, limit_gib=st.integers(24, 48), relief_mib=st.integers(1, 2048), more_mib=st.integers(-8192, 8192))
def test_a_lesson_counts_up_to_its_limit_and_what_was_missing(
    kind: str, limit_gib: int, relief_mib: int, more_mib: int
) -> None:
    """Under the same limit or less the plan that failed is not made again; beyond what was missing all is as unlearnt."""
    limit, relief = limit_gib * GIB, relief_mib * MIB
    then = _host(60 * GIB, limit, kind)
    failed = _plan_on(then)
    assert isinstance(failed, Plan)
    lesson = _ran_out(failed, then, relief)
    now = _host(60 * GIB, limit + more_mib * MIB, kind)
    again = _plan_on(now, lesson)
    if more_mib > relief_mib:
        told, untold = again, _plan_on(now)
        assert isinstance(told, Plan)
        assert isinstance(untold, Plan)
        assert msgspec.structs.replace(told, notes=()) == msgspec.structs.replace(untold, notes=())
        assert any("does not count: there was a limit of" in note for note in told.notes)
    elif isinstance(again, Plan):
        assert planned_bytes(again, "host") <= planned_bytes(failed, "host") - relief + max(0, more_mib * MIB)
        assert more_mib > 0 or planned_bytes(again, "host") < planned_bytes(failed, "host")


def test_a_limit_that_is_gone_takes_its_lesson_along() -> None:
    """An address space of 24 GiB was too little; without it the lesson is told, and does not count."""
    then = _host(60 * GIB, 24 * GIB)
    failed = _plan_on(then)
    assert isinstance(failed, Plan)
    lesson = _ran_out(failed, then, 512 * MIB)
    free = _plan_on(_host(60 * GIB), lesson)
    assert isinstance(free, Plan)
    assert not free.budgets[-1].residual_learnt
    (note,) = (note for note in free.notes if "does not count" in note)
    assert "a limit of 24.0 GiB then, and 64.0 GiB can be had now" in note


def test_a_lesson_of_an_older_file_always_counts() -> None:
    """A file of before limits were kept is read, and what it says holds whatever can be had."""
    plan = _plan()
    document = msgspec.to_builtins(_lesson(plan, GIB, Lesson.OUT_OF_MEMORY))
    for name in ("limit_bytes", "missing_bytes"):
        del document[name]
    old = msgspec.convert(document, Correction)
    assert _plan(old).budgets[0].residual_bytes == GIB


@st.composite
def _lessons(draw: st.DrawFn) -> list[Correction]:
    n = draw(st.integers(1, 12))
    sizes = st.integers(0, 6)
    return [
        Correction(
            memory="host",
            build="",
            model=f"{_ARCHITECTURE.name}-{_ARCHITECTURE.n_layer}x{_ARCHITECTURE.n_embd}",
            configuration="one",
            lesson=draw(st.sampled_from(Lesson)),
            planned_bytes=GIB,
            unaccounted_bytes=draw(sizes),
            learnt_at=float(idx),
            limit_bytes=draw(st.none() | sizes),
            missing_bytes=draw(sizes),
        )
        for idx in range(n)
    ]


@given(lessons=_lessons(), limit=st.integers(0, 14))
def test_what_is_not_kept_says_nothing_that_is_not_said(lessons: list[Correction], limit: int) -> None:
    """Under any limit the lessons kept give the residual that all of them give; none of them says what another does."""

    def residual(known: tuple[Correction, ...]) -> int:
        budget = Budget(name="host", total_bytes=64, free_bytes=64, margin_bytes=0, residual_bytes=1)
        heeded = heed(budget, known, install=None, architecture=_ARCHITECTURE, configuration="one", limit_bytes=limit)
        return correct_budget(budget, heeded).residual_bytes

    kept: tuple[Correction, ...] = ()
    for lesson in lessons:
        kept = remember(kept, lesson)
    assert residual(kept) == residual(tuple(lessons))
    assert len({(item.lesson, item.unaccounted_bytes) for item in kept}) == len(kept)


def test_a_refusal_says_what_bounds_the_memory() -> None:
    """A limit, and a lesson, are among the reasons."""
    plan = _plan_on(_host(60 * GIB))
    assert isinstance(plan, Plan)
    lesson = _lesson(plan, 58 * GIB, Lesson.OUT_OF_MEMORY, memory="host")
    refusal = _plan_on(_host(60 * GIB, 24 * GIB, "cgroup_limit_bytes"), lesson)
    assert isinstance(refusal, Refusal)
    assert "host: its control group is limited to 24.0 GiB of the 64.0 GiB there are" in refusal.derivation
    assert any("58.0 GiB are kept free beside the margin, learnt" in line for line in refusal.derivation)
