"""Where this user's own folders are: home, configuration, state, cache, as XDG's rules name them.

It must not know what is kept in them.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from launcher.errors import NoHomeError

CACHE_VARIABLE: Final = "LAUNCHER_CACHE_DIR"
"""Names the folder of what can be made again, in place of the user's cache folder."""


def home_dir() -> Path:
    """Return this user's home folder.

    Raises:
        NoHomeError: neither the environment nor the system names one, or its name depends on where a command is given.
    """
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - pathlib's own raises where there is none
    if home.is_absolute():
        return home
    told = os.environ.get("HOME")
    reason = f"user {os.getuid()} has none" if told is None else f"HOME is `{told}`, which is no absolute path"
    message = f"there is no home folder: {reason}"
    raise NoHomeError(message, help="set HOME to a folder of your own: `HOME=/path/to/folder launch ...`")


def xdg_dir(variable: str, fallback: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that one of XDG's variables names, else ``fallback`` in the home folder.

    What is no absolute path counts as not set, as the specification has it.

    Raises:
        NoHomeError: it would be in a home folder, and there is none.
    """
    chosen = environ.get(variable, "")
    return Path(chosen) if chosen.startswith("/") else home_dir() / fallback


def cache_dir() -> Path:
    """Return the folder of what can be made again, of this user or of a service of systemd; it may not exist yet.

    Raises:
        NoHomeError: it would be in a home folder, and there is none.
    """
    if chosen := os.environ.get(CACHE_VARIABLE) or os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]:
        return Path(chosen)
    return xdg_dir("XDG_CACHE_HOME", ".cache") / "launcher"
