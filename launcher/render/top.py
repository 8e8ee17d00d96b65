"""Write what instances do as the table of ``launch top``, or as JSON. Pure."""

import msgspec

from launcher.domain import SCHEMA_VERSION, State
from launcher.figures import MemoryFigures, Sighting
from launcher.render.text import shown
from launcher.units import format_bytes

_HEADINGS = ("NAME", "STATE", "ENGINE", "TOK/S", "RUN", "WAIT", "CONTEXT", "STEP")
_FIGURES = frozenset({"TOK/S", "RUN", "WAIT", "CONTEXT", "STEP"})
"""Columns that are set to the right."""
_UNKNOWN = "-"


def render_top(sightings: tuple[Sighting, ...]) -> str:
    """Return a line per instance, and below it one per memory and one for whatever is not as it should be."""
    if not sightings:
        return "nothing is served\n"
    rows = [_HEADINGS, *(tuple(map(shown, _row(sighting))) for sighting in sightings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [_line(rows[0], widths)]
    for row, sighting in zip(rows[1:], sightings, strict=True):
        lines += [_line(row, widths), *(f"  {shown(text)}" for text in _below(sighting))]
    return "\n".join(lines) + "\n"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = (
        cell.rjust(width) if heading in _FIGURES else cell.ljust(width)
        for heading, cell, width in zip(_HEADINGS, row, widths, strict=True)
    )
    return "  ".join(cells).rstrip()


def _row(sighting: Sighting) -> tuple[str, ...]:
    view, figures = sighting.view, sighting.figures
    plan = None if view.record is None else view.record.plan
    tps = None if figures is None else figures.stream_tps
    return (
        view.name,
        view.state,
        _UNKNOWN if plan is None else plan.engine,
        _UNKNOWN if tps is None else f"{tps:.1f}",
        _UNKNOWN if figures is None else str(figures.n_running),
        _UNKNOWN if figures is None else str(figures.n_waiting),
        _UNKNOWN if plan is None else f"{plan.n_ctx_per_request}x{plan.n_parallel}",
        _UNKNOWN if view.record is None else str(view.record.n_ladder_steps),
    )


def _below(sighting: Sighting) -> list[str]:
    view, record = sighting.view, sighting.view.record
    lines = [] if sighting.figures is None else _memory_lines(sighting.figures.memories)
    if view.state is not State.READY and view.reason:
        lines.append(view.reason)
    if record is not None and view.supervisor_alive:
        lines += [f"download: {record.fetching}"] if record.fetching is not None else []
        lines += [f"slow: {record.slow}"] if record.slow is not None else []
    if sighting.unread is not None:
        lines.append(f"no figures: {sighting.unread}")
    return lines


def _memory_lines(memories: tuple[MemoryFigures, ...]) -> list[str]:
    """Return a line per memory, its figures below those of the others."""
    cells = [_memory_cells(memory) for memory in memories]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))] if cells else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _memory_cells(memory: MemoryFigures) -> tuple[str, ...]:
    figures = (("held", memory.held_bytes), ("planned", memory.planned_bytes), ("free", memory.free_bytes))
    cells = (f"{word} {_UNKNOWN if n_bytes is None else format_bytes(n_bytes)}" for word, n_bytes in figures)
    busy = "" if memory.utilization is None else f"busy {memory.utilization:.0%}"
    return (memory.name, *cells, busy)


def render_top_json(sightings: tuple[Sighting, ...]) -> str:
    """Return ``{"schema_version", "instances": [...]}``: each as in ``ps --json``, with ``figures`` and ``unread`` besides."""
    instances = [
        {**msgspec.to_builtins(sighting.view), "figures": sighting.figures, "unread": sighting.unread}
        for sighting in sightings
    ]
    value = {"schema_version": SCHEMA_VERSION, "instances": instances}
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
