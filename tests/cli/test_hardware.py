"""`launch hardware` as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.domain import (
    Device,
    DeviceKind,
    DeviceProcess,
    Engine,
    EngineDevice,
    EngineInstall,
    Host,
    Inventory,
)
from launcher.render.hardware import render_hardware
from launcher.units import GIB, MIB


def launch(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run the program with a cache folder of its own."""
    env = {**os.environ, "LAUNCHER_CACHE_DIR": str(cache)}
    return subprocess.run(
        [sys.executable, "-m", "launcher", "hardware", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_this_machine(tmp_path: Path) -> None:
    """The plain form names host, devices and engines, and writes nothing to stderr."""
    done = launch(cache=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if line in {"host", "devices", "engines"}] == [
        "host", "devices", "engines",
    ]  # fmt: skip


def test_json_goes_back_in(tmp_path: Path) -> None:
    """What `--json` prints is what `--inventory FILE` accepts, and printed again it is the same text."""
    first = launch("--json", cache=tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    assert json.loads(first.stdout)["schema_version"] == 2
    file = tmp_path / "me.json"
    file.write_text(first.stdout)
    again = launch("--json", "--inventory", str(file), cache=tmp_path)
    assert (again.returncode, again.stdout) == (0, first.stdout)


def test_reference_machine(tmp_path: Path) -> None:
    """A reference machine is shown with its published figures, its engines unknown."""
    done = launch("--inventory", "rtx4090", cache=tmp_path)
    assert done.returncode == 0
    assert "gpu0  NVIDIA GeForce RTX 4090: 23.5 GiB free of 24.0 GiB" in done.stdout
    assert "1008 GB/s" in done.stdout
    assert done.stdout.endswith("engines\n  unknown\n")


@pytest.mark.parametrize(
    ("name", "said"),
    [("rtx409", "did you mean `rtx4090`?"), ("missing.toml", "no such file or directory")],
)
def test_wrong_inventory(name: str, said: str, tmp_path: Path) -> None:
    """A wrong name or file is a usage error on stderr, with help, and no traceback."""
    done = launch("--inventory", name, cache=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error[bad-inventory]: ")
    assert "help: " in done.stderr
    assert said in done.stderr


def test_whole_text() -> None:
    """Every kind of line, once: limits, lanes, holders of memory, and an engine that reaches no GPU."""
    inventory = Inventory(
        name="box",
        host=Host(
            total_bytes=64 * GIB,
            available_bytes=50 * GIB,
            swap_total_bytes=8 * GIB,
            swap_free_bytes=7 * GIB,
            cgroup_limit_bytes=32 * GIB,
            cgroup_used_bytes=2 * GIB,
            n_cpu=6,
            n_cpu_physical=8,
            cpu_quota=6.5,
            cpu_name="AMD Ryzen 9",
            isa=("avx2", "f16c"),
            bandwidth_bytes_per_s=60e9,
            free_disk_bytes=500 * GIB,
            address_space_bytes=24 * GIB,
        ),
        devices=(
            Device(
                name="gpu0",
                kind=DeviceKind.CUDA,
                description="NVIDIA GeForce RTX 4090",
                total_bytes=24564 * MIB,
                free_bytes=20000 * MIB,
                bandwidth_bytes_per_s=1008e9,
                pcie_bytes_per_s=31.5e9,
                compute_capability=(8, 9),
                bus_id="0000:01:00.0",
                processes=(DeviceProcess(pid=812, name="Xorg", used_bytes=50 * MIB), DeviceProcess(pid=99)),
            ),
        ),
        engines=(
            EngineInstall(
                engine=Engine.LLAMA_SERVER,
                argv=("/usr/bin/llama-server",),
                version="6123 (abc1234)",
                devices=(EngineDevice(name="CUDA0", description="NVIDIA GeForce RTX 4090", device="gpu0"),),
            ),
            EngineInstall(engine=Engine.LLAMA_CPP_PYTHON, argv=("python", "-m", "llama_cpp.server"), version="0.3.36"),
            EngineInstall(engine=Engine.VLLM, argv=("vllm", "serve")),
        ),
        notes=("something to know",),
    )
    assert (
        render_hardware(inventory)
        == """\
box (measured)

host
  memory  50.0 GiB available of 64.0 GiB, 60 GB/s
  swap    7.0 GiB free of 8.0 GiB
  cgroup  2.0 GiB used of 32.0 GiB, so 30.0 GiB free
  limit   24.0 GiB of address space for a process (ulimit -v, LimitAS=)
  cpu     6 threads on 8 cores, cgroup quota 6.5, AMD Ryzen 9
  isa     avx2 f16c
  disk    500 GiB free

devices
  gpu0  NVIDIA GeForce RTX 4090: 19.5 GiB free of 24.0 GiB
        1008 GB/s, PCIe 32 GB/s, compute capability 8.9, cuda, at 0000:01:00.0
        50.0 MiB held by Xorg (pid 812)
        an unknown amount held by an unnamed process (pid 99)

engines
  llama-server 6123 (abc1234)
        /usr/bin/llama-server
        sees CUDA0 = gpu0
  llama-cpp-python 0.3.36
        python -m llama_cpp.server
        CPU only: this build sees none of the devices above
  vllm (version unknown)
        vllm serve

notes
  - something to know
"""
    )


def test_no_control_characters() -> None:
    """A path with line ends and escapes in it can neither move the cursor nor pose as another line."""
    install = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("/opt/a\nnotes\n  - fake\x1b[2J",), version="1")
    text = render_hardware(Inventory(name="x", host=Host(total_bytes=GIB, available_bytes=GIB), engines=(install,)))
    assert "\x1b" not in text
    assert "notes" not in text.splitlines()


def test_empty_machine() -> None:
    """A machine without devices and engines says so, and asks nothing of what is unknown."""
    inventory = Inventory(name="bare", host=Host(total_bytes=GIB, available_bytes=GIB), engines=())
    assert (
        render_hardware(inventory)
        == """\
bare (measured)

host
  memory  1.0 GiB available of 1.0 GiB
  cpu     1 thread

devices
  none

engines
  none found
"""
    )
