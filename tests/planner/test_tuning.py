"""What a calibration changes in plans: settings, engine and prediction, and never what the user fixed."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.domain import (
    Calibration,
    Engine,
    EngineInstall,
    Host,
    Inventory,
    MeasuredRates,
    Plan,
    Provenance,
    Request,
    Settings,
    Tuning,
)
from launcher.planner.calibration import machine_id, prefer_fastest
from launcher.planner.fit import decide
from launcher.planner.sizing import prepare
from launcher.profiles import load_profile
from launcher.units import GIB

_PROFILE = load_profile("gemma3-270m")
_PREPARED = prepare(_PROFILE)
_Q4 = next(c for c in _PREPARED if c.artifact.quantization == "q4_k_m")
_SLOW = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("a",), build="slow")
_FAST = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("b",), build="fast")
_MACHINE = Inventory(
    name="here",
    host=Host(total_bytes=16 * GIB, available_bytes=12 * GIB, n_cpu=4, cpu_name="CPU"),
    engines=(_SLOW, _FAST),
)
_TUNING = Tuning(
    engine=Engine.LLAMA_SERVER,
    build="fast",
    architecture="gemma3",
    weights_bytes=_Q4.weights.total_bytes,
    n_gpu_layers=0,
    n_cpu_moe=0,
    n_threads=3,
    n_threads_batch=4,
    n_batch=1024,
    n_ubatch=256,
    flash_attn=False,
    prompt_tps=500.0,
    generation_tps=45.0,
    n_prompt=512,
    n_generated=128,
    measured_at=1.0,
)
_SLOWER = replace(_TUNING, build="slow", generation_tps=25.0)
_CALIBRATION = Calibration(machine=machine_id(_MACHINE), tunings=(_SLOWER, _TUNING))
_REQUEST = Request(profile=_PROFILE, settings=Settings(quantization="q4_k_m"))


def _plan(settings: Settings = _REQUEST.settings, calibration: Calibration | None = _CALIBRATION) -> Plan:
    outcome = decide(replace(_REQUEST, settings=settings), _MACHINE, _PREPARED, calibration)
    assert isinstance(outcome, Plan)
    return outcome


def test_a_calibrated_plan_uses_what_was_measured_and_says_so() -> None:
    """The faster build, its settings, its rates, and a note."""
    plan = _plan()
    assert plan.install == _FAST
    assert (plan.n_threads, plan.n_threads_batch) == (3, 4)
    assert (plan.n_batch, plan.n_ubatch, plan.flash_attn) == (1024, 256, False)
    assert plan.speed is not None
    assert (plan.speed.generation_tps, plan.speed.prompt_tps) == (45.0, 500.0)
    assert plan.speed.basis is Provenance.MEASURED
    assert any("launch calibrate" in note for note in plan.notes)
    assert not any("launch calibrate" in note for note in _plan(calibration=None).notes)


@given(
    st.builds(
        Settings,
        quantization=st.just("q4_k_m"),
        n_threads=st.sampled_from([None, 1, 2]),
        n_batch=st.sampled_from([None, 512, 2048]),
        n_ubatch=st.sampled_from([None, 128, 512]),
        flash_attn=st.sampled_from([None, True, False]),
    )
)
def test_what_the_user_fixed_stays_under_a_calibration(fixed: Settings) -> None:
    """A fixed value is kept; the measured rates are claimed only where nothing departs from what was measured."""
    plan = _plan(fixed)
    assert fixed.n_threads in {None, plan.n_threads}
    assert fixed.n_batch in {None, plan.n_batch}
    assert fixed.n_ubatch in {None, plan.n_ubatch}
    assert fixed.flash_attn in {None, plan.flash_attn}
    assert plan.speed is not None
    departs = fixed.n_threads or fixed.n_batch or fixed.n_ubatch or fixed.flash_attn
    assert (plan.speed.generation_tps == 45.0) is not bool(departs)


def test_another_models_tuning_is_not_applied() -> None:
    """Settings of one quantization say nothing of another; the engine's rank still counts."""
    plan = _plan(Settings(quantization="q8_0"))
    assert (plan.n_threads, plan.n_ubatch, plan.flash_attn) == (4, 512, True)
    assert plan.install == _FAST


def test_measured_rates_replace_the_assumed_ones() -> None:
    """The host's measured bandwidth and efficiency predict, and the basis says measured."""
    rates = MeasuredRates(name="host", bandwidth_bytes_per_s=10e9, efficiency=0.5, prompt_flops=1e11)
    plan = _plan(Settings(quantization="q8_0"), replace(_CALIBRATION, rates=(rates,)))
    assert plan.speed is not None
    assert plan.speed.basis is Provenance.MEASURED
    assert plan.speed.prompt_tps is not None
    before = _plan(Settings(quantization="q8_0"), None).speed
    assert before is not None
    assert plan.speed.generation_tps < before.generation_tps


def test_tuned_settings_that_do_not_fit_are_left_out() -> None:
    """A calibration never turns a plan into a refusal: without room for the measured step the usual one is taken."""
    greedy = replace(_TUNING, n_batch=8192, n_ubatch=8192)
    tight = replace(_MACHINE, host=replace(_MACHINE.host, total_bytes=2 * GIB, available_bytes=int(1.72 * GIB)))
    outcome = decide(_REQUEST, tight, _PREPARED, replace(_CALIBRATION, tunings=(greedy,)))
    assert isinstance(outcome, Plan)
    assert outcome.n_ubatch <= 512


def test_engines_are_compared_on_the_same_work_only() -> None:
    """A build that was measured with another request or model keeps its place behind those that were compared."""
    other = replace(_SLOWER, n_prompt=64, generation_tps=400.0, measured_at=0.5)
    assert prefer_fastest((_SLOW, _FAST), replace(_CALIBRATION, tunings=(other, _TUNING)))[0] == _FAST
    assert prefer_fastest((_SLOW, _FAST), None) == [_SLOW, _FAST]


def test_an_upgraded_engine_does_not_fall_behind_a_slower_one() -> None:
    """When the fastest build was replaced, the measured rank is void: the usual order holds."""
    upgraded = replace(_FAST, build="newer")
    assert prefer_fastest((upgraded, _SLOW), _CALIBRATION) == [upgraded, _SLOW]
    assert prefer_fastest((_SLOW, _FAST), _CALIBRATION) == [_FAST, _SLOW]


def test_a_machine_is_recognised_by_what_it_is_not_by_what_is_free() -> None:
    """Free memory and engines may change; the processor and its share may not."""
    busier = replace(_MACHINE, host=replace(_MACHINE.host, available_bytes=GIB), engines=())
    assert machine_id(busier) == machine_id(_MACHINE)
    assert machine_id(replace(_MACHINE, host=replace(_MACHINE.host, n_cpu=2))) != machine_id(_MACHINE)
