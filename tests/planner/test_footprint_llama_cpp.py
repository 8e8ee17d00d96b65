"""The footprint of llama.cpp against what llama-server itself accounted for.

``data/breakdowns_b11434.jsonl`` holds memory breakdowns that llama-server (build 11434) printed for files of these
models' true shape: ``{"backend", "model", "quant", "args", "rpc", "mib"}``, MiB rounded down per row. The shapes come
from the shipped profiles, so these tests prove both.
"""

from functools import cache
from statistics import median

import pytest

from benchmarks.footprint_error import Figures, shipped_figures, shipped_rows, shipped_spec
from launcher.planner.architecture import read_architecture
from launcher.planner.footprint.llama_cpp import LlamaCppConfig, count_cells, place_layers
from launcher.planner.footprint.weights import sum_weights

_ROWS = shipped_rows()
_spec = cache(shipped_spec)


@cache
def _figures(model: str, quantization: str, *, every_layer: bool = False) -> list[Figures]:
    return shipped_figures(_spec(model, quantization), _ROWS[model, quantization], every_layer=every_layer)


@pytest.mark.parametrize(("model", "quantization"), _ROWS)
def test_weights_and_cache_are_exact(model: str, quantization: str) -> None:
    """Every recorded device and host agrees within the rounding of its rows."""
    figures = _figures(model, quantization)
    assert len(_ROWS[model, quantization]) >= 20
    assert [figure for figure in figures if not (figure.is_exact(0) and figure.is_exact(1))] == []


@pytest.mark.parametrize(("model", "quantization"), _ROWS)
def test_totals_are_those_of_the_engine(model: str, quantization: str) -> None:
    """Every total above 300 MiB is within 3 %, half of them within 0.5 %, and none is 64 MiB too low."""
    figures = _figures(model, quantization)
    errors = [figure.error for figure in figures if figure.error is not None]
    assert max(figure.under_mib for figure in figures) <= 64
    assert len(errors) >= 20
    assert max(errors) <= 0.03
    assert median(errors) <= 0.005


@pytest.mark.parametrize(("model", "quantization"), _ROWS)
def test_compute_buffers_are_exact(model: str, quantization: str) -> None:
    """The simulated graph takes what the engine's own allocator measured, on every device and the host."""
    figures = _figures(model, quantization, every_layer=True)
    assert [figure for figure in figures if not figure.is_exact(2)] == []


@pytest.mark.parametrize(("model", "quantization"), _ROWS)
def test_representative_blocks_take_what_all_take(model: str, quantization: str) -> None:
    """Where the order in which weights are copied fragments a buffer differently, it is by at most 6 MiB."""
    pairs = zip(_figures(model, quantization), _figures(model, quantization, every_layer=True), strict=True)
    assert max(abs(few.ours[2] - every.ours[2]) for few, every in pairs) <= 6


@pytest.mark.parametrize(("model", "quantization"), _ROWS)
def test_every_tensor_is_counted_once(model: str, quantization: str) -> None:
    """The parts of the weights add up to the file."""
    spec = _spec(model, quantization)
    weights = sum_weights(spec, read_architecture(spec).n_layer)
    assert weights.total_bytes == spec.weights_bytes


def test_a_request_that_does_not_divide_is_padded_per_stream() -> None:
    """``-c 5000 -np 3`` allocates 3 x 1792 cells: more than was asked for."""
    cells = count_cells(LlamaCppConfig(n_ctx=5000, n_gpu_layers=0, n_parallel=3))
    assert (cells.n_stream, cells.n_cells) == (3, 1792)


def test_the_output_layer_is_the_first_to_be_offloaded() -> None:
    """One GPU layer is the output layer; two are the output and the last block."""
    assert place_layers(4, 1, (1.0,)).output == 0
    assert place_layers(4, 1, (1.0,)).blocks == (None, None, None, None)
    assert place_layers(4, 2, (1.0,)).blocks == (None, None, None, 0)


def test_layers_are_split_by_cumulative_share() -> None:
    """Shares of 3 and 1 over nine items give the first device seven, output included in the second's."""
    placement = place_layers(8, 99, (3.0, 1.0))
    assert placement.blocks == (0, 0, 0, 0, 0, 0, 0, 1)
    assert placement.output == 1
