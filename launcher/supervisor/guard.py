"""Hold one engine's whole process tree, so that it ends when the supervisor says so or is gone.

A program of its own, started as ``python -I -S guard.py ...``: single-threaded, standard library only, nothing of the
package, so that it starts at once and stays small. It must not know models, readiness, plans or restarts.

It is the subreaper of everything below it: a process that forks twice or leaves its session comes back as the guard's
child and is found by walking parents in ``/proc``. (``/proc/PID/task/TID/children`` would be quicker, but kernels
without CONFIG_PROC_CHILDREN lack it and it may skip children while others exit; one pass over ``/proc/*/stat`` is
right everywhere and costs a few milliseconds.)

The control pipe carries one start request, then lines: ``terminate SECONDS`` (SIGTERM to all, SIGKILL after the
grace) and ``kill``. Its end of file means that the supervisor is gone. The status pipe carries JSON lines:
``spawned``, ``spawn-failed``, ``record-failed``, ``exited``, ``gone``; ``gone`` is the last, and follows always.

The guard lives in its own session: a terminal's Ctrl-C and hang-up do not reach it, and it ignores SIGINT and SIGHUP
should somebody send them. SIGTERM to the guard means "end this engine", as from the supervisor.
"""

# pathlib would cost this process a good part of its memory and of its start:
# ruff: noqa: PTH105, PTH108, PTH123, PTH208

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence

PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h
POLL_TERM_S = 0.05  # between two looks at the tree while it may still end by itself
TERM_AGAIN_SHARE = 0.3  # of the grace: vLLM hears no first SIGTERM while it loads, and ends at a second
POLL_KILL_S = 0.01  # between two rounds of SIGKILL
STUCK_S = 10.0  # a process that SIGKILL has not ended by then hangs in the kernel: report it and leave
EOF = b"\n"  # no beginning of a command holds a newline
INFINITY = float("inf")
RESET_SIGNALS = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGQUIT,
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGCHLD,
)


# --- Facts from /proc -------------------------------------------------------------------------------------------


def read_stat(pid: int) -> tuple[int, int, int] | None:
    """Return a process's parent, session and start time (clock ticks since boot), or ``None`` where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[1]), int(fields[3]), int(fields[19])


def descendants(root: int) -> list[int]:
    """Return every process below ``root``, parents before their children, zombies included."""
    stats = {int(entry): read_stat(int(entry)) for entry in os.listdir("/proc") if entry.isdecimal()}
    return below(root, {pid: stat[0] for pid, stat in stats.items() if stat is not None})


def below(root: int, parents: Mapping[int, int]) -> list[int]:
    """Return every process below ``root``, parents before their children; ``parents`` names each one's parent."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    order: list[int] = []
    queue = [root]
    while queue:
        found = children.pop(queue.pop(), [])
        order += found
        queue += found
    return order


def become_subreaper() -> None:
    """Let every orphan below this process become its child, instead of init's."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def boot_id() -> str:
    """Return the kernel's random name of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


# --- What it writes ---------------------------------------------------------------------------------------------


def report(fd: int, event: str, **facts: int) -> None:
    """Write one status line; a supervisor that is gone hears nothing, and nothing is lost by that."""
    fields = "".join(f',"{name}":{value}' for name, value in facts.items())
    try:
        os.write(fd, f'{{"event":"{event}"{fields}}}\n'.encode("ascii"))
    except OSError:
        return


def _identity(pid: int) -> str:
    found = read_stat(pid)
    start = 0 if found is None else found[2]
    return f'{{"pid":{pid},"start_time":{start},"boot_id":"{boot_id()}"}}'


def remove(path: str) -> None:
    """Remove a file, where there is one."""
    try:
        os.unlink(path)
    except OSError:
        return


def write_record(path: str, token: str, engine: int | None) -> None:
    """Replace the record that the next start reads when both supervisor and guard were killed."""
    described = "null" if engine is None else _identity(engine)
    text = f'{{"schema_version":1,"token":"{token}","guard":{_identity(os.getpid())},"engine":{described}}}'
    remove(f"{path}.new")  # whatever stands there is not written into, nor waited for
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)
    os.replace(f"{path}.new", path)


# --- The start request ------------------------------------------------------------------------------------------


def encode_request(argv: Sequence[str], env: Mapping[str, str]) -> bytes:
    """Write the start request: three counts on a line, then arguments and ``NAME=value`` pairs, NUL between them."""
    fields = [os.fsencode(part) for part in argv]
    fields += [os.fsencode(name) + b"=" + os.fsencode(value) for name, value in env.items()]
    blob = b"\0".join(fields)
    return f"{len(argv)} {len(env)} {len(blob)}\n".encode("ascii") + blob


def read_request(fd: int) -> tuple[list[bytes], dict[bytes, bytes]] | None:
    """Read the start request; ``None`` when the supervisor ended before it was complete."""
    head = b""
    while not head.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte:
            return None
        head += byte
    n_argv, n_env, n_bytes = map(int, head.split())
    blob = b""
    while len(blob) < n_bytes:
        chunk = os.read(fd, n_bytes - len(blob))
        if not chunk:
            return None
        blob += chunk
    fields = blob.split(b"\0")
    pairs = [field.partition(b"=") for field in fields[n_argv : n_argv + n_env]]
    return fields[:n_argv], {name: value for name, _, value in pairs}


def hung_up(fd: int) -> bool:
    """Whether the other end of the control pipe is closed: an engine started now would be nobody's."""
    poller = select.poll()
    poller.register(fd, 0)
    return bool(poller.poll(0))


def spawn(argv: list[bytes], env: dict[bytes, bytes], out: int, err: int) -> int:
    """Start the engine in a session and process group of its own, with default signals, and return its number."""
    start = os.posix_spawn if b"/" in argv[0] else os.posix_spawnp
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, out, 1),
        (os.POSIX_SPAWN_DUP2, err, 2),
    ]
    return start(argv[0], argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=RESET_SIGNALS)


# --- The loop ---------------------------------------------------------------------------------------------------


def signal_all(pids: list[int], *signals: signal.Signals) -> None:
    """Send the signals to each process that is still there and ours."""
    for pid in pids:
        for number in signals:
            try:
                os.kill(pid, number)
            except OSError:
                break


def reap(engine: int, status: int) -> bool:
    """Collect every ended child, report the engine's own end, and say whether that was among them."""
    ended = False
    while True:
        try:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        if pid == engine:
            ended = True
            if os.WIFSIGNALED(wait_status):
                report(status, "exited", signal=os.WTERMSIG(wait_status))
            else:
                report(status, "exited", code=os.WEXITSTATUS(wait_status))


def clear_tree(engine: int, status: int) -> tuple[int, int]:
    """Kill what is left below the guard, round by round, until nothing is; return how many were killed, and survive."""
    n_killed = 0
    give_up = time.monotonic() + STUCK_S
    while left := descendants(os.getpid()):
        if time.monotonic() > give_up:
            break
        n_killed = max(n_killed, len(left))
        signal_all(left, signal.SIGKILL)
        time.sleep(POLL_KILL_S)
        reap(engine, status)
    return n_killed, len(left)


def hear(control: int, unfinished: bytes, orphan_grace_s: float) -> tuple[float | None, bytes]:
    """Read commands: the shortest grace they give, if any, and the beginning of one that is not complete, or `EOF`."""
    heard = os.read(control, 4096)
    if not heard:
        return orphan_grace_s, EOF
    *lines, rest = (unfinished + heard).split(b"\n")
    graces = [float(line.split()[1]) if line.startswith(b"terminate") else 0.0 for line in lines]
    return min(graces, default=None), rest


def listen(
    ready: list[int], control: int, wakeup: int, unfinished: bytes, orphan_grace_s: float
) -> tuple[float | None, bytes]:
    """Take what a signal or the supervisor says: the grace that the engine has from now on, if any; and as `hear`."""
    grace_s: float | None = None
    if wakeup in ready and signal.SIGTERM in os.read(wakeup, 4096):
        grace_s = orphan_grace_s
    return hear(control, unfinished, orphan_grace_s) if control in ready else (grace_s, unfinished)


def watch(engine: int, control: int, wakeup: int, status: int, orphan_grace_s: float) -> None:
    """Sleep until the engine ends, the supervisor speaks or is gone; return when the tree may be killed."""
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(wakeup, select.POLLIN)
    kill_at: float | None = None  # set from the first SIGTERM on
    again_at = INFINITY
    unfinished = b""
    while True:
        ready = [fd for fd, _ in poller.poll(None if kill_at is None else POLL_TERM_S * 1000)]
        grace_s, unfinished = listen(ready, control, wakeup, unfinished, orphan_grace_s)
        if control in ready and unfinished == EOF:
            poller.unregister(control)
        engine_ended = reap(engine, status)
        if grace_s is not None:
            if kill_at is None:
                # SIGCONT too: a stopped process would not see the SIGTERM.
                signal_all(descendants(os.getpid()), signal.SIGTERM, signal.SIGCONT)
                again_at = time.monotonic() + grace_s * TERM_AGAIN_SHARE
            kill_at = min(time.monotonic() + grace_s, kill_at or INFINITY)
        if kill_at is None:
            if engine_ended:
                return  # it ended by itself: what is left has no one to answer to
        elif time.monotonic() >= kill_at or not descendants(os.getpid()):
            return
        elif time.monotonic() >= again_at:
            signal_all(descendants(os.getpid()), signal.SIGTERM)
            again_at = INFINITY


def main(argv: list[str]) -> int:
    """Run the guard: CONTROL_FD STATUS_FD OUT_FD ERR_FD RECORD_PATH TOKEN ORPHAN_GRACE_S."""
    control, status, out, err = map(int, argv[:4])
    record, token = argv[4:6]
    for fd in (control, status, out, err):
        os.set_inheritable(fd, False)  # noqa: FBT003 - the standard library's signature
    become_subreaper()
    wakeup, wakeup_in = os.pipe()
    os.set_blocking(wakeup_in, False)
    signal.set_wakeup_fd(wakeup_in, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # a handler must exist for the wakeup descriptor to be written

    request = read_request(control)
    if request is None or hung_up(control):
        return 0
    try:
        write_record(record, token, None)  # before the engine exists: no moment at which it cannot be found
    except OSError as error:
        report(status, "record-failed", errno=error.errno or 0)
        report(status, "gone", killed=0, survivors=0)
        return 1
    try:
        engine = spawn(*request, out, err)
    except OSError as error:
        report(status, "spawn-failed", errno=error.errno or 0)
        report(status, "gone", killed=0, survivors=0)
        os.unlink(record)
        return 1
    os.close(out)
    os.close(err)
    found = read_stat(engine)
    report(status, "spawned", pid=engine, start_time=0 if found is None else found[2])
    try:
        write_record(record, token, engine)
    except OSError:
        found = None  # the disk filled up just now: the first record's token still finds the engine
    watch(engine, control, wakeup, status, float(argv[6]))
    n_killed, n_survivors = clear_tree(engine, status)
    if n_survivors == 0:
        os.unlink(record)
    report(status, "gone", killed=n_killed, survivors=n_survivors)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
