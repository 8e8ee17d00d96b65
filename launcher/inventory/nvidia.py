"""NVIDIA's GPUs as the driver's management library (NVML) describes them.

It must not know of engines, nor fail: a machine without a driver has no such GPUs, a broken driver is worth a note, a
figure that a device or an old driver does not give is ``None``.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import pynvml

from launcher.domain import Device, DeviceKind, DeviceProcess
from launcher.inventory.nvidia_driver import VERSION_FILE, NvidiaProbe
from launcher.inventory.text import printable

T = TypeVar("T")

_LANE_BYTES_PER_S: Final = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
"""Per PCI Express lane and direction: transfer rate less line coding (8b/10b, 128b/130b, FLIT), as PCI-SIG publishes."""

_SILENT: Final = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
"""Answers of a machine without NVIDIA's GPUs. The second also comes where only the library is installed."""


def memory_bandwidth(clock_mhz: int | None, bus_width_bits: int | None) -> float | None:
    """Return bytes per second of a memory at its highest clock: two transfers a clock over the whole bus.

    The formula of NVIDIA's own device query sample (``2 * memoryClockRate * memoryBusWidth / 8``). NVML's clock already
    counts the further doublings of GDDR5X and later: 10,501 MHz x 384 bits of a GeForce RTX 4090 give 1,008 GB/s.
    """
    if not clock_mhz or not bus_width_bits:
        return None
    return 2.0 * clock_mhz * 1e6 * bus_width_bits / 8


def pcie_bandwidth(generation: int | None, n_lanes: int | None) -> float | None:
    """Return bytes per second and direction of a PCI Express link; ``None`` for an unknown generation or width."""
    per_lane = _LANE_BYTES_PER_S.get(generation or 0)
    return per_lane * n_lanes if per_lane and n_lanes else None


def normal_bus_id(bus_id: str) -> str:
    """Return a PCI address as sysfs writes it: NVML's ``00000000:01:00.0`` is ``0000:01:00.0``."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{domain[-4:]:0>4}:{rest}" if rest else bus_id.lower()


def probe_nvidia() -> NvidiaProbe:
    """Ask the driver for its GPUs, named ``gpu0`` and on, with the free memory of this moment."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return NvidiaProbe(notes=_init_notes(error))
    try:
        return _probe_all()
    finally:
        ask(pynvml.nvmlShutdown)


def _init_notes(error: pynvml.NVMLError) -> tuple[str, ...]:
    if error.value in _SILENT and not VERSION_FILE.exists():
        return ()
    return (f"NVIDIA's GPUs cannot be used or seen: {_words(error)}{_remedy(error)}",)


def _remedy(error: pynvml.NVMLError) -> str:
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return " (the driver's library and its kernel module differ, as after an update: reboot, or reload the module)"
    return ""


def _probe_all() -> NvidiaProbe:
    devices: list[Device] = []
    notes: list[str] = []
    for idx in range(ask(pynvml.nvmlDeviceGetCount) or 0):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(idx)
        except pynvml.NVMLError as error:
            notes.append(f"NVIDIA's GPU {idx} is out of use: {_words(error)}")
            continue
        for part, is_slice in parts(handle):
            name = f"gpu{len(devices)}"
            device = _device(name, part, handle, is_slice=is_slice)
            if device is None:
                notes.append(f"NVIDIA's GPU {idx} does not tell its memory; only an engine can")
                continue
            devices.append(device)
            if not is_slice:
                notes.extend(_link_notes(name, handle))
    return NvidiaProbe(tuple(devices), tuple(notes))


def parts(handle: Any) -> Iterator[tuple[Any, bool]]:
    """Yield the GPU itself, or its slices where it is divided (multi-instance GPU), which alone can be used then."""
    mode = ask(pynvml.nvmlDeviceGetMigMode, handle)
    n_slices = ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) if mode and mode[0] else None
    if not n_slices:
        yield handle, False
        return
    for idx in range(n_slices):
        part = ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, idx)
        if part is not None:
            yield part, True


def _device(name: str, part: Any, handle: Any, *, is_slice: bool) -> Device | None:
    memory = read_memory(part)
    if memory is None:
        return None
    total_bytes, free_bytes = memory
    bus_id = ask(lambda: str(pynvml.nvmlDeviceGetPciInfo(handle).busId))
    # A slice has a share of the bandwidth that NVML does not tell.
    clock_mhz = None if is_slice else ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_MEM)
    bus_width_bits = None if is_slice else ask(pynvml.nvmlDeviceGetMemoryBusWidth, handle)
    return Device(
        name=name,
        kind=DeviceKind.CUDA,
        description=printable(ask(pynvml.nvmlDeviceGetName, part) or "NVIDIA GPU"),
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        bandwidth_bytes_per_s=memory_bandwidth(clock_mhz, bus_width_bits),
        pcie_bytes_per_s=_pcie(handle),
        compute_capability=ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle),
        uuid=ask(pynvml.nvmlDeviceGetUUID, part),
        bus_id=None if bus_id is None else normal_bus_id(bus_id),
        processes=read_processes(part),
    )


def read_memory(part: Any) -> tuple[int, int] | None:
    """Return total and free bytes; drivers before 510 have only the first version of the call."""
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, part, pynvml.nvmlMemory_v2)
    if memory is None:
        memory = ask(pynvml.nvmlDeviceGetMemoryInfo, part)
    return (memory.total, min(memory.free, memory.total)) if memory is not None and memory.total else None


def _pcie(handle: Any) -> float | None:
    """Return the link's bandwidth: highest generation, because an idle GPU lowers it; present width, which stays."""
    generation = ask(pynvml.nvmlDeviceGetMaxPcieLinkGeneration, handle)
    n_lanes = ask(pynvml.nvmlDeviceGetCurrPcieLinkWidth, handle) or ask(pynvml.nvmlDeviceGetMaxPcieLinkWidth, handle)
    return pcie_bandwidth(generation or ask(pynvml.nvmlDeviceGetCurrPcieLinkGeneration, handle), n_lanes)


def _link_notes(name: str, handle: Any) -> Iterator[str]:
    now, most = (ask(call, handle) for call in (pynvml.nvmlDeviceGetCurrPcieLinkWidth, pynvml.nvmlDeviceGetMaxPcieLinkWidth))  # fmt: skip
    if now and most and now < most:
        yield f"{name} uses {now} of the {most} PCI Express lanes it could: offloaded weights reach it more slowly"


def read_processes(part: Any) -> tuple[DeviceProcess, ...]:
    """Return who holds memory; a process that both computes and draws is listed by both calls."""
    found: dict[int, DeviceProcess] = {}
    for calls in (
        (pynvml.nvmlDeviceGetComputeRunningProcesses_v3, pynvml.nvmlDeviceGetComputeRunningProcesses_v2),
        (pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2),
    ):
        for process in next((answer for call in calls if (answer := ask(call, part)) is not None), ()):
            path = ask(pynvml.nvmlSystemGetProcessName, process.pid)
            name = printable(path.rsplit("/", 1)[-1]) if path else None
            found[process.pid] = DeviceProcess(pid=process.pid, name=name, used_bytes=process.usedGpuMemory)
    return tuple(found[pid] for pid in sorted(found))


def ask(call: Callable[..., T], *args: Any) -> T | None:
    """Return NVML's answer, or ``None`` where device or driver has none, or has no text that can be read."""
    try:
        return call(*args)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return None


def _words(error: pynvml.NVMLError) -> str:
    return str(error).rstrip(".")
