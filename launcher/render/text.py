"""Faults and notices as the lines that a person reads."""

from launcher.errors import LauncherError
from launcher.units import format_bytes


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
