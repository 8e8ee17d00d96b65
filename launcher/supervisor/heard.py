"""Keep what one engine printed, as far as it will be asked for again.

It must not know what a line leads to, nor where lines are written besides.
"""

import re
from collections import deque
from typing import Final

from launcher.supervisor import placement

_N_RING: Final = 500
_N_PLACEMENT: Final = 4000  # lines; a verbose log of a hundred layers has some hundreds
_N_PROGRESS: Final = 80  # characters of the last line that are shown while it loads
_STAMP: Final = re.compile(r"^[\d.]+ [A-Z] ")  # llama-server's time and level (``0.01.019.005 I ``)


class Heard:
    """The latest lines of one engine, and those that tell where it placed the model."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.n_lines = 0
        self._n_lines_loading = 0
        self._ring: deque[str] = deque(maxlen=_N_RING)
        self._placement_lines: deque[str] = deque(maxlen=_N_PLACEMENT)

    def take(self, line: str, *, is_loading: bool) -> None:
        """Keep a line."""
        self.n_lines += 1
        self._ring.append(line)
        if is_loading and placement.is_telling(line):
            self._placement_lines.append(line)

    def begin_serving(self) -> None:
        """It is ready: what it prints from now on explains what it does."""
        self._n_lines_loading = self.n_lines

    @property
    def lines(self) -> tuple[str, ...]:
        """The latest lines, oldest first."""
        return tuple(self._ring)

    @property
    def lines_since_ready(self) -> tuple[str, ...]:
        """The latest of those that a ready engine printed: what it printed before explains nothing of what it does."""
        n_since = self.n_lines - self._n_lines_loading
        return tuple(self._ring)[-n_since:] if n_since else ()

    @property
    def placement_lines(self) -> tuple[str, ...]:
        """The lines that tell of placement, of the time while it loaded."""
        return tuple(self._placement_lines)

    @property
    def n_placement_lines(self) -> int:
        """How many they are."""
        return len(self._placement_lines)

    @property
    def last_words(self) -> str:
        """The beginning of the last line that is not blank, without time and level."""
        last = next((line for line in reversed(self._ring) if line.strip()), "")
        return _STAMP.sub("", last.strip())[:_N_PROGRESS]
