"""Laws of the predicted speed, and its constants against the published measurements that they are fitted to."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from benchmarks import speed_error
from launcher.domain import (
    Calibration,
    Device,
    DeviceKind,
    Host,
    MeasuredRates,
    Plan,
    Provenance,
    Request,
    Settings,
    Speed,
)
from launcher.inventory import list_machines, load_inventory
from launcher.planner.fit import decide
from launcher.planner.footprint.llama_cpp import Backend, LlamaCppConfig, estimate_footprint, place_layers
from launcher.planner.sizing import Candidate, prepare
from launcher.planner.speed import (
    GENERATIONS,
    HOST,
    Leg,
    Rates,
    device_flops,
    device_generation,
    estimate_speed,
    learn_efficiency,
)
from launcher.profiles import load_profile
from launcher.units import GIB


def _candidate(profile: str, quantization: str) -> Candidate:
    return next(c for c in prepare(load_profile(profile)) if c.artifact.quantization == quantization)


_DENSE = _candidate("gemma2-9b", "q4_k_m")
_MOE = _candidate("gpt-oss-20b", "mxfp4")
_GPU = Device(
    name="gpu0",
    kind=DeviceKind.CUDA,
    description="NVIDIA GeForce RTX 4090",
    total_bytes=24 * GIB,
    bandwidth_bytes_per_s=1008e9,
    pcie_bytes_per_s=31.5e9,
    compute_capability=(8, 9),
)
_HOST = Host(total_bytes=64 * GIB, available_bytes=60 * GIB, bandwidth_bytes_per_s=60e9)


def _speed(
    candidate: Candidate,
    n_gpu_layers: int = 99,
    *,
    devices: tuple[Device, ...] = (_GPU,),
    host: Host = _HOST,
    n_cpu_moe: int = 0,
    n_ctx: int = 8192,
    n_ubatch: int = 512,
    flash_attn: bool = True,
    calibration: Calibration | None = None,
) -> Speed:
    config = LlamaCppConfig(
        n_ctx=n_ctx,
        n_gpu_layers=n_gpu_layers,
        backend=Backend.GPU if devices else Backend.CPU,
        shares=(1.0,) * len(devices),
        n_cpu_moe=n_cpu_moe,
        n_ubatch=n_ubatch,
        flash_attn=flash_attn,
    )
    architecture = candidate.architecture
    return estimate_speed(
        architecture=architecture,
        weights=candidate.weights,
        placement=place_layers(architecture.n_layer, n_gpu_layers, config.shares),
        config=config,
        footprint=estimate_footprint(architecture, candidate.weights, config, tuple(d.name for d in devices)),
        devices=devices,
        host=host,
        calibration=calibration,
    )


_rates = st.floats(50e9, 4000e9)
_layers = st.integers(0, 43)


@given(_rates, _rates, _layers)
def test_more_bandwidth_is_never_slower(slow: float, more: float, n_gpu_layers: int) -> None:
    """Raising a device's or the host's bandwidth never lowers either rate."""
    before = _speed(_DENSE, n_gpu_layers, devices=(replace(_GPU, bandwidth_bytes_per_s=slow),))
    faster = replace(_GPU, bandwidth_bytes_per_s=slow + more)
    host = replace(_HOST, bandwidth_bytes_per_s=60e9 + more)
    after = _speed(_DENSE, n_gpu_layers, devices=(faster,), host=host)
    assert after.generation_tps >= before.generation_tps
    assert (after.prompt_tps or 0) >= (before.prompt_tps or 0)


@given(st.integers(0, 42), st.sampled_from([_DENSE, _MOE]))
def test_a_layer_more_on_a_faster_device_is_never_slower(n_gpu_layers: int, candidate: Candidate) -> None:
    """As long as the device's memory is faster than the host's, each layer moved there helps both rates."""
    fewer, more = _speed(candidate, n_gpu_layers), _speed(candidate, n_gpu_layers + 1)
    assert more.generation_tps >= fewer.generation_tps
    assert (more.prompt_tps or 0) >= (fewer.prompt_tps or 0)


@given(st.integers(512, 8192), st.integers(512, 65536))
def test_a_longer_context_is_never_faster(n_ctx: int, longer: int) -> None:
    """The cache is read for every token; without flash attention it costs more."""
    short, long = _speed(_DENSE, n_ctx=n_ctx), _speed(_DENSE, n_ctx=n_ctx + longer)
    assert long.generation_tps <= short.generation_tps
    assert _speed(_DENSE, n_ctx=n_ctx, flash_attn=False).generation_tps < short.generation_tps


def test_only_active_experts_are_read() -> None:
    """A model of 32 experts with 4 in use is several times faster than its bytes say, and slower than its active ones."""
    tps = _speed(_MOE).generation_tps
    n_bytes = _MOE.weights.total_bytes
    assert tps > 2 * 1008e9 / n_bytes
    assert tps < 1008e9 / (n_bytes * _MOE.architecture.n_expert_used / _MOE.architecture.n_expert)


def test_experts_on_the_host_cost_less_than_layers_there() -> None:
    """Twelve layers' experts on the host leave more on the GPU than twelve layers on the host."""
    n_layer = _MOE.architecture.n_layer
    experts = _speed(_MOE, n_cpu_moe=12).generation_tps
    layers = _speed(_MOE, n_layer + 1 - 12).generation_tps
    assert layers < experts < _speed(_MOE).generation_tps


def test_two_devices_in_sequence_are_no_faster_than_one() -> None:
    """Layers split over two equal devices run one after another."""
    second = replace(_GPU, name="gpu1")
    assert _speed(_DENSE, devices=(_GPU, second)).generation_tps == pytest.approx(_speed(_DENSE).generation_tps)


def test_a_larger_step_copies_host_weights_less_often() -> None:
    """With layers on the host, prompts gain from a larger ``n_ubatch``, generation does not."""
    small, large = _speed(_DENSE, 20, n_ubatch=512), _speed(_DENSE, 20, n_ubatch=2048)
    assert large.prompt_tps is not None
    assert small.prompt_tps is not None
    assert large.prompt_tps > small.prompt_tps
    assert large.generation_tps <= small.generation_tps


def test_prompt_speed_is_unknown_rather_than_guessed() -> None:
    """A CPU that was not measured, and a GPU whose arithmetic nobody states, have no prompt rate."""
    assert _speed(_DENSE, 0, devices=()).prompt_tps is None
    unknown = replace(_GPU, description="Some GPU", compute_capability=None)
    assert _speed(_DENSE, devices=(unknown,)).prompt_tps is None
    assert _speed(_DENSE).prompt_tps is not None


def test_the_basis_is_that_of_the_weakest_leg() -> None:
    """Published for a fitted GPU alone, assumed as soon as the host takes part, measured once both were measured."""
    assert _speed(_DENSE).basis is Provenance.PUBLISHED
    assert _speed(_DENSE, 20).basis is Provenance.ASSUMED
    assert _speed(_DENSE, devices=(replace(_GPU, bandwidth_bytes_per_s=None),)).basis is Provenance.ASSUMED
    host = MeasuredRates(name="host", bandwidth_bytes_per_s=40e9, efficiency=0.8)
    gpu = MeasuredRates(name="gpu0", bandwidth_bytes_per_s=1008e9, efficiency=0.8)
    assert _speed(_DENSE, 20, calibration=Calibration(machine="m", rates=(host,))).basis is Provenance.PUBLISHED
    assert _speed(_DENSE, 20, calibration=Calibration(machine="m", rates=(host, gpu))).basis is Provenance.MEASURED


@given(st.floats(1e6, 1e11), st.integers(1, 100), st.floats(0.05, 1.0), st.floats(5e9, 5e11))
def test_a_learned_efficiency_predicts_what_it_was_learned_from(
    n_bytes: float, n_layer: int, efficiency: float, bandwidth: float
) -> None:
    """Learning inverts the leg's formula."""
    true = Rates(efficiency=efficiency, layer_s=HOST.layer_s)
    leg = Leg(
        name="host",
        n_bytes=n_bytes,
        n_layer=n_layer,
        bandwidth_bytes_per_s=bandwidth,
        rates=true,
        basis=Provenance.MEASURED,
    )
    assert learn_efficiency(leg, 1 / leg.seconds) == pytest.approx(efficiency, rel=1e-3)


def test_the_constants_are_those_that_the_measurements_give() -> None:
    """``GENERATIONS`` is the fit to ``benchmarks/data/speed.toml``, as ``--constants`` prints it."""
    assert speed_error.constants(speed_error.load()) == GENERATIONS


def test_published_measurements_are_predicted_within_the_aim() -> None:
    """At least 40 rows with sources on at least 8 GPUs; left out one by one, the median error is within 15 %."""
    rows = speed_error.load()
    assert len(rows) >= 40
    assert len({row.gpu for row in rows}) >= 8
    errors = [abs(off) for _, off in speed_error.left_out(rows, whole_gpu=False)]
    assert statistics.median(errors) <= speed_error.AIM


def test_every_reference_gpu_with_a_measured_generation_is_recognised() -> None:
    """The shipped machines' NVIDIA GPUs and the Radeon fall into a fitted generation, with known arithmetic."""
    devices = [device for name in list_machines() for device in load_inventory(name).devices]
    fitted = [device for device in devices if "MI300X" not in device.description]
    assert all(device_generation(device) in GENERATIONS for device in fitted)
    assert all(device_flops(device) for device in fitted if "T4" not in device.description)


def test_a_27b_model_on_an_rtx_4090() -> None:
    """Published: 35 to 50 tokens/s for a 27B-class model at 4 bits."""
    request = Request(profile=load_profile("gemma2-27b"), settings=Settings(quantization="q4_k_m"))
    outcome = decide(request, load_inventory("rtx4090"))
    assert isinstance(outcome, Plan)
    assert outcome.speed is not None
    assert 35 <= outcome.speed.generation_tps <= 50
