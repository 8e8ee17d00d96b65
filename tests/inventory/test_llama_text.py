"""What llama.cpp programs print about themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.domain import EngineDevice
from launcher.inventory.llama_text import parse_devices, parse_flags, parse_version
from launcher.units import MIB

# From `llama-server --help`, build 11434, shortened.
HELP = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
--version                               show version and build info
-t,    --threads N                      number of CPU threads to use during generation (default: -1)
                                        (env: LLAMA_ARG_THREADS)
-C,    --cpu-mask M                     CPU affinity mask: arbitrarily long hex. Complements --cpu-range
                                        - on: read the rows, see --no-such-flag
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'auto')
-dt,   --defrag-thold N                 KV cache defragmentation threshold (DEPRECATED)
--mmap, --no-mmap                       whether to memory-map model
--draft, --draft-n, --draft-max N       the argument has been removed. use --spec-draft-n-max or
                                        --spec-draft-max
--temp, --temperature N                 temperature (default: 0.80)
"""


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("version: 0.6.0-dev (build 0, commit unknown)\nbuilt with GNU", "0.6.0-dev (build 0, commit unknown)"),
        ("version: 0.1.0-dev (build 1, commit 7e4c0a9)\n", "0.1.0-dev (build 1, commit 7e4c0a9)"),
        ("ggml_cuda_init: found 1 CUDA devices:\nversion: 6123 (abc1234)\n", "6123 (abc1234)"),
        ("hello\n", None),
        ("version: \n", None),
    ],
)
def test_version(text: str, version: str | None) -> None:
    """The version is what stands after the word, in all three forms that builds have, or unknown."""
    assert parse_version(text) == version


def test_flags() -> None:
    """Long options count where they are defined, not where a description mentions them, nor when removed."""
    assert parse_flags(HELP) == {
        "--help", "--usage", "--version", "--threads", "--cpu-mask", "--flash-attn", "--defrag-thold", "--mmap",
        "--no-mmap", "--temp", "--temperature",
    }  # fmt: skip


def test_no_device() -> None:
    """``(none)`` and an empty answer are no devices."""
    assert parse_devices("Available devices:\n  (none)\n") == parse_devices("") == ()


def test_devices() -> None:
    """Every form that builds print, with noise of drivers between the lines."""
    text = (
        "  Device 0: NVIDIA GeForce RTX 4090, compute capability 8.9, VMM: yes\n"
        "Available devices:\n"
        "  CUDA0: NVIDIA GeForce RTX 4090 (24081 MiB, 23700 MiB free)\n"
        "ggml_backend_cuda_get_available_uma_memory: final available_memory_kb: 56701456\n"
        "  ROCm0: AMD Radeon RX 7900 XTX (24560 MiB, 24504 MiB free)\n"
        "  Vulkan0: llvmpipe (LLVM 15.0.6, 256 bits) (2048 MiB, 2048 MiB free)\n"
        "  RPC[127.0.0.1:50052]: RPC[127.0.0.1:50052] (24105 MiB, 24105 MiB free)\n"
    )
    found = [(d.name, d.description, d.total_bytes, d.free_bytes) for d in parse_devices(text)]
    assert found == [
        ("CUDA0", "NVIDIA GeForce RTX 4090", 24081 * MIB, 23700 * MIB),
        ("ROCm0", "AMD Radeon RX 7900 XTX", 24560 * MIB, 24504 * MIB),
        ("Vulkan0", "llvmpipe (LLVM 15.0.6, 256 bits)", 2048 * MIB, 2048 * MIB),
        ("RPC[127.0.0.1:50052]", "RPC[127.0.0.1:50052]", 24105 * MIB, 24105 * MIB),
    ]


def test_accelerator_without_memory() -> None:
    """A library that only speeds up the processor is listed with 0 MiB, and is no device."""
    assert parse_devices("Available devices:\n  BLAS: OpenBLAS (0 MiB, 0 MiB free)\n") == ()


def test_more_free_than_there_is() -> None:
    """More free than total memory, as an engine printed for an RTX 5090 (llama.cpp #17536), is not believed."""
    text = "Available devices:\n  CUDA0: NVIDIA GeForce RTX 5090 (32106 MiB, 55372 MiB free)\n"
    assert parse_devices(text) == (
        EngineDevice(name="CUDA0", description="NVIDIA GeForce RTX 5090", total_bytes=32106 * MIB),
    )


def test_device_without_memory_figures() -> None:
    """A device listed by name alone is one whose memory is unknown."""
    assert parse_devices("Available devices:\n  CANN0: Ascend910B3\n") == (
        EngineDevice(name="CANN0", description="Ascend910B3"),
    )


@given(st.text(alphabet="Vulkan0: (MiB,free)12\n", max_size=200))
def test_garbage_is_no_error(text: str) -> None:
    """No text after the heading makes a device with more free than total memory, or fails."""
    for device in parse_devices("Available devices:\n" + text):
        assert device.free_bytes is None or device.total_bytes is None or device.free_bytes <= device.total_bytes


@given(st.text(alphabet="-abc, \n", max_size=100))
def test_flags_have_two_dashes(text: str) -> None:
    """Whatever is printed, a flag is a long option."""
    assert all(flag.startswith("--") and len(flag) > 2 for flag in parse_flags(text))
