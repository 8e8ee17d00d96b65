"""Try a number of inputs on one target, in one process: change, hold to bounds, count, keep what reaches further.

The same target, seed and chunk try the same inputs. It must not know what a target is about.
"""

import hashlib
import random
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Final

import msgspec

from launcher.errors import LauncherError
from tests.fuzz.bounds import Clock, GrowthError, HangError, Reached, check_growth, counted_memory, peak_bytes
from tests.fuzz.target import Take, Target
from tests.fuzz.trees import Tree, mutate, shrink

_TRACED: Final = 8
"""One input of so many is traced, which costs about as much as taking it."""
_COUNTED: Final = 97
"""One input of so many is taken with its memory counted to the byte."""
_TIMED: Final = 5
"""One batch of so many is timed."""
_MAX_CORPUS: Final = 3000
_MAX_FINDINGS: Final = 40


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """An input with a wrong ending, made as small as could be."""

    target: str
    chunk: int
    kind: str
    where: str
    trace: str
    data: bytes
    n_seen: int = 1

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"{self.target}-{hashlib.sha256(self.data).hexdigest()[:12]}"


class Report(msgspec.Struct, kw_only=True):
    """What became of a number of inputs. Lines are those reached in the target's modules."""

    target: str
    n_inputs: int = 0
    endings: dict[str, int] = {}
    lines: set[tuple[str, int]] = set()
    n_lines: int = 0
    corpus: int = 0
    slowest_s: float = 0.0
    took_s: float = 0.0
    grown_bytes: int = 0
    findings: list[Finding] = []


def run_chunk(target: Target, *, seed: int, chunk: int, n_inputs: int) -> Report:
    """Try so many inputs, the target's own seeds first among them."""
    began_s = time.process_time()
    with ExitStack() as stack:
        take = stack.enter_context(target.opened())
        trial = _Trial(target, seed, chunk, take, stack.enter_context(Clock().running()))
        trial.run(n_inputs)
        report = trial.report
    report.took_s = time.process_time() - began_s
    return report


class _Trial:
    """One chunk under way."""

    def __init__(self, target: Target, seed: int, chunk: int, take: Take, clock: Clock) -> None:
        self._target, self._chunk, self._take, self._clock = target, chunk, take, clock
        self._rng = random.Random(f"{seed}/{target.name}/{chunk}")  # noqa: S311 - to be had again by its seed
        self._reached = Reached(target.modules)
        self._corpus = target.seeds()
        self._n_seeds = len(self._corpus)
        self._endings: Counter[str] = Counter()
        self._found: dict[str, Finding] = {}
        self._slowest_s = 0.0
        self._n_done = 0
        self._grown_bytes = 0

    def run(self, n_inputs: int) -> None:
        """Try them."""
        settled_bytes = 0
        while self._n_done < n_inputs and len(self._found) < _MAX_FINDINGS:
            trees = [self._next() for _ in range(min(self._target.batch, n_inputs - self._n_done))]
            self._try(trees)
            if not settled_bytes and self._n_done >= n_inputs // 4:
                settled_bytes = peak_bytes()
        self._grown_bytes = peak_bytes() - settled_bytes

    @property
    def report(self) -> Report:
        """What became of them."""
        return Report(
            target=self._target.name,
            n_inputs=self._n_done,
            endings=dict(self._endings),
            lines=self._reached.known(),
            n_lines=self._reached.n_lines,
            corpus=len(self._corpus),
            slowest_s=self._slowest_s,
            grown_bytes=self._grown_bytes,
            findings=list(self._found.values()),
        )

    def _next(self) -> Tree:
        if self._n_done < self._n_seeds and self._chunk == 0:
            return self._corpus[self._n_done]
        return mutate(self._rng, self._pick(), self._corpus, self._target.words)

    def _pick(self) -> Tree:
        """Choose what reached new lines lately a little more often than what did long ago."""
        if self._rng.random() < 0.3:
            return self._corpus[-1 - self._rng.randrange(min(50, len(self._corpus)))]
        return self._rng.choice(self._corpus)

    def _try(self, trees: Sequence[Tree]) -> None:
        datas = [self._target.encode(tree) for tree in trees]
        number = self._n_done // self._target.batch
        traced, timed = number % _TRACED == 0, number % _TIMED == 1
        n_before = len(self._reached.lines)
        began_s = time.process_time() if timed else 0.0
        endings = self._endings_of(datas, traced=traced, counted=number % _COUNTED == 1)
        if timed and not traced:
            self._slowest_s = max(self._slowest_s, (time.process_time() - began_s) / len(trees))
        self._n_done += len(trees)
        if len(self._reached.lines) > n_before and len(self._corpus) < _MAX_CORPUS:
            self._corpus += trees
        for tree, data, ending in zip(trees, datas, endings, strict=True):
            self._count(tree, data, ending)

    def _endings_of(self, datas: Sequence[bytes], *, traced: bool, counted: bool) -> Sequence[str | BaseException]:
        """Take inputs within their bounds."""
        trace = self._reached.traced() if traced else nullcontext()
        count: AbstractContextManager[None] = nullcontext()
        if counted and not traced:
            count = counted_memory(sum(map(len, datas)), self._target.slack_bytes)
        before_bytes, n_input = peak_bytes(), sum(map(len, datas))
        try:
            with self._clock.bounded(self._target.cpu_s * len(datas) * (3 if traced or counted else 1)), trace, count:
                endings = self._take(datas)
            check_growth(before_bytes, n_input, self._target.slack_bytes)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is judged
            return [error] * len(datas)
        return endings

    def _count(self, tree: Tree, data: bytes, ending: str | BaseException) -> None:
        word, fault = self._judged(ending)
        if fault is None:
            self._endings[word] += 1
            return
        self._endings["WRONG"] += 1
        kind, where = type(fault).__name__, _place_of(fault)
        key = f"{kind} {where}"
        if known := self._found.get(key):
            self._found[key] = msgspec.structs.replace(known, n_seen=known.n_seen + 1)
            return
        if self._target.batch == 1:
            tree = shrink(tree, lambda smaller: self._shows(smaller, key))
            data = self._target.encode(tree)
        trace = "".join(traceback.format_exception(fault))[-4000:]
        self._found[key] = Finding(
            target=self._target.name, chunk=self._chunk, kind=kind, where=where, trace=trace, data=data
        )

    def _judged(self, ending: str | BaseException) -> tuple[str, BaseException | None]:
        """Return how far an input came, or what is wrong with how it ended."""
        if isinstance(ending, str):
            return ending, None
        try:
            word = self._target.judge(ending)
        except Exception as error:  # noqa: BLE001 - a refusal whose words are wrong
            return "", error
        return (word, None) if word is not None else ("", ending)

    def _shows(self, tree: Tree, key: str) -> bool:
        (ending,) = self._endings_of([self._target.encode(tree)], traced=False, counted="Growth" in key)
        fault = self._judged(ending)[1]
        return fault is not None and f"{type(fault).__name__} {_place_of(fault)}" == key


def _place_of(error: BaseException) -> str:
    """Return the deepest line of ours that an exception passed: the same fault has the same place."""
    if isinstance(error, HangError | GrowthError):
        return "bounds"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/launcher/" in frame.filename] or list(frames)
    if not ours:
        return "nowhere"
    last = ours[-1]
    return f"{'/'.join(last.filename.rsplit('/', 2)[-2:])}:{last.lineno}"


def replay(target: Target, data: bytes) -> str:
    """Take one input again, and return what becomes of it; what is wrong is raised."""
    with target.opened() as take, Clock().running() as clock, clock.bounded(target.cpu_s):
        try:
            (ending,) = take([data])
        except LauncherError as error:
            ending = error
    if isinstance(ending, str):
        return ending
    word = target.judge(ending)
    if word is None:
        raise ending
    return word
