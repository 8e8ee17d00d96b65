"""Judge a soak's record against its bars, and word it: as text for a terminal, as a page for the docs.

It must not know how a soak is run. The same record always gives the same report. Pure.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import Final

from benchmarks.soak_record import Fault, Record, Sample, Usage
from benchmarks.trend import N_BLOCKS, N_LEAST, Trend, Verdict, bound_per_h, fit_trend
from launcher.domain import Noun
from launcher.units import KIB, MIB

_HOUR_S: Final = 3600.0
_SHOWN_ODDITIES: Final = 20
_MEMORY_PER_H: Final = 1.0
"""MiB. Also the step by which Python's allocator takes memory from the system (an arena), so that less could not be told
from one more step in the time that is measured; at that rate a service that starts with 60 MiB would have a quarter GiB
after a week."""
_COUNT_PER_H: Final = 1.0
"""Descriptors or threads: of 1024 descriptors, the usual limit, none would be left after six weeks."""


class Row(Noun, frozen=True):
    """One thing that was measured of a process over the run. ``bound`` is ``None`` for what is only told."""

    process: str
    what: str
    trend: Trend | None
    bound: float | None = None

    @property
    def verdict(self) -> Verdict | None:
        """Return how it stands to the bound; too short to tell is undecided."""
        if self.bound is None:
            return None
        return Verdict.UNDECIDED if self.trend is None else self.trend.against(self.bound)


def judged(record: Record) -> tuple[Sample, ...]:
    """Return the samples after the warm-up, under load."""
    if record.warm_up_s is None:
        return ()
    return tuple(s for s in record.samples if s.at_s > record.warm_up_s and not s.is_at_rest)


def rows(record: Record) -> tuple[Row, ...]:
    """Return every series with its trend."""
    samples = judged(record)
    span_s = samples[-1].at_s - samples[0].at_s if samples else 0.0
    memory = bound_per_h(_MEMORY_PER_H, 1.0, span_s)
    count = bound_per_h(_COUNT_PER_H, 1.0, span_s)
    found = []
    for process, of in (("launcher", _launcher), ("guard", _guard)):
        for what, get, bound in (
            ("anonymous", _anonymous, memory),
            ("USS", _uss, None),
            ("PSS", _pss, None),
            ("RSS", _rss, None),
        ):
            found.append(Row(process=process, what=what, trend=_fit(samples, of, get), bound=bound))
        found.append(Row(process=process, what="descriptors", trend=_fit_floor(samples, of, _fds), bound=count))
        found.append(Row(process=process, what="threads", trend=_fit_floor(samples, of, _threads), bound=count))
    return tuple(found)


def _fit(
    samples: Sequence[Sample], of: Callable[[Sample], Usage | None], get: Callable[[Usage], float]
) -> Trend | None:
    return fit_trend(_points(samples, of, get))


def _fit_floor(
    samples: Sequence[Sample], of: Callable[[Sample], Usage | None], get: Callable[[Usage], float]
) -> Trend | None:
    """Return the trend of what is there at the calmest moment of each twentieth: each request has descriptors of its own.

    So has an engine: moments between two of them would be the calmest.
    """
    return fit_trend(_points([s for s in samples if s.engine_rss_bytes > 0], of, get), min, N_LEAST)


def _points(
    samples: Sequence[Sample], of: Callable[[Sample], Usage | None], get: Callable[[Usage], float]
) -> list[tuple[float, float]]:
    return [(s.at_s, get(usage)) for s in samples if (usage := of(s)) is not None]


def _launcher(sample: Sample) -> Usage | None:
    return sample.launcher


def _guard(sample: Sample) -> Usage | None:
    return sample.guard


def _anonymous(usage: Usage) -> float:
    return usage.anonymous_bytes / MIB


def _uss(usage: Usage) -> float:
    return usage.uss_bytes / MIB


def _pss(usage: Usage) -> float:
    return usage.pss_bytes / MIB


def _rss(usage: Usage) -> float:
    return usage.rss_bytes / MIB


def _fds(usage: Usage) -> float:
    return usage.n_fds


def _threads(usage: Usage) -> float:
    return usage.n_threads


# --- At rest ----------------------------------------------------------------------------------------------------


class Rest(Noun, frozen=True):
    """What was there once nothing had been asked for a while: the least of some looks."""

    at_s: float
    n_fds: int
    n_threads: int
    n_processes: int
    n_zombies: int
    anonymous_bytes: int


def rests(record: Record) -> tuple[Rest, ...]:
    """Return the times of rest, in their order."""
    found: list[list[Sample]] = []
    was_at_rest = False
    for sample in record.samples:
        if sample.is_at_rest and sample.launcher is not None:
            if not was_at_rest:
                found.append([])
            found[-1].append(sample)
        was_at_rest = sample.is_at_rest
    return tuple(_rest(samples) for samples in found)


def _rest(samples: Sequence[Sample]) -> Rest:
    usages = [sample.launcher for sample in samples if sample.launcher is not None]
    return Rest(
        at_s=samples[0].at_s,
        n_fds=min(usage.n_fds for usage in usages),
        n_threads=min(usage.n_threads for usage in usages),
        n_processes=min(sample.n_processes for sample in samples),
        n_zombies=min(sample.n_zombies for sample in samples),
        anonymous_bytes=min(usage.anonymous_bytes for usage in usages),
    )


# --- Bars -------------------------------------------------------------------------------------------------------


def bars(record: Record, found: Sequence[Row] | None = None) -> dict[str, int]:
    """Return by how much each bar is missed: all 0 where everything is as it should be; ``found`` are its ``rows``."""
    found = rows(record) if found is None else found
    calm = rests(record)
    first, last = (calm[0], calm[-1]) if calm else (None, None)
    more = dict.fromkeys(("descriptors", "threads", "processes"), 0)
    if first is not None and last is not None:
        more = {
            "descriptors": max(0, last.n_fds - first.n_fds),
            "threads": max(0, last.n_threads - first.n_threads),
            "processes": max(0, last.n_processes - first.n_processes),
        }
    largest = max((sample.state_bytes for sample in record.samples), default=0)
    return {
        "requests without a whole answer": record.n_lost,
        "requests answered as their kind must not be": record.n_odd - record.n_lost,
        **{f"{row.process}'s {row.what} not shown to be flat": _misses(row) for row in found if row.bound is not None},
        **{f"{what} at rest, more at the end": n for what, n in more.items()},
        "processes that nobody waited for, at rest": 0 if last is None else last.n_zombies,
        "faults not recovered from": sum(bool(fault.wrong) for fault in record.faults),
        "bytes of state above what rotation allows": max(0, largest - record.log_bound_bytes),
        "processes left after the end": len(record.orphans),
        "the launcher's end": int(record.is_over and record.exit_code != 0),
        "the run's own end": int(not record.is_over or bool(record.driver_fault) or len(calm) < 2),  # noqa: PLR2004 - the first, the last
    }


def _misses(row: Row) -> int:
    """Whether a series misses its bar: in less than an hour only one that is shown to rise, for noise needs longer to settle."""
    if row.trend is None or row.verdict is Verdict.RISES:
        return 1
    return int(row.verdict is Verdict.UNDECIDED and row.trend.span_s >= _HOUR_S)


# --- Words ------------------------------------------------------------------------------------------------------


def render(record: Record) -> str:
    """Return the report as text."""
    found = rows(record)
    parts = [
        _head(record),
        _render_trends(record, found),
        _render_rests(record),
        _render_state(record),
        _render_answers(record),
        _render_faults(record),
        _render_end(record),
        _render_bars(bars(record, found)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(record: Record) -> str:
    warm_up = "not over yet" if record.warm_up_s is None else f"{record.warm_up_s / 60:.1f} min"
    over = "to its end" if record.is_over else "so far"
    engine_share = statistics.fmean(sample.cpu_share for sample in record.samples) if record.samples else 0.0
    lines = [
        f"soak of {record.lasted_s / 60:.1f} min {over} (asked: {record.duration_s / 60:.0f}), begun {record.began_at}",
        f"seed {record.seed}, revision {record.revision}",
        f"machine: {record.machine}",
        f"engine: {record.engine}",
        f"limit: {record.limit}",
        f"load: launcher and engine took {engine_share:.2f} of a core on average (aim {record.cpu_target:.2f})",
        f"warm-up: {warm_up}: each kind of fault of the opening once, and a first rest",
    ]
    if record.driver_fault:
        lines.append(f"ended before its time: {record.driver_fault}")
    return "\n".join(lines)


def _render_trends(record: Record, found: Sequence[Row]) -> str:
    samples = judged(record)
    if not samples:
        return ""
    span_s = samples[-1].at_s - samples[0].at_s
    n_answers = samples[-1].n_answers - samples[0].n_answers
    lines = [
        f"after the warm-up, under load: {span_s / 60:.1f} min, {len(samples)} samples, {n_answers} requests",
        f"slope per hour by least squares, 95 % interval by a bootstrap of {N_BLOCKS} blocks",
        "process   what         begins    ends   slope/h   interval            below   verdict",
    ]
    for row in found:
        if row.trend is None:
            lines.append(f"{row.process:8}  {row.what:11}  too few samples")
            continue
        t = row.trend
        bound = "-" if row.bound is None else f"{row.bound:.2f}"
        interval = f"{t.low:+.3f} .. {t.high:+.3f}"
        lines.append(
            f"{row.process:8}  {row.what:11}  {t.begins:6.2f}  {t.ends:6.2f}  {t.slope:+8.3f}  {interval:>18}  "
            f"{bound:>6}   {row.verdict or '(told)'}"
        )
    anonymous = next((row.trend for row in found if row.process == "launcher"), None)
    if anonymous is not None and n_answers and span_s:
        per_request = anonymous.high * MIB / (n_answers / span_s * _HOUR_S)
        lines.append(
            f"memory in MiB; the upper end of the launcher's anonymous memory is {per_request:.0f} bytes a request"
        )
    return "\n".join(lines)


def _render_rests(record: Record) -> str:
    calm = rests(record)
    if not calm:
        return ""
    lines = ["at rest   descriptors  threads  processes below  of them not waited for  anonymous MiB"]
    lines += [
        f"{rest.at_s / 60:5.1f} min  {rest.n_fds:11}  {rest.n_threads:7}  {rest.n_processes:15}  {rest.n_zombies:22}  "
        f"{rest.anonymous_bytes / MIB:13.2f}"
        for rest in calm
    ]
    return "\n".join(lines)


def _render_state(record: Record) -> str:
    if not record.samples:
        return ""
    largest = max(sample.state_bytes for sample in record.samples)
    files = ", ".join(f"{name} {size / KIB:.0f}" for name, size in sorted(record.files.items()) if size >= KIB)
    first, last = record.samples[0].state_bytes, record.samples[-1].state_bytes
    line = f"state directory: {first / KIB:.0f} KiB at first, {last / KIB:.0f} at last, {largest / KIB:.0f} at most "
    line += f"(rotation allows {record.log_bound_bytes / KIB:.0f})"
    return f"{line}\nfiles, KiB: {files}" if files else line


def _render_answers(record: Record) -> str:
    ends = sorted({end for counts in record.answers.values() for end in counts})
    width = max((len(kind) for kind in record.answers), default=0)
    lines = ["requests by kind and end", f"{'':{width}}  " + "  ".join(f"{end:>11}" for end in ends)]
    for kind, counts in record.answers.items():
        lines.append(f"{kind:{width}}  " + "  ".join(f"{counts.get(end, 0) or '':>11}" for end in ends))
    total: Counter[str] = Counter()
    for counts in record.answers.values():
        total.update(counts)
    lines.append(f"{'all':{width}}  " + "  ".join(f"{total[end]:>11}" for end in ends))
    lines.append(f"{total.total()} requests, longest wait for an answer {record.longest_answer_s:.1f} s")
    lines += [
        f"odd: {odd.at_s:.0f} s {odd.kind} {odd.verdict} {odd.status} {odd.why[-150:]!r}"
        for odd in record.oddities[:_SHOWN_ODDITIES]
    ]
    return "\n".join(lines)


def _render_faults(record: Record) -> str:
    lines = [
        "faults (seconds; warm-up included)",
        "kind     played  missed  borne  detected p50    max   ready p50    max  served p50    max  steps  not recovered",
    ]
    for kind in sorted({fault.kind for fault in record.faults}):
        mine = [fault for fault in record.faults if fault.kind == kind]
        borne = [fault for fault in mine if fault.detect_s is None and not fault.wrong and fault.story != ("missed",)]
        n_missed = sum(fault.story == ("missed",) for fault in mine)
        lines.append(
            f"{kind:7}  {len(mine):6}  {n_missed:6}  {len(borne):5}  {_two(mine, _detect):>19}  {_two(mine, _ready):>17}  "
            f"{_two(mine, _served):>17}  {sum(fault.n_steps for fault in mine):5}  {sum(bool(f.wrong) for f in mine):13}"
        )
    lines.append(
        f"{record.n_failures} engines failed, {record.n_ladder_steps} steps down the ladder, {record.n_step_ups} back up"
    )
    lines += [
        f"wrong: {fault.at_s:.0f} s {fault.kind}: {fault.wrong}; {fault.story}"
        for fault in record.faults
        if fault.wrong
    ]
    return "\n".join(lines)


def _two(faults: Sequence[Fault], get: Callable[[Fault], float | None]) -> str:
    values = sorted(value for fault in faults if (value := get(fault)) is not None)
    return f"{statistics.median(values):.2f} {values[-1]:6.2f}" if values else "-      -"


def _detect(fault: Fault) -> float | None:
    return fault.detect_s


def _ready(fault: Fault) -> float | None:
    return fault.ready_s


def _served(fault: Fault) -> float | None:
    return fault.served_s


def _render_end(record: Record) -> str:
    if not record.is_over:
        return "not over yet: what follows from the end is not judged"
    left = "none" if not record.orphans else "; ".join(record.orphans)
    return f"at the end: exit code {record.exit_code}, processes left: {left}"


def _render_bars(missed: Mapping[str, int]) -> str:
    return "\n".join(["bars (0 is kept)", *(f"{n:6}  {bar}" for bar, n in missed.items())])


def page(records: Sequence[Record]) -> str:
    """Return the reports as a page of docs: what was done, and each run's text with what it says."""
    runs = "\n".join(
        _RUN.format(minutes=record.lasted_s / 60, report=_indented(record), **_said(record)) for record in records
    )
    return _PAGE.format(n_blocks=N_BLOCKS, runs=runs)


def _indented(record: Record) -> str:
    return "\n".join(f"    {line}".rstrip() for line in render(record).splitlines())


def _said(record: Record) -> dict[str, str]:
    missed = [bar for bar, n in bars(record).items() if n]
    result = "Every bar was kept." if not missed else f"Missed: {'; '.join(missed)}."
    return {"result": fill(result, width=_WIDTH)}


_WIDTH: Final = 132
_RUN: Final = """## {minutes:.0f} minutes

{result}

{report}
"""
_PAGE: Final = """# Soaks

Written by `python -m benchmarks.soak --page build/soak.json` from what `make soak` recorded; `make soak-short` does the same in ten
minutes.

One `launch serve` as users run it, the real model, the real llama-server, all the time the same process. It is asked what users and
their mistakes ask (`benchmarks/soak_load.py`), disturbed at random moments (`benchmarks/soak_faults.py`), and looked at every five
seconds. Supervisor and gateway are one process, the launcher below; each engine has a guard of its own, so a guard's figures are
those of many processes one after another.

- **Judged is anonymous memory**: heap and stacks, which no file backs, is where a leak goes. RSS, PSS and USS also count the pages of
  libraries and of Python's files. Under a limit the kernel drops those and reads them again, and PSS and USS change when another
  program maps the same ones: they are told, not judged.
- **The slope** is that of least squares over the medians of a hundred equal spans; for descriptors and threads, which each request
  has some of, over the least in each twentieth while an engine is there. Its interval is from a bootstrap of {n_blocks} blocks of residuals: what surrounds
  the line is no white noise, a heap grows in steps and keeps them, a fault is felt for minutes. Flat is
  what has the whole interval below the bound: 1 MiB an hour for memory, the size of one step of Python's allocator, and 1 an hour
  for descriptors and threads. Over less than an hour that is one step in all of it, and only what is wholly above the bound misses
  its bar: noise needs longer to settle.
- **At rest** nothing had been asked for 35 s: there descriptors, threads and processes are compared one by one.
- **Lost** is a request without a whole HTTP answer, a refused connection included. A stream that had begun when its engine was lost
  ends with an event that says so (`told`); `left` are clients that went away by themselves.
- **Faults** keep within the launcher's own restart policy, which gives up after five deaths in ten minutes: after three only what is
  to be borne is done, until an engine has been ready for ten minutes. A `missed` one found the engine being replaced.

{runs}"""
