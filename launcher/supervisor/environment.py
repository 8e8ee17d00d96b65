"""What an engine finds in its environment: all of the launcher's that is no secret, and what its command lays over it.

It must not know how an engine is started, nor keep any key.
"""

import os
from collections.abc import Mapping

from launcher.domain import Command
from launcher.inventory.environment import inherited, secrets_of


def environment_of(command: Command) -> dict[str, str]:
    """Return what the command's engine inherits, with what the command lays over it."""
    return {**inherited(), **command.env}


def known_secrets(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return what no log may hold: the secrets of an engine's environment, and the launcher's own."""
    return secrets_of({**os.environ, **env})


def key_of(command: Command, env: Mapping[str, str]) -> str | None:
    """Return the key that the engine wants of every request; ``None`` where it wants none."""
    return env.get(command.api_key_env) if command.api_key_env else None
