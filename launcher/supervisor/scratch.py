"""What an engine leaves behind outside its own folders: a temporary folder of its own, the shared memory it had mapped.

vLLM puts sockets into the system's temporary folder and blocks into ``/dev/shm``, and removes neither when it is killed (the
sockets never). It must not know engines, nor when one is started or gone.
"""

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from launcher.domain import Command
from launcher.supervisor.guard import descendants

_MOST_BYTES: Final = 70
"""Of the folder's path: the kernel takes 107 bytes for a socket's (``sun_path``), of which vLLM uses 37 for a name."""
_SHARED: Final = Path("/dev/shm")  # noqa: S108 - where the kernel has POSIX shared memory
_OF_PYTHON: Final = "psm_"
"""How names of ``multiprocessing.shared_memory`` begin: nothing else that an engine maps there is removed."""


class Scratch:
    """The scratch of one instance's engines, one engine after the other."""

    def __init__(self, instance_path: Path) -> None:
        """Nothing is made yet; ``instance_path`` is private to the user and to one supervisor at a time."""
        self._folder = place(instance_path)
        self._mapped: set[str] = set()
        self._since_s = time.time()

    def open(self, command: Command) -> dict[str, str]:
        """Make an empty folder for an engine that wants one; return what its environment then needs.

        Where none can be made the engine has the system's: it is not what should keep it from starting.
        """
        if command.temp_env is None:
            return {}
        self._clear_folder()
        self._since_s = time.time()
        try:
            self._folder.mkdir(mode=0o700, parents=True)
        except OSError:
            return {}
        return {command.temp_env: str(self._folder)}

    def note(self, root: int | None) -> None:
        """Remember what shared memory the processes below ``root`` have mapped, to be removed once all of them are gone."""
        if root is not None:
            self._mapped |= mapped_shared(descendants(root))

    def clear(self) -> None:
        """Remove what the engine left, now that no process of it lives."""
        self._clear_folder()
        for name in self._mapped:
            with contextlib.suppress(OSError):
                found = (_SHARED / name).lstat()
                if found.st_uid == os.geteuid() and found.st_ctime >= self._since_s - 1.0:
                    (_SHARED / name).unlink()
        self._mapped.clear()

    def _clear_folder(self) -> None:
        if _is_ours(self._folder):
            shutil.rmtree(self._folder, ignore_errors=True)


def place(instance_path: Path) -> Path:
    """Return where an instance's engines may have their folder: below its own, or with a short name where that is too long.

    The same instance always has the same, so that what a killed supervisor left is found by the next one.
    """
    inside = instance_path / "tmp"
    if len(os.fsencode(inside)) <= _MOST_BYTES:
        return inside
    mark = hashlib.sha256(os.fsencode(instance_path)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"launch-{os.geteuid()}-{mark}"


def mapped_shared(pids: Iterable[int]) -> set[str]:
    """Return the names in ``/dev/shm``, of Python's making, that the processes have mapped; of one that is gone none."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
                path = line.partition("/")[2]
                name = path.removeprefix("dev/shm/")
                if name != path and name.startswith(_OF_PYTHON) and "/" not in name and " " not in name:
                    found.add(name)
    return found


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder, no link to one, that belongs to us and that nobody else can write into."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
