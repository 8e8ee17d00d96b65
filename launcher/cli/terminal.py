"""A terminal that a command has for itself: drawn on, waited at, and left as it was however the command ends."""

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # another screen, no cursor, lines that do not wrap
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_REST_OF_LINE: Final = "\x1b[K"
_REST: Final = "\x1b[J"
_KEYS_TO_END: Final = b"qQ\x04"
_FALLBACK: Final = (80, 24)
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    raise SystemExit(128 + number)  # as a shell counts it


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the block instead of ending the process where it stands.

    What is ignored on purpose stays so: ``nohup`` ignores SIGHUP.
    """
    heard = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _end) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let what would end this wait until the block is through: a terminal is not left half taken or half given back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTSTP, *_ENDING})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Screen:
    """The whole terminal, while `own_screen` lasts: `draw` on it, `wait` at it."""

    def __init__(self) -> None:
        """Touch nothing yet."""
        self._settings: list[Any] | None = None
        self._heard, self._hear = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before: dict[signal.Signals, Any] = {}

    def begin(self) -> None:
        """Take the terminal."""
        with _undisturbed():
            signal.set_wakeup_fd(self._hear, warn_on_full_buffer=False)
            for number, handler in ((signal.SIGWINCH, _ignore), (signal.SIGTSTP, self._pause)):
                self._before[number] = signal.signal(number, handler)
            self._take()

    def end(self) -> None:
        """Give it back as it was."""
        with _undisturbed():
            self._give_back()
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)
            os.close(self._heard)
            os.close(self._hear)

    def _take(self) -> None:
        if sys.stdin is not None and sys.stdin.isatty():
            self._settings = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)  # what is typed is heard at once, and not written into the table
        _write(_ENTER)

    def _give_back(self) -> None:
        settings, self._settings = self._settings, None
        with suppress(OSError, termios.error):  # the terminal may be gone
            _write(_LEAVE)
        if settings is not None:
            with suppress(OSError, termios.error):
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)

    def _pause(self, number: int, frame: FrameType | None) -> None:
        """Give the terminal to the shell while this is stopped (Ctrl-Z)."""
        del frame
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # here it stands until it is continued
        signal.signal(number, self._pause)
        self._take()

    def draw(self, text: str) -> None:
        """Show a text from the top; what finds no room is counted in the last line."""
        n_columns, n_rows = _size()
        lines = text.splitlines()
        if len(lines) > n_rows:
            lines = [*lines[: n_rows - 1], f"... {len(lines) - n_rows + 1} lines more"]
        drawn = "\n".join(
            f"{_REST_OF_LINE}{line[:n_columns]}" for line in lines
        )  # erased before: behind a full line it would take its last letter
        below = f"\n{_REST}" if len(lines) < n_rows else ""
        _write(f"{_HOME}{drawn}{below}")

    def wait(self, seconds: float) -> bool:
        """Return after so long, or when the window changes; whether it goes on: ``q`` ends it."""
        watched = [self._heard, *([sys.stdin.fileno()] if self._settings is not None else [])]
        ready = select.select(watched, [], [], seconds)[0]
        if self._heard in ready:
            with suppress(BlockingIOError):
                os.read(self._heard, 1 << 10)
        if ready and ready[-1] != self._heard:
            typed = os.read(ready[-1], 1 << 10)
            return bool(typed) and not set(typed) & set(_KEYS_TO_END)
        return True


@contextmanager
def own_screen() -> Iterator[Screen]:
    """Have the terminal for as long as the block lasts; an interrupt at whatever moment leaves it as it was."""
    screen = Screen()
    try:
        screen.begin()
        yield screen
    finally:
        screen.end()


def _ignore(number: int, frame: FrameType | None) -> None:
    del number, frame


def _size() -> tuple[int, int]:
    """Return columns and rows; a terminal that does not tell has the usual ones."""
    size = os.get_terminal_size(sys.stdout.fileno())
    return (size.columns or _FALLBACK[0], size.lines or _FALLBACK[1])


def _write(text: str) -> None:
    """Write past Python's buffer: what pauses the screen may come in the middle of a write, and a buffer cannot be entered twice."""
    data = text.encode(sys.stdout.encoding, "backslashreplace")
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]
