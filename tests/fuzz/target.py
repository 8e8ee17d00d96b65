"""What is tried with hostile inputs: where inputs come from, what takes them, and which endings are right.

It must not know how inputs are changed, counted or bounded.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from launcher.errors import LauncherError
from launcher.render.text import error_json, render_error
from launcher.units import MIB
from tests.fuzz.trees import Tree


class WrongError(AssertionError):
    """An input was taken, and what came of it breaks a law: a negative figure, a control character, a lost answer."""


class Take(Protocol):
    """What takes inputs, several at once where they wait for each other's time."""

    def __call__(self, inputs: Sequence[bytes], /) -> list[str | BaseException]:
        """Return of each input what became of it: a word for how far it came, or what was raised."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of hostile input.

    ``modules`` are those whose lines count as reached. ``refusals`` are the faults by which it may be refused.
    """

    name: str
    modules: tuple[str, ...]
    seeds: Callable[[], list[Tree]]
    encode: Callable[[Tree], bytes]
    take: Callable[[bytes], str] | None = None
    """Takes one input and returns a word for how far it came; raises one of ``refusals``."""
    open: Callable[[], Any] | None = None
    """Instead of ``take``: a context manager that gives a ``Take``, for inputs that are sent to something that runs."""
    batch: int = 1
    refusals: tuple[type[LauncherError], ...] = ()
    words: tuple[Tree, ...] = ()
    share: float = 1.0
    """Of all inputs, beside the other targets' shares."""
    cpu_s: float = 2.0
    slack_bytes: int = 24 * MIB
    depth: Callable[[LauncherError], str] = field(default=lambda error: type(error).__name__)
    """How far an input came that was refused."""

    @contextmanager
    def opened(self) -> Iterator[Take]:
        """Give what takes inputs."""
        if self.open is not None:
            with self.open() as take:
                yield take
        else:
            assert self.take is not None
            yield each_by(self.take)

    def judge(self, error: BaseException) -> str | None:
        """Return how far an input came that ended so; ``None`` where that is no right ending."""
        if isinstance(error, LauncherError) and isinstance(error, self.refusals):
            check_fault(error)
            return self.depth(error)
        return None


def each_by(take: Callable[[bytes], str]) -> Take:
    """Return what takes inputs one by one; the first that raises ends it."""

    def take_all(inputs: Sequence[bytes]) -> list[str | BaseException]:
        return [take(each) for each in inputs]

    return take_all


def check_fault(error: LauncherError) -> None:
    """Fault where a fault's own words could steer a terminal, or cannot be told as JSON."""
    for part in (error.message, error.help or "", *error.details):
        check_printable(part, f"{type(error).__name__}'s words")
    render_error(error)
    error_json(error)


def check_printable(text: str, where: str, *, lines: bool = False) -> None:
    """Fault where a text that is printed holds what a terminal obeys; ``lines``: it may have several lines."""
    for line in text.splitlines() if lines else [text]:
        if not line.isprintable():
            wrong = sorted({char for char in line if not char.isprintable()})
            msg = f"{where}: {wrong!r} in {line[:200]!r}"
            raise WrongError(msg)


def check_figures(value: object, where: str, *, signed: tuple[str, ...] = ()) -> None:
    """Fault where a noun holds a negative or impossible number in a field that counts or measures."""
    _check_figures(msgspec.to_builtins(value), where, signed)


def _check_figures(value: object, where: str, signed: tuple[str, ...]) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            _check_figures(part, f"{where}.{key}", signed)
    elif isinstance(value, list | tuple):
        for idx, part in enumerate(value):
            _check_figures(part, f"{where}[{idx}]", signed)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        name = where.rpartition(".")[2].partition("[")[0]
        if (isinstance(value, float) and not math.isfinite(value)) or (value < 0 and name not in signed):
            msg = f"{where} is {value}"
            raise WrongError(msg)
