"""Put unit files where systemd finds them, and take them away again.

What a unit says is made elsewhere (`render.systemd`). It starts, stops and enables nothing, and never touches a file that a
person has written or changed, unless it is told to.
"""

import contextlib
import grp
import os
import shlex
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from launcher.domain import Artifact, Plan
from launcher.errors import UnitError
from launcher.inventory.proc import run_bounded
from launcher.render.systemd import Scope, Units, drop_in_folder, is_unchanged, unit_name

_SYSTEM_FOLDER: Final = "etc/systemd/system"
_ALL_USERS_FOLDER: Final = "etc/systemd/user"
_CONFIGURATION_FOLDER: Final = "etc/launcher"
_CACHE_FOLDER: Final = "var/cache/launcher"
_STATE_FOLDER: Final = "var/lib/launcher"
_NOT_PASSED: Final = frozenset({"LAUNCHER_API_KEY", "HUGGING_FACE_HUB_TOKEN"})
_HIDDEN: Final = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108 - named, not used
"""What a system unit does not see: ``ProtectHome=tmpfs`` and ``PrivateTmp=``."""
_DEFAULT_PATH: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""What systemd searches for programs (systemd.exec(5))."""
_SYSTEMCTL_S: Final = 5.0
_MAX_FILE: Final = 1 << 20
_AT_REST: Final = frozenset({"inactive", "failed", ""})


class Change(NamedTuple):
    """What became of one file: ``written``, ``replaced``, ``unchanged``, ``removed`` or ``kept``."""

    path: Path
    act: str


# --- Where -------------------------------------------------------------------------------------------------------------


def units_folder(scope: Scope, root: Path, environ: Mapping[str, str]) -> Path:
    """Return where the administrator's units are, or the user's; below another root, those of all users."""
    if scope is Scope.SYSTEM:
        return root / _SYSTEM_FOLDER
    if root != Path("/"):
        return root / _ALL_USERS_FOLDER
    base = environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".config") / "systemd/user"


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
    environ["HOME"] = str(root / _CACHE_FOLDER)
    environ["HF_HOME"] = str(root / _CACHE_FOLDER / "huggingface")
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


# --- What the service needs to see ---------------------------------------------------------------------------------------


def needed_paths(program: str, plans: Sequence[Plan], profile_source: str, root: Path) -> tuple[Path, ...]:
    """Return what a service reads that serves one of the plans: the launcher, its Python, the engine, the profile, the weights.

    What is in the service's own cache it reads anyway.
    """
    package = Path(__file__).resolve().parent
    engines = [plan.install.argv[0] for plan in plans if plan.install is not None and plan.install.argv]
    paths = [Path(program), Path(sys.prefix), Path(sys.base_prefix)]
    if not any(package.is_relative_to(path.resolve()) for path in paths[1:]):
        paths.append(package.parent)  # a checkout: profiles are beside the package
    paths += [Path(word).parent for word in engines if word.startswith("/")]
    paths += [Path(profile_source)] if profile_source else []
    paths += [path for plan in plans for path in _weights_paths(plan.artifact)]
    own = root / _CACHE_FOLDER
    return tuple(dict.fromkeys(path.absolute() for path in paths if path.exists() and not path.is_relative_to(own)))


def _weights_paths(artifact: Artifact) -> list[Path]:
    """Return an artifact's one file, or the folder of its several."""
    if artifact.local_path is None:
        return []  # of a package, which is part of the launcher's Python
    path = Path(artifact.local_path).expanduser().absolute()
    return [path.parent] if path.is_file() and len(artifact.files) > 1 else [path]


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


# --- Files -------------------------------------------------------------------------------------------------------------


def install(units: Units, folder: Path, *, overwrite: bool) -> tuple[Change, ...]:
    """Put the files in place, each whole; what an earlier installation left over is removed.

    All are written under other names before the first is renamed: a full disk leaves everything as it was.

    Raises:
        UnitError: a person's file is in the way, or the folder cannot be written.
    """
    wanted = {folder / file.name: file.text for file in units.files}
    instance_folder = folder / f"{units.unit}.d"
    left_over = [path for path in _files(instance_folder) if path not in wanted and _is_ours(path)]
    _refuse_foreign(wanted, overwrite=overwrite)
    acts = {path: _act(path, text) for path, text in wanted.items()}
    _replace_all({path: wanted[path] for path, act in acts.items() if act != "unchanged"})
    return (*(Change(path, act) for path, act in acts.items()), *(_remove(path) for path in left_over))


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
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
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


# --- What systemd makes of it ---------------------------------------------------------------------------------------------


class Standing(NamedTuple):
    """How a unit stands: whether it runs, and whether it is started by itself."""

    is_active: bool
    is_enabled: bool


def look_up(instance: str, scope: Scope, folder: Path, *, ask: bool) -> Standing:
    """Return how the unit stands; where no service manager answers, or none is to be asked, by its links on disk."""
    unit = unit_name(instance)
    is_enabled = any(folder.glob(f"*.wants/{unit}"))
    if not ask:
        return Standing(is_active=False, is_enabled=is_enabled)
    words = ("systemctl", *(("--user",) if scope is Scope.USER else ()), "show", "--property=ActiveState", "--value")
    answer = run_bounded((*words, unit), timeout_s=_SYSTEMCTL_S)
    state = answer.stdout.strip() if answer.ok else ""
    return Standing(is_active=state not in _AT_REST, is_enabled=is_enabled)
