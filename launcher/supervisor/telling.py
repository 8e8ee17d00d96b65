"""Say what a change of phase changes in the record that others read, and in which words it is told.

It must not know how either gets there, nor read a clock.
"""

from collections.abc import Mapping
from typing import Final

from launcher.domain import InstanceRecord
from launcher.supervisor.failures import Failure
from launcher.supervisor.machine import GUARDED, LOADING, Phase, state_of
from launcher.supervisor.notices import Notice
from launcher.supervisor.setback import Step

_WITH_REASON: Final = frozenset({Phase.BACKOFF, Phase.STEPPING, Phase.DRAINING, Phase.FAILED})
_WITHOUT_REASON: Final = frozenset({Phase.READY, Phase.STOPPED})


def changes_of(
    before: Phase, after: Phase, record: InstanceRecord, failure: Failure | None, at: float
) -> Mapping[str, object]:
    """Return the new values of the record's fields; ``at`` is the present time in seconds since 1970."""
    if after is not Phase.SPAWNING and state_of(after) is record.state:
        return {}
    changes: dict[str, object] = {"state": state_of(after)}
    if after in _WITH_REASON and failure is not None:
        changes |= {"reason": failure.message, "details": failure.lines}
    elif after in _WITHOUT_REASON:
        changes |= {"reason": None, "details": ()}
    if after is Phase.READY:
        changes["ready_at"] = at
    elif after not in LOADING:
        changes["ready_at"] = None if after is not Phase.STOPPING else record.ready_at
    if after is not Phase.DRAINING:  # of the next engine nothing is known yet
        changes["slow"] = None
    if after not in GUARDED:
        changes |= {"engine": None, "guard": None}
    if before is Phase.BACKOFF and after is Phase.SPAWNING:
        changes["n_restarts"] = record.n_restarts + 1
    return changes


def notice_of(after: Phase, name: str, failure: Failure | None, stopped_by: str | None) -> Notice | None:
    """Return how an end, or the way there, is told; other changes are told by what is done in them."""
    if after is Phase.FAILED and failure is not None:
        return Notice(event="instance.failed", text=f"`{name}` failed: {failure.message}")
    if after is Phase.STOPPING:
        by = f" on {stopped_by}" if stopped_by else ""
        return Notice(event="instance.stopping", text=f"stopping{by}", facts={"by": stopped_by})
    if after is Phase.STOPPED:
        return Notice(event="instance.stopped", text="stopped; nothing of the engine is left")
    return None


def name_of(step: Step, n_steps: int) -> tuple[str, str, int]:
    """Return how a step is told, its event and words, and how far below the first plan it leads from ``n_steps``."""
    if step.is_up:
        return "ladder.up", "back up", 0
    if step.is_retry:
        return "ladder.retry", "once more", n_steps
    return "ladder.step", f"step {n_steps + 1} down", n_steps + 1
