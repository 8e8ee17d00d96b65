"""Try hostile inputs on every target, count them, and fail on any wrong ending.

Each line that is printed can be had again: the same seed tries the same inputs. What is found is written to a folder, as
the input itself and as the trace of where it went wrong.
"""

import argparse
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from tests.fuzz.chunk import Finding, Report, replay, run_chunk
from tests.fuzz.targets import TARGETS

_ADDRESS_SPACE: Final = 6 << 30
_Job: TypeAlias = tuple[str, int, int]
"""Target, chunk, number of inputs."""


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this one; may be repeated")
    parser.add_argument("--chunk", type=int, help="only the chunk of this number, as a finding names it")
    parser.add_argument("--chunks", type=int, default=6, help="into how many the inputs of each target are divided")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"), help="the folder for what is found")
    parser.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="keep each chunk's report there, and take those that are"
    )
    parser.add_argument("--missing", action="store_true", help="print the lines that no input reached")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="take the input in a file again; --target says of which"
    )
    asked = parser.parse_args()
    if asked.replay is not None and not asked.target:
        parser.error("--replay needs the --target that the input is for")
    if asked.replay is not None:
        print(replay(TARGETS[asked.target[0]], asked.replay.read_bytes()))  # noqa: T201 - a command's output
        return 0
    began_s = time.monotonic()
    reports = _run_all(asked)
    for line in _lines(reports, asked.seed, time.monotonic() - began_s):
        print(line)  # noqa: T201
    if asked.missing:
        _print_missing(reports)
    findings = [finding for report in reports.values() for finding in report.findings]
    return 1 if findings else 0


def _jobs(asked: argparse.Namespace) -> Iterator[_Job]:
    """Yield target, chunk and number of inputs, the chunks of all targets in turn."""
    chosen = asked.target or list(TARGETS)
    whole = sum(TARGETS[name].share for name in chosen)
    for chunk in range(asked.chunks) if asked.chunk is None else [asked.chunk]:
        for name in chosen:
            n = -(-round(asked.inputs * TARGETS[name].share / whole) // asked.chunks)
            batch = TARGETS[name].batch
            yield name, chunk, -(-n // batch) * batch


def work(name: str, seed: int, chunk: int, n_inputs: int) -> Report:
    """Try one chunk of one target, in a process that no input lets bring the machine to its knees."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, hard))
    return run_chunk(TARGETS[name], seed=seed, chunk=chunk, n_inputs=n_inputs)


def _run_all(asked: argparse.Namespace) -> dict[str, Report]:
    reports: dict[str, Report] = {}
    for (name, chunk, n), report in _reports(asked):
        _keep(report.findings, asked.findings)
        reports[name] = _joined(reports.get(name), report)
        print(f"  {name} {chunk}: {n} inputs, {len(report.findings)} findings", file=sys.stderr)  # noqa: T201
    return {name: reports[name] for name in TARGETS if name in reports}


def _reports(asked: argparse.Namespace) -> Iterator[tuple[_Job, Report]]:
    """Yield the report of each chunk, those first that are kept of an earlier run with the same seed and sizes."""
    left = []
    for job in _jobs(asked):
        kept = _kept_path(asked, job)
        if kept is not None and kept.exists():
            yield job, msgspec.json.decode(kept.read_bytes(), type=Report)
        else:
            left.append(job)
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        running = {pool.submit(work, name, asked.seed, chunk, n): (name, chunk, n) for name, chunk, n in left}
        for done in as_completed(running):
            job = running[done]
            try:
                report = done.result()
            except Exception as error:  # noqa: BLE001 - told, and not kept: of a broken pool, what was not tried ends so too
                name, chunk, _ = job
                finding = Finding(target=name, chunk=chunk, kind="Died", where="process", trace=repr(error), data=b"")
                yield job, Report(target=name, n_inputs=0, findings=[finding])
                continue
            if (kept := _kept_path(asked, job)) is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(msgspec.json.encode(report))
            yield job, report


def _kept_path(asked: argparse.Namespace, job: _Job) -> Path | None:
    """Return where the report of a chunk is kept, if any is."""
    name, chunk, n = job
    return None if asked.resume is None else asked.resume / f"{name}-{asked.seed}-{chunk}-{n}.json"


def _joined(one: Report | None, other: Report) -> Report:
    if one is None:
        return other
    endings = Counter(one.endings)
    endings.update(other.endings)
    known = {(finding.kind, finding.where): finding for finding in (*other.findings, *one.findings)}
    return Report(
        target=one.target,
        n_inputs=one.n_inputs + other.n_inputs,
        endings=dict(endings),
        lines=one.lines | other.lines,
        n_lines=max(one.n_lines, other.n_lines),
        corpus=one.corpus + other.corpus,
        slowest_s=max(one.slowest_s, other.slowest_s),
        took_s=one.took_s + other.took_s,
        grown_bytes=max(one.grown_bytes, other.grown_bytes),
        findings=list(known.values()),
    )


def _lines(reports: dict[str, Report], seed: int, took_s: float) -> Iterator[str]:
    """Yield the report: a line per target, then how far its inputs came."""
    n_inputs = sum(report.n_inputs for report in reports.values())
    n_wrong = sum(report.endings.get("WRONG", 0) for report in reports.values())
    yield f"{n_inputs} inputs, seed {seed}, {took_s:.0f} s; {n_wrong} ended wrongly"
    for name, report in reports.items():
        share = 100 * len(report.lines) / report.n_lines if report.n_lines else 0
        yield (
            f"\n{name}: {report.n_inputs} inputs, {report.took_s:.0f} s of processor, "
            f"{len(report.lines)} of {report.n_lines} lines reached ({share:.0f} %), {report.corpus} inputs kept, "
            f"slowest {1000 * report.slowest_s:.0f} ms, memory grew {report.grown_bytes >> 20} MiB"
        )
        for ending, n in sorted(report.endings.items(), key=lambda item: -item[1]):
            yield f"  {n:>9}  {ending}"
        for finding in report.findings:
            yield f"  FOUND {finding.kind} at {finding.where}, {finding.n_seen} times, chunk {finding.chunk}: {finding.name}"


def _print_missing(reports: dict[str, Report]) -> None:
    from tests.fuzz.bounds import Reached  # noqa: PLC0415 - only here

    for name, report in reports.items():
        reached = Reached(TARGETS[name].modules)
        reached.lines = set(report.lines)
        for file, lines in reached.missing().items():
            print(f"{name} {file}: {lines}")  # noqa: T201


def _keep(findings: list[Finding], folder: Path) -> None:
    """Write what was found: the input, and beside it how it ended."""
    for finding in findings:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{finding.name}.bin").write_bytes(finding.data)
        (folder / f"{finding.name}.txt").write_text(finding.trace, encoding="utf-8", errors="backslashreplace")
