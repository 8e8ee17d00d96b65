"""How far a download has come: bytes, their rate, the time that is left.

It is told what arrived at which moment. It must not know where bytes come from, how progress is shown, nor read a clock.
"""

from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import Final, TypeAlias

from msgspec import Struct

WINDOW_S: Final = 15.0
"""The rate is that of the last so many seconds: long enough for a steady figure, short enough to follow a link's changes."""
_MIN_WINDOW_S: Final = 0.5
"""Before that long nothing is said of a rate."""


class Phase(StrEnum):
    """What is done about a file at the moment."""

    DOWNLOADING = "downloading"
    CHECKING = "checking"
    """Bytes that are here already are read for their digest."""
    SHARING = "sharing"
    """Another process downloads this very file."""
    RETRYING = "retrying"
    """A fault that may pass is waited out."""


class Progress(Struct, frozen=True, kw_only=True):
    """How far it has come with all files together; sizes in bytes, ``None`` where nobody knows.

    ``why`` is the fault that is waited out, where one is.
    """

    phase: Phase
    file: str
    n_bytes: int
    total_bytes: int | None
    rate_bytes_per_s: float | None = None
    left_s: float | None = None
    why: str = ""


Tell: TypeAlias = Callable[[Progress], None]
"""Hears of each change, more often than a person could read: whoever shows it chooses when."""


class Meter:
    """The rate of a count that grows, over the last seconds."""

    def __init__(self) -> None:
        """Know of nothing yet."""
        self._seen: deque[tuple[float, int]] = deque()

    def rate(self, n_bytes: int, now_s: float) -> float | None:
        """Take a count at a moment, and return bytes per second; ``None`` while too little was seen.

        A count that fell (a file is begun again) starts the measurement anew.
        """
        if self._seen and n_bytes < self._seen[-1][1]:
            self._seen.clear()
        if not self._seen or now_s - self._seen[-1][0] >= WINDOW_S / 60:
            self._seen.append((now_s, n_bytes))
        while len(self._seen) > 1 and now_s - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()
        first_s, first_bytes = self._seen[0]
        if now_s - first_s < _MIN_WINDOW_S:
            return None
        return (n_bytes - first_bytes) / (now_s - first_s)


def left_s(n_bytes: int, total_bytes: int | None, rate: float | None) -> float | None:
    """Return the seconds that the rest takes at this rate; ``None`` where the rest or the rate is unknown."""
    if total_bytes is None or not rate:
        return None
    return max(0, total_bytes - n_bytes) / rate
