"""What the control groups around this process leave it: memory and processor time, by version 1 or 2.

It must not know what else the machine has. Files are read below an injectable root, so that version 2 is tested on
recorded trees where version 1 is mounted. The format of the files: the kernel's ``Documentation/admin-guide/cgroup-v2``
and ``cgroup-v1/memory``.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

_UNLIMITED_BYTES: Final = 1 << 60
"""Version 1 writes "no limit" as the largest number of whole pages, just under 2**63; no machine has an EiB."""

_MAX_COUNT: Final = 1 << 64
_COUNT: Final = re.compile(r"[0-9]{1,20}")
"""What a counter of the kernel's 64 bits can say."""


class CgroupMemory(NamedTuple):
    """The limit that binds, and what counts against it. ``limit_bytes`` of ``None`` means there is none."""

    limit_bytes: int | None = None
    used_bytes: int | None = None


class Membership(NamedTuple):
    """One line of ``/proc/self/cgroup``: the controllers of a hierarchy (none for version 2) and the group in it."""

    controllers: frozenset[str]
    path: PurePosixPath


class Mount(NamedTuple):
    """A mounted hierarchy: which part of it (``root``) is visible where (``mount_point``)."""

    version: int
    controllers: frozenset[str]
    root: PurePosixPath
    mount_point: PurePosixPath


def parse_self_cgroup(text: str) -> tuple[Membership, ...]:
    """Return the groups a process is in, from ``/proc/PID/cgroup``: lines of ``ID:CONTROLLERS:PATH``."""
    memberships = []
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:  # noqa: PLR2004 - the three columns
            memberships.append(Membership(frozenset(filter(None, parts[1].split(","))), PurePosixPath(parts[2])))
    return tuple(memberships)


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Return the mounted hierarchies, from ``/proc/PID/mountinfo`` (proc_pid_mountinfo(5))."""
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        columns, options = before.split(), after.split()
        if not separator or len(columns) < 5 or len(options) < 3 or not options[0].startswith("cgroup"):  # noqa: PLR2004 - columns up to the mount point; type, source, options
            continue
        version = 2 if options[0] == "cgroup2" else 1
        controllers = frozenset(options[2].split(",")) if version == 1 else frozenset[str]()
        mounts.append(Mount(version, controllers, _unescaped(columns[3]), _unescaped(columns[4])))
    return tuple(mounts)


def parse_limit(text: str) -> int | None:
    """Return a memory limit in bytes; ``None`` for ``max``, for version 1's huge number, and for anything unreadable."""
    try:
        limit = int(text)
    except ValueError:
        return None
    return limit if 0 <= limit < _UNLIMITED_BYTES else None


def parse_stat(text: str) -> dict[str, int]:
    """Return the counters of a ``memory.stat``."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and _COUNT.fullmatch(pair[1])}  # noqa: PLR2004 - a pair


def parse_cpu_max(text: str) -> float | None:
    """Return the processors' worth of time that version 2's ``cpu.max`` (``QUOTA PERIOD`` in µs) grants."""
    quota, _, period = text.strip().partition(" ")
    return _share(quota, period or "100000")


def _share(quota: str, period: str) -> float | None:
    try:
        quota_us, period_us = int(quota), int(period)
    except ValueError:
        return None
    return quota_us / period_us if 0 < quota_us < _MAX_COUNT and 0 < period_us < _MAX_COUNT else None


def probe_memory(root: Path = Path("/"), pid: int | None = None) -> CgroupMemory:
    """Return the memory limit that leaves a process least, over its group, all groups above it and both versions.

    That is the level with the smallest difference of limit and use, which need not be the smallest limit: a parent may
    be full of siblings. Use is counted as Kubernetes counts its working set: without the inactive file cache
    (``inactive_file``), which the kernel gives back before it kills anything.
    """
    return read_memory(find_folders(root, "memory", pid))


def read_memory(folders: Iterable[tuple[int, Path]], *, with_cache: bool = True) -> CgroupMemory:
    """Return the same for the folders of `find_folders`, which may be found once and read often.

    Without the cache, active pages of files do not count either: the kernel kills nobody before it has given those back
    too, at the price of reading them again. Of weights that were copied to a GPU they are as good as free.
    """
    binding = find_binding(folders, with_cache=with_cache)
    return CgroupMemory() if binding is None else binding[1]


def find_binding(folders: Iterable[tuple[int, Path]], *, with_cache: bool = True) -> tuple[Path, CgroupMemory] | None:
    """Return the same with the folder of the group whose limit that is; ``None`` where there is no limit."""
    levels = ((folder, _read_level(version, folder, with_cache=with_cache)) for version, folder in folders)
    return min((level for level in levels if level[1].limit_bytes is not None), key=_headroom_bytes, default=None)


def _headroom_bytes(level: tuple[Path, CgroupMemory]) -> int:
    _, memory = level
    return (memory.limit_bytes or 0) - (memory.used_bytes or 0)


def read_members(group: Path) -> frozenset[int]:
    """Return the processes of a group and of all groups below it, as far as this process can see them.

    Those alone are charged to it. Of one that is hidden by a namespace the kernel gives the number 0.
    """
    texts = (_text(Path(folder) / "cgroup.procs") for folder, _, _ in os.walk(group))
    return frozenset(int(pid) for text in texts for pid in text.split() if _COUNT.fullmatch(pid)) - {0}


def probe_cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the processors' worth of time this process may use, the least of all levels; ``None`` without a quota."""
    shares = []
    for version, folder in find_folders(root, "cpu"):
        if version == 1:
            share = _share(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))
        else:
            share = parse_cpu_max(_text(folder / "cpu.max"))
        if share is not None:
            shares.append(share)
    return min(shares, default=None)


def parse_oom_kills(text: str) -> int | None:
    """Return how many processes the kernel killed for memory: ``memory.events``, ``memory.oom_control``, ``vmstat``."""
    return parse_stat(text).get("oom_kill")


def find_oom_counter(root: Path = Path("/"), pid: int | None = None) -> Path | None:
    """Return the file that counts the kernel's kills for memory in the group of a process, by default this one.

    Version 1 counts the group's own processes, version 2 also those of groups below; where there is no group, the whole
    machine's count stands in. To be found while the process lives: read with `read_oom_kills` before and after its end.
    """
    for version, folder in find_folders(root, "memory", pid):
        counter = folder / ("memory.oom_control" if version == 1 else "memory.events")
        if read_oom_kills(counter) is not None:
            return counter
        if version == 1:
            break  # groups above count their own processes only
    machine = root / "proc/vmstat"
    return machine if read_oom_kills(machine) is not None else None


def read_oom_kills(counter: Path) -> int | None:
    """Return the count in a file of `find_oom_counter`; ``None`` where it can no longer be read."""
    return parse_oom_kills(_text(counter))


def _read_level(version: int, folder: Path, *, with_cache: bool) -> CgroupMemory:
    prefix = "total_" if version == 1 else ""
    stat = parse_stat(_text(folder / "memory.stat"))
    if version == 1:
        # The second is the least limit of all ancestors, those included that a container cannot see.
        limits = (_text(folder / "memory.limit_in_bytes"), str(stat.get("hierarchical_memory_limit", "")))
        used = _text(folder / "memory.usage_in_bytes")
    else:
        # Above `memory.high` the kernel throttles and reclaims without end: a server there crawls.
        limits = (_text(folder / "memory.max"), _text(folder / "memory.high"))
        used = _text(folder / "memory.current")
    limit = min((n for n in map(parse_limit, limits) if n is not None), default=None)
    used_bytes = parse_limit(used)
    given_back = stat.get(f"{prefix}inactive_file", 0) + (0 if with_cache else stat.get(f"{prefix}active_file", 0))
    return CgroupMemory(limit, None if used_bytes is None else max(0, used_bytes - given_back))


def find_folders(root: Path, controller: str, pid: int | None = None) -> Iterator[tuple[int, Path]]:
    """Yield version and folder of a process's group, by default this one's, and of every visible group above it."""
    memberships = parse_self_cgroup(_text(root / "proc" / ("self" if pid is None else str(pid)) / "cgroup"))
    for mount in parse_mountinfo(_text(root / "proc/self/mountinfo")):
        if mount.version == 1 and controller not in mount.controllers:
            continue
        for membership in memberships:
            if (controller in membership.controllers) if mount.version == 1 else not membership.controllers:
                top = root / mount.mount_point.relative_to("/")
                below = _below(membership.path, mount.root)
                for group in (below, *below.parents):
                    yield mount.version, top / group


def _below(path: PurePosixPath, mount_root: PurePosixPath) -> PurePosixPath:
    """Return the group relative to what is mounted; its top where the group lies outside, as in some containers."""
    if path.is_relative_to(mount_root) and ".." not in path.parts:
        return path.relative_to(mount_root)
    return PurePosixPath()


def _unescaped(column: str) -> PurePosixPath:
    return PurePosixPath(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), column))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
