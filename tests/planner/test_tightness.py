"""How many layers are left out that would have fitted, by the breakdowns that llama-server itself printed.

``data/breakdowns_b11434.jsonl`` holds some models at several layer counts with the same other settings. A machine is
drawn whose device holds exactly one of these rows, less a byte or more a little, and the planner is asked for it. Where
the rows are recorded with the ``rpc`` rules the device is a worker; ``benchmarks/tightness.py`` asks the engine live.
"""

import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from benchmarks.footprint_error import parse_config, shipped_spec
from launcher.domain import Device, DeviceKind, Host, Inventory, Limits, Plan, Profile, Request, Settings
from launcher.planner.fit import decide
from launcher.planner.footprint.llama_cpp import LlamaCppConfig
from launcher.planner.sizing import Candidate, prepare
from launcher.planner.target import DEVICE_MARGIN_BYTES, DEVICE_RESIDUAL_BYTES
from launcher.profiles import load_profile
from launcher.units import GIB, MIB

_KINDS = {"gpu": DeviceKind.CUDA, "rpc": DeviceKind.RPC}


@cache
def _prepared(model: str, quantization: str) -> tuple[Profile, tuple[Candidate, ...]]:
    profile = load_profile(model)
    found = next(a for a in profile.artifacts if a.quantization == quantization and a.spec is not None)
    artifacts = (replace(found, spec=shipped_spec(model, quantization)),)
    alone = replace(profile, artifacts=artifacts, pins=Settings(), limits=Limits(min_generation_tps=1e-9))
    return alone, prepare(alone)


def _series() -> list[tuple[str, str, str, list[tuple[LlamaCppConfig, int]]]]:
    """Group the rows of one device by model, quantization, rules and everything but the layers."""
    groups: dict[tuple[str, str, str, str], list[tuple[LlamaCppConfig, int]]] = defaultdict(list)
    path = Path(__file__).parent / "data" / "breakdowns_b11434.jsonl"
    for row in map(json.loads, path.read_text().splitlines()):
        if row["rpc"] != 1 or row["backend"] not in _KINDS:
            continue
        config = parse_config(row["backend"], 1, " ".join(row["args"]))
        if config.kv_unified or config.swa_full or not config.op_offload or "-ts" in row["args"]:
            continue
        _, (candidate, *_) = _prepared(row["model"], row["quant"].lower().removesuffix("_moe"))
        if config.n_ctx // config.n_parallel > candidate.architecture.n_ctx_train:
            continue
        others = str(replace(config, n_gpu_layers=0))
        used: dict[str, Any] = row["mib"].get("RPC0", {"self": 0})
        key = row["model"], row["quant"].lower().removesuffix("_moe"), row["backend"], others
        groups[key].append((config, used["self"]))
    return [(model, quant, rules, rows) for (model, quant, rules, _), rows in groups.items()]


_SERIES = _series()


def _machine(rules: str, budget_bytes: int) -> Inventory:
    residual = 0 if rules == "rpc" else DEVICE_RESIDUAL_BYTES
    free = budget_bytes + DEVICE_MARGIN_BYTES + residual
    device = Device(
        name="gpu0",
        kind=_KINDS[rules],
        description="drawn",
        total_bytes=free,
        free_bytes=free,
        bandwidth_bytes_per_s=600e9,
    )
    host = Host(total_bytes=4096 * GIB, available_bytes=4096 * GIB, n_cpu=8, bandwidth_bytes_per_s=60e9)
    return Inventory(name="drawn", host=host, devices=(device,))


def _ask(config: LlamaCppConfig, quantization: str) -> Settings:
    return Settings(
        quantization=quantization,
        n_ctx=config.n_ctx,
        n_parallel=config.n_parallel,
        n_batch=config.n_batch,
        n_ubatch=min(config.n_ubatch, config.n_batch, config.n_ctx),
        n_cpu_moe=config.n_cpu_moe,
        cache_type_k=config.cache_type_k,
        cache_type_v=config.cache_type_v,
        flash_attn=config.flash_attn,
    )


@settings(max_examples=60)
@given(st.data())
def test_a_placement_that_the_engine_recorded_as_fitting_is_reached(data: st.DataObject) -> None:
    """On a device that just holds a recorded row, the plan has at least that row's layers, less one at most."""
    model, quantization, rules, rows = data.draw(st.sampled_from(_SERIES))
    config, used_mib = data.draw(st.sampled_from(rows))
    # the engine rounds each of three parts down, and the planner may err high by what the footprint's bar allows
    slack_mib = 3 + data.draw(st.integers(0, 40)) + used_mib * 3 // 100
    profile, prepared = _prepared(model, quantization)
    machine = _machine(rules, (used_mib + slack_mib) * MIB)
    outcome = decide(Request(profile=profile, settings=_ask(config, quantization)), machine, prepared)
    assert isinstance(outcome, Plan)
    n_all = prepared[0].architecture.n_layer + 1
    assert outcome.n_gpu_layers >= min(config.n_gpu_layers, n_all) - 1


@settings(max_examples=60)
@given(st.data())
def test_a_placement_that_the_engine_recorded_as_too_large_is_never_planned(data: st.DataObject) -> None:
    """On a device that is a hundredth too small for a recorded row, the plan has fewer layers than that row."""
    model, quantization, rules, rows = data.draw(st.sampled_from(_SERIES))
    config, used_mib = data.draw(st.sampled_from([row for row in rows if row[1] > 0] or [rows[0]]))
    profile, prepared = _prepared(model, quantization)
    machine = _machine(rules, max(0, used_mib - max(64, used_mib // 100)) * MIB)
    outcome = decide(Request(profile=profile, settings=_ask(config, quantization)), machine, prepared)
    n_all = prepared[0].architecture.n_layer + 1
    assert used_mib == 0 or not isinstance(outcome, Plan) or outcome.n_gpu_layers < min(config.n_gpu_layers, n_all)


def test_the_recorded_series_are_many() -> None:
    """The laws above draw from real figures: with both rules, and from several layer counts of one model."""
    assert {rules for _, _, rules, _ in _SERIES} == {"gpu", "rpc"}
    assert sum(len(rows) for *_, rows in _SERIES) >= 150
