"""Engines that generate several times slower than they did: what is told, and what is a memory that overflowed.

No GPU that pages was at hand: thresholds rest on what is published, and the rates here are invented.
"""

from collections.abc import Sequence
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.domain import Provenance, Speed
from launcher.supervisor.faults import Answer
from launcher.supervisor.pace import Pace, PacePolicy, Pacing, Slow, describe, follow, spilled
from launcher.supervisor.signs import Cause

POLICY = PacePolicy()
MEASURED = Speed(generation_tps=100.0, basis=Provenance.MEASURED)
ASSUMED = Speed(generation_tps=100.0, basis=Provenance.ASSUMED)


def run(rates: Sequence[float], planned: Speed | None, gap_s: float = 10.0) -> Pacing:
    """Let an engine that is ready at 0 stream at these rates, one after the other, each looked at twice."""
    pacing = Pacing(since_s=0.0)
    paces: list[Pace] = []
    for idx, rate in enumerate(rates):
        paces = [*paces, Pace(at_s=gap_s * (idx + 1), tps=rate)][-16:]
        pacing = follow(follow(pacing, paces, planned, POLICY), paces, planned, POLICY)
    return pacing


@pytest.mark.parametrize(
    ("rates", "planned", "is_slow"),
    [
        ([90.0] * 5 + [12.0] * 5, None, True),  # below what this very engine reached
        ([90.0] * 5 + [12.0] * 4, None, False),  # too few to say
        ([90.0] * 5 + [12.0] * 4 + [90.0], None, False),  # one was not
        ([90.0] * 5 + [30.0] * 5, None, False),  # a context grown long costs as much
        ([12.0] * 50, None, False),  # it was never faster, and nothing is known of it
        ([12.0] * 5, MEASURED, True),  # slow from the start, by what calibration measured
        ([12.0] * 5, ASSUMED, False),  # the prediction may be wrong by as much
        ([5.0] * 5, ASSUMED, True),
        ([300.0] * 5 + [50.0] * 5, ASSUMED, True),  # better than planned at first, and then not
        ([], ASSUMED, False),
    ],
)
def test_slow_is_several_times_slower_for_a_while(
    rates: list[float],
    planned: Speed | None,
    is_slow: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """Each of the last streams, against the engine's own first ones or the plan's speed."""
    assert (run(rates, planned).slow is not None) is is_slow


def test_a_moment_is_not_a_while() -> None:
    """Twenty short streams within some seconds may all have met the same hiccup."""
    assert run([90.0] * 5 + [12.0] * 20, None, gap_s=1.0).slow is None
    assert run([90.0] * 5 + [12.0] * 40, None, gap_s=8.0).slow is not None


def test_it_is_over_when_no_stream_is_slow_any_more() -> None:
    """One fast stream among slow ones changes nothing; what was told stays the same meanwhile."""
    slow = run([90.0] * 5 + [12.0] * 5, None).slow
    assert slow == Slow(tps=12.0, expected=Speed(generation_tps=90.0, basis=Provenance.MEASURED))
    assert run([90.0] * 5 + [12.0] * 5 + [80.0] * 4, None).slow == slow
    assert run([90.0] * 5 + [12.0] * 5 + [80.0] * 5, None).slow is None


def test_streams_of_an_earlier_engine_say_nothing() -> None:
    """What ended before this engine was ready is not its own."""
    paces = [Pace(at_s=10.0 * n, tps=1.0) for n in range(10)]
    assert follow(Pacing(since_s=100.0), paces, MEASURED, POLICY) == Pacing(since_s=100.0)


@given(st.lists(st.floats(0.5, 200), max_size=30), st.floats(1, 20), st.sampled_from([None, MEASURED, ASSUMED]))
def test_never_slow_without_a_row_of_slow_streams(rates: list[float], gap_s: float, planned: Speed | None) -> None:
    """Restated: wherever it becomes slow, the last five were below a fifth or a tenth of something, and took long enough."""
    before = run([], planned, gap_s)
    for n in range(len(rates)):
        after = run(rates[: n + 1], planned, gap_s)
        if before.slow is None and after.slow is not None:
            last = rates[n - 4 : n + 1]
            assert 4 * gap_s >= POLICY.sustained_s - 1e-6
            own = 0.2 * median(rates[:5])
            plans = 0.0 if planned is None else planned.generation_tps * (0.2 if planned is MEASURED else 0.1)
            assert max(last) < max(own, plans)
        before = after


def test_a_spill_names_the_memory_and_steps_down_on_it() -> None:
    """Slow and used up: the fault is the memory's."""
    slow = Slow(tps=12.34, expected=MEASURED)
    fault = spilled(slow, "gpu0")
    assert (fault.cause, fault.answer, fault.memory) == (Cause.SPILLED, Answer.STEP_DOWN, "gpu0")
    assert describe(slow) == "it generates 12.3 tokens/s where 100 were expected"
    assert fault.meaning.endswith("and gpu0 is used up")
