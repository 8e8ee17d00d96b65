"""Read back from an engine's log where it placed the model, to compare that with the plan.

It must not know how the log was captured, nor what to do about a difference. Pure.

What llama.cpp prints at verbosity 4 (builds 10434 and 11434, transcripts in tests/transcripts/llama-server):
``load_tensors: offloaded 10/19 layers to GPU`` and a size per buffer (``load_tensors:  Vulkan0 model buffer size =
32.77 MiB``). The count alone proves nothing: a build with a GPU backend compiled in but no device found prints
``offloaded 19/19 layers to GPU`` and then puts every buffer on the CPU. So the count holds only where a device holds
a part of the model.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from launcher.domain import Footprint, MemoryUse, Noun
from launcher.supervisor.vllm_told import MARKS, VllmTold, parse_told
from launcher.units import MIB, format_bytes

_OFFLOADED: Final = re.compile(r"offloaded (\d{1,6})/(\d{1,6}) layers to GPU")
_BUFFER: Final = re.compile(r":\s+(\S+)\s+(model|KV|RS|compute|output) buffer size\s*=\s*(\d{1,12}(?:\.\d{1,6})?) MiB")
_ASSIGNED: Final = re.compile(r"load_tensors: layer\s+(\d{1,6}) assigned to device ([^,\s]+)")
_SOFTWARE_GPU: Final = re.compile(r"using device \S+ \((?:llvmpipe|lavapipe|SwiftShader)", re.IGNORECASE)
_HOST_BUFFER: Final = re.compile(r"^(?:CPU(?:_.*)?|AMX|.*_Host|BLAS)$")
_TELLING: Final = (" buffer size", " layers to GPU", "assigned to device", "using device", *MARKS)
_MIN_SHARE: Final = 0.9
"""Of the planned weights that must be on devices. Assumed: tensors that stay behind singly are far larger than 10 %."""


class Placement(Noun, frozen=True):
    """What an engine said of its own placement; ``None`` and empty where it said nothing.

    ``devices`` and ``hosts`` are the engine's buffers by its own names, host memory apart. ``software_gpu`` marks a
    CPU that poses as a GPU: its largest buffer is small, so bigger tensors silently stay in host memory.
    """

    n_gpu_layers: int | None = None
    n_layers: int | None = None
    devices: tuple[MemoryUse, ...] = ()
    hosts: tuple[MemoryUse, ...] = ()
    software_gpu: bool = False
    vllm: VllmTold | None = None
    """What vLLM told, which divides its memory otherwise."""

    @property
    def device_weights_bytes(self) -> int:
        """Bytes of the model that devices hold."""
        return sum(device.weights_bytes for device in self.devices)

    @property
    def has_weights(self) -> bool:
        """Whether the engine has told where the model's bytes are."""
        return any(use.weights_bytes for use in self.devices + self.hosts)

    @property
    def realised_gpu_layers(self) -> int | None:
        """Layers on devices: as told, but none where no device holds any of the model."""
        if self.n_gpu_layers and self.hosts and not self.device_weights_bytes:
            return 0
        return self.n_gpu_layers


def is_telling(line: str) -> bool:
    """Whether the line may say something of placement; quick enough for every line of a verbose log."""
    return any(mark in line for mark in _TELLING)


def parse_placement(lines: Iterable[str]) -> Placement:
    """Read an engine's log lines, plain or as JSON lines, of one start."""
    told: tuple[int, int] | None = None
    assigned: dict[int, str] = {}
    buffers: dict[str, dict[str, int]] = {}
    software_gpu = False
    lines = tuple(lines)
    for line in lines:
        software_gpu = software_gpu or _SOFTWARE_GPU.search(line) is not None
        if match := _OFFLOADED.search(line):
            told = int(match[1]), int(match[2])
        elif match := _ASSIGNED.search(line):
            assigned[int(match[1])] = match[2]
        elif match := _BUFFER.search(line):
            sizes = buffers.setdefault(match[1], {})
            n_bytes = round(float(match[3]) * MIB)
            # A compute buffer is reserved anew when a first attempt fails: the last one stands. The others add up.
            sizes[match[2]] = n_bytes if match[2] == "compute" else sizes.get(match[2], 0) + n_bytes
    if told is None and assigned:
        told = sum(not _HOST_BUFFER.match(name) for name in assigned.values()), len(assigned)
    uses = tuple(_memory_use(name, sizes) for name, sizes in buffers.items())
    return Placement(
        n_gpu_layers=told[0] if told else None,
        n_layers=told[1] if told else None,
        devices=tuple(use for use in uses if not _HOST_BUFFER.match(use.name)),
        hosts=tuple(use for use in uses if _HOST_BUFFER.match(use.name)),
        software_gpu=software_gpu,
        vllm=parse_told(lines),
    )


def _memory_use(name: str, sizes: Mapping[str, int]) -> MemoryUse:
    return MemoryUse(
        name=name,
        weights_bytes=sizes.get("model", 0),
        kv_cache_bytes=sizes.get("KV", 0) + sizes.get("RS", 0),
        compute_bytes=sizes.get("compute", 0) + sizes.get("output", 0),
    )


def mismatch(placement: Placement, expected_gpu_layers: int | None, expected: Footprint | None) -> str | None:
    """Return how the placement falls short of the plan, or ``None`` where it does not. More than planned is no fault."""
    if not expected_gpu_layers:
        return None
    of = f" of {placement.n_layers}" if placement.n_layers else ""
    realised = placement.realised_gpu_layers
    if realised is None:
        return (
            f"{expected_gpu_layers} layers were planned for the GPU, and the engine did not say that it put any there"
        )
    if realised < expected_gpu_layers:
        return f"the engine put {realised}{of} layers on the GPU where {expected_gpu_layers} were planned"
    planned_bytes = sum(device.weights_bytes for device in expected.devices) if expected else 0
    if placement.devices and not placement.software_gpu and placement.device_weights_bytes < _MIN_SHARE * planned_bytes:
        return (
            f"the engine put {format_bytes(placement.device_weights_bytes)} of weights on the GPU"
            f" where {format_bytes(planned_bytes)} were planned"
        )
    return None


def describe(placement: Placement) -> str:
    """Return the placement in a few words: layers, and bytes per device."""
    parts = []
    if placement.realised_gpu_layers is not None:
        parts.append(f"{placement.realised_gpu_layers}/{placement.n_layers} layers on the GPU")
    parts += [f"{use.name} {format_bytes(use.total_bytes)}" for use in placement.devices + placement.hosts]
    if placement.vllm is not None and placement.vllm.kv_cache_tokens is not None:
        parts.append(f"a cache of {placement.vllm.kv_cache_tokens:,} tokens")
    return ", ".join(parts)
