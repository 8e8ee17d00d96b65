"""Laws of dealing layers out over devices that are not equal, on machines drawn around what a model needs.

Every layer of the model is alike, so which counts fit can be tried one by one.
"""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.domain import CacheType, Engine, Inventory, Request, Settings
from launcher.planner.ask import resolve_ask
from launcher.planner.partial import partial_trials
from launcher.planner.sizing import Trial, first_shape, prepare, try_shape, whole_trials
from launcher.planner.target import Target, build_target
from launcher.profiles import load_profile
from launcher.units import GIB, MIB
from tests.planner.drawn import make_machine

_LLAMA = load_profile("llama3.1-8b")
_FIXED = Settings(
    quantization="q4_k_m",
    n_ctx_per_request=8192,
    n_parallel=1,
    n_ubatch=512,
    cache_type_k=CacheType.F16,
    cache_type_v=CacheType.F16,
)
_ASK = resolve_ask(Request(profile=_LLAMA, settings=_FIXED))
_CANDIDATE = next(c for c in prepare(_LLAMA) if c.artifact.quantization == _FIXED.quantization)
_N_ALL = _CANDIDATE.architecture.n_layer + 1


def _target(*free_mib: int) -> Target:
    """Return a machine of unequal GPUs, the fastest first."""
    like = make_machine(0, 64 * GIB, len(free_mib))
    devices = tuple(
        replace(
            device,
            free_bytes=n * MIB,
            total_bytes=(n + 512) * MIB,
            bandwidth_bytes_per_s=(device.bandwidth_bytes_per_s or 0.0) / (idx + 1),
        )
        for idx, (device, n) in enumerate(zip(like.devices, free_mib, strict=True))
    )
    return build_target(Engine.LLAMA_SERVER, None, Inventory(name="drawn", host=like.host, devices=devices))


def _splits(trial: Trial, n_layers: int) -> Iterator[Trial]:
    """Yield every way of giving so many layers to two devices, if there are as many."""
    for first in range(n_layers + 1 if n_layers <= _N_ALL else 0):
        shape = replace(trial.shape, n_gpu_layers=n_layers, shares=(float(first), float(n_layers - first)))
        yield try_shape(_CANDIDATE, _ASK, trial.target, shape)


_machines = st.integers(6500, 9500).flatmap(
    lambda both: st.integers(1500, both - 1500).map(lambda fast: _target(fast, both - fast))
)


@given(_machines)
@settings(max_examples=60)
def test_where_shares_by_budget_overflow_the_faster_device_is_filled_first(target: Target) -> None:
    """All layers fit, and with one more of them the faster device would be exceeded."""
    for trial in whole_trials(_CANDIDATE, _ASK, target):
        if trial.shape.shares:
            first, second = trial.shape.shares
            assert first + second == _N_ALL
            assert not try_shape(
                _CANDIDATE, _ASK, trial.target, replace(trial.shape, shares=(first + 1, second - 1))
            ).fits


@given(_machines)
@settings(max_examples=60)
def test_no_split_of_two_more_layers_fits(target: Target) -> None:
    """Of a model that is offloaded in part, however its layers were shared out."""
    if any(whole_trials(_CANDIDATE, _ASK, target)):
        return
    for trial in partial_trials(_CANDIDATE, _ASK, target):
        assert trial.fits
        assert not any(larger.fits for larger in _splits(trial, trial.shape.n_gpu_layers + 2))


@given(_machines)
@settings(max_examples=40)
def test_a_count_of_layers_that_was_planned_is_honoured_when_it_is_ordered(target: Target) -> None:
    """Shares by budget may overflow with it, layers dealt out by count do not."""
    for trial in partial_trials(_CANDIDATE, _ASK, target):
        ordered = replace(_FIXED, n_gpu_layers=trial.config.n_gpu_layers)
        ask = resolve_ask(Request(profile=_LLAMA, settings=ordered))
        (honoured,) = whole_trials(_CANDIDATE, ask, target)
        assert honoured.fits
        assert honoured.config.n_gpu_layers == trial.config.n_gpu_layers


def test_layers_and_experts_on_the_host_are_counted_together() -> None:
    """The first layers are on the host whole, of more of them the experts are: each is one layer that is there."""
    qwen = load_profile("qwen3-30b-a3b")
    candidate = next(c for c in prepare(qwen) if c.artifact.quantization == "q4_k_m")
    for n_gpu_layers, n_cpu_moe, expected in ((44, 7, 7), (44, 3, 5), (49, 7, 7), (49, 0, 0)):
        fixed = Settings(n_gpu_layers=n_gpu_layers, n_cpu_moe=n_cpu_moe)
        ask = resolve_ask(Request(profile=qwen, settings=fixed))
        target = _target(40_000)
        trial = try_shape(candidate, ask, target, first_shape(candidate, ask, target))
        assert trial.layers_on_host == expected


@pytest.mark.parametrize(
    ("free_mib", "n_devices", "is_whole", "is_shared_by_count"),
    [
        ((7400, 1800), 1, True, False),
        ((5400, 3600), 2, True, False),
        ((1850, 7070), 2, True, True),
        ((3000, 4000), 2, False, False),
        ((5950, 1520), 2, False, True),
    ],
)
def test_drawn_machines_reach_every_way_of_sharing(
    free_mib: tuple[int, int], n_devices: int, *, is_whole: bool, is_shared_by_count: bool
) -> None:
    """The laws above are not vacuous: whole or in part, by budget or by counts of layers."""
    target = _target(*free_mib)
    whole = list(whole_trials(_CANDIDATE, _ASK, target))
    (trial,) = whole or partial_trials(_CANDIDATE, _ASK, target)
    found = len(trial.target.devices), bool(whole), bool(trial.shape.shares)
    assert found == (n_devices, is_whole, is_shared_by_count)
