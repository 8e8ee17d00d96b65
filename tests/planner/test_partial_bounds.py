"""The law by which candidates are passed over unsized: no partial placement beats their bounds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.domain import Engine, Request, Settings
from launcher.planner.ask import resolve_ask
from launcher.planner.partial import least_on_host, most_tps, partial_trials
from launcher.planner.sizing import Candidate, first_shapes, prepare
from launcher.planner.target import Target, build_target
from launcher.profiles import load_profile
from launcher.units import GIB
from tests.planner.drawn import make_machine

_PROFILES = {name: load_profile(name) for name in ("llama3.1-8b", "qwen3-30b-a3b")}
_PREPARED: dict[str, tuple[Candidate, ...]] = {name: prepare(profile) for name, profile in _PROFILES.items()}


def _target(free_bytes: int, n_devices: int = 1) -> Target:
    return build_target(Engine.LLAMA_SERVER, None, make_machine(free_bytes // n_devices, 128 * GIB, n_devices))


@pytest.mark.parametrize("model", _PROFILES)
@given(
    share=st.floats(0.0, 1.2),
    n_devices=st.integers(1, 3),
    quantization=st.sampled_from(["q8_0", "q4_k_m"]),
    fixed=st.builds(Settings, n_ubatch=st.sampled_from([None, 512]), n_ctx_per_request=st.sampled_from([4096, 32768])),
)
@settings(max_examples=40)
def test_no_partial_placement_beats_its_bounds(
    model: str, share: float, n_devices: int, quantization: str, fixed: Settings
) -> None:
    """Neither in layers on the host nor in speed, with any cache, on devices for a share of the weights."""
    candidate = next(c for c in _PREPARED[model] if c.artifact.quantization == quantization)
    target = _target(n_devices * GIB + int(share * candidate.weights.total_bytes), n_devices)
    ask = resolve_ask(Request(profile=_PROFILES[model], settings=fixed))
    starts = first_shapes(candidate, ask, target)
    for n, start in enumerate(starts, 1):
        n_layer, tps = least_on_host(candidate, ask, target, starts[:n]), most_tps(candidate, ask, target, start)
        for trial in partial_trials(candidate, ask, target, start):
            assert trial.layers_on_host >= n_layer
            assert trial.speed.generation_tps <= tps * (1 + 1e-12)


@pytest.mark.parametrize(("model", "ways"), [("llama3.1-8b", [False]), ("qwen3-30b-a3b", [True])])
def test_there_are_partial_placements(model: str, ways: list[bool]) -> None:
    """The law above is not vacuous: layers of a dense model are on the host, experts of a mixture."""
    candidate = next(c for c in _PREPARED[model] if c.artifact.quantization == "q4_k_m")
    target = _target(GIB + candidate.weights.total_bytes // 2)
    trials = list(partial_trials(candidate, resolve_ask(Request(profile=_PROFILES[model])), target))
    assert [trial.config.n_cpu_moe > 0 for trial in trials] == ways
