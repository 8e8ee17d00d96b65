"""The whole machine, asked at once."""

import threading
import time
from pathlib import Path

import msgspec
import pytest

from launcher.domain import Inventory, Provenance
from launcher.folders import CACHE_VARIABLE
from launcher.inventory import load_inventory, probe, probe_inventory
from launcher.inventory.nvidia_driver import NvidiaProbe


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what is remembered out of the user's cache."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def test_this_machine(tmp_path: Path) -> None:
    """This machine is measured, and what is written of it reads back as the same value."""
    found = probe_inventory(disk_path=tmp_path)
    assert found.provenance is Provenance.MEASURED
    assert found.host.free_disk_bytes
    assert found.engines is not None
    (tmp_path / "me.json").write_bytes(msgspec.json.encode(found))
    assert load_inventory(str(tmp_path / "me.json")) == found


def test_without_engines() -> None:
    """Engines that were not asked are unknown, not absent."""
    assert probe_inventory(with_engines=False).engines is None


def test_listed_devices_are_known() -> None:
    """Every device that an engine lists with its memory is a device of the machine."""
    found = probe_inventory()
    ours = {device.name for device in found.devices}
    listed = [device for install in found.engines or () for device in install.devices if device.total_bytes]
    assert all(device.device in ours for device in listed)
    assert isinstance(found, Inventory)


def test_hanging_driver_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that never answers costs its time-out and a note, not the whole inventory."""
    never = threading.Event()

    def hang() -> NvidiaProbe:
        never.wait()
        return NvidiaProbe()

    monkeypatch.setattr(probe, "probe_nvidia", hang)
    monkeypatch.setattr(probe, "_NVML_S", 0.2)
    start = time.monotonic()
    found = probe_inventory(with_engines=False)
    never.set()
    assert time.monotonic() - start < 10
    assert found.notes == ("NVIDIA's driver did not answer within 0.2 s: its GPUs are left out",)


def test_second_probe_is_quick() -> None:
    """With binaries' answers remembered, asking the machine leaves most of a second's budget to the rest of a start."""
    probe_inventory()
    times = []
    for _ in range(3):
        start = time.monotonic()
        probe_inventory()
        times.append(time.monotonic() - start)
    assert min(times) < 0.8
