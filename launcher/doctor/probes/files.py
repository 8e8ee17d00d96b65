"""Read small files of the kernel and the system, where "not there" is an answer.

It must not know what stands in them.
"""

import os
from pathlib import Path

_MAX_BYTES = 1 << 20


def text_of(path: Path) -> str | None:
    """Return what stands in a file, at most 1 MiB of it; ``None`` where it is not there or cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace").strip()
    except OSError:
        return None


def number_of(path: Path) -> int | None:
    """Return the whole number that stands alone in a file."""
    try:
        return int(text_of(path) or "")
    except ValueError:
        return None


def is_there(path: Path) -> bool:
    """Tell whether there is anything at a path; what may not be looked at is not there for us."""
    return os.path.exists(path)  # noqa: PTH110 - `Path.exists` raises where a folder above is closed to us


def listed(folder: Path, pattern: str) -> list[Path]:
    """Return what of a folder has such a name, sorted; nothing where there is no such folder, or it is closed to us."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []
