"""AMD's GPUs in sysfs, on a tree as the amdgpu driver makes it."""

from pathlib import Path

from launcher.inventory.sysfs import AmdGpu, probe_amd
from launcher.units import GIB


def card(root: Path, name: str, bus_id: str, **files: str) -> None:
    """Write one card whose device is a link to its place on the bus, as the kernel has it."""
    device = root / "sys/devices/pci0000:00" / bus_id
    device.mkdir(parents=True)
    for file, text in files.items():
        (device / file).write_text(text + "\n")
    folder = root / "sys/class/drm" / name
    folder.mkdir(parents=True)
    (folder / "device").symlink_to(device)


def test_cards(tmp_path: Path) -> None:
    """AMD's cards with memory are found in the order of their numbers; others, and connectors, are not."""
    vram = {"vendor": "0x1002", "mem_info_vram_total": str(16 * GIB)}
    card(tmp_path, "card10", "0000:0a:00.0", **vram)
    card(tmp_path, "card2", "0000:02:00.0", **vram, mem_info_vram_used=str(GIB), product_name="Radeon PRO W7800")
    card(tmp_path, "card1", "0000:01:00.0", vendor="0x10de")
    card(tmp_path, "card0", "0000:00:02.0", vendor="0x8086")
    card(tmp_path, "card2-DP-1", "0000:02:00.9", **vram)
    assert probe_amd(tmp_path) == (
        AmdGpu(total_bytes=16 * GIB, used_bytes=GIB, bus_id="0000:02:00.0", name="Radeon PRO W7800"),
        AmdGpu(total_bytes=16 * GIB, used_bytes=None, bus_id="0000:0a:00.0"),
    )


def test_no_driver(tmp_path: Path) -> None:
    """A machine without graphics has none."""
    assert probe_amd(tmp_path) == ()
