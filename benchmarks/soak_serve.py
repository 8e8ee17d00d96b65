"""One `launch serve` as a user runs it: started, followed by its files of state, looked at, told to stop.

It must not know faults, load or bars.
"""

import os
import secrets
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

import msgspec
import psutil

from benchmarks.chaos_episode import Told
from benchmarks.memory_group import inside
from benchmarks.programs import LAUNCH
from benchmarks.soak_record import Usage
from launcher.gateway.keys import KEY_ENV
from launcher.supervisor.checks import free_port
from launcher.supervisor.options import RunOptions
from launcher.units import MIB
from tests.fakes.processes import heirs

NAME: Final = "soak"
_ROOT: Final = Path(__file__).resolve().parent.parent
_STOP_S: Final = 60.0
_PROFILE: Final = """name = "{name}"
engines = ["llama-server"]

[want]
context = 32768
parallel = 16

[model]
spec = "specs/gemma3-270m.json"

[fallback]
step_up = true

[pin]
n_threads = 1

[serve]
port = {port}

[[artifact]]
quantization = "q4_k_m"
local_path = "{weights}"
"""
"""Much context and sixteen slots: half of the limit is the engine's, and the ladder may take it back; up again by itself. One
thread: others need the machine, too."""
_NOT_READY: Final = frozenset(
    {"engine.failed", "engine.exited", "engine.spawned", "instance.drained", "instance.backoff", "instance.failed"}
)


def log_bound_bytes() -> int:
    """Return what the state directory may hold: two files each of log and events, and a MiB of records."""
    options = RunOptions()
    return 2 * (options.log_bytes + options.events_bytes) + MIB


class Served:
    """The launcher, its state directory, what it has told so far."""

    def __init__(self, folder: Path, weights: Path, group: Path | None, address_space_bytes: int | None) -> None:
        """Make the profile in a folder of its own; the limit is of the group, or else of address space."""
        self.state = folder / "state"
        self.port = free_port("127.0.0.1")
        self.key = secrets.token_hex(24)
        self.told: list[Told] = []
        self._group = group
        self._address_space_bytes = address_space_bytes
        self._output = folder / "launch.out"
        self._inode: int | None = None
        self._offset = 0
        self._cpu_s: dict[int, float] = {}
        self._looked_s = time.monotonic()
        profiles = folder / "profiles"
        profiles.mkdir()
        (profiles / f"{NAME}.toml").write_text(_PROFILE.format(name=NAME, port=self.port, weights=weights))
        self.environment = {
            **os.environ,
            "LAUNCHER_STATE_DIR": str(self.state),
            "LAUNCHER_PROFILES": str(profiles),
            KEY_ENV: self.key,
            "PYTHONPATH": str(_ROOT),
        }
        argv = inside(self._group, [LAUNCH, "serve", NAME])
        if self._address_space_bytes is not None:
            argv = ["/bin/sh", "-c", f'ulimit -v {self._address_space_bytes // 1024} && exec "$@"', "sh", *argv]
        with self._output.open("wb") as file:
            self.process = subprocess.Popen(argv, stdout=file, stderr=file, env=self.environment)  # noqa: S603 - ours

    @property
    def url(self) -> str:
        """Where clients ask."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def has_ended(self) -> bool:
        """Whether the launcher runs no more."""
        return self.process.poll() is not None

    def last_words(self) -> str:
        """Return the end of what it wrote for a person."""
        return self._output.read_text(errors="replace")[-2000:]

    # --- What it tells ---

    def read(self) -> None:
        """Take in the events that were written since; the file may have been moved away in between."""
        path = next(self.state.rglob("events.jsonl"), None)
        if path is None:
            return
        with path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if self._inode not in {None, inode}:
                self._take(Path(f"{path}.1").read_bytes()[self._offset :])
                self._offset = 0
            self._inode = inode
            file.seek(self._offset)
            self._offset += self._take(file.read())

    def _take(self, data: bytes) -> int:
        """Take whole lines; return how many bytes they were."""
        whole, newline, _ = data.rpartition(b"\n")
        for line in whole.splitlines():
            facts = msgspec.json.decode(line, type=dict[str, object])
            event, at = facts.pop("event"), facts.pop("at")
            self.told.append(Told(event=str(event), at_s=float(str(at)), text="", facts=facts))
        return len(whole) + len(newline)

    def ready_since(self) -> float | None:
        """Return when the present engine became ready, in seconds since 1970; ``None`` while none is."""
        for told in reversed(self.told):
            if told.event == "engine.ready":
                return told.at_s
            if told.event in _NOT_READY:
                return None
        return None

    def engine_pid(self) -> int:
        """Return the engine that was started last."""
        return next(int(told.facts["pid"]) for told in reversed(self.told) if told.event == "engine.spawned")

    def guard_pid(self) -> int:
        """Return the guard above it."""
        return psutil.Process(self.engine_pid()).ppid()

    # --- What is seen of it ---

    def look(self) -> tuple[Usage | None, Usage | None, int, int, int, float]:
        """Return what launcher and guard hold, the engine's resident bytes, processes, zombies, share of a core."""
        try:
            below = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            below = []
        guard = next(
            (process for process in below if _parent(process) == self.process.pid and _is_guard(process)), None
        )
        engines = [process for process in below if guard is not None and _parent(process) == guard.pid]
        n_zombies = sum(_is_zombie(process) for process in below)
        return (
            usage_of(self.process.pid),
            None if guard is None else usage_of(guard.pid),
            sum(_resident(process) for process in engines),
            len(below),
            n_zombies,
            self._share([self.process.pid, *(process.pid for process in below)]),
        )

    def _share(self, pids: list[int]) -> float:
        now = {pid: spent for pid in pids if (spent := _cpu_s(pid)) is not None}
        spent_s = sum(spent - self._cpu_s.get(pid, 0.0) for pid, spent in now.items())
        before_s, self._looked_s = self._looked_s, time.monotonic()
        self._cpu_s = now
        return spent_s / max(self._looked_s - before_s, 1e-3)

    def files(self) -> dict[str, int]:
        """Return the bytes of every file of the state directory."""
        found = {}
        for path in self.state.rglob("*"):
            try:
                if path.is_file():
                    found[str(path.relative_to(self.state))] = path.stat().st_size
            except OSError:  # it was replaced just now
                continue
        return found

    def heirs(self) -> list[str]:
        """Return every living process of this state directory, the launcher included: number and command line."""
        found = []
        for process in heirs(str(self.state)):
            try:
                found.append(f"{process.pid} {' '.join(process.cmdline())}"[:200])
            except psutil.Error:
                continue
        return found

    def stop(self) -> int:
        """End it as a service manager would; one that does not end is killed, and its code says so."""
        if not self.has_ended:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def usage_of(pid: int) -> Usage | None:
    """Return what a process holds; ``None`` where it has ended."""
    try:
        memory = _kib_rows(Path(f"/proc/{pid}/smaps_rollup"))
        n_fds = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - names are enough
        n_threads = len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208 - as above
    except OSError:
        return None
    return Usage(
        rss_bytes=memory["Rss"],
        pss_bytes=memory["Pss"],
        uss_bytes=memory["Private_Clean"] + memory["Private_Dirty"],
        anonymous_bytes=memory["Anonymous"] + memory["Swap"],
        n_fds=n_fds,
        n_threads=n_threads,
    )


def _kib_rows(path: Path) -> dict[str, int]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3 and row[2] == "kB"}  # noqa: PLR2004


def _cpu_s(pid: int) -> float | None:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


def _parent(process: psutil.Process) -> int | None:
    try:
        return int(process.ppid())
    except psutil.Error:
        return None


def _is_guard(process: psutil.Process) -> bool:
    try:
        return any(word.endswith("guard.py") for word in process.cmdline())
    except psutil.Error:
        return False


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
