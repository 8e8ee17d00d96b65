"""Processors from recorded text, and this machine's own figures."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.inventory.host import (
    CpuInfo,
    HostMemory,
    address_space_bytes,
    free_disk_bytes,
    parse_cpuinfo,
    parse_meminfo,
    probe_host,
    usable_cpus,
)
from launcher.units import GIB

# Shortened from /proc/cpuinfo of a Xeon (Sapphire Rapids) guest, and of a Raspberry Pi 5.
X86 = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Processor
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse pni ssse3 fma avx f16c avx2 bmi2 avx512f avx_vnni avx512_vnni amx_tile amx_int8

processor\t: 1
model name\t: Intel(R) Xeon(R) Processor
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse pni ssse3 fma avx f16c avx2 bmi2 avx512f avx_vnni avx512_vnni amx_tile amx_int8

processor\t: 2
model name\t: Intel(R) Xeon(R) Processor
physical id\t: 0
core id\t\t: 1
flags\t\t: fpu sse
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes asimdhp cpuid asimddp
CPU part\t: 0xd0b

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""


def test_x86() -> None:
    """Names, cores without their second threads, and the instruction sets llama.cpp uses, in its order."""
    isa = ("sse3", "ssse3", "avx", "avx2", "f16c", "fma", "bmi2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")
    assert parse_cpuinfo(X86) == CpuInfo("Intel(R) Xeon(R) Processor", isa, 2)


def test_affinity_limits_cores() -> None:
    """Cores are counted among the processors that may be used only."""
    assert parse_cpuinfo(X86, {0, 1}).n_physical == 1


def test_arm() -> None:
    """ARM's names of the same things are understood; cores it does not tell."""
    assert parse_cpuinfo(ARM) == CpuInfo("Raspberry Pi 5 Model B Rev 1.0", ("neon", "fp16_va", "dotprod"), None)


def test_empty_cpuinfo() -> None:
    """No text, no facts."""
    assert parse_cpuinfo("") == CpuInfo(None, (), None)


@given(st.integers(1, 512), st.one_of(st.none(), st.floats(0.01, 600)))
def test_usable_cpus(n_affinity: int, quota: float | None) -> None:
    """At least one thread, never more than the mask, and never more than the quota pays for, if it pays for one."""
    n = usable_cpus(n_affinity, quota)
    assert 1 <= n <= n_affinity
    assert quota is None or n <= max(1.0, quota)
    assert quota is not None or n == n_affinity


def test_disk_of_a_folder_to_be(tmp_path: Path) -> None:
    """A folder that does not exist yet has the free bytes of where it would be created."""
    here, there = free_disk_bytes(tmp_path), free_disk_bytes(tmp_path / "a" / "b")
    assert here is not None
    assert there is not None
    assert abs(here - there) < GIB  # other programs write meanwhile


def test_disk_behind_a_file(tmp_path: Path) -> None:
    """A path through a file cannot be created: its disk is unknown."""
    (tmp_path / "file").touch()
    assert free_disk_bytes(tmp_path / "file" / "x") is None


def test_this_machine(tmp_path: Path) -> None:
    """What this machine says of itself is consistent."""
    host = probe_host(disk_path=tmp_path)
    assert 0 < host.available_bytes <= host.total_bytes
    assert 0 <= host.free_bytes <= host.available_bytes
    assert 1 <= host.n_cpu <= len(os.sched_getaffinity(0))
    assert host.free_disk_bytes


def test_cgroup_reaches_the_host(tmp_path: Path) -> None:
    """A limit found below another root bounds what a new process can take."""
    for name, text in {
        "proc/self/cgroup": "0::/",
        "proc/self/mountinfo": "31 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        "proc/cpuinfo": X86,
        "sys/fs/cgroup/memory.max": str(GIB),
        "sys/fs/cgroup/memory.current": str(GIB // 4),
        "sys/fs/cgroup/cpu.max": "100000 100000",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    host = probe_host(root=tmp_path)
    assert host.free_bytes <= GIB * 3 // 4
    assert (host.n_cpu, host.cpu_quota, host.free_disk_bytes) == (1, 1.0, None)


MEMINFO = """\
MemTotal:       16374584 kB
MemFree:         1000000 kB
MemAvailable:   12000000 kB
SwapTotal:       2097148 kB
SwapFree:        2097144 kB
HugePages_Total:       0
"""


def test_memory_is_read_in_kib() -> None:
    """The kernel's "kB" are KiB; swap stands beside the memory."""
    assert parse_meminfo(MEMINFO) == HostMemory(16374584 << 10, 12000000 << 10, 2097148 << 10, 2097144 << 10)


@pytest.mark.parametrize(
    "text",
    [
        "",
        MEMINFO.replace("MemAvailable", "Other"),
        MEMINFO.replace("12000000", "99999999"),
        "MemTotal: x kB\nSwapTotal:",
    ],
)
def test_memory_that_is_not_told_is_unknown(text: str) -> None:
    """A figure that is missing or cannot be makes the whole unknown: psutil is asked then."""
    assert parse_meminfo(text) is None


def test_memory_is_what_psutil_reads(tmp_path: Path) -> None:
    """Without the file the same figures come from psutil."""
    ours, theirs = probe_host(), probe_host(root=tmp_path)
    assert (ours.total_bytes, ours.swap_total_bytes) == (theirs.total_bytes, theirs.swap_total_bytes)


def test_a_limited_address_space_is_a_budget() -> None:
    """An engine inherits the limit: no more can be had, however much is free; without one nothing is said."""
    words = (sys.executable, "-c", "from launcher.inventory.host import probe_host; print(probe_host().free_bytes)")
    limited = 1 << 30
    told = subprocess.run(
        words,
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limited, limited)),
    )
    assert int(told.stdout) <= limited
    assert address_space_bytes() is None or probe_host().free_bytes <= (address_space_bytes() or 0)
