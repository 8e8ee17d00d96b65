"""NVIDIA's GPUs watched while they work, through the real pynvml, against a stand-in library."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from launcher.domain import DeviceLoad, DeviceProcess
from launcher.units import MIB
from tests.fakes.nvml import StandIn

WATCH = """
import sys
import msgspec
from launcher.inventory.nvidia_live import open_nvidia
with open_nvidia() as monitor:
    for _ in sys.stdin:
        print(msgspec.json.encode(monitor.look() if monitor else None).decode(), flush=True)
"""
GPU: dict[str, object] = {
    "0.total": 24564 * MIB, "0.free": 24000 * MIB, "0.compute": f"41:{300 * MIB}", "process.41": "/usr/bin/engine",
    "0.utilization": 73, "0.power_mw": 312500, "0.limit_mw": 450000, "0.temperature": 81, "0.throttle": 0x21,
}  # fmt: skip


class Watcher:
    """A process that looks each time it is told to."""

    def __init__(self, stand_in: StandIn) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", WATCH], env=stand_in.env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def look(self) -> list[DeviceLoad] | None:
        """Return what it sees now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=list[DeviceLoad] | None)

    def close(self) -> int:
        """End it."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            return self._process.wait(20)


def test_what_changes_is_seen_without_opening_the_driver_again(
    compile_stub: Callable[..., Path], tmp_path: Path
) -> None:
    """Free memory, a new process, utilisation, power, temperature, and why the clocks are low."""
    stand_in = StandIn(compile_stub(), tmp_path / "machine")
    stand_in.answer({"count": 1, **GPU})
    watcher = Watcher(stand_in)
    first = watcher.look()
    stand_in.answer(
        {"count": 1, **GPU, "0.free": 64 * MIB, "0.compute": f"41:{300 * MIB} 99:{9000 * MIB}", "0.throttle": 1}
    )
    second = watcher.look()
    assert watcher.close() == 0
    engine = DeviceProcess(pid=41, name="engine", used_bytes=300 * MIB)
    assert first == [
        DeviceLoad(
            name="gpu0",
            total_bytes=24564 * MIB,
            free_bytes=24000 * MIB,
            processes=(engine,),
            utilization=0.73,
            power_w=312.5,
            power_limit_w=450.0,
            temperature_c=81,
            throttled=("heat",),
        )
    ]
    assert second is not None
    assert second[0].free_bytes == 64 * MIB
    assert second[0].processes == (engine, DeviceProcess(pid=99, used_bytes=9000 * MIB))
    assert second[0].throttled == ()  # idle clocks are no throttling


def test_names_are_the_inventorys(compile_stub: Callable[..., Path], tmp_path: Path) -> None:
    """A GPU that tells no memory has no name there, and so none here; one that is lost later is left out."""
    stand_in = StandIn(compile_stub(), tmp_path / "machine")
    answers: dict[str, object] = {"count": 3, "1.total": 8 * MIB, "1.free": MIB, "2.total": 9 * MIB, "2.free": MIB}
    stand_in.answer(answers)
    watcher = Watcher(stand_in)
    before = watcher.look()
    stand_in.answer({**answers, "1.total": "!15"})
    after = watcher.look()
    watcher.close()
    assert [(load.name, load.total_bytes) for load in before or ()] == [("gpu0", 8 * MIB), ("gpu1", 9 * MIB)]
    assert [load.name for load in after or ()] == ["gpu1"]
    assert (before or [])[0] == DeviceLoad(name="gpu0", total_bytes=8 * MIB, free_bytes=MIB)


def test_a_machine_without_a_driver(compile_stub: Callable[..., Path], tmp_path: Path) -> None:
    """There is nothing to look at, and no error."""
    stand_in = StandIn(compile_stub(), tmp_path / "machine")
    stand_in.answer({"init": "!9"})
    watcher = Watcher(stand_in)
    assert watcher.look() is None
    assert watcher.close() == 0
