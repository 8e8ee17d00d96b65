"""What becomes of a request, as laws over the bare decisions."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.gateway.policy import (
    Admission,
    Door,
    Limits,
    Loss,
    Remedy,
    admit,
    counts_as_replay,
    has_turn,
    is_of_proxy,
    is_work,
    pause_s,
    remedy,
    retry_after_s,
    wait_until_s,
)

_COUNTS: Final = st.integers(0, 5)
_BOUNDS: Final = st.builds(Limits, n_running=st.none() | st.integers(1, 4), n_waiting=st.integers(0, 4))


@given(
    door=st.sampled_from(Door),
    is_work=st.booleans(),
    n_running=_COUNTS,
    n_waiting=_COUNTS,
    limits=_BOUNDS,
    again=st.booleans(),
)
def test_a_request_is_forwarded_only_in_its_turn(
    *, door: Door, is_work: bool, n_running: int, n_waiting: int, limits: Limits, again: bool
) -> None:
    """Forwarded: the door is open and there is room. Refused: closed, or no room to wait. Else held."""
    answer = admit(door, is_work=is_work, n_running=n_running, n_waiting=n_waiting, limits=limits, again=again)
    has_room = not is_work or limits.n_running is None or n_running < limits.n_running
    if answer is Admission.FORWARD:
        assert door is Door.OPEN
        assert has_room
    elif answer is Admission.REFUSE_CLOSED:
        assert door is Door.CLOSED
    elif answer is Admission.REFUSE_FULL:
        assert not again, "what was accepted once is never refused for want of room"
        assert n_waiting >= limits.n_waiting
    else:
        assert door is Door.SHUT or not has_room
        assert again or n_waiting < limits.n_waiting


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/chat/completions", True),
        ("POST", "/v1/embeddings", True),
        ("POST", "/anything/new", True),
        ("POST", "/tokenize", False),
        ("GET", "/slots", False),
    ],
)
def test_only_what_is_computed_counts_as_work(method: str, path: str, expected: bool) -> None:  # noqa: FBT001 - a case
    """An unknown path counts: better that it waits than that it breaks another's answer."""
    assert is_work(method, path) == expected


@given(_COUNTS, _BOUNDS)
def test_what_is_no_work_takes_nobodys_turn(n_running: int, limits: Limits) -> None:
    """Looking something up passes a busy engine's line; nothing passes a shut door."""
    assert has_turn(Door.OPEN, is_work=False, n_running=n_running, limits=limits)
    assert not has_turn(Door.SHUT, is_work=False, n_running=0, limits=limits)
    assert not has_turn(Door.CLOSED, is_work=True, n_running=0, limits=limits)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_who_came_first_gives_up_first(one_s: float, other_s: float, shut_s: float) -> None:
    """The line watches only its first: no later arrival may have an earlier end; nobody's comes before the full time."""
    limits = Limits(max_wait_s=10.0)
    first_s, later_s = sorted((one_s, other_s))
    end_s = wait_until_s(arrived_s=first_s, shut_s=shut_s, limits=limits)
    assert end_s <= wait_until_s(arrived_s=later_s, shut_s=shut_s, limits=limits)
    assert end_s >= max(first_s, shut_s) + 10.0


@given(st.sampled_from(Loss), st.integers(0, 5), st.integers(0, 5))
def test_a_request_that_breaks_engines_is_not_sent_without_end(loss: Loss, n_replays: int, bound: int) -> None:
    """A loss that may be the request's own doing is replayed ``n_replays`` times; others as often as it takes."""
    limits = Limits(n_replays=bound)
    answer = remedy(loss, begun=False, is_events=False, n_replays=n_replays, limits=limits)
    refused = counts_as_replay(loss) and n_replays >= bound
    assert answer is (Remedy.REFUSE if refused else Remedy.REPLAY)
    assert counts_as_replay(loss) == (loss in {Loss.BROKEN, Loss.REJECTED})


@given(st.sampled_from(Loss), st.integers(0, 5))
def test_nothing_is_replayed_once_a_client_has_a_part(loss: Loss, n_replays: int) -> None:
    """Events are ended in words, anything else by its connection; never a second answer after the first."""
    limits = Limits()
    assert remedy(loss, begun=True, is_events=True, n_replays=n_replays, limits=limits) is Remedy.TELL
    assert remedy(loss, begun=True, is_events=False, n_replays=n_replays, limits=limits) is Remedy.CUT


@given(st.sampled_from(Door), st.none() | st.floats(0, 1e6))
def test_a_refused_client_is_given_a_time_that_it_heeds(door: Door, expected_s: float | None) -> None:
    """``Retry-After`` is a whole number of seconds from 1 to 60, and what is expected where that is known."""
    after_s = retry_after_s(door, expected_s)
    assert 1 <= after_s <= 60
    if door is not Door.OPEN and expected_s is not None and 1 <= expected_s <= 60:
        assert after_s == round(expected_s)


@given(st.integers(0, 10_000))
def test_pauses_grow_up_to_a_second(n_losses: int) -> None:
    """An engine that is gone is not asked in a tight loop, and one that is back is soon asked again."""
    assert 0.05 <= pause_s(n_losses) <= pause_s(n_losses + 1) <= 1.0


@pytest.mark.parametrize(
    ("status", "content_type", "expected"),
    [
        (500, "text/plain", True),
        (404, "text/plain", True),
        (500, "application/json", False),
        (404, "application/json", False),
        (200, "text/plain", False),
        (503, "text/plain", False),
    ],
)
def test_a_proxys_words_are_plain_text(status: int, content_type: str, expected: bool) -> None:  # noqa: FBT001 - a case
    """Engines word their errors in JSON; 503 is a rejection whoever says it."""
    assert is_of_proxy(status, content_type) == expected
