"""Writes what other programs' stores hold, for a person or as JSON.

It must not know where stores are, nor print.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from launcher.domain import SCHEMA_VERSION
from launcher.units import format_bytes


class StoredRow(Struct, frozen=True, kw_only=True):
    """A model of a store: what a command calls it, and why it cannot be served, empty where it can."""

    name: str
    format: str
    quantization: str | None
    size_bytes: int
    store: str
    path: str
    unusable: str


def render_stored(*, store: str, paths: Sequence[str], left_out: Sequence[str]) -> str:
    """Return where the weights of a model are that a store has, and what of it is left out."""
    lines = [f"from {store}, used in place:", *(f"  {_printable(path)}" for path in paths)]
    lines += [f"  left out: {fact}" for fact in left_out]
    return "\n".join(lines) + "\n"


def render_shelf(rows: Sequence[StoredRow]) -> str:
    """Return a line per model: its name, quantization, size and store; then why it cannot be served, if so."""
    if not rows:
        return "no other program's store on this machine has weights\n"
    names = [_printable(row.name) for row in rows]
    width = max(map(len, names))
    quant = max(len(row.quantization or "?") for row in rows)
    lines: list[str] = []
    for name, row in zip(names, rows, strict=True):
        size = format_bytes(row.size_bytes)
        lines.append(f"{name:<{width}}  {row.quantization or '?':<{quant}}  {size:>9}  {row.store}")
        if row.unusable:
            lines.append(f"  cannot be served: {_printable(row.unusable)}")
    return "\n".join(lines) + "\n"


def render_shelf_json(rows: Sequence[StoredRow], faults: Sequence[str]) -> str:
    """Return the same as one JSON object, with the paths, and what could not be read."""
    document = {"schema_version": SCHEMA_VERSION, "models": rows, "faults": faults}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def _printable(text: str) -> str:
    """Escape what could steer a terminal: names come from folders that others may write to."""
    return text if text.isprintable() else ascii(text)[1:-1]
