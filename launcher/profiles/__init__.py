"""Turns deployment profiles, TOML files that people write, into the noun ``Profile``.

A profile holds values only: it runs no command, passes no raw flag to an engine, and names no file outside the folders
it is told of. This room must not know of machines, plans or engines' arguments, nor read weights.
"""

from launcher.profiles.local import is_local, name_quantization, profile_for_artifacts, profile_for_weights
from launcher.profiles.search import load_all, load_profile, load_smaller

__all__ = [
    "is_local",
    "load_all",
    "load_profile",
    "load_smaller",
    "name_quantization",
    "profile_for_artifacts",
    "profile_for_weights",
]
