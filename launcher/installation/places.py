"""Where a service's units, profiles, state and cache are, and what it finds in its environment.

It must not know what a unit says.
"""

import os
import shlex
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Final

from launcher.errors import UnitError
from launcher.folders import xdg_dir
from launcher.render.systemd import Scope

CACHE_FOLDER: Final = "var/cache/launcher"
_SYSTEM_FOLDER: Final = "etc/systemd/system"
_ALL_USERS_FOLDER: Final = "etc/systemd/user"
_CONFIGURATION_FOLDER: Final = "etc/launcher"
_STATE_FOLDER: Final = "var/lib/launcher"
_NOT_PASSED: Final = frozenset({"LAUNCHER_API_KEY", "HUGGING_FACE_HUB_TOKEN"})


def units_folder(scope: Scope, root: Path, environ: Mapping[str, str]) -> Path:
    """Return where the administrator's units are, or the user's; below another root, those of all users."""
    if scope is Scope.SYSTEM:
        return root / _SYSTEM_FOLDER
    if root != Path("/"):
        return root / _ALL_USERS_FOLDER
    return xdg_dir("XDG_CONFIG_HOME", ".config", environ) / "systemd/user"


def profiles_folder(root: Path) -> Path:
    """Return where a system unit finds the administrator's own profiles."""
    return root / _CONFIGURATION_FOLDER / "profiles"


def see_as_service(environ: MutableMapping[str, str], root: Path, *, cache: str) -> None:
    """Change the environment to what a system unit has: its profiles, its home, its state, and nobody's settings.

    What this user finds in a home folder, in a store there or by a variable, the service would not find. ``cache`` is a folder
    for what is asked meanwhile: the service's own must hold nothing that is not its.
    """
    for name in [name for name in environ if name.startswith(("XDG_", "HF_", "OLLAMA_")) or name in _NOT_PASSED]:
        del environ[name]
    environ["HOME"] = str(root / CACHE_FOLDER)
    environ["HF_HOME"] = str(root / CACHE_FOLDER / "huggingface")
    environ["LAUNCHER_PROFILES"] = str(profiles_folder(root))
    environ["LAUNCHER_STATE_DIR"] = str(root / _STATE_FOLDER)
    environ["LAUNCHER_CACHE_DIR"] = cache


def check_writable(folder: Path, argv: Sequence[str]) -> None:
    """Refuse early what needs rights that this user has not; ``argv`` is the command to try again as root.

    Raises:
        UnitError: the folder cannot be written.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        msg = f"this user cannot write in {existing}"
        raise UnitError(msg, help=f"sudo {shlex.join(argv)}   (or --user, for a unit of your own)")


def running_program() -> tuple[str, ...]:
    """Return the words that start this very launcher, by absolute paths."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return (sys.executable, "-m", "launcher")
    return (str(program.absolute()),)
