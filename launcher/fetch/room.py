"""Makes sure that what is to come finds room on its disk.

It must not know what comes, nor from where.
"""

import os
from pathlib import Path
from typing import Final

from launcher.errors import DiskFullError
from launcher.fetch.places import models_dir
from launcher.folders import CACHE_VARIABLE
from launcher.units import GIB, MIB, format_bytes

MIN_MARGIN_BYTES: Final = 16 * MIB
_MAX_MARGIN_BYTES: Final = GIB
_MARGIN: Final = 20
"""A twentieth of what is to come stays free beyond it, within these bounds. Assumed."""


def where_room_is(folder: Path) -> str:
    """Say how what goes to a folder finds room: this program's own and the hub's cache are each named by a variable."""
    variable = CACHE_VARIABLE if folder.is_relative_to(models_dir()) else "HF_HUB_CACHE"
    return f"free some space, or name a folder on another disk in ${variable}"


def require_room(n_bytes: int, folder: Path, *, n_files: int = 1) -> None:
    """Make sure that so many bytes find room in a folder, which need not be there, and some stay free.

    Raises:
        DiskFullError: they do not.
    """
    if n_bytes <= 0:
        return
    margin = min(max(n_bytes // _MARGIN, MIN_MARGIN_BYTES), _MAX_MARGIN_BYTES)
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())  # it will be on the same disk
    info = os.statvfs(existing)
    free = info.f_bavail * info.f_frsize
    if n_bytes + margin > free:
        files = "1 file" if n_files == 1 else f"{n_files} files"
        msg = f"{format_bytes(n_bytes)} are to come ({files}), and {format_bytes(free)} are free in {existing}"
        details = (f"{format_bytes(margin)} of it stay free on purpose",)
        raise DiskFullError(msg, help=where_room_is(folder), details=details)
