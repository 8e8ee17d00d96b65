"""Engines that run and are sick: hung, or slow because a memory overflowed."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.domain import Provenance, Speed
from launcher.supervisor.faults import Answer, Fault
from launcher.supervisor.sickness import HangPolicy, Pulse, SpillPolicy, Watch, look, spilled, stalled
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


def test_a_stall_says_what_it_was_doing() -> None:
    """Before it is ready no request tells of progress; the runner's own measure does."""
    fault = stalled("loading", 120.4)
    assert (fault.cause, fault.answer) == (Cause.STALLED, Answer.RESTART)
    assert fault.meaning == "it stalled while loading: no output, reading or computing for 120 s"


MEASURED = Speed(generation_tps=100.0, basis=Provenance.MEASURED)
ASSUMED = Speed(generation_tps=100.0, basis=Provenance.ASSUMED)


@pytest.mark.parametrize(
    ("rates", "expected", "strained", "is_spilled"),
    [
        ([12.0] * 5, MEASURED, "gpu0", True),
        ([12.0] * 5, MEASURED, None, False),  # slow for another reason
        ([12.0] * 4, MEASURED, "gpu0", False),  # too few to say
        ([12.0] * 5, ASSUMED, "gpu0", False),  # the prediction may be wrong by as much
        ([5.0] * 5, ASSUMED, "gpu0", True),
        ([90.0] * 20 + [12.0] * 5, MEASURED, "gpu0", True),  # the last ones count
        ([12.0, 90.0, 12.0, 90.0, 90.0], MEASURED, "gpu0", False),
        ([12.0] * 5, None, "gpu0", False),
    ],
)
def test_a_spill_is_slow_and_short_of_memory(
    rates: list[float],
    expected: Speed | None,
    strained: str | None,
    is_spilled: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """Both, by the median of the last requests; then it steps down on the memory that is short."""
    fault = spilled(rates, expected, strained=strained, policy=SpillPolicy())
    assert (fault is not None) is is_spilled
    if fault is not None:
        assert (fault.cause, fault.answer, fault.memory) == (Cause.SPILLED, Answer.STEP_DOWN, "gpu0")
