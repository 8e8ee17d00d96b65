"""When a dead engine is started again."""

from hypothesis import given
from hypothesis import strategies as st

from launcher.supervisor.failures import Failure, of_many_deaths
from launcher.supervisor.restarts import Death, RestartPolicy, next_delay_s, remember, settle

POLICY = RestartPolicy(n_deaths=4, window_s=100.0, n_start_deaths=2, jitter_s=0.0)


def history(*deaths: Death) -> tuple[Death, ...]:
    """What is remembered after these deaths in turn."""
    known: tuple[Death, ...] = ()
    for death in deaths:
        known = remember(known, death, POLICY)
    return known


def test_the_delay_doubles_and_is_capped() -> None:
    """1, 2, 4, ... seconds, up to the maximum."""
    patient = RestartPolicy(n_deaths=100, jitter_s=0.0, max_delay_s=10.0)
    deaths = tuple(Death(at_s=0.0, ready_s=1.0) for _ in range(6))
    assert [next_delay_s(deaths[: n + 1], patient) for n in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


@given(st.integers(1, 8))
def test_jitter_only_adds_and_stays_in_bounds(n: int) -> None:
    """Two supervisors that died together do not come back together."""
    policy = RestartPolicy(n_deaths=100, first_delay_s=1.0, max_delay_s=20.0, jitter_s=0.5)
    delay_s = next_delay_s(tuple(Death(at_s=0.0, ready_s=1.0) for _ in range(n)), policy)
    assert delay_s is not None
    assert min(20.0, 2.0 ** (n - 1)) <= delay_s <= min(20.0, 2.0 ** (n - 1) + 0.5)


def test_too_many_deaths_in_the_window() -> None:
    """The fourth death within a hundred seconds is one too many; spread out, it is not."""
    close = history(*(Death(at_s=at, ready_s=1.0) for at in (0.0, 30.0, 60.0, 90.0)))
    spread = history(*(Death(at_s=at, ready_s=1.0) for at in (0.0, 60.0, 120.0, 180.0)))
    assert next_delay_s(close[:3], POLICY) is not None
    assert next_delay_s(close, POLICY) is None
    assert next_delay_s(spread, POLICY) is not None


def test_what_never_worked_is_given_up_sooner() -> None:
    """Two starts in a row that never became ready; one between that did begins the count anew."""
    assert next_delay_s(history(Death(at_s=0.0), Death(at_s=1.0)), POLICY) is None
    assert next_delay_s(history(Death(at_s=0.0), Death(at_s=1.0, ready_s=5.0), Death(at_s=2.0)), POLICY) is not None


def test_a_healthy_period_clears_the_past() -> None:
    """After ten minutes of serving the first delay is short again."""
    deaths = history(*(Death(at_s=float(at), ready_s=1.0) for at in range(3)), Death(at_s=700.0, ready_s=600.0))
    assert len(deaths) == 1
    assert next_delay_s(deaths, POLICY) == 1.0


def test_a_healthy_period_that_ends_without_a_death_clears_the_past_too() -> None:
    """As where an engine ran out of memory and a smaller one follows: that is none, but ends the period."""
    past = history(Death(at_s=0.0, ready_s=1.0))
    assert settle(past, 599.0, POLICY) == past
    assert settle(past, 600.0, POLICY) == ()


def test_waiting_for_others_is_no_death() -> None:
    """However often nothing fits beside them: tried again for as long as the policy says, at most so far apart."""
    patient = RestartPolicy(jitter_s=0.0, crowded_s=100.0, max_crowded_delay_s=4.0)
    row = tuple(Death(at_s=10.0 * n, is_crowded=True) for n in range(11))
    assert [next_delay_s(row[: n + 1], patient) for n in range(10)] == [1.0, 2.0] + [4.0] * 8
    assert next_delay_s(row, patient) is None


def test_what_was_waited_for_does_not_count_against_an_engine() -> None:
    """A death after a wait is the first one, and a wait after a death begins anew."""
    patient = RestartPolicy(jitter_s=0.0, n_start_deaths=2)
    waits = tuple(Death(at_s=float(n), is_crowded=True) for n in range(4))
    assert next_delay_s((*waits, Death(at_s=9.0)), patient) == 1.0
    assert next_delay_s((*waits, Death(at_s=9.0), Death(at_s=10.0, is_crowded=True)), patient) == 1.0
    assert next_delay_s((*waits, Death(at_s=9.0), Death(at_s=10.0)), patient) is None


def test_a_wait_after_an_engine_was_ready_begins_anew() -> None:
    """However short it served: the memory was there, so what was waited for before is no part of this wait."""
    patient = RestartPolicy(jitter_s=0.0, crowded_s=100.0, healthy_s=600.0)
    before = tuple(Death(at_s=at_s, is_crowded=True) for at_s in (0.0, 50.0, 90.0))
    again = Death(at_s=101.0, ready_s=5.0, is_crowded=True)  # served for 5 s, then lost its memory to them
    assert next_delay_s(history(*before, again), patient) == 1.0
    later = (*before, again, Death(at_s=200.0, is_crowded=True))
    assert next_delay_s(history(*later), patient) == 2.0
    assert next_delay_s(history(*later, Death(at_s=201.0, is_crowded=True)), patient) is None


def test_who_gives_up_says_how_long_it_waited_this_time() -> None:
    """As the bound counts it: what was waited for before a death of the engine's own is no part of it."""
    before = (Death(at_s=0.0, is_crowded=True), Death(at_s=300.0, ready_s=1.0))
    waits = (*before, *(Death(at_s=at_s, is_crowded=True) for at_s in (400.0, 700.0, 1000.0)))
    assert next_delay_s(waits[:-1], POLICY) is not None
    assert next_delay_s(waits, POLICY) is None
    last = Failure(message="m")
    assert of_many_deaths(last, waits).message == "m (waited for 600 s, no further start)"
    assert of_many_deaths(last, (*waits, Death(at_s=1001.0))).message == "m (2 deaths, no further start)"
