"""Hostile texts of engines, drivers and the kernel: whatever is read from lines that somebody else printed.

It must not know how inputs are changed.
"""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import pynvml

from launcher.domain import Engine, EngineInstall, Host, Plan, Request
from launcher.errors import UsageError, WorkerError
from launcher.inventory import nvidia
from launcher.inventory.cgroup import (
    parse_cpu_max,
    parse_limit,
    parse_mountinfo,
    parse_oom_kills,
    parse_self_cgroup,
    parse_stat,
)
from launcher.inventory.devices import join_devices
from launcher.inventory.engines import parse_settings_flags
from launcher.inventory.holes import parse_release
from launcher.inventory.host import parse_cpuinfo, parse_meminfo
from launcher.inventory.llama_text import parse_devices, parse_flags, parse_version
from launcher.inventory.machines import load_machines
from launcher.inventory.programs import parse_status
from launcher.inventory.psi import parse_psi
from launcher.inventory.vllm_holes import find_holes
from launcher.inventory.vllm_install import parse_flags as parse_vllm_flags
from launcher.inventory.workers import Worker, _limited, _named, _shared, parse_workers
from launcher.planner.advice import plan
from launcher.profiles import load_profile
from launcher.supervisor.breakdown import Breakdown, read_line
from launcher.supervisor.faults import End, classify, describe, find_sign, planned_memory, telling_lines
from launcher.supervisor.logs import MAX_LINE_BYTES, LineSplitter
from launcher.supervisor.placement import describe as describe_placed
from launcher.supervisor.placement import is_telling, mismatch, parse_placement
from launcher.supervisor.preflight import judge, told_after_load
from launcher.supervisor.vllm_told import compare, fewer_tokens, parse_told
from tests.fuzz.target import Target, WrongError, check_figures, check_printable
from tests.fuzz.trees import Tree
from tests.fuzz.weights import items, octets

_TRANSCRIPTS: Final = Path(__file__).parent.parent / "transcripts"
_N_LINES: Final = 30


# --- An engine's log --------------------------------------------------------------------------------------------


@cache
def _logs() -> list[Tree]:
    """Return what engines really printed, each log cut to the lines that tell most and the last ones."""
    logs = []
    for path in sorted(_TRANSCRIPTS.glob("*/*.log")):
        lines = path.read_bytes().splitlines()
        telling = [line for line in lines if is_telling(line.decode("utf-8", "replace")) or b"memory_breakdown" in line]
        logs.append([*telling[:_N_LINES], *lines[-_N_LINES // 2 :]])
    return [{"lines": [_softened(line) for line in log], "end": "\n"} for log in logs]


def _softened(line: bytes) -> Tree:
    """Return a line as text where it is some: numbers in texts are changed to other numbers."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line


def _encode_lines(tree: Tree) -> bytes:
    if not isinstance(tree, dict):
        return octets(tree)
    end = octets(tree.get("end", b"\n"))[:4]
    return end.join(octets(line) for line in items(tree.get("lines", [])))


@cache
def _plans() -> tuple[Plan, ...]:
    """Return a plan on a GPU, one without, and one of vLLM's."""
    asked = (("gemma2-9b", "rtx4090"), ("llama3.1-8b", "cpu-16g"), ("llama3.1-405b", "8xh100"))
    outcomes = [plan(Request(profile=load_profile(name)), load_machines(machine)) for name, machine in asked]
    return tuple(outcome for outcome in outcomes if isinstance(outcome, Plan))


def _take_log(data: bytes) -> str:
    lines: list[str] = []
    splitter = LineSplitter(lines.append)
    for start in range(0, len(data), 4096):
        splitter.feed(data[start : start + 4096])
    splitter.close()
    for line in lines:
        if len(line) > MAX_LINE_BYTES + 6:
            msg = f"a line of {len(line)} characters came through"
            raise WrongError(msg)
        check_printable(line.replace("\t", " "), "a line of the log")
    told = Breakdown()
    for line in lines:
        told = read_line(told, line)
    check_figures(told, "breakdown")
    check_figures(told.host, "breakdown")
    placed = parse_placement(lines)
    check_figures(placed, "placement")
    check_printable(describe_placed(placed), "placement")
    vllm = parse_told(lines)
    for each in _plans():
        mismatch(placed, each.n_gpu_layers, each.footprint)
        if vllm is not None and (difference := compare(vllm, each)) is not None:
            check_printable(difference.text, "what vLLM told")
            msgspec.json.encode(difference)
        if vllm is not None:
            fewer_tokens(vllm, each)
        judge(each, {"gpu0": 10**9, "host": 10**10}, told)
        if (after := told_after_load(placed)) is not None:
            judge(each, {}, after)
    reached = [
        name
        for name, value in (
            ("breakdown", told.hosts or told.devices),
            ("placement", placed.has_weights),
            ("vllm", vllm),
        )
        if value
    ]
    fault = _classified(lines, data)
    return " + ".join([*reached, fault]) if reached else fault


def _classified(lines: list[str], data: bytes) -> str:
    fault = classify(End(lines=tuple(lines), code=1, was_ready=bool(len(data) % 2), n_oom_kills=len(data) % 3 or None))
    find_sign(lines, was_ready=False, is_private=True)
    for each in _plans():
        planned_memory(fault, each)
    check_printable(describe(fault), "the fault")
    check_figures(fault, "fault")
    for line in telling_lines(lines):
        check_printable(line.replace("\t", " "), "a telling line")
    return f"fault: {fault.cause.value}"


_LOG_WORDS: Final = (
    *("memory_breakdown_print: |   - Vulkan0 (x) |  2048 = 2048 + (  55 =    32 +       4 +      17) +         -55 |",),
    *(
        "memory_breakdown_print: |   - Host                                       |                  210 =   202 +       4 +       3                |",
    ),
    '{"type":"fit_memory_breakdown","data":{"unit":"MiB","rows":[{"name":"Host","model":1,"context":2,"compute":3}]}}',
    "load_tensors: offloaded 10/19 layers to GPU",
    "load_tensors:  Vulkan0 model buffer size =    32.77 MiB",
    "load_tensors: layer   3 assigned to device CUDA0, is_swa = 0",
    "GPU KV cache size: 2,176 tokens",
    "Maximum concurrency for 2,048 tokens per request: 1.06x",
    "Model loading took 14.99 GiB memory",
    "Available KV cache memory: 5.20 GiB",
    "allocating 512.00 MiB on device 0: cudaMalloc failed: out of memory",
    "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 123456",
    "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB",
    "Free memory on device cuda:0 (1.5/23.6 GiB) on startup is less than desired GPU memory utilization (0.9, 21.3 GiB)",
    "the estimated maximum model length is 4096",
    "llama_model_loader: loaded meta data",
    "common_fit_params: x",
)

LOGS: Final = Target(
    name="engine-logs",
    modules=(
        "launcher.supervisor.breakdown",
        "launcher.supervisor.placement",
        "launcher.supervisor.vllm_told",
        "launcher.supervisor.faults",
        "launcher.supervisor.logs",
        "launcher.supervisor.preflight",
    ),
    seeds=_logs,
    encode=_encode_lines,
    take=_take_log,
    words=_LOG_WORDS,
    share=4,
)


# --- Listings ---------------------------------------------------------------------------------------------------

_LISTING: Final = (
    "Available devices:\n  Vulkan0: llvmpipe (LLVM 15.0.6, 256 bits) (2048 MiB, 2048 MiB free)\n"
    "  CUDA0: NVIDIA GeForce RTX 4090 (24564 MiB, 23000 MiB free)\n  RPC0[127.0.0.1:5005]: 127.0.0.1:5005 (24000 MiB, 23000 MiB free)\n"
    "  BLAS: OpenBLAS (0 MiB, 0 MiB free)\n  Metal: Apple M2\n"
)
_HELP: Final = (
    "usage: llama-server [options]\n\n-h,    --help, --usage                  print usage and exit\n"
    "-c,    --ctx-size N                     size of the prompt context\n-ngl,  --gpu-layers, --n-gpu-layers N   layers\n"
    "--old N                                 the argument has been removed, use --new\n"
)
_SETTINGS: Final = (
    "class ModelSettings(BaseSettings):\n    model: str = Field(description='x')\n    n_ctx: int = 2048\n\n"
    "class ServerSettings(BaseSettings):\n    host: str = 'localhost'\n"
)
_VLLM: Final = "@dataclass\nclass EngineArgs:\n    model: str = 'x'\n    max_model_len: int | None = None\n\nclass FrontendArgs:\n    port: int = 8000\n"
_MEMINFO: Final = (
    "MemTotal:       24684720 kB\nMemFree: 1 kB\nMemAvailable:   20684720 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"
)
_CPUINFO: Final = (
    "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nphysical id\t: 0\ncore id\t\t: 0\nflags\t\t: avx avx2 fma f16c avx512f amx_int8\n\n"
    "processor\t: 1\nmodel name\t: Intel(R) Xeon(R)\nphysical id\t: 0\ncore id\t\t: 1\n\n"
)
_MOUNTS: Final = (
    "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
    "31 30 0:27 /a /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
_GROUPS: Final = "4:memory:/user.slice\n0::/user.slice/user-0.slice\n"
_STAT: Final = "inactive_file 4096\nactive_file 8192\noom_kill 3\nhierarchical_memory_limit 1073741824\n"
_PSI: Final = "some avg10=1.53 avg60=0.87 avg300=0.25 total=123\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=12\n"
_STATUS: Final = "Name:\tllama-server\nRssAnon:\t  204800 kB\nRssFile:\t 1 kB\nRssShmem:\t  100 kB\n"
_WORKERS: Final = "127.0.0.1:50052=8GiB,127.0.0.1:50053,10.0.0.5:1=1.5MiB"
_NVML: Final = "NVIDIA GeForce RTX 4090|24564|23000|GPU-1|00000000:01:00.0|1313|384|4|16|8|9|1234,567"
_SAMPLES: Final = {
    "devices": _LISTING,
    "help": _HELP,
    "version": "version: 6123 (abc1234)\nbuilt with cc\n",
    "settings": _SETTINGS,
    "vllm": _VLLM,
    "release": "0.22.1rc2.post1+cu128",
    "meminfo": _MEMINFO,
    "cpuinfo": _CPUINFO,
    "mountinfo": _MOUNTS,
    "cgroup": _GROUPS,
    "stat": _STAT,
    "limit": "1073741824\n",
    "cpu.max": "150000 100000\n",
    "psi": _PSI,
    "status": _STATUS,
    "workers": _WORKERS,
    "nvml": _NVML,
}
_NAMES: Final = tuple(_SAMPLES)


def _listings() -> list[Tree]:
    return [{"kind": idx, "lines": text.split("\n"), "end": "\n"} for idx, text in enumerate(_SAMPLES.values())]


def _encode_listing(tree: Tree) -> bytes:
    kind = tree.get("kind") if isinstance(tree, dict) else 0
    return bytes([(kind if isinstance(kind, int) else 0) % len(_NAMES)]) + _encode_lines(tree)


def _take_listing(data: bytes) -> str:
    kind = _NAMES[data[0] % len(_NAMES)] if data else "devices"
    text = data[1:].decode("utf-8", "replace")
    return f"{kind}: {_read_listing(kind, text)}"


def _read_listing(kind: str, text: str) -> str:
    match kind:
        case "devices":
            return _read_devices(text)
        case "help":
            return _how_many(parse_flags(text))
        case "version":
            check_printable(parse_version(text) or "", "the version")
            return "read"
        case "settings" | "vllm":
            try:
                flags = parse_settings_flags(text) if kind == "settings" else frozenset(parse_vllm_flags(text))
            except SyntaxError:
                return "no Python"
            return _how_many(flags)
        case "release":
            parse_release(text)
            return _how_many(find_holes(text))
        case "nvml":
            return _read_nvml(text)
        case "workers":
            return _read_workers(text)
        case _:
            return _read_kernel(kind, text)


def _how_many(found: Any) -> str:
    return "some" if found else "none"


def _read_devices(text: str) -> str:
    listed = parse_devices(text)
    worker = Worker("127.0.0.1", 5005, 2**30)
    install = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("llama-server",), devices=listed)
    joined = join_devices((), (install,))
    check_figures(joined.devices, "devices")
    named = _named(worker, tuple(entry for entry in listed if entry.description == worker.address))
    host = Host(total_bytes=2**34, available_bytes=2**33)
    shared, split, _ = _shared(host, named, loopback={worker.address})
    check_figures((shared, *_limited(split, [worker])), "workers")
    for device in (*joined.devices, *named):
        check_printable(device.name + device.description, "a device")
    return _how_many(listed)


def _read_workers(text: str) -> str:
    # Names are not looked up: what is asked is how the list is read.
    numeric = "".join(char if char.isdigit() or not char.isalpha() or char in "MGiB" else "1" for char in text)
    try:
        found = parse_workers(numeric)
    except (UsageError, WorkerError) as error:
        check_printable(error.message if numeric.isprintable() else "", "the refusal")
        return "refused"
    check_figures([worker.limit_bytes or 0 for worker in found], "limits")
    return "read"


def _read_kernel(kind: str, text: str) -> str:
    match kind:
        case "meminfo":
            found: Any = parse_meminfo(text)
        case "cpuinfo":
            found = parse_cpuinfo(text, {0, 1})
            check_printable(found.name or "", "the processor's name")
        case "mountinfo":
            found = parse_mountinfo(text)
        case "cgroup":
            found = parse_self_cgroup(text)
        case "stat":
            found = (parse_stat(text), parse_oom_kills(text))
        case "limit":
            found = parse_limit(text)
        case "cpu.max":
            found = parse_cpu_max(text)
        case "psi":
            found = parse_psi(text)
        case _:
            try:
                name, n_bytes = parse_status(text)
            except (ValueError, IndexError):
                return "unreadable, and passed over"
            check_printable(name, "a program's name")
            found = n_bytes
    return _how_many(found)


class _HostileNvml:
    """A driver that answers what a text says, or faults where that has no number."""

    def __init__(self, fields: list[str]) -> None:
        self.fields = [*fields, *[""] * 12]

    def number(self, idx: int) -> int:
        """Return a field as the driver's number: what is none is an error of the driver's."""
        try:
            return max(-(2**63), min(int(self.fields[idx]), 2**64 - 1))
        except ValueError:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED) from None


def _read_nvml(text: str) -> str:
    driver = _HostileNvml(text.split("|"))
    bandwidth = nvidia.memory_bandwidth(*(_asked(driver, idx) for idx in (5, 6)))
    pcie = nvidia.pcie_bandwidth(*(_asked(driver, idx) for idx in (7, 8)))
    nvidia.normal_bus_id(driver.fields[4])
    memory = SimpleNamespace(total=_asked(driver, 1), free=_asked(driver, 2))
    return _how_many((bandwidth, pcie, memory.total))


def _asked(driver: _HostileNvml, idx: int) -> int | None:
    return nvidia.ask(driver.number, idx)


LISTINGS: Final = Target(
    name="listings",
    modules=(
        "launcher.inventory.llama_text",
        "launcher.inventory.devices",
        "launcher.inventory.cgroup",
        "launcher.inventory.host",
        "launcher.inventory.psi",
        "launcher.inventory.programs",
        "launcher.inventory.class_fields",
        "launcher.inventory.vllm_holes",
        "launcher.inventory.workers",
    ),
    seeds=_listings,
    encode=_encode_listing,
    take=_take_listing,
    words=(*(line for text in _SAMPLES.values() for line in text.split("\n") if line), "²", "Ⅷ", "9" * 5000, "1e400"),
    share=14,
)
