"""What engines printed of their placement, in recorded transcripts, and its comparison with a plan."""

from pathlib import Path

import pytest

from launcher.domain import Footprint, HostUse, MemoryUse
from launcher.supervisor.placement import Placement, describe, is_telling, mismatch, parse_placement
from launcher.units import MIB

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"


def read(name: str) -> Placement:
    """Parse a transcript, through the filter that the runner uses."""
    return parse_placement(line for line in (TRANSCRIPTS / name).read_text().splitlines() if is_telling(line))


def weights_on_devices(n_mib: int) -> Footprint:
    """A plan's footprint with that much of weights on one device."""
    return Footprint(devices=(MemoryUse(name="gpu0", weights_bytes=n_mib * MIB),), host=HostUse())


def test_a_real_offload() -> None:
    """Ten of nineteen layers on a device, its buffers summed over both caches; a CPU that poses as a GPU is marked."""
    placement = read("llama-server/b10434-lavapipe-ngl10.log")
    assert (placement.realised_gpu_layers, placement.n_layers) == (10, 19)
    (device,) = placement.devices
    assert device.name == "Vulkan0"
    assert device.weights_bytes == round(32.77 * MIB)
    assert device.kv_cache_bytes == round(1.00 * MIB) + round(3.50 * MIB)
    assert placement.software_gpu
    assert mismatch(placement, 10, weights_on_devices(200)) is None  # its bytes say nothing
    assert "10 of 19 layers on the GPU where 11" in str(mismatch(placement, 11, None))


def test_the_count_without_a_device_is_a_fall_back_to_the_cpu() -> None:
    """The engine says `offloaded 19/19 layers to GPU` and has no GPU: none was."""
    placement = read("llama-server/b10434-silent-cpu-fallback.log")
    assert placement.n_gpu_layers == 19
    assert placement.realised_gpu_layers == 0
    assert {use.name for use in placement.hosts} == {"AMX", "CPU_Mapped", "CPU"}
    assert "0 of 19 layers" in str(mismatch(placement, 19, None))
    assert mismatch(placement, 0, None) is None


def test_a_remote_device_counts_with_its_bytes() -> None:
    """RPC devices carry their address in the name; fewer bytes than planned is a mismatch, more is none."""
    placement = read("llama-server/b11434-rpc-ngl10.log")
    assert [use.name for use in placement.devices] == ["RPC0[127.0.0.1:18499]"]
    assert placement.device_weights_bytes == round(202.77 * MIB)
    assert mismatch(placement, 10, weights_on_devices(203)) is None
    assert mismatch(placement, 10, weights_on_devices(100)) is None
    assert "203 MiB of weights on the GPU where 400 MiB" in str(mismatch(placement, 10, weights_on_devices(400)))


def test_layers_named_singly_are_counted() -> None:
    """llama-cpp-python without a GPU prints no count, but each layer's device."""
    placement = read("llama-cpp-python/0.3.36-cpu-verbose.log")
    assert (placement.realised_gpu_layers, placement.n_layers) == (0, 19)
    assert "0/19 layers on the GPU" in describe(placement)


def test_an_engine_that_tells_nothing() -> None:
    """No line: unknown, which is as good as wrong where a GPU was planned."""
    placement = parse_placement(["srv: listening"])
    assert placement == Placement()
    assert "did not say" in str(mismatch(placement, 5, None))
    assert mismatch(placement, None, None) is None


@pytest.mark.parametrize("line", ['{"type":"log","msg":"load_tensors: offloaded 7/9 layers to GPU\\n"}'])
def test_json_lines_are_read_too(line: str) -> None:
    """Newer builds log JSON lines."""
    assert parse_placement([line]).n_gpu_layers == 7
