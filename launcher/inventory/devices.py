"""Which devices are one and the same: what drivers tell joined with what engines list. Pure.

An NVIDIA GPU is told by NVML and listed again by each engine, as ``CUDA0``, as ``Vulkan0`` or as both. The rule: a listed
device is a known one if both have the same name, apart from vendor words and what stands in brackets, and totals that
differ by at most 5 %; within one back end of one engine each known device is matched once, in order, so that two equal
GPUs stay two. 5 % because back ends leave out what the driver reserves: CUDA lists an RTX 5090 with 32,106 MiB where NVML
tells 32,607 (1.5 %). It must not know how either side was asked.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from msgspec.structs import replace

from launcher.domain import Device, DeviceKind, EngineDevice, EngineInstall
from launcher.inventory.sysfs import AmdGpu

_TOTAL_TOLERANCE: Final = 0.05
_SOFTWARE: Final = re.compile(r"llvmpipe|lavapipe|softpipe|swiftshader|software rasterizer", re.IGNORECASE)
_SOFTWARE_FLAG: Final = " [software, no GPU]"
_BRACKETS: Final = re.compile(r"\([^)]*\)|\[[^\]]*\]")
_NOISE: Final = re.compile(r"\b(?:nvidia|amd|intel|corporation|graphics)\b|[^a-z0-9]+")

_KINDS: Final = {
    "cuda": DeviceKind.CUDA, "rocm": DeviceKind.ROCM, "vulkan": DeviceKind.VULKAN, "sycl": DeviceKind.SYCL,
    "mtl": DeviceKind.METAL, "metal": DeviceKind.METAL, "rpc": DeviceKind.RPC,
}  # fmt: skip


class Joined(NamedTuple):
    """All devices, each once; the engines with each of their devices named; what a reader must know."""

    devices: tuple[Device, ...]
    installs: tuple[EngineInstall, ...]
    notes: tuple[str, ...]


def device_kind(engine_name: str) -> DeviceKind:
    """Return the programming interface that an engine's name of a device stands for: ``Vulkan0``, ``RPC[host:port]``."""
    return _KINDS.get(_backend(engine_name), DeviceKind.OTHER)


def is_software(description: str) -> bool:
    """Tell whether a device only imitates a GPU on the processor."""
    return _SOFTWARE.search(description) is not None


def join_devices(drivers: Iterable[Device], installs: Iterable[EngineInstall], amd: tuple[AmdGpu, ...] = ()) -> Joined:
    """Join the devices that drivers tell with those that engines list.

    Devices known from drivers come first and keep their names; further ones are numbered after them. ``amd`` fills in
    what engines do not tell of AMD's GPUs, and stands in for them where no engine lists any.
    """
    devices = list(drivers)
    joined = [replace(install, devices=_named(install.devices, devices)) for install in installs]
    devices = _with_sysfs(devices, amd)
    notes = [
        f"{device.name} is a software renderer that runs on the processor, no GPU: expect it to be slower than none"
        for device in devices
        if is_software(device.description)
    ]
    return Joined(tuple(devices), tuple(joined), tuple(notes))


def _named(listed: tuple[EngineDevice, ...], devices: list[Device]) -> tuple[EngineDevice, ...]:
    """Name each listed device; append to ``devices`` those that were not known."""
    taken: set[tuple[str, str]] = set()
    named = []
    for entry in listed:
        backend = _backend(entry.name)
        known = next((d for d in devices if (backend, d.name) not in taken and _same(d, entry)), None)
        if known is None and entry.total_bytes is not None:
            known = _new_device(entry, entry.total_bytes, len(devices))
            devices.append(known)
        if known is not None:
            taken.add((backend, known.name))
        named.append(replace(entry, device=None if known is None else known.name))
    return tuple(named)


def _new_device(entry: EngineDevice, total_bytes: int, idx: int) -> Device:
    flag = _SOFTWARE_FLAG if is_software(entry.description) else ""
    return Device(
        name=f"gpu{idx}",
        kind=device_kind(entry.name),
        description=entry.description + flag,
        total_bytes=total_bytes,
        free_bytes=entry.free_bytes,
    )


def _same(device: Device, entry: EngineDevice) -> bool:
    if entry.total_bytes is not None and not _close(device.total_bytes, entry.total_bytes):
        return False
    return _plain(device.description) == _plain(entry.description)


def _close(one_bytes: int, other_bytes: int) -> bool:
    return abs(one_bytes - other_bytes) <= _TOTAL_TOLERANCE * max(one_bytes, other_bytes)


def _with_sysfs(devices: list[Device], amd: tuple[AmdGpu, ...]) -> list[Device]:
    """Add bus address and free memory to AMD's GPUs, matched by total; list them here if no engine lists one."""
    left = list(amd)
    result = []
    for device in devices:
        gpu = next((gpu for gpu in left if _may_be_amd(device) and _close(device.total_bytes, gpu.total_bytes)), None)
        if gpu is not None:
            left.remove(gpu)
            free_bytes = device.free_bytes if device.free_bytes is not None else _free(gpu)
            result.append(replace(device, bus_id=gpu.bus_id, free_bytes=free_bytes))
        else:
            result.append(device)
    # An AMD processor's own graphics shows a small carve-out in sysfs, and most of the RAM in Vulkan: matched by total
    # it stays unmatched, and must not be counted twice.
    if not any(_may_be_amd(device) for device in devices):
        result += [
            Device(
                name=f"gpu{len(devices) + idx}",
                kind=DeviceKind.ROCM,
                description=gpu.name or "AMD GPU",
                total_bytes=gpu.total_bytes,
                free_bytes=_free(gpu),
                bus_id=gpu.bus_id,
            )
            for idx, gpu in enumerate(left)
        ]
    return result


def _may_be_amd(device: Device) -> bool:
    """Tell whether the device is AMD's, for all that is known: not NVML's, and not named for another vendor."""
    words = device.description.lower()
    return device.uuid is None and ("amd" in words or "radeon" in words or device.kind is DeviceKind.ROCM)


def _free(gpu: AmdGpu) -> int | None:
    return None if gpu.used_bytes is None else max(0, gpu.total_bytes - gpu.used_bytes)


def _backend(engine_name: str) -> str:
    return engine_name.partition("[")[0].rstrip("0123456789").lower()


def _plain(description: str) -> str:
    return _NOISE.sub("", _BRACKETS.sub(" ", description.lower()))
