"""Serve the real model for hours, under mixed load with faults and a memory limit: nothing may grow, no request be lost.

    python -m benchmarks.soak [--duration 7200] [--seed 1] [--out build/soak] [--limit group|address-space]
    python -m benchmarks.soak --report build/soak.json          the report of a run, or of what there is of it
    python -m benchmarks.soak --page build/soak.json ...        the same as a page of docs, of one run or several

Run from the checkout's root. One `launch serve` with its own restart policy, engine llama-server, lives all the time.
Load (``soak_load``) is paced so that launcher and engine take a third of a core (``--share``); faults (``soak_faults``) come at random
moments. The limit is a control group of version 1 around launcher and engine where this machine permits one to be made,
and else one of address space, as `LimitAS=` in a unit sets; the report says which. Every five seconds all is sampled:
memory, descriptors, threads and processes of the launcher (supervisor and gateway are one process) and of the guard, and
the state directory's size. The warm-up ends when each kind of the opening has been played, a sixth of the time is over,
and nothing was asked for a while: such a rest is taken at the end once more.

The report is written to OUT.txt, with all it is made from in OUT.json, every three minutes: a run that is cut off leaves
one of its true length. Exit code 1 where a bar is missed.
"""

import argparse
import asyncio
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from benchmarks import soak_faults
from benchmarks.memory_group import make_group
from benchmarks.programs import LAUNCH
from benchmarks.soak_faults import Ground
from benchmarks.soak_load import Ended, Load
from benchmarks.soak_record import Fault, Record, Sample
from benchmarks.soak_report import bars, page, render
from benchmarks.soak_serve import NAME, Served, log_bound_bytes
from benchmarks.verdicts import Verdict
from launcher.fetch import require_weights
from launcher.inventory import probe_inventory
from launcher.profiles import load_profile
from launcher.units import GIB, format_bytes

LIMIT_BYTES: Final = 4 * GIB
CPU_SHARE: Final = 0.33
_SAMPLE_S: Final = 5.0
_WRITE_S: Final = 180.0
_STATUS_S: Final = 60.0
_START_S: Final = 300.0
_IDLE_S: Final = 35.0
"""The gateway closes connections that were idle for 30 s."""
_DRAIN_S: Final = 120.0
_BACK_UP_S: Final = 300.0
_SETTLE_S: Final = 10.0
_N_REST: Final = 3
_WARM_UP_SHARE: Final = 1 / 6
_LONG_S: Final = 3600.0
"""From so long a run on, faults are minutes apart."""


class Soak:
    """One run, from the first sample to the last."""

    def __init__(self, args: argparse.Namespace, folder: Path, group: Path | None) -> None:
        """Make all ready; nothing is started yet."""
        self._args = args
        self._dice = random.Random(args.seed)  # noqa: S311 - moments, no secrets
        self._group = group
        self._folder = folder
        self._samples: list[Sample] = []
        self._faults: list[Fault] = []
        self._warm_up_s: float | None = None
        self._is_at_rest = False
        self._written_s = 0.0
        self._ended = asyncio.Event()
        self._began_s = time.time()
        self._head = Record(
            began_at=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            duration_s=args.duration,
            seed=args.seed,
            revision=_revision(),
            machine=_machine(),
            engine=_engine(),
            limit=_describe_limit(group),
            cpu_target=args.share,
            log_bound_bytes=log_bound_bytes(),
        )
        self._driver_fault = ""
        self._orphans: tuple[str, ...] = ()
        self._exit_code: int | None = None
        self._is_over = False
        self._served: Served
        self._load: Load

    @property
    def _now_s(self) -> float:
        return time.time() - self._began_s

    @property
    def _drain_s(self) -> float:
        """Return how long a rest waits for the last answers."""
        return min(_DRAIN_S, float(self._args.duration) / 20)

    async def run(self) -> Record:
        """Serve, ask, disturb, sample, until the time is over; return the record."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end, "told to end")
        weights = self._folder / "model.gguf"
        packaged = next(artifact for artifact in load_profile("gemma3-270m").artifacts if artifact.package is not None)
        shutil.copyfile(require_weights(packaged), weights)
        address_space = None if self._group is not None else LIMIT_BYTES
        self._served = Served(self._folder, weights, self._group, address_space)
        try:
            if not await soak_faults.until_ready(self._served, _START_S):
                raise SystemExit(f"nothing was served: {self._served.last_words()}")  # noqa: EM102, TRY003
            self._load = Load(self._served.url, self._served.key, seed=self._args.seed, share=self._args.share)
            async with self._load:
                tasks = [
                    asyncio.create_task(self._guarded(work()))
                    for work in (self._sample_on, self._status_on, self._disturb)
                ]
                await self._ended.wait()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            self._exit_code = await asyncio.to_thread(self._served.stop)
            await self._count_orphans()
            self._is_over = True
        finally:
            if not self._served.has_ended:
                self._served.stop()
        return self.record()

    def _end(self, why: str = "") -> None:
        self._driver_fault = self._driver_fault or why
        self._ended.set()

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        """Do a part of the run; what breaks it ends the run, and is told."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, hours of measurements are kept
            self._end(f"{type(error).__name__}: {error}")

    # --- Looking ---

    async def _sample_on(self) -> None:
        while True:
            await self._sample()
            if self._served.has_ended:
                self._end(f"the launcher ended by itself: {self._served.last_words()[-500:]}")
            if self._now_s - self._written_s > _WRITE_S:
                self._written_s = self._now_s
                await asyncio.to_thread(write, self.record(), self._args.out)
            await asyncio.sleep(_SAMPLE_S)

    async def _sample(self) -> None:
        self._served.read()
        launcher, guard, resident, n_processes, n_zombies, share = await asyncio.to_thread(self._served.look)
        files = self._served.files()
        if not self._is_at_rest and self._served.ready_since() is not None:
            self._load.pace(share)
        self._samples.append(
            Sample(
                at_s=round(self._now_s, 1),
                is_at_rest=self._is_at_rest,
                launcher=launcher,
                guard=guard,
                engine_rss_bytes=resident,
                n_engines=self._count("engine.spawned"),
                n_processes=n_processes,
                n_zombies=n_zombies,
                state_bytes=sum(files.values()),
                cpu_share=round(share, 4),
                n_answers=self._load.accounts.n,
            )
        )

    async def _status_on(self) -> None:
        """Read the status as a person or a monitor does."""
        while True:
            began_s = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                LAUNCH,
                "status",
                NAME,
                "--json",
                env=self._served.environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            data, _ = await process.communicate()
            is_whole = process.returncode == 0 and data.startswith(b"{")
            ended = Ended(Verdict.WHOLE if is_whole else Verdict.LOST, why=f"{process.returncode} {data[:100]!r}")
            lasted_s = time.monotonic() - began_s
            self._load.accounts.enter("launch-status", ended, at_s=self._now_s, lasted_s=lasted_s)
            await asyncio.sleep(_STATUS_S)

    def _count(self, event: str) -> int:
        return sum(told.event == event for told in self._served.told)

    # --- Disturbing ---

    async def _disturb(self) -> None:
        """Play the opening, rest, play at random until it is time, rest, end."""
        ground = Ground(self._served, self._load, self._group, self._dice, self._began_s)
        kinds = soak_faults.kinds_here(self._group)
        played: Counter[str] = Counter()
        is_long = self._args.duration >= _LONG_S
        await asyncio.sleep(30.0 if is_long else 10.0)
        for kind in soak_faults.OPENING:
            if kind in kinds:
                await self._play(kind, ground, played, gap_s=(5.0, 15.0) if is_long else (1.0, 5.0))
        await self._until_back_up()
        await asyncio.sleep(max(0.0, self._args.duration * _WARM_UP_SHARE - self._now_s))
        await self._rest()
        self._warm_up_s = round(self._now_s, 1)
        last_s = self._args.duration - _IDLE_S - self._drain_s - _N_REST * _SAMPLE_S
        while self._now_s < last_s:
            n_deaths = soak_faults.deaths(self._served.told, time.time())
            kind = soak_faults.choose(kinds, played, n_deaths, self._dice)
            await self._play(kind, ground, played, gap_s=(30.0, 120.0) if is_long else (10.0, 40.0), until_s=last_s)
        await self._rest()
        self._end()

    async def _play(
        self,
        kind: str,
        ground: Ground,
        played: Counter[str],
        *,
        gap_s: tuple[float, float],
        until_s: float = float("inf"),
    ) -> None:
        await asyncio.sleep(self._dice.uniform(*gap_s))
        if self._now_s >= until_s:
            return
        played[kind] += 1
        fault = await soak_faults.play(kind, ground, is_warm_up=self._warm_up_s is None)
        self._faults.append(fault)
        words = "; ".join(fault.story)
        print(f"{fault.at_s:7.1f}  {kind:6}  {fault.wrong or 'ready'}  {fault.ready_s}  {words}", flush=True)

    async def _until_back_up(self) -> None:
        """Wait until the instance has gone back up the ladder, for some minutes."""
        end_s = time.monotonic() + min(_BACK_UP_S, self._args.duration / 10)
        while self._count("ladder.step") > 0 and not self._count("ladder.up") and time.monotonic() < end_s:  # noqa: ASYNC110 - files tell it
            await asyncio.sleep(1.0)

    async def _rest(self) -> None:
        """Ask nothing until every connection is closed, and take some samples then."""
        await soak_faults.until_ready(self._served, _START_S)
        await self._load.rest(self._drain_s)
        await asyncio.sleep(_IDLE_S)
        self._is_at_rest = True
        for _ in range(_N_REST):
            await self._sample()
            await asyncio.sleep(1.0)
        self._is_at_rest = False
        self._load.go_on()

    async def _count_orphans(self) -> None:
        end_s = time.monotonic() + _SETTLE_S
        while (left := self._served.heirs()) and time.monotonic() < end_s:  # noqa: ASYNC110 - /proc tells it
            await asyncio.sleep(0.2)
        self._orphans = tuple(left)

    # --- Keeping ---

    def record(self) -> Record:
        """Return the record so far."""
        accounts = self._load.accounts
        return replace(
            self._head,
            lasted_s=round(self._now_s, 1),
            is_over=self._is_over,
            warm_up_s=self._warm_up_s,
            samples=tuple(self._samples),
            faults=tuple(self._faults),
            answers=accounts.table(),
            oddities=tuple(accounts.oddities),
            n_odd=accounts.n_odd,
            n_lost=accounts.n_lost,
            longest_answer_s=round(accounts.longest_s, 2),
            n_ladder_steps=self._count("ladder.step"),
            n_step_ups=self._count("ladder.up"),
            n_failures=self._count("engine.failed"),
            files=self._served.files(),
            orphans=self._orphans,
            exit_code=self._exit_code,
            driver_fault=self._driver_fault,
        )


def write(record: Record, out: Path) -> None:
    """Write OUT.json and OUT.txt, each whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for suffix, data in ((".json", msgspec.json.encode(record)), (".txt", render(record).encode())):
        new = Path(f"{out}.new")
        new.write_bytes(data + b"\n" if suffix == ".json" else data)
        new.replace(f"{out}{suffix}")


def read(path: Path) -> Record:
    """Return what a run has written."""
    return msgspec.json.decode(path.read_bytes(), type=Record)


def _revision() -> str:
    git = shutil.which("git")
    words = ["describe", "--always", "--dirty", "--abbrev=10"]
    with suppress(OSError, subprocess.CalledProcessError):
        if git is not None:
            return subprocess.check_output([git, *words], text=True, stderr=subprocess.DEVNULL).strip()  # noqa: S603 - fixed words
    return "unknown"


def _machine() -> str:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, {format_bytes(total)}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}; load average {load:.1f} when it began"
    )


def _engine() -> str:
    found = [install for install in probe_inventory().engines or () if install.engine == "llama-server"]
    return f"llama-server {found[0].version}, Gemma 3 270M Q4_K_M" if found else "llama-server"


def _describe_limit(group: Path | None) -> str:
    if group is None:
        return f"{format_bytes(LIMIT_BYTES)} of address space for each process (RLIMIT_AS, as LimitAS= sets it)"
    return f"{format_bytes(LIMIT_BYTES)} for launcher and engine together, by a control group of version 1 from outside"


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--duration", type=float, default=7200.0, metavar="S", help="seconds, warm-up and end included")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="OUT.txt and OUT.json are written")
    parser.add_argument("--share", type=float, default=CPU_SHARE, help="of a core, for launcher and engine on average")
    parser.add_argument("--limit", choices=("group", "address-space"), default="group")
    parser.add_argument("--report", type=Path, metavar="FILE", help="print the report of a run's JSON, run nothing")
    parser.add_argument("--page", type=Path, nargs="+", metavar="FILE", help="the same of runs, as a page of docs")
    return parser.parse_args(words)


def main() -> int:
    """Run or read, print, judge."""
    args = parse()
    if args.page is not None:
        print(page([read(path) for path in args.page]), end="")
        return 0
    if args.report is not None:
        record = read(args.report)
    else:
        group = make_group("soak", LIMIT_BYTES) if args.limit == "group" else None
        try:
            with tempfile.TemporaryDirectory(prefix="launcher-soak-") as folder:
                record = asyncio.run(Soak(args, Path(folder), group).run())
        finally:
            if group is not None:
                group.rmdir()
        write(record, args.out)
    print(render(record), end="")
    return 1 if any(bars(record).values()) else 0


if __name__ == "__main__":
    sys.exit(main())
