"""This machine, asked all at once: drivers, engines and the host.

It joins what the other modules find; it must not know the format of any answer.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple

from launcher.domain import Inventory, Provenance
from launcher.folders import cache_dir
from launcher.inventory.bounded import Bounded
from launcher.inventory.devices import join_devices
from launcher.inventory.engines import EnginesProbe, probe_engines
from launcher.inventory.host import probe_host
from launcher.inventory.nvidia_driver import NvidiaProbe, has_driver
from launcher.inventory.sysfs import probe_amd
from launcher.inventory.text import printable

_NVML_S: Final = 15.0
"""NVML answers in milliseconds, in seconds where it must load the driver first, and never where the driver hangs."""


class Probed(NamedTuple):
    """This machine, and its notes by whom they are about: ``inventory.notes`` has all of them."""

    inventory: Inventory
    nvidia_notes: tuple[str, ...]
    device_notes: tuple[str, ...]
    engine_notes: tuple[str, ...]


def probe_machine(*, with_engines: bool, disk_path: Path | None, root: Path = Path("/")) -> Inventory:
    """Return this machine as it is now; see ``launcher.inventory.probe_inventory``."""
    return probe_apart(with_engines=with_engines, disk_path=disk_path, root=root).inventory


def probe_apart(*, with_engines: bool, disk_path: Path | None, root: Path = Path("/")) -> Probed:
    """Return the same with its notes apart."""
    nvidia_answer = Bounded(probe_nvidia)
    engines = probe_engines(cache_dir=cache_dir() / "engines") if with_engines else EnginesProbe()
    host = probe_host(disk_path=disk_path, root=root)
    nvidia = nvidia_answer.result(_NVML_S) or NvidiaProbe(
        notes=(f"NVIDIA's driver did not answer within {_NVML_S:g} s: its GPUs are left out",)
    )
    joined = join_devices(nvidia.devices, engines.installs, probe_amd(root))
    inventory = Inventory(
        name=printable(os.uname().nodename),
        host=host,
        devices=joined.devices,
        engines=joined.installs if with_engines else None,
        provenance=Provenance.MEASURED,
        notes=(*nvidia.notes, *joined.notes, *engines.notes),
    )
    return Probed(inventory, nvidia.notes, joined.notes, engines.notes)


def probe_nvidia() -> NvidiaProbe:
    """Ask NVIDIA's driver where there is one."""
    if not has_driver():
        return NvidiaProbe()
    from launcher.inventory import nvidia  # noqa: PLC0415 - NVML's bindings take 8 ms, which most machines without spare

    return nvidia.probe_nvidia()
