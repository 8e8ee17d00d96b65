"""Prints whether the planner agrees with published starts of vLLM: served, or not for want of memory.

    python -m benchmarks.vllm_outcomes

``data/vllm_outcomes.toml`` has the starts with their sources; it was written before the planner was asked. The verdict is of
each report's own settings, defaults included. What was served should be planned as well, with settings of the planner's own,
for one request of that length on that machine: where it would not be, the reason follows. The exit code is 1 below 11 of 12 pairs.
"""

import sys
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from launcher.domain import Device, DeviceKind, ModelSpec, WeightsFormat
from launcher.inventory import load_inventory
from launcher.planner.footprint.vllm import VllmConfig, estimate, plan_vllm
from launcher.planner.footprint.vllm_model import read_model
from launcher.planner.footprint.vllm_support import activation_bytes, check_support
from launcher.profiles import load_profile
from launcher.units import MIB
from tests.planner.hf_shapes import make_spec

DATA: Final = Path(__file__).parent / "data" / "vllm_outcomes.toml"
AIM: Final = 11 / 12


class Start(NamedTuple):
    """One published start: whether it served, why the planner refuses its settings, and why it has none of its own."""

    pair: str
    settings: str
    served: bool
    is_counted: bool
    refusal: str | None
    own_refusal: str | None
    source: str

    @property
    def agrees(self) -> bool:
        """Whether the planner says of these settings what happened."""
        return self.served == (self.refusal is None)


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads(DATA.read_text())


@cache
def _spec(name: str, quantization: str) -> ModelSpec:
    """Return the weights: of a shipped profile, else of the shapes that the configuration implies."""
    model = _data()["models"].get(name)
    if model is not None:
        return make_spec(model["architecture"], model["config"], quantization)
    wanted = (WeightsFormat.SAFETENSORS, quantization)
    artifacts = load_profile(name).artifacts
    return next(a.spec for a in artifacts if (a.format, a.quantization) == wanted and a.spec is not None)


def _gpus(row: dict[str, Any]) -> tuple[Device, ...]:
    """Return the GPUs of a row, nothing else on them."""
    if "machine" in row:
        gpu = load_inventory(row["machine"]).devices[0]
    else:
        gpu = Device(
            name="gpu0",
            kind=DeviceKind.CUDA,
            description=row["gpu"],
            total_bytes=row["total_mib"] * MIB,
            compute_capability=tuple(row["capability"]),
        )
    return tuple(replace(gpu, name=f"gpu{idx}") for idx in range(row.get("n", 1)))


def _judge(row: dict[str, Any]) -> Start:
    spec, gpus = _spec(row["model"], row["quantization"]), _gpus(row)
    capability = gpus[0].compute_capability
    config = VllmConfig(**{"max_num_seqs": 256, **row["settings"]})
    model = read_model(spec, dtype_bytes=activation_bytes(spec, capability))
    refusal = (
        check_support(spec, capability, config.tensor_parallel_size)
        or estimate(model, config, gpus[: config.n_rank]).refusal
    )
    own = plan_vllm(spec, (gpus,), n_ctx_per_request=config.max_model_len) if row["served"] else None
    where = row.get("machine", row.get("gpu"))
    return Start(
        pair=f"{row['model']} {row['quantization']}, {len(gpus)} x {where}",
        settings=f"{config.max_model_len} tokens at {config.gpu_memory_utilization:g}",
        served=row["served"],
        is_counted=not row.get("also", False),
        refusal=refusal,
        own_refusal=own if isinstance(own, str) else None,
        source=row["source"],
    )


@cache
def judge_all() -> tuple[Start, ...]:
    """Return every published start with the planner's verdict."""
    return tuple(_judge(row) for row in _data()["starts"])


def share(starts: Sequence[Start]) -> float:
    """Return the share of pairs of weights and machine on which the planner agrees; further starts of a pair aside."""
    counted = [start for start in starts if start.is_counted]
    return sum(start.agrees for start in counted) / len(counted)


def _lines(starts: Sequence[Start]) -> Iterator[str]:
    for start in starts:
        word = "served" if start.served else "refused"
        mark = " " if start.agrees else "x"
        kind = "" if start.is_counted else " (also)"
        yield f"{mark} {start.pair:<58}{start.settings:<23}{word:<8}{start.refusal or 'fits'}{kind}"
        if start.own_refusal is not None:
            yield f"  {'':<58}of itself it would refuse: {start.own_refusal}"
    counted = [start for start in starts if start.is_counted]
    further = [start for start in starts if not start.is_counted]
    for name, some in (("pairs", counted), ("further starts of these", further)):
        yield f"{sum(start.agrees for start in some)} of {len(some)} {name} agree"
    for start in starts:
        if not start.agrees:
            yield f"disagrees: {start.pair}, {start.settings}: {start.source}"


def main() -> int:
    """Print the table; return the exit code."""
    starts = judge_all()
    for line in _lines(starts):
        print(line)
    return 0 if share(starts) >= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
