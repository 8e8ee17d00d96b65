"""Prints how far the predicted footprint is from llama-server's own account, by model.

    python benchmarks/footprint_error.py

The recorded breakdowns (llama.cpp build 11434) are tests/planner/data/*.jsonl: the shipped profiles' shapes, then
shapes that no formula was fitted to. Errors are of the total of each device and host above 300 MiB; ``under`` is the
most that any total is below the engine's, in MiB.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from msgspec.structs import replace

from launcher.domain import CacheType, ModelSpec, TensorInfo, WeightsFormat
from launcher.planner.architecture import Architecture, read_architecture
from launcher.planner.footprint.llama_cpp import X86_REPACKED, Backend, LlamaCppConfig, estimate_footprint
from launcher.planner.footprint.weights import ModelWeights, sum_weights
from launcher.profiles import load_profile
from launcher.tensor_types import TensorType
from launcher.units import MIB

DATA = Path(__file__).parent.parent / "tests" / "planner" / "data"
JUDGED_MIB = 300


class Figures(NamedTuple):
    """One memory of one configuration: MiB of weights, cache and compute, ours and the engine's (rounded down)."""

    arguments: str
    memory: str
    ours: tuple[float, float, float]
    truth: tuple[int, int, int]
    n_rows: int

    @property
    def under_mib(self) -> float:
        """How far our total is below the engine's."""
        return sum(self.truth) - sum(self.ours)

    @property
    def error(self) -> float | None:
        """Relative error of the total, where it is judged."""
        total = sum(self.truth)
        return abs(sum(self.ours) / total - 1) if total > JUDGED_MIB else None

    def is_exact(self, kind: int) -> bool:
        """Whether a figure is within the rounding of its rows."""
        return self.truth[kind] - 1 <= self.ours[kind] <= self.truth[kind] + self.n_rows + 1


def parse_config(backend: str, n_devices: int, arguments: str) -> LlamaCppConfig:
    """Read llama-server's arguments as they were recorded."""
    values: dict[str, Any] = {"n_gpu_layers": 0, "shares": (1.0,) * n_devices}
    numbers = {"-c": "n_ctx", "-np": "n_parallel", "-ngl": "n_gpu_layers", "-b": "n_batch", "-ub": "n_ubatch"}
    words = iter(arguments.split())
    for word in words:
        match word:
            case "-kvu":
                values["kv_unified"] = True
            case "--swa-full":
                values["swa_full"] = True
            case "--no-op-offload":
                values["op_offload"] = False
            case "-ts":
                values["shares"] = tuple(float(share) for share in next(words).split(","))
            case "-fa":
                values["flash_attn"] = next(words) == "on"
            case "-ctk" | "-ctv":
                values["cache_type_k" if word == "-ctk" else "cache_type_v"] = CacheType(next(words))
            case _:
                values[{**numbers, "-ncmoe": "n_cpu_moe"}[word]] = int(next(words))
    rules = Backend(backend)
    return LlamaCppConfig(backend=rules, repacked=frozenset() if rules is Backend.GPU else X86_REPACKED, **values)


def compare(
    architecture: Architecture,
    weights: ModelWeights,
    config: LlamaCppConfig,
    truth: dict[str, list[int]],
    *,
    every_layer: bool,
) -> Iterator[tuple[str, tuple[float, float, float], tuple[int, int, int], int]]:
    """Yield each memory: its name, our MiB, the engine's MiB, and how many rows were summed."""
    names = tuple(f"RPC{idx}" for idx in range(len(config.shares)))
    ours = estimate_footprint(architecture, weights, config, names, every_layer=every_layer)
    uses = [(use.name, use.weights_bytes, use.kv_cache_bytes, use.compute_bytes) for use in ours.devices]
    uses.append(("Host", ours.host.weights_bytes, ours.host.kv_cache_bytes, ours.host.compute_bytes))
    for name, *parts in uses:
        labels = [label for label in truth if label == name or (name == "Host" and not label.startswith("RPC"))]
        sums = tuple(sum(truth[label][kind] for label in labels) for kind in range(3))
        mib = tuple(n_bytes / MIB for n_bytes in parts)
        yield name, (mib[0], mib[1], mib[2]), (sums[0], sums[1], sums[2]), len(labels)


def unseen_spec(line: dict[str, Any]) -> ModelSpec:
    """Build the header that a line of unseen_b11434.jsonl stands for."""
    tensors = [TensorInfo(name=name, shape=tuple(shape), type=TensorType(kind)) for name, shape, kind in line["table"]]
    tensors += [
        TensorInfo(name=f"blk.{idx}.{name}", shape=tuple(shape), type=TensorType(kind))
        for name, shape, kind, indices in line["blocks"]
        for idx in indices
    ]
    keys = {
        f"{line['architecture']}.{key}": tuple(value) if isinstance(value, list) else value
        for key, value in line["keys"].items()
    }
    return ModelSpec(
        architecture=line["architecture"], format=WeightsFormat.GGUF, metadata=keys, tensors=tuple(tensors)
    )


def unseen_lines() -> dict[str, dict[str, Any]]:
    """Return the lines of unseen_b11434.jsonl by model."""
    lines = map(json.loads, (DATA / "unseen_b11434.jsonl").read_text().splitlines())
    return {line["model"]: line for line in lines}


def unseen_figures(line: dict[str, Any], *, every_layer: bool = True) -> list[Figures]:
    """Return the figures of one unseen model, with all its blocks or with representative ones."""
    spec = unseen_spec(line)
    architecture = read_architecture(spec)
    weights = sum_weights(spec, architecture.n_layer)
    return [
        Figures(f"{backend} {arguments}", *figures)
        for backend, n_devices, arguments, truth in line["rows"]
        for figures in compare(
            architecture, weights, parse_config(backend, n_devices, arguments), truth, every_layer=every_layer
        )
    ]


def unseen() -> Iterator[tuple[str, list[Figures]]]:
    """Yield each unseen model with its figures."""
    yield from ((model, unseen_figures(line)) for model, line in unseen_lines().items())


def shipped_spec(model: str, quantization: str) -> ModelSpec:
    """Return a profile's shape as it was recorded: without the rotation factors of Llama 3.1, which cut graphs."""
    artifacts = load_profile(model).artifacts
    spec = next(spec for a in artifacts if (spec := a.spec) is not None and a.quantization == quantization)
    return replace(spec, tensors=tuple(tensor for tensor in spec.tensors if tensor.name != "rope_freqs.weight"))


def shipped_rows() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the rows of breakdowns_b11434.jsonl by model and quantization."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for text in (DATA / "breakdowns_b11434.jsonl").read_text().splitlines():
        row = json.loads(text)
        groups.setdefault((row["model"], row["quant"].lower().removesuffix("_moe")), []).append(row)
    return groups


def shipped_figures(spec: ModelSpec, rows: list[dict[str, Any]], *, every_layer: bool = True) -> list[Figures]:
    """Return the figures of one shipped model, with all its blocks or with representative ones."""
    architecture = read_architecture(spec)
    weights = sum_weights(spec, architecture.n_layer)
    found = []
    for row in rows:
        arguments = " ".join(row["args"])
        truth = {label: [kinds[k] for k in ("model", "context", "compute")] for label, kinds in row["mib"].items()}
        config = parse_config(row["backend"], row["rpc"], arguments)
        figures = compare(architecture, weights, config, truth, every_layer=every_layer)
        found += [Figures(f"{row['backend']} {arguments}", *figure) for figure in figures]
    return found


def shipped() -> Iterator[tuple[str, list[Figures]]]:
    """Yield each shipped model and quantization with its figures."""
    for (model, quantization), rows in shipped_rows().items():
        yield f"{model} {quantization}", shipped_figures(shipped_spec(model, quantization), rows)


def main() -> None:
    """Print one line per model."""
    print(f"{'model':<26}{'figures':>8}{'exact':>8}{'median %':>10}{'worst %':>9}{'under':>7}")
    for title, group in (("shipped shapes", shipped()), ("unseen shapes", unseen())):
        print(title)
        every: list[float] = []
        for name, figures in group:
            errors = [figure.error for figure in figures if figure.error is not None] or [0.0]
            n_exact = sum(all(figure.is_exact(kind) for kind in range(3)) for figure in figures)
            under = max(figure.under_mib for figure in figures)
            every += [figure.error for figure in figures if figure.error is not None]
            print(
                f"{name:<26}{len(figures):>8}{n_exact:>8}{median(errors) * 100:>10.2f}"
                f"{max(errors) * 100:>9.2f}{max(0, under):>7.0f}"
            )
        print(f"{'all':<26}{len(every):>8}{'':>8}{median(every) * 100:>10.2f}{max(every) * 100:>9.2f}")


if __name__ == "__main__":
    main()
