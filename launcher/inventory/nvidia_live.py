"""NVIDIA's GPUs watched while they work: memory, who holds it, utilisation, power, throttling.

It must not know of engines or plans, nor fail: what a device or an old driver does not tell is ``None``. The driver stays
initialised between two looks; a look takes well under a millisecond per device, unless the driver hangs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import pynvml

from launcher.domain import POWER_CAP, DeviceLoad
from launcher.inventory.nvidia import ask, parts, read_memory, read_processes

_THROTTLED: Final = {
    pynvml.nvmlClocksThrottleReasonSwPowerCap: POWER_CAP,
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "slowdown by the hardware",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "heat",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "heat, by the hardware",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "power brake",
}
"""Bits that slow a working GPU down. Idle clocks and clocks that were set on purpose are none."""


class _Watched(NamedTuple):
    """One GPU, or slice of one: its name among the inventory's devices, what has its memory, what has its clocks."""

    name: str
    part: Any
    handle: Any


class NvidiaMonitor:
    """The GPUs as they were found when it was opened, under the names that the inventory gives them."""

    def __init__(self, watched: tuple[_Watched, ...]) -> None:
        """Hold handles that the driver gave."""
        self._watched = watched

    def look(self) -> tuple[DeviceLoad, ...]:
        """Return each GPU as it is now; one that fell off the bus is left out."""
        return tuple(load for item in self._watched if (load := _look_at(item)) is not None)


@contextmanager
def open_nvidia() -> Iterator[NvidiaMonitor | None]:
    """Hold the driver open; yields ``None`` on a machine without one."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield NvidiaMonitor(tuple(_find()))
    finally:
        ask(pynvml.nvmlShutdown)


def _find() -> Iterator[_Watched]:
    """Yield what `probe_nvidia` lists, in the same order and so under the same names."""
    n_found = 0
    for idx in range(ask(pynvml.nvmlDeviceGetCount) or 0):
        handle = ask(pynvml.nvmlDeviceGetHandleByIndex, idx)
        for part, _ in parts(handle) if handle is not None else ():
            if read_memory(part) is not None:
                yield _Watched(f"gpu{n_found}", part, handle)
                n_found += 1


def _look_at(item: _Watched) -> DeviceLoad | None:
    memory = read_memory(item.part)
    if memory is None:
        return None
    rates = ask(pynvml.nvmlDeviceGetUtilizationRates, item.handle)
    power_mw = ask(pynvml.nvmlDeviceGetPowerUsage, item.handle)
    limit_mw = ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, item.handle)
    # The older of the call's two names, which all drivers have.
    reasons = ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, item.handle) or 0
    return DeviceLoad(
        name=item.name,
        total_bytes=memory[0],
        free_bytes=memory[1],
        processes=read_processes(item.part),
        utilization=None if rates is None else rates.gpu / 100,
        power_w=None if power_mw is None else power_mw / 1000,
        power_limit_w=None if limit_mw is None else limit_mw / 1000,
        temperature_c=ask(pynvml.nvmlDeviceGetTemperature, item.handle, pynvml.NVML_TEMPERATURE_GPU),
        throttled=tuple(word for bit, word in _THROTTLED.items() if reasons & bit),
    )
