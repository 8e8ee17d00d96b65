"""End a command that has a terminal for itself in good order, so that the terminal is left as it was."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    raise SystemExit(128 + number)  # as a shell counts it


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the block instead of ending the process where it stands."""
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
