"""Whether this machine has NVIDIA's driver at all, told without its bindings.

It must not know what the driver would say.
"""

import ctypes
from pathlib import Path
from typing import Final, NamedTuple

from launcher.domain import Device

VERSION_FILE: Final = Path("/proc/driver/nvidia/version")
_LIBRARY: Final = "libnvidia-ml.so.1"


class NvidiaProbe(NamedTuple):
    """The GPUs in the order of the driver, and what a reader must know of them."""

    devices: tuple[Device, ...] = ()
    notes: tuple[str, ...] = ()


def has_driver() -> bool:
    """Tell whether the kernel's part is loaded or the management library can be: without both nothing is worth asking."""
    if VERSION_FILE.exists():
        return True
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return False
    return True
