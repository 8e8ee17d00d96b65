"""Do to a served model what the world does, under load, and count what it cost: a table, and exit code 1 beyond a bar.

    python -m benchmarks.chaos [--faults 200] [--seed 1] [--kinds kill,hang,...] [--json FILE] [--slack 1.5]

Run from the checkout's root. Real weights, real engines, the planner, supervisor and gateway of `launch serve`, and eight
clients (half of them streaming) with one request after another. Faults are injected one at a time, at random moments, in
episodes: each has a state directory and a copy of the weights of its own, for a lesson learnt under a limit that was
lifted again would keep the next plans small. Every fifth episode serves with llama_cpp.server, the others with
llama-server. An episode ends, under load, by SIGTERM.

The faults (``KINDS``):

- kill: SIGKILL of the engine.
- hang: SIGSTOP of the engine. Found by unanswered health checks; how long that takes is a column of its own.
- port: the engine is killed, and another socket listens on the port of the next one.
- alloc-load: the engine is killed, and the address space (RLIMIT_AS) of those that follow is a little less than the plan
  is known to take: a real allocation fails while it loads. The limit holds until a smaller plan is ready.
- alloc-run: the address space of the running engine is limited (prlimit) to what it has. Where no allocation fails within
  some seconds of load the limit is lifted: absorbed.
- cgroup-oom: another process in the engine's control group takes memory until the kernel kills the engine.
- hog: another process fills the group but for a little while the engine serves, and leaves once that was noticed.
- hog-at-start: the same, then the engine is killed: its successor has to start beside the hog, which leaves once that
  did harm, or did none.
- corrupt: the weights are replaced by a damaged file and the engine is killed. No restart and no smaller plan would help,
  so the instance fails, by design: whoever waits is refused with 503 and Retry-After. The file is put back and the
  driver serves anew, as a user would. Here detection lasts until the instance has failed, and the way back begins with the
  new `serve`.

Measured of each: from the act until it was detected; from the last detection until ready (a step down may need more than
one start, and each failed start is detected anew), which may last as long as the engine's own load plus ``--slack``; and
then whether a completion comes. An engine that serves on, for the memory was given back or nothing smaller is left, is
ready at once. Own load: the same command started bare, twice before each episode, the median of the last five. Bars: every
fault asked for was played, no request without a complete HTTP answer, no process of an engine that is not the present one,
no out-of-memory of a plan that is not smaller than one that had run out before in the same state directory, every fault
recovered from, and in time.

The memory of a device cannot be taken where there is none; groups are made where the machine permits.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.chaos_episode import GROUP_BYTES, Bare, Episode, Told, address_space, measure_bare
from benchmarks.chaos_load import Answer, Load
from benchmarks.chaos_serve import OPTIONS, Order
from benchmarks.memory_group import end_hog, make_group, offer_to_kernel, start_hog
from benchmarks.verdicts import Verdict
from launcher.domain import Engine, Noun
from launcher.fetch import require_weights
from launcher.profiles import load_profile
from launcher.units import KIB, MIB

if TYPE_CHECKING:
    import subprocess

SLACK_S: Final = 1.5
_DETECT_S: Final = 60.0
_ABSORB_S: Final = 6.0
_READY_S: Final = 180.0
_SETTLE_S: Final = 5.0
"""For what was replaced to be gone."""
_N_PER_EPISODE: Final = 10
_N_SHORTAGES: Final = 2
"""In one episode: the ladder of so small a model has few rungs."""
_N_BARE: Final = 5
_PYTHON_EVERY: Final = 5
_HOG_LEAVES_BYTES: Final = 200 * MIB
_SHORTAGES: Final = frozenset({"alloc-load", "alloc-run", "cgroup-oom", "hog", "hog-at-start"})
GROUPED: Final = frozenset({"cgroup-oom", "hog", "hog-at-start"})
_OUT: Final = frozenset({"out-of-memory", "overdrawn"})


class Outcome(Noun, frozen=True):
    """What became of one fault. Seconds; ``None``: it did not come to that."""

    kind: str
    engine: Engine
    load_s: float
    detect_s: float | None = None
    ready_s: float | None = None
    total_s: float | None = None
    n_starts: int = 0
    n_orphans: int = 0
    is_absorbed: bool = False
    wrong: str = ""
    story: tuple[str, ...] = ()


# --- The faults: each acts, and returns once it has -----------------------------------------------------------------


def _signal_engine(episode: Episode, number: signal.Signals) -> None:
    episode.read()  # it may have been replaced a moment ago
    os.kill(episode.engine_pid(), number)


async def _kill(run: "Run") -> None:
    _signal_engine(run.episode, signal.SIGKILL)


async def _hang(run: "Run") -> None:
    _signal_engine(run.episode, signal.SIGSTOP)


async def _steal(run: "Run") -> None:
    run.episode.give(Order(steal=True))
    _signal_engine(run.episode, signal.SIGKILL)


async def _limit_next(run: "Run") -> None:
    command = run.episode.last("chaos.command")
    assert command is not None  # noqa: S101 - it serves
    saved = run.bare.loaded_bytes - int(command.facts["loaded_bytes"])
    limit = run.bare.address_space_bytes - saved - run.dice.randint(8, 40) * MIB
    run.episode.give(Order(address_space_bytes=limit))
    _signal_engine(run.episode, signal.SIGKILL)


async def _limit_now(run: "Run") -> None:
    pid = run.episode.engine_pid()
    _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (address_space(pid) + 64 * KIB, hard))


def _start_hog(run: "Run", *, leave_bytes: int) -> None:
    assert run.episode.group is not None  # noqa: S101 - such a fault is not drawn without
    run.hog = start_hog(run.episode.group, leave_bytes=leave_bytes)


async def _kill_by_kernel(run: "Run") -> None:
    offer_to_kernel(run.episode.engine_pid())
    _start_hog(run, leave_bytes=0)


async def _hog(run: "Run") -> None:
    _start_hog(run, leave_bytes=_HOG_LEAVES_BYTES)


async def _hog_at_start(run: "Run") -> None:
    await _hog(run)
    assert run.hog is not None  # noqa: S101 - just started
    assert run.hog.stdout is not None  # noqa: S101 - a pipe
    await asyncio.to_thread(run.hog.stdout.readline)  # it is full
    with contextlib.suppress(ProcessLookupError):
        _signal_engine(run.episode, signal.SIGKILL)


async def _corrupt(run: "Run") -> None:
    size = run.episode.weights.stat().st_size
    n_bytes = run.dice.choice((16, size // 1000, size // 2, size - 1_000_000))
    run.episode.damage(n_bytes, magic=run.dice.choice((None, b"GGML")))
    _signal_engine(run.episode, signal.SIGKILL)


KINDS: Final[dict[str, Callable[["Run"], Awaitable[None]]]] = {
    "kill": _kill,
    "hang": _hang,
    "port": _steal,
    "alloc-load": _limit_next,
    "alloc-run": _limit_now,
    "cgroup-oom": _kill_by_kernel,
    "hog": _hog,
    "hog-at-start": _hog_at_start,
    "corrupt": _corrupt,
}


# --- One fault after another ----------------------------------------------------------------------------------------


class Run:
    """All faults of one run, and what was seen of them."""

    def __init__(
        self, folder: Path, kinds: list[str], dice: random.Random, engines: tuple[Engine, ...], n_clients: int
    ) -> None:
        """Hold the faults to come, in their order."""
        self._folder = folder
        self._engines = engines
        self._n_clients = n_clients
        self._model = require_weights(next(a for a in load_profile("gemma3-270m").artifacts if a.package is not None))
        self._bares: dict[Engine, list[Bare]] = defaultdict(list)
        self._to_come = kinds
        self.dice = dice
        self.hog: subprocess.Popen[str] | None = None
        self.outcomes: list[Outcome] = []
        self.answers: list[Answer] = []
        self.n_repeats = 0
        self.n_orphans = 0
        self.n_bad_ends = 0
        self.has_group = True
        self.episode: Episode

    @property
    def bare(self) -> Bare:
        """The present engine's own load."""
        found = self._bares[self.episode.engine]
        return Bare(
            load_s=statistics.median(bare.load_s for bare in found[-_N_BARE:]),
            address_space_bytes=found[-1].address_space_bytes,
            loaded_bytes=found[-1].loaded_bytes,
        )

    @property
    def loads_s(self) -> dict[str, list[float]]:
        """Every bare load, by engine."""
        return {engine.value: [round(bare.load_s, 3) for bare in found] for engine, found in self._bares.items()}

    async def play(self) -> None:
        """Play every fault."""
        number = 0
        while self._to_come:
            group = make_group("chaos", GROUP_BYTES)
            self.has_group = group is not None
            engine = self._engines[-1] if number % _PYTHON_EVERY == _PYTHON_EVERY - 1 else self._engines[0]
            self.episode = Episode(self._folder / str(number), self._model, engine, group)
            await self._play_episode(seed=number)
            number += 1

    def _take_kinds(self) -> list[str]:
        """Take the next faults, as many as one state directory bears."""
        taken: list[str] = []
        while self._to_come and len(taken) < _N_PER_EPISODE:
            if self._to_come[0] in _SHORTAGES and sum(kind in _SHORTAGES for kind in taken) >= _N_SHORTAGES:
                break
            taken.append(self._to_come.pop(0))
        return taken

    async def _play_episode(self, seed: int) -> None:
        episode = self.episode
        try:
            for _ in range(2):
                self._bares[episode.engine].append(await asyncio.to_thread(measure_bare, episode))
            episode.start()
            if await episode.await_told(_is_ready, 0) is None:
                raise SystemExit(f"nothing was served: {episode.words_of_end()}")  # noqa: EM102, TRY003
            load = Load(episode.url, n_streaming=self._n_clients // 2, n_plain=self._n_clients // 2, seed=seed)
            async with load:
                for kind in self._take_kinds():
                    await asyncio.sleep(self.dice.uniform(0.3, 1.5))
                    await self._play_fault(kind, load)
                self.n_bad_ends += await episode.stop() != 0
            self.answers += load.answers
            self.n_repeats += count_repeats(episode.told)
            self.n_orphans += await self._count_orphans(n_expected=0)
        finally:
            self._end_hog()
            if not episode.has_ended:
                await episode.stop()
            episode.clear()

    async def _play_fault(self, kind: str, load: Load) -> None:
        episode = self.episode
        if kind in GROUPED and episode.group is None:
            return
        await self._until_engine_lives()
        since, began_s = len(episode.told), time.monotonic()
        await KINDS[kind](self)
        outcome = await self._watch(kind, since, began_s)
        if not outcome.wrong and not await load.until_whole(time.monotonic(), _READY_S):
            outcome = msgspec.structs.replace(outcome, wrong="no completion after it was ready")
        n_orphans = await self._count_orphans(n_expected=1)
        self.n_orphans += n_orphans
        outcome = msgspec.structs.replace(outcome, n_orphans=n_orphans)
        self.outcomes.append(outcome)
        _print_outcome(len(self.outcomes), outcome)

    async def _until_engine_lives(self) -> None:
        """Wait out what still follows from the fault before: an engine that is being replaced cannot be signalled."""
        end_s = time.monotonic() + _READY_S
        while not _lives(self.episode.engine_pid()):
            if time.monotonic() > end_s:
                raise SystemExit(f"no engine came back: {self.episode.words_of_end()}")  # noqa: EM102, TRY003
            await asyncio.sleep(0.05)

    async def _hog_is_done(self) -> bool:
        """Wait, for some seconds, until the kernel has killed somebody for the hog: strain may be told before that."""
        assert self.hog is not None  # noqa: S101 - the fault started it
        assert self.hog.stdout is not None  # noqa: S101 - a pipe
        try:
            async with asyncio.timeout(_ABSORB_S):
                return bool(await asyncio.to_thread(self.hog.stdout.readline))
        except TimeoutError:
            return False

    async def _watch(self, kind: str, since: int, began_s: float) -> Outcome:
        """Follow a fault from its act until it serves again."""
        episode = self.episode
        outcome = Outcome(kind=kind, engine=episode.engine, load_s=self.bare.load_s)
        may_be_absorbed = kind == "alloc-run"
        detected = await episode.await_told(_is_detection, since, _ABSORB_S if may_be_absorbed else _DETECT_S)
        if kind == "port" and detected is not None:
            detected = await episode.await_told(_is_detection, episode.told.index(detected) + 1, _DETECT_S)
        if kind == "hog-at-start" and detected is not None:
            after = episode.told.index(detected) + 1
            await episode.await_told(lambda told: _is_detection(told) or _is_ready(told), after, _DETECT_S)
        if kind == "cgroup-oom" and detected is not None and await self._hog_is_done():
            detected = await episode.await_told(_is_end, since, _SETTLE_S) or detected
        self._relieve(kind)
        if detected is None:
            wrong = "" if may_be_absorbed and not episode.has_ended else "not detected"
            return msgspec.structs.replace(outcome, is_absorbed=not wrong, wrong=wrong)
        if kind == "corrupt":
            return await self._serve_anew(outcome, since, began_s)
        # where the engine was killed, that a hog was told, and waited for, does not make it ready
        is_back = _is_new if kind == "hog-at-start" or _is_end(detected) else _is_ready
        ready = await episode.await_told(is_back, episode.told.index(detected), _READY_S)
        while ready is not None and (again := self._failed_after(ready)) is not None:
            ready = await episode.await_told(is_back, episode.told.index(again), _READY_S)
        self._lift()
        story = tuple(f"{told.at_s - began_s:.2f} {told.event}: {told.text}" for told in episode.told[since:])
        if ready is None:
            wrong = f"not ready again: {episode.words_of_end() if episode.has_ended else 'in time'}"
            outcome = msgspec.structs.replace(outcome, wrong=wrong)
            if episode.has_ended:
                await self._restart()
            return msgspec.structs.replace(outcome, story=story)
        before = [told for told in episode.told[since:] if _is_detection(told) and told.at_s < ready.at_s]
        return msgspec.structs.replace(
            outcome,
            detect_s=detected.at_s - began_s,
            ready_s=ready.at_s - before[-1].at_s,
            total_s=ready.at_s - began_s,
            n_starts=sum(told.event == "engine.spawned" for told in episode.told[since:]),
            story=story,
        )

    def _failed_after(self, ready: Told) -> Told | None:
        """Return a detection that came after it was ready again: a shortage may show as soon as requests come."""
        told = self.episode.told
        return next((item for item in told[told.index(ready) :] if _is_detection(item)), None)

    async def _restart(self) -> None:
        self.episode.start()
        await self.episode.await_told(_is_ready, len(self.episode.told))

    async def _serve_anew(self, outcome: Outcome, since: int, began_s: float) -> Outcome:
        """What only a person can cure: wait for the end, put the weights back, serve again."""
        episode = self.episode
        failed = await episode.await_told(lambda told: told.event == "instance.failed", since, _DETECT_S)
        code = await episode.until_ended()
        episode.put_back()
        served_s, n_told = time.monotonic(), len(episode.told)
        episode.start()
        ready = await episode.await_told(_is_ready, n_told, _READY_S)
        if failed is None or code != 1 or ready is None:
            return msgspec.structs.replace(outcome, wrong=f"ended with {code}: {episode.words_of_end()}")
        return msgspec.structs.replace(
            outcome,
            detect_s=failed.at_s - began_s,
            ready_s=ready.at_s - served_s,
            total_s=ready.at_s - began_s,
            n_starts=sum(told.event == "engine.spawned" for told in episode.told[since:]),
            story=(failed.text,),
        )

    # --- After a fault ---

    def _relieve(self, kind: str) -> None:
        """End what would go on by itself once it was detected."""
        self._end_hog()
        if kind == "alloc-run":
            with contextlib.suppress(ProcessLookupError):
                _lift_limit(self.episode.engine_pid())

    def _end_hog(self) -> None:
        hog, self.hog = self.hog, None
        if hog is not None:
            end_hog(hog)

    def _lift(self) -> None:
        """Take the limit from what runs and from what comes."""
        if self.episode.order.address_space_bytes is not None:
            self.episode.give(Order())
            with contextlib.suppress(ProcessLookupError):
                _lift_limit(self.episode.engine_pid())

    async def _count_orphans(self, n_expected: int) -> int:
        """Return how many engines live beyond those expected, after some time to go."""
        end_s = time.monotonic() + _SETTLE_S
        while True:
            alive = self.episode.alive() if n_expected == 0 else self.episode.engines()
            if len(alive) <= n_expected or time.monotonic() > end_s:
                return max(0, len(alive) - n_expected)
            await asyncio.sleep(0.05)


def _lift_limit(pid: int) -> None:
    _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))


def _is_ready(told: Told) -> bool:
    return told.event in {"engine.ready", "memory.relieved", "ladder.none"}


def _is_new(told: Told) -> bool:
    return told.event == "engine.ready"


def _is_end(told: Told) -> bool:
    return told.event == "engine.failed"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _is_detection(told: Told) -> bool:
    return told.event in {"engine.failed", "memory.strained", "instance.drained"}


def count_repeats(told: list[Told]) -> int:
    """Return how often a plan ran out of memory that was in no way smaller than one that had taught so before.

    A shortage after which the same plan was tried again had another cause, measured by the supervisor: it taught nothing.
    """
    learnt: list[dict[str, int]] = []
    n_repeats = 0
    command: dict[str, int] = {}
    for idx, item in enumerate(told):
        if item.event == "chaos.command":
            command = item.facts
        if item.event == "engine.failed" and item.facts.get("cause") in _OUT:
            following = next((later.event for later in told[idx:] if later.event.startswith("ladder.")), "")
            n_repeats += any(
                command["planned_bytes"] >= old["planned_bytes"] and command["loaded_bytes"] >= old["loaded_bytes"]
                for old in learnt
            )
            if following not in {"ladder.retry", "ladder.wait"}:
                learnt.append(command)
    return n_repeats


# --- Telling ----------------------------------------------------------------------------------------------------


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _print_outcome(number: int, outcome: Outcome) -> None:
    what = "absorbed" if outcome.is_absorbed else outcome.wrong.splitlines()[0] if outcome.wrong else ""
    times = f"detect {_seconds(outcome.detect_s):>6}  ready {_seconds(outcome.ready_s):>6}  load {outcome.load_s:5.2f}"
    print(f"{number:4}  {outcome.kind:12}  {outcome.engine:16}  {times}  starts {outcome.n_starts}  {what}", flush=True)


def is_late(outcome: Outcome, slack_s: float) -> bool:
    """Whether it was ready later than the bar allows."""
    return outcome.ready_s is not None and outcome.ready_s > outcome.load_s + slack_s


def print_table(outcomes: list[Outcome], slack_s: float) -> None:
    """Print a line per kind; seconds."""
    print()
    print(
        "kind         faults  absorbed  detect p50   max   ready p50   p95    max  beyond load p50   max  late  failed"
    )
    for kind in sorted({outcome.kind for outcome in outcomes}):
        mine = [outcome for outcome in outcomes if outcome.kind == kind]
        detect = sorted(outcome.detect_s for outcome in mine if outcome.detect_s is not None)
        ready = sorted(outcome.ready_s for outcome in mine if outcome.ready_s is not None)
        beyond = sorted(outcome.ready_s - outcome.load_s for outcome in mine if outcome.ready_s is not None)
        print(
            f"{kind:12}  {len(mine):6}  {sum(outcome.is_absorbed for outcome in mine):8}  "
            f"{_at(detect, 0.5):>10} {_at(detect, 1.0):>6}  {_at(ready, 0.5):>9} {_at(ready, 0.95):>6} "
            f"{_at(ready, 1.0):>6}  {_at(beyond, 0.5):>14} {_at(beyond, 1.0):>6}  "
            f"{sum(is_late(outcome, slack_s) for outcome in mine):4}  {sum(bool(outcome.wrong) for outcome in mine):6}"
        )


def _at(ordered: list[float], share: float) -> str:
    return _seconds(ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None)


def summarise(run: Run, args: argparse.Namespace) -> dict[str, object]:
    """Return the whole report."""
    answers = Counter(answer.verdict for answer in run.answers)
    lost = [answer for answer in run.answers if answer.verdict is Verdict.LOST]
    late = [outcome for outcome in run.outcomes if is_late(outcome, args.slack)]
    failed = [outcome for outcome in run.outcomes if outcome.wrong]
    bars = {
        "faults not played": args.faults - len(run.outcomes),
        "requests without a complete answer": len(lost),
        "orphans": run.n_orphans,
        "repeats of an out-of-memory": run.n_repeats,
        "faults not recovered from": len(failed) + run.n_bad_ends,
        "ready later than load + slack": len(late),
    }
    return {
        "schema_version": 1,
        "seed": args.seed,
        "n_faults": len(run.outcomes),
        "slack_s": args.slack,
        "machine": {"n_cpu": os.cpu_count(), "kernel": platform.release(), "load_average": os.getloadavg()},
        "profile": msgspec.to_builtins(OPTIONS),
        "has_group": run.has_group,
        "own_loads_s": run.loads_s,
        "answers": {verdict.value: answers[verdict] for verdict in Verdict},
        "longest_answer_s": max((answer.lasted_s for answer in run.answers), default=0.0),
        "bars": bars,
        "lost": [msgspec.to_builtins(answer) for answer in lost],
        "faults": [msgspec.to_builtins(outcome) for outcome in run.outcomes],
    }


def _draw(kinds: list[str], n_faults: int, dice: random.Random) -> list[str]:
    """Return the faults in their order: each kind as often as the others, shuffled."""
    drawn = [kinds[number % len(kinds)] for number in range(n_faults)]
    dice.shuffle(drawn)
    return drawn


def play(args: argparse.Namespace) -> dict[str, object]:
    """Run it all and return the report."""
    dice = random.Random(args.seed)  # noqa: S311 - moments, no secrets
    kinds = list(args.kinds)
    probe = make_group("chaos", GROUP_BYTES)
    if probe is None:
        kinds = [kind for kind in kinds if kind not in GROUPED]
        print(f"{', '.join(sorted(GROUPED))}: not possible here, no control group can be made")
    else:
        probe.rmdir()
    with tempfile.TemporaryDirectory(prefix="launcher-chaos-") as folder:
        run = Run(Path(folder), _draw(kinds, args.faults, dice), dice, args.engines, args.clients)
        asyncio.run(run.play())
    print_table(run.outcomes, args.slack)
    return summarise(run, args)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS), help=",".join(KINDS))
    parser.add_argument("--clients", type=int, default=8, help="half of them streaming")
    parser.add_argument("--engines", type=_engines, default=(Engine.LLAMA_SERVER, Engine.LLAMA_CPP_PYTHON))
    parser.add_argument("--slack", type=float, default=SLACK_S, help="seconds beyond the engine's own load")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the report there")
    args = parser.parse_args(words)
    if unknown := set(args.kinds) - set(KINDS):
        parser.error(f"unknown kinds: {', '.join(sorted(unknown))}")
    return args


def _engines(text: str) -> tuple[Engine, ...]:
    return tuple(Engine(word) for word in text.split(","))


def main() -> int:
    """Play, print, keep, judge."""
    args = parse()
    report = play(args)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    print()
    print(f"answers: {report['answers']}; own load: {report['own_loads_s']}")
    print(f"restarts: {OPTIONS.restarts}")
    print(f"health looked at every {OPTIONS.health_pause_s:g} s: {OPTIONS.hang}")
    bars = report["bars"]
    assert isinstance(bars, dict)  # noqa: S101 - made above
    for bar, n in bars.items():
        print(f"{bar}: {n}")
    return 1 if any(bars.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
