"""Take the figures of an instance out of what its gateway tells scrapers. Pure; it must not know how that was asked for.

The names are those of `launcher.gateway.metrics`, the form is Prometheus' text format 0.0.4.
"""

import math
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from launcher.figures import Figures, MemoryFigures

_LINE: Final = re.compile(r"launcher_(?P<name>[a-z_]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL: Final = re.compile(r'([a-z]+)="((?:[^"\\]|\\.)*)"')
_ESCAPED: Final = re.compile(r"\\(.)")
_MAX_FIGURE: Final = 2.0**63


class _Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


def parse_figures(text: str) -> Figures:
    """Return what the text says; what it does not say, or says by no figure, counts as not told."""
    samples = tuple(_samples(text))
    plain = {sample.name: int(sample.value) for sample in samples if not sample.labels}
    word = (sample.labels.get("health") for sample in samples if sample.name == "health" and sample.value == 1)
    return Figures(
        health=next(word, None),
        n_running=plain.get("requests_running", 0),
        n_waiting=plain.get("requests_waiting", 0),
        n_stream_events=plain.get("stream_events_total", 0),
        memories=_memories(samples),
    )


def _samples(text: str) -> Iterator[_Sample]:
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        try:
            value = float(found["value"])
        except ValueError:
            continue
        if math.isfinite(value) and 0 <= value < _MAX_FIGURE:
            labels = {name: _ESCAPED.sub(r"\1", word) for name, word in _LABEL.findall(found["labels"] or "")}
            yield _Sample(found["name"], labels, value)


def _memories(samples: tuple[_Sample, ...]) -> tuple[MemoryFigures, ...]:
    """Return the memories that are planned for or held, devices first."""
    held, free, planned, busy = {}, {}, {}, {}
    for name, labels, value in samples:
        memory = labels.get("memory", "")
        if name == "memory_held_bytes":
            held[memory] = int(value)
        elif name == "memory_free_bytes":
            free[memory] = int(value)
        elif name == "memory_bytes" and (labels.get("kind"), labels.get("figure")) == ("total", "planned"):
            planned[memory] = int(value)
        elif name == "device_utilization_ratio":
            busy[labels.get("device", "")] = value
    names = dict.fromkeys((*planned, *held))
    return tuple(
        MemoryFigures(
            name=name,
            held_bytes=held.get(name),
            free_bytes=free.get(name),
            planned_bytes=planned.get(name),
            utilization=busy.get(name),
        )
        for name in names
    )
