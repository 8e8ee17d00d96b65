"""Laws of stepping down, and the rungs one by one."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.domain import (
    CacheType,
    Calibration,
    Fallback,
    Inventory,
    Lesson,
    Limits,
    Outcome,
    Plan,
    Profile,
    Refusal,
    RefusalCode,
    Request,
    Rung,
    Settings,
    Wishes,
)
from launcher.planner.advice import advise
from launcher.planner.corrections import learn, planned_bytes
from launcher.planner.fit import decide
from launcher.planner.ladder import DEFAULT_MIN_CTX, SMALLEST_UBATCH, least_relief, step_down, tightest
from launcher.planner.search import Alternatives
from launcher.planner.sizing import prepare
from launcher.profiles import load_profile
from launcher.units import GIB, MIB
from tests.planner.drawn import make_machine

_LLAMA = load_profile("llama3.1-8b")
_PREPARED = prepare(_LLAMA)
_QWEN = load_profile("qwen3-30b-a3b")
_MOST_STEPS = 200
_CARD = make_machine(24 * GIB, 64 * GIB, 1)


_machines = st.builds(
    make_machine,
    st.integers(6 * 1024, 24 * 1024).map(lambda mib: mib * MIB),
    st.integers(16 * 1024, 32 * 1024).map(lambda mib: mib * MIB),
    st.integers(0, 1),
)
_settings = st.builds(
    Settings,
    quantization=st.sampled_from([None, None, "q8_0", "q4_k_m"]),
    n_ctx_per_request=st.sampled_from([None, None, 4096]),
    n_parallel=st.sampled_from([None, None, 3]),
    n_gpu_layers=st.sampled_from([None, None, None, 7]),
    n_ubatch=st.sampled_from([None, 256]),
    cache_type_k=st.sampled_from([None, None, CacheType.Q8_0]),
)
_wishes = st.builds(
    Wishes, n_ctx_per_request=st.sampled_from([2048, 8192, 32768]), n_parallel=st.sampled_from([1, 2, 4])
)


def _step(plan: Plan, request: Request, machine: Inventory, memory: str, failed_bytes: int | None) -> Outcome:
    return step_down(
        plan, memory=memory, failed_bytes=failed_bytes, request=request, inventory=machine, prepared=_PREPARED
    )


def _start(machine: Inventory, fixed: Settings, wishes: Wishes) -> tuple[Request, Plan]:
    request = Request(profile=replace(_LLAMA, wishes=wishes), settings=fixed)
    outcome = decide(request, machine, _PREPARED)
    assume(isinstance(outcome, Plan))
    assert isinstance(outcome, Plan)
    return request, outcome


@given(_machines, _settings, _wishes, st.sampled_from([None, 1, 64 * MIB, 3 * GIB]), st.data())
@settings(max_examples=15)
def test_a_step_is_strictly_smaller_where_memory_ran_out_and_fits(
    machine: Inventory, fixed: Settings, wishes: Wishes, failed_bytes: int | None, data: st.DataObject
) -> None:
    """The exhausted memory's planned bytes fall by what failed, as far as sensible, and no memory is overdrawn.

    Of no other memory is more kept free than before.
    """
    request, plan = _start(machine, fixed, wishes)
    memory = data.draw(st.sampled_from([budget.name for budget in plan.budgets]))
    smaller = _step(plan, request, machine, memory, failed_bytes)
    if isinstance(smaller, Refusal):
        return
    before = planned_bytes(plan, memory)
    assert planned_bytes(smaller, memory) <= before - least_relief(before, failed_bytes)
    uses = [*(use.total_bytes for use in smaller.footprint.devices), smaller.footprint.host.total_bytes]
    assert all(use <= budget.budget_bytes for use, budget in zip(uses, smaller.budgets, strict=True))
    margins = {budget.name: budget.margin_bytes for budget in smaller.budgets if budget.name != memory}
    assert margins == {budget.name: budget.margin_bytes for budget in plan.budgets if budget.name != memory}


@given(st.integers(8 * 1024, 20 * 1024))
@settings(max_examples=15)
def test_where_less_is_free_by_then_the_margin_stays(taken_mib: int) -> None:
    """Others may have taken more of the device meanwhile than the step had to free."""
    request, plan = _start(_CARD, Settings(), Wishes())
    gpu = replace(_CARD.devices[0], free_bytes=24 * GIB - taken_mib * MIB)
    smaller = _step(plan, request, replace(_CARD, devices=(gpu,)), "gpu0", None)
    assert isinstance(smaller, Plan)
    before, after = plan.budgets[0], smaller.budgets[0]
    assert after.margin_bytes >= before.margin_bytes
    assert planned_bytes(smaller, "gpu0") + before.margin_bytes + before.residual_bytes <= after.free_bytes


@given(_machines, _wishes, st.sampled_from([None, 64 * MIB]), st.data())
@settings(max_examples=15)
def test_what_a_shortage_taught_makes_its_own_step_no_larger(
    machine: Inventory, wishes: Wishes, failed_bytes: int | None, data: st.DataObject
) -> None:
    """The lesson says of this plan what the step knows already: counted twice, the ladder would end after two steps."""
    request, plan = _start(machine, Settings(), wishes)
    memory = data.draw(st.sampled_from([budget.name for budget in plan.budgets]))
    budget = next(budget for budget in plan.budgets if budget.name == memory)
    relief = least_relief(planned_bytes(plan, memory), failed_bytes)
    lesson = learn(
        plan,
        memory=memory,
        unaccounted_bytes=budget.free_bytes - budget.margin_bytes - planned_bytes(plan, memory) + relief,
        lesson=Lesson.OUT_OF_MEMORY,
        architecture=_PREPARED[0].architecture,
        at=0.0,
    )
    steps = [
        step_down(
            plan,
            memory=memory,
            failed_bytes=failed_bytes,
            request=request,
            inventory=machine,
            prepared=_PREPARED,
            calibration=known,
        )
        for known in (None, Calibration(machine="drawn", corrections=(lesson,)))
    ]
    blank, taught = ((step.quantization, step.footprint) if isinstance(step, Plan) else None for step in steps)
    assert blank == taught


@given(_machines, _settings, _wishes, st.data())
@settings(max_examples=15)
def test_what_the_user_fixed_is_not_moved(
    machine: Inventory, fixed: Settings, wishes: Wishes, data: st.DataObject
) -> None:
    """Quantization, context, parallelism, layers, step and cache stay as they were ordered, however far down."""
    request, plan = _start(machine, fixed, wishes)
    memory = data.draw(st.sampled_from([budget.name for budget in plan.budgets]))
    smaller = _step(plan, request, machine, memory, None)
    if isinstance(smaller, Refusal):
        return
    for name in ("quantization", "n_ctx_per_request", "n_parallel", "cache_type_k"):
        assert getattr(fixed, name) in {None, getattr(smaller, name)}
    if fixed.n_gpu_layers is not None:
        assert smaller.n_gpu_layers == plan.n_gpu_layers
    if fixed.n_ubatch is not None:
        assert smaller.n_ubatch == plan.n_ubatch


@given(_machines, _wishes)
@settings(max_examples=4)
def test_the_ladder_ends_in_a_refusal_above_the_floors(machine: Inventory, wishes: Wishes) -> None:
    """Stepping again and again ends, and no plan on the way is below a floor."""
    request, plan = _start(machine, Settings(), wishes)
    memory = tightest(plan)
    outcome: Outcome = plan
    for _ in range(_MOST_STEPS):
        outcome = _step(plan, request, machine, memory, GIB)
        if isinstance(outcome, Refusal):
            break
        plan = outcome
        assert plan.n_ctx_per_request >= min(DEFAULT_MIN_CTX, wishes.n_ctx_per_request)
        assert plan.n_ubatch >= SMALLEST_UBATCH
        assert plan.n_parallel >= 1
    assert isinstance(outcome, Refusal)
    assert outcome.code in {RefusalCode.EXCEEDS_DEVICE_MEMORY, RefusalCode.EXCEEDS_HOST_MEMORY}


def _first_step(profile: Profile, machine: Inventory, *, failed_bytes: int | None = None) -> tuple[Plan, Outcome]:
    request = Request(profile=profile)
    plan = decide(request, machine)
    assert isinstance(plan, Plan)
    outcome = step_down(plan, memory="gpu0", failed_bytes=failed_bytes, request=request, inventory=machine)
    return plan, outcome


_TWO = replace(_LLAMA, wishes=Wishes(n_ctx_per_request=16384, n_parallel=2))


def _only(*rungs: Rung) -> Profile:
    return replace(_TWO, fallback=Fallback(ladder=rungs))


def test_the_first_rung_is_a_smaller_step() -> None:
    """Nothing but the compute buffer shrinks where nobody said how much was missing."""
    plan, smaller = _first_step(_TWO, _CARD)
    assert isinstance(smaller, Plan)
    assert (smaller.n_ubatch, smaller.n_ctx, smaller.quantization) == (256, plan.n_ctx, plan.quantization)
    assert smaller.footprint.devices[0].compute_bytes < plan.footprint.devices[0].compute_bytes


@pytest.mark.parametrize(
    ("rung", "changed", "told"),
    [
        (Rung.CACHE_TYPE, {"cache_type_k": CacheType.Q8_0, "cache_type_v": CacheType.Q8_0}, []),
        (Rung.PARALLEL, {"n_parallel": 1}, ["parallel requests lowered from 2 to 1: gpu0 ran out of memory"]),
        (
            Rung.CONTEXT,
            {"n_ctx_per_request": 8192},
            ["context lowered from 16384 to 8192 tokens per request: gpu0 ran out of memory"],
        ),
    ],
)
def test_each_rung_moves_its_own_value(rung: Rung, changed: dict[str, object], told: list[str]) -> None:
    """One rung alone changes one thing, and says which wish it lowered."""
    plan, smaller = _first_step(_only(rung), _CARD)
    assert isinstance(smaller, Plan)
    kept = {"n_ubatch", "n_parallel", "n_ctx_per_request", "cache_type_k", "n_gpu_layers", "quantization"}
    assert {name: getattr(smaller, name) for name in changed} == changed
    assert all(getattr(smaller, name) == getattr(plan, name) for name in kept - set(changed))
    assert [fact for fact in smaller.given_up if "lowered" in fact] == told


@pytest.mark.parametrize(
    ("rung", "fixed"),
    [
        (Rung.UBATCH, Settings(n_ubatch=512)),
        (Rung.CACHE_TYPE, Settings(cache_type_k=CacheType.F16)),
        (Rung.CACHE_TYPE, Settings(cache_type_v=CacheType.F16)),
        (Rung.CACHE_TYPE, Settings(flash_attn=False)),
        (Rung.PARALLEL, Settings(n_parallel=2)),
        (Rung.PARALLEL, Settings(n_ctx=32768)),
        (Rung.CONTEXT, Settings(n_ctx_per_request=16384)),
        (Rung.OFFLOAD, Settings(n_gpu_layers=33)),
        (Rung.QUANTIZATION, Settings(quantization="q4_k_m")),
    ],
)
def test_no_rung_moves_what_was_fixed(rung: Rung, fixed: Settings) -> None:
    """A rung whose value is the user's, or that it rests on, gives nothing; with nothing fixed it gives a plan."""
    free = Request(profile=_only(rung))
    for request, is_given in ((free, True), (replace(free, settings=fixed), False)):
        plan = decide(request, _CARD, _PREPARED)
        assert isinstance(plan, Plan)
        assert isinstance(_step(plan, request, _CARD, "gpu0", None), Plan) is is_given


def test_offload_is_sized_by_the_bytes_that_failed() -> None:
    """A larger allocation that failed moves more layers to the host."""
    plan, little = _first_step(_only(Rung.OFFLOAD), _CARD, failed_bytes=64 * MIB)
    _, much = _first_step(_only(Rung.OFFLOAD), _CARD, failed_bytes=2 * GIB)
    assert isinstance(little, Plan)
    assert isinstance(much, Plan)
    assert plan.n_gpu_layers > little.n_gpu_layers > much.n_gpu_layers
    assert little.n_cpu_moe == much.n_cpu_moe == 0


def test_a_mixture_gives_up_experts_before_layers() -> None:
    """All layers stay on the device and the experts of one of them go to the host, unless the user fixed whose do."""
    profile = replace(_QWEN, fallback=Fallback(ladder=(Rung.OFFLOAD,)))
    machine = make_machine(30 * GIB, 64 * GIB, 1)
    plan, smaller = _first_step(profile, machine)
    assert isinstance(smaller, Plan)
    assert (smaller.n_gpu_layers, smaller.n_cpu_moe) == (plan.n_gpu_layers, plan.n_cpu_moe + 1)
    fixed = replace(profile, pins=replace(profile.pins, n_cpu_moe=plan.n_cpu_moe))
    plan, smaller = _first_step(fixed, machine)
    assert isinstance(smaller, Plan)
    assert (smaller.n_gpu_layers, smaller.n_cpu_moe) == (plan.n_gpu_layers - 1, plan.n_cpu_moe)


def test_a_smaller_quantization_is_the_next_smaller() -> None:
    """Only weights that the profile offers and its floor allows are taken, the best first."""
    plan, smaller = _first_step(_only(Rung.QUANTIZATION), _CARD)
    assert isinstance(smaller, Plan)
    names = [candidate.artifact.quantization for candidate in _PREPARED]
    assert names.index(smaller.quantization) == names.index(plan.quantization) + 1
    floored = replace(_only(Rung.QUANTIZATION), limits=Limits(min_quantization=plan.quantization))
    _, refused = _first_step(floored, _CARD)
    assert isinstance(refused, Refusal)


def test_rungs_add_up() -> None:
    """Where one rung does not free enough, the next goes on from it and all that was given up is said."""
    plan, smaller = _first_step(_TWO, _CARD, failed_bytes=3 * GIB)
    assert isinstance(smaller, Plan)
    assert smaller.n_ubatch < plan.n_ubatch
    assert smaller.cache_type_k is CacheType.Q8_0
    wide = replace(_only(Rung.UBATCH, Rung.PARALLEL), wishes=Wishes(n_ctx_per_request=16384, n_parallel=2))
    _, smaller = _first_step(wide, _CARD, failed_bytes=3 * GIB)
    assert isinstance(smaller, Plan)
    assert (smaller.n_ubatch, smaller.n_parallel) == (SMALLEST_UBATCH, 1)
    assert any("parallel requests lowered from 2 to 1: gpu0 ran out" in fact for fact in smaller.given_up)


def test_what_grows_while_serving_is_given_up_first() -> None:
    """On the host the prompt cache shrinks before anything that a user would notice."""
    request = Request(profile=_TWO)
    machine = make_machine(GIB, 32 * GIB, 0)
    plan = decide(request, machine)
    assert isinstance(plan, Plan)
    smaller = step_down(
        plan, memory="host", failed_bytes=2 * GIB, request=request, inventory=machine, while_serving=True
    )
    assert isinstance(smaller, Plan)
    assert smaller.cache_ram_bytes < plan.cache_ram_bytes
    assert smaller.footprint.host.engine_bytes == plan.footprint.host.engine_bytes


def test_an_empty_ladder_refuses_at_once() -> None:
    """A profile may forbid every fallback."""
    _, outcome = _first_step(_only(), _CARD)
    assert isinstance(outcome, Refusal)
    assert "the ladder is empty" in outcome.derivation[0]


def test_the_foot_of_the_ladder_has_checked_ways_out() -> None:
    """Every advice of such a refusal fits when it is planned."""
    request = Request(profile=_only(Rung.UBATCH), settings=Settings(n_ubatch=512))
    plan = decide(request, _CARD)
    assert isinstance(plan, Plan)
    refusal = step_down(plan, memory="gpu0", failed_bytes=None, request=request, inventory=_CARD)
    assert isinstance(refusal, Refusal)
    found = advise(refusal, request, _CARD, argv=("serve",), alternatives=Alternatives(), calibration=None)
    assert found.advice
    assert found.advice[0].argv[:2] == ("launch", "serve")


@pytest.mark.parametrize(
    ("fixed", "is_lowered"),
    [
        (Settings(), True),
        (Settings(n_ctx_per_request=16384), False),
        (Settings(n_ctx=16384, n_parallel=1), False),
    ],
)
def test_a_context_is_lowered_down_the_whole_ladder_only_where_it_was_a_wish(
    fixed: Settings, *, is_lowered: bool
) -> None:
    """Whichever of its two names it was fixed by."""
    machine = make_machine(12 * GIB, 32 * GIB, 1)
    request = Request(profile=replace(_LLAMA, wishes=Wishes(n_ctx_per_request=16384)), settings=fixed)
    outcome = decide(request, machine, _PREPARED)
    contexts: list[int] = []
    while isinstance(outcome, Plan) and len(contexts) < _MOST_STEPS:
        contexts.append(outcome.n_ctx_per_request)
        outcome = _step(outcome, request, machine, "gpu0", None)
    assert len(contexts) > 2
    assert (min(contexts) < contexts[0]) is is_lowered


def test_a_forced_plan_steps_down_without_margins_too() -> None:
    """What was served with nothing left free is not refused because a smaller one leaves nothing free either."""
    machine = make_machine(0, 0, 0)
    tight = replace(machine, host=replace(machine.host, total_bytes=32 * GIB, available_bytes=6 * GIB))
    request = Request(profile=_LLAMA, settings=Settings(quantization="q4_k_m"), force=True)
    plan = decide(request, tight, _PREPARED)
    assert isinstance(plan, Plan)
    assert plan.budgets[-1].margin_bytes == 0
    smaller = _step(plan, request, tight, "host", 16 * MIB)
    assert isinstance(smaller, Plan)
    assert planned_bytes(smaller, "host") < planned_bytes(plan, "host")
