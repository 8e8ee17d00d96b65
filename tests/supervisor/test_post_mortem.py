"""What went wrong with an engine that nobody watched, by its log alone."""

import pytest

from launcher.supervisor.faults import Answer, End
from launcher.supervisor.post_mortem import examine
from launcher.supervisor.signs import Cause
from tests.supervisor.test_faults import read

OOM = tuple(read("llama-server/b10434-oom-kv-cache.log"))
CUT = tuple(read("llama-server/b10434-data-cut-off.log"))
GOOD = tuple(read("llama-server/b10434-lavapipe-ngl10.log"))


def test_the_last_start_counts() -> None:
    """Of a log with several starts the last that failed is told, however specific the signs of an earlier one are."""
    filler = GOOD * (800 // len(GOOD) + 1)
    found = examine(End(lines=(*OOM, *filler, *CUT)))
    assert found is not None
    assert (found.sign, found.cause) == ("weights-cut-off", Cause.WEIGHTS)
    other = examine(End(lines=(*CUT, *filler, *OOM)))
    assert other is not None
    assert (other.sign, other.answer) == ("kv-cache-refused", Answer.STEP_DOWN)


def test_nothing_known() -> None:
    """A log of a good start, and none at all, say nothing."""
    assert examine(End(lines=GOOD)) is None
    assert examine(End()) is None
    assert examine(End(lines=GOOD, code=1)) is None


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (End(lines=GOOD, signal_number=9, n_oom_kills=1), Cause.KILLED_FOR_MEMORY),
        (End(lines=GOOD, signal_number=4), Cause.CPU),
        (End(lines=GOOD, signal_number=11), Cause.UNKNOWN),
        (End(lines=GOOD, n_oom_kills=1), Cause.KILLED_FOR_MEMORY),
    ],
)
def test_ends_without_a_text(end: End, cause: Cause) -> None:
    """Where no line says why, the signal and the kernel's count do."""
    found = examine(end)
    assert found is not None
    assert (found.cause, found.code) == (cause, cause)


def test_words_of_clients_are_no_sign() -> None:
    """What a client wrote into a request does not become the cause."""
    assert examine(End(lines=tuple(read("llama-server/b10434-words-of-clients.log")))) is None
