"""The lifecycle table: every pair is decided, and what holds along every path."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.domain import State
from launcher.supervisor.machine import (
    ENDS,
    GUARDED,
    IGNORED,
    TABLE,
    Effect,
    Event,
    LifecycleBugError,
    Phase,
    render_lifecycle,
    state_of,
    step,
)

PAGE = Path(__file__).parents[2] / "docs" / "lifecycle.md"
PAIRS = [(phase, event) for phase in Phase for event in Event]


def possible(phase: Phase) -> list[Event]:
    """Events that the table or the ignored list knows in a phase."""
    return [event for event in Event if event in TABLE[phase] or event in IGNORED[phase]]


@pytest.mark.parametrize(("phase", "event"), PAIRS)
def test_every_pair_is_a_row_ignored_or_a_bug(phase: Phase, event: Event) -> None:
    """A row is followed, an ignored event changes nothing, anything else raises; never two of these."""
    assert not (event in TABLE[phase] and event in IGNORED[phase])
    if event in TABLE[phase]:
        assert step(phase, event) == TABLE[phase][event]
    elif event in IGNORED[phase]:
        assert step(phase, event) == (phase, ())
    else:
        with pytest.raises(LifecycleBugError, match=event.value):
            step(phase, event)


def test_every_phase_can_be_reached_and_left_towards_an_end() -> None:
    """From idle the table reaches every phase, and from every phase an end."""
    following = {phase: {target for target, _ in TABLE[phase].values()} for phase in Phase}

    def reach(phase: Phase) -> set[Phase]:
        seen = {phase}
        while new := {target for known in seen for target in following[known]} - seen:
            seen |= new
        return seen

    assert reach(Phase.IDLE) == set(Phase)
    assert all(reach(phase) & ENDS for phase in Phase)


def test_a_user_can_always_ask_to_stop() -> None:
    """STOP and FORCE are defined wherever something is or may come to be running."""
    for phase in GUARDED | {Phase.BACKOFF, Phase.STEPPING}:
        assert {Event.STOP, Event.FORCE} <= set(possible(phase))


def test_every_state_that_a_supervisor_shows_is_shown_by_a_phase() -> None:
    """The states of the domain are those of the phases."""
    assert {state_of(phase) for phase in Phase} == set(State)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Phase, Event, Phase, tuple[Effect, ...]]]:
    """A run of the machine by possible events, in which the world keeps its promises: STOP, then GONE, always come."""
    phase, steps = Phase.IDLE, []
    for _ in range(draw(st.integers(1, 60))):
        event = Event.START if phase is Phase.IDLE else draw(st.sampled_from(possible(phase)))
        after, effects = step(phase, event)
        steps.append((phase, event, after, effects))
        phase = after
    for event in (Event.STOP, Event.GONE):
        if event in possible(phase):
            after, effects = step(phase, event)
            steps.append((phase, event, after, effects))
            phase = after
    return steps


@given(histories())
def test_a_run_always_ends_stopped_or_failed(run: list[tuple[Phase, Event, Phase, tuple[Effect, ...]]]) -> None:
    """Whatever happened before, a request to stop and the end of the tree lead to an end."""
    assert run[-1][2] in ENDS


@given(histories())
def test_there_are_never_two_engines(run: list[tuple[Phase, Event, Phase, tuple[Effect, ...]]]) -> None:
    """Between two spawns lies the report that the first one's tree is gone."""
    alive = False
    for _, event, _, effects in run:
        if event is Event.GONE:
            alive = False
        if Effect.SPAWN in effects:
            assert not alive
            alive = True


@given(histories())
def test_an_engine_is_asked_before_it_is_killed(run: list[tuple[Phase, Event, Phase, tuple[Effect, ...]]]) -> None:
    """KILL follows TERMINATE, an end that the engine came to by itself, or what no request could prevent in time."""
    asked = False
    for _, event, _, effects in run:
        if Effect.SPAWN in effects:
            asked = False
        asked = asked or event in {
            *(Event.DIED, Event.DIED_FOR_GOOD, Event.OUT_OF_MEMORY, Event.GUARD_LOST, Event.SPAWN_FAILED),
            Event.WORKER_LOST,
            *(Event.OVERDRAWN, Event.HUNG, Event.WORKER_SILENT),  # about to take what is not there; deaf to any request
        }
        for effect in effects:
            asked = asked or effect is Effect.TERMINATE
            assert effect is not Effect.KILL or asked


@given(histories())
def test_ready_is_announced_only_after_a_proof(run: list[tuple[Phase, Event, Phase, tuple[Effect, ...]]]) -> None:
    """An endpoint that answers is up, not ready."""
    for before, event, after, effects in run:
        if Effect.ANNOUNCE in effects:
            assert (before, event, after) == (Phase.PROVING, Event.PROVED, Phase.READY)


def test_the_page_shows_the_table() -> None:
    """docs/lifecycle.md is what `render_lifecycle` returns."""
    assert PAGE.read_text(encoding="utf-8") == render_lifecycle()
