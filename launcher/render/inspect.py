"""Writes what a model's header says, for a person or as JSON.

It must not know where the header was read, nor print.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from launcher.domain import SCHEMA_VERSION, MetadataValue, ModelSpec
from launcher.render.text import shown
from launcher.units import format_bytes

Figures = Mapping[str, int | tuple[int, ...]]
"""Hyperparameters by llama.cpp's names; a tuple has one entry per layer."""


def render_spec(spec: ModelSpec, figures: Figures, *, with_tensors: bool = False) -> str:
    """Return the model as aligned lines, then its element types with their bytes, then its tensors if asked for."""
    facts = [(name, value) for name, value in _facts(spec, figures) if value]
    width = max(len(name) for name, _value in facts)
    lines = [f"{name:<{width}}  {shown(value)}" for name, value in facts]
    lines += ["", *_table(("type", "tensors", "bytes", "share"), _type_rows(spec))]
    if with_tensors:
        rows = [
            (
                shown(tensor.name),
                " x ".join(map(str, tensor.shape)) or "scalar",
                tensor.type.value,
                format_bytes(tensor.n_bytes),
            )
            for tensor in spec.tensors
        ]
        lines += ["", *_table(("tensor", "shape", "type", "bytes"), rows)]
    return "\n".join(lines) + "\n"


def render_spec_json(spec: ModelSpec, figures: Figures) -> str:
    """Return the same as one JSON object, with all metadata and all tensors; shapes are in ggml's order."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "architecture": spec.architecture,
        "format": spec.format,
        "provenance": spec.provenance,
        "n_elements": spec.n_parameters,
        "weights_bytes": spec.weights_bytes,
        "bits_per_weight": _bits_per_weight(spec),
        "hyperparameters": figures,
        "types": [
            {"type": name, "n_tensors": n_tensors, "n_bytes": n_bytes} for name, n_tensors, n_bytes in _by_type(spec)
        ],
        "metadata": spec.metadata,
        "tensors": [
            {"name": tensor.name, "shape": tensor.shape, "type": tensor.type, "n_bytes": tensor.n_bytes}
            for tensor in spec.tensors
        ],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def _facts(spec: ModelSpec, figures: Figures) -> Iterator[tuple[str, str]]:
    method = spec.metadata.get("quantization_config.quant_method")
    bits = _bits_per_weight(spec)
    yield "name", _text(spec.metadata.get("general.name"))
    yield "architecture", spec.architecture
    yield "format", spec.format.value
    yield "quantization", _text(method)
    # Quantized safetensors pack several parameters into one stored element, so that elements are no parameters there.
    yield "stored elements" if method else "parameters", f"{_in_words(spec.n_parameters)} ({spec.n_parameters})"
    yield "weights", f"{format_bytes(spec.weights_bytes)} ({spec.weights_bytes} bytes)"
    yield "bits per weight", "" if method or bits is None else f"{bits:.2f}"
    yield "context", _figure(figures, "n_ctx_train", " tokens")
    yield "layers", _figure(figures, "n_layer")
    yield "embedding", _figure(figures, "n_embd")
    yield "heads", _figure(figures, "n_head")
    yield "kv heads", _figure(figures, "n_head_kv")
    yield "sliding window", _figure(figures, "n_swa", " tokens")
    yield "experts", _figure(figures, "n_expert")
    yield "experts used", _figure(figures, "n_expert_used", " per token")
    yield "vocabulary", _figure(figures, "n_vocab", " tokens")


def _figure(figures: Figures, name: str, unit: str = "") -> str:
    value = figures.get(name)
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value}{unit}"
    low, high = min(value), max(value)
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}, by layer"


def _bits_per_weight(spec: ModelSpec) -> float | None:
    return round(spec.weights_bytes * 8 / spec.n_parameters, 4) if spec.n_parameters else None


def _by_type(spec: ModelSpec) -> list[tuple[str, int, int]]:
    """Return name, number of tensors and bytes of each element type, the largest share first."""
    totals: dict[str, tuple[int, int]] = {}
    for tensor in spec.tensors:
        n_tensors, n_bytes = totals.get(tensor.type.value, (0, 0))
        totals[tensor.type.value] = (n_tensors + 1, n_bytes + tensor.n_bytes)
    return sorted(((name, *total) for name, total in totals.items()), key=lambda row: (-row[2], row[0]))


def _type_rows(spec: ModelSpec) -> list[tuple[str, ...]]:
    total = spec.weights_bytes or 1
    return [
        (name, str(n_tensors), format_bytes(n_bytes), f"{100 * n_bytes / total:.1f} %")
        for name, n_tensors, n_bytes in _by_type(spec)
    ]


def _table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[idx]) for row in (heading, *rows)) for idx in range(len(heading))]
    return [
        "  ".join(
            cell.ljust(width) if idx == 0 else cell.rjust(width)
            for idx, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (heading, *rows)
    ]


def _in_words(n: int) -> str:
    for step, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= step:
            return f"{n / step:.1f} {unit}"
    return str(n)


def _text(value: MetadataValue | None) -> str:
    return value if isinstance(value, str) else ""
