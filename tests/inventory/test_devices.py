"""Which listed device is which physical one."""

from hypothesis import given
from hypothesis import strategies as st

from launcher.domain import Device, DeviceKind, Engine, EngineDevice, EngineInstall
from launcher.inventory.devices import device_kind, join_devices
from launcher.inventory.sysfs import AmdGpu
from launcher.units import GIB, MIB


def nvml(idx: int, name: str, total_mib: int) -> Device:
    """Return a GPU as NVML tells it."""
    return Device(
        name=f"gpu{idx}",
        kind=DeviceKind.CUDA,
        description=name,
        total_bytes=total_mib * MIB,
        free_bytes=total_mib * MIB,
        uuid=f"GPU-{idx}",
    )


def engine(*devices: tuple[str, str, int]) -> EngineInstall:
    """Return an engine that lists these devices: name, description, MiB."""
    listed = (
        EngineDevice(name=name, description=text, total_bytes=mib * MIB, free_bytes=mib * MIB)
        for name, text, mib in devices
    )
    return EngineInstall(engine=Engine.LLAMA_SERVER, argv=("llama-server",), devices=tuple(listed))


def names(install: EngineInstall) -> list[tuple[str, str | None]]:
    """Return each listed device with our name of it."""
    return [(device.name, device.device) for device in install.devices]


def test_cuda_and_vulkan_are_the_nvml_one() -> None:
    """A GPU that NVML tells, listed by CUDA and by Vulkan with slightly less memory, stays one device."""
    gpu = nvml(0, "NVIDIA GeForce RTX 5090", 32607)
    listed = engine(
        ("CUDA0", "NVIDIA GeForce RTX 5090", 32106),
        ("Vulkan0", "NVIDIA GeForce RTX 5090", 32607),
    )
    joined = join_devices([gpu], [listed])
    assert joined.devices == (gpu,)
    assert names(joined.installs[0]) == [("CUDA0", "gpu0"), ("Vulkan0", "gpu0")]


def test_two_equal_stay_two() -> None:
    """Two equal GPUs are matched in order, each once per back end."""
    gpus = [nvml(idx, "NVIDIA GeForce RTX 3090", 24576) for idx in range(2)]
    listed = engine(*((f"CUDA{idx}", "NVIDIA GeForce RTX 3090", 24124) for idx in range(2)))
    joined = join_devices(gpus, [listed, listed])
    assert joined.devices == tuple(gpus)
    assert [names(install) for install in joined.installs] == [[("CUDA0", "gpu0"), ("CUDA1", "gpu1")]] * 2


def test_unequal_in_another_order() -> None:
    """CUDA lists the fastest GPU first, NVML by bus: names and totals tell them apart."""
    gpus = [nvml(0, "NVIDIA GeForce RTX 3060", 12288), nvml(1, "NVIDIA GeForce RTX 4090", 24564)]
    listed = engine(("CUDA0", "NVIDIA GeForce RTX 4090", 24081), ("CUDA1", "NVIDIA GeForce RTX 3060", 11909))
    assert names(join_devices(gpus, [listed]).installs[0]) == [("CUDA0", "gpu1"), ("CUDA1", "gpu0")]


def test_same_name_other_size() -> None:
    """A 3060 of 8 GB is not one of 12 GB: the total decides where the name does not."""
    gpus = [nvml(0, "NVIDIA GeForce RTX 3060", 12288), nvml(1, "NVIDIA GeForce RTX 3060", 8192)]
    listed = engine(("CUDA0", "NVIDIA GeForce RTX 3060", 8000))
    assert names(join_devices(gpus, [listed]).installs[0]) == [("CUDA0", "gpu1")]


def test_device_that_no_driver_tells() -> None:
    """An AMD GPU is added after NVIDIA's, once for both engines that list it under different words."""
    one = engine(("Vulkan0", "AMD Radeon RX 7900 XTX (RADV NAVI31)", 24560))
    other = engine(("ROCm0", "Radeon RX 7900 XTX", 24560))
    amd = AmdGpu(total_bytes=24560 * MIB, used_bytes=GIB, bus_id="0000:03:00.0")
    joined = join_devices([nvml(0, "NVIDIA GeForce RTX 3090", 24576)], [one, other], (amd,))
    assert [(d.name, d.kind, d.bus_id) for d in joined.devices] == [
        ("gpu0", DeviceKind.CUDA, None),
        ("gpu1", DeviceKind.VULKAN, "0000:03:00.0"),
    ]
    assert [names(install) for install in joined.installs] == [[("Vulkan0", "gpu1")], [("ROCm0", "gpu1")]]


def test_amd_that_no_engine_lists() -> None:
    """A GPU that only the kernel tells is a device still: that no engine reaches it is worth knowing."""
    amd = AmdGpu(total_bytes=16 * GIB, used_bytes=GIB, bus_id="0000:03:00.0", name="Radeon RX 7800 XT")
    (device,) = join_devices([], [engine()], (amd,)).devices
    assert (device.name, device.kind, device.free_bytes) == ("gpu0", DeviceKind.ROCM, 15 * GIB)


def test_integrated_graphics_is_counted_once() -> None:
    """An AMD processor's graphics, small in sysfs and large in Vulkan, is the one device that Vulkan lists."""
    listed = engine(("Vulkan0", "AMD Radeon Graphics (RADV RENOIR)", 16000))
    joined = join_devices([], [listed], (AmdGpu(total_bytes=512 * MIB, used_bytes=0, bus_id="0000:04:00.0"),))
    assert [(d.total_bytes, d.bus_id) for d in joined.devices] == [(16000 * MIB, None)]


def test_software_device_is_flagged() -> None:
    """A renderer on the processor is listed, flagged, and said to be no GPU; a second engine knows it again."""
    listed = engine(("Vulkan0", "llvmpipe (LLVM 15.0.6, 256 bits)", 2048))
    joined = join_devices([], [listed, listed])
    (device,) = joined.devices
    assert device.description == "llvmpipe (LLVM 15.0.6, 256 bits) [software, no GPU]"
    assert len(joined.notes) == 1
    assert "gpu0 is a software renderer" in joined.notes[0]


def test_device_of_unknown_size() -> None:
    """A device whose memory nobody tells cannot be planned for: it stays with its engine only."""
    install = EngineInstall(
        engine=Engine.LLAMA_SERVER, argv=("x",), devices=(EngineDevice(name="CANN0", description="Ascend"),)
    )
    joined = join_devices([], [install])
    assert joined.devices == ()
    assert names(joined.installs[0]) == [("CANN0", None)]


def test_kinds() -> None:
    """The engine's name of a device tells the interface."""
    kinds = {name: device_kind(name) for name in ("CUDA1", "ROCm0", "Vulkan12", "SYCL0", "MTL0", "RPC[h:1]", "CANN0")}
    assert list(kinds.values()) == [
        DeviceKind.CUDA, DeviceKind.ROCM, DeviceKind.VULKAN, DeviceKind.SYCL, DeviceKind.METAL, DeviceKind.RPC,
        DeviceKind.OTHER,
    ]  # fmt: skip


CARDS = st.lists(st.sampled_from([("A", 8000), ("A", 16000), ("B", 24000)]), max_size=5)


@given(CARDS, CARDS)
def test_names_are_unique_and_nothing_is_lost(told: list[tuple[str, int]], listed: list[tuple[str, int]]) -> None:
    """Drivers' devices stay as they are; each device has its own name; no two of one back end are the same."""
    drivers = [nvml(idx, *card) for idx, card in enumerate(told)]
    joined = join_devices(drivers, [engine(*((f"CUDA{idx}", *card) for idx, card in enumerate(listed)))])
    assert joined.devices[: len(drivers)] == tuple(drivers)
    ours = [device.name for device in joined.devices]
    assert len(set(ours)) == len(ours) >= max(len(told), len(listed))
    matched = [device.device for device in joined.installs[0].devices]
    assert len(set(matched)) == len(matched) == len(listed)
    assert set(matched) <= set(ours)
