"""Memory, who else holds it, and the limits that this process and its engines are under. Pure."""

from collections.abc import Iterator
from typing import Final

from launcher.doctor.commands import first_there
from launcher.doctor.facts import Facts
from launcher.domain import Device, DeviceProcess, Engine
from launcher.findings import Area, Evidence, Finding, FindingCode, Severity
from launcher.inventory.devices import is_software
from launcher.units import GIB, format_bytes

_LOW_SHARE: Final = 0.1
_FULL_SHARE: Final = 0.9
_SWAPPED_SHARE: Final = 0.5
_STALLED_SHARE: Final = 0.1
_HELD_BYTES: Final = GIB
_MIN_OPEN_FILES: Final = 512
"""The gateway has one per client and one per forwarded request, beside some dozens of its own."""


def check_memory(facts: Facts) -> Iterator[Finding]:
    """Yield who holds memory, and what makes it short."""
    host = facts.inventory.host
    if not host.total_bytes:
        return  # nobody could look
    available = Evidence(
        source="/proc/meminfo", value=f"MemTotal {format_bytes(host.total_bytes)}, MemAvailable {format_bytes(host.available_bytes)}"
    )  # fmt: skip
    if host.available_bytes < _LOW_SHARE * host.total_bytes:
        yield Finding(
            code=FindingCode.MEMORY_LOW,
            severity=Severity.WARNING,
            area=Area.MEMORY,
            text=f"of the host's memory {format_bytes(host.available_bytes)} of {format_bytes(host.total_bytes)} is left",
            evidence=(available, *_holders(facts)),
            help="end what is not needed, or ask for less",
            command=first_there(facts, ("ps", "aux", "--sort=-rss"), ("free", "-h")),
        )
    elif facts.holders:
        held = sum(process.used_bytes or 0 for process in facts.holders)
        yield Finding(
            code=FindingCode.MEMORY_USERS,
            severity=Severity.NOTE,
            area=Area.MEMORY,
            text=f"programs hold {format_bytes(held)} of the host's memory; "
            f"{format_bytes(host.available_bytes)} is available",
            evidence=(available, *_holders(facts)),
        )
    yield from _swap(facts)
    yield from _stalls(facts)
    for device in facts.inventory.devices:
        if not is_software(device.description):
            yield from _device_users(facts, device)


def sum_up_memory(facts: Facts) -> tuple[str, tuple[Evidence, ...]] | None:
    """Say how much memory is available."""
    host = facts.inventory.host
    if not host.total_bytes:
        return None
    swap = f"swap {format_bytes(host.swap_total_bytes)}" if host.swap_total_bytes else "no swap"
    return f"{format_bytes(host.available_bytes)} of the host's memory is available", (
        Evidence(source="/proc/meminfo", value=f"MemTotal {format_bytes(host.total_bytes)}, {swap}"),
    )


def _holders(facts: Facts) -> Iterator[Evidence]:
    ours = _served(facts)
    return (_holder(process, is_served=process.pid in ours) for process in facts.holders)


def _holder(process: DeviceProcess, *, is_served: bool) -> Evidence:
    held = "an unknown part" if process.used_bytes is None else format_bytes(process.used_bytes)
    served = ", and is served here" if is_served else ""
    return Evidence(source=f"process {process.pid} ({process.name or 'unnamed'})", value=f"holds {held}{served}")


def _swap(facts: Facts) -> Iterator[Finding]:
    host = facts.inventory.host
    used = host.swap_total_bytes - host.swap_free_bytes
    if host.swap_total_bytes and used > _SWAPPED_SHARE * host.swap_total_bytes:
        yield Finding(
            code=FindingCode.SWAP_IN_USE,
            severity=Severity.WARNING,
            area=Area.MEMORY,
            text=f"{format_bytes(used)} of {format_bytes(host.swap_total_bytes)} of swap is in use: memory was short here",
            evidence=(Evidence(source="/proc/meminfo", value=f"SwapFree {format_bytes(host.swap_free_bytes)}"),),
            help="plans count no swap; an engine whose pages are swapped out answers very slowly",
            command=first_there(facts, ("vmstat", "1", "5"), ("free", "-h")),
        )


def _stalls(facts: Facts) -> Iterator[Finding]:
    some = facts.kernel.stall_some
    if some is not None and some > _STALLED_SHARE:
        yield Finding(
            code=FindingCode.MEMORY_STALLS,
            severity=Severity.WARNING,
            area=Area.MEMORY,
            text=f"programs waited for memory in {some:.0%} of the last ten seconds",
            evidence=(Evidence(source=facts.kernel.stall_source, value=f"some avg10={100 * some:.2f}"),),
            help="end what is not needed before a model is loaded",
            command=first_there(facts, ("ps", "aux", "--sort=-rss")),
        )


def _device_users(facts: Facts, device: Device) -> Iterator[Finding]:
    """Name who holds a GPU's memory; where the driver names nobody, say that."""
    if device.free_bytes is None:
        return
    used = device.total_bytes - device.free_bytes
    if not device.processes and used < _HELD_BYTES:
        return
    ours = _served(facts)
    named = [_holder(process, is_served=process.pid in ours) for process in device.processes]
    if not named:
        named = [Evidence(source=device.name, value="its driver names no process: another user's, or in a container")]
    foreign = [process for process in device.processes if process.pid not in ours]
    mostly = used > device.total_bytes / 2 and (foreign or not device.processes)
    yield Finding(
        code=FindingCode.GPU_MEMORY_USERS,
        severity=Severity.WARNING if mostly else Severity.NOTE,
        area=Area.MEMORY,
        text=f"{format_bytes(used)} of {device.name}'s {format_bytes(device.total_bytes)} is held already"
        + ("" if foreign or not device.processes else ", by what is served here"),
        evidence=(
            Evidence(source=f"{device.name} ({device.description})", value=f"{format_bytes(device.free_bytes)} free"),
            *named,
        ),
        help="end what is not needed: plans use only what is free" if mostly else None,
        command=("ps", "-o", "pid,user,etime,args", "-p", ",".join(str(process.pid) for process in foreign))
        if mostly and foreign and "ps" in facts.programs
        else (),
    )


def _served(facts: Facts) -> set[int]:
    """Return the processes of what is served here: engines, and all that carries the token of a guard that lives."""
    if facts.state is None:
        return set()
    records = [view.record for view in facts.state.instances if view.supervisor_alive]
    engines = {record.engine.pid for record in records if record is not None and record.engine is not None}
    return engines | {pid for left in facts.state.leftovers if left.guard_alive for pid in left.pids}


# --- Limits -----------------------------------------------------------------------------------------------------


def check_limits(facts: Facts) -> Iterator[Finding]:
    """Yield what bounds this process, and every engine that it would start, below what the machine has."""
    host = facts.inventory.host
    limit, used = host.cgroup_limit_bytes, host.cgroup_used_bytes or 0
    if limit is not None and limit < host.total_bytes:
        full = used > _FULL_SHARE * limit
        yield Finding(
            code=FindingCode.CGROUP_FULL if full else FindingCode.CGROUP_LIMIT,
            severity=Severity.WARNING if full else Severity.NOTE,
            area=Area.LIMITS,
            text=f"the control group allows {format_bytes(limit)} of memory, {format_bytes(used)} is used; "
            f"the machine has {format_bytes(host.total_bytes)}",
            evidence=(Evidence(source=_limit_file(facts, limit), value=f"limit {limit}, used {used}"),),
            help="raise the limit of the session, unit or container (`MemoryMax=`, `--memory`), or serve outside of it"
            if full
            else None,
        )
    if host.cpu_quota is not None:
        yield Finding(
            code=FindingCode.CPU_QUOTA,
            severity=Severity.NOTE,
            area=Area.LIMITS,
            text=f"the control group allows {host.cpu_quota:g} processors' worth of time",
            evidence=(Evidence(source="the cpu controller of this process's group", value=f"{host.cpu_quota:g}"),),
        )
    yield from _address_space(facts)
    n_files = facts.limits.n_open_files
    if n_files is not None and n_files < _MIN_OPEN_FILES:
        yield Finding(
            code=FindingCode.OPEN_FILES_LIMIT,
            severity=Severity.WARNING,
            area=Area.LIMITS,
            text=f"{n_files} files may be open at once: more clients than that are turned away",
            evidence=(Evidence(source="getrlimit(RLIMIT_NOFILE)", value=str(n_files)),),
            help="raise it in the shell with `ulimit -n 4096`, in a unit with `LimitNOFILE=4096`",
        )


def _limit_file(facts: Facts, limit: int) -> str:
    """Name the file that the limit was read from: a group above may be the one that binds, or one that is not visible."""
    named = (path for path, text in facts.limits.memory_files if text == str(limit))
    return next(named, "the memory controller of this process's group")


def _address_space(facts: Facts) -> Iterator[Finding]:
    limit = facts.limits.address_space_bytes
    if limit is None:
        return
    with_gpu = [
        install for install in facts.inventory.engines or () if install.devices or install.engine is Engine.VLLM
    ]
    yield Finding(
        code=FindingCode.ADDRESS_SPACE_LIMIT,
        severity=Severity.WARNING if with_gpu else Severity.NOTE,
        area=Area.LIMITS,
        text=f"a process may map {format_bytes(limit)} at most"
        + (": drivers of GPUs reserve far more than they use, and may fail" if with_gpu else ""),
        evidence=(Evidence(source="getrlimit(RLIMIT_AS)", value=str(limit)),),
        help="lift it in the shell with `ulimit -v unlimited`, in a unit with `LimitAS=infinity`" if with_gpu else None,
    )


def sum_up_limits(facts: Facts) -> tuple[str, tuple[Evidence, ...]] | None:
    """Say that no limit binds."""
    memlock = facts.limits.memlock_bytes
    locked = "unlimited" if memlock is None else format_bytes(memlock)
    return "no limit below the machine's own binds engines", (
        Evidence(source="getrlimit(RLIMIT_AS)", value="unlimited"),
        Evidence(source="getrlimit(RLIMIT_NOFILE)", value=str(facts.limits.n_open_files or "unlimited")),
        Evidence(source="getrlimit(RLIMIT_MEMLOCK)", value=f"{locked}; no engine is started with locked memory"),
    )
