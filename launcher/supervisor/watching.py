"""Watch one engine: what is observed of its endpoint, its progress, its placement and its health becomes events.

It must not know phases, nor what follows from an event; it starts, signals and ends nothing. Each watcher is a coroutine
that runs until it has told its news, or is cancelled.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from launcher.domain import Command, Plan
from launcher.errors import PortInUseError
from launcher.supervisor import failures, faults, placement, sickness
from launcher.supervisor.failures import Failure
from launcher.supervisor.guard import descendants
from launcher.supervisor.heard import Heard
from launcher.supervisor.machine import Event
from launcher.supervisor.notices import Notify
from launcher.supervisor.options import RunOptions
from launcher.supervisor.processes import Activity, measure_tree, probe_listeners, socket_owners, who_listens
from launcher.supervisor.setback import Front
from launcher.units import MIB, format_bytes

if TYPE_CHECKING:
    from aiohttp import ClientSession

_SAMPLE_S: Final = 1.0  # between two looks at what the starting engine does
_BUSY_SHARE: Final = 0.1  # of one core: more than the launcher's own polling costs an idle engine
_LAST_WORDS_S: Final = 0.25
"""Before a failed canary is told: what the engine writes of it, and the end of one that died over it, say more."""
_MIN_READ_BYTES: Final = 1 << 16  # per sample, for the same reason


class Post(Protocol):
    """Where an observation goes."""

    def __call__(self, event: Event, failure: Failure | None = None, /) -> None:
        """Take an event of the engine that is watched, and why it is to be given up where it is."""


class Watched(Struct, frozen=True, kw_only=True):
    """The engine that is watched. ``top`` returns the process above all of its own, ``None`` once that is let go of.

    ``is_replaceable``: it stands behind a front, on a port that nobody else knows.
    """

    name: str
    command: Command
    env: Mapping[str, str]
    plan: Plan | None
    heard: Heard
    top: Callable[[], int | None]
    is_replaceable: bool


def _tally(front: Front) -> sickness.Tally:
    load = front.load()
    return sickness.Tally(at_s=time.monotonic(), n_succeeded=load.n_succeeded, n_failed=load.n_failed)


class EngineWatch:
    """The watchers of one engine, from its start to its end."""

    def __init__(
        self,
        engine: Watched,
        options: RunOptions,
        post: Post,
        notify: Notify,
        *,
        on_well: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin with an engine that starts now; ``on_well`` hears of each look at it, once it serves, that it passes."""
        self._on_well = on_well
        self._engine = engine
        self._options = options
        self._post = post
        self._notify = notify
        self._activity = Activity()
        self._has_answered = False
        self._has_vouched = False
        self.started_s = self._moved_s = time.monotonic()

    # --- While it starts ---

    async def watch_endpoint(self) -> None:
        """Report when the engine's own socket answers; one that belongs to another process is no answer of ours."""
        # Imported here: 0.2 s that are spent while the engine already loads.
        from launcher.supervisor import readiness  # noqa: PLC0415

        command = self._engine.command
        async with readiness.open_session(command, self._engine.env) as session:
            await readiness.await_answer(session, command.ready_path)
        usurper = self._usurper()
        if usurper is None:
            self._has_answered = True
            self._post(Event.ANSWERED)
            return
        event = Event.DISPLACED if self._engine.is_replaceable else Event.USURPED
        message = f"{command.address.host}:{command.address.port} is answered by {usurper}, not by the engine"
        help_ = "choose another with `--port`, or end what listens there"
        self._post(event, Failure(kind=PortInUseError, message=message, help=help_))

    def _usurper(self) -> str | None:
        """Return who listens on the engine's port where the engine does not."""
        port, top = self._engine.command.address.port or 0, self._engine.top()
        inodes = probe_listeners(port)
        if top is None or not inodes:
            return None
        owners, complete = socket_owners(inodes, descendants(top))
        return None if owners or not complete else who_listens(port) or "another user's process"

    async def watch_progress(self) -> None:
        """Report progress by what the engine prints, reads, computes and holds; report a stall when none of it moves."""
        heard = self._engine.heard
        n_lines, n_placement = heard.n_lines, 0
        limit_s = self._options.stall_timeout_s
        pause_s = min(_SAMPLE_S, limit_s / 4)
        while True:
            await asyncio.sleep(pause_s)
            top = self._engine.top()
            if top is None:
                return
            now = await asyncio.to_thread(measure_tree, top)
            before, self._activity = self._activity, now
            moved = (
                heard.n_lines != n_lines
                or now.cpu_s - before.cpu_s >= _BUSY_SHARE * pause_s
                or now.read_bytes - before.read_bytes >= _MIN_READ_BYTES
                or now.resident_bytes - before.resident_bytes >= MIB
            )
            n_lines = heard.n_lines
            if heard.n_placement_lines == n_placement:  # they come in one burst: it is over
                self._check_early()
            n_placement = heard.n_placement_lines
            if moved:
                self._post(Event.PROGRESS)
                self.postpone_stall()
                self._notify_loading(now)
            elif time.monotonic() - self._moved_s >= limit_s:
                doing = "answering its first request" if self._has_answered else "loading"
                failure = failures.of_stall(doing, limit_s, name=self._engine.name, log=heard.lines)
                self._tell_silent(Event.STALLED, failure)
                return

    def _tell_silent(self, event: Event, failure: Failure) -> None:
        """Give up an engine that is silent; with workers it may be one of them that is."""
        plan = self._engine.plan
        if plan is not None and plan.workers and self._engine.is_replaceable:
            self._post(Event.WORKER_SILENT, failures.of_silence(failure, plan))
        else:
            self._post(event, failure)

    def postpone_stall(self) -> None:
        """Something moved just now."""
        self._moved_s = time.monotonic()

    def _notify_loading(self, activity: Activity) -> None:
        elapsed_s = time.monotonic() - self.started_s
        held = format_bytes(activity.resident_bytes)
        self._notify(
            "engine.loading",
            f"loading, {elapsed_s:.0f} s, {held} resident: {self._engine.heard.last_words}",
            transient=True,
            elapsed_s=round(elapsed_s, 1),
            resident_bytes=activity.resident_bytes,
            read_bytes=activity.read_bytes,
        )

    # --- Where it placed the model ---

    def _check_early(self) -> None:
        """End a load whose layers are already known to be in the wrong place: the rest of it may take minutes."""
        realised = self.realised()
        difference = placement.mismatch(realised, self._engine.command.expected_gpu_layers, None)
        if difference is not None and realised.has_weights:
            self._tell_misplaced(difference)

    def realised(self) -> placement.Placement:
        """Return where the engine said that it placed the model."""
        return placement.parse_placement(self._engine.heard.placement_lines)

    def _tell_misplaced(self, difference: str) -> None:
        self._post(Event.MISPLACED, failures.of_placement(difference, self._engine.heard.placement_lines))

    async def prove(self) -> None:
        """Compare the realised placement with the plan, see that the model is ours, then ask for one token."""
        from launcher.supervisor import readiness  # noqa: PLC0415 - loaded by now

        command = self._engine.command
        difference = placement.mismatch(self.realised(), command.expected_gpu_layers, command.expected_footprint)
        if difference is not None:
            self._tell_misplaced(difference)
            return
        async with readiness.open_session(command, self._engine.env) as session:
            wrong = None if command.listed_model is None else await readiness.check_model(session, command.listed_model)
            wrong = wrong or await readiness.send_canary(session, command.canary_path, command.canary_body)
        if wrong is None:
            self._post(Event.PROVED)
            return
        await asyncio.sleep(_LAST_WORDS_S)
        lines, plan = self._engine.heard.lines, self._engine.plan
        found = faults.find_sign(lines, was_ready=False, is_private=True)
        if plan is not None and self._engine.is_replaceable and found and found.answer is faults.Answer.STEP_DOWN:
            self._post(Event.OVERDRAWN, failures.of_unproved(wrong, found, plan))
        else:
            self._post(Event.UNPROVED, Failure(message=wrong, lines=faults.telling_lines(lines)))

    # --- While it serves ---

    async def watch_health(self, front: Front) -> None:
        """Give up a ready engine that is hung: deaf to questions about its health, or to the requests it took."""
        from launcher.supervisor import readiness  # noqa: PLC0415 - loaded by now

        command, pause_s = self._engine.command, self._options.health_pause_s
        watch, before = sickness.Watch(), Activity()
        async with readiness.open_session(command, self._engine.env) as session:
            while (top := self._engine.top()) is not None:
                await asyncio.sleep(pause_s)
                load = front.load()
                now = await asyncio.to_thread(measure_tree, top) if load.n_in_flight else before
                pulse = sickness.Pulse(
                    at_s=time.monotonic(),
                    is_answering=await readiness.answers(session, command.alive_path or command.ready_path, pause_s),
                    n_in_flight=load.n_in_flight,
                    n_delivered=load.n_delivered,
                    is_busy=now.cpu_s - before.cpu_s >= _BUSY_SHARE * pause_s,
                )
                before = now
                has_delivered = pulse.n_delivered != watch.n_delivered
                watch, fault = sickness.look(watch, pulse, self._options.hang)
                if fault is not None:
                    lines = faults.telling_lines(self._engine.heard.lines)
                    self._tell_silent(Event.HUNG, Failure(message=f"the engine hangs: {fault.meaning}", lines=lines))
                    return
                if pulse.is_answering or has_delivered:
                    self._on_well()

    async def watch_answers(self, front: Front) -> None:
        """Give up a ready engine that answers its requests with errors: for its memory, by its own words, or for none.

        The requests may be what is wrong, so without such words it is asked something of our own before.
        """
        from launcher.supervisor import readiness  # noqa: PLC0415 - loaded by now

        policy = self._options.doubt
        since, asked_s = _tally(front), None
        async with readiness.open_session(self._engine.command, self._engine.env) as session:
            while True:
                await asyncio.sleep(self._options.health_pause_s)
                if self._says_it_is_sick():
                    return
                now = _tally(front)
                since, is_doubtful = sickness.doubt(since, now, policy, asked_s=asked_s)
                if not is_doubtful:
                    continue
                words = await front.in_turn(lambda: self._refusal(session, policy.canary_s))
                if not words:
                    if words is not None:
                        self._notify_sound(now.n_failed - since.n_failed)
                    since, asked_s = _tally(front), time.monotonic()
                    continue
                if not self._says_it_is_sick():  # the canary may have made it say why
                    fault = sickness.refuses(now.n_failed - since.n_failed, words)
                    self._post(Event.SICK, failures.of_refusing(fault, self._engine.heard.lines))
                return

    async def _refusal(self, session: "ClientSession", timeout_s: float) -> str | None:
        from launcher.supervisor import readiness  # noqa: PLC0415 - loaded by now

        command = self._engine.command
        return await readiness.refusal_of_canary(session, command.canary_path, command.canary_body, timeout_s)

    def _notify_sound(self, n_failed: int) -> None:
        """Say once why nothing is done about errors."""
        if not self._has_vouched:
            self._has_vouched = True
            text = f"the last {n_failed} requests were answered with errors, and one of our own was not: the engine is sound"
            self._notify("engine.sound", text, n_failed=n_failed)

    def _says_it_is_sick(self) -> bool:
        """Step down an engine that stays up, and refuses requests for want of memory."""
        found = faults.find_sign(self._engine.heard.lines_since_ready, was_ready=True)
        if found is None or found.answer is not faults.Answer.STEP_DOWN or self._engine.plan is None:
            return False
        self._post(Event.STRAINED, failures.of_sickness(found, self._engine.plan))
        return True
