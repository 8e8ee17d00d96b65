"""What a stepper learns of a machine, from values alone: nothing is started."""

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from launcher.domain import (
    Device,
    DeviceKind,
    Engine,
    EngineDevice,
    EngineInstall,
    Host,
    Inventory,
    Lesson,
    Plan,
    Refusal,
    Request,
)
from launcher.planner.calibration import machine_id
from launcher.planner.corrections import planned_bytes
from launcher.planner.fit import decide
from launcher.planner.search import Alternatives
from launcher.profiles import load_profile
from launcher.store import read_calibration
from launcher.supervisor import stepping
from launcher.supervisor.setback import Setback, Shortage, Step
from launcher.supervisor.stepping import MachineStepper, describe_step, is_better
from launcher.units import GIB, MIB

_REQUEST = Request(profile=load_profile("gemma2-9b"))


def _machine(free_bytes: int, host_free_bytes: int = 32 * GIB) -> Inventory:
    card = Device(
        name="gpu0",
        kind=DeviceKind.CUDA,
        description="a card",
        total_bytes=24 * GIB,
        free_bytes=free_bytes,
        bandwidth_bytes_per_s=900e9,
    )
    host = Host(total_bytes=64 * GIB, available_bytes=host_free_bytes, n_cpu=8, bandwidth_bytes_per_s=60e9)
    return Inventory(name="told", host=host, devices=(card,))


_WHOLE = _machine(23 * GIB)


def _plan(machine: Inventory = _WHOLE) -> Plan:
    outcome = decide(_REQUEST, machine)
    assert isinstance(outcome, Plan)
    return outcome


def _stepper(*looks: Inventory, return_s: float = 10.0) -> MachineStepper:
    def see() -> Iterator[Inventory]:
        yield from looks
        while True:
            yield looks[-1]

    seen = see()
    return MachineStepper(
        _REQUEST,
        probe=lambda: next(seen),
        argv=("serve",),
        alternatives=Alternatives(),
        settle_s=0.0,
        return_s=return_s,
    )


def _at_the_foot() -> MachineStepper:
    """Return one whose profile has no step to take."""
    profile = replace(_REQUEST.profile, fallback=replace(_REQUEST.profile.fallback, ladder=()))
    request = replace(_REQUEST, profile=profile)
    return MachineStepper(request, probe=lambda: _WHOLE, argv=("serve",), alternatives=Alternatives(), settle_s=0.0)


def _setback(plan: Plan, shortage: Shortage = Shortage.AT_LOAD, **more: object) -> Setback:
    return replace(Setback(plan=plan, shortage=shortage, words="it ran out", memory="gpu0"), **more)


def _lessons() -> dict[tuple[str, Lesson], int]:
    known, _ = read_calibration(machine_id(_WHOLE))
    return {} if known is None else {(c.memory, c.lesson): c.unaccounted_bytes for c in known.corrections}


@pytest.mark.usefixtures("state_dir")
def test_running_out_is_learnt_before_the_step_is_planned() -> None:
    """The step leaves free what the lesson says, and the same plan is not made again on the same machine."""
    plan = _plan()
    step = _stepper(_WHOLE).next_plan(_setback(plan, failed_bytes=512 * MIB))
    assert isinstance(step, Step)
    lesson = _lessons()["gpu0", Lesson.OUT_OF_MEMORY]
    budget = plan.budgets[0]
    assert planned_bytes(plan, "gpu0") + budget.margin_bytes + lesson > budget.free_bytes
    assert planned_bytes(step.plan, "gpu0") + budget.margin_bytes + lesson <= budget.free_bytes
    known, _ = read_calibration(machine_id(_WHOLE))
    again = decide(_REQUEST, _WHOLE, calibration=known)
    assert isinstance(again, Plan)
    assert planned_bytes(again, "gpu0") < planned_bytes(plan, "gpu0")


@pytest.mark.usefixtures("state_dir")
def test_what_others_took_teaches_nothing() -> None:
    """A step for what is free now, and no lesson."""
    plan = _plan()
    step = _stepper(_machine(8 * GIB)).next_plan(_setback(plan))
    assert isinstance(step, Step)
    assert not step.is_retry
    assert planned_bytes(step.plan, "gpu0") < 8 * GIB
    assert any("other processes have taken 15.0 GiB" in line for line in step.story)
    assert _lessons() == {}


@pytest.mark.usefixtures("state_dir")
def test_one_retry_and_no_more() -> None:
    """Others had memory and the plan still fits: the same plan once; the second time it is a step."""
    plan = _plan(_machine(23 * GIB))
    roomy = _machine(23 * GIB - GIB)
    if planned_bytes(plan, "gpu0") > 21 * GIB:
        pytest.fail("the plan must fit into what is left, for this test to say anything")
    stepper = _stepper(roomy)
    first = stepper.next_plan(_setback(plan))
    second = stepper.next_plan(_setback(plan))
    assert isinstance(first, Step)
    assert (first.is_retry, first.plan) == (True, plan)
    assert isinstance(second, Step)
    assert not second.is_retry


@pytest.mark.usefixtures("state_dir")
def test_where_nothing_fits_beside_others_the_same_plan_waits() -> None:
    """They may give the memory back: no end of the instance, no lesson; while the engine still serves it is a refusal."""
    plan = _plan()
    request = replace(_REQUEST, settings=replace(_REQUEST.settings, n_gpu_layers=plan.n_gpu_layers))
    crowded = _machine(1 * GIB)
    stepper = MachineStepper(request, probe=lambda: crowded, argv=("serve",), alternatives=Alternatives(), settle_s=0.0)
    step = stepper.next_plan(_setback(plan))
    assert isinstance(step, Step)
    assert (step.after_backoff, step.is_retry, step.plan) == (True, True, plan)
    assert _lessons() == {}
    assert isinstance(stepper.next_plan(_setback(plan, Shortage.PRESSURE)), Refusal)


@pytest.mark.usefixtures("state_dir")
def test_at_the_ladders_foot_others_who_left_are_no_end() -> None:
    """However often they take the memory and leave: nothing is wrong with the plan, and no smaller one is needed."""
    plan = _plan()
    stepper = _at_the_foot()
    setback = _setback(plan, Shortage.FORESEEN, taken_bytes=20 * GIB)
    first, second, third = (stepper.next_plan(setback) for _ in range(3))
    assert isinstance(first, Step)
    assert (first.is_retry, first.after_backoff, first.plan) == (True, False, plan)
    for later in (second, third):
        assert isinstance(later, Step)
        assert (later.is_retry, later.after_backoff, later.plan) == (True, True, plan)
        assert "they have given it back" in later.story[-1]
    assert _lessons() == {}


@pytest.mark.usefixtures("state_dir")
def test_the_engines_own_figure_is_added_to_what_is_kept() -> None:
    """A start that would not fit by 300 MiB more than planned: so much more is kept free next time."""
    plan = _plan()
    told = planned_bytes(plan, "gpu0") + 300 * MIB
    step = _stepper(_WHOLE).next_plan(_setback(plan, Shortage.FORESEEN, told_bytes=told, failed_bytes=1))
    assert isinstance(step, Step)
    assert _lessons()["gpu0", Lesson.OUT_OF_MEMORY] == plan.budgets[0].residual_bytes + 300 * MIB


@pytest.mark.usefixtures("state_dir")
def test_pressure_teaches_nothing_and_counts_the_engines_own_memory_as_free() -> None:
    """The engine still runs: what it holds will be there for the next one."""
    plan = _plan()
    own = planned_bytes(plan, "gpu0")
    full = _machine(23 * GIB - own)
    setback = _setback(plan, Shortage.PRESSURE, own_bytes={"gpu0": own}, failed_bytes=64 * MIB)
    step = _stepper(full).next_plan(setback)
    assert isinstance(step, Step)
    assert planned_bytes(step.plan, "gpu0") < own
    assert _lessons() == {}


@pytest.mark.usefixtures("state_dir")
def test_an_engine_that_serves_is_not_replaced_by_itself() -> None:
    """Others have taken memory fast and the plan would fit beside them: under pressure the same plan is no answer."""
    plan = _plan()
    own = planned_bytes(plan, "gpu0")
    setback = _setback(plan, Shortage.PRESSURE, own_bytes={"gpu0": own}, failed_bytes=64 * MIB)
    step = _stepper(_machine(22 * GIB - own)).next_plan(setback)
    assert isinstance(step, Step)
    assert any("other processes have taken 1.0 GiB" in line for line in step.story)
    assert not step.is_retry
    assert planned_bytes(step.plan, "gpu0") < own


@pytest.mark.usefixtures("state_dir")
def test_use_is_learnt_of_devices_and_of_the_host_only_where_it_is_more() -> None:
    """Mapped weights that are not resident yet are no discovery."""
    plan = _plan()
    planned = {name: planned_bytes(plan, name) for name in ("gpu0", "host")}
    stepper = _stepper(_WHOLE)
    stepper.learn_use(plan, {"gpu0": planned["gpu0"] + 700 * MIB, "host": planned["host"] - MIB})
    assert _lessons() == {("gpu0", Lesson.MEASURED): 700 * MIB}
    stepper.learn_use(plan, {"host": planned["host"] + 5 * MIB})
    assert _lessons()["host", Lesson.MEASURED] == 5 * MIB


@pytest.mark.usefixtures("state_dir")
def test_more_room_is_offered_and_less_is_not() -> None:
    """With its own memory given back the instance would be planned better; as it is, it would not."""
    small = _plan(_machine(9 * GIB))
    stepper = _stepper(_machine(14 * GIB))
    better = stepper.better_plan(small, {"gpu0": planned_bytes(small, "gpu0")})
    assert better is not None
    assert is_better(better, small)
    assert not is_better(small, better)
    assert any(" -> " in line for line in describe_step(small, better))
    assert stepper.better_plan(better, {}) is None


@pytest.mark.usefixtures("state_dir")
def test_the_foot_has_advice_that_fits() -> None:
    """The refusal says what happened, what was measured, and ways out."""
    refusal = _at_the_foot().next_plan(_setback(_plan()))
    assert isinstance(refusal, Refusal)
    assert refusal.derivation[0] == "it ran out"
    assert "of gpu0 are free without it" in refusal.derivation[1]


# --- Who has left since -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("state_dir")
def test_a_start_that_did_not_fit_beside_a_program_that_left_is_made_again_once() -> None:
    """Preflight saw 10 GiB taken; all is free again: the same plan, no lesson, and the second time a step."""
    plan = _plan()
    stepper = _stepper(_WHOLE)
    setback = _setback(plan, Shortage.FORESEEN, told_bytes=planned_bytes(plan, "gpu0"), taken_bytes=10 * GIB)
    first, second = stepper.next_plan(setback), stepper.next_plan(setback)
    assert isinstance(first, Step)
    assert (first.is_retry, first.plan) == (True, plan)
    assert "other processes had taken 10.0 GiB, and have given it back" in first.story[1]
    assert isinstance(second, Step)
    assert not second.is_retry
    assert _lessons() == {}


@pytest.mark.usefixtures("state_dir")
def test_a_program_that_left_does_not_excuse_a_plan_that_is_too_large_by_the_engines_own_figure() -> None:
    """What the engine tells exceeds the whole card: a step at once."""
    plan = _plan()
    setback = _setback(plan, Shortage.FORESEEN, told_bytes=24 * GIB, taken_bytes=10 * GIB, failed_bytes=GIB)
    step = _stepper(_WHOLE).next_plan(setback)
    assert isinstance(step, Step)
    assert not step.is_retry


@pytest.mark.usefixtures("state_dir")
def test_the_usual_ebb_is_nobodys_taking() -> None:
    """A sixty-fourth of the card less than planned is no other process."""
    plan = _plan()
    step = _stepper(_WHOLE).next_plan(_setback(plan, Shortage.FORESEEN, failed_bytes=MIB, taken_bytes=24 * GIB // 64))
    assert isinstance(step, Step)
    assert not step.is_retry


@pytest.mark.usefixtures("state_dir")
def test_pressure_by_a_program_that_left_changes_nothing_however_often() -> None:
    """The engine still runs and fits: it goes on with its plan; with the program still there it steps down."""
    plan = _plan()
    own = planned_bytes(plan, "gpu0")
    setback = _setback(
        plan, Shortage.PRESSURE, own_bytes={"gpu0": own}, failed_bytes=64 * MIB, taken_bytes=23 * GIB - own
    )
    stepper = _stepper(_machine(23 * GIB - own))
    for _ in range(3):
        step = stepper.next_plan(setback)
        assert isinstance(step, Step)
        assert (step.is_retry, step.plan) == (True, plan)
    still = _stepper(_machine(22 * GIB - own)).next_plan(setback)
    assert isinstance(still, Step)
    assert not still.is_retry


@pytest.mark.usefixtures("state_dir")
def test_a_drained_engine_comes_back_with_its_plan_where_the_program_left_meanwhile() -> None:
    """Nothing runs any more: the same plan once, then a step."""
    plan = _plan()
    setback = _setback(plan, Shortage.PRESSURE, failed_bytes=64 * MIB, taken_bytes=10 * GIB)
    stepper = _stepper(_WHOLE)
    first, second = stepper.next_plan(setback), stepper.next_plan(setback)
    assert isinstance(first, Step)
    assert isinstance(second, Step)
    assert (first.is_retry, second.is_retry) == (True, False)


@pytest.mark.usefixtures("state_dir")
def test_what_ran_out_under_a_limit_is_kept_with_it() -> None:
    """The lesson carries what could be had and what was missing; the engine's own figure holds under any limit."""
    limited = replace(_WHOLE, host=replace(_WHOLE.host, address_space_bytes=30 * GIB))
    plan = _plan(limited)
    _stepper(limited).next_plan(_setback(plan, memory="host", failed_bytes=MIB))
    known, _ = read_calibration(machine_id(_WHOLE))
    assert known is not None
    (lesson,) = known.corrections
    assert (lesson.limit_bytes, lesson.missing_bytes) == (30 * GIB, MIB)
    _stepper(limited).next_plan(_setback(plan, Shortage.FORESEEN, memory="host", told_bytes=29 * GIB))
    known, _ = read_calibration(machine_id(_WHOLE))
    assert known is not None
    assert {lesson.limit_bytes for lesson in known.corrections} == {30 * GIB, None}


@pytest.mark.usefixtures("state_dir")
def test_a_limit_that_was_lowered_is_told_as_one() -> None:
    """Nobody is said to have taken what a control group no longer gives."""
    plan = _plan()
    lowered = replace(_WHOLE, host=replace(_WHOLE.host, cgroup_limit_bytes=4 * GIB, cgroup_used_bytes=GIB))
    step = _stepper(lowered).next_plan(_setback(plan, memory="host"))
    assert isinstance(step, Step)
    assert "3.0 GiB of host are free without it, 29.0 GiB less than when it was planned" in step.story[1]
    assert "under a limit of 4.0 GiB" in step.story[1]


_WORKERS = ("10.0.0.1:50052", "10.0.0.2:50052")


def _with_workers(*present: str) -> Inventory:
    """Return a machine whose engine is started with these workers of 8 GiB each, and has little memory of its own."""
    devices = tuple(
        Device(name=name, kind=DeviceKind.RPC, description=name, total_bytes=8 * GIB, free_bytes=8 * GIB)
        for name in present
    )
    listed = tuple(EngineDevice(name=f"RPC{idx}", description=name, device=name) for idx, name in enumerate(present))
    install = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("/opt/e",), devices=listed, workers=present)
    host = Host(total_bytes=8 * GIB, available_bytes=5 * GIB, n_cpu=2)
    return Inventory(name="told", host=host, devices=devices, engines=(install,))


def _lost(*looks: Inventory, return_s: float = 10.0) -> Step | Refusal:
    stepper = _stepper(*looks, return_s=return_s)
    return stepper.next_plan(Setback(plan=_plan(_with_workers(*_WORKERS)), shortage=Shortage.LOST, words="it is gone"))


@pytest.mark.usefixtures("state_dir")
def test_a_lost_worker_leads_to_a_plan_for_what_is_left() -> None:
    """The story names who is gone and what changes; nothing is learnt, for no plan was wrong."""
    step = _lost(_with_workers(_WORKERS[1]))
    assert isinstance(step, Step)
    assert step.plan.workers == (_WORKERS[1],)
    assert not step.is_retry
    assert step.story[:2] == ("it is gone", f"{_WORKERS[0]} no longer answers; planned for what is left")
    assert f"workers: {', '.join(_WORKERS)} -> {_WORKERS[1]}" in step.story
    assert not _lessons()


@pytest.mark.usefixtures("state_dir")
def test_workers_that_are_all_there_get_the_same_plan_when_the_restart_policy_says_so() -> None:
    """One was started again meanwhile, or only the connection broke; a worker that dies of this model ends that way too."""
    step = _lost(_with_workers(*_WORKERS))
    assert isinstance(step, Step)
    assert (step.is_retry, step.after_backoff) == (True, True)
    assert step.plan.workers == _WORKERS


@pytest.mark.usefixtures("state_dir")
def test_where_nothing_fits_without_a_worker_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns: the same plan. It does not: a refusal that says who is missing."""
    monkeypatch.setattr(stepping, "_RETURN_PAUSE_S", 0.0)
    alone = _with_workers()
    step = _lost(alone, alone, _with_workers(*_WORKERS))
    assert isinstance(step, Step)
    assert step.plan.workers == _WORKERS
    refusal = _lost(alone, return_s=0.0)
    assert isinstance(refusal, Refusal)
    assert f"{', '.join(_WORKERS)} no longer answer; planned for what is left" in refusal.derivation


@pytest.mark.usefixtures("state_dir")
def test_giving_up_caches_that_were_not_there_yet_relieves_no_load() -> None:
    """What could not be loaded is loaded smaller the next time, however much of the plan was for serving."""
    bare = replace(_WHOLE, devices=())
    plan = _plan(bare)
    assert plan.footprint.host.prompt_cache_bytes > GIB
    _stepper(bare).next_plan(_setback(plan, memory="host", failed_bytes=512 * MIB))
    known, _ = read_calibration(machine_id(bare))
    again = decide(_REQUEST, bare, calibration=known)
    assert isinstance(again, Plan)
    assert again.footprint.host.engine_bytes <= plan.footprint.host.engine_bytes - 512 * MIB
