"""The footprint of llama.cpp on shapes that no formula was fitted to, against what llama-server itself accounted for.

``data/unseen_b11434.jsonl`` has one model a line: its keys and tensors, then rows of backend, number of devices,
arguments and MiB of weights, context and compute by memory (build 11434, rounded down).
"""

from collections.abc import Iterator
from functools import cache
from statistics import median

import pytest

from benchmarks.footprint_error import Figures, unseen
from launcher.domain import ModelSpec, TensorInfo, WeightsFormat
from launcher.planner.architecture import read_architecture
from launcher.planner.footprint.llama_cpp import LlamaCppConfig, estimate_footprint, sum_weights
from launcher.tensor_types import TensorType


@cache
def _models() -> dict[str, list[Figures]]:
    return dict(unseen())


def _figures() -> Iterator[tuple[str, Figures]]:
    for model, figures in _models().items():
        yield from ((model, figure) for figure in figures)


def test_weights_and_cache_are_exact() -> None:
    """Every memory of every recorded row agrees within the rounding of its rows."""
    wrong = [(model, figure) for model, figure in _figures() if not (figure.is_exact(0) and figure.is_exact(1))]
    assert len(_models()) >= 50
    assert wrong == []


def test_no_total_is_64_mib_below_the_engine() -> None:
    """A plan is never an out-of-memory in disguise."""
    assert [(model, figure) for model, figure in _figures() if figure.under_mib > 64] == []


def test_totals_are_within_three_percent() -> None:
    """Half of the totals above 300 MiB are within 0.5 %, and all within 3 %."""
    errors = [(figure.error, model, figure) for model, figure in _figures() if figure.error is not None]
    assert [entry for entry in errors if entry[0] > 0.03] == []
    assert median(entry[0] for entry in errors) <= 0.005


def test_nearly_all_compute_buffers_are_exact() -> None:
    """Graphs are restated to the byte; a few differ where an architecture's graph is only alike."""
    exact = [figure.is_exact(2) for _, figure in _figures()]
    assert sum(exact) / len(exact) >= 0.98


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
