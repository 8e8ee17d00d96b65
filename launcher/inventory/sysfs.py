"""AMD's GPUs as the kernel's ``amdgpu`` driver describes them in sysfs.

It must not know of engines. The files are documented in the kernel's ``Documentation/gpu/amdgpu/driver-misc.rst``.
"""

from pathlib import Path
from typing import Final, NamedTuple

from launcher.inventory.text import printable

_AMD_VENDOR: Final = "0x1002"


class AmdGpu(NamedTuple):
    """Memory in bytes, and the PCI address, of one GPU."""

    total_bytes: int
    used_bytes: int | None
    bus_id: str | None
    name: str | None = None


def probe_amd(root: Path = Path("/")) -> tuple[AmdGpu, ...]:
    """Return the GPUs with memory of their own, in the order of their cards; none without the driver."""
    found = []
    for card in sorted(root.glob("sys/class/drm/card[0-9]*"), key=lambda path: (len(path.name), path.name)):
        device = card / "device"
        total_bytes = _number(device / "mem_info_vram_total")
        if "-" in card.name or _text(device / "vendor") != _AMD_VENDOR or not total_bytes:
            continue  # card0-DP-1 is a connector
        found.append(
            AmdGpu(
                total_bytes=total_bytes,
                used_bytes=_number(device / "mem_info_vram_used"),
                bus_id=device.resolve().name if device.is_symlink() else None,
                name=printable(_text(device / "product_name")) or None,
            )
        )
    return tuple(found)


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
