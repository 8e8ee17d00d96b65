"""State on disk: which instances are served here, by whom, how each of them fared, and what was measured here.

One folder per instance under the state directory, readable by its owner alone. Whoever holds an instance's lock is
the only writer of its record; everybody may read at any moment, because a file is only ever replaced whole. It must
not know how an engine is started, signalled or judged.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import msgspec

from launcher.domain import (
    SCHEMA_VERSION,
    Calibration,
    InstanceRecord,
    InstanceView,
    Noun,
    ProcessId,
    State,
)
from launcher.errors import AlreadyServedError, NewerStateError, NotServedError, StateError, UsageError
from launcher.folders import xdg_dir
from launcher.private import (
    NotOursError,
    create_private,
    find_open_parent,
    open_private,
    open_regular,
    own_directory,
    read_own,
)
from launcher.state_schema import decode_state

T = TypeVar("T")

_RECORD: Final = "instance.json"
_GUARD_RECORD: Final = re.compile(r"guard-([0-9a-f]{32})\.json")
_LOCK: Final = "lock"
_LOG: Final = "engine.log"
_EVENTS: Final = "events.jsonl"
_SUPERVISOR_LOG: Final = "supervisor.log"
_MAX_NAME: Final = 64
_MAX_RECORD_BYTES: Final = 32 << 20  # a plan with its model's tensor list is below 1 MiB; what is larger is not ours
_LOCK_ATTEMPTS: Final = 20  # `launch stop` and `ps` hold a lock for moments only: assumed below half a second
_LOCK_PAUSE_S: Final = 0.025
_LEAST_RATE: Final = 1e-9  # of rates, speeds and shares: they are divided by
_MOST: Final = 2**63
LIVE_STATES: Final = frozenset({State.STARTING, State.READY, State.DRAINING, State.STOPPING, State.BACKOFF})
"""States that only a living supervisor can be in."""


class GuardRecord(Noun, frozen=True):
    """What the guard writes of itself before it starts an engine.

    Every process of the engine's tree inherits ``token`` in its environment: the next start finds what was left.
    """

    token: str
    guard: ProcessId | None = None
    engine: ProcessId | None = None
    schema_version: int = SCHEMA_VERSION


# --- Processes --------------------------------------------------------------------------------------------------


@cache
def boot_id() -> str:
    """Return the kernel's random name of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def identify(pid: int) -> ProcessId | None:
    """Return the identity of a running process, or ``None`` where there is none (a zombie has ended too)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a Path interns the number
            text = file.read()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return ProcessId(pid=pid, start_time=int(fields[19]), boot_id=boot_id())


def is_alive(process: ProcessId | None) -> bool:
    """Whether this very process still runs: same number, same start, same boot."""
    return process is not None and identify(process.pid) == process


# --- Where ------------------------------------------------------------------------------------------------------


def state_root() -> Path:
    """Return the state directory: ``$LAUNCHER_STATE_DIR``, systemd's ``$STATE_DIRECTORY``, or the XDG one."""
    own = os.environ.get("LAUNCHER_STATE_DIR")
    if own:
        return Path(own).absolute()
    systemd = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if systemd:
        return Path(systemd).resolve()  # of a dynamic user it is a link, made by the service manager
    return xdg_dir("XDG_STATE_HOME", ".local/state") / "launcher"


def instance_name(name: str) -> str:
    """Return the folder name for a profile's name: lower case, safe characters, no path, and unique.

    A name that had to be changed gets eight hex digits of its hash, so that two names never share a folder.
    """
    if not name:
        message = "an instance needs a name"
        raise UsageError(message, help="give a profile's name, for example `launch ps` shows those that are served")
    safe = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip(".-_")[:_MAX_NAME]
    if safe == name:
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{safe or 'instance'}-{digest}"


def _refuse(error: OSError, path: Path | str, act: str) -> NoReturn:
    """Say which folder cannot be used, and what usually helps."""
    helps = {
        errno.ENOSPC: "free some disk space, or set LAUNCHER_STATE_DIR to a folder on another disk",
        errno.EDQUOT: "free some of your disk quota, or set LAUNCHER_STATE_DIR to a folder on another disk",
        errno.EROFS: "set LAUNCHER_STATE_DIR to a folder that can be written",
        errno.ELOOP: "name a real folder of your own, no link; what a system unit serves is ended by "
        "`systemctl stop launch@NAME`, and its state is that unit's",
        errno.ENOTDIR: "remove what stands there: the state directory must be a real folder of your own",
    }
    fallback = "set LAUNCHER_STATE_DIR to a folder of your own that can be written"
    message = f"cannot {act} {path}: {(error.strerror or str(error)).lower()}"
    raise StateError(message, help=helps.get(error.errno or 0, fallback)) from error


def _own_directory(path: Path) -> int:
    """Create the folder for its owner alone where it is missing, and open it; refuse one of somebody else."""
    try:
        return own_directory(path)
    except NotOursError as error:
        message = f"the state directory {path} belongs to user {error.uid}, not to you ({os.geteuid()})"
        raise StateError(message, help="set LAUNCHER_STATE_DIR to a folder of your own") from error
    except OSError as error:
        _refuse(error, path, "use the state directory")


def own_state_folder(*names: str) -> int:
    """Create a folder below the state directory for its owner alone where it is missing, and open it.

    Raises:
        StateError: it cannot be used.
    """
    path = state_root()
    directory = _own_directory(path)
    for name in names:
        os.close(directory)
        path /= name
        directory = _own_directory(path)
    return directory


def find_exposure() -> str | None:
    """Say in words where other users could exchange the whole state directory; ``None`` where they cannot."""
    parent = find_open_parent(state_root())
    if parent is None:
        return None
    return (
        f"every user of this machine can rename what is in {parent}, the state directory among it: `chmod o-w {parent}`"
    )


def replace_file(directory: int, name: str, data: bytes) -> None:
    """Replace a file of the open folder ``directory`` whole: readers see the old bytes or the new ones.

    Raises:
        OSError: the disk is full or cannot be written; the old file then stands and no temporary one is left.
    """
    temporary = f".{name}.{os.getpid()}"
    fd = create_private(temporary, directory=directory)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123 - opened relative to the folder, which a path cannot be
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def read_file(directory: int, name: str) -> bytes | None:
    """Return the bytes of a file of the open folder ``directory``, or ``None`` where there is none.

    Raises:
        OSError: it is no file, a link among others, or cannot be read.
    """
    try:
        fd = open_regular(name, directory=directory)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:  # noqa: PTH123 - opened relative to the folder, which a path cannot be
        # Asked for no more than there is: Python has as much memory ready as is asked for.
        return file.read(min(os.fstat(fd).st_size, _MAX_RECORD_BYTES))


# --- The owner's side -------------------------------------------------------------------------------------------


class Instance:
    """A served instance's folder, held by the one process that may write there."""

    def __init__(self, name: str, path: Path, directory: int) -> None:
        """Hold the open folder ``directory``; the lock lives in the caller's context manager."""
        self.name = name
        self.path = path
        self.directory = directory

    @property
    def log_path(self) -> Path:
        """The engine's captured output; the older half has the suffix ``.1``."""
        return self.path / _LOG

    @property
    def events_path(self) -> Path:
        """The supervisor's events, one JSON object a line."""
        return self.path / _EVENTS

    def guard_path(self, token: str) -> Path:
        """The record of the guard that carries ``token``; it is there while that guard's engine may be alive."""
        return self.path / f"guard-{token}.json"

    def write(self, record: InstanceRecord) -> None:
        """Replace the record; raises ``OSError`` where the disk does not take it."""
        replace_file(self.directory, _RECORD, msgspec.json.encode(record))

    def forget(self) -> None:
        """Remove the record; raises ``OSError`` where the disk does not let go of it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_RECORD, dir_fd=self.directory)

    def read(self) -> InstanceRecord | None:
        """Return the last record; one that cannot be understood is set aside and counts as none.

        Raises:
            NewerStateError: a newer launcher wrote it; it is left as it is.
        """
        return _decode_or_set_aside(self.directory, _RECORD, InstanceRecord)

    def read_guards(self) -> tuple[GuardRecord, ...]:
        """Return what guards wrote whose engines may be alive.

        A record that cannot be understood still names its token, and that suffices to find the engine's processes.
        """
        found = []
        for name in sorted(os.listdir(self.directory)):  # noqa: PTH208 - by descriptor: no other folder can be put there
            match = _GUARD_RECORD.fullmatch(name)
            if match:
                record = None
                with contextlib.suppress(NewerStateError):
                    record = _decode_or_set_aside(self.directory, name, GuardRecord)
                found.append(record or GuardRecord(token=match[1]))
        return tuple(found)

    def forget_guard(self, token: str) -> None:
        """Remove a guard's record once nothing of its engine is left."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"guard-{token}.json", dir_fd=self.directory)


def _decode_or_set_aside(directory: int, name: str, kind: type[T]) -> T | None:
    data = read_file(directory, name)
    if data is None:
        return None
    try:
        return decode_state(data, kind)
    except msgspec.DecodeError:
        os.replace(name, f"{name}.corrupt", src_dir_fd=directory, dst_dir_fd=directory)
        return None


@contextlib.contextmanager
def open_instance(name: str) -> Iterator[Instance]:
    """Take the instance for as long as the block lasts: its folder is made, its lock is held.

    The lock is the kernel's (``flock``): it is gone with the process, however that ends, and neither the guard nor
    the engine inherits it.

    Raises:
        AlreadyServedError: a living supervisor holds it.
        StateError: the state directory cannot be used.
    """
    folder = instance_name(name)
    path = state_root() / "instances" / folder
    directory = own_state_folder("instances", folder)
    try:
        lock = _take_lock(directory, path, folder)
        try:
            yield Instance(folder, path, directory)
        finally:
            os.close(lock)
    finally:
        os.close(directory)


def _take_lock(directory: int, path: Path, name: str) -> int:
    try:
        lock = open_private(_LOCK, os.O_RDWR | os.O_CREAT, directory=directory)
    except OSError as error:
        _refuse(error, path / _LOCK, "open the lock")
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        except OSError as error:
            os.close(lock)
            _refuse(error, path / _LOCK, "lock")
        else:
            return lock
    os.close(lock)
    record = _peek(directory)[0]
    who = f" by process {record.supervisor.pid}" if record is not None else ""
    where = f" at {record.address.host}:{record.address.port}" if record is not None and record.address.port else ""
    message = f"`{name}` is already served{who}{where}"
    raise AlreadyServedError(
        message, help=f"end it with `launch stop {name}`, or look at it with `launch status {name}`"
    )


# --- The reader's side ------------------------------------------------------------------------------------------


def _peek(directory: int) -> tuple[InstanceRecord | None, str | None]:
    """Read the record without changing anything: the record, or why it cannot be had; neither where there is none."""
    try:
        data = read_file(directory, _RECORD)
    except OSError as error:
        return None, f"its record cannot be read: {(error.strerror or str(error)).lower()}"
    if data is None:
        return None, None
    try:
        return decode_state(data, InstanceRecord), None
    except NewerStateError as error:
        return None, f"its record cannot be read: {error}"
    except msgspec.DecodeError as error:
        return None, f"its record cannot be understood: {error}"


def _view(path: Path) -> InstanceView | None:
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        record, reason = _peek(directory)
        if record is None and reason is None:
            return None
    finally:
        os.close(directory)
    log_path = str(path / _LOG)
    if record is None:
        return InstanceView(
            name=path.name, state=State.FAILED, path=str(path), log_path=log_path, supervisor_alive=False, reason=reason
        )
    alive = is_alive(record.supervisor)
    state, reason = record.state, record.reason
    if not alive and state in LIVE_STATES:
        state, reason = State.FAILED, f"its supervisor (process {record.supervisor.pid}) was killed"
    return InstanceView(
        name=path.name,
        state=state,
        path=str(path),
        log_path=log_path,
        supervisor_alive=alive,
        reason=reason,
        record=record,
    )


def list_instances() -> tuple[InstanceView, ...]:
    """Return every instance that this user has ever served here, by name. No state directory: none."""
    try:
        paths = sorted((state_root() / "instances").iterdir())
    except FileNotFoundError:
        return ()
    except OSError as error:
        _refuse(error, state_root(), "read the state directory")
    return tuple(view for view in map(_view, paths) if view is not None)


def find_instance(name: str) -> InstanceView:
    """Return the instance of a profile's name or of a folder's name.

    Raises:
        NotServedError: it was never served here.
    """
    for folder in dict.fromkeys((instance_name(name), name)):
        if "/" not in folder and folder not in {"", ".", ".."}:
            view = _view(state_root() / "instances" / folder)
            if view is not None:
                return view
    known = [view.name for view in list_instances()]
    fix = (
        f"known here: {', '.join(known)}"
        if known
        else f"nothing was served here yet; start it with `launch serve {name}`"
    )
    message = f"`{name}` is not served here"
    raise NotServedError(message, help=fix)


def supervisor_log_path(name: str) -> Path:
    """Return where a detached supervisor's own output goes; its folder is made."""
    folder = instance_name(name)
    os.close(own_state_folder("instances", folder))
    return state_root() / "instances" / folder / _SUPERVISOR_LOG


# --- Measurements -----------------------------------------------------------------------------------------------


def read_calibration(machine: str) -> tuple[Calibration | None, str | None]:
    """Return what was measured on a machine, and a warning where its file could not be understood and is set aside.

    The state directory may be shared by several machines: each has its own file.
    """
    path = state_root() / "calibrations"
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None, None
    try:
        return _read_calibration(directory, machine, path)
    except NewerStateError as error:
        return None, f"the calibration in {path} is not used: {error}"
    except OSError as error:
        return None, f"the calibration in {path} cannot be read: {(error.strerror or str(error)).lower()}"
    finally:
        os.close(directory)


def require_readable_calibration(machine: str) -> None:
    """Fault where what is known of a machine could not be added to, before minutes are spent on measuring.

    Raises:
        NewerStateError: a newer launcher wrote it.
    """
    try:
        data = read_own(state_root() / "calibrations" / f"{machine}.json", _MAX_RECORD_BYTES)
        decode_state(data, Calibration)
    except (OSError, msgspec.DecodeError):
        return  # none yet, or one that will be set aside


def _read_calibration(directory: int, machine: str, path: Path) -> tuple[Calibration | None, str | None]:
    name = f"{machine}.json"
    data = read_file(directory, name)
    if data is None:
        return None, None
    try:
        found = decode_state(data, Calibration)
    except msgspec.DecodeError:
        found = None
    if found is not None and found.machine == machine and is_possible(found):
        return found, None
    os.replace(name, f"{name}.corrupt", src_dir_fd=directory, dst_dir_fd=directory)
    return None, f"the calibration in {path} could not be understood and was set aside as {name}.corrupt"


def is_possible(calibration: Calibration) -> bool:
    """Whether a calibration holds no figure that nothing can have measured."""
    rates = [n for each in calibration.rates for n in (each.bandwidth_bytes_per_s, each.efficiency, each.prompt_flops)]
    speeds = [n for each in calibration.tunings for n in (each.prompt_tps, each.generation_tps, each.n_threads)]
    counts = [
        *(
            n
            for each in calibration.tunings
            for n in (each.n_gpu_layers, each.n_cpu_moe, each.n_prompt, each.n_generated)
        ),
        *(n for each in calibration.corrections for n in (each.planned_bytes, each.missing_bytes, each.limit_bytes)),
    ]
    return all(n is None or _LEAST_RATE < n < _MOST for n in (*rates, *speeds)) and all(
        n is None or 0 <= n < _MOST for n in counts
    )


def write_calibration(calibration: Calibration) -> None:
    """Replace what was measured on a machine; what was learnt there meanwhile by other processes is kept.

    Raises:
        StateError: the state directory cannot be used.
    """

    def lay_over(known: Calibration) -> Calibration:
        return msgspec.structs.replace(calibration, corrections=known.corrections or calibration.corrections)

    update_calibration(calibration.machine, lay_over)


def update_calibration(machine: str, change: Callable[[Calibration], Calibration]) -> Calibration:
    """Change what is known of a machine, while no other process does: what each of them learns is kept.

    A file that cannot be understood is set aside, and learning begins anew.

    Raises:
        StateError: the state directory cannot be used.
        NewerStateError: a newer launcher wrote what is known; it is left as it is.
    """
    path = state_root() / "calibrations"
    directory = own_state_folder("calibrations")
    try:
        lock = open_private(f"{machine}.lock", os.O_RDWR | os.O_CREAT, directory=directory)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held by any process for the time of a small write
            known, _ = _read_calibration(directory, machine, path)
            changed = change(known or Calibration(machine=machine))
            replace_file(directory, f"{machine}.json", msgspec.json.encode(changed))
        finally:
            os.close(lock)
    except OSError as error:
        _refuse(error, path, "write in")
    finally:
        os.close(directory)
    return changed


def forget_calibration(machine: str) -> bool:
    """Remove what is known of a machine; return whether there was anything.

    Raises:
        StateError: the file cannot be removed.
    """
    path = state_root() / "calibrations" / f"{machine}.json"
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        _refuse(error, path, "remove")
    return True


def free_bytes(path: Path) -> int:
    """Return the bytes that this user may still write on the disk of ``path``."""
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize
