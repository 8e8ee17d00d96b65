"""Puts unit files where systemd finds them, or takes them away again: each whole, and none of a person's.

It must not know what a unit says, nor whether it runs.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from launcher.errors import UnitError
from launcher.render.systemd import Units, drop_in_folder, is_unchanged, unit_name

_MAX_FILE: Final = 1 << 20


class Change(NamedTuple):
    """What became of one file: ``written``, ``replaced``, ``unchanged``, ``removed`` or ``kept``."""

    path: Path
    act: str


def install(units: Units, folder: Path, *, overwrite: bool) -> tuple[Change, ...]:
    """Put the files in place, each whole; what an earlier installation left over is removed, or kept if a person changed it.

    All are written under other names before the first is renamed: a full disk leaves everything as it was.

    Raises:
        UnitError: a person's file is in the way, or the folder cannot be written.
    """
    wanted = {folder / file.name: file.text for file in units.files}
    instance_folder = folder / f"{units.unit}.d"
    left_over = [path for path in _files(instance_folder) if path not in wanted and _has_mark(path)]
    _refuse_foreign(wanted, overwrite=overwrite)
    acts = {path: _act(path, text) for path, text in wanted.items()}
    _replace_all({path: wanted[path] for path, act in acts.items() if act != "unchanged"})
    gone = (_remove(path) if overwrite or _is_ours(path) else Change(path, "kept") for path in left_over)
    return (*(Change(path, act) for path, act in acts.items()), *gone)


def uninstall(instance: str, folder: Path, *, overwrite: bool) -> tuple[Change, ...]:
    """Remove what `install` wrote for an instance, and the template with the last of them; nothing else.

    Raises:
        UnitError: a file was changed by a person, or cannot be removed.
    """
    instance_folder = folder / drop_in_folder(instance)
    found = [path for path in _files(instance_folder) if overwrite or _has_mark(path)]
    others = [each for each in folder.glob("launch@*.service.d") if each != instance_folder and any(_files(each))]
    links = [link for link in folder.glob("*.wants/launch@*.service") if link.name != unit_name(instance)]
    template = folder / "launch@.service"
    if not others and not links and (_has_mark(template) or (overwrite and template.is_file())):
        found.append(template)
    changed = [path for path in found if not _is_ours(path)]
    if changed and not overwrite:
        msg = f"{changed[0]} was changed after it was written"
        raise UnitError(msg, help="keep your changes elsewhere, then remove it with --overwrite")
    changes = [_remove(path) for path in found]
    with contextlib.suppress(OSError):
        instance_folder.rmdir()  # what a person has put there keeps it
    return (*changes, *(Change(path, "kept") for path in _files(instance_folder)))


def _refuse_foreign(wanted: Mapping[Path, str], *, overwrite: bool) -> None:
    foreign = [path for path, text in wanted.items() if os.path.lexists(path) and not _is_same(path, text)]
    foreign = [path for path in foreign if not _is_ours(path)]
    if not foreign or overwrite:
        return
    msg = f"{foreign[0]} was written or changed by somebody else"
    help_ = f"put your own settings into {foreign[0].parent if foreign[0].parent.suffix == '.d' else foreign[0].name + '.d'}/90-local.conf, or replace the file with --overwrite"
    raise UnitError(msg, help=help_, details=tuple(str(path) for path in foreign[1:]))


def _is_same(path: Path, text: str) -> bool:
    return _text(path) == text


def _is_ours(path: Path) -> bool:
    return is_unchanged(_text(path) or "")


def _has_mark(path: Path) -> bool:
    return (_text(path) or "").startswith("# Written by `launch systemd install`")


def _text(path: Path) -> str | None:
    """Return a file's text; ``None`` where there is none, or what stands there is a link or no file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:  # noqa: PTH123 - opened without following a link
            return file.read(_MAX_FILE).decode("utf-8", "surrogateescape")
    except OSError:
        return None


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _act(path: Path, text: str) -> str:
    if _is_same(path, text):
        return "unchanged"
    return "replaced" if os.path.lexists(path) else "written"


def _replace_all(texts: Mapping[Path, str]) -> None:
    """Write each file whole, readable for everybody."""
    staged: dict[Path, Path] = {}
    path = Path()
    try:
        for path, text in texts.items():
            staged[path] = path.with_name(f".{path.name}.{os.getpid()}")
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True)
                path.parent.chmod(0o755)  # whatever the umask, which is strict here
            fd = os.open(staged[path], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            with open(fd, "w", encoding="utf-8") as file:  # noqa: PTH123 - opened as a new file
                os.fchmod(fd, 0o644)
                file.write(text)
                file.flush()
                os.fsync(fd)
        for path, temporary in staged.items():
            temporary.replace(path)
    except OSError as error:
        _refuse(path, "written", error)
    finally:
        for temporary in staged.values():
            with contextlib.suppress(OSError):
                temporary.unlink()


def _remove(path: Path) -> Change:
    try:
        path.unlink()
    except OSError as error:
        _refuse(path, "removed", error)
    return Change(path, "removed")


def _refuse(path: Path, act: str, error: OSError) -> None:
    msg = f"{path} cannot be {act}: {(error.strerror or str(error)).lower()}"
    raise UnitError(msg, help="check space and permissions") from error
