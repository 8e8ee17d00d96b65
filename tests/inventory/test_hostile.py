"""Texts and files that no machine has: inputs that `make fuzz` found, kept."""

import json
from typing import Any

import pytest

from launcher.errors import InventoryError, UsageError
from launcher.inventory.cgroup import parse_cpu_max, parse_stat
from launcher.inventory.class_fields import annotated_fields
from launcher.inventory.holes import parse_release
from launcher.inventory.host import CpuInfo, parse_cpuinfo, parse_meminfo
from launcher.inventory.llama_text import parse_devices
from launcher.inventory.machines import parse_machines
from launcher.inventory.workers import parse_workers

_LONG = "9" * 5000
"""Python refuses to read so many digits as a number."""


@pytest.mark.parametrize("number", [_LONG, "²", "-1", "x", ""])
def test_the_kernels_figures_are_decimal_numbers(number: str) -> None:
    """Anything else is as good as not told."""
    assert parse_meminfo(f"MemTotal: {number} kB\nMemAvailable: 1 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n") is None
    cpus = parse_cpuinfo(f"processor\t: {number}\ncore id\t: 0\n", {0})
    assert cpus == CpuInfo(name=None, isa=(), n_physical=None)


def test_a_device_with_an_absurd_memory_is_one_without_figures() -> None:
    """It is still listed: an engine can use it."""
    (device,) = parse_devices(f"Available devices:\n  CUDA0: GPU ({_LONG} MiB, {_LONG} MiB free)\n")
    assert (device.name, device.total_bytes, device.free_bytes) == ("CUDA0", None, None)


def test_a_release_of_thousands_of_digits_is_none() -> None:
    """A version is what a file beside the engine says."""
    assert parse_release(_LONG) is None
    assert parse_release(f"0.22.{_LONG}") == (0, 22)


def test_another_programs_style_is_not_told(recwarn: pytest.WarningsRecorder) -> None:
    """Python's parser warns on stderr of what it may not take in a later version."""
    assert list(annotated_fields("class A:\n    x: int = 1if 2else 3\n    y: str = '\\d'\n", {"A"})) == ["x", "y"]
    assert not recwarn.list


def test_control_groups_count_in_64_bits() -> None:
    """A counter of thousands of digits is none, a quota of them no share."""
    assert parse_stat(f"oom_kill {_LONG}\ninactive_file ²\nactive_file 4096\n") == {"active_file": 4096}
    assert parse_cpu_max(f"{'9' * 400} 1") is None
    assert parse_cpu_max("50000 100000") == 0.5


def test_a_worker_of_endless_memory_is_not_understood() -> None:
    """Such a size is infinite as a number."""
    with pytest.raises(UsageError):
        parse_workers(f"127.0.0.1:50052={'9' * 400}GiB")


def _machine(**changes: Any) -> bytes:
    device = {"name": "gpu0", "kind": "cuda", "description": "x", "total_bytes": 10**10, **changes.pop("device", {})}
    host = {"total_bytes": 10**10, "available_bytes": 10**10, **changes.pop("host", {})}
    return json.dumps({"name": "m", "host": host, "devices": [device], **changes}).encode()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"device": {"compute_capability": [-8, 9]}}, "devices[0].compute_capability[0]"),
        ({"device": {"bandwidth_bytes_per_s": 5e-324}}, "devices[0].bandwidth_bytes_per_s"),
        ({"device": {"bandwidth_bytes_per_s": 0.0}}, "devices[0].bandwidth_bytes_per_s"),
        ({"device": {"total_bytes": 10**400}}, "devices[0].total_bytes"),
        ({"host": {"bandwidth_bytes_per_s": 0.0}}, "host.bandwidth_bytes_per_s"),
        ({"device": {"processes": [{"pid": 1, "used_bytes": -1}]}}, "devices[0].processes[0].used_bytes"),
        (
            {
                "engines": [
                    {"engine": "vllm", "argv": [], "devices": [{"name": "x", "description": "x", "total_bytes": -1}]}
                ]
            },
            "engines[0].devices[0].total_bytes",
        ),
        ({"engines": [{"engine": "vllm", "argv": [], "env": {"a": 1}}]}, "engines[0].env"),
    ],
)
def test_figures_that_no_machine_has_are_named(changes: dict[str, Any], key: str) -> None:
    """A bandwidth of nothing was divided by, a negative one made negative plans, a wrong type in a mapping a traceback."""
    with pytest.raises(InventoryError) as caught:
        parse_machines(_machine(**changes), source="m.json", is_json=True)
    assert key in caught.value.message
