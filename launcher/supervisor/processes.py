"""Read from ``/proc`` what an engine's processes do: their work, their listening sockets, their token.

It must not know what follows from it, apart from `kill_marked`, the one act here: ending processes that carry a token.
"""

import contextlib
import os
import signal
import time
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Final

from launcher.domain import DeviceProcess, Noun, ProcessId
from launcher.inventory.cgroup import find_oom_counter, read_oom_kills
from launcher.inventory.text import printable
from launcher.store import is_alive
from launcher.supervisor.guard import below, descendants

TOKEN_VARIABLE: Final = "LAUNCHER_GUARD_TOKEN"  # noqa: S105 - no password, a mark
"""In the environment of every process of an engine's tree; not a secret."""
_LISTEN: Final = "0A"  # TCP_LISTEN, include/net/tcp_states.h
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_ROUND_S: Final = 0.01


class Activity(Noun, frozen=True):
    """What a tree of processes has done so far (CPU seconds, bytes read) and holds now (resident bytes)."""

    cpu_s: float = 0.0
    read_bytes: int = 0
    resident_bytes: int = 0


def _read(path: str) -> bytes:
    """Read a file of ``/proc`` by a plain name.

    A ``Path`` interns each part of its name, and numbers of processes have no end: looked at each second they fill the
    interpreter's table of such words, which then is made anew and larger, 1 to 2 MiB at a time.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - see above
        return file.read()


def measure_tree(root: int) -> Activity:
    """Sum the activity of all processes below ``root``; what cannot be read counts as nothing."""
    cpu_ticks = read_bytes = resident_pages = 0
    for pid in descendants(root):
        with contextlib.suppress(OSError, ValueError):
            fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
            cpu_ticks += int(fields[11]) + int(fields[12])
            resident_pages += int(fields[21])
            counters = dict(line.split(b":") for line in _read(f"/proc/{pid}/io").splitlines())
            read_bytes += int(counters[b"rchar"])
    return Activity(cpu_s=cpu_ticks / _TICKS_PER_S, read_bytes=read_bytes, resident_bytes=resident_pages * _PAGE_BYTES)


class Survey(Noun, frozen=True):
    """All processes that can be seen, at one moment: those below one of them, and the largest by resident bytes.

    The largest are those of all processes, then those of the ones that were asked for beside.
    """

    below: frozenset[int] = frozenset()
    largest: tuple[DeviceProcess, ...] = ()


def survey(root: int | None, n_largest: int = 32, *, among: Container[int] = ()) -> Survey:
    """Read every process once; ``root`` is the one whose descendants are wanted, if any.

    The ``n_largest`` of all are told, and as many of those ``among``, who may all be small beside the others.
    """
    parents: dict[int, int] = {}
    found: list[DeviceProcess] = []
    for pid in all_pids():
        with contextlib.suppress(OSError, ValueError):
            before, _, after = _read(f"/proc/{pid}/stat").rpartition(b")")
            fields = after.split()
            parents[pid] = int(fields[1])
            name = printable(before.partition(b"(")[2].decode(errors="replace"))
            found.append(DeviceProcess(pid=pid, name=name, used_bytes=int(fields[21]) * _PAGE_BYTES))
    found.sort(key=lambda process: -(process.used_bytes or 0))
    ours = frozenset() if root is None else frozenset(below(root, parents))
    inside = [process for process in found if process.pid in among]
    return Survey(below=ours, largest=tuple(dict.fromkeys((*found[:n_largest], *inside[:n_largest]))))


def resident_bytes(pids: Iterable[int]) -> int:
    """Sum what the processes hold in memory, shared pages counted in each; one that is gone counts as nothing."""
    n_pages = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            n_pages += int(_read(f"/proc/{pid}/statm").split()[1])
    return n_pages * _PAGE_BYTES


class OomKills(Noun, frozen=True):
    """The kernel's count of kills for memory around one engine, as it was when that was started."""

    counter: str | None = None
    n_before: int = 0

    @classmethod
    def of(cls, pid: int) -> "OomKills":
        """Find the count of a living process's group, and read it."""
        counter = find_oom_counter(pid=pid)
        n_before = read_oom_kills(counter) if counter is not None else None
        return cls() if counter is None or n_before is None else cls(counter=str(counter), n_before=n_before)

    def rise(self) -> int | None:
        """Return by how much the count has risen since; ``None`` where there is none."""
        now = None if self.counter is None else read_oom_kills(Path(self.counter))
        return None if now is None else now - self.n_before


# --- Sockets ----------------------------------------------------------------------------------------------------


def parse_listeners(text: str, port: int) -> frozenset[int]:
    """Return the inodes of the sockets that listen on ``port``, from the text of ``/proc/net/tcp`` or ``tcp6``."""
    found = set()
    for line in text.splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
            found.add(int(fields[9]))
    return frozenset(found)


def probe_listeners(port: int) -> frozenset[int]:
    """Return the inodes of the sockets of this network namespace that listen on ``port``."""
    found: frozenset[int] = frozenset()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            found |= parse_listeners(_read(f"/proc/net/{name}").decode("ascii"), port)
    return found


def socket_owners(inodes: frozenset[int], pids: Iterable[int]) -> tuple[frozenset[int], bool]:
    """Return which of the processes hold one of the sockets, and whether all of them could be looked into."""
    links = {f"socket:[{inode}]" for inode in inodes}
    owners = set()
    complete = True
    for pid in pids:
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 - see _read
        except PermissionError:
            complete = False
            continue
        except OSError:
            continue
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") in links:  # noqa: PTH115 - see _read
                    owners.add(pid)
                    break
    return frozenset(owners), complete


def all_pids() -> list[int]:
    """Return every process that this one can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - see _read


def name_of(pid: int) -> str:
    """Return a process's short name and number, for messages."""
    try:
        name = _read(f"/proc/{pid}/comm").decode("utf-8", "replace").strip()
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({name})"


def who_listens(port: int) -> str | None:
    """Return the name of a process that listens on ``port``; ``None`` where none does or it is another user's."""
    owners, _ = socket_owners(probe_listeners(port), all_pids())
    return name_of(min(owners)) if owners else None


# --- The token --------------------------------------------------------------------------------------------------


def _carries(pid: int, mark: bytes) -> bool:
    try:
        return mark in _read(f"/proc/{pid}/environ").split(b"\0")
    except OSError:
        return False


def find_marked(token: str) -> list[int]:
    """Return the living processes whose environment carries ``token``: an engine's tree, however it scattered."""
    mark = f"{TOKEN_VARIABLE}={token}".encode("ascii")
    return [pid for pid in all_pids() if _carries(pid, mark)]


def kill_marked(token: str, *, root: ProcessId | None = None, patience_s: float = 10.0) -> tuple[int, ...]:
    """Kill every process that carries ``token`` or is ``root``, and everything below them, until none is left.

    Each marked process is held by a descriptor while it is checked and signalled, so that a number that was given
    anew is never hit.

    Returns:
        The processes that ``patience_s`` seconds of SIGKILL have not ended; usually none.
    """
    give_up = time.monotonic() + patience_s
    mark = f"{TOKEN_VARIABLE}={token}".encode("ascii")
    while True:
        marked = find_marked(token)
        bare = [root.pid] if root is not None and root.pid not in marked and is_alive(root) else []
        if not marked and not bare:
            return ()
        if time.monotonic() > give_up:
            return (*bare, *marked)
        # Below them, those that cleaned their environment: killed while their parents still name them.
        children = dict.fromkeys(child for top in (*bare, *marked) for child in descendants(top))
        for pid in (*bare, *(pid for pid in children if pid not in marked)):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for pid in marked:
            _kill_if_marked(pid, mark)
        time.sleep(_ROUND_S)


def _kill_if_marked(pid: int, mark: bytes) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if _carries(pid, mark):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)
