"""Laws of the choice, on machines drawn around what a model needs."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.domain import (
    CacheType,
    DeviceProcess,
    Engine,
    EngineDevice,
    EngineInstall,
    Inventory,
    Limits,
    Objective,
    Plan,
    Refusal,
    RefusalCode,
    Request,
    Settings,
    Wishes,
)
from launcher.inventory import load_inventory
from launcher.planner.advice import plan
from launcher.planner.fit import decide, list_alternatives
from launcher.planner.quality import kl_divergence
from launcher.planner.search import Alternatives, smaller_among
from launcher.planner.sizing import prepare
from launcher.profiles import load_all, load_profile
from launcher.tensor_types import TensorType
from launcher.units import GIB, MIB
from tests.planner.drawn import make_machine

_GEMMA = load_profile("gemma2-9b")
_PREPARED = prepare(_GEMMA)
_RTX4090 = load_inventory("rtx4090")


_machines = st.builds(
    make_machine,
    st.integers(256, 24 * 1024).map(lambda mib: mib * MIB),
    st.integers(1024, 32 * 1024).map(lambda mib: mib * MIB),
    st.integers(0, 3),
)
_settings = st.builds(
    Settings,
    quantization=st.sampled_from([None, "q8_0", "q4_k_m", "iq3_m"]),
    n_ctx_per_request=st.sampled_from([None, 512, 4096, 8192]),
    n_parallel=st.sampled_from([None, 1, 3]),
    n_gpu_layers=st.sampled_from([None, 0, 7, 99]),
    n_ubatch=st.sampled_from([None, 64, 1024]),
    cache_type_k=st.sampled_from([None, CacheType.Q8_0]),
    n_threads=st.sampled_from([None, 3]),
)


@given(_machines, _settings)
@settings(max_examples=150)
def test_an_accepted_plan_leaves_every_margin_free(machine: Inventory, fixed: Settings) -> None:
    """On every memory, use + margin + residual stays within what is free."""
    outcome = decide(Request(profile=_GEMMA, settings=fixed), machine, _PREPARED)
    if isinstance(outcome, Refusal):
        return
    uses = [*(use.total_bytes for use in outcome.footprint.devices), outcome.footprint.host.total_bytes]
    for used, budget in zip(uses, outcome.budgets, strict=True):
        assert used + budget.margin_bytes + budget.residual_bytes <= budget.free_bytes


@given(_machines, _settings)
@settings(max_examples=150)
def test_what_the_user_fixed_is_never_changed(machine: Inventory, fixed: Settings) -> None:
    """A plan has every fixed value as it was given; layers and batches are capped as the engine caps them."""
    outcome = decide(Request(profile=_GEMMA, settings=fixed), machine, _PREPARED)
    if isinstance(outcome, Refusal):
        return
    assert fixed.quantization in {None, outcome.quantization}
    assert fixed.n_ctx_per_request in {None, outcome.n_ctx_per_request}
    assert fixed.n_parallel in {None, outcome.n_parallel}
    assert fixed.n_threads in {None, outcome.n_threads}
    assert fixed.cache_type_k in {None, outcome.cache_type_k}
    if fixed.n_gpu_layers is not None and machine.devices:
        assert outcome.n_gpu_layers == min(fixed.n_gpu_layers, outcome.n_layer + 1)
    if fixed.n_ubatch is not None:
        assert outcome.n_ubatch == min(fixed.n_ubatch, outcome.n_batch)


@given(_machines, _settings, st.integers(0, 8 * 1024))
@settings(max_examples=150)
def test_more_device_memory_never_refuses(machine: Inventory, fixed: Settings, more_mib: int) -> None:
    """What fits still fits when every device has more free memory."""
    request = Request(profile=_GEMMA, settings=fixed)
    if isinstance(decide(request, machine, _PREPARED), Refusal):
        return
    larger = replace(
        machine,
        devices=tuple(
            replace(
                device,
                total_bytes=device.total_bytes + more_mib * MIB,
                free_bytes=(device.free_bytes or 0) + more_mib * MIB,
            )
            for device in machine.devices
        ),
    )
    assert isinstance(decide(request, larger, _PREPARED), Plan)


@given(_machines, _settings)
@settings(max_examples=50)
def test_equal_questions_have_equal_answers(machine: Inventory, fixed: Settings) -> None:
    """Deciding twice gives the same value."""
    request = Request(profile=_GEMMA, settings=fixed)
    assert decide(request, machine, _PREPARED) == decide(request, machine, _PREPARED)


def test_drawn_machines_reach_every_outcome() -> None:
    """The laws above are not vacuous: full offload, partial offload, the CPU and refusals all occur."""
    request = Request(profile=_GEMMA)
    full = decide(request, make_machine(20 * GIB, 16 * GIB), _PREPARED)
    partial = decide(request, make_machine(4 * GIB, 16 * GIB), _PREPARED)
    cpu = decide(request, make_machine(0, 32 * GIB, 0), _PREPARED)
    none = decide(request, make_machine(1 * GIB, 2 * GIB), _PREPARED)
    assert isinstance(full, Plan)
    assert full.n_gpu_layers == full.n_layer + 1
    assert isinstance(partial, Plan)
    assert 0 < partial.n_gpu_layers <= partial.n_layer
    assert isinstance(cpu, Plan)
    assert cpu.footprint.devices == ()
    assert isinstance(none, Refusal)


def test_gemma2_27b_gets_the_best_quantization_that_truly_fits_an_rtx_4090() -> None:
    """All layers, 8192 tokens, f16 cache: Q5_K_M fits; Q6_K does not without offload."""
    profile = load_profile("gemma2-27b")
    outcome = decide(Request(profile=profile), _RTX4090)
    assert isinstance(outcome, Plan)
    assert (outcome.quantization, outcome.n_gpu_layers, outcome.n_ctx) == ("q5_k_m", 47, 8192)
    better = decide(Request(profile=profile, settings=Settings(quantization="q6_k")), _RTX4090)
    assert isinstance(better, Plan)
    assert better.n_gpu_layers < 47


def test_llama_405b_is_refused_on_an_rtx_4090_with_advice_that_fits() -> None:
    """The refusal is certain, and each command it proposes plans without a refusal."""
    profile = load_profile("llama3.1-405b")
    machines = tuple(load_inventory(name) for name in ("8xh100",))
    others = Alternatives(smaller=smaller_among(load_all(lambda _: None)), machines=lambda: machines)
    argv = ("plan", "--inventory", "rtx4090")
    outcome = plan(Request(profile=profile), _RTX4090, argv=argv, alternatives=others)
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.EXCEEDS_MEMORY
    assert outcome.certain
    assert 1 <= len(outcome.advice) <= 3
    for advice in outcome.advice:
        words = advice.argv
        quant = words[words.index("--quant") + 1] if "--quant" in words else None
        machine = load_inventory(words[words.index("--inventory") + 1])
        again = decide(Request(profile=load_profile(words[2]), settings=Settings(quantization=quant)), machine)
        assert isinstance(again, Plan)


def test_best_quality_is_bounded_by_half_the_fastest_speed() -> None:
    """With room for everything the choice is the best quality that is at least half as fast as the fastest."""
    outcome = decide(Request(profile=_GEMMA), load_inventory("a100-80g"), _PREPARED)
    assert isinstance(outcome, Plan)
    assert outcome.speed is not None
    fastest = decide(
        Request(profile=replace(_GEMMA, wishes=Wishes(objective=Objective.SPEED))),
        load_inventory("a100-80g"),
        _PREPARED,
    )
    assert isinstance(fastest, Plan)
    assert fastest.speed is not None
    assert outcome.speed.generation_tps >= fastest.speed.generation_tps / 2
    assert kl_divergence(outcome.quantization) < kl_divergence(fastest.quantization)


def test_the_quality_floor_refuses_rather_than_degrades() -> None:
    """A floor of q8_0 on a machine that holds only less is a refusal, and its advice says what would fit."""
    profile = replace(_GEMMA, limits=Limits(min_quantization="q8_0"))
    machine = make_machine(8 * GIB, 4 * GIB)
    outcome = plan(Request(profile=profile), machine)
    assert isinstance(outcome, Refusal)
    assert any("--quant" in advice.argv for advice in outcome.advice)


def test_a_context_beyond_training_is_refused_unless_forced() -> None:
    """An order beyond ``n_ctx_train`` is refused; ``--force`` overrides; a wish is lowered and said so."""
    ordered = Request(profile=_GEMMA, settings=Settings(n_ctx_per_request=16384))
    outcome = decide(ordered, _RTX4090, _PREPARED)
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.EXCEEDS_CONTEXT
    assert isinstance(decide(replace(ordered, force=True), _RTX4090, _PREPARED), Plan)
    wished = decide(Request(profile=replace(_GEMMA, wishes=Wishes(n_ctx_per_request=16384))), _RTX4090, _PREPARED)
    assert isinstance(wished, Plan)
    assert wished.n_ctx_per_request == 8192
    assert "16384" in wished.given_up[0]


def test_a_context_floor_allows_less_context_instead_of_offload() -> None:
    """Where the profile names a floor, the longest context without offload is taken, and said; an order stays."""
    wished = replace(_GEMMA, wishes=Wishes(n_ctx_per_request=8192), pins=Settings(quantization="q8_0"))
    machine = make_machine(12 * GIB, 64 * GIB)
    offloaded = decide(Request(profile=wished), machine)
    assert isinstance(offloaded, Plan)
    assert offloaded.n_gpu_layers <= offloaded.n_layer
    floored = replace(wished, limits=Limits(min_n_ctx_per_request=1024))
    shorter = decide(Request(profile=floored), machine)
    assert isinstance(shorter, Plan)
    assert shorter.n_gpu_layers > shorter.n_layer
    assert 1024 <= shorter.n_ctx_per_request < 8192
    assert any(f"from 8192 to {shorter.n_ctx_per_request}: more needs offload" in fact for fact in shorter.given_up)
    ordered = decide(Request(profile=floored, settings=Settings(n_ctx_per_request=8192)), machine)
    assert isinstance(ordered, Plan)
    assert ordered.n_ctx_per_request == 8192


def test_a_build_without_gpu_support_is_planned_for_as_such() -> None:
    """An engine that reaches no device plans for the CPU and says so."""
    cpu_build = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("llama-server",))
    outcome = decide(Request(profile=_GEMMA), replace(_RTX4090, engines=(cpu_build,)), _PREPARED)
    assert isinstance(outcome, Plan)
    assert outcome.footprint.devices == ()
    assert "reaches no GPU" in outcome.given_up[0]


def test_an_engine_that_reaches_the_gpu_is_preferred() -> None:
    """Of two builds the one that sees the GPU is chosen, whatever their order."""
    cpu_build = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("cpu-server",))
    seen = EngineDevice(name="CUDA0", description="NVIDIA GeForce RTX 4090", device="gpu0")
    gpu_build = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("gpu-server",), devices=(seen,))
    outcome = decide(Request(profile=_GEMMA), replace(_RTX4090, engines=(cpu_build, gpu_build)), _PREPARED)
    assert isinstance(outcome, Plan)
    assert outcome.install == gpu_build
    assert outcome.engine_devices == ("CUDA0",)


def test_no_engine_is_a_refusal_that_names_what_was_found() -> None:
    """A machine with vLLM alone cannot serve a GGUF, which a request with llama.cpp's settings is for."""
    only = EngineInstall(engine=Engine.VLLM, argv=("vllm",))
    request = Request(profile=_GEMMA, settings=Settings(n_ubatch=256))
    outcome = decide(request, replace(_RTX4090, engines=(only,)), _PREPARED)
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.NO_ENGINE
    assert "vllm" in outcome.derivation[0]


def test_a_program_that_holds_the_gpu_is_named_with_what_would_fit_without_it() -> None:
    """The plan for now stands; the verdict says what its leaving would change."""
    held = DeviceProcess(pid=4321, name="game", used_bytes=14 * GIB)
    gpu = replace(_RTX4090.devices[0], free_bytes=9 * GIB, processes=(held,))
    outcome = plan(Request(profile=load_profile("gemma2-27b")), replace(_RTX4090, devices=(gpu,)))
    assert isinstance(outcome, Plan)
    assert outcome.n_gpu_layers <= outcome.n_layer
    now, verdict = outcome.verdicts
    assert (now.condition, verdict.condition) == ("now", "after-others-leave")
    assert verdict.text == "fits at q5_k_m, all on the GPU once game (pid 4321, 14.0 GiB of gpu0) leaves"


def test_a_smaller_cache_is_taken_only_where_it_is_known_to_be_harmless() -> None:
    """Llama's q8_0 cache makes room for a better quantization; Gemma's stays f16 however tight it is."""
    tight = make_machine(8600 * MIB, 32 * GIB)
    llama = decide(Request(profile=load_profile("llama3.1-8b"), settings=Settings(n_ctx_per_request=16384)), tight)
    assert isinstance(llama, Plan)
    assert (llama.cache_type_k, llama.cache_type_v) == (CacheType.Q8_0, CacheType.Q8_0)
    assert any("cache is q8_0" in fact for fact in llama.given_up)
    gemma = decide(Request(profile=_GEMMA), tight, _PREPARED)
    assert isinstance(gemma, Plan)
    assert gemma.cache_type_k is CacheType.F16


def test_the_fastest_device_is_filled_first() -> None:
    """Of two unequal GPUs the slow one comes last, and is left alone where the fast one suffices."""
    slow, fast = make_machine(16 * GIB, 64 * GIB, 2).devices
    fast = replace(fast, bandwidth_bytes_per_s=1000e9)
    both = replace(make_machine(0, 64 * GIB, 0), devices=(slow, fast))
    small = decide(Request(profile=_GEMMA), both, _PREPARED)
    assert isinstance(small, Plan)
    assert [use.name for use in small.footprint.devices] == ["gpu1"]
    large = decide(Request(profile=load_profile("gemma2-27b")), both)
    assert isinstance(large, Plan)
    assert [use.name for use in large.footprint.devices] == ["gpu1", "gpu0"]


def test_what_finds_no_room_on_the_disk_is_not_planned() -> None:
    """A download that does not fit is left out, to the byte; where none fits the refusal says so."""
    host = replace(_RTX4090.host, free_disk_bytes=8 * GIB)
    outcome = decide(Request(profile=_GEMMA), replace(_RTX4090, host=host), _PREPARED)
    assert isinstance(outcome, Plan)
    assert outcome.quantization == "q5_k_m"
    assert "q8_0, q6_k: only 7.0 GiB of disk can be given to a download" in outcome.given_up
    best = max(candidate.weights.total_bytes for candidate in _PREPARED)
    for n_bytes, quantization in ((best, "q8_0"), (best - 1, "q6_k")):
        exact = replace(host, free_disk_bytes=GIB + n_bytes)
        outcome = decide(Request(profile=_GEMMA), replace(_RTX4090, host=exact), _PREPARED)
        assert isinstance(outcome, Plan)
        assert outcome.quantization == quantization
    full = replace(_RTX4090, host=replace(host, free_disk_bytes=GIB))
    refusal = decide(Request(profile=_GEMMA), full, _PREPARED)
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.EXCEEDS_DISK
    assert refusal.available_bytes == GIB
    weak = replace(full, devices=(), host=replace(full.host, available_bytes=2 * GIB))
    either = decide(Request(profile=_GEMMA), weak, _PREPARED)
    assert isinstance(either, Refusal)
    assert either.code is RefusalCode.EXCEEDS_MEMORY


def test_alternatives_are_a_front() -> None:
    """Each alternative is worse in quality than the one before, and faster."""
    plans = list_alternatives(Request(profile=_GEMMA), make_machine(8 * GIB, 32 * GIB))
    assert len(plans) >= 5
    for better, faster in pairwise(plans):
        assert kl_divergence(better.quantization) <= kl_divergence(faster.quantization)
        assert better.speed is not None
        assert faster.speed is not None
        assert better.speed.generation_tps < faster.speed.generation_tps


@pytest.mark.parametrize(
    ("isa", "n_devices", "n_tables"),
    [((), 0, 2), (("avx2",), 0, 1), (("avx2", "amx_int8"), 0, 2), ((), 1, 1)],
)
def test_a_table_of_embeddings_that_the_cpu_repacks_is_held_twice(
    isa: tuple[str, ...], n_devices: int, n_tables: int
) -> None:
    """Gemma's is its output too, and of Q6_K here: AMX alone repacks that; an unknown CPU is taken for one that does."""
    machine = make_machine(24 * GIB, 64 * GIB, n_devices)
    machine = replace(machine, host=replace(machine.host, isa=isa))
    outcome = decide(Request(profile=_GEMMA, settings=Settings(quantization="q4_k_m")), machine, _PREPARED)
    assert isinstance(outcome, Plan)
    weights = next(c.weights for c in _PREPARED if c.artifact.quantization == "q4_k_m")
    assert weights.tied_output_type is TensorType.Q6_K
    blocks_bytes = weights.total_bytes - weights.input_bytes
    assert outcome.footprint.host.weights_bytes == n_tables * weights.input_bytes + (0 if n_devices else blocks_bytes)
    assert outcome.footprint.host.resident_mmap_bytes == (blocks_bytes if n_devices else 0)


@given(st.integers(600, 9 * 1024), st.integers(1, 2))
@example(4429, 2)  # with one block on the host its device needs 23 MiB less for buffers, and holds it
@settings(max_examples=60)
def test_no_layer_that_fits_is_left_on_the_host(free_mib: int, n_devices: int) -> None:
    """Of a model that is offloaded in part, one layer more is refused; on one device as many are planned by order."""
    machine = make_machine(free_mib * MIB, 32 * GIB, n_devices)
    fixed = Settings(
        quantization="q4_k_m",
        n_ctx_per_request=4096,
        n_parallel=1,
        n_ubatch=512,
        cache_type_k=CacheType.F16,
        cache_type_v=CacheType.F16,
    )
    outcome = decide(Request(profile=_GEMMA, settings=fixed), machine, _PREPARED)
    if isinstance(outcome, Plan) and outcome.n_gpu_layers <= outcome.n_layer:
        same, more = (replace(fixed, n_gpu_layers=outcome.n_gpu_layers + n) for n in (0, 1))
        assert n_devices > 1 or isinstance(decide(Request(profile=_GEMMA, settings=same), machine, _PREPARED), Plan)
        assert isinstance(decide(Request(profile=_GEMMA, settings=more), machine, _PREPARED), Refusal)


def test_the_longest_context_is_sought_with_layers_on_the_host_too() -> None:
    """Llama 3.1 was trained for 131072 tokens: where that is the objective, they are given beside 8 GiB."""
    profile = load_profile("llama3.1-8b")
    profile = replace(profile, wishes=replace(profile.wishes, objective=Objective.CONTEXT))
    outcome = decide(Request(profile=profile), make_machine(8 * GIB, 24 * GIB))
    assert isinstance(outcome, Plan)
    assert outcome.n_ctx_per_request == 131072
    assert outcome.n_gpu_layers <= outcome.n_layer
