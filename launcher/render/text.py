"""Faults as the lines that a person reads."""

from launcher.errors import LauncherError


def render_error(error: LauncherError) -> str:
    """Return ``error[code]: message``, its details indented, and its ``help:`` last."""
    lines = [f"error[{error.code}]: {error.message}"]
    lines += [f"  {detail}" for detail in error.details]
    if error.help:
        lines.append(f"help: {error.help}")
    return "\n".join(lines) + "\n"
