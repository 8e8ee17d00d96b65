"""Brings an artifact's weights to a path on this machine, or says that they are not here."""

from launcher.fetch.local import require_weights
from launcher.fetch.places import cache_dir

__all__ = ["cache_dir", "require_weights"]
