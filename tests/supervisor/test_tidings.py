"""What a service manager is told: laws over every phase."""

import pytest
from msgspec.structs import replace

from launcher.domain import Address, InstanceRecord, ProcessId, State
from launcher.resources import data_dir
from launcher.supervisor.machine import ENDS, TABLE, Phase, step
from launcher.supervisor.options import RunOptions
from launcher.supervisor.tidings import allowance_s, extension_s, is_moving, milestones, status
from tests.fakes.plans import plan_for

OPTIONS = RunOptions()
RECORD = InstanceRecord(
    name="e",
    state=State.STARTING,
    supervisor=ProcessId(pid=1, start_time=1, boot_id="b"),
    address=Address(host="::1", port=8080),
    started_at=0.0,
    changed_at=0.0,
)


@pytest.mark.parametrize("phase", Phase)
def test_a_watchdog_is_fed_for_as_long_as_the_phase_allows_and_no_longer(phase: Phase) -> None:
    """An end, and what nobody looks at, may last for ever; all else has a bound."""
    allowed = allowance_s(phase, OPTIONS, is_watched=True)
    assert is_moving(phase, 0.0, OPTIONS, is_watched=True)
    if allowed is None:
        assert phase in ENDS | {Phase.IDLE}
    else:
        assert is_moving(phase, allowed, OPTIONS, is_watched=True)
        assert not is_moving(phase, allowed + 0.1, OPTIONS, is_watched=True)


def test_a_ready_engine_that_nobody_looks_at_feeds_the_watchdog() -> None:
    """Without a front there are no looks: then the loop alone is what is watched."""
    assert allowance_s(Phase.READY, OPTIONS, is_watched=False) is None


def test_the_supervisors_own_ways_out_come_before_the_managers() -> None:
    """A stall is a stall, and a hang a hang, before a start times out or a watchdog bites."""
    loading = extension_s(Phase.LOADING, OPTIONS, has_been_ready=False, is_watched=True)
    assert loading is not None
    assert loading > OPTIONS.stall_timeout_s
    unit = _settings()
    hang_s = OPTIONS.hang.n_misses * 2 * OPTIONS.health_pause_s
    ready = allowance_s(Phase.READY, OPTIONS, is_watched=True)
    assert ready is not None
    assert ready < hang_s < int(unit["WatchdogSec"])
    assert int(unit["TimeoutStartSec"]) > OPTIONS.stall_timeout_s


def test_the_units_stop_timeout_is_beyond_all_that_a_stop_may_take() -> None:
    """Requests run on, the engine has its grace, a guard that does not obey is killed: then systemd may kill."""
    needed_s = OPTIONS.stop_drain_s + OPTIONS.grace_s + OPTIONS.guard_patience_s
    assert int(_settings()["TimeoutStopSec"]) > needed_s
    assert int(_settings("user")["TimeoutStopSec"]) > needed_s


def _settings(folder: str = "") -> dict[str, str]:
    text = (data_dir("systemd") / folder / "launch@.service").read_text()
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


@pytest.mark.parametrize("phase", Phase)
def test_a_start_is_extended_until_it_is_over(phase: Phase) -> None:
    """Once it was ready no start timeout runs, and an end is waited for by nobody."""
    assert extension_s(phase, OPTIONS, has_been_ready=True, is_watched=True) is None
    if phase in ENDS:
        assert extension_s(phase, OPTIONS, has_been_ready=False, is_watched=True) is None


def test_ready_is_said_once_and_only_of_a_proved_engine() -> None:
    """By every row of the table: READY follows PROVED alone, and no second engine repeats it."""
    for before, row in TABLE.items():
        for event, (after, _) in row.items():
            said = milestones(before, after, has_been_ready=False)
            assert ("READY" in said) == (after is Phase.READY), (before, event)
            assert "READY" not in milestones(before, after, has_been_ready=True)
    assert {event for row in TABLE.values() for event, (after, _) in row.items() if after is Phase.READY} == {"proved"}


def test_the_end_is_announced_before_it_begins() -> None:
    """Stopping, and failing, are told on the way; a retry or a step is neither."""
    for before, row in TABLE.items():
        for event, (after, _) in row.items():
            said = milestones(before, after, has_been_ready=True)
            on_the_way = {Phase.STOPPING, Phase.CLEARING_TO_FAIL, Phase.FAILED}
            assert ("STOPPING" in said) == (after in on_the_way and after is not before), (before, event)
    assert step(Phase.STOPPING, next(iter(TABLE[Phase.STOPPING])))[0] in {Phase.STOPPING, Phase.STOPPED}


@pytest.mark.parametrize(
    ("changes", "said", "expected"),
    [
        ({}, "loading, 3 s", "starting: loading, 3 s"),
        ({}, "", "starting"),
        ({"state": State.READY, "plan": plan_for()}, "x", "ready: gemma3-270m q4_k_m at http://[::1]:8080"),
        (
            {"state": State.READY, "n_ladder_steps": 1, "story": ("a", "b"), "slow": "c"},
            "x",
            "ready: at http://[::1]:8080; degraded: a; b; c",
        ),
        ({"state": State.BACKOFF, "reason": "it died"}, "again in 2 s", "backoff: again in 2 s; it died"),
        ({"state": State.BACKOFF, "reason": "it died"}, "it died", "backoff: it died"),
        ({"state": State.FAILED, "reason": "it died"}, "x", "failed: it died"),
        ({"state": State.STOPPING}, "stopping on SIGTERM", "stopping on SIGTERM"),
    ],
)
def test_the_status_says_the_state_first(changes: dict[str, object], said: str, expected: str) -> None:
    """Then what a person wants to know of it: why, where, how much less than was planned."""
    assert status(replace(RECORD, **changes), said) == expected
