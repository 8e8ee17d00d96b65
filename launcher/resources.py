"""Where files are that are named without their folder: those that ship with the program, and those in a home.

It must not know what is in them.
"""

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent


def from_home(name: str) -> Path:
    """Return the path that a name means, `~` and `~USER` read as a shell reads them; those of an unknown user stay as they are."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib's own raises where the user is unknown


def data_dir(name: str) -> Path:
    """Return the shipped folder ``name`` (``profiles`` or ``systemd``)."""
    installed = _PACKAGE / "_data" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
