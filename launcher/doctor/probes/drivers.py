"""GPUs and their drivers as the kernel and the file system show them, and NVIDIA's own answer.

It must not know of engines, nor ask a driver itself: that is done in a process of its own, which may hang.
"""

import grp
import json
import os
import pwd
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from launcher.doctor.facts import DeviceNode, DisplayCard, Drivers, VulkanDriver
from launcher.doctor.probes.files import is_there, listed, text_of
from launcher.inventory.nvidia_driver import has_driver
from launcher.inventory.nvidia_versions import NvidiaVersions, probe_versions
from launcher.inventory.proc import run_bounded
from launcher.inventory.text import printable
from launcher.resources import from_home

_DISPLAY_CLASS: Final = "0x03"
"""Of PCI: display controllers, 3D controllers without an output among them."""
_ACCELERATOR_CLASS: Final = "0x12"
"""Of PCI: processing accelerators, which AMD's MI300 is one of; of other vendors they are none that an engine uses."""
_AMD: Final = "0x1002"
_MODULES: Final = {"0x10de": "nvidia", _AMD: "amdgpu"}
_NODES: Final = ("dev/nvidia[0-9]*", "dev/nvidiactl", "dev/nvidia-uvm", "dev/kfd", "dev/dri/renderD*")
_MANIFESTS: Final = "vulkan/icd.d"
_SEARCHED: Final = (
    ("XDG_CONFIG_HOME", "~/.config"), ("XDG_CONFIG_DIRS", "/etc/xdg"), (None, "/usr/local/etc:/etc"),
    ("XDG_DATA_HOME", "~/.local/share"), ("XDG_DATA_DIRS", "/usr/local/share:/usr/share"),
)  # fmt: skip
"""Below what the Vulkan loader looks for manifests on Linux, in its order, per its ``LoaderDriverInterface``: what a variable
names, else the folders beside it."""
_MANIFEST_VARIABLES: Final = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
"""Either replaces the search by a list of manifests and folders; the second is the older name."""
_LOAD_S: Final = 5.0
_CONTAINER_SIGNS: Final = (
    ".dockerenv", "run/.containerenv", "run/systemd/container",
    "run/secrets/kubernetes.io", "var/run/secrets/kubernetes.io",
)  # fmt: skip
_MAX_MANIFEST_BYTES: Final = 1 << 16


def probe_drivers(root: Path = Path("/")) -> Drivers:
    """Return what can be told without asking a driver."""
    cards = tuple(_cards(root))
    return Drivers(
        cards=cards,
        modules=tuple(module for module in _lacking(cards) if _is_installed(module, root)),
        nodes=tuple(_nodes(root)),
        vulkan=tuple(_vulkan(root)),
        rocm=text_of(root / "opt/rocm/.info/version"),
        container=next((f"/{sign}" for sign in _CONTAINER_SIGNS if is_there(root / sign)), None),
    )


def probe_nvidia_versions(root: Path = Path("/"), *, timeout_s: float) -> NvidiaVersions | str | None:
    """Return what NVIDIA's driver says of its versions, half a sentence where it does not; ``None`` without a driver."""
    return probe_versions(root, timeout_s=timeout_s) if has_driver() else None


def _cards(root: Path) -> Iterator[DisplayCard]:
    for device in listed(root / "sys/bus/pci/devices", "*"):
        kind, vendor = text_of(device / "class") or "", text_of(device / "vendor") or ""
        if not (kind.startswith(_DISPLAY_CLASS) or (kind.startswith(_ACCELERATOR_CLASS) and vendor == _AMD)):
            continue
        driver = device / "driver"
        yield DisplayCard(
            bus_id=device.name,
            vendor=vendor,
            device=text_of(device / "device") or "",
            driver=driver.resolve().name if is_there(driver) else None,
        )


def _lacking(cards: tuple[DisplayCard, ...]) -> Iterator[str]:
    """Yield the modules that cards would be driven by and are not."""
    for vendor, module in _MODULES.items():
        if any(card.vendor == vendor and card.driver != module for card in cards):
            yield module


def _is_installed(module: str, root: Path) -> bool:
    """Tell whether the running kernel has a module's file, packed or not."""
    return bool(listed(root / "lib/modules" / os.uname().release, f"**/{module}.ko*"))


def _nodes(root: Path) -> Iterator[DeviceNode]:
    for pattern in _NODES:
        for path in listed(root, pattern):
            try:
                info = path.stat()
            except OSError:
                continue
            yield DeviceNode(
                path=f"/{path.relative_to(root)}",
                is_accessible=os.access(path, os.R_OK | os.W_OK),
                owner=_user(info.st_uid),
                group=_group(info.st_gid),
                mode=stat.S_IMODE(info.st_mode),
                vendor=text_of(root / "sys/class/drm" / path.name / "device/vendor"),
            )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _vulkan(root: Path) -> Iterator[VulkanDriver]:
    for manifest in _manifests(root):
        library = _library_of(manifest)
        yield VulkanDriver(
            manifest=str(manifest),
            library=library,
            is_there=library is not None and _is_found(library, manifest.parent),
        )


def _manifests(root: Path) -> Iterator[Path]:
    """Yield the manifests that the loader would read, each once."""
    named = next((value for name in _MANIFEST_VARIABLES if (value := os.environ.get(name))), None)
    if named is not None:
        places = [Path(name) for name in named.split(":") if name]
    else:
        places = [folder / _MANIFESTS for folder in _searched(root)]
    yield from dict.fromkeys(
        path
        for place in places
        for path in ([place] if named is not None and not place.is_dir() else listed(place, "*.json"))
    )


def _searched(root: Path) -> Iterator[Path]:
    for variable, fallback in _SEARCHED:
        chosen = os.environ.get(variable, "") if variable is not None else ""
        for name in (chosen or fallback).split(":"):
            path = from_home(name)
            if path.is_absolute():
                yield path if chosen or name.startswith("~") else root / path.relative_to("/")


def _library_of(manifest: Path) -> str | None:
    try:
        with manifest.open("rb") as file:
            document = json.loads(file.read(_MAX_MANIFEST_BYTES))
        library = document["ICD"]["library_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return printable(library) if isinstance(library, str) else None


def _is_found(library: str, folder: Path) -> bool:
    """Tell whether a manifest's library can be found: a bare name by the loader, a path from the manifest's folder."""
    if "/" in library:
        return is_there(folder / library)
    return _can_load(library)


def _can_load(library: str) -> bool:
    """Tell whether the loader finds a library, by loading it in a process of its own: it is a driver, which may crash."""
    program = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    return run_bounded((sys.executable, "-I", "-S", "-c", program, library), timeout_s=_LOAD_S).ok
