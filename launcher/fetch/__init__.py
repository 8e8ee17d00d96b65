"""Brings an artifact's weights to a path on this machine, or says that they are not here."""

from launcher.fetch.local import require_weights

__all__ = ["require_weights"]
