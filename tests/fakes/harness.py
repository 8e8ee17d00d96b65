"""Real supervisor processes over the fake engine, and how a test waits for them."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAKES = Path(__file__).parent
DEADLINE_S = 20.0


def poll(look: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Return the first true value of ``look``, or the last one when the deadline has passed."""
    end = time.monotonic() + deadline_s
    while not (seen := look()) and time.monotonic() < end:
        time.sleep(0.01)
    return seen


class Served:
    """A supervisor process over a fake engine on a port of its own."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[str], output: Path) -> None:
        """Hold the process and the file that its notices go to."""
        self.name = name
        self.port = port
        self.process = process
        self.output = output

    def notices(self) -> list[dict[str, Any]]:
        """What it reported so far."""
        lines = self.output.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]

    def events(self) -> list[str]:
        """The names of its acts so far, without lines of progress."""
        return [notice["event"] for notice in self.notices() if not notice["transient"]]

    def error(self) -> str:
        """What it wrote besides."""
        return "".join(line for line in self.output.read_text().splitlines(keepends=True) if not line.startswith("{"))

    def await_event(self, event: str, n: int = 1) -> None:
        """Wait for the n-th act of that name."""
        assert poll(lambda: self.events().count(event) >= n), f"no {event}: {self.output.read_text()}"

    def engine_pid(self) -> int:
        """The number of the engine that was started last."""
        spawned = [notice for notice in self.notices() if notice["event"] == "engine.spawned"]
        return int(spawned[-1]["facts"]["pid"])

    def guard_pid(self) -> int:
        """The number of the guard above it."""
        return int(Path(f"/proc/{self.engine_pid()}/stat").read_text().rpartition(")")[2].split()[1])

    def tree(self) -> list[int]:
        """Every living process of the engine, found by its command line."""
        return survivors(self.port)

    def end(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait until the supervisor has ended and return its exit code."""
        return self.process.wait(deadline_s)


def survivors(port: int) -> list[int]:
    """Return the living processes of the fake engine on ``port``, by their command lines."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                arguments = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            is_engine = b"--port" in arguments and str(port).encode() in arguments
            if is_engine or f"fake-engine-{port}".encode() in arguments:
                found.append(int(folder.name))
    return found


def start(
    *arguments: str,
    name: str,
    port: int,
    output: Path,
    options: dict[str, Any] | None = None,
    command: dict[str, Any] | None = None,
) -> Served:
    """Start a supervisor over a fake engine with these arguments; short graces unless told otherwise."""
    quick = {"grace_s": 1.0, "orphan_grace_s": 0.3, **(options or {})}
    fixed = [name, str(port), json.dumps(quick), json.dumps(command or {})]
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(FAKES / "serve_fake.py"), *fixed, "--", *arguments],
            stdout=file,
            stderr=file,
            text=True,
        )
    return Served(name, port, process, output)


def start_stepping(scenario: dict[str, Any], *, name: str, port: int, output: Path, options: dict[str, Any]) -> Served:
    """Start a supervisor with gateway and stepper over fake engines; ``port`` is the gateway's."""
    quick = {"grace_s": 1.0, "orphan_grace_s": 0.3, "drain_s": 1.0, "stop_drain_s": 1.0, **options}
    arguments = [name, str(port), json.dumps(quick), json.dumps(scenario)]
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(FAKES / "serve_stepping.py"), *arguments], stdout=file, stderr=file, text=True
        )
    return Served(name, port, process, output)
