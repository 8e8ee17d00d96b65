"""Words for a download: how far it is, and what it brought. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from launcher.domain import SCHEMA_VERSION
from launcher.render.instances import render_duration
from launcher.units import format_bytes

_WAITS: Final[Mapping[str, str]] = {
    "checking": "checking what is here of",
    "sharing": "another process downloads",
    "retrying": "waiting for",
}


def render_progress(
    *,
    phase: str,
    file: str,
    n_bytes: int,
    total_bytes: int | None,
    rate_bytes_per_s: float | None,
    left_s: float | None,
    why: str,
) -> str:
    """Return one line: bytes of all files together, their rate and the time that is left, as far as they are known."""
    of = "" if total_bytes is None else f" of {format_bytes(total_bytes)}"
    share = f" ({100 * n_bytes // total_bytes} %)" if total_bytes else ""
    parts = [f"{_WAITS.get(phase, 'downloading')} {file}: {format_bytes(n_bytes)}{of}{share}"]
    if rate_bytes_per_s is not None:
        parts.append(f"{format_bytes(int(rate_bytes_per_s))}/s")
    if left_s is not None:
        parts.append(f"{render_duration(left_s)} left")
    if why:
        parts.append(why)
    return ", ".join(parts)


def render_pulled(
    model: str, quantization: str, path: str, files: Sequence[Mapping[str, Any]], *, seconds: float
) -> str:
    """Return what is here by now, and what of it came over the network; ``seconds`` is how long that took."""
    n_bytes = sum(file["n_fetched_bytes"] for file in files)
    n_all = sum(file["size_bytes"] for file in files)
    n_files = "1 file" if len(files) == 1 else f"{len(files)} files"
    how = f"{format_bytes(n_bytes)} downloaded in {render_duration(seconds)}" if n_bytes else "nothing was downloaded"
    lines = [
        f"`{model}` at {quantization} is at {path}",
        f"  {n_files}, {format_bytes(n_all)}, {_how_sure(files)}; {how}",
    ]
    lines += [f"  was damaged, and set aside: {file['set_aside']}" for file in files if file["set_aside"]]
    return "\n".join(lines) + "\n"


def _how_sure(files: Sequence[Mapping[str, Any]]) -> str:
    """Say which files were compared with a digest: a file of one's own has none."""
    n_verified = sum(1 for file in files if file["digest"])
    if n_verified == len(files):
        return "verified"
    return (
        f"{n_verified} verified, of the others no digest is known" if n_verified else "not verified: no digest is known"
    )


def pulled_json(
    *,
    model: str,
    quantization: str,
    weights_format: str,
    path: str,
    files: Sequence[Mapping[str, Any]],
) -> str:
    """Return the same as JSON: ``{"schema_version", "pulled": {...}}``."""
    pulled = {
        "model": model,
        "quantization": quantization,
        "format": weights_format,
        "path": path,
        "n_fetched_bytes": sum(file["n_fetched_bytes"] for file in files),
        "files": files,
    }
    return msgspec.json.encode({"schema_version": SCHEMA_VERSION, "pulled": pulled}).decode() + "\n"
