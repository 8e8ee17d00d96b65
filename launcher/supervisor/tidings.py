"""Decide what a service manager is told of an instance, from its phase and from when something last moved.

It must not know sockets, clocks or processes: it is given seconds. Pure.

One notion carries it: each phase may last so long *without a sign of life* (``allowance_s``): a change of
phase, progress of a loading engine, or a look at a ready one that found it well. While an instance starts, each pushes
the manager's start timeout back by the allowance; once it has been ready, the watchdog is fed while the last one is not
older than the allowance. So an engine that stalls, or is silent while it is believed to be ready, extends and feeds nothing,
and neither does a supervisor that is stuck in any phase. The supervisor's own ways out (stall, hang) come first: they are
quicker.
"""

from collections.abc import Mapping
from typing import Final

from launcher.domain import InstanceRecord, State
from launcher.supervisor.machine import ENDS, Phase
from launcher.supervisor.options import RunOptions

_SLACK_S: Final = 20.0
"""Beside any time that is planned for: a busy machine runs everything late."""
_PREPARE_S: Final = 600.0
"""To let memory settle, ask drivers, engines and workers, plan anew, and compare the next engine's files with their digests.

That last is most of it: 60 GB at 100 MB/s, a disk that turns.
"""
_N_LOOKS: Final = 2
"""So many looks at a ready engine in a row may be without an answer until it is silent."""


def allowance_s(phase: Phase, options: RunOptions, *, is_watched: bool) -> float | None:
    """Return for how long a phase may go on without a sign of life; ``None``: for ever, as nobody looks or all is over."""
    ending_s = options.stop_drain_s + options.grace_s + options.guard_patience_s
    restarts = options.restarts
    waiting_s = max(restarts.max_delay_s, restarts.max_crowded_delay_s) + restarts.jitter_s
    if phase is Phase.READY:
        return _N_LOOKS * 2 * options.health_pause_s if is_watched else None
    planned_s = {
        Phase.SPAWNING: 0.0,
        Phase.LOADING: options.stall_timeout_s,
        Phase.PROVING: options.stall_timeout_s,
        Phase.DRAINING: options.drain_s,
        Phase.STOPPING: ending_s,
        Phase.CLEARING_TO_RETRY: ending_s,
        Phase.CLEARING_TO_FAIL: ending_s,
        Phase.CLEARING_TO_STEP: ending_s,
        Phase.BACKOFF: waiting_s + _PREPARE_S,
        Phase.STEPPING: _PREPARE_S,
    }.get(phase)
    return None if planned_s is None else planned_s + _SLACK_S


def extension_s(phase: Phase, options: RunOptions, *, has_been_ready: bool, is_watched: bool) -> float | None:
    """Return by how much a sign of life pushes the start timeout back; ``None`` where none runs."""
    return None if has_been_ready or phase in ENDS else allowance_s(phase, options, is_watched=is_watched)


def is_moving(phase: Phase, silent_s: float, options: RunOptions, *, is_watched: bool) -> bool:
    """Whether a watchdog may be fed: the last sign of life is not older than the phase allows."""
    allowed_s = allowance_s(phase, options, is_watched=is_watched)
    return allowed_s is None or silent_s <= allowed_s


def milestones(before: Phase, after: Phase, *, has_been_ready: bool) -> Mapping[str, str]:
    """Return what a change of phase means to the manager: that the start is over, or that the end has begun."""
    if after is Phase.READY and not has_been_ready:
        return {"READY": "1"}
    if after is not before and after in {Phase.STOPPING, Phase.CLEARING_TO_FAIL, Phase.FAILED}:
        return {"STOPPING": "1"}
    return {}


def status(record: InstanceRecord, said: str) -> str:
    """Return the line that ``systemctl status`` shows; ``said`` is what was last reported in words."""
    match record.state:
        case State.READY:
            what = f"{record.plan.model} {record.plan.quantization} " if record.plan is not None else ""
            less = (*(record.story if record.n_ladder_steps else ()), *filter(None, (record.slow,)))
            return f"ready: {what}at {_endpoint(record)}" + (f"; degraded: {'; '.join(less)}" if less else "")
        case State.BACKOFF | State.DRAINING:
            return f"{record.state}: {'; '.join(dict.fromkeys(filter(None, (said, record.reason))))}"
        case State.FAILED:
            return f"failed: {record.reason or said}"
        case _:
            return said if said.startswith(record.state) else f"{record.state}: {said}".removesuffix(": ")


def _endpoint(record: InstanceRecord) -> str:
    host = f"[{record.address.host}]" if ":" in record.address.host else record.address.host
    return f"http://{host}:{record.address.port}"
