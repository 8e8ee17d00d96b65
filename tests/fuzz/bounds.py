"""Hold one input to its bounds, and note what of the program it reached.

Time is the processor's, so that a busy machine fails nobody. Memory is the process's peak, by the kernel's account. It must
not know what an input is.
"""

import dis
import importlib
import resource
import signal
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pkgutil import walk_packages
from types import CodeType, FrameType
from typing import Any, Final

from launcher.units import MIB

_TICK_S: Final = 0.1
_PER_BYTE: Final = 400
"""Bytes of memory that a byte of input may take: a tree of small objects takes some dozens."""


class HangError(BaseException):
    """An input took too long; no ``Exception``, so that nothing on the way takes it for its own."""


class GrowthError(BaseException):
    """An input took more memory than it justifies."""


class Clock:
    """Ends an input that takes too long. One timer serves them all: inputs are many, and calls of the kernel are dear."""

    def __init__(self) -> None:
        """Know of no input yet."""
        self._n_ticks = 0
        self._bound_s = 0.0

    @contextmanager
    def running(self) -> Iterator["Clock"]:
        """Let the timer tick within the block."""
        before = signal.signal(signal.SIGPROF, self._on_tick)
        signal.setitimer(signal.ITIMER_PROF, _TICK_S, _TICK_S)
        try:
            yield self
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)

    @contextmanager
    def bounded(self, cpu_s: float) -> Iterator[None]:
        """Raise ``HangError`` within the block once it has used so many seconds of the processor, or a tick more."""
        self._n_ticks, self._bound_s = 0, cpu_s
        try:
            yield
        finally:
            self._bound_s = 0.0

    def _on_tick(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._n_ticks += 1
        if self._bound_s and (self._n_ticks - 1) * _TICK_S > self._bound_s:
            msg = f"more than {self._bound_s:g} s of the processor"
            raise HangError(msg)


def peak_bytes() -> int:
    """Return the most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check_growth(before_bytes: int, n_input: int, slack_bytes: int) -> None:
    """Fault where the process's peak rose by more than an input of so many bytes justifies."""
    grown = peak_bytes() - before_bytes
    if grown > slack_bytes + _PER_BYTE * n_input:
        msg = f"{grown / MIB:.0f} MiB for an input of {n_input} bytes"
        raise GrowthError(msg)


@contextmanager
def counted_memory(n_input: int, slack_bytes: int) -> Iterator[None]:
    """The same to the byte, which is slow: what Python itself has allocated at most within the block."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > slack_bytes + _PER_BYTE * n_input:
        msg = f"{peak / MIB:.1f} MiB allocated for an input of {n_input} bytes"
        raise GrowthError(msg)


class Reached:
    """Which lines of some modules were run, of how many there are."""

    def __init__(self, modules: Sequence[str]) -> None:
        """Import the modules, those within packages too, and count their lines."""
        self._files = {}
        for name in _expand(modules):
            module = importlib.import_module(name)
            if module.__file__ and not module.__file__.endswith("__init__.py"):
                self._files[module.__file__] = _lines_of(module.__file__)
        self._wanted: dict[CodeType, bool] = {}
        self.lines: set[tuple[str, int]] = set()

    @property
    def n_lines(self) -> int:
        """Lines of code in functions, of all the modules."""
        return sum(map(len, self._files.values()))

    @contextmanager
    def traced(self) -> Iterator[None]:
        """Note the lines that are run within the block."""
        before = sys.gettrace()
        sys.settrace(self._on_call)
        try:
            yield
        finally:
            sys.settrace(before)

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        del event, argument
        code = frame.f_code
        wanted = self._wanted.get(code)
        if wanted is None:
            wanted = self._wanted[code] = code.co_filename in self._files and code.co_name != "<module>"
        return self._on_line if wanted else None

    def _on_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        del argument
        if event == "line":
            self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._on_line

    def known(self) -> set[tuple[str, int]]:
        """Return the lines reached that are counted: those of functions."""
        return {(file, line) for file, line in self.lines if line in self._files[file]}

    def missing(self) -> dict[str, list[int]]:
        """Return the lines that were not reached, by file."""
        return {
            file: sorted(lines - {line for other, line in self.lines if other == file})
            for file, lines in self._files.items()
        }


def _expand(modules: Sequence[str]) -> Iterator[str]:
    for name in modules:
        module = importlib.import_module(name)
        yield name
        if hasattr(module, "__path__"):
            yield from (found.name for found in walk_packages(module.__path__, f"{name}."))


def _lines_of(file: str) -> set[int]:
    """Return the lines of a source that belong to functions: what importing runs says nothing of an input."""
    with open(file, encoding="utf-8") as stream:  # noqa: PTH123 - a module's own file
        module = compile(stream.read(), file, "exec")
    found: set[int] = set()
    codes = [constant for constant in module.co_consts if isinstance(constant, CodeType)]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        if code.co_flags & 0x1:  # CO_OPTIMIZED: a function, not the body of a class
            lines = {line for _, line in dis.findlinestarts(code) if line}
            found |= lines - {code.co_firstlineno}
    return found
