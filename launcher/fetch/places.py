"""Where on this machine weights are kept: a folder of this program's cache, the hub's cache.

It must not know what is kept there.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from launcher.folders import cache_dir, home_dir

_TRUE: Final = frozenset({"1", "ON", "YES", "TRUE"})


def models_dir() -> Path:
    """Return the folder that weights from packages are joined in, and those from addresses downloaded to."""
    return cache_dir() / "models"


def hub_home_dir(environ: Mapping[str, str] = os.environ, home: Path | None = None) -> Path:
    """Return the folder of the hub's client: its cache and its token are there, unless they are told to be elsewhere."""
    chosen = environ.get("HF_HOME")
    if not chosen:
        cache = environ.get("XDG_CACHE_HOME") or (home_dir() if home is None else home) / ".cache"
        chosen = f"{cache}/huggingface"
    return expand_path(chosen)


def hub_cache_dir(environ: Mapping[str, str] = os.environ, home: Path | None = None) -> Path:
    """Return the hub's cache, as its client finds it: weights of repositories are downloaded there."""
    chosen = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    return expand_path(chosen) if chosen else hub_home_dir(environ, home) / "hub"


def expand_path(text: str) -> Path:
    """Return the path that a variable of the hub's client means, which may begin with ``~`` and name other variables."""
    return Path(os.path.expanduser(os.path.expandvars(text)))  # noqa: PTH111  as the client does, without a fault


def is_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether ``HF_HUB_OFFLINE`` says that no hub is to be asked."""
    return is_true(environ, "HF_HUB_OFFLINE")


def is_true(environ: Mapping[str, str], name: str) -> bool:
    """Tell whether a variable of the hub's client is set to what it takes for yes."""
    return environ.get(name, "").strip().upper() in _TRUE
