"""The state directory as it lies there: whose it is, who may read it, what was left in it.

It must not create, move or end anything: an ordinary read of the state sets aside what it cannot understand, this one does
not.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from launcher.doctor.facts import Leftover, State, StateFolder
from launcher.doctor.probes.files import listed
from launcher.errors import StateError
from launcher.store import GuardRecord, is_alive, list_instances, state_root

_MAX_FILES: Final = 2000
_MAX_RECORD_BYTES: Final = 1 << 20


def probe_state(find_marked: Callable[[str], list[int]]) -> State:
    """Return what is in the state directory; ``find_marked`` names the living processes that carry a guard's token."""
    root = state_root()
    folder = _folder(root)
    if folder.error is not None:
        return State(folder=folder)
    try:
        instances = list_instances()
    except StateError as error:
        return State(folder=msgspec.structs.replace(folder, error=_words(error.__cause__ or error)))
    return State(
        folder=folder,
        instances=instances,
        leftovers=tuple(
            found
            for path in listed(root, "instances/*/guard-*.json")[:_MAX_FILES]
            if (found := _leftover(path, find_marked)) is not None
        ),
        corrupt=tuple(str(path) for path in listed(root, "**/*.corrupt")[:_MAX_FILES]),
    )


def _folder(root: Path) -> StateFolder:
    try:
        info = root.lstat()
    except FileNotFoundError:
        return StateFolder(path=str(root))
    except OSError as error:
        return StateFolder(path=str(root), error=_words(error))
    if not stat.S_ISDIR(info.st_mode) and not stat.S_ISLNK(info.st_mode):
        return StateFolder(path=str(root), error="it is no folder")
    opened = [path for path in _files(root) if _is_open(path)]
    return StateFolder(
        path=str(root),
        owner_uid=info.st_uid,
        mode=stat.S_IMODE(info.st_mode),
        is_link=stat.S_ISLNK(info.st_mode),
        n_open_files=len(opened),
        open_file=str(opened[0]) if opened else None,
    )


def _words(error: BaseException) -> str:
    """Return the system's own words, without the path: a finding names it once."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def _files(root: Path) -> list[Path]:
    found: list[Path] = []
    for folder, _, names in os.walk(root, followlinks=False):
        found += [Path(folder, name) for name in names]
        if len(found) > _MAX_FILES:
            break
    return found[:_MAX_FILES]


def _is_open(path: Path) -> bool:
    """Tell whether others than the owner may read or write a file."""
    try:
        info = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(info.st_mode) and bool(stat.S_IMODE(info.st_mode) & 0o066)


def _leftover(path: Path, find_marked: Callable[[str], list[int]]) -> Leftover | None:
    """Return what a guard's record stands for; ``None`` where it is gone by now."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_RECORD_BYTES)
    except OSError:
        return None
    token = path.stem.removeprefix("guard-")
    try:
        record = msgspec.json.decode(data, type=GuardRecord)
    except (msgspec.DecodeError, UnicodeDecodeError):
        record = GuardRecord(token=token)
    return Leftover(
        instance=path.parent.name,
        path=str(path),
        guard_alive=is_alive(record.guard),
        pids=tuple(sorted(find_marked(token))),
    )
