"""This machine, asked all at once: drivers, engines and the host.

It joins what the other modules find; it must not know the format of any answer.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from launcher.domain import Inventory, Provenance
from launcher.inventory.devices import join_devices
from launcher.inventory.engines import EnginesProbe, probe_engines
from launcher.inventory.host import probe_host
from launcher.inventory.nvidia_driver import NvidiaProbe, has_driver
from launcher.inventory.sysfs import probe_amd
from launcher.inventory.text import printable

T = TypeVar("T")

CACHE_VARIABLE: Final = "LAUNCHER_CACHE_DIR"
"""Names the folder for what can be asked again, in place of the user's cache folder."""

_NVML_S: Final = 15.0
"""NVML answers in milliseconds, in seconds where it must load the driver first, and never where the driver hangs."""


def probe_machine(*, with_engines: bool, disk_path: Path | None, root: Path = Path("/")) -> Inventory:
    """Return this machine as it is now; see ``launcher.inventory.probe_inventory``."""
    nvidia_answer = _Bounded(probe_nvidia)
    engines = probe_engines(cache_dir=cache_dir() / "engines") if with_engines else EnginesProbe()
    host = probe_host(disk_path=disk_path, root=root)
    nvidia = nvidia_answer.result(_NVML_S) or NvidiaProbe(
        notes=(f"NVIDIA's driver did not answer within {_NVML_S:g} s: its GPUs are left out",)
    )
    joined = join_devices(nvidia.devices, engines.installs, probe_amd(root))
    return Inventory(
        name=printable(os.uname().nodename),
        host=host,
        devices=joined.devices,
        engines=joined.installs if with_engines else None,
        provenance=Provenance.MEASURED,
        notes=(*nvidia.notes, *joined.notes, *engines.notes),
    )


def probe_nvidia() -> NvidiaProbe:
    """Ask NVIDIA's driver where there is one."""
    if not has_driver():
        return NvidiaProbe()
    from launcher.inventory import nvidia  # noqa: PLC0415 - NVML's bindings take 8 ms, which most machines without spare

    return nvidia.probe_nvidia()


def cache_dir() -> Path:
    """Return the folder for what can be asked again, of this user or of a service of systemd; it may not exist yet."""
    if explicit := os.environ.get(CACHE_VARIABLE) or os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]:
        return Path(explicit)
    # What platformdirs does on Linux, without its import.
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".cache") / "launcher"


class _Bounded(Generic[T]):
    """A call under way that is waited for only so long. Its thread does not keep the program from ending."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._value: T | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], T]) -> None:
        self._value = call()

    def result(self, timeout_s: float) -> T | None:
        self._thread.join(timeout_s)
        return self._value
