"""Where this program keeps what can be made again.

It must not know what is kept there.
"""

import os
from pathlib import Path
from typing import Final

CACHE_VARIABLE: Final = "LAUNCHER_CACHE_DIR"


def cache_dir() -> Path:
    """Return the folder of what can be made again."""
    if chosen := os.environ.get(CACHE_VARIABLE) or os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]:
        return Path(chosen)
    # What platformdirs does on Linux, without its import.
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".cache") / "launcher"


def models_dir() -> Path:
    """Return the folder that weights from packages are joined in."""
    return cache_dir() / "models"
