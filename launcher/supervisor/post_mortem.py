"""Say from a log alone what went wrong with an engine that nobody here watched.

The signs are those by which the supervisor judges (`faults`, `signs`). It must not know where the log came from, nor read
it. Pure.
"""

import re
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from launcher.supervisor import faults
from launcher.supervisor.faults import End, Fault
from launcher.supervisor.signs import BENIGN, SIGNS, Cause

_BEFORE: Final = 400
"""Lines before the last sign that may tell more of the same end. An engine prints some hundred lines while it loads; a log
may hold many starts, of which the last one counts."""
_AFTER: Final = 100
_BLOCK: Final = 2000
"""Lines that are searched at once, from the end: a log that tells of a failure mostly ends with it."""
_PATTERNS: Final = tuple(re.compile(sign.pattern) for sign in SIGNS)


def examine(end: End) -> Fault | None:
    """Return what the log's last end was; ``None`` where neither lines nor the end, as far as it is known, say anything.

    ``end.lines`` are all lines of the log, of one start or of many.
    """
    told = faults.without_quotes(end.lines)
    last = _last_sign(told)
    if last is None:
        found = faults.classify(replace(end, lines=tuple(told[-_BEFORE:])))
        return None if found.cause is Cause.UNKNOWN and end.signal_number is None else found
    around = tuple(told[max(0, last - _BEFORE) : last + _AFTER])
    return faults.classify(replace(end, lines=around))


def _last_sign(lines: Sequence[str]) -> int | None:
    """Return the place of the last line with a sign; a search of a block is quicker than one of each of its lines."""
    for end in range(len(lines), 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        text = "\n".join(lines[start:end])
        places = {start + text.count("\n", 0, match.start()) for sign in _PATTERNS for match in sign.finditer(text)}
        for place in sorted(places, reverse=True):
            if BENIGN.search(lines[place]) is None:
                return place
    return None


def last_words(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the lines that tell most, where no sign does."""
    return faults.telling_lines(lines[-_BEFORE:])
