"""Act on an instance from another process: stop it, follow its log, start it in the background.

It must not touch an engine while a supervisor lives: it speaks to the supervisor, by signals and by the state on disk.
"""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from msgspec.structs import replace

from launcher.domain import InstanceView, ProcessId, State
from launcher.errors import EXIT_FAILED, EngineFailedError, NotServedError
from launcher.private import open_private, open_regular
from launcher.store import LIVE_STATES, find_instance, is_alive, open_instance, supervisor_log_path
from launcher.supervisor.reclaim import reclaim

_POLL_S: Final = 0.1
_CHUNK: Final = 1 << 16
_KILL_S: Final = 5.0
"""How long a supervisor that is forced has to obey before it is killed: the guard then ends the engine."""


# --- Stopping ---------------------------------------------------------------------------------------------------


def stop(name: str, *, timeout_s: float, force: bool = False) -> bool:
    """End an instance and wait until it is gone; say whether anything was running.

    A dead supervisor's leftovers are ended here. With ``force`` the engine is killed without grace, and a supervisor
    that does not react is killed too.

    Raises:
        NotServedError: no such instance.
        EngineFailedError: it is still ending after ``timeout_s``.
    """
    view = find_instance(name)
    if view.record is not None and view.supervisor_alive:
        _stop_supervisor(view.name, view.record.supervisor, timeout_s, force=force)
        return True
    return _clear(view)


def _stop_supervisor(name: str, supervisor: ProcessId, timeout_s: float, *, force: bool) -> None:
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.pidfd_open(supervisor.pid)
        except ProcessLookupError:
            return
        stack.callback(os.close, descriptor)
        if not is_alive(supervisor):  # checked while the descriptor holds the number: no other process can be hit
            return
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        if force and not _ended(descriptor, _POLL_S):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)  # a second request forces
            if not _ended(descriptor, _KILL_S):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        if not _ended(descriptor, timeout_s):
            message = f"`{name}` is still ending after {timeout_s:.0f} s"
            raise EngineFailedError(message, help=f"wait, or kill it with `launch stop {name} --force`")
    if force:
        _clear(find_instance(name))


def _ended(descriptor: int, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


def _clear(view: InstanceView) -> bool:
    """End what a dead supervisor has left, and mark the instance as stopped."""
    with open_instance(view.name) as instance:
        n_reclaimed = reclaim(instance)
        record = instance.read()
        was_live = record is not None and record.state in LIVE_STATES
        if record is not None and was_live:
            instance.write(
                replace(
                    record, state=State.STOPPED, reason=view.reason, engine=None, guard=None, changed_at=time.time()
                )
            )
    return bool(n_reclaimed) or was_live


# --- Following a log --------------------------------------------------------------------------------------------


def _open_log(path: Path) -> BinaryIO | None:
    try:
        return open(open_regular(path), "rb")  # noqa: PTH123 - a path would follow links
    except FileNotFoundError:
        return None


def last_lines(path: Path, n_lines: int) -> list[str]:
    """Return the last lines of a rotated log, its older half included."""
    older, newer = _open_log(Path(f"{path}.1")), _open_log(path)
    lines: list[bytes] = []
    for file in (older, newer):
        if file is not None:
            with file:
                lines += file.read().splitlines()
    return [line.decode("utf-8", "replace") for line in lines[max(0, len(lines) - n_lines) :]] if n_lines > 0 else []


def follow(name: str, path: Path, n_lines: int) -> Iterator[str]:
    """Yield the last lines of an instance's log and then its new ones, until the instance has ended."""
    file = _open_log(path)
    start = 0 if file is None else os.fstat(file.fileno()).st_size
    yield from last_lines(path, n_lines)
    partial = b""
    if file is not None:
        file.seek(start)
    while True:
        alive = find_instance(name).supervisor_alive  # asked first: what is written before the end is still read
        while file is not None and (chunk := file.read(_CHUNK)):
            *complete, partial = (partial + chunk).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in complete)
        if _was_rotated(file, path):
            if file is not None:
                file.close()
            file = _open_log(path)
            continue
        if not alive:
            break
        time.sleep(_POLL_S)
    if file is not None:
        file.close()


def _was_rotated(file: BinaryIO | None, path: Path) -> bool:
    try:
        now = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    if file is None:
        return True
    then = os.fstat(file.fileno())
    return (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino)


# --- Starting in the background ---------------------------------------------------------------------------------


def spawn_detached(
    argv: Sequence[str], *, name: str, relay: Callable[[str], None], env: Mapping[str, str] | None = None
) -> int:
    """Start a supervisor in a session of its own and wait until its instance is ready or has failed.

    Args:
        argv: The command that serves in the foreground, by absolute path (``sys.executable -m launcher serve ...``).
        name: The instance that it will serve.
        relay: Hears every line that it writes meanwhile, its final error report included.
        env: Its environment; by default this process's own.

    Returns:
        0 once the instance is ready; else the exit code with which the supervisor ended, 1 where it was stopped in
        order before that. An interrupt while waiting stops it.
    """
    log = supervisor_log_path(name)
    with contextlib.ExitStack() as stack:
        output = open_private(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        stack.callback(os.close, output)
        process = subprocess.Popen(  # noqa: S603 - our own program
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=env
        )
        file = stack.enter_context(open(open_regular(log), "rb"))  # noqa: PTH123 - a path would follow links
        try:
            return _await_ready(process, name, file, relay)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
        finally:
            if process.returncode is None:
                process.returncode = 0  # it is meant to outlive this process, which therefore must not wait for it


def _await_ready(process: subprocess.Popen[bytes], name: str, file: BinaryIO, relay: Callable[[str], None]) -> int:
    partial = b""
    while True:
        code = process.poll()
        ready = code is None and _is_ready(name, process.pid)
        *lines, partial = (partial + file.read()).split(b"\n")
        for line in lines:
            relay(line.decode("utf-8", "replace"))
        if ready:
            return 0
        if code is not None:
            return code or EXIT_FAILED
        time.sleep(_POLL_S)


def _is_ready(name: str, pid: int) -> bool:
    try:
        record = find_instance(name).record
    except NotServedError:
        return False
    return record is not None and record.supervisor.pid == pid and record.state is State.READY
