"""Laws of the choice between engines, on machines drawn around what a model needs."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.domain import (
    CacheType,
    Condition,
    Device,
    DeviceKind,
    Engine,
    EngineDevice,
    EngineInstall,
    Host,
    Inventory,
    Objective,
    Plan,
    Refusal,
    RefusalCode,
    Request,
    Settings,
    WeightsFormat,
    Wishes,
)
from launcher.inventory import load_inventory
from launcher.planner import fit
from launcher.planner.abilities import list_passed_over
from launcher.planner.advice import plan
from launcher.planner.fit import decide, list_alternatives
from launcher.planner.forms import prepare_forms
from launcher.planner.quality import kl_divergence
from launcher.planner.search import Alternatives, smaller_among
from launcher.planner.sizing import prepare
from launcher.profiles import load_profile
from launcher.units import MIB

_GEMMA = load_profile("gemma2-9b")
_PREPARED, _FORMS = prepare(_GEMMA), prepare_forms(_GEMMA)
_LLAMA_SERVER = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("llama-server",))
_VLLM = EngineInstall(engine=Engine.VLLM, argv=("vllm",))


def _machine(
    free_mib: int, host_mib: int, n_devices: int, bandwidth: float, capability: tuple[int, int] | None
) -> Inventory:
    devices = tuple(
        Device(
            name=f"gpu{idx}",
            kind=DeviceKind.CUDA,
            description="drawn",
            total_bytes=(free_mib + 600) * MIB,
            free_bytes=free_mib * MIB,
            bandwidth_bytes_per_s=bandwidth,
            compute_capability=capability,
        )
        for idx in range(n_devices)
    )
    host = Host(total_bytes=host_mib * MIB, available_bytes=host_mib * MIB, n_cpu=8, bandwidth_bytes_per_s=60e9)
    return Inventory(name="drawn", host=host, devices=devices)


_machines = st.builds(
    _machine,
    st.integers(1024, 30 * 1024),
    st.integers(2048, 48 * 1024),
    st.integers(1, 4),
    st.sampled_from([200e9, 1000e9, 3000e9]),
    st.sampled_from([(7, 5), (8, 6), (8, 9), (9, 0), None]),
)
_settings = st.builds(
    Settings,
    engine=st.sampled_from([None, None, Engine.VLLM]),
    quantization=st.sampled_from([None, None, "awq-int4", "fp8", "q4_k_m"]),
    n_ctx_per_request=st.sampled_from([None, 512, 4096, 8192]),
    n_parallel=st.sampled_from([None, 1, 3]),
)
_objectives = st.sampled_from(Objective).map(lambda objective: replace(_GEMMA, wishes=Wishes(objective=objective)))


def _decide(request: Request, machine: Inventory) -> Plan | Refusal:
    return decide(request, machine, _PREPARED, None, _FORMS)


@given(_objectives, _machines, _settings)
@settings(max_examples=50)
def test_a_plan_for_any_engine_leaves_every_margin_free_and_every_choice_untouched(
    profile: object, machine: Inventory, fixed: Settings
) -> None:
    """On every memory, use + margin + residual stays within what is free; equal questions have equal answers."""
    assert isinstance(profile, type(_GEMMA))
    request = Request(profile=profile, settings=fixed)
    outcome = _decide(request, machine)
    assert outcome == _decide(request, machine)
    if isinstance(outcome, Refusal):
        return
    uses = [*(use.total_bytes for use in outcome.footprint.devices), outcome.footprint.host.total_bytes]
    for used, budget in zip(uses, outcome.budgets, strict=True):
        assert used + budget.margin_bytes + budget.residual_bytes <= budget.free_bytes
    assert fixed.engine in {None, outcome.engine}
    assert fixed.quantization in {None, outcome.quantization}
    assert fixed.n_ctx_per_request in {None, outcome.n_ctx_per_request}
    assert fixed.n_parallel in {None, outcome.n_parallel}
    assert (outcome.format is WeightsFormat.SAFETENSORS) == (outcome.engine is Engine.VLLM)


@given(_machines, _settings, st.integers(0, 8 * 1024))
@settings(max_examples=40)
def test_more_memory_never_refuses_for_any_engine(machine: Inventory, fixed: Settings, more_mib: int) -> None:
    """What fits still fits when every device has more."""
    request = Request(profile=_GEMMA, settings=fixed)
    if isinstance(_decide(request, machine), Refusal):
        return
    more = more_mib * MIB
    larger = tuple(
        replace(device, total_bytes=device.total_bytes + more, free_bytes=(device.free_bytes or 0) + more)
        for device in machine.devices
    )
    assert isinstance(_decide(request, replace(machine, devices=larger)), Plan)


@given(_objectives, _machines)
@example(_GEMMA, _machine(13321, 5376, 1, 200e9, (8, 6)))
@settings(max_examples=25)
def test_the_bounds_never_change_the_choice(profile: object, machine: Inventory) -> None:
    """Sizing every form of vLLM's gives the plan that sizing only those within the bounds gives.

    What was not chosen is named from what was sized: that note alone may differ.
    """
    assert isinstance(profile, type(_GEMMA))
    request = Request(profile=profile)
    bounded = _decide(request, machine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "worth_sizing", lambda forms, *_: list(forms))
        full = _decide(request, machine)
    assert _without_notes(full) == _without_notes(bounded)


def _without_notes(outcome: Plan | Refusal) -> Plan | Refusal:
    return replace(outcome, notes=()) if isinstance(outcome, Plan) else outcome


def test_drawn_machines_reach_either_engine() -> None:
    """The laws above are not vacuous."""
    request = Request(profile=_GEMMA)
    one = _decide(request, _machine(16 * 1024, 32 * 1024, 1, 1000e9, (8, 9)))
    four = _decide(request, _machine(8 * 1024, 32 * 1024, 4, 200e9, (8, 9)))
    unknown = _decide(request, _machine(8 * 1024, 32 * 1024, 4, 200e9, None))
    assert isinstance(one, Plan)
    assert isinstance(four, Plan)
    assert isinstance(unknown, Plan)
    assert [found.engine for found in (one, four, unknown)] == [
        Engine.LLAMA_SERVER,
        Engine.VLLM,
        Engine.LLAMA_SERVER,
    ]


def test_gemma2_27b_on_an_rtx_4090_is_llama_servers() -> None:
    """The 4-bit form that vLLM could hold loses more than Q5_K_M, and is not twice as fast."""
    outcome = decide(Request(profile=load_profile("gemma2-27b")), load_inventory("rtx4090"))
    assert isinstance(outcome, Plan)
    assert (outcome.engine, outcome.quantization, outcome.n_gpu_layers) == (Engine.LLAMA_SERVER, "q5_k_m", 47)


def test_several_gpus_at_once_outweigh_a_little_quality() -> None:
    """405B on eight H100: FP8 over all of them is more than twice as fast as any GGUF, whose layers run in turn."""
    request = Request(profile=load_profile("llama3.1-405b"))
    outcome = plan(request, load_inventory("8xh100"))
    assert isinstance(outcome, Plan)
    assert (outcome.engine, outcome.quantization, len(outcome.footprint.devices)) == (Engine.VLLM, "fp8", 8)
    assert [verdict.condition for verdict in outcome.verdicts] == [Condition.NOW, Condition.WITH_ANOTHER_ENGINE]
    assert "with llama-server" in outcome.verdicts[1].text


def test_of_equal_quality_the_faster_engine_is_taken() -> None:
    """gpt-oss has one form for both: on a card where vLLM has to give up its graphs, llama-server is quicker."""
    outcome = decide(Request(profile=load_profile("gpt-oss-20b")), load_inventory("rtx4060ti-16g"))
    assert isinstance(outcome, Plan)
    assert outcome.engine is Engine.LLAMA_SERVER


def test_the_quantization_decides_the_engine() -> None:
    """A safetensors form that is asked for by name is planned for vLLM; what only llama.cpp has excludes it."""
    machine = load_inventory("rtx4090")
    request = Request(profile=load_profile("gemma2-27b"), settings=Settings(quantization="awq-int4"))
    outcome = decide(request, machine)
    assert isinstance(outcome, Plan)
    assert outcome.engine is Engine.VLLM
    typed = replace(request, settings=Settings(quantization="awq-int4", cache_type_k=CacheType.F16))
    refusal = decide(typed, machine)
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.NO_SUCH_QUANTIZATION


def test_vllm_is_weighed_where_it_is_installed_and_may_be_started() -> None:
    """With both engines there the faster wins; a vLLM with a published fault, or without an option, is left aside."""
    seen = tuple(EngineDevice(name=f"CUDA{idx}", description="H100", device=f"gpu{idx}") for idx in range(8))
    native = replace(_LLAMA_SERVER, devices=seen)
    machine = replace(load_inventory("8xh100"), engines=(native, _VLLM))
    request = Request(profile=load_profile("llama3.1-405b"))
    chosen = decide(request, machine)
    assert isinstance(chosen, Plan)
    assert (chosen.engine, chosen.install) == (Engine.VLLM, _VLLM)
    assert any(found.engine is Engine.VLLM for found in list_alternatives(request, machine))
    for others in ((), (replace(_VLLM, holes=("a fault",)),), (replace(_VLLM, flags=frozenset({"--model"})),)):
        without = decide(request, replace(machine, engines=(native, *others)))
        assert isinstance(without, Plan)
        assert without.engine is Engine.LLAMA_SERVER
        assert [note for note in without.notes if "passed over" in note] == list(list_passed_over(others))


def test_a_vllm_that_may_not_be_started_does_not_hide_another() -> None:
    """Of two that are listed the one without a published fault serves, in whichever order; the note names the other."""
    machine = load_inventory("8xh100")
    request = Request(profile=load_profile("llama3.1-405b"))
    holed = replace(_VLLM, argv=("/opt/old/vllm", "serve"), holes=("a fault",))
    for engines in ((holed, _VLLM), (_VLLM, holed)):
        chosen = decide(request, replace(machine, engines=engines))
        assert isinstance(chosen, Plan)
        assert chosen.install == _VLLM
        assert any(note.startswith("`/opt/old/vllm serve`") and "a fault" in note for note in chosen.notes)


def test_alternatives_of_both_engines_are_one_front() -> None:
    """Each is worse in quality than the one before, and faster; an engine that was named is alone in it."""
    request = Request(profile=load_profile("gemma2-27b"))
    machine = load_inventory("2xrtx3090")
    plans = list_alternatives(request, machine)
    assert {found.engine for found in plans} == {Engine.LLAMA_SERVER, Engine.VLLM}
    for better, faster in pairwise(plans):
        assert kl_divergence(better.quantization) <= kl_divergence(faster.quantization)
        assert better.speed is not None
        assert faster.speed is not None
        assert better.speed.generation_tps < faster.speed.generation_tps
    for engine in (Engine.LLAMA_SERVER, Engine.VLLM):
        alone = list_alternatives(replace(request, settings=Settings(engine=engine)), machine)
        assert {found.engine for found in alone} == {engine}


def test_every_advice_on_a_refusal_of_vllms_fits() -> None:
    """Each proposed command, decided again, is a plan."""
    machines = {name: load_inventory(name) for name in ("l40s", "8xh100")}
    others = Alternatives(smaller=smaller_among((_GEMMA,)), machines=lambda: tuple(machines.values()))
    request = Request(profile=load_profile("llama3.1-70b"), settings=Settings(engine=Engine.VLLM))
    outcome = plan(request, load_inventory("t4"), argv=("plan", "--inventory", "t4"), alternatives=others)
    assert isinstance(outcome, Refusal)
    assert outcome.advice
    for advice in outcome.advice:
        words = advice.argv
        quant = words[words.index("--quant") + 1] if "--quant" in words else None
        engine = Engine.VLLM if "--engine" in words else None
        again = Request(profile=load_profile(words[2]), settings=Settings(engine=engine, quantization=quant))
        assert isinstance(decide(again, load_inventory(words[words.index("--inventory") + 1])), Plan)


def test_of_equally_many_layers_on_the_cpu_the_better_quantization_is_taken() -> None:
    """On 12 GB neither of two close quantizations saves a layer: the one that loses half as much is chosen."""
    outcome = decide(Request(profile=load_profile("gemma2-27b")), load_inventory("rtx3060-12g"))
    smaller = decide(
        Request(profile=load_profile("gemma2-27b"), settings=Settings(quantization="q3_k_s")),
        load_inventory("rtx3060-12g"),
    )
    assert isinstance(outcome, Plan)
    assert isinstance(smaller, Plan)
    assert (outcome.quantization, outcome.n_gpu_layers) == ("iq3_m", smaller.n_gpu_layers)


def test_the_engine_of_a_quantization_is_advised_where_it_was_left_aside() -> None:
    """A GPU of unknown compute capability is vLLM's only by name: the form that was asked for is, so that is advised."""
    seen = EngineDevice(name="CUDA0", description="NVIDIA GeForce RTX 4090", device="gpu0")
    machine = load_inventory("rtx4090")
    gpu = replace(machine.devices[0], compute_capability=None)
    machine = replace(machine, devices=(gpu,), engines=(replace(_LLAMA_SERVER, devices=(seen,)), _VLLM))
    request = Request(profile=load_profile("gemma2-27b"), settings=Settings(quantization="awq-int4"))
    for verb in ("plan", "serve"):
        outcome = plan(request, machine, argv=(verb,))
        assert isinstance(outcome, Refusal)
        assert outcome.code is RefusalCode.NO_SUCH_QUANTIZATION
        advised = [advice.argv for advice in outcome.advice]
        assert ("launch", verb, "gemma2-27b", "--quant", "awq-int4", "--engine", "vllm") in advised
