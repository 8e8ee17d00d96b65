"""Serve one command until it is stopped or fails: turn the world into the machine's events, carry out its effects.

The only one to start and signal serving engines (through the guard), and the only clock. It must not decide what
follows from an event (`machine`), what a log line means (`faults`, `placement`), or how long to wait (`restarts`).
"""

import asyncio
import contextlib
import os
import re
import secrets as random_source
import shlex
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from msgspec.structs import replace

from launcher.domain import Command, InstanceRecord, Noun, Plan, ProcessId, Refusal, State
from launcher.errors import EngineFailedError, LauncherError, PlacementError, PortInUseError, StateError
from launcher.store import Instance, identify
from launcher.supervisor import faults, placement, sickness
from launcher.supervisor.checks import check_start
from launcher.supervisor.guard import become_subreaper, descendants
from launcher.supervisor.logs import RotatingFile, redact, secrets_of
from launcher.supervisor.machine import ENDS, GUARDED, Effect, Event, Phase, state_of, step
from launcher.supervisor.notices import Fact, Notice, Report, write_notice
from launcher.supervisor.preflight import Preflight
from launcher.supervisor.preflight import describe as describe_preflight
from launcher.supervisor.processes import Activity, OomKills, measure_tree, probe_listeners, socket_owners, who_listens
from launcher.supervisor.reclaim import children, end_adopted, reclaim
from launcher.supervisor.restarts import Death, RestartPolicy, next_delay_s, remember
from launcher.supervisor.setback import Front, Service, Setback, Shortage
from launcher.supervisor.signs import Cause
from launcher.supervisor.stepping import describe_step
from launcher.supervisor.strain import Sample, StrainPolicy
from launcher.supervisor.strain import describe as describe_strain
from launcher.supervisor.tether import Tether
from launcher.supervisor.vigil import Vigil
from launcher.units import MIB, format_bytes

_SAMPLE_S: Final = 1.0  # between two looks at what the starting engine does
_BUSY_SHARE: Final = 0.1  # of one core: more than the launcher's own polling costs an idle engine
_MIN_READ_BYTES: Final = 1 << 16  # per sample, for the same reason
_N_RING: Final = 500
_N_PLACEMENT: Final = 4000  # lines; a verbose log of a hundred layers has some hundreds
_N_PROGRESS: Final = 80  # characters of the engine's last line that are shown while it loads
_N_PLACEMENT_SHOWN: Final = 12
_LOADING: Final = frozenset({Phase.SPAWNING, Phase.LOADING, Phase.PROVING})
_SERVING: Final = frozenset({Phase.READY, Phase.DRAINING})
_GIVING_UP: Final = frozenset({Phase.CLEARING_TO_RETRY, Phase.CLEARING_TO_FAIL, Phase.CLEARING_TO_STEP})


def _words(line: str) -> str:
    """Return the beginning of a log line without llama-server's time and level (``0.01.019.005 I ``)."""
    return re.sub(r"^[\d.]+ [A-Z] ", "", line.strip())[:_N_PROGRESS]


class RunOptions(Noun, frozen=True):
    """How an instance is supervised. ``stall_timeout_s`` is of silence, not of loading: progress pushes it back."""

    stall_timeout_s: float = 120.0
    grace_s: float = 10.0
    """Between SIGTERM and SIGKILL to the engine's tree."""
    orphan_grace_s: float = 1.0
    """The same, where the supervisor itself is gone."""
    guard_patience_s: float = 15.0
    """Beyond the grace, until a guard that does not report the end is itself killed, and its work done for it."""
    drain_s: float = 30.0
    """For requests to come to their end before a step that can wait."""
    stop_drain_s: float = 5.0
    """The same, before the end."""
    health_pause_s: float = 5.0
    """Between two looks at a ready engine, and for it to answer one."""
    hang: sickness.HangPolicy = sickness.HangPolicy()
    strain: StrainPolicy = StrainPolicy()
    review_s: float = 60.0
    """Between two looks at whether there is room for more, and at what was learnt of the engine's use."""
    log_bytes: int = 8 * MIB
    events_bytes: int = MIB
    restarts: RestartPolicy = RestartPolicy()
    handle_signals: bool = True
    adopt_orphans: bool = True
    """Become a subreaper, to reach all that a killed guard leaves; wrong in a process that starts others meanwhile."""


class ServeResult(Noun, frozen=True):
    """How serving ended when it did not fail: ``was_ready`` and ``restarts`` count over all engines of this run."""

    was_ready: bool
    n_restarts: int


class _Fault(Noun, frozen=True):
    """Why an engine is being given up."""

    kind: type[LauncherError]
    message: str
    help: str | None = None
    lines: tuple[str, ...] = ()
    setback: Setback | None = None
    """What memory ran short, where that is the cause."""

    def to_error(self) -> LauncherError:
        return self.kind(self.message, help=self.help, details=self.lines)


def serve(
    command: Command,
    *,
    instance: Instance,
    plan: Plan | None = None,
    options: RunOptions = RunOptions(),  # noqa: B008 - an immutable value
    report: Report,
    service: Service | None = None,
) -> ServeResult:
    """Serve the command in the foreground until it is stopped; the caller holds the instance's lock.

    With a ``service`` the endpoint is its front's, each engine has a private port, and one that ran out of memory is
    followed by one with a smaller plan; without it the command's own address is served, and that is an end.

    SIGINT, SIGTERM and SIGHUP end the engine gracefully, a second one at once. ``report`` hears every act, in the
    thread that called. Whatever happens, nothing of the engine is left running on return.

    Raises:
        EngineFailedError: it died too often, stalled, or failed for good; ``details`` holds its telling log lines.
        PlacementError: it placed the model otherwise than planned.
        PortInUseError: another process has the address.
        EngineMissingError, WeightsMissingError, StateError: found before anything was started.
    """
    with contextlib.ExitStack() as stack:
        n_reclaimed = reclaim(instance)
        check_start(command, plan, instance.path)
        if options.adopt_orphans:
            become_subreaper()
        supervision = _Supervision(command, instance, plan, options, report, service=service)
        stack.callback(supervision.close)
        if n_reclaimed:
            supervision.notify("instance.reclaimed", "ended what an earlier, killed supervisor had left running")
        return asyncio.run(supervision.run())


def _refused(refusal: Refusal) -> _Fault:
    """Return the foot of the ladder as a fault: the facts, then the first way out."""
    ways = [f"{item.text}: {shlex.join(item.argv)}" for item in refusal.advice] or ["`launch plan` says what would fit"]
    return _Fault(kind=EngineFailedError, message=refusal.fact, help=ways[0], lines=(*refusal.derivation, *ways[1:]))


def _without_tensors(plan: Plan | None) -> Plan | None:
    """Return a plan for the record: the tensors of a large model are most of its bytes, and nobody reads them there."""
    return plan and replace(plan, artifact=replace(plan.artifact, spec=None))


class _Supervision:
    """The one owner of an instance's lifecycle state; lives in one event loop."""

    def __init__(
        self,
        command: Command,
        instance: Instance,
        plan: Plan | None,
        options: RunOptions,
        report: Report,
        *,
        service: Service | None,
    ) -> None:
        self._command = command
        self._plan = plan
        self._service = service
        self._n_spawns = 0
        self._oom_kills = OomKills()
        self._vigil = Vigil(options.strain)
        self._better: Plan | None = None
        self._load_s: float | None = None
        self._instance = instance
        self._options = options
        self._report = report
        self._env = {**os.environ, **command.env}
        self._secrets = secrets_of(self._env)
        self._phase = Phase.IDLE
        self._queue: asyncio.Queue[tuple[Event, int, _Fault | None]] = asyncio.Queue()
        self._generation = 0
        self._tether: Tether | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._duties: set[asyncio.Task[None]] = set()
        self._stopped_by: str | None = None
        self._failure: _Fault | None = None
        self._children = children()
        self._deaths: tuple[Death, ...] = ()
        self._ready_since_s: float | None = None
        self._started_s = 0.0
        self._moved_s = 0.0
        self._activity = Activity()
        self._n_lines = 0
        self._n_lines_loading = 0
        self._ring: deque[str] = deque(maxlen=_N_RING)
        self._placement_lines: deque[str] = deque(maxlen=_N_PLACEMENT)
        self._was_ready = False
        self._log = RotatingFile(instance.log_path, options.log_bytes, self._on_log_fault)
        self._events = RotatingFile(instance.events_path, options.events_bytes, lambda _: None)
        me = identify(os.getpid())
        assert me is not None, "a running process has an entry in /proc"  # noqa: S101
        self._record = InstanceRecord(
            name=instance.name,
            state=State.STARTING,
            supervisor=me,
            address=command.address,
            started_at=time.time(),
            changed_at=time.time(),
            log_path=str(instance.log_path),
            plan=_without_tensors(plan),
        )
        self._record_unwritable = False
        try:
            instance.write(self._record)
        except OSError as error:
            message = f"cannot write in {instance.path}: {(error.strerror or str(error)).lower()}"
            raise StateError(
                message, help="free some disk space, or set LAUNCHER_STATE_DIR to a folder that can be written"
            ) from error

    # --- Telling others ---

    def notify(self, event: str, text: str, *, transient: bool = False, **facts: Fact) -> None:
        """Report one act, in words and as a line of the events file."""
        notice = Notice(event=event, text=text, facts=facts, transient=transient)
        if not transient:
            write_notice(self._events, notice)
        with contextlib.suppress(OSError):  # a closed terminal must not end the supervision
            self._report(notice)

    def _on_log_fault(self, error: OSError) -> None:
        why = (error.strerror or str(error)).lower()
        self.notify("log.dropped", f"the engine's log cannot be written ({why}); its lines are dropped", error=why)

    def _update_record(self, **changes: object) -> None:
        """Replace the record; a disk that no longer takes it does not end the serving."""
        self._record = replace(self._record, changed_at=time.time(), **changes)
        try:
            self._instance.write(self._record)
        except OSError as error:
            if not self._record_unwritable:
                self._record_unwritable = True
                why = (error.strerror or str(error)).lower()
                self.notify(
                    "state.unwritable", f"the state cannot be written ({why}); `launch ps` is out of date", error=why
                )
        else:
            self._record_unwritable = False
        if self._service is not None:
            self._service.front.publish(self._record, self._load_s, self._vigil.own_bytes())

    # --- The loop ---

    async def run(self) -> ServeResult:
        """Feed the machine until it comes to an end; leave nothing running."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._sampling(loop))
            return await self._live(loop)

    async def _live(self, loop: asyncio.AbstractEventLoop) -> ServeResult:
        handled = self._handle_signals(loop)
        try:
            await self._open_front()
            self._post(Event.START)
            while self._phase not in ENDS:
                event, generation, fault = await self._queue.get()
                if generation in {0, self._generation}:
                    self._advance(event, fault)
        finally:
            await self._leave()
            for number in handled:
                loop.remove_signal_handler(number)
        if self._phase is Phase.FAILED and self._failure is not None:
            raise self._failure.to_error()
        return ServeResult(was_ready=self._was_ready, n_restarts=self._record.n_restarts)

    def _sampling(self, loop: asyncio.AbstractEventLoop) -> contextlib.AbstractContextManager[None]:
        """Look at the plan's memories for as long as the instance lives, where something can follow from it."""
        if self._service is None:
            return contextlib.nullcontext()
        # Imported here: psutil and NVML, which an engine without a front does not need.
        from launcher.supervisor.pressure import sampling  # noqa: PLC0415

        def tell(call: Callable[[Any], None], value: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(call, value)

        return sampling(
            self._plan,
            self._service.devices,
            top=lambda: None if self._tether is None else self._tether.pid,
            on_sample=lambda sample: tell(self._on_sample, sample),
            on_lost=lambda error: tell(self._on_blind, error),
        )

    def _on_sample(self, sample: Sample) -> None:
        strain = self._vigil.see(sample, is_serving=self._phase is Phase.READY)
        if strain is None or self._plan is None:
            return
        words = f"memory runs short: {describe_strain(strain)}"
        setback = Setback(
            plan=self._plan,
            shortage=Shortage.PRESSURE,
            words=words,
            memory=strain.memory,
            failed_bytes=strain.shortfall_bytes,
        )
        self.notify("memory.strained", words, memory=strain.memory, free_bytes=strain.free_bytes)
        self._post(Event.STRAINED, _Fault(kind=EngineFailedError, message=words, setback=setback))

    def _on_blind(self, error: Exception) -> None:
        self.notify("memory.blind", f"memory can no longer be watched: {type(error).__name__}: {error}")

    async def _open_front(self) -> None:
        """Have the endpoint before the engine: what clients ask meanwhile waits, and the address is known."""
        if self._service is None:
            return
        try:
            self._update_record(address=await self._service.front.start())
        except LauncherError as error:
            self._update_record(state=State.FAILED, reason=error.message)
            raise

    def _on_loop_error(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        self._on_own_fault(error if isinstance(error, BaseException) else RuntimeError(str(context.get("message"))))

    def _handle_signals(self, loop: asyncio.AbstractEventLoop) -> tuple[signal.Signals, ...]:
        if not self._options.handle_signals or threading.current_thread() is not threading.main_thread():
            return ()
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # What is ignored on purpose stays so: `nohup` ignores SIGHUP, a shell's background job SIGINT.
        handled = tuple(number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN)
        for number in handled:
            loop.add_signal_handler(number, self._on_signal, number)
        return handled

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopped_by is None:
            self._stopped_by = number.name
            self._post(Event.STOP, world=True)
        else:
            self._post(Event.FORCE, world=True)

    def _post(self, event: Event, fault: _Fault | None = None, *, world: bool = False) -> None:
        """Queue an event of the present engine, or of the world, which outlives engines."""
        self._queue.put_nowait((event, 0 if world else self._generation, fault))

    def _advance(self, event: Event, fault: _Fault | None) -> None:
        before = self._phase
        after, effects = step(before, event)
        if event in {Event.START, Event.RETRY, Event.STEPPED} and after is Phase.SPAWNING:
            self._generation += 1
        self._phase = after
        if after is not before:
            self._on_change(before, after, event, fault)
        for effect in effects:
            self._carry_out(effect)

    def _on_change(self, before: Phase, after: Phase, event: Event, fault: _Fault | None) -> None:
        if after not in _LOADING or before in {Phase.BACKOFF, Phase.STEPPING}:
            self._cancel_tasks()
        if before in _SERVING and after not in _SERVING and self._service is not None:
            self._service.front.detach(fault.message if fault is not None else f"it is {state_of(after)}")
        if fault is not None and after is Phase.DRAINING:
            self._failure = fault
        elif fault is not None and after in _GIVING_UP:
            self._failure = fault
            if after is not Phase.CLEARING_TO_STEP:  # a step has its own bound: each is smaller than the last
                self._remember_death()
            self.notify("engine.failed", fault.message, cause=event.value)
        if after is Phase.FAILED and self._failure is not None:
            self.notify("instance.failed", f"`{self._instance.name}` failed: {self._failure.message}")
        elif after is Phase.STOPPING:
            by = f" on {self._stopped_by}" if self._stopped_by else ""
            self.notify("instance.stopping", f"stopping{by}", by=self._stopped_by)
        elif after is Phase.STOPPED:
            self.notify("instance.stopped", "stopped; nothing of the engine is left")
        if after not in GUARDED:
            self._drop_tether()
            self._vigil.bury()
        self._describe_change(before, after)

    def _describe_change(self, before: Phase, after: Phase) -> None:
        changes: dict[str, object] = {"state": state_of(after)}
        if after in {Phase.BACKOFF, Phase.STEPPING, Phase.DRAINING, Phase.FAILED} and self._failure is not None:
            changes |= {"reason": self._failure.message, "details": self._failure.lines}
        elif after in {Phase.READY, Phase.STOPPED}:
            changes |= {"reason": None, "details": ()}
        if after is Phase.READY:
            changes["ready_at"] = time.time()
        elif after not in _LOADING:
            changes["ready_at"] = None if after is not Phase.STOPPING else self._record.ready_at
        if after not in GUARDED:
            changes |= {"engine": None, "guard": None}
        if before is Phase.BACKOFF and after is Phase.SPAWNING:
            changes["n_restarts"] = self._record.n_restarts + 1
        if after is Phase.SPAWNING or state_of(after) is not state_of(before):
            self._update_record(**changes)

    def _remember_death(self) -> None:
        ready_s = None if self._ready_since_s is None else time.monotonic() - self._ready_since_s
        self._ready_since_s = None
        death = Death(at_s=time.monotonic(), ready_s=ready_s)
        self._deaths = remember(self._deaths, death, self._options.restarts)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Effect.SPAWN:
                self._spawn()
            case Effect.WATCH:
                self._start_task(self._watch_endpoint())
                self._start_task(self._watch_progress())
            case Effect.POSTPONE_STALL:
                self._moved_s = time.monotonic()
            case Effect.PROVE:
                self._start_task(self._prove())
            case Effect.ANNOUNCE:
                self._announce()
            case Effect.TERMINATE | Effect.KILL:
                self._end_engine(effect)
            case Effect.CONSULT_POLICY:
                self._consult_policy()
            case Effect.RECLAIM | Effect.DRAIN | Effect.REPLAN:
                work = {Effect.RECLAIM: self._reclaim, Effect.DRAIN: self._drain, Effect.REPLAN: self._replan}[effect]
                self._start_task(work(), to_its_end=effect is Effect.RECLAIM)

    def _end_engine(self, effect: Effect) -> None:
        if self._tether is None:
            return
        patience_s = self._options.guard_patience_s
        if effect is Effect.TERMINATE and self._phase is Phase.STOPPING and self._service is not None:
            self._start_task(self._close_front_first(self._service.front, self._tether))
        elif effect is Effect.TERMINATE:
            self._tether.terminate(self._options.grace_s)
            self._start_task(self._outlast_guard(self._tether, self._options.grace_s + patience_s))
        else:
            self._tether.kill()
            self._start_task(self._outlast_guard(self._tether, patience_s))

    async def _close_front_first(self, front: Front, tether: Tether) -> None:
        """Let running requests end before the engine is asked to; what waits for one is refused at once."""
        await front.stop(self._options.stop_drain_s, "the server is stopping")
        tether.terminate(self._options.grace_s)
        await self._outlast_guard(tether, self._options.grace_s + self._options.guard_patience_s)

    async def _outlast_guard(self, tether: Tether, patience_s: float) -> None:
        """Kill a guard that does not obey: a stopped one, for example. That it is lost then has its own way on."""
        await asyncio.sleep(patience_s)
        tether.kill_guard()

    def _start_task(self, work: Coroutine[None, None, None], *, to_its_end: bool = False) -> None:
        """Run a piece of work beside the loop; it is cancelled with the phase, unless it must come to its end."""
        task = asyncio.get_running_loop().create_task(work)
        tasks = self._duties if to_its_end else self._tasks
        tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._duties.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_own_fault(error)

    def _on_own_fault(self, error: BaseException) -> None:
        """End the engine: what watches it has failed, and an engine that nobody watches must not run on."""
        fault = _Fault(kind=EngineFailedError, message=f"the supervisor failed: {type(error).__name__}: {error}")
        self._post(Event.DIED_FOR_GOOD, fault)
        self._end_engine(Effect.KILL)

    def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()

    # --- Effects ---

    def _spawn(self) -> None:
        try:
            self._renew_command()
        except LauncherError as error:
            fault = _Fault(kind=type(error), message=error.message, help=error.help, lines=error.details)
            self._post(Event.SPAWN_FAILED, fault)
            self._post(Event.GONE)
            return
        if self._is_overdrawn_at_once():
            return
        self._started_s = self._moved_s = time.monotonic()
        self._activity = Activity()
        self._ring.clear()
        self._placement_lines.clear()
        self._vigil.expect()
        token = random_source.token_hex(16)
        try:
            self._tether = Tether(
                self._command.argv,
                self._env,
                record_path=self._instance.guard_path(token),
                token=token,
                orphan_grace_s=self._options.orphan_grace_s,
                on_report=self._on_report,
                on_line=self._on_line,
                on_lost=lambda: self._post(Event.GUARD_LOST, self._lost_fault()),
            )
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            fault = _Fault(kind=EngineFailedError, message=f"no process can be started: {why}")
            self._post(Event.SPAWN_FAILED, fault)
            self._post(Event.GONE)

    def _renew_command(self) -> None:
        """Give every engine but the first a command of its own, for the plan of now and on a port that is free now."""
        self._n_spawns += 1
        if self._service is not None and self._plan is not None and self._n_spawns > 1:
            self._command = self._service.make_command(self._plan, tell=not self._vigil.is_known(self._plan))
            self._env = {**os.environ, **self._command.env}

    def _is_overdrawn_at_once(self) -> bool:
        """Judge the start by what is free now; nothing is started where it is known not to fit."""
        if self._service is None or self._plan is None or (self._n_spawns > 1 and not self._vigil.is_known(self._plan)):
            return False
        verdict = self._vigil.foresee(self._plan)
        if verdict.fits or not verdict.confirmed:
            return False
        self._post(Event.OVERDRAWN, self._overdrawn(verdict))
        self._post(Event.GONE)
        return True

    def _overdrawn(self, verdict: Preflight) -> _Fault:
        assert self._plan is not None  # noqa: S101 - judged with a plan alone
        need = verdict.exceeded[0]
        words = f"it would not fit: {describe_preflight(verdict)}"
        setback = Setback(
            plan=self._plan,
            shortage=Shortage.FORESEEN,
            words=words,
            memory=need.name,
            failed_bytes=need.shortfall_bytes,
            told_bytes=None if need.told is None else need.needed_bytes,
        )
        return _Fault(kind=EngineFailedError, message=words, setback=setback)

    def _lost_fault(self) -> _Fault:
        return _Fault(
            kind=EngineFailedError,
            message="the guard process was killed, and the engine with it",
            help="do not kill the guard; end an instance with `launch stop`",
            lines=faults.telling_lines(tuple(self._ring)),
        )

    def _on_report(self, report: dict[str, int | str]) -> None:
        """Turn what the guard says into events."""
        number = report.get("errno")
        why = os.strerror(int(number)).lower() if number is not None else ""
        match report["event"]:
            case "spawned":
                assert self._tether is not None  # noqa: S101 - it is who reports
                engine = identify(int(report["pid"]))
                self._oom_kills = OomKills.of(int(report["pid"]))
                self._update_record(guard=self._tether.guard, engine=engine, last_exit=self._record.last_exit)
                self._notify_spawned(engine, int(report["pid"]))
                self._post(Event.SPAWNED)
            case "spawn-failed":
                message = f"{self._command.argv[0]} cannot be executed: {why}"
                self._post(Event.SPAWN_FAILED, _Fault(kind=EngineFailedError, message=message))
            case "record-failed":
                message = f"cannot write in {self._instance.path}: {why}"
                help_ = "free some disk space, or set LAUNCHER_STATE_DIR to a folder that can be written"
                self._post(Event.SPAWN_FAILED, _Fault(kind=StateError, message=message, help=help_))
            case "exited":
                self._on_exit(report.get("code"), report.get("signal"))
            case _:  # "gone", the last
                if report["survivors"]:
                    n = report["survivors"]
                    self.notify("engine.stuck", f"{n} processes of the engine hang in the kernel", survivors=n)
                self._post(Event.GONE)

    def _notify_spawned(self, engine: ProcessId | None, pid: int) -> None:
        program = os.path.basename(self._command.argv[0])  # noqa: PTH119 - a name, not a file
        self.notify(
            "engine.spawned",
            f"started {program} as process {pid}",
            pid=pid,
            start_time=None if engine is None else engine.start_time,
        )

    def _on_exit(self, code: int | str | None, signal_number: int | str | None) -> None:
        if self._tether is not None:
            self._tether.drain()  # all that the dead process wrote is in the pipe: read it before judging
        code = None if code is None else int(code)
        signal_number = None if signal_number is None else int(signal_number)
        how = faults.describe_exit(code, signal_number)
        self._update_record(last_exit=how)
        expected = self._phase in {Phase.STOPPING, Phase.CLEARING_TO_FAIL, Phase.CLEARING_TO_RETRY}
        self.notify("engine.exited", f"the engine ended ({how})", expected=expected, code=code, signal=signal_number)
        was_ready = self._phase not in _LOADING
        found = faults.classify(
            faults.End(
                lines=self._lines_since_ready() if was_ready else tuple(self._ring),
                code=code,
                signal_number=signal_number,
                was_ready=was_ready,
                n_oom_kills=self._oom_kills.rise(),
            )
        )
        when = "while it served" if was_ready else "while it loaded"
        is_port = found.cause is Cause.PORT
        may_step = found.answer is faults.Answer.STEP_DOWN and self._service is not None and self._plan is not None
        message = f"the engine ended {when} ({how}): {faults.describe(found)}"
        fault = _Fault(
            kind=PortInUseError if is_port else EngineFailedError,
            message=message,
            help=found.help or f"read its whole log with `launch logs {self._instance.name}`",
            lines=found.lines or faults.telling_lines(tuple(self._ring)),
            setback=self._setback(found, message) if may_step else None,
        )
        if may_step:
            self._post(Event.OUT_OF_MEMORY, fault)
        elif found.answer is faults.Answer.RESTART or (is_port and self._service is not None):
            self._post(Event.DIED, fault)  # a port behind a front was the runner's choice: the next start has another
        else:
            self._post(Event.DIED_FOR_GOOD, fault)

    def _setback(self, found: faults.Fault, words: str) -> Setback:
        """Describe a want of memory to whoever finds the next plan."""
        assert self._plan is not None  # noqa: S101 - asked for with a service alone
        return Setback(
            plan=self._plan,
            shortage=Shortage.SERVING if found.was_ready else Shortage.AT_LOAD,
            words=words,
            memory=faults.planned_memory(found, self._plan),
            failed_bytes=found.n_bytes,
        )

    def _on_line(self, line: str) -> None:
        line = redact(line, self._secrets)
        self._n_lines += 1
        self._ring.append(line)
        self._log.write(line)
        if self._phase in _LOADING and placement.is_telling(line):
            self._placement_lines.append(line)
        if self._phase is Phase.LOADING and self._command.tells_memory and self._plan is not None:
            self._judge_line(self._plan, line)

    def _judge_line(self, plan: Plan, line: str) -> None:
        """End an engine by its own account, before it allocates what is not there."""
        verdict = self._vigil.hear(plan, line)
        if verdict is None:
            return
        if not verdict.fits and self._service is not None:
            self._post(Event.OVERDRAWN, self._overdrawn(verdict))
        elif verdict.confirmed:
            n_bytes = {need.name: need.unaccounted_bytes for need in verdict.needs}
            self.notify("engine.preflight", "it fits, by its own account", unaccounted_bytes=str(n_bytes))

    async def _watch_endpoint(self) -> None:
        """Report when the engine's own socket answers; one that belongs to another process is no answer of ours."""
        # Imported here: 0.2 s that are spent while the engine already loads.
        from launcher.supervisor import readiness  # noqa: PLC0415

        async with readiness.open_session(self._command, self._env) as session:
            await readiness.await_answer(session, self._command.ready_path)
        usurper = self._usurper()
        if usurper is None:
            self._post(Event.ANSWERED)
            return
        event = Event.USURPED if self._service is None else Event.DISPLACED
        address = self._command.address
        message = f"{address.host}:{address.port} is answered by {usurper}, not by the engine"
        help_ = "choose another with `--port`, or end what listens there"
        self._post(event, _Fault(kind=PortInUseError, message=message, help=help_))

    def _usurper(self) -> str | None:
        """Return who listens on the engine's port where the engine does not."""
        port = self._command.address.port or 0
        inodes = probe_listeners(port)
        if self._tether is None or not inodes:
            return None
        owners, complete = socket_owners(inodes, descendants(self._tether.pid))
        return None if owners or not complete else who_listens(port) or "another user's process"

    async def _watch_health(self, front: Front) -> None:
        """Give up a ready engine that is hung: deaf to questions about its health, or to the requests it took."""
        from launcher.supervisor import readiness  # noqa: PLC0415 - loaded by now

        policy = self._options.hang
        pause_s = self._options.health_pause_s
        watch, before = sickness.Watch(), Activity()
        async with readiness.open_session(self._command, self._env) as session:
            while self._tether is not None:
                await asyncio.sleep(pause_s)
                load = front.load()
                now = await asyncio.to_thread(measure_tree, self._tether.pid) if load.n_in_flight else before
                pulse = sickness.Pulse(
                    at_s=time.monotonic(),
                    is_answering=await readiness.answers(session, self._command.ready_path, pause_s),
                    n_in_flight=load.n_in_flight,
                    n_delivered=load.n_delivered,
                    is_busy=now.cpu_s - before.cpu_s >= _BUSY_SHARE * pause_s,
                )
                before = now
                watch, fault = sickness.look(watch, pulse, policy)
                if fault is not None:
                    lines = faults.telling_lines(tuple(self._ring))
                    message = f"the engine hangs: {fault.meaning}"
                    self._post(Event.HUNG, _Fault(kind=EngineFailedError, message=message, lines=lines))
                    return
                if self._says_it_is_sick():
                    return

    def _lines_since_ready(self) -> tuple[str, ...]:
        """Return what a ready engine printed since: what it printed while it loaded explains nothing of what it does."""
        n_since = self._n_lines - self._n_lines_loading
        return tuple(self._ring)[-n_since:] if n_since else ()

    def _says_it_is_sick(self) -> bool:
        """Step down an engine that stays up, and answers every request with an error, for want of memory."""
        found = faults.find_sign(self._lines_since_ready(), was_ready=True)
        if found is None or found.answer is not faults.Answer.STEP_DOWN:
            return False
        words = f"the engine serves no more: {faults.describe(found)}"
        setback = self._setback(found, words)
        self._post(Event.STRAINED, _Fault(kind=EngineFailedError, message=words, lines=found.lines, setback=setback))
        return True

    async def _watch_progress(self) -> None:
        """Report progress by what the engine prints, reads, computes and holds; report a stall when none of it moves."""
        n_lines, n_placement = self._n_lines, 0
        limit_s = self._options.stall_timeout_s
        pause_s = min(_SAMPLE_S, limit_s / 4)
        while True:
            await asyncio.sleep(pause_s)
            if self._tether is None:
                return
            now = await asyncio.to_thread(measure_tree, self._tether.pid)
            before, self._activity = self._activity, now
            moved = (
                self._n_lines != n_lines
                or now.cpu_s - before.cpu_s >= _BUSY_SHARE * pause_s
                or now.read_bytes - before.read_bytes >= _MIN_READ_BYTES
                or now.resident_bytes - before.resident_bytes >= MIB
            )
            n_lines = self._n_lines
            if len(self._placement_lines) == n_placement:  # they come in one burst: it is over
                self._check_early()
            n_placement = len(self._placement_lines)
            if moved:
                self._post(Event.PROGRESS)
                self._moved_s = time.monotonic()
                self._notify_loading(now)
            elif time.monotonic() - self._moved_s >= limit_s:
                self._post(Event.STALLED, self._stall_fault(limit_s))
                return

    def _check_early(self) -> None:
        """End a load whose layers are already known to be in the wrong place: the rest of it may take minutes."""
        realised = placement.parse_placement(self._placement_lines)
        difference = placement.mismatch(realised, self._command.expected_gpu_layers, None)
        if difference is not None and realised.has_weights:
            self._post(Event.MISPLACED, self._misplaced_fault(difference))

    def _misplaced_fault(self, difference: str) -> _Fault:
        return _Fault(
            kind=PlacementError,
            message=difference,
            help="see what the engine finds with `launch hardware`; `--n-gpu-layers 0` serves from the CPU on purpose",
            lines=tuple(line.strip() for line in self._placement_lines)[-_N_PLACEMENT_SHOWN:],
        )

    def _notify_loading(self, activity: Activity) -> None:
        elapsed_s = time.monotonic() - self._started_s
        last = next((line for line in reversed(self._ring) if line.strip()), "")
        text = f"loading, {elapsed_s:.0f} s, {format_bytes(activity.resident_bytes)} resident: {_words(last)}"
        self.notify(
            "engine.loading",
            text,
            transient=True,
            elapsed_s=round(elapsed_s, 1),
            resident_bytes=activity.resident_bytes,
            read_bytes=activity.read_bytes,
        )

    def _stall_fault(self, limit_s: float) -> _Fault:
        doing = "loading" if self._phase is Phase.LOADING else "answering its first request"
        return _Fault(
            kind=EngineFailedError,
            message=f"the engine stalled while {doing}: no output, reading or computing for {limit_s:.0f} s",
            help=f"read its whole log with `launch logs {self._instance.name}`",
            lines=faults.telling_lines(tuple(self._ring)),
        )

    async def _prove(self) -> None:
        """Compare the realised placement with the plan, then ask for one token."""
        from launcher.supervisor import readiness  # noqa: PLC0415 - loaded by now

        if self._tether is not None:
            self._tether.drain()
        realised = placement.parse_placement(self._placement_lines)
        command = self._command
        difference = placement.mismatch(realised, command.expected_gpu_layers, command.expected_footprint)
        if difference is not None:
            self._post(Event.MISPLACED, self._misplaced_fault(difference))
            return
        async with readiness.open_session(command, self._env) as session:
            wrong = await readiness.send_canary(session, command.canary_path, command.canary_body)
        if wrong is None:
            self._post(Event.PROVED)
        else:
            lines = faults.telling_lines(tuple(self._ring))
            self._post(Event.UNPROVED, _Fault(kind=EngineFailedError, message=wrong, lines=lines))

    def _announce(self) -> None:
        self._was_ready = True
        self._n_lines_loading = self._n_lines
        self._ready_since_s = time.monotonic()
        elapsed_s = time.monotonic() - self._started_s
        self._load_s = elapsed_s
        realised = placement.parse_placement(self._placement_lines)
        address = self._record.address
        if self._service is not None:
            from launcher.supervisor.readiness import base_url  # noqa: PLC0415 - loaded by now

            self._service.front.attach(base_url(self._command.address))
            self._vigil.begin()
            self._start_task(self._watch_health(self._service.front))
            self._start_task(self._review(self._service))
        self.notify(
            "engine.ready",
            f"ready after {elapsed_s:.1f} s at http://{address.host}:{address.port}",
            host=address.host,
            port=address.port,
            elapsed_s=round(elapsed_s, 3),
            n_gpu_layers=realised.realised_gpu_layers,
            placement=placement.describe(realised),
        )

    async def _reclaim(self) -> None:
        """The guard is gone without its engine: end the tree by the records it left."""
        try:
            await asyncio.to_thread(reclaim, self._instance)
            if self._options.adopt_orphans and self._tether is not None:
                await asyncio.to_thread(end_adopted, self._children | {self._tether.pid})
        except LauncherError as error:
            self.notify("engine.stuck", error.message)
        self._post(Event.GONE)

    def _consult_policy(self) -> None:
        delay_s = next_delay_s(self._deaths, self._options.restarts)
        if delay_s is None:
            self._failure = self._exhausted(self._failure)
            self._post(Event.EXHAUSTED)
            return
        self.notify("instance.backoff", f"starting again in {delay_s:.1f} s", delay_s=round(delay_s, 3))
        self._start_task(self._retry_after(delay_s))

    def _exhausted(self, failure: _Fault | None) -> _Fault:
        assert failure is not None  # noqa: S101 - backoff is reached by a death alone
        n = len(self._deaths)
        message = f"{failure.message} ({n} deaths, no further start)" if n > 1 else failure.message
        return _Fault(kind=failure.kind, message=message, help=failure.help, lines=failure.lines)

    async def _retry_after(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        self._post(Event.RETRY)

    # --- Stepping ---

    async def _drain(self) -> None:
        assert self._service is not None  # noqa: S101 - pressure is watched for with a service alone
        reason = self._failure.message if self._failure is not None else "another plan is taken"
        n_left = await self._service.front.drain(self._options.drain_s, reason)
        self.notify("instance.drained", f"drained; {n_left} requests were taken back", n_requests=n_left)
        self._post(Event.DRAINED)

    async def _review(self, service: Service) -> None:
        """Now and then keep what the engine was seen to hold, and see whether there is room for more again."""
        while self._plan is not None:
            await asyncio.sleep(self._options.review_s)
            service.front.publish(self._record, self._load_s, self._vigil.own_bytes())
            if news := self._vigil.news():
                await asyncio.to_thread(service.stepper.learn_use, self._plan, news)
            if self._record.n_ladder_steps and not self._vigil.is_strained():
                await self._look_up(service, self._plan)

    async def _look_up(self, service: Service, plan: Plan) -> None:
        """Offer a better plan; take it, where the profile says so, once it has been on offer at two looks in a row."""
        own_bytes = self._vigil.own_bytes()
        better = await asyncio.to_thread(service.stepper.better_plan, plan, own_bytes)
        if better is None:
            self._better = None
            if self._record.offer is not None:
                self._update_record(offer=None)
            return
        was_offered, self._better = self._better == better, better
        offer = f"there is room again: {'; '.join(describe_step(plan, better))}"
        if self._record.offer != offer:
            self._update_record(offer=offer)
            self.notify("ladder.offer", offer)
        if service.step_up and was_offered:
            self._post(Event.ROOMIER, _Fault(kind=EngineFailedError, message=offer))

    async def _replan(self) -> None:
        """Ask for the next plan in a thread: the machine has to settle and to be measured."""
        better, self._better = self._better, None
        if better is not None and self._failure is not None and self._failure.setback is None:
            self._plan = better
            self._update_record(plan=_without_tensors(better), story=(), n_ladder_steps=0, offer=None)
            self.notify("ladder.up", self._failure.message)
            self._post(Event.STEPPED)
            return
        fault = self._failure
        assert self._service is not None and fault is not None and fault.setback is not None  # noqa: S101, PT018
        try:
            answer = await asyncio.to_thread(self._service.stepper.next_plan, fault.setback)
        except LauncherError as error:
            self._failure = _Fault(kind=type(error), message=error.message, help=error.help, lines=error.details)
            self._post(Event.FOOT, self._failure)
            return
        if isinstance(answer, Refusal):
            self._failure = _refused(answer)
            self._post(Event.FOOT, self._failure)
            return
        self._plan = answer.plan
        n_steps = self._record.n_ladder_steps + (0 if answer.is_retry else 1)
        self._update_record(plan=_without_tensors(answer.plan), story=answer.story, n_ladder_steps=n_steps, offer=None)
        event, what = ("ladder.retry", "once more") if answer.is_retry else ("ladder.step", f"step {n_steps} down")
        self.notify(event, f"{what}: {'; '.join(answer.story)}", n_steps=n_steps, memory=fault.setback.memory)
        self._post(Event.STEPPED)

    # --- Leaving ---

    def _drop_tether(self) -> None:
        tether, self._tether = self._tether, None
        if tether is not None:
            self._start_task(tether.close(), to_its_end=True)

    async def _leave(self) -> None:
        """Let go of everything, also when the loop was left by an exception."""
        self._cancel_tasks()
        self._drop_tether()
        await asyncio.gather(*self._duties, return_exceptions=True)
        if self._service is not None:
            await self._service.front.stop(0.0, "the server has stopped")

    def close(self) -> None:
        """Close the files."""
        self._log.close()
        self._events.close()
