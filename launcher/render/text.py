"""Faults and notices as the lines that a person reads."""

from collections.abc import Mapping
from typing import Final

import msgspec

from launcher.domain import SCHEMA_VERSION
from launcher.errors import LauncherError
from launcher.units import format_bytes

WIDTH: Final = 80
"""Columns that prose is wrapped to: what is printed does not depend on the terminal that shows it."""


def wrapped(text: str, *, first: str, rest: str) -> list[str]:
    """Return ``text`` in lines of at most ``WIDTH`` columns: ``first`` begins the first, ``rest`` each other."""
    lines: list[str] = []
    line = first
    for word in text.split(" "):
        begin = first if not lines else rest
        if len(line) + len(word) > WIDTH and line != begin:
            lines.append(line.rstrip())
            line = rest
        line += word + " "
    return [*lines, line.rstrip()]


def shown(text: str) -> str:
    """Return a text as it may be shown, escaped where it could steer a terminal: it is of a file that nobody vouches for."""
    return text if text.isprintable() else ascii(text)[1:-1]


def encodable(value: object) -> object:
    """Return a value for JSON, with what of its texts is no Unicode replaced: a file's name may hold any bytes."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {key: encodable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encodable(item) for item in value]
    return encodable(msgspec.to_builtins(value)) if isinstance(value, msgspec.Struct) else value


def error_json(error: LauncherError) -> str:
    """Return a fault as JSON, for whoever asked for JSON: ``{"schema_version", "error": {...}}``."""
    fault = {"code": error.code, "message": error.message, "details": error.details, "help": error.help}
    return (
        msgspec.json.encode({"schema_version": SCHEMA_VERSION, "error": fault}, order="deterministic").decode() + "\n"
    )


def render_error(error: LauncherError) -> str:
    """Return ``error[code]: message``, its details indented, and its ``help:`` last."""
    lines = [f"error[{error.code}]: {error.message}"]
    lines += [f"  {detail}" for detail in error.details]
    if error.help:
        lines.append(f"help: {error.help}")
    return "\n".join(lines) + "\n"


def render_reading(*, host: str, n_bytes: int, n_requests: int, total_bytes: int, left_out: tuple[str, ...]) -> str:
    """Return what was read over the network to describe a model of ``total_bytes``, and what of it is left out."""
    share = f"{format_bytes(n_bytes)} ({n_bytes} bytes) of {format_bytes(total_bytes)}"
    lines = [f"read {share} from {host} in {n_requests} requests: headers only"]
    lines += [f"  left out: {fact}" for fact in left_out]
    return "\n".join(lines) + "\n"
