"""Kernel, disks, clock, and the proxies that the environment names. Pure."""

from collections.abc import Iterator
from typing import Final

from launcher.doctor.commands import as_root, first_there
from launcher.doctor.facts import Disk, Facts
from launcher.findings import Area, Evidence, Finding, FindingCode, Severity
from launcher.units import MIB, format_bytes

_STRICT: Final = 2
_FULL_BYTES: Final = MIB
"""Below this not even the records of an instance can be written: what a start refuses at."""
_LOW_BYTES: Final = 512 * MIB
"""Assumed: logs, records and what pip unpacks; weights need more, which the plan of a model counts."""
_REMOTE: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs", "lustre", "virtiofs"}
)
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_BUSY_SHARE: Final = 1.0
_SLOW_LOAD_S: Final = 180.0
_DAY_S: Final = 86400.0
_SPARES_LOOPBACK: Final = frozenset({"*", "127.0.0.1", "127.0.0.0/8"})
"""The name `localhost` spares that name alone; what is served is told by its number."""


def check_kernel(facts: Facts) -> Iterator[Finding]:
    """Yield settings and load that plans do not foresee."""
    kernel = facts.kernel
    if kernel.overcommit == _STRICT and kernel.commit_limit_bytes is not None and kernel.committed_bytes is not None:
        left = max(0, kernel.commit_limit_bytes - kernel.committed_bytes)
        available = facts.inventory.host.available_bytes
        yield Finding(
            code=FindingCode.STRICT_OVERCOMMIT,
            severity=Severity.WARNING if left < available else Severity.NOTE,
            area=Area.KERNEL,
            text=f"the kernel counts every byte that is asked for: {format_bytes(left)} can still be promised, "
            f"while plans count on {format_bytes(available)}",
            evidence=(
                Evidence(source="/proc/sys/vm/overcommit_memory", value=str(kernel.overcommit)),
                Evidence(
                    source="/proc/meminfo",
                    value=f"CommitLimit {format_bytes(kernel.commit_limit_bytes)}, Committed_AS {format_bytes(kernel.committed_bytes)}",
                ),
            ),
            help="let the kernel promise more than there is, as is usual",
            command=as_root(facts, "sysctl", "vm.overcommit_memory=0"),
        )
    load, n_cpu = kernel.load_1min, facts.inventory.host.n_cpu
    if load is not None and load > _BUSY_SHARE * n_cpu + 1:
        yield Finding(
            code=FindingCode.BUSY_PROCESSORS,
            severity=Severity.NOTE,
            area=Area.KERNEL,
            text=f"{load:.1f} tasks compete for {n_cpu} processors: speeds will be below those predicted",
            evidence=(Evidence(source="/proc/loadavg", value=f"{load:.2f}"),),
            command=first_there(facts, ("ps", "aux", "--sort=-%cpu")),
        )


def sum_up_kernel(facts: Facts) -> tuple[str, tuple[Evidence, ...]] | None:
    """Say what was read of the kernel."""
    kernel = facts.kernel
    evidence = []
    if kernel.overcommit is not None:
        evidence.append(Evidence(source="/proc/sys/vm/overcommit_memory", value=str(kernel.overcommit)))
    if kernel.huge_pages is not None:
        evidence.append(Evidence(source="/sys/kernel/mm/transparent_hugepage/enabled", value=kernel.huge_pages))
    if kernel.load_1min is not None:
        evidence.append(Evidence(source="/proc/loadavg", value=f"{kernel.load_1min:.2f}"))
    return ("the kernel promises memory as plans expect", tuple(evidence)) if evidence else None


# --- Disks ------------------------------------------------------------------------------------------------------


def check_disks(facts: Facts) -> Iterator[Finding]:
    """Yield what keeps state or weights from being written, or makes them slow to read."""
    for disk in facts.disks:
        yield from _of_disk(facts, disk)
    yield from _slow_weights(facts)


def _where(disk: Disk) -> Evidence:
    kind = f", {disk.fs_type}" if disk.fs_type else ""
    return Evidence(
        source=f"{disk.path}{kind}",
        value=f"{format_bytes(disk.free_bytes)} of {format_bytes(disk.total_bytes)} free, for {disk.wanted}",
    )


def _of_disk(facts: Facts, disk: Disk) -> Iterator[Finding]:
    if disk.needs_write and (disk.is_read_only or not disk.is_writable):
        why = "its file system is read-only" if disk.is_read_only else f"{facts.user.name} may not write there"
        yield Finding(
            code=FindingCode.DISK_READ_ONLY,
            # Weights that are there already may well be on a disk that nobody writes.
            severity=Severity.FAULT if disk.purpose == "state" else Severity.WARNING,
            area=Area.DISK,
            text=f"{disk.purpose} cannot be written below {disk.path}: {why}",
            evidence=(_where(disk), Evidence(source=f"access to {disk.path}", value=why)),
            help=_elsewhere(disk),
            command=first_there(facts, ("ls", "-ld", disk.path)),
        )
        return
    no_files = disk.n_free_files is not None and disk.n_free_files == 0
    if disk.needs_write and (disk.free_bytes < _FULL_BYTES or no_files):
        lacking = "no room for another file (inodes)" if no_files else f"{format_bytes(disk.free_bytes)} free"
        yield Finding(
            code=FindingCode.DISK_FULL,
            severity=Severity.FAULT,
            area=Area.DISK,
            text=f"the disk for {disk.purpose} is full: {lacking}",
            evidence=(_where(disk), Evidence(source=f"statvfs({disk.path})", value=lacking)),
            help=f"free some space, or {_elsewhere(disk)}",
            command=first_there(facts, ("df", "-ih" if no_files else "-h", disk.path)),
        )
    elif disk.needs_write and disk.free_bytes < _LOW_BYTES:
        yield Finding(
            code=FindingCode.DISK_LOW,
            severity=Severity.WARNING,
            area=Area.DISK,
            text=f"the disk for {disk.purpose} has {format_bytes(disk.free_bytes)} left",
            evidence=(_where(disk),),
            help=f"free some space, or {_elsewhere(disk)}",
            command=first_there(facts, ("df", "-h", disk.path)),
        )
    if disk.fs_type in _REMOTE:
        yield Finding(
            code=FindingCode.DISK_REMOTE,
            severity=Severity.NOTE,
            area=Area.DISK,
            text=f"{disk.purpose} is on a network file system ({disk.fs_type}): loading takes as long as the network does",
            evidence=(_where(disk),),
        )
    elif disk.fs_type in _IN_MEMORY and disk.purpose == "weights":
        yield Finding(
            code=FindingCode.DISK_LOW,
            severity=Severity.NOTE,
            area=Area.DISK,
            text=f"weights would be kept in memory ({disk.fs_type}): what is stored there is missing for engines",
            evidence=(_where(disk),),
            help=_elsewhere(disk),
        )


def _elsewhere(disk: Disk) -> str:
    variable = {"state": "LAUNCHER_STATE_DIR", "weights": "HF_HUB_CACHE"}.get(disk.purpose, "LAUNCHER_CACHE_DIR")
    return f"set {variable} to a folder of your own on another disk"


def _slow_weights(facts: Facts) -> Iterator[Finding]:
    """Say what was measured of the weights' disk where loading them would take minutes."""
    for file in facts.model.files if facts.model is not None else ():
        if not file.read_bytes or not file.read_s or not file.size_bytes:
            continue
        rate = file.read_bytes / file.read_s
        load_s = file.size_bytes / rate
        if load_s > _SLOW_LOAD_S:
            yield Finding(
                code=FindingCode.DISK_SLOW,
                severity=Severity.WARNING,
                area=Area.DISK,
                text=f"at {rate / MIB:.0f} MiB/s the {format_bytes(file.size_bytes)} of weights take {load_s / 60:.0f} min to read",
                evidence=(
                    Evidence(source=f"reading {file.path}", value=f"{file.read_bytes} bytes in {file.read_s:.2f} s"),
                ),
                help="move the weights to a faster disk",
                command=first_there(facts, ("df", "-h", file.path)),
            )


def sum_up_disks(facts: Facts) -> tuple[str, tuple[Evidence, ...]] | None:
    """Say what is free where."""
    if not facts.disks:
        return None
    words = ", ".join(f"{disk.purpose} {format_bytes(disk.free_bytes)}" for disk in facts.disks)
    return f"disks can be written; free: {words}", tuple(_where(disk) for disk in facts.disks)


# --- Clock, network ---------------------------------------------------------------------------------------------


def check_clock(facts: Facts) -> Iterator[Finding]:
    """Yield a clock that is wrong for certain: behind this program's own files by more than a day."""
    clock = facts.clock
    if clock is None:
        return
    behind_s = clock.installed_at - clock.now
    if behind_s > _DAY_S:
        yield Finding(
            code=FindingCode.CLOCK_BEHIND,
            severity=Severity.WARNING,
            area=Area.CLOCK,
            text=f"the clock is {behind_s / _DAY_S:.0f} days behind this program's own files: certificates may be refused",
            evidence=(
                Evidence(source="the clock, seconds since 1970", value=f"{clock.now:.0f}"),
                Evidence(source="a file of this program, last written", value=f"{clock.installed_at:.0f}"),
            ),
            help="set the clock, or let it be kept",
            command=as_root(facts, "timedatectl", "set-ntp", "true"),
        )
    elif clock.is_synchronised is False and facts.drivers.container is None:
        yield Finding(
            code=FindingCode.CLOCK_FREE,
            severity=Severity.NOTE,
            area=Area.CLOCK,
            text="the kernel does not know of anybody who keeps the clock right",
            evidence=(Evidence(source="adjtimex(2)", value="TIME_ERROR: not synchronised"),),
            command=first_there(facts, ("timedatectl",)),
        )


def sum_up_clock(facts: Facts) -> tuple[str, tuple[Evidence, ...]] | None:
    """Say that the clock is kept."""
    if facts.clock is None or facts.clock.is_synchronised is None:
        return None
    told = "synchronised" if facts.clock.is_synchronised else "not synchronised, in a container"
    return "the clock is not behind", (Evidence(source="adjtimex(2)", value=told),)


def check_network(facts: Facts) -> Iterator[Finding]:
    """Yield a proxy that clients would use for the endpoint on loopback, too."""
    asked = [proxy for proxy in facts.network.proxies if proxy.variable.lower() in {"http_proxy", "all_proxy"}]
    spared = {*(facts.network.no_proxy or "").replace(",", " ").split()}
    if not asked or spared & _SPARES_LOOPBACK:
        return
    yield Finding(
        code=FindingCode.PROXY_FOR_LOOPBACK,
        severity=Severity.WARNING,
        area=Area.NETWORK,
        text="clients started from here ask a proxy for http://127.0.0.1, and so do not reach what is served",
        evidence=(
            *(Evidence(source=f"${proxy.variable}", value=proxy.value) for proxy in asked),
            Evidence(source="$no_proxy", value=facts.network.no_proxy or "not set"),
        ),
        help=f"spare loopback: `export no_proxy={'$no_proxy,' if spared else ''}127.0.0.1,localhost`",
    )


def sum_up_network(facts: Facts) -> tuple[str, tuple[Evidence, ...]] | None:
    """Say what the environment names."""
    if not facts.network.proxies:
        return "no proxy is named", (Evidence(source="$http_proxy, $https_proxy, $all_proxy", value="not set"),)
    return "a proxy is named, loopback is spared", tuple(
        Evidence(source=f"${proxy.variable}", value=proxy.value) for proxy in facts.network.proxies
    )
