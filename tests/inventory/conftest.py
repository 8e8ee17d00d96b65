"""Tools of the inventory's tests: the stand-in NVML, and small programs that pose as engines."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from launcher.domain import Inventory
from tests.fakes.nvml import compile_stub as compile_nvml

NvmlProbe = Callable[..., Inventory]

_PROBE = """
import sys
import msgspec
from launcher.domain import Host, Inventory
from launcher.inventory.nvidia import probe_nvidia
found = probe_nvidia()
host = Host(total_bytes=1, available_bytes=1)
sys.stdout.buffer.write(msgspec.json.encode(Inventory(name="x", host=host, devices=found.devices, notes=found.notes)))
"""


@pytest.fixture(scope="session")
def compile_stub(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compile the stand-in NVML; returns a folder with ``libnvidia-ml.so.1``, one per set of macros."""
    built: dict[tuple[str, ...], Path] = {}

    def build(*macros: str) -> Path:
        if macros not in built:
            built[macros] = compile_nvml(tmp_path_factory.mktemp("nvml"), *macros)
        return built[macros]

    return build


@pytest.fixture
def probe_nvml(compile_stub: Callable[..., Path], tmp_path: Path) -> NvmlProbe:
    """Run the real probe, through the real pynvml, on a machine that the stand-in makes up."""

    def probe(machine: dict[str, object], *macros: str) -> Inventory:
        config = tmp_path / "machine"
        config.write_text("".join(f"{key}={value}\n" for key, value in machine.items()), errors="surrogateescape")
        # The loader reads LD_LIBRARY_PATH when a program starts: hence a process of its own.
        env = {**os.environ, "NVML_STUB": str(config), "LD_LIBRARY_PATH": str(compile_stub(*macros))}
        output = subprocess.run([sys.executable, "-c", _PROBE], env=env, check=True, capture_output=True, timeout=60)
        assert output.stderr == b""
        return msgspec.json.decode(output.stdout, type=Inventory)

    return probe


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write an executable shell script; returns its path."""

    def write(name: str, body: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    return write
