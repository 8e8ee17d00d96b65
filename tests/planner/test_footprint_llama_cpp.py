"""The footprint of llama.cpp against what llama-server itself accounted for.

``data/breakdowns_b11434.jsonl`` holds memory breakdowns that llama-server (build 11434) printed for files of these
models' true shape: ``{"backend", "model", "quant", "args", "rpc", "mib"}``, MiB rounded down per row. The shapes come
from the shipped profiles, so these tests prove both.
"""

import json
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benchmarks.footprint_error import parse_config, shipped_spec
from launcher.domain import HostUse, MemoryUse, ModelSpec
from launcher.planner.architecture import Architecture, read_architecture
from launcher.planner.footprint.llama_cpp import (
    LlamaCppConfig,
    ModelWeights,
    count_cells,
    estimate_footprint,
    place_layers,
    sum_weights,
)
from launcher.units import MIB

_ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "data" / "breakdowns_b11434.jsonl").read_text().splitlines()
]
_GROUPS = sorted({(row["model"], row["quant"]) for row in _ROWS})


@cache
def _spec(model: str, quantization: str) -> ModelSpec:
    return shipped_spec(model, quantization.lower().removesuffix("_moe"))


@cache
def _architecture(model: str, quantization: str) -> Architecture:
    return read_architecture(_spec(model, quantization))


@cache
def _weights(model: str, quantization: str) -> ModelWeights:
    return sum_weights(_spec(model, quantization), _architecture(model, quantization).n_layer)


def _config(row: dict[str, Any]) -> LlamaCppConfig:
    """Read llama-server's arguments as they were recorded."""
    return parse_config(row["backend"], row["rpc"], " ".join(row["args"]))


def _compare(
    row: dict[str, Any], *, every_layer: bool = False
) -> list[tuple[str, dict[str, float], dict[str, int], int]]:
    """Return per memory: its name, our MiB by kind, the engine's MiB by kind, and the rows that were summed."""
    key = row["model"], row["quant"]
    architecture = _architecture(*key)
    names = tuple(f"RPC{idx}" for idx in range(row["rpc"]))
    ours = estimate_footprint(architecture, _weights(*key), _config(row), names, every_layer=every_layer)
    result = []
    uses: list[MemoryUse | HostUse] = [*ours.devices, ours.host]
    for use in uses:
        name = use.name if isinstance(use, MemoryUse) else "Host"
        labels = [name] if name != "Host" else [label for label in row["mib"] if not label.startswith("RPC")]
        truth = {kind: sum(row["mib"][label][kind] for label in labels) for kind in ("model", "context", "compute")}
        mib = {
            "model": use.weights_bytes / MIB,
            "context": use.kv_cache_bytes / MIB,
            "compute": use.compute_bytes / MIB,
        }
        result.append((name, mib, truth, len(labels)))
    return result


@pytest.mark.parametrize(("model", "quantization"), _GROUPS)
def test_weights_and_cache_are_exact(model: str, quantization: str) -> None:
    """Every recorded device and host agrees within the rounding of its rows."""
    rows = [row for row in _ROWS if (row["model"], row["quant"]) == (model, quantization)]
    wrong = [
        (row["args"], name, kind, mib[kind], truth[kind])
        for row in rows
        for name, mib, truth, n_rows in _compare(row)
        for kind in ("model", "context")
        if not truth[kind] - 1 <= mib[kind] <= truth[kind] + n_rows + 1
    ]
    assert len(rows) >= 20
    assert wrong == []


@pytest.mark.parametrize(("model", "quantization"), _GROUPS)
def test_totals_are_those_of_the_engine(model: str, quantization: str) -> None:
    """Every total above 300 MiB is within 3 %, half of them within 0.5 %, and none is 64 MiB too low."""
    errors = []
    for row in _ROWS:
        if (row["model"], row["quant"]) != (model, quantization):
            continue
        for _, mib, truth, _ in _compare(row):
            ours, theirs = sum(mib.values()), sum(truth.values())
            assert ours >= theirs - 64
            if theirs > 300:
                errors.append(abs(ours / theirs - 1))
    assert len(errors) >= 20
    assert max(errors) <= 0.03
    assert median(errors) <= 0.005


@pytest.mark.parametrize(("model", "quantization"), _GROUPS)
def test_compute_buffers_are_exact(model: str, quantization: str) -> None:
    """The simulated graph takes what the engine's own allocator measured, on every device and the host."""
    wrong = [
        (row["args"], name, mib["compute"], truth["compute"])
        for row in _ROWS
        if (row["model"], row["quant"]) == (model, quantization)
        for name, mib, truth, n_rows in _compare(row, every_layer=True)
        if not truth["compute"] - 1 <= mib["compute"] <= truth["compute"] + n_rows + 1
    ]
    assert wrong == []


@pytest.mark.parametrize(("model", "quantization"), _GROUPS)
def test_every_tensor_is_counted_once(model: str, quantization: str) -> None:
    """The parts of the weights add up to the file."""
    assert _weights(model, quantization).total_bytes == _spec(model, quantization).weights_bytes


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
