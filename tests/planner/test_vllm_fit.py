"""What is decided when vLLM was asked for."""

from msgspec.structs import replace

from launcher.domain import Engine, EngineInstall, Limits, Plan, Refusal, RefusalCode, Request, Settings, WeightsFormat
from launcher.inventory import load_inventory
from launcher.planner.advice import plan
from launcher.planner.fit import decide
from launcher.profiles import load_profile

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
