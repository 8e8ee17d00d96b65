"""NVIDIA's GPUs through the real pynvml, against a stand-in library with NVML's C interface."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.domain import Device, DeviceKind, DeviceProcess
from launcher.inventory.nvidia import memory_bandwidth, normal_bus_id, pcie_bandwidth
from launcher.units import MIB
from tests.inventory.conftest import NvmlProbe

RTX_4090 = {
    "name": "NVIDIA GeForce RTX 4090", "uuid": "GPU-4bd2c3ac-0000-1111-2222-333344445555",
    "total": 24564 * MIB, "free": 24082 * MIB, "memory_mhz": 10501, "bus_width": 384, "major": 8, "minor": 9,
    "pcie_gen_max": 4, "pcie_width_max": 16, "pcie_gen": 1, "pcie_width": 16, "bus_id": "00000000:01:00.0",
}  # fmt: skip
RTX_3060 = {
    **RTX_4090, "name": "NVIDIA GeForce RTX 3060", "uuid": "GPU-3060", "total": 12288 * MIB, "free": 12000 * MIB,
    "memory_mhz": 7501, "bus_width": 192, "major": 8, "minor": 6, "pcie_width": 4, "bus_id": "00000000:2A:00.0",
}  # fmt: skip


def machine(*devices: dict[str, object], **also: object) -> dict[str, object]:
    """Return the stand-in's answers for a machine of these devices."""
    return {
        "count": len(devices),
        **{f"{idx}.{key}": value for idx, device in enumerate(devices) for key, value in device.items()},
        **also,
    }


@pytest.mark.parametrize(
    "name", ["c_nvmlMemory_t", "c_nvmlMemory_v2_t", "nvmlPciInfo_t", "c_nvmlProcessInfo_t", "c_nvmlUtilization_t"]
)
def test_structures_agree(name: str, compile_stub: Callable[..., Path]) -> None:
    """The stand-in's structures have the size of pynvml's, so that a test cannot pass on a layout of our own."""
    stub = ctypes.CDLL(str(compile_stub() / "libnvidia-ml.so.1"))
    assert stub.stub_sizeof(name.encode()) == ctypes.sizeof(getattr(pynvml, name))


def test_everything_told(probe_nvml: NvmlProbe) -> None:
    """A driver that tells all gives every field; an idle link's low generation is not taken for its speed."""
    found = probe_nvml(machine(RTX_4090))
    assert found.notes == ()
    assert found.devices == (
        Device(
            name="gpu0",
            kind=DeviceKind.CUDA,
            description="NVIDIA GeForce RTX 4090",
            total_bytes=24564 * MIB,
            free_bytes=24082 * MIB,
            bandwidth_bytes_per_s=1_008_096_000_000,
            pcie_bytes_per_s=16 * 1.969e9,
            compute_capability=(8, 9),
            uuid="GPU-4bd2c3ac-0000-1111-2222-333344445555",
            bus_id="0000:01:00.0",
        ),
    )


def test_two_unequal(probe_nvml: NvmlProbe) -> None:
    """Unequal GPUs keep the driver's order and their own figures; a link narrower than it could be is a note."""
    found = probe_nvml(machine(RTX_4090, RTX_3060))
    assert [(d.name, d.total_bytes // MIB, d.bus_id) for d in found.devices] == [
        ("gpu0", 24564, "0000:01:00.0"),
        ("gpu1", 12288, "0000:2a:00.0"),
    ]
    assert found.devices[1].pcie_bytes_per_s == 4 * 1.969e9
    assert found.notes == ("gpu1 uses 4 of the 16 PCI Express lanes it could: offloaded weights reach it more slowly",)


def test_processes(probe_nvml: NvmlProbe) -> None:
    """Who holds memory is told with name and bytes; unknown bytes and names are unknown, not nothing."""
    answers = machine(
        {**RTX_4090, "compute": "4711:1073741824 99:-", "graphics": "4711:1073741824 812:52428800"},
        **{"process.4711": "/usr/bin/python3.11", "process.812": "Xorg"},
    )
    assert probe_nvml(answers).devices[0].processes == (
        DeviceProcess(pid=99),
        DeviceProcess(pid=812, name="Xorg", used_bytes=50 * MIB),
        DeviceProcess(pid=4711, name="python3.11", used_bytes=1024 * MIB),
    )


def test_fields_not_supported(probe_nvml: NvmlProbe) -> None:
    """A field that device or driver does not give is unknown, and the others stay."""
    found = probe_nvml(machine({"total": 8192 * MIB, "free": 8000 * MIB, "name": "!999", "uuid": "!4"}))
    assert found.devices == (
        Device(
            name="gpu0",
            kind=DeviceKind.CUDA,
            description="NVIDIA GPU",
            total_bytes=8192 * MIB,
            free_bytes=8000 * MIB,
        ),
    )


def test_old_driver(probe_nvml: NvmlProbe) -> None:
    """A driver without the newer calls still gives memory and processes; the bus width it cannot tell is unknown."""
    found = probe_nvml(machine({**RTX_4090, "compute": "7:1048576"}), "OLD_DRIVER")
    device = found.devices[0]
    assert (device.total_bytes, device.free_bytes) == (24564 * MIB, 24082 * MIB)
    assert device.bandwidth_bytes_per_s is None
    assert device.processes == (DeviceProcess(pid=7, used_bytes=MIB),)


def test_mismatch_is_a_note(probe_nvml: NvmlProbe) -> None:
    """A library that differs from the kernel module, as after an update, is no error, and is said with its remedy."""
    found = probe_nvml({"init": "!18"})
    assert found.devices == ()
    assert len(found.notes) == 1
    assert "RM has detected an NVML/RM version mismatch" in found.notes[0]
    assert "reboot" in found.notes[0]


def test_library_without_driver_is_silent(probe_nvml: NvmlProbe) -> None:
    """A machine that has the library, but no driver, has no NVIDIA GPU: nothing to tell, unless the kernel has one."""
    found = probe_nvml({"init": "!9"})
    assert found.devices == ()
    assert bool(found.notes) is Path("/proc/driver/nvidia/version").exists()


def test_no_device(probe_nvml: NvmlProbe) -> None:
    """A working driver without GPUs gives none."""
    found = probe_nvml(machine())
    assert (found.devices, found.notes) == ((), ())


def test_one_lost(probe_nvml: NvmlProbe) -> None:
    """A GPU that fell off the bus is a note, and the next one is still found, numbered without a gap."""
    found = probe_nvml(machine({**RTX_4090, "handle": "!15"}, RTX_3060))
    assert [(d.name, d.description) for d in found.devices] == [("gpu0", "NVIDIA GeForce RTX 3060")]
    assert found.notes[0] == "NVIDIA's GPU 0 is out of use: GPU is lost"


def test_memory_untold(probe_nvml: NvmlProbe) -> None:
    """A GPU that shares the host's memory tells none of its own: it is left to the engines, and said."""
    found = probe_nvml(machine({"name": "NVIDIA GB10"}))
    assert found.devices == ()
    assert found.notes == ("NVIDIA's GPU 0 does not tell its memory; only an engine can",)


def test_slices(probe_nvml: NvmlProbe) -> None:
    """A divided GPU is listed as its slices, which alone can be used; their share of the bandwidth is unknown."""
    slices: dict[str, object] = {
        f"mig{idx}.{key}": value
        for idx, name in ((0, "A100 MIG 3g.40gb"), (2, "A100 MIG 1g.10gb"))
        for key, value in {"name": name, "uuid": f"MIG-{idx}", "total": (idx + 1) * MIB, "free": MIB}.items()
    }
    found = probe_nvml(machine({**RTX_4090, "mig": 1, **slices}))
    assert [(d.name, d.description, d.uuid, d.total_bytes) for d in found.devices] == [
        ("gpu0", "A100 MIG 3g.40gb", "MIG-0", MIB),
        ("gpu1", "A100 MIG 1g.10gb", "MIG-2", 3 * MIB),
    ]
    assert {d.bandwidth_bytes_per_s for d in found.devices} == {None}


def test_more_free_than_there_is(probe_nvml: NvmlProbe) -> None:
    """A free figure above the total, which some virtual GPUs give, is cut to the total."""
    found = probe_nvml(machine({**RTX_4090, "free": 99999 * MIB}))
    assert found.devices[0].free_bytes == 24564 * MIB


def test_unreadable_text_is_unknown(probe_nvml: NvmlProbe) -> None:
    """A name or address that is no UTF-8 is unknown, and costs no other field."""
    found = probe_nvml(machine({**RTX_4090, "name": "\udcff", "bus_id": "\udcff"}))
    device = found.devices[0]
    assert (device.description, device.bus_id, device.uuid) == ("NVIDIA GPU", None, RTX_4090["uuid"])


@pytest.mark.parametrize(
    ("clock_mhz", "bus_width_bits", "published_gb_per_s"),
    [(10501, 384, 1008), (9751, 384, 936), (14001, 512, 1792), (1215, 5120, 1555), (2619, 5120, 3352)],
)
def test_bandwidth_is_the_published_one(clock_mhz: int, bus_width_bits: int, published_gb_per_s: int) -> None:
    """NVML's clock and width give the vendor's figure within 0.1 %: RTX 4090, 3090, 5090, A100, H100."""
    assert memory_bandwidth(clock_mhz, bus_width_bits) == pytest.approx(published_gb_per_s * 1e9, rel=1e-3)


@given(st.one_of(st.none(), st.integers(0, 9)), st.one_of(st.none(), st.integers(0, 32)))
def test_link_is_known_or_unknown(generation: int | None, n_lanes: int | None) -> None:
    """A link has a bandwidth only if generation and width are known, and it is never 0."""
    bandwidth = pcie_bandwidth(generation, n_lanes)
    known = generation in range(1, 7) and bool(n_lanes)
    assert (bandwidth is not None and bandwidth > 0) is known


def test_bus_id_as_sysfs_writes_it() -> None:
    """The address of one device compares equal whoever told it."""
    assert normal_bus_id("00000000:2A:00.0") == normal_bus_id("0000:2a:00.0") == "0000:2a:00.0"
