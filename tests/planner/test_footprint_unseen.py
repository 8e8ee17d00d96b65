"""The footprint of llama.cpp on shapes that no formula was fitted to, against what llama-server itself accounted for.

``data/unseen_b11434.jsonl`` has one model a line: its keys and tensors, then rows of backend, number of devices,
arguments and MiB of weights, context and compute by memory (build 11434, rounded down).
"""

from functools import cache
from statistics import median

import pytest

from benchmarks.footprint_error import Figures, unseen_figures, unseen_lines, unseen_spec
from launcher.domain import ModelSpec, TensorInfo, WeightsFormat
from launcher.planner.architecture import read_architecture
from launcher.planner.footprint import compute
from launcher.planner.footprint.llama_cpp import LlamaCppConfig, estimate_footprint
from launcher.planner.footprint.walk import Walk
from launcher.planner.footprint.weights import sum_weights
from launcher.tensor_types import TensorType

_LINES = unseen_lines()
# Compute buffers that are not exact, by model: their graphs are only alike to what the engine builds.
_INEXACT = {"grovemoe": 1, "arctic": 1, "openelm": 1}


def _forget() -> None:
    """Forget the figures and graphs of earlier questions."""
    compute.compute_bytes.cache_clear()
    compute._graphs.cache_clear()


@cache
def _figures(model: str) -> list[Figures]:
    return unseen_figures(_LINES[model])


@pytest.mark.parametrize("model", _LINES)
def test_every_figure_is_the_engines(model: str) -> None:
    """Weights and cache agree within the rounding of their rows, and so does compute but for the named buffers.

    No total is 64 MiB below the engine's, and none above 300 MiB is more than 3 % off.
    """
    figures = _figures(model)
    assert len(figures) >= 2
    assert [figure for figure in figures if not (figure.is_exact(0) and figure.is_exact(1))] == []
    inexact = [figure for figure in figures if not figure.is_exact(2)]
    assert len(inexact) <= _INEXACT.get(model, 0), inexact
    assert [figure for figure in figures if figure.under_mib > 64 or (figure.error or 0) > 0.03] == []


@pytest.mark.parametrize("model", _LINES)
def test_representative_blocks_take_what_all_take(model: str) -> None:
    """Where the order in which weights are copied fragments a buffer differently, it is by at most 6 MiB."""
    pairs = zip(unseen_figures(_LINES[model], every_layer=False), _figures(model), strict=True)
    assert max(abs(few.ours[2] - every.ours[2]) for few, every in pairs) <= 6


@pytest.mark.parametrize("model", list(_LINES)[::7])
def test_a_graph_without_its_repetitions_tells_the_same(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its recorded events, replayed in the order of all blocks and with their weights, take what the whole graph takes."""
    spec = unseen_spec(_LINES[model])
    architecture = read_architecture(spec)
    weights, n_layer = sum_weights(spec, architecture.n_layer), architecture.n_layer
    configs = [
        LlamaCppConfig(n_ctx=4096, n_gpu_layers=n_gpu_layers, n_ubatch=n_ubatch, shares=shares)
        for n_gpu_layers, n_ubatch, shares in ((n_layer // 2, 512, (1.0,)), (3 * n_layer // 4, 128, (1.0, 2.0)))
    ]
    names = ("gpu0", "gpu1")
    shortened = [estimate_footprint(architecture, weights, config, names) for config in configs]
    _forget()
    monkeypatch.setattr(compute, "shorten", lambda kinds: Walk(tuple(range(len(kinds))), tuple(range(len(kinds)))))
    assert [estimate_footprint(architecture, weights, config, names) for config in configs] == shortened


@pytest.mark.parametrize("model", list(_LINES)[5::9])
def test_a_graph_of_another_placement_tells_the_same(model: str) -> None:
    """A placement takes as much where its graph was built for another one as where it is the first to be asked for."""
    spec = unseen_spec(_LINES[model])
    architecture = read_architecture(spec)
    weights, n_layer = sum_weights(spec, architecture.n_layer), architecture.n_layer
    configs = [LlamaCppConfig(n_ctx=4096, n_gpu_layers=n) for n in range(0, n_layer + 2, max(1, n_layer // 8))]
    _forget()
    shared = [estimate_footprint(architecture, weights, config, ("gpu0",)) for config in configs]
    for config, footprint in zip(configs, shared, strict=True):
        _forget()
        assert estimate_footprint(architecture, weights, config, ("gpu0",)) == footprint


@pytest.mark.parametrize("model", list(_LINES)[3::7])
def test_a_graph_of_stand_ins_tells_the_same(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, worked out for a step and a context, takes what the graph of just these takes."""
    spec = unseen_spec(_LINES[model])
    architecture = read_architecture(spec)
    weights, n_layer = sum_weights(spec, architecture.n_layer), architecture.n_layer
    configs = [
        LlamaCppConfig(
            n_ctx=n_ctx, n_gpu_layers=n_layer // 2, n_ubatch=n_ubatch, n_parallel=n_parallel, flash_attn=flash
        )
        for n_ctx, n_ubatch, n_parallel, flash in ((4096, 512, 1, True), (2048, 2048, 4, False), (8192, 64, 2, True))
    ]
    general = [estimate_footprint(architecture, weights, config, ("gpu0",)) for config in configs]
    _forget()
    monkeypatch.setattr(compute, "_stand_in", lambda _, caches, batch: (caches, batch, (1,)))
    assert [estimate_footprint(architecture, weights, config, ("gpu0",)) for config in configs] == general


def test_half_of_the_totals_are_within_half_a_percent() -> None:
    """Over more than fifty models."""
    errors = [figure.error for model in _LINES for figure in _figures(model) if figure.error is not None]
    assert len(_LINES) >= 50
    assert median(errors) <= 0.005


def _odd_spec(architecture: str, names: tuple[str, ...], shape: tuple[int, ...]) -> ModelSpec:
    tensors = tuple(TensorInfo(name=name, shape=shape, type=TensorType.F16) for name in names)
    return ModelSpec(architecture=architecture, format=WeightsFormat.GGUF, metadata={}, tensors=tensors)


@pytest.mark.parametrize(
    "spec",
    [
        _odd_spec("unheard-of", (), (1,)),
        _odd_spec("unheard-of", ("blk.0.what.weight",), (7, 3)),
        _odd_spec("llama", ("blk.1.attn_q.weight", "token_embd.weight"), (32, 32)),
        _odd_spec("mamba", ("blk.0.ssm_in.weight", "token_embd.weight"), (32, 32)),
        _odd_spec("gemma4", ("blk.0.attn_q.weight",), (32, 32)),
        _odd_spec("deepseek2", ("blk.0.ffn_gate_inp.weight",), (32, 8)),
        _odd_spec("deepseek4", ("blk.0.attn_compressor_ape.weight",), (32, 4)),
        _odd_spec("qwen35", ("blk.0.ssm_a", "blk.1.attn_q.weight"), (32,)),
    ],
    ids=lambda spec: f"{spec.architecture}-{len(spec.tensors)}",
)
def test_odd_metadata_is_a_figure_and_never_a_crash(spec: ModelSpec) -> None:
    """What is missing is assumed."""
    architecture = read_architecture(spec)
    config = LlamaCppConfig(n_ctx=512, n_gpu_layers=1)
    held = estimate_footprint(architecture, sum_weights(spec, architecture.n_layer), config, ("gpu0",))
    assert held.host.engine_bytes + held.devices[0].total_bytes >= spec.weights_bytes
