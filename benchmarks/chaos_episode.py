"""One state directory's life under chaos: supervisors over it, what they report, what is alive of them.

It must not know faults or bars: it is asked to start, to wait, to look and to stop.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from benchmarks.chaos_serve import Order, Words, limited, plan_chaos, write_order
from benchmarks.memory_group import inside
from benchmarks.programs import answers, running
from launcher.cli.service import make_command
from launcher.domain import Engine, Noun
from launcher.supervisor.checks import free_port
from launcher.supervisor.readiness import base_url
from launcher.units import GIB

NAME: Final = "chaos"
GROUP_BYTES: Final = 3 * GIB
"""Of the control group that holds a supervisor and all below it; the plan takes about a third."""
_DEADLINE_S: Final = 120.0
_POLL_S: Final = 0.005
_ROOT: Final = Path(__file__).resolve().parent.parent


class Told(Noun, frozen=True):
    """One line of a supervisor's: what, when on the monotonic clock, in words, and its facts."""

    event: str
    at_s: float
    text: str
    facts: dict[str, Any]


class Bare(Noun, frozen=True):
    """What an engine does on its own: seconds until it is ready, bytes of address space that it has taken until then.

    ``loaded_bytes`` is what its plan says of loading alone.
    """

    load_s: float
    address_space_bytes: int
    loaded_bytes: int


class Episode:
    """A state directory, a copy of the weights, a group where there is one; one supervisor at a time."""

    def __init__(self, folder: Path, model: Path, engine: Engine, group: Path | None) -> None:
        """Hold a folder of its own; the copy of the weights is made here."""
        folder.mkdir()
        self.engine = engine
        self.group = group
        self._folder = folder
        self._intact = folder / "intact.gguf"
        self._orders = folder / "orders.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._output: Path = folder / "0.out"
        self._n_starts = 0
        self._n_read = 0
        self.weights = folder / "model.gguf"
        self.told: list[Told] = []
        self.order = Order()
        shutil.copyfile(model, self._intact)
        self.put_back()
        self.environment = {**os.environ, "LAUNCHER_STATE_DIR": str(folder / "state"), "PYTHONPATH": str(_ROOT)}
        self.words = Words(
            name=NAME,
            port=free_port("127.0.0.1"),
            weights=str(self.weights),
            engine=engine,
            orders=str(self._orders),
        )

    @property
    def url(self) -> str:
        """Where clients ask."""
        return f"http://127.0.0.1:{self.words.port}"

    # --- What is done to it ---

    def start(self) -> None:
        """Start a supervisor."""
        self._n_starts += 1
        self._n_read = 0
        self._output = self._folder / f"{self._n_starts}.out"
        argv = [sys.executable, "-m", "benchmarks.chaos_serve", msgspec.json.encode(self.words).decode()]
        with self._output.open("wb") as file:
            self._process = subprocess.Popen(inside(self.group, argv), stdout=file, stderr=file, env=self.environment)  # noqa: S603

    def give(self, order: Order) -> None:
        """Order what is done to the engines to come."""
        self.order = order
        write_order(self._orders, order)

    def damage(self, n_bytes: int, *, magic: bytes | None = None) -> None:
        """Put a damaged file in the weights' place: cut off after ``n_bytes``, or with another beginning.

        The running engine keeps the file that it has mapped.
        """
        broken = self._folder / "broken.gguf"
        with self._intact.open("rb") as source, broken.open("wb") as target:
            target.write(source.read(n_bytes))
            if magic is not None:
                target.seek(0)
                target.write(magic)
        broken.replace(self.weights)

    def put_back(self) -> None:
        """Put the intact weights in their place."""
        link = self._folder / "link.gguf"
        link.hardlink_to(self._intact)
        link.replace(self.weights)

    async def stop(self) -> int:
        """End the supervisor as a user would; return its exit code."""
        assert self._process is not None  # noqa: S101 - it was started
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return await self.until_ended()

    async def until_ended(self) -> int:
        """Wait until the supervisor has ended; one that does not is killed, and its code says so."""
        assert self._process is not None  # noqa: S101 - it was started
        try:
            code = await asyncio.to_thread(self._process.wait, _DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self.read()
        return code

    def clear(self) -> None:
        """Forget the folder and the group."""
        shutil.rmtree(self._folder)
        if self.group is not None:
            self.group.rmdir()

    # --- What is seen of it ---

    def read(self) -> None:
        """Take in what the supervisor has told since."""
        lines = self._output.read_bytes().split(b"\n")[:-1]
        for line in lines[self._n_read :]:
            if line.startswith(b"{"):
                self.told.append(msgspec.json.decode(line, type=Told))
        self._n_read = len(lines)

    def words_of_end(self) -> str:
        """Return what the supervisor wrote besides, its error."""
        lines = self._output.read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if not line.startswith("{"))

    @property
    def has_ended(self) -> bool:
        """Whether no supervisor runs."""
        return self._process is None or self._process.poll() is not None

    async def await_told(
        self, wanted: Callable[[Told], bool], since: int, timeout_s: float = _DEADLINE_S
    ) -> Told | None:
        """Return the first wanted line from index ``since`` on; ``None`` when the time is over or the supervisor ended."""
        end_s = time.monotonic() + timeout_s
        while True:
            is_last = self.has_ended or time.monotonic() > end_s
            self.read()
            found = next((told for told in self.told[since:] if wanted(told)), None)
            if found is not None or is_last:
                return found
            await asyncio.sleep(_POLL_S)

    def engine_pid(self) -> int:
        """Return the engine that was started last."""
        return int(next(told for told in reversed(self.told) if told.event == "engine.spawned").facts["pid"])

    def last(self, event: str, since: int = 0) -> Told | None:
        """Return the last line of that name."""
        return next((told for told in reversed(self.told[since:]) if told.event == event), None)

    def alive(self) -> dict[int, str]:
        """Return every living process of this state directory but the supervisor: number and command line."""
        mark = f"LAUNCHER_STATE_DIR={self._folder / 'state'}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                if mark not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                argv = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if self._process is None or int(entry.name) != self._process.pid:
                found[int(entry.name)] = argv
        return found

    def engines(self) -> list[int]:
        """Return the living engines."""
        return [pid for pid, argv in self.alive().items() if str(self.weights) in argv and "guard.py" not in argv]


def measure_bare(episode: Episode) -> Bare:
    """Start the engine of the first plan without a supervisor, and measure it until it answers.

    Raises:
        SystemExit: it never did; a load that was not measured is no yardstick.
    """
    os.environ["LAUNCHER_STATE_DIR"] = episode.environment["LAUNCHER_STATE_DIR"]
    plan, _, _ = plan_chaos(replace(episode.words, port=0))
    command = limited(make_command(plan, tell=True), Order(address_space_bytes=1 << 44))
    url = f"{base_url(command.address)}{command.ready_path}"
    key = command.env[command.api_key_env] if command.api_key_env else None
    env = {**episode.environment, **command.env}
    with running(command.argv, env, is_there=lambda: answers(url, key)) as (process, load_s):
        peak = address_space(process.pid, "VmPeak")
    return Bare(load_s=load_s, address_space_bytes=peak, loaded_bytes=plan.footprint.host.engine_bytes)


def address_space(pid: int, row: str = "VmSize") -> int:
    """Return the bytes of address space that a process has."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{row}:"):
            return int(line.split()[1]) * 1024
    message = f"process {pid} has no {row}"
    raise ProcessLookupError(message)
