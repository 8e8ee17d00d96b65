"""Decide what a served instance does next: a table from (phase, event) to (phase, effects).

It must not know time, processes, engines or reasons: `runner` turns the world into events, carries the effects out,
and remembers why.

How an instance lives
---------------------
It is *idle* until START, which asks the guard to SPAWN the engine. While *spawning* nothing runs yet; a guard that
cannot execute the program says SPAWN_FAILED, and since the same program will fail again, that is final.

Once SPAWNED it is *loading*: the runner asks the engine's endpoint until it ANSWERED. There is no deadline for that,
large weights on a slow disk take as long as they take, but there is one for silence: PROGRESS pushes it back, and
STALLED means that nothing moved until it was over. USURPED means that the answer came from another process that took
the address: final, for it will still be there.

An endpoint that answers is up, not ready. It is *proving*: the runner compares the realised placement with the plan
and asks for one token. PROVED makes it *ready* and announces it. MISPLACED is final, for the same plan would be
placed the same way; an UNPROVED canary may be cured by a fresh start; one that failed for want of memory is OVERDRAWN.

From *ready*, and from every phase before it, three things lead away. The user says STOP: the engine is asked to end
and the phase is *stopping*; a second request is FORCE, and kills. The engine DIED, whatever its exit code says:
nobody asked it to, so it is *clearing to retry* until the guard reports that the whole tree is GONE. Or it
DIED_FOR_GOOD, with a sign that the next start would end alike (a broken file, an unknown argument, memory that does
not suffice): *clearing to fail*. A guard that is itself gone (GUARD_LOST) leaves its engine to the runner, which must
RECLAIM it: find and kill the tree by what was recorded. GONE follows there too.

Memory has a way of its own. An engine that ran OUT_OF_MEMORY, or of which it is known before it allocates that it
would (OVERDRAWN), is *clearing to step*, and so is one that lost the memory of a worker (WORKER_LOST): once it is GONE
the runner asks for the next plan. While *stepping* nothing runs; STEPPED has a command to SPAWN, and at the FOOT of
the ladder the instance has failed. CROWDED means that nothing fits beside what other processes hold: they may give it
back, so it is *backoff* that follows. Pressure seen in time (STRAINED), or room for a better plan (ROOMIER), makes a
ready instance *drain*: the front forwards no new request, and once the running ones have ended or their time is over
(DRAINED) the engine is terminated and the next plan is asked for. An engine that is up but no longer answers is HUNG,
and one that answers every request with an error is SICK: it is killed, for it would not heed a request or has nothing
to finish, and started again. Where it uses workers, one of them may be what it waits for, while it serves or starts
(WORKER_SILENT): it is killed, and the next plan is asked for.

The tree is always gone before the next step: no phase but *idle*, *backoff*, *stepping* and the two ends is without a guard,
and SPAWN is an effect of START, RETRY and STEPPED alone. So there never are two engines.

In *backoff* the runner consults the restart policy: RETRY when the delay is over, EXHAUSTED when too many deaths fell
into the window. STOP ends the wait at once.

*Stopped* and *failed* are the ends; only START leads out. A request to stop that arrives while failing does not
change the failure into a success.

Every pair is one of three: a row of the table; a late or repeated event that changes nothing (``IGNORED``, listed,
because the world is concurrent); or impossible, and then ``step`` raises ``LifecycleBugError``.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from launcher.domain import State


class Phase(StrEnum):
    """Where an instance stands, finer than the ``State`` that is shown: it holds what comes after a stop."""

    IDLE = "idle"
    SPAWNING = "spawning"
    LOADING = "loading"
    PROVING = "proving"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    CLEARING_TO_RETRY = "clearing-to-retry"
    CLEARING_TO_FAIL = "clearing-to-fail"
    CLEARING_TO_STEP = "clearing-to-step"
    BACKOFF = "backoff"
    STEPPING = "stepping"
    STOPPED = "stopped"
    FAILED = "failed"


class Event(StrEnum):
    """What happened in the world."""

    START = "start"
    SPAWNED = "spawned"
    SPAWN_FAILED = "spawn-failed"
    PROGRESS = "progress"
    ANSWERED = "answered"
    USURPED = "usurped"
    DISPLACED = "displaced"
    PROVED = "proved"
    UNPROVED = "unproved"
    MISPLACED = "misplaced"
    STALLED = "stalled"
    DIED = "died"
    DIED_FOR_GOOD = "died-for-good"
    OUT_OF_MEMORY = "out-of-memory"
    WORKER_LOST = "worker-lost"
    WORKER_SILENT = "worker-silent"
    OVERDRAWN = "overdrawn"
    STRAINED = "strained"
    ROOMIER = "roomier"
    DRAINED = "drained"
    HUNG = "hung"
    SICK = "sick"
    STEPPED = "stepped"
    FOOT = "foot"
    CROWDED = "crowded"
    GUARD_LOST = "guard-lost"
    GONE = "gone"
    STOP = "stop"
    FORCE = "force"
    RETRY = "retry"
    EXHAUSTED = "exhausted"


class Effect(StrEnum):
    """What the runner has to do."""

    SPAWN = "spawn"
    WATCH = "watch"
    POSTPONE_STALL = "postpone-stall"
    PROVE = "prove"
    ANNOUNCE = "announce"
    TERMINATE = "terminate"
    KILL = "kill"
    RECLAIM = "reclaim"
    CONSULT_POLICY = "consult-policy"
    DRAIN = "drain"
    REPLAN = "replan"


class LifecycleBugError(AssertionError):
    """An event came in a phase in which it cannot happen: the runner is wrong, not the engine."""


_STATES: Final[Mapping[Phase, State]] = {
    Phase.IDLE: State.STOPPED,
    Phase.SPAWNING: State.STARTING,
    Phase.LOADING: State.STARTING,
    Phase.PROVING: State.STARTING,
    Phase.READY: State.READY,
    Phase.DRAINING: State.DRAINING,
    Phase.STOPPING: State.STOPPING,
    Phase.CLEARING_TO_RETRY: State.STOPPING,
    Phase.CLEARING_TO_FAIL: State.STOPPING,
    Phase.CLEARING_TO_STEP: State.STOPPING,
    Phase.BACKOFF: State.BACKOFF,
    Phase.STEPPING: State.BACKOFF,
    Phase.STOPPED: State.STOPPED,
    Phase.FAILED: State.FAILED,
}

ENDS: Final = frozenset({Phase.STOPPED, Phase.FAILED})
LOADING: Final = frozenset({Phase.SPAWNING, Phase.LOADING, Phase.PROVING})
"""An engine is on its way to be ready."""
GUARDED: Final = frozenset(Phase) - ENDS - {Phase.IDLE, Phase.BACKOFF, Phase.STEPPING}
"""Phases in which a guard, and perhaps an engine below it, exists."""

_Row = tuple[Phase, tuple[Effect, ...]]

_DEATHS: Final[Mapping[Event, _Row]] = {
    Event.DIED: (Phase.CLEARING_TO_RETRY, ()),
    Event.DIED_FOR_GOOD: (Phase.CLEARING_TO_FAIL, ()),
    Event.OUT_OF_MEMORY: (Phase.CLEARING_TO_STEP, ()),
    Event.WORKER_LOST: (Phase.CLEARING_TO_STEP, ()),
    Event.GUARD_LOST: (Phase.CLEARING_TO_RETRY, (Effect.RECLAIM,)),
}
_STOP: Final[Mapping[Event, _Row]] = {
    Event.STOP: (Phase.STOPPING, (Effect.TERMINATE,)),
    Event.FORCE: (Phase.STOPPING, (Effect.TERMINATE, Effect.KILL)),
}

TABLE: Final[Mapping[Phase, Mapping[Event, _Row]]] = {
    Phase.IDLE: {
        Event.START: (Phase.SPAWNING, (Effect.SPAWN,)),
        Event.STOP: (Phase.STOPPED, ()),
        Event.FORCE: (Phase.STOPPED, ()),
    },
    Phase.SPAWNING: {
        Event.SPAWNED: (Phase.LOADING, (Effect.WATCH,)),
        Event.SPAWN_FAILED: (Phase.CLEARING_TO_FAIL, ()),
        Event.OVERDRAWN: (Phase.CLEARING_TO_STEP, ()),
        Event.GUARD_LOST: (Phase.CLEARING_TO_RETRY, (Effect.RECLAIM,)),
        **_STOP,
    },
    Phase.LOADING: {
        Event.PROGRESS: (Phase.LOADING, (Effect.POSTPONE_STALL,)),
        Event.ANSWERED: (Phase.PROVING, (Effect.PROVE,)),
        Event.USURPED: (Phase.CLEARING_TO_FAIL, (Effect.TERMINATE,)),
        Event.DISPLACED: (Phase.CLEARING_TO_RETRY, (Effect.TERMINATE,)),
        Event.OVERDRAWN: (Phase.CLEARING_TO_STEP, (Effect.KILL,)),
        Event.MISPLACED: (Phase.CLEARING_TO_FAIL, (Effect.TERMINATE,)),
        Event.STALLED: (Phase.CLEARING_TO_RETRY, (Effect.TERMINATE,)),
        Event.WORKER_SILENT: (Phase.CLEARING_TO_STEP, (Effect.KILL,)),
        **_DEATHS,
        **_STOP,
    },
    Phase.PROVING: {
        Event.PROGRESS: (Phase.PROVING, (Effect.POSTPONE_STALL,)),
        Event.PROVED: (Phase.READY, (Effect.ANNOUNCE,)),
        Event.UNPROVED: (Phase.CLEARING_TO_RETRY, (Effect.TERMINATE,)),
        Event.OVERDRAWN: (Phase.CLEARING_TO_STEP, (Effect.KILL,)),
        Event.MISPLACED: (Phase.CLEARING_TO_FAIL, (Effect.TERMINATE,)),
        Event.STALLED: (Phase.CLEARING_TO_RETRY, (Effect.TERMINATE,)),
        Event.WORKER_SILENT: (Phase.CLEARING_TO_STEP, (Effect.KILL,)),
        **_DEATHS,
        **_STOP,
    },
    Phase.READY: {
        Event.STRAINED: (Phase.DRAINING, (Effect.DRAIN,)),
        Event.ROOMIER: (Phase.DRAINING, (Effect.DRAIN,)),
        Event.HUNG: (Phase.CLEARING_TO_RETRY, (Effect.KILL,)),
        Event.SICK: (Phase.CLEARING_TO_RETRY, (Effect.KILL,)),
        Event.WORKER_SILENT: (Phase.CLEARING_TO_STEP, (Effect.KILL,)),
        **_DEATHS,
        **_STOP,
    },
    Phase.DRAINING: {
        Event.DRAINED: (Phase.CLEARING_TO_STEP, (Effect.TERMINATE,)),
        Event.HUNG: (Phase.CLEARING_TO_STEP, (Effect.KILL,)),
        Event.WORKER_SILENT: (Phase.CLEARING_TO_STEP, (Effect.KILL,)),
        **_DEATHS,
        **_STOP,
    },
    Phase.STOPPING: {
        Event.FORCE: (Phase.STOPPING, (Effect.KILL,)),
        Event.GUARD_LOST: (Phase.STOPPING, (Effect.RECLAIM,)),
        Event.GONE: (Phase.STOPPED, ()),
    },
    Phase.CLEARING_TO_RETRY: {
        Event.STOP: (Phase.STOPPING, ()),
        Event.FORCE: (Phase.STOPPING, (Effect.KILL,)),
        Event.GUARD_LOST: (Phase.CLEARING_TO_RETRY, (Effect.RECLAIM,)),
        Event.GONE: (Phase.BACKOFF, (Effect.CONSULT_POLICY,)),
    },
    Phase.CLEARING_TO_FAIL: {
        Event.FORCE: (Phase.CLEARING_TO_FAIL, (Effect.KILL,)),
        Event.GUARD_LOST: (Phase.CLEARING_TO_FAIL, (Effect.RECLAIM,)),
        Event.GONE: (Phase.FAILED, ()),
    },
    Phase.CLEARING_TO_STEP: {
        Event.STOP: (Phase.STOPPING, ()),
        Event.FORCE: (Phase.STOPPING, (Effect.KILL,)),
        Event.GUARD_LOST: (Phase.CLEARING_TO_STEP, (Effect.RECLAIM,)),
        Event.GONE: (Phase.STEPPING, (Effect.REPLAN,)),
    },
    Phase.BACKOFF: {
        Event.RETRY: (Phase.SPAWNING, (Effect.SPAWN,)),
        Event.EXHAUSTED: (Phase.FAILED, ()),
        Event.STOP: (Phase.STOPPED, ()),
        Event.FORCE: (Phase.STOPPED, ()),
    },
    Phase.STEPPING: {
        Event.STEPPED: (Phase.SPAWNING, (Effect.SPAWN,)),
        Event.FOOT: (Phase.FAILED, ()),
        Event.CROWDED: (Phase.BACKOFF, (Effect.CONSULT_POLICY,)),
        Event.STOP: (Phase.STOPPED, ()),
        Event.FORCE: (Phase.STOPPED, ()),
    },
    Phase.STOPPED: {Event.START: (Phase.SPAWNING, (Effect.SPAWN,))},
    Phase.FAILED: {Event.START: (Phase.SPAWNING, (Effect.SPAWN,))},
}

_LATE_WATCH: Final = frozenset(
    {
        *(Event.PROGRESS, Event.ANSWERED, Event.USURPED, Event.PROVED, Event.UNPROVED, Event.MISPLACED),
        *(Event.DISPLACED, Event.STALLED, Event.OVERDRAWN),
    }
)
"""What a watcher may still report although it has just been told to stop."""
_LATE_END: Final = frozenset(
    {
        *(Event.SPAWNED, Event.SPAWN_FAILED, Event.DIED, Event.DIED_FOR_GOOD),
        *(Event.OUT_OF_MEMORY, Event.WORKER_LOST),
    }
)
"""What the guard reports of an engine whose end is already under way."""
_LATE_SENSE: Final = frozenset({Event.STRAINED, Event.ROOMIER, Event.DRAINED, Event.HUNG, Event.SICK})
"""What the monitors and the front may still report of a ready engine that is ready no more."""
_LATE_ANSWER: Final = frozenset({Event.RETRY, Event.EXHAUSTED, Event.STEPPED, Event.FOOT, Event.CROWDED})
"""What policy and stepper may still say of an instance that has ended."""
_REQUESTS: Final = frozenset({Event.STOP, Event.FORCE})

_LATE: Final = _LATE_WATCH | _LATE_SENSE | {Event.WORKER_SILENT}

IGNORED: Final[Mapping[Phase, frozenset[Event]]] = {
    Phase.IDLE: frozenset(),
    Phase.SPAWNING: _LATE - {Event.OVERDRAWN},
    Phase.LOADING: frozenset({Event.PROVED, Event.UNPROVED}) | _LATE_SENSE,
    Phase.PROVING: frozenset({Event.ANSWERED, Event.USURPED, Event.DISPLACED}) | _LATE_SENSE,
    Phase.READY: _LATE_WATCH | {Event.DRAINED},
    Phase.DRAINING: _LATE_WATCH | {Event.STRAINED, Event.ROOMIER, Event.SICK},
    Phase.STOPPING: _LATE | _LATE_END | {Event.STOP},
    Phase.CLEARING_TO_RETRY: _LATE | _LATE_END,
    Phase.CLEARING_TO_FAIL: _LATE | _LATE_END | {Event.STOP},
    Phase.CLEARING_TO_STEP: _LATE | _LATE_END,
    Phase.BACKOFF: _LATE,
    Phase.STEPPING: _LATE,
    Phase.STOPPED: _LATE | _REQUESTS | _LATE_ANSWER,
    Phase.FAILED: _LATE | _REQUESTS | _LATE_ANSWER,
}


def state_of(phase: Phase) -> State:
    """Return the state that users see."""
    return _STATES[phase]


def step(phase: Phase, event: Event) -> tuple[Phase, tuple[Effect, ...]]:
    """Return where the event leads and what has to be done for it, in order.

    Raises:
        LifecycleBugError: the event cannot happen in this phase.
    """
    row = TABLE[phase].get(event)
    if row is not None:
        return row
    if event in IGNORED[phase]:
        return phase, ()
    message = f"{event} cannot happen while {phase}"
    raise LifecycleBugError(message)


def render_lifecycle() -> str:
    """Return the page of the documentation that shows the table: a Mermaid diagram, then every row."""
    lines = [
        "# The life of a served instance",
        "",
        "Generated from `launcher/supervisor/machine.py` by its `render_lifecycle`; a test compares.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        *(f"    {_node(phase)}: {phase} ({state_of(phase)})" for phase in Phase),
        f"    [*] --> {_node(Phase.IDLE)}",
    ]
    for phase, row in TABLE.items():
        arrows: dict[Phase, list[str]] = {}
        for event, (target, _) in row.items():
            arrows.setdefault(target, []).append(event.value)
        lines += [f"    {_node(phase)} --> {_node(target)}: {', '.join(names)}" for target, names in arrows.items()]
    lines += [f"    {_node(end)} --> [*]" for end in (Phase.STOPPED, Phase.FAILED)]
    lines += ["```", "", "| phase | event | next phase | effects |", "|---|---|---|---|"]
    for phase, row in TABLE.items():
        for event, (target, effects) in row.items():
            lines.append(f"| {phase} | {event} | {target} | {', '.join(effects)} |")
    lines += ["", "Late or repeated events that change nothing; every pair in neither list is a bug:", ""]
    lines += [f"- {phase}: {', '.join(sorted(events))}" for phase, events in IGNORED.items() if events]
    return "\n".join(lines) + "\n"


def _node(phase: Phase) -> str:
    return phase.value.replace("-", "_")
