"""What a service reads, which of that it would not see, and what its user could not read.

It must not change anything, nor know how a path is written in a unit.
"""

import contextlib
import grp
import os
import shlex
import stat
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import launcher
from launcher.domain import Artifact, Plan
from launcher.installation.places import CACHE_FOLDER

_HIDDEN: Final = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108 - named, not used
"""What a system unit does not see: ``ProtectHome=tmpfs`` and ``PrivateTmp=``."""
_DEFAULT_PATH: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""What systemd searches for programs (systemd.exec(5))."""


def needed_paths(program: str, plans: Sequence[Plan], profile_source: str, root: Path) -> tuple[Path, ...]:
    """Return what a service reads that serves one of the plans: the launcher, its Python, the engine, the profile, the weights.

    What is in the service's own cache it reads anyway.
    """
    package = Path(launcher.__file__).resolve().parent
    engines = [plan.install.argv[0] for plan in plans if plan.install is not None and plan.install.argv]
    paths = [Path(program), Path(sys.prefix), Path(sys.base_prefix)]
    if not any(package.is_relative_to(path.resolve()) for path in paths[1:]):
        paths.append(package.parent)  # a checkout: profiles are beside the package
    paths += [Path(word).parent for word in engines if word.startswith("/")]
    paths += _profile_paths(Path(profile_source)) if profile_source else []
    paths += [path for plan in plans for path in _weights_paths(plan.artifact)]
    own = root / CACHE_FOLDER
    return tuple(dict.fromkeys(path.absolute() for path in paths if path.exists() and not path.is_relative_to(own)))


def _profile_paths(source: Path) -> list[Path]:
    """Return a profile's file, and the model's description beside it that it names."""
    try:
        spec = tomllib.loads(source.read_text(encoding="utf-8")).get("model", {}).get("spec")
    except (OSError, ValueError, AttributeError):
        return [source]  # of a file of weights, or one that is no profile
    return [source, source.parent / spec] if isinstance(spec, str) else [source]


def _weights_paths(artifact: Artifact) -> list[Path]:
    """Return an artifact's one file, or the folder of its several with those that its links lead to."""
    if artifact.local_path is None:
        return []  # of a package, which is part of the launcher's Python
    path = Path(artifact.local_path).absolute()
    if path.is_file() and len(artifact.files) <= 1:
        return [path]
    folder = path if path.is_dir() else path.parent
    return [folder, *dict.fromkeys(entry.resolve().parent for entry in folder.iterdir() if entry.is_symlink())]


def hidden_paths(paths: Iterable[Path]) -> tuple[str, ...]:
    """Return which of them a system unit does not see, each with what it is a link to, and none inside another."""
    found = sorted({each for path in paths for each in (path, path.resolve()) if _is_hidden(each)})
    outer: list[Path] = []
    for path in found:
        if not any(path.is_relative_to(other) for other in outer):
            outer.append(path)
    return tuple(map(str, outer))


def _is_hidden(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in _HIDDEN)


def find_unreadable(paths: Iterable[Path], groups: Sequence[str]) -> tuple[str, ...]:
    """Return, a line for each, what a dynamic user that is in ``groups`` could not read."""
    gids = {grp.getgrnam(group).gr_gid for group in groups}
    return tuple(dict.fromkeys(line for path in paths for line in _lacks(path.resolve(), gids)))


def _lacks(path: Path, gids: set[int]) -> Iterator[str]:
    parents = () if _is_hidden(path) else tuple(reversed(path.parents))  # what is bound needs none of its parents
    for parent in parents:
        if not _grants(parent.stat(), stat.S_IXOTH, gids):
            yield f"{parent} is closed to others: chmod o+x {shlex.quote(str(parent))}"
            return
    if path.is_dir():
        if not _grants(path.stat(), stat.S_IROTH | stat.S_IXOTH, gids):
            yield f"{path} is closed to others: chmod o+rx {shlex.quote(str(path))}"
            return
        for entry in path.iterdir():
            if entry.is_file() and entry.suffix in {".gguf", ".safetensors"}:
                yield from _lacks_file(entry, gids)
    else:
        yield from _lacks_file(path, gids)


def _lacks_file(path: Path, gids: set[int]) -> Iterator[str]:
    if not _grants(path.stat(), stat.S_IROTH, gids):
        yield f"{path} cannot be read by others: chmod o+r {shlex.quote(str(path))}"


def _grants(info: os.stat_result, wanted: int, gids: set[int]) -> bool:
    is_theirs = info.st_gid in gids and (info.st_mode >> 3) & wanted == wanted
    return info.st_mode & wanted == wanted or is_theirs


def search_path(plan: Plan, environ: Mapping[str, str]) -> str | None:
    """Return the ``PATH`` by which a service finds the plan's engine, where systemd's own does not lead to it."""
    engine = plan.install.argv[0] if plan.install is not None and plan.install.argv else ""
    folder = str(Path(engine).parent)
    if not engine.startswith("/") or folder in _DEFAULT_PATH or folder not in environ.get("PATH", "").split(":"):
        return None
    return ":".join((folder, *_DEFAULT_PATH))


def gpu_groups() -> tuple[str, ...]:
    """Return the groups that may use this machine's GPUs, where not everybody may."""
    nodes = [Path("/dev/kfd"), *Path("/dev/dri").glob("renderD*"), *Path("/dev").glob("nvidia*")]
    names = []
    for node in nodes:
        with contextlib.suppress(OSError, KeyError):
            info = node.stat()
            is_open = info.st_mode & 0o006 == 0o006  # noqa: PLR2004 - everybody may read and write
            if stat.S_ISCHR(info.st_mode) and not is_open and info.st_gid:
                names.append(grp.getgrgid(info.st_gid).gr_name)
    return tuple(dict.fromkeys(names))
