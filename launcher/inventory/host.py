"""The machine around the devices: memory, processors, disk.

It must not know of GPUs or engines.
"""

import os
import resource
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final, NamedTuple

from launcher.domain import Host
from launcher.inventory.cgroup import probe_cpu_quota, probe_memory
from launcher.inventory.text import printable

_ISA: Final = {
    "pni": "sse3", "ssse3": "ssse3", "avx": "avx", "avx2": "avx2", "f16c": "f16c", "fma": "fma", "bmi2": "bmi2",
    "avx_vnni": "avx_vnni", "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512vbmi": "avx512_vbmi",
    "avx512_vnni": "avx512_vnni", "avx512_bf16": "avx512_bf16", "amx_int8": "amx_int8",
    "asimd": "neon", "asimdhp": "fp16_va", "asimddp": "dotprod", "i8mm": "i8mm", "sve": "sve", "sve2": "sve2",
    "sme": "sme",
}  # fmt: skip
"""The kernel's flags that llama.cpp has code for (``ggml_backend_cpu_get_features`` in ``ggml-cpu.cpp``, build 11434),
to its names in lower case."""
_MAX_DIGITS: Final = 19


class CpuInfo(NamedTuple):
    """What ``/proc/cpuinfo`` says of the processors in question; ``n_physical`` is unknown on ARM."""

    name: str | None
    isa: tuple[str, ...]
    n_physical: int | None


def parse_cpuinfo(text: str, cpus: Collection[int] | None = None) -> CpuInfo:
    """Return name, instruction sets and physical cores from ``/proc/cpuinfo``.

    ``cpus`` are the logical processors to count cores of; ``None`` counts all. Instruction sets are in llama.cpp's
    order, and only those it uses.
    """
    blocks = [
        {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        for block in text.split("\n\n")
    ]
    merged = {key: value for block in reversed(blocks) for key, value in block.items()}
    flags = set(merged.get("flags", merged.get("Features", "")).split())
    cores = {
        (block.get("physical id", "0"), block["core id"])
        for block in blocks
        if "core id" in block and (cpus is None or _number(block.get("processor", "")) in cpus)
    }
    return CpuInfo(
        name=printable(merged.get("model name") or merged.get("Model") or "") or None,
        isa=tuple(ours for theirs, ours in _ISA.items() if theirs in flags),
        n_physical=len(cores) or None,
    )


def _number(text: str) -> int | None:
    """Return a decimal number of the kernel's, which no more than 64 bits hold; ``None`` for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None


class HostMemory(NamedTuple):
    """What the whole machine has and what a new process could get, in bytes."""

    total_bytes: int
    available_bytes: int
    swap_total_bytes: int
    swap_free_bytes: int


def parse_meminfo(text: str) -> HostMemory | None:
    """Return the memory from ``/proc/meminfo``, whose "kB" are KiB; ``None`` where it lacks a figure or contradicts itself."""
    lines = (line.partition(":") for line in text.splitlines())
    told = {key: _number(rest.split()[0]) for key, _, rest in lines if rest.split()[:1]}
    n_bytes = {key: n_kib << 10 for key, n_kib in told.items() if n_kib is not None}
    try:
        found = HostMemory(*(n_bytes[key] for key in ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")))
    except KeyError:  # a kernel before 3.14, or a container that shows its own
        return None
    return found if 0 < found.available_bytes <= found.total_bytes else None


def probe_host_memory(root: Path = Path("/")) -> HostMemory:
    """Return the machine's memory as it is now, whatever its control groups leave of it."""
    try:
        told = parse_meminfo((root / "proc/meminfo").read_text(errors="replace"))
    except OSError:
        told = None
    if told is not None:
        return told
    import psutil  # noqa: PLC0415 - 10 ms, and it knows what to do where the kernel tells less

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return HostMemory(memory.total, memory.available, swap.total, swap.free)


def _physical_cpus() -> int | None:
    import psutil  # noqa: PLC0415 - as above

    n_physical: int | None = psutil.cpu_count(logical=False)
    return n_physical


def usable_cpus(n_affinity: int, quota: float | None) -> int:
    """Return how many threads can run at once: the affinity mask's, under the quota rounded down.

    Down, because llama.cpp's threads wait for each other at a barrier in every layer: one thread more than the quota
    pays for makes all of them wait for the throttled one.
    """
    return n_affinity if quota is None else max(1, min(n_affinity, int(quota)))


def free_disk_bytes(path: Path) -> int | None:
    """Return what an unprivileged process can still write where ``path`` is or would be created."""
    for existing in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(existing).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def address_space_bytes() -> int | None:
    """Return what this process, and an engine that it starts, may map; ``None`` where that is not limited."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def probe_host(*, disk_path: Path | None = None, root: Path = Path("/")) -> Host:
    """Return this machine's memory, processors and disk as they are now; ``root`` holds ``proc`` and ``sys``.

    Bandwidth of the memory is unknown: the firmware tells it to root only.
    """
    memory = probe_host_memory(root)
    cgroup = probe_memory(root)
    affinity = os.sched_getaffinity(0)
    quota = probe_cpu_quota(root)
    try:
        cpu = parse_cpuinfo((root / "proc/cpuinfo").read_text(errors="replace"), affinity)
    except OSError:
        cpu = CpuInfo(None, (), None)
    return Host(
        total_bytes=memory.total_bytes,
        available_bytes=memory.available_bytes,
        swap_total_bytes=memory.swap_total_bytes,
        swap_free_bytes=memory.swap_free_bytes,
        cgroup_limit_bytes=cgroup.limit_bytes,
        cgroup_used_bytes=cgroup.used_bytes,
        n_cpu=usable_cpus(len(affinity), quota),
        n_cpu_physical=cpu.n_physical or _physical_cpus(),
        cpu_quota=quota,
        cpu_name=cpu.name,
        isa=cpu.isa,
        free_disk_bytes=None if disk_path is None else free_disk_bytes(disk_path),
        address_space_bytes=address_space_bytes(),
    )
