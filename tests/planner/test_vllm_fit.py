"""What is decided when vLLM was asked for."""

from msgspec.structs import replace

from launcher.domain import (
    DeviceKind,
    Engine,
    EngineInstall,
    Limits,
    Objective,
    Plan,
    Provenance,
    Refusal,
    RefusalCode,
    Request,
    Settings,
    WeightsFormat,
    Wishes,
)
from launcher.inventory import load_inventory
from launcher.planner.advice import plan
from launcher.planner.fit import decide
from launcher.profiles import load_profile
from launcher.units import GIB

_VLLM = Settings(engine=Engine.VLLM)


def test_a_4_bit_format_of_gemma2_27b_fits_an_rtx_4090() -> None:
    """The full-precision and FP8 forms do not; AWQ does, and the plan names its format."""
    outcome = decide(Request(profile=load_profile("gemma2-27b"), settings=_VLLM), load_inventory("rtx4090"))
    assert isinstance(outcome, Plan)
    assert (outcome.engine, outcome.format, outcome.quantization) == (
        Engine.VLLM,
        WeightsFormat.SAFETENSORS,
        "awq-int4",
    )
    used, budget = outcome.footprint.devices[0], outcome.budgets[0]
    assert used.total_bytes + budget.margin_bytes <= budget.free_bytes


def test_llama_405b_fits_one_node_of_h100s_at_fp8() -> None:
    """Tensor parallel over all eight."""
    outcome = decide(Request(profile=load_profile("llama3.1-405b"), settings=_VLLM), load_inventory("8xh100"))
    assert isinstance(outcome, Plan)
    assert outcome.quantization == "fp8"
    assert len(outcome.footprint.devices) == 8


def test_a_refusal_says_for_each_form_what_is_missing() -> None:
    """A T4 holds no form of 70B."""
    outcome = decide(Request(profile=load_profile("llama3.1-70b"), settings=_VLLM), load_inventory("t4"))
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.EXCEEDS_DEVICE_MEMORY
    assert [line.partition(":")[0] for line in outcome.derivation] == ["bf16", "fp8", "awq-int4", "gptq-int4"]


def test_a_gguf_quantization_is_none_of_vllms() -> None:
    """The refusal names what vLLM could load instead."""
    settings = replace(_VLLM, quantization="q4_k_m")
    outcome = decide(Request(profile=load_profile("llama3.1-8b"), settings=settings), load_inventory("rtx4090"))
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.NO_SUCH_QUANTIZATION
    assert "awq-int4" in outcome.derivation[0]


def test_a_machine_without_vllm_is_told_so() -> None:
    """What was found is named."""
    machine = replace(
        load_inventory("rtx4090"), engines=(EngineInstall(engine=Engine.LLAMA_SERVER, argv=("llama-server",)),)
    )
    outcome = decide(Request(profile=load_profile("gemma2-27b"), settings=_VLLM), machine)
    assert isinstance(outcome, Refusal)
    assert (outcome.code, outcome.model) == (RefusalCode.NO_ENGINE, "gemma2-27b")
    assert "llama-server" in outcome.derivation[0]


def test_what_the_user_fixed_is_refused_rather_than_dropped() -> None:
    """GPU layers mean nothing to vLLM: the refusal names them, and a plan without them is advised."""
    request = Request(profile=load_profile("gemma2-27b"), settings=replace(_VLLM, n_gpu_layers=10))
    outcome = plan(request, load_inventory("rtx4090"))
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.UNSUPPORTED
    assert "n_gpu_layers" in outcome.fact
    assert "--n-gpu-layers" not in outcome.advice[0].argv


def test_the_speed_floor_holds_for_vllm_too() -> None:
    """A floor that no form reaches refuses, and says how far each is from it."""
    profile = replace(load_profile("gemma2-27b"), limits=Limits(min_generation_tps=1000.0))
    outcome = decide(Request(profile=profile, settings=_VLLM), load_inventory("rtx4090"))
    assert isinstance(outcome, Refusal)
    assert any("the floor is 1000" in line for line in outcome.derivation)


def test_a_context_beyond_training_is_lowered_as_a_wish_and_refused_as_an_order() -> None:
    """Gemma 2 was trained for 8192 tokens, and vLLM does not start with more: ``--force`` is no way out."""
    profile, machine = load_profile("gemma2-27b"), load_inventory("h100")
    wished = decide(Request(profile=replace(profile, wishes=Wishes(n_ctx_per_request=16384)), settings=_VLLM), machine)
    assert isinstance(wished, Plan)
    assert wished.n_ctx_per_request == 8192
    assert "16384" in wished.given_up[0]
    ordered = Request(profile=profile, settings=replace(_VLLM, n_ctx_per_request=16384))
    for request in (ordered, replace(ordered, force=True)):
        outcome = decide(request, machine)
        assert isinstance(outcome, Refusal)
        assert (outcome.code, outcome.certain) == (RefusalCode.EXCEEDS_CONTEXT, True)


def test_the_objective_context_takes_the_longest_that_fits() -> None:
    """Powers of two from the wish on, up to what the model was trained for and the cache holds."""
    profile = replace(load_profile("llama3.1-8b"), wishes=Wishes(objective=Objective.CONTEXT))
    contexts = []
    for name in ("rtx3060-12g", "rtx4090", "h100"):
        outcome = decide(Request(profile=profile, settings=_VLLM), load_inventory(name))
        assert isinstance(outcome, Plan)
        contexts.append(outcome.n_ctx_per_request)
    assert contexts == sorted(contexts)
    assert contexts[0] < contexts[-1] == 131072


def test_of_a_mixture_only_the_active_experts_are_read() -> None:
    """gpt-oss-120b (5.1B active) generates several times faster than a dense model of the same bytes would."""
    outcome = decide(Request(profile=load_profile("gpt-oss-120b"), settings=_VLLM), load_inventory("h100"))
    assert isinstance(outcome, Plan)
    assert outcome.speed is not None
    assert outcome.speed.basis is Provenance.ASSUMED
    dense_tps = 3.35e12 / outcome.footprint.devices[0].weights_bytes
    assert 2 * dense_tps < outcome.speed.generation_tps < 20 * dense_tps
    assert outcome.speed.prompt_tps is not None
    assert outcome.speed.prompt_tps > outcome.speed.generation_tps


def test_the_same_weights_are_about_as_fast_in_either_engine() -> None:
    """Both read the same bytes at the same rates: what differs is how they pack a layer."""
    machine = load_inventory("a100-80g")
    for name in ("llama3.1-8b", "gemma2-27b"):
        by_vllm = decide(Request(profile=load_profile(name), settings=replace(_VLLM, quantization="fp8")), machine)
        by_llama = decide(Request(profile=load_profile(name), settings=Settings(quantization="q8_0")), machine)
        assert isinstance(by_vllm, Plan)
        assert isinstance(by_llama, Plan)
        assert by_vllm.speed is not None
        assert by_llama.speed is not None
        assert 0.85 < by_vllm.speed.generation_tps / by_llama.speed.generation_tps < 1.25


def test_more_gpus_are_taken_where_fewer_would_be_too_slow() -> None:
    """A floor that one GPU misses is met by two, which share each layer's weights."""
    request = Request(profile=load_profile("llama3.1-8b"), settings=replace(_VLLM, quantization="bf16"))
    machine = load_inventory("2xh100")
    one = decide(request, machine)
    assert isinstance(one, Plan)
    assert len(one.footprint.devices) == 1
    assert one.speed is not None
    floor = Limits(min_generation_tps=one.speed.generation_tps * 1.1)
    two = decide(replace(request, profile=replace(request.profile, limits=floor)), machine)
    assert isinstance(two, Plan)
    assert len(two.footprint.devices) == 2


def test_its_processes_have_to_fit_into_host_memory() -> None:
    """A GPU in a machine with little memory of its own holds the weights; the refusal says what is short."""
    machine = load_inventory("rtx4090")
    host = replace(machine.host, total_bytes=4 * GIB, available_bytes=4 * GIB)
    outcome = decide(Request(profile=load_profile("gemma2-27b"), settings=_VLLM), replace(machine, host=host))
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.EXCEEDS_HOST_MEMORY


def test_what_finds_no_room_on_the_disk_is_not_planned_for_vllm() -> None:
    """A smaller form is taken where a larger one would not fit on the disk; where none does, the refusal says so."""
    machine = load_inventory("h100")
    request = Request(profile=load_profile("llama3.1-8b"), settings=_VLLM)
    some = decide(request, replace(machine, host=replace(machine.host, free_disk_bytes=8 * GIB)))
    assert isinstance(some, Plan)
    assert some.quantization == "awq-int4"
    none = decide(request, replace(machine, host=replace(machine.host, free_disk_bytes=GIB)))
    assert isinstance(none, Refusal)
    assert none.code is RefusalCode.EXCEEDS_DISK


def test_devices_that_it_does_not_reach_are_left_alone() -> None:
    """A GPU that is seen through Vulkan alone is none of vLLM's."""
    machine = load_inventory("rtx4090")
    through_vulkan = tuple(replace(device, kind=DeviceKind.VULKAN) for device in machine.devices)
    outcome = decide(
        Request(profile=load_profile("gemma2-27b"), settings=_VLLM), replace(machine, devices=through_vulkan)
    )
    assert isinstance(outcome, Refusal)
    assert all("no GPU" in line for line in outcome.derivation)
