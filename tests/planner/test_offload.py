"""Laws of what is chosen where a part of the model stays on the host: placement and cache type together."""

from typing import Final

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from benchmarks import tightness
from benchmarks.footprint_error import unseen_lines, unseen_spec
from launcher.domain import (
    Artifact,
    CacheType,
    Inventory,
    Limits,
    Objective,
    Plan,
    Profile,
    Request,
    Settings,
    WeightsFormat,
    Wishes,
)
from launcher.inventory import load_inventory
from launcher.planner.fit import decide, list_alternatives
from launcher.planner.footprint.llama_cpp import DEFAULT_N_UBATCH, Backend, LlamaCppConfig, estimate_footprint
from launcher.planner.sizing import prepare
from launcher.profiles import load_profile
from launcher.units import GIB, MIB
from tests.planner.drawn import make_machine

_LLAMA = load_profile("llama3.1-8b")
_PREPARED = prepare(_LLAMA)
_NO_FLOOR: Final = Limits(min_generation_tps=1e-9)
_F16 = {"cache_type_k": CacheType.F16, "cache_type_v": CacheType.F16}
_Q8_0 = {"cache_type_k": CacheType.Q8_0, "cache_type_v": CacheType.Q8_0}

_machines = st.builds(
    make_machine, st.integers(2 * GIB, 14 * GIB), st.integers(24 * GIB, 64 * GIB), st.sampled_from([1, 1, 2])
)
_asked = st.builds(
    Settings,
    quantization=st.sampled_from(["q8_0", "q5_k_m", "q3_k_s"]),
    n_ctx_per_request=st.sampled_from([4096, 16384, 49152, 131072]),
)
_objectives = st.sampled_from([Objective.QUALITY, Objective.SPEED])


def _decide(settings: Settings, machine: Inventory, profile: Profile) -> Plan | None:
    outcome = decide(Request(profile=profile, settings=settings), machine, _PREPARED)
    return outcome if isinstance(outcome, Plan) else None


def _on_host(plan: Plan) -> int:
    return max(0, plan.n_layer + 1 - plan.n_gpu_layers)


def _is_packed(plan: Plan) -> bool:
    return plan.cache_type_k is CacheType.Q8_0


@given(_machines, _asked, _objectives)
@example(load_inventory("rtx3060-12g"), Settings(quantization="q8_0", n_ctx_per_request=131072), Objective.QUALITY)
@example(load_inventory("rtx3060-12g"), Settings(quantization="q8_0", n_ctx_per_request=49152), Objective.QUALITY)
@settings(max_examples=25)
def test_a_cache_is_packed_where_that_takes_a_quarter_of_the_layers_off_the_host(
    machine: Inventory, asked: Settings, objective: Objective
) -> None:
    """With layers on the host it is q8_0 if and only if f16 fits nowhere, or would leave a third more layers there."""
    profile = replace(_LLAMA, limits=_NO_FLOOR, wishes=Wishes(objective=objective))
    plan = _decide(asked, machine, profile)
    wide = _decide(replace(asked, **_F16), machine, profile)
    packed = _decide(replace(asked, **_Q8_0), machine, profile)
    if plan is None:
        assert wide is None and packed is None  # noqa: PT018 - one law
        return
    if _on_host(plan) == 0:
        return
    assert packed is not None
    is_worth_it = wide is None or 4 * _on_host(packed) <= 3 * _on_host(wide)
    assert _is_packed(plan) is is_worth_it
    best = packed if is_worth_it else wide
    assert best is not None
    assert _on_host(plan) == _on_host(best)


@given(_machines, _asked, _objectives)
@example(load_inventory("rtx3060-12g"), Settings(quantization="q8_0", n_ctx_per_request=131072), Objective.SPEED)
@settings(max_examples=20)
def test_no_placement_has_a_packed_cache_that_would_hold_a_wide_one(
    machine: Inventory, asked: Settings, objective: Objective
) -> None:
    """Asked for the same layers on the devices with an f16 cache, in the usual step, the planner refuses."""
    profile = replace(_LLAMA, limits=_NO_FLOOR, wishes=Wishes(objective=objective))
    plan = _decide(replace(asked, quantization=None), machine, profile)
    if plan is None or not _is_packed(plan):
        return
    same = replace(
        asked,
        quantization=plan.quantization,
        n_gpu_layers=plan.n_gpu_layers,
        n_ubatch=min(plan.n_ubatch, DEFAULT_N_UBATCH),
        **_F16,
    )
    shared = make_same_split(machine, plan)
    assert _decide(same, shared, profile) is None


def make_same_split(machine: Inventory, plan: Plan) -> Inventory:
    """Return the machine with as many devices as the plan uses."""
    return replace(machine, devices=machine.devices[: len(plan.footprint.devices)])


def test_a_quarter_is_seen_from_both_sides() -> None:
    """The laws above are not vacuous: on one machine a long context is packed and a short one is not."""
    machine = load_inventory("rtx3060-12g")
    long = _decide(Settings(quantization="q8_0", n_ctx_per_request=131072), machine, _LLAMA)
    short = _decide(Settings(quantization="q8_0", n_ctx_per_request=4096), make_machine(6 * GIB, 32 * GIB), _LLAMA)
    assert long is not None
    assert short is not None
    assert min(_on_host(long), _on_host(short)) > 0
    assert (_is_packed(long), _is_packed(short)) == (True, False)
    assert any("cache is q8_0/q8_0" in fact and "more than gpu0 can give" in fact for fact in long.given_up)


def test_a_cache_is_packed_where_the_speed_floor_would_not_be_met_otherwise() -> None:
    """A single layer fewer on the host is no reason by itself, but it is where only that is quick enough."""
    machine, asked = make_machine(6 * GIB, 32 * GIB), Settings(quantization="q8_0", n_ctx_per_request=8192)
    wide, packed = (_decide(replace(asked, **kind), machine, _LLAMA) for kind in (_F16, _Q8_0))
    assert wide is not None
    assert packed is not None
    assert 3 * _on_host(wide) < 4 * _on_host(packed) < 4 * _on_host(wide)
    assert wide.speed is not None
    assert packed.speed is not None
    between = (wide.speed.generation_tps + packed.speed.generation_tps) / 2
    unasked = _decide(asked, machine, _LLAMA)
    hurried = _decide(asked, machine, replace(_LLAMA, limits=Limits(min_generation_tps=between)))
    assert unasked is not None
    assert hurried is not None
    assert (_is_packed(unasked), _is_packed(hurried)) == (False, True)


def test_a_wide_cache_that_was_asked_for_stays() -> None:
    """What the user fixed is honoured, however many layers a smaller one would take off the host."""
    machine, asked = load_inventory("rtx3060-12g"), Settings(quantization="q8_0", n_ctx_per_request=131072)
    free, fixed = _decide(asked, machine, _LLAMA), _decide(replace(asked, **_F16), machine, _LLAMA)
    assert free is not None
    assert fixed is not None
    assert (_is_packed(free), _is_packed(fixed)) == (True, False)
    assert _on_host(free) < _on_host(fixed)


@given(st.integers(2 * 1024, 10 * 1024), st.sampled_from(["gemma2-9b", "qwen3.6-27b", "gpt-oss-20b"]))
@settings(max_examples=15)
def test_where_no_type_is_known_to_be_harmless_the_cache_stays_wide(free_mib: int, name: str) -> None:
    """However much of a model is offloaded, its cache is f16 where no smaller one was measured for its architecture."""
    profile = replace(load_profile(name), limits=_NO_FLOOR)
    outcome = decide(Request(profile=profile), make_machine(free_mib * MIB, 64 * GIB))
    assert isinstance(outcome, Plan)
    assert (outcome.cache_type_k, outcome.cache_type_v) == (CacheType.F16, CacheType.F16)


def test_each_quantization_is_listed_as_it_would_be_planned() -> None:
    """What ``--all`` shows of an offloaded quantization is what it gets when it is asked for, its cache included."""
    profile, machine = replace(_LLAMA, limits=_NO_FLOOR), load_inventory("rtx3060-12g")
    asked = Settings(n_ctx_per_request=131072)
    listed = [p for p in list_alternatives(Request(profile=profile, settings=asked), machine) if not p.is_whole]
    assert listed
    for one in listed:
        planned = _decide(replace(asked, quantization=one.quantization), machine, profile)
        assert planned is not None
        assert (one.cache_type_k, one.n_gpu_layers) == (planned.cache_type_k, planned.n_gpu_layers)


def test_room_that_smaller_buffers_leave_is_packed_too() -> None:
    """With more layers on two devices buffers may be smaller: what they leave is filled, until no split of more holds.

    A small model of Gemma 4's kind, two of whose blocks hold most of the cache; the engine's account says the same.
    """
    spec = unseen_spec(unseen_lines()["gemma4-e2b-odd"])
    artifact = Artifact(format=WeightsFormat.GGUF, quantization="q4_k_m", spec=spec)
    profile = Profile(name="odd", artifacts=(artifact,), limits=_NO_FLOOR)
    asked = replace(Settings(n_ctx=65536, n_parallel=4, n_ubatch=512, n_cpu_moe=0), **_F16)
    outcome = decide(Request(profile=profile, settings=asked), tightness.machine([1117976781, 1958339173]))
    assert isinstance(outcome, Plan)
    assert outcome.n_gpu_layers == 31
    (candidate,) = prepare(profile)
    for n_layer in (32, 33):
        for n_last in range(1, 6):
            config = LlamaCppConfig(
                n_ctx=65536,
                n_parallel=4,
                n_batch=outcome.n_batch,
                n_ubatch=outcome.n_ubatch,
                n_gpu_layers=n_layer,
                backend=Backend.RPC,
                shares=(float(n_layer - n_last), float(n_last)),
            )
            uses = estimate_footprint(candidate.architecture, candidate.weights, config, ("gpu0", "gpu1")).devices
            over = [use.total_bytes > budget.budget_bytes for use, budget in zip(uses, outcome.budgets, strict=False)]
            assert any(over), (n_layer, n_last)
