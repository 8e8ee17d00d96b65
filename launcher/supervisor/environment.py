"""What an engine finds in its environment: all of the launcher's but the keys, and the ways to them, that are not for it.

It must not know how an engine is started, nor keep any key.
"""

import os
from collections.abc import Mapping
from typing import Final

from launcher.domain import Command

_NOT_THE_ENGINES: Final = frozenset(
    {"LAUNCHER_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "CREDENTIALS_DIRECTORY"}
)


def inherited() -> dict[str, str]:
    """Return what any engine or worker inherits."""
    return {name: value for name, value in os.environ.items() if name not in _NOT_THE_ENGINES}


def environment_of(command: Command) -> dict[str, str]:
    """Return what the command's engine inherits, with what the command lays over it."""
    return {**inherited(), **command.env}


def key_of(command: Command, env: Mapping[str, str]) -> str | None:
    """Return the key that the engine wants of every request; ``None`` where it wants none."""
    return env.get(command.api_key_env) if command.api_key_env else None
