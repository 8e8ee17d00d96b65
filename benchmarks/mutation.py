"""Prints how many small faults put into the planner's arithmetic its tests notice.

    make mutation          or   python -m benchmarks.mutation --group fit --sample 60 --seed 2

A survivor is tried again by its place: --group fit --seed 2 --line sizing.py:120. A sample that was not finished goes on
where it stopped: with the same options and --skip, as printed at its end.

Every place where an operator of Cosmic Ray could change the code counts once, with one change drawn by the seed; a
sample of the places is tried. A fault is put into the module as it is imported by a forked process, so no file is
changed, and tried against the tests that ran its lines, the quickest first, until one fails. Limits are of processor
time, so a busy machine gives the same result. What survives is printed as a difference.
"""

import argparse
import ast
import gc
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import hypothesis
import parso
import pytest
import typer.testing  # noqa: F401  # imported once, before the forks
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from coverage import Coverage

ROOT = Path(__file__).parent.parent
PLANNER = ROOT / "launcher" / "planner"
BASELINE = ROOT / "build" / "mutation.json"
PLANNER_TESTS = "tests/planner/test_"
GROUPS = {
    "footprint": (
        tuple(path for path in sorted((PLANNER / "footprint").glob("[a-z]*.py")) if "vllm" not in path.name),
        ("footprint_limits", "footprint_llama_cpp", "footprint_unseen", "walk", "fit_limits"),
    ),
    "fit": (
        tuple(
            PLANNER / f"{name}.py"
            for name in ("fit", "offload", "sizing", "partial", "packing", "ladder", "corrections", "choice")
        ),
        (
            "fit",
            "fit_limits",
            "offload",
            "split",
            "partial_bounds",
            "joint",
            "choice",
            "ladder",
            "corrections",
            "tuning",
            "workers",
            "cluster",
            "tightness",
            "scenarios",
        ),
    ),
}
CPU_LIMIT_S = 20  # beyond three times the time that the unchanged tests took
MEMORY_LIMIT = 4 << 30
_Cache = type(cache(len))


class Mutant(NamedTuple):
    """One change: the module and line, Cosmic Ray's operator and which of its matches, and the lines of its statement."""

    path: Path
    line: int
    operator: str
    occurrence: int
    lines: tuple[int, int]

    @property
    def place(self) -> str:
        """The file's name and the line."""
        return f"{self.path.name}:{self.line}"


class Baseline(NamedTuple):
    """The unchanged code: seconds by test, and by file and line the indices of the tests that ran it (-1: the import)."""

    seconds: dict[str, float]
    tests: dict[str, dict[str, list[int]]]


def _files(group: str) -> list[str]:
    return [
        "tests/scenarios/test_scenarios.py" if name == "scenarios" else f"{PLANNER_TESTS}{name}.py"
        for name in GROUPS[group][1]
    ]


def _statement(node: Any) -> tuple[int, int]:
    """Return the first and last line of the statement that a node stands in."""
    while node.parent is not None and not node.type.endswith(("_stmt", "classdef", "funcdef", "file_input")):
        node = node.parent
    return node.start_pos[0], node.end_pos[0]


def _is_annotation(node: Any) -> bool:
    """Whether a node is part of a type: its change is an error at the import, which tells nothing of the tests."""
    child = node
    while child.parent is not None:
        parent = child.parent
        if parent.type in {"annassign", "tfpdef"} and child is parent.children[1]:
            return True
        if parent.type == "funcdef" and child is parent.annotation:
            return True
        child = parent
    return False


def _is_cache(node: Any) -> bool:
    """Whether a node is part of a cache's decorator: without it the answer is the same, later."""
    while node is not None and node.type != "decorator":
        node = node.parent
    return node is not None and "cache" in node.get_code()


def _is_guard(node: Any) -> bool:
    """Whether a node only forbids misuse: ``frozen`` and ``strict``, and the stars of parameters."""
    parent = node.parent
    if parent is None:
        return False
    named = parent.type == "argument" and parent.children[0].get_code().strip() in {"frozen", "strict"}
    return named or (parent.type in {"parameters", "param"} and node.type == "operator")


def _mutants(path: Path, rng: random.Random) -> list[Mutant]:
    """Return one change for every place of a module that can be changed."""
    tree = parso.parse(path.read_text(), version="3.11")
    places: dict[tuple[int, int], list[Mutant]] = {}
    for name in sorted(operator_names()):
        operator_class = get_operator(name)
        if operator_class.arguments():
            continue
        operator = operator_class()
        matches = ((node, *span) for node in ast_nodes(tree) for span in operator.mutation_positions(node))
        for occurrence, (node, start, _) in enumerate(matches):
            if not (_is_annotation(node) or _is_cache(node) or _is_guard(node)):
                places.setdefault(start, []).append(Mutant(path, start[0], name, occurrence, _statement(node)))
    return [rng.choice(variants) for _, variants in sorted(places.items())]


def _mutate(mutant: Mutant) -> str:
    """Return the changed source."""
    text = mutate_code(mutant.path.read_text(), get_operator(mutant.operator)(), mutant.occurrence)
    return str(text)


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed source."""

    def __init__(self, path: Path, text: str) -> None:
        self.name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        self.path = path
        self.code: CodeType = compile(text, str(path), "exec", dont_inherit=True)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self.path)
        exec(self.code, module.__dict__)  # noqa: S102  # the planner's own source, changed in one place


class _Select:
    """A pytest plugin: runs the named tests, the quickest first."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.order = {name: idx for idx, name in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])


class _Record:
    """A pytest plugin: records the seconds of each test and the lines that it ran, with every cache empty."""

    def __init__(self, coverage: Coverage) -> None:
        self.coverage = coverage
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        for held in gc.get_objects():
            if isinstance(held, _Cache) and held.__module__.startswith(("launcher", "tests")):
                held.cache_clear()
        self.coverage.switch_context(item.nodeid)
        start = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - start
        return result


def _pytest(files: Iterable[str], plugin: object) -> int:
    """Run tests in this process, quietly, always with the same examples, and return pytest's exit code."""
    hypothesis.settings.register_profile(
        "mutation",
        derandomize=True,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    )
    hypothesis.settings.load_profile("mutation")
    quiet = [
        "-x",
        "-q",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        "-o",
        "timeout=0",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    return int(pytest.main([*quiet, *files], plugins=[plugin]))


def _fork(work: Any) -> tuple[int, float]:
    """Run ``work`` in a forked process; return its exit code (negative: its signal) and its processor seconds."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 3  # of an exception that pytest lets through
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            code = work()
        finally:
            os._exit(code)
    _, status, usage = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def _record(group: str) -> Baseline:
    """Run the unchanged tests once under coverage, or read what that run left if nothing was changed since."""
    paths = [*(ROOT / "launcher").rglob("*.py"), *(ROOT / "tests").rglob("*.*"), *(ROOT / "profiles").rglob("*.toml")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths) if path.suffix != ".pyc")).hexdigest()
    kept = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if kept.get("digest") != digest:
        kept = {"digest": digest}
    if group not in kept:
        with tempfile.NamedTemporaryFile(suffix=".json") as file:

            def work() -> int:
                coverage = Coverage(data_file=None, include=[str(path) for path in GROUPS[group][0]])
                coverage.start()
                recorder = _Record(coverage)
                code = _pytest(_files(group), recorder)
                coverage.stop()
                data = coverage.get_data()
                numbers = {"": -1} | {test: idx for idx, test in enumerate(recorder.seconds)}
                lines = {
                    Path(name).name: {line: [numbers[test] for test in tests] for line, tests in ran.items()}
                    for name in data.measured_files()
                    if (ran := data.contexts_by_lineno(name))
                }
                Path(file.name).write_text(json.dumps({"seconds": recorder.seconds, "tests": lines}))
                return code

            if _fork(work)[0] != 0:
                sys.exit(f"the unchanged tests of {group} fail: python -m pytest -x {' '.join(_files(group))}")
            kept[group] = json.loads(Path(file.name).read_text())
        BASELINE.parent.mkdir(exist_ok=True)
        BASELINE.write_text(json.dumps(kept))
    return Baseline(**kept[group])


def _choose_tests(mutant: Mutant, baseline: Baseline) -> list[str]:
    """Return the tests that ran a mutant's statement, quickest first; what the import runs concerns the whole file."""
    lines = baseline.tests.get(mutant.path.name, {})
    first, last = mutant.lines
    found = {test for line in range(first, last + 1) for test in lines.get(str(line), ())}
    if -1 in found:
        found = {test for tests in lines.values() for test in tests} - {-1}
    names = list(baseline.seconds)
    return sorted((names[test] for test in found), key=baseline.seconds.__getitem__)


def _try(mutant: Mutant, baseline: Baseline) -> tuple[str, float]:
    """Return how a mutant ended (killed, endless, survived, not run) and the processor seconds that it took."""
    tests = _choose_tests(mutant, baseline)
    if not tests:
        return "not run", 0.0
    text = _mutate(mutant)
    if ast.dump(ast.parse(text)) == ast.dump(ast.parse(mutant.path.read_text())):
        return "same", 0.0
    limit_s = CPU_LIMIT_S + math.ceil(3 * sum(baseline.seconds[test] for test in tests))

    def work() -> int:
        resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
        sys.meta_path.insert(0, _Importer(mutant.path, text))
        return _pytest(sorted({test.partition("::")[0] for test in tests}), _Select(tests))

    code, seconds = _fork(work)
    if code in {-signal.SIGXCPU, -signal.SIGKILL}:
        return "endless", seconds
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:  # it changed the names of the tests, and nothing was asked of it
        return "not run", seconds
    return ("survived" if code == 0 else "killed"), seconds


def _interval(n_killed: int, n_tried: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in percent."""
    z = 1.96
    share = n_killed / n_tried
    centre = share + z**2 / (2 * n_tried)
    spread = z * math.sqrt(share * (1 - share) / n_tried + z**2 / (4 * n_tried**2))
    scale = 100 / (1 + z**2 / n_tried)
    return (centre - spread) * scale, (centre + spread) * scale


def _show(mutant: Mutant, ending: str) -> None:
    """Print a mutant that no test noticed."""
    before, after = mutant.path.read_text().splitlines(), _mutate(mutant).splitlines()
    first = next(idx for idx, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1])
    print(f"{mutant.place}: {ending} ({mutant.operator.removeprefix('core/')})")
    print(f"  - {before[first].strip()}\n  + {after[first].strip()}", flush=True)


def _line(name: str, n_places: int, endings: Sequence[str]) -> str:
    """Return a line of the table."""
    n_killed = sum(ending in {"killed", "endless"} for ending in endings)
    low, high = _interval(n_killed, len(endings))
    share = 100 * n_killed / len(endings)
    return f"{name:<20}{n_places:>8}{len(endings):>7}{n_killed:>8}{share:>7.0f} %   {low:.0f} to {high:.0f} %"


def _choose(every: Sequence[Mutant], rng: random.Random, given: argparse.Namespace) -> Sequence[Mutant]:
    """Return those on the lines that were named, else what an earlier run left of a sample."""
    sample = rng.sample(every, min(given.sample, len(every)))
    return [mutant for mutant in every if mutant.place in given.line] if given.line else sample[given.skip :]


def _check(group: str, given: argparse.Namespace) -> list[str]:
    """Try a group's places as far as they were asked for, print what survives, and return the table's lines."""
    baseline = _record(group)
    rng = random.Random(given.seed)  # noqa: S311  # a sample, no secret
    every = [mutant for path in GROUPS[group][0] for mutant in _mutants(path, rng)]
    end = time.monotonic() + 60 * given.minutes
    endings: dict[str, list[str]] = {}
    spent_s, n_seen = 0.0, given.skip
    for mutant in _choose(every, rng, given):
        if time.monotonic() > end:
            break
        n_seen += 1
        ending, seconds = _try(mutant, baseline)
        spent_s += seconds
        if ending == "same":
            continue
        endings.setdefault(mutant.path.name, []).append(ending)
        if ending in {"survived", "not run"}:
            _show(mutant, ending)
    places = Counter(mutant.path.name for mutant in every)
    lines = [_line(name, places[name], ended) for name, ended in sorted(endings.items())]
    total = [ending for ended in endings.values() for ending in ended]
    more = "" if given.line else f"; --skip {n_seen} goes on"
    cost = f"  seed {given.seed}, {len(total)} of {len(every)} places, {spent_s:.0f} s of processor time{more}"
    return [*lines, _line(group, len(every), total), cost] if total else [cost]


def main() -> None:
    """Print the survivors as they are found, then the score of each module and group."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=GROUPS, action="append", help="footprint or fit; both unless given")
    parser.add_argument("--sample", type=int, default=200, help="places tried of each group")
    parser.add_argument("--skip", type=int, default=0, help="places of the sample that an earlier run tried")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="try no further place of a group after these")
    parser.add_argument("--line", action="append", default=[], help="instead: the places on FILE:LINE; may be repeated")
    given = parser.parse_args()
    os.chdir(ROOT)
    table = [line for group in given.group or GROUPS for line in _check(group, given)]
    print(f"{'':<20}{'places':>8}{'tried':>7}{'killed':>8}{'score':>9}   95 %")
    print("\n".join(table))


if __name__ == "__main__":
    main()
