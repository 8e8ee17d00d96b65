"""Engines that run and are sick: hung, or refusing everybody."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.supervisor.faults import Answer, Fault
from launcher.supervisor.sickness import (
    DoubtPolicy,
    HangPolicy,
    Pulse,
    Tally,
    Watch,
    doubt,
    look,
    refuses,
)
from launcher.supervisor.signs import Cause

POLICY = HangPolicy()


def watch(pulses: Sequence[Pulse]) -> Fault | None:
    """Look at one pulse after the other until one is a fault."""
    state = Watch()
    for pulse in pulses:
        state, fault = look(state, pulse, POLICY)
        if fault is not None:
            return fault
    return None


def test_an_idle_engine_is_not_hung() -> None:
    """Nothing in flight, hours of nothing delivered."""
    assert watch([Pulse(at_s=60.0 * n, is_answering=True) for n in range(600)]) is None


def test_unanswered_health_checks_in_a_row() -> None:
    """Three are a hang; one that was answered begins anew. The restart policy decides."""
    answered = [False, False, True, False, False, True]
    assert watch([Pulse(at_s=float(n), is_answering=ok) for n, ok in enumerate(answered)]) is None
    fault = watch([Pulse(at_s=float(n), is_answering=False) for n in range(3)])
    assert fault is not None
    assert (fault.cause, fault.answer) == (Cause.HUNG, Answer.RESTART)
    assert "3 health checks" in fault.meaning


def test_healthy_and_delivering_nothing() -> None:
    """Health is no liveness: an engine may answer 200 with its core frozen, and its requests wait for ever."""
    frozen = [Pulse(at_s=float(n), is_answering=True, n_in_flight=2, n_delivered=7) for n in range(32)]
    assert watch(frozen[:30]) is None
    fault = watch(frozen)
    assert fault is not None
    assert "2 requests in flight" in fault.meaning


def test_a_long_prompt_is_not_a_hang() -> None:
    """Nothing comes for minutes while the processor works; that too has an end."""
    busy = [Pulse(at_s=float(n), is_answering=True, n_in_flight=1, is_busy=True) for n in range(602)]
    assert watch(busy[:600]) is None
    assert watch(busy) is not None


def test_one_slow_token_at_a_time() -> None:
    """Whatever is delivered pushes the limit back."""
    slow = [Pulse(at_s=20.0 * n, is_answering=True, n_in_flight=1, n_delivered=n) for n in range(100)]
    assert watch(slow) is None


@given(
    st.lists(
        st.tuples(st.floats(0.1, 100), st.booleans(), st.integers(0, 3), st.integers(0, 1), st.booleans()), max_size=60
    )
)
def test_a_hang_needs_misses_or_silence(steps: list[tuple[float, bool, int, int, bool]]) -> None:
    """Restated: a fault comes only after the last misses in a row, or after the limit without anything delivered."""
    state, at_s, n_delivered, row, quiet_since = Watch(), 0.0, 0, 0, 0.0
    for idx, (gap_s, answering, n_in_flight, delivered, busy) in enumerate(steps):
        at_s, n_delivered = at_s + gap_s, n_delivered + delivered
        row = 0 if answering else row + 1
        if idx == 0 or delivered or not n_in_flight:
            quiet_since = at_s
        pulse = Pulse(at_s=at_s, is_answering=answering, n_in_flight=n_in_flight, n_delivered=n_delivered, is_busy=busy)
        state, fault = look(state, pulse, POLICY)
        limit_s = POLICY.busy_s if busy else POLICY.idle_s
        assert (fault is not None) == (row >= POLICY.n_misses or at_s - quiet_since >= limit_s)


def doubts(looks: Sequence[tuple[float, int, int]], asked_s: float | None = None) -> list[bool]:
    """Look at tallies (seconds, successes, failures) one after the other; return at which of them there is doubt."""
    since, found = None, []
    for at_s, n_succeeded, n_failed in looks:
        now = Tally(at_s=at_s, n_succeeded=n_succeeded, n_failed=n_failed)
        since, is_doubtful = doubt(since, now, DoubtPolicy(), asked_s=asked_s)
        found.append(is_doubtful)
    return found


@pytest.mark.parametrize(
    ("looks", "is_doubtful"),
    [
        ([(0, 7, 0), (5, 7, 4)], False),  # too few
        ([(0, 7, 0), (5, 7, 5)], True),
        ([(0, 7, 0), (5, 7, 3), (10, 7, 5)], True),
        ([(0, 7, 0), (5, 7, 3), (10, 8, 5), (15, 8, 8)], False),  # a success between
        ([(0, 7, 0), (5, 7, 3), (10, 8, 5), (15, 8, 10)], True),  # five after it
        ([(0, 7, 0), (5, 9, 50)], False),  # who was last is not known
        ([(0, 7, 9), (5, 7, 9)], False),  # those of an earlier engine
        ([(0, 7, 0), (5, 7, 4), (400, 7, 5)], False),  # too far apart
        ([(0, 0, 0), (5000, 0, 0), (5005, 0, 5)], True),  # an hour of nothing is no part of it
    ],
)
def test_errors_in_a_row_are_a_doubt(looks: list[tuple[float, int, int]], is_doubtful: bool) -> None:  # noqa: FBT001
    """Five within the window, and no success between; never at an earlier look."""
    assert doubts(looks) == [False] * (len(looks) - 1) + [is_doubtful]


def test_an_engine_is_not_asked_all_the_time() -> None:
    """A client that sends nothing but nonsense costs one question a minute."""
    looks = [(5.0 * n, 0, 10 * n) for n in range(30)]
    assert next(5.0 * n for n, found in enumerate(doubts(looks, asked_s=0.0)) if found) == 60.0


@given(st.lists(st.tuples(st.floats(0.1, 200), st.integers(0, 1), st.integers(0, 6)), max_size=40))
def test_doubt_needs_a_row_of_failures(steps: list[tuple[float, int, int]]) -> None:
    """Restated: since the last look with a success, or without a failure, there were at least five, soon enough."""
    state, at_s, n_ok, n_bad = None, 0.0, 0, 0
    row, began_s = 0, 0.0
    for idx, (gap_s, good, bad) in enumerate(steps):
        at_s, n_ok, n_bad = at_s + gap_s, n_ok + good, n_bad + bad
        row += bad
        if idx == 0 or good or not row or at_s - began_s > DoubtPolicy().window_s:
            row, began_s = 0, at_s
        state, found = doubt(state, Tally(at_s=at_s, n_succeeded=n_ok, n_failed=n_bad), DoubtPolicy())
        assert found == (row >= DoubtPolicy().n_failures)


def test_an_engine_that_refuses_us_too_is_restarted_and_not_stepped_down() -> None:
    """No word of memory: the restart policy's, never the ladder's."""
    fault = refuses(5, "status 500, compute error")
    assert (fault.cause, fault.answer) == (Cause.SICK, Answer.RESTART)
