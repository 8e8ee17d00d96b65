"""Serve one command until it is stopped or fails: turn the world into the machine's events, carry out its effects.

The only one to start and signal serving engines (through the guard), and the only clock. It must not decide what
follows from an event (`machine`), what a log line means (`faults`, `placement`), or how long to wait (`restarts`).
"""

import asyncio
import contextlib
import os
import re
import secrets as random_source
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from msgspec.structs import replace

from launcher.domain import Command, InstanceRecord, Noun, Plan, ProcessId, Refusal, State
from launcher.errors import LauncherError, PortInUseError, StateError
from launcher.store import Instance, identify
from launcher.supervisor import failures, faults, placement, sickness
from launcher.supervisor.account import Account, without_tensors
from launcher.supervisor.checks import check_start
from launcher.supervisor.environment import environment_of, key_of
from launcher.supervisor.failures import Failure
from launcher.supervisor.guard import become_subreaper, descendants
from launcher.supervisor.logs import redact, secrets_of
from launcher.supervisor.machine import ENDS, GUARDED, Effect, Event, Phase, state_of, step
from launcher.supervisor.notices import Report
from launcher.supervisor.options import RunOptions
from launcher.supervisor.preflight import judge, told_after_load
from launcher.supervisor.processes import Activity, OomKills, measure_tree, probe_listeners, socket_owners, who_listens
from launcher.supervisor.reclaim import children, end_adopted, reclaim
from launcher.supervisor.restarts import Death, next_delay_s, remember
from launcher.supervisor.setback import Front, Service, Step
from launcher.supervisor.signs import Cause
from launcher.supervisor.stepping import describe_step
from launcher.supervisor.strain import Sample
from launcher.supervisor.tether import Tether
from launcher.supervisor.vigil import Vigil
from launcher.units import MIB, format_bytes

_SAMPLE_S: Final = 1.0  # between two looks at what the starting engine does
_BUSY_SHARE: Final = 0.1  # of one core: more than the launcher's own polling costs an idle engine
_MIN_READ_BYTES: Final = 1 << 16  # per sample, for the same reason
_N_RING: Final = 500
_N_PLACEMENT: Final = 4000  # lines; a verbose log of a hundred layers has some hundreds
_N_PROGRESS: Final = 80  # characters of the engine's last line that are shown while it loads
_LOADING: Final = frozenset({Phase.SPAWNING, Phase.LOADING, Phase.PROVING})
_SERVING: Final = frozenset({Phase.READY, Phase.DRAINING})
_GIVING_UP: Final = frozenset({Phase.CLEARING_TO_RETRY, Phase.CLEARING_TO_FAIL, Phase.CLEARING_TO_STEP})


def _words(line: str) -> str:
    """Return the beginning of a log line without llama-server's time and level (``0.01.019.005 I ``)."""
    return re.sub(r"^[\d.]+ [A-Z] ", "", line.strip())[:_N_PROGRESS]


class ServeResult(Noun, frozen=True):
    """How serving ended when it did not fail: ``was_ready`` and ``restarts`` count over all engines of this run."""

    was_ready: bool
    n_restarts: int


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
        self._use(command)
        self._plan = plan
        self._service = service
        self._n_spawns = 0
        self._oom_kills = OomKills()
        self._vigil = Vigil(options.strain)
        self._offered: Plan | None = None
        self._load_s: float | None = None
        self._instance = instance
        self._options = options
        self._phase = Phase.IDLE
        self._queue: asyncio.Queue[tuple[Event, int, Failure | None]] = asyncio.Queue()
        self._generation = 0
        self._tether: Tether | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._duties: set[asyncio.Task[None]] = set()
        self._stopped_by: str | None = None
        self._failure: Failure | None = None
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
        self._account = Account(instance, command.address, plan, options, report)
        self._account.tell(self._publish)
        self.notify = self._account.notify

    def _publish(self, record: InstanceRecord) -> None:
        if self._service is not None:
            self._service.front.publish(record, self._load_s, self._vigil.own_bytes())

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
        return ServeResult(was_ready=self._was_ready, n_restarts=self._account.record.n_restarts)

    def _sampling(self, loop: asyncio.AbstractEventLoop) -> contextlib.AbstractContextManager[None]:
        """Look at the plan's memories for as long as the instance lives, where something can follow from it."""
        if self._service is None:
            return contextlib.nullcontext()
        # Imported here: an engine without a front does not need it.
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
        if strain is None or self._plan is None or self._service is None:
            return
        failure = failures.of_strain(strain, self._plan)
        self.notify("memory.strained", failure.message, memory=strain.memory, free_bytes=strain.free_bytes)
        self._start_task(self._ask_before_draining(self._service, failure))

    async def _ask_before_draining(self, service: Service, failure: Failure) -> None:
        """Give up a serving engine only for a plan that is known: where there is none, it goes on while it can."""
        assert failure.setback is not None  # noqa: S101 - strain is one
        setback = replace(failure.setback, own_bytes=dict(self._vigil.own_bytes()))
        answer = await asyncio.to_thread(service.stepper.next_plan, setback)
        if isinstance(answer, Refusal):
            self.notify("ladder.none", f"{failure.message}; it serves on, for {answer.fact}")
            return
        self._post(Event.STRAINED, replace(failure, step=answer))

    def _on_blind(self, error: Exception) -> None:
        self.notify("memory.blind", f"memory can no longer be watched: {type(error).__name__}: {error}")

    async def _open_front(self) -> None:
        """Have the endpoint before the engine: what clients ask meanwhile waits, and the address is known."""
        if self._service is None:
            return
        try:
            self._account.update(address=await self._service.front.start())
        except LauncherError as error:
            self._account.update(state=State.FAILED, reason=error.message)
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

    def _post(self, event: Event, fault: Failure | None = None, *, world: bool = False) -> None:
        """Queue an event of the present engine, or of the world, which outlives engines."""
        self._queue.put_nowait((event, 0 if world else self._generation, fault))

    def _advance(self, event: Event, fault: Failure | None) -> None:
        before = self._phase
        after, effects = step(before, event)
        if event in {Event.START, Event.RETRY, Event.STEPPED} and after is Phase.SPAWNING:
            self._generation += 1
        self._phase = after
        if after is not before:
            self._on_change(before, after, event, fault)
        for effect in effects:
            self._carry_out(effect)

    def _on_change(self, before: Phase, after: Phase, event: Event, fault: Failure | None) -> None:
        if after not in _LOADING or before in {Phase.BACKOFF, Phase.STEPPING}:
            self._cancel_tasks()
        if before in _SERVING and after not in _SERVING and self._service is not None:
            self._service.front.detach(fault.message if fault is not None else f"it is {state_of(after)}")
        if fault is not None:
            self._on_fault(after, event, fault)
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

    def _on_fault(self, after: Phase, event: Event, fault: Failure) -> None:
        """Keep why the engine is given up, or is about to be."""
        if after is Phase.DRAINING:
            self._failure = fault
            return
        if after not in _GIVING_UP:
            return
        if after is not Phase.CLEARING_TO_STEP:  # a step has its own bound: each is smaller than the last
            self._failure = fault
            self._remember_death()
        elif fault.leads_on:  # else it hung while it drained, and why it drains leads on
            self._failure = fault
        self.notify("engine.failed", fault.message, cause=event.value)

    def _describe_change(self, before: Phase, after: Phase) -> None:
        changes: dict[str, object] = {"state": state_of(after)}
        if after in {Phase.BACKOFF, Phase.STEPPING, Phase.DRAINING, Phase.FAILED} and self._failure is not None:
            changes |= {"reason": self._failure.message, "details": self._failure.lines}
        elif after in {Phase.READY, Phase.STOPPED}:
            changes |= {"reason": None, "details": ()}
        if after is Phase.READY:
            changes["ready_at"] = time.time()
        elif after not in _LOADING:
            changes["ready_at"] = None if after is not Phase.STOPPING else self._account.record.ready_at
        if after not in GUARDED:
            changes |= {"engine": None, "guard": None}
        if before is Phase.BACKOFF and after is Phase.SPAWNING:
            changes["n_restarts"] = self._account.record.n_restarts + 1
        if after is Phase.SPAWNING or state_of(after) is not state_of(before):
            self._account.update(**changes)

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
        fault = Failure(message=f"the supervisor failed: {type(error).__name__}: {error}")
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
            self._post(Event.SPAWN_FAILED, failures.of_error(error))
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
                on_lost=lambda: self._post(Event.GUARD_LOST, failures.of_lost_guard(tuple(self._ring))),
            )
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            fault = Failure(message=f"no process can be started: {why}")
            self._post(Event.SPAWN_FAILED, fault)
            self._post(Event.GONE)

    def _renew_command(self) -> None:
        """Give every engine but the first a command of its own, for the plan of now and on a port that is free now."""
        self._n_spawns += 1
        if self._service is not None and self._plan is not None and self._n_spawns > 1:
            self._use(self._service.make_command(self._plan, tell=not self._vigil.is_known(self._plan)))

    def _use(self, command: Command) -> None:
        self._command = command
        self._env = environment_of(command)
        self._secrets = secrets_of(self._env)

    def _is_overdrawn_at_once(self) -> bool:
        """Judge the start by what is free now; nothing is started where it is known not to fit.

        Of an engine that will tell its own figure a misfit by the plan's alone is not known yet. What is free was
        measured for the plan just before the first start; later it must have been seen since the last engine went.
        """
        if self._service is None or self._plan is None or (self._n_spawns > 1 and not self._vigil.is_fresh):
            return False
        verdict = self._vigil.foresee(self._plan)
        if verdict.fits or (self._command.tells_memory and not verdict.confirmed):
            return False
        self._post(Event.OVERDRAWN, failures.of_preflight(verdict, self._plan))
        self._post(Event.GONE)
        return True

    def _on_report(self, report: dict[str, int | str]) -> None:
        """Turn what the guard says into events."""
        number = report.get("errno")
        why = os.strerror(int(number)).lower() if number is not None else ""
        match report["event"]:
            case "spawned":
                assert self._tether is not None  # noqa: S101 - it is who reports
                engine = identify(int(report["pid"]))
                self._oom_kills = OomKills.of(int(report["pid"]))
                self._account.update(guard=self._tether.guard, engine=engine)
                self._notify_spawned(engine, int(report["pid"]))
                self._post(Event.SPAWNED)
            case "spawn-failed":
                message = f"{self._command.argv[0]} cannot be executed: {why}"
                self._post(Event.SPAWN_FAILED, Failure(message=message))
            case "record-failed":
                message = f"cannot write in {self._instance.path}: {why}"
                help_ = "free some disk space, or set LAUNCHER_STATE_DIR to a folder that can be written"
                self._post(Event.SPAWN_FAILED, Failure(kind=StateError, message=message, help=help_))
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
        self._account.update(last_exit=how)
        expected = self._phase is Phase.STOPPING or self._phase in _GIVING_UP
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
        plan = None if self._service is None else self._plan
        failure = failures.of_end(found, how, plan=plan, name=self._instance.name, log=tuple(self._ring))
        is_own_port = found.cause is Cause.PORT and self._service is not None  # the next start has another
        if failure.setback is not None:
            self._post(Event.OUT_OF_MEMORY, failure)
        else:
            may_mend = found.answer is faults.Answer.RESTART or is_own_port
            self._post(Event.DIED if may_mend else Event.DIED_FOR_GOOD, failure)

    def _on_line(self, line: str) -> None:
        line = redact(line, self._secrets)
        self._n_lines += 1
        self._ring.append(line)
        self._account.write_line(line)
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
            self._post(Event.OVERDRAWN, failures.of_preflight(verdict, plan))
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
        self._post(event, Failure(kind=PortInUseError, message=message, help=help_))

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
                    self._post(Event.HUNG, Failure(message=message, lines=lines))
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
        if found is None or found.answer is not faults.Answer.STEP_DOWN or self._plan is None:
            return False
        self._post(Event.STRAINED, failures.of_sickness(found, self._plan))
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
                doing = "loading" if self._phase is Phase.LOADING else "answering its first request"
                log = tuple(self._ring)
                self._post(Event.STALLED, failures.of_stall(doing, limit_s, name=self._instance.name, log=log))
                return

    def _check_early(self) -> None:
        """End a load whose layers are already known to be in the wrong place: the rest of it may take minutes."""
        realised = placement.parse_placement(self._placement_lines)
        difference = placement.mismatch(realised, self._command.expected_gpu_layers, None)
        if difference is not None and realised.has_weights:
            self._post(Event.MISPLACED, failures.of_placement(difference, tuple(self._placement_lines)))

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

    async def _prove(self) -> None:
        """Compare the realised placement with the plan, then ask for one token."""
        from launcher.supervisor import readiness  # noqa: PLC0415 - loaded by now

        if self._tether is not None:
            self._tether.drain()
        realised = placement.parse_placement(self._placement_lines)
        command = self._command
        difference = placement.mismatch(realised, command.expected_gpu_layers, command.expected_footprint)
        if difference is not None:
            self._post(Event.MISPLACED, failures.of_placement(difference, tuple(self._placement_lines)))
            return
        async with readiness.open_session(command, self._env) as session:
            wrong = await readiness.send_canary(session, command.canary_path, command.canary_body)
        if wrong is None:
            self._post(Event.PROVED)
        else:
            lines = faults.telling_lines(tuple(self._ring))
            self._post(Event.UNPROVED, Failure(message=wrong, lines=lines))

    def _announce(self) -> None:
        self._was_ready = True
        self._n_lines_loading = self._n_lines
        self._ready_since_s = time.monotonic()
        elapsed_s = time.monotonic() - self._started_s
        self._load_s = elapsed_s
        realised = placement.parse_placement(self._placement_lines)
        address = self._account.record.address
        if self._service is not None:
            from launcher.supervisor.readiness import base_url  # noqa: PLC0415 - loaded by now

            self._service.front.attach(base_url(self._command.address), key_of(self._command, self._env))
            self._vigil.begin()
            self._start_task(self._watch_health(self._service.front))
            self._start_task(self._review(self._service))
        if self._service is not None and self._plan is not None and not self._vigil.has_told(self._plan):
            self._compare_with_plan(self._plan, realised)
        self.notify(
            "engine.ready",
            f"ready after {elapsed_s:.1f} s at http://{address.host}:{address.port}",
            host=address.host,
            port=address.port,
            elapsed_s=round(elapsed_s, 3),
            n_gpu_layers=realised.realised_gpu_layers,
            placement=placement.describe(realised),
        )

    def _compare_with_plan(self, plan: Plan, realised: placement.Placement) -> None:
        """Say how far the plan's figure was off, for an engine that tells none before it has loaded."""
        told = told_after_load(realised)
        if told is not None:
            off = {need.name: need.unaccounted_bytes for need in judge(plan, {}, told).needs}
            self.notify("engine.unconfirmed", "loaded by the plan's figure", unaccounted_bytes=str(off))

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
            assert self._failure is not None  # noqa: S101 - backoff is reached by a death alone
            self._failure = failures.of_many_deaths(self._failure, len(self._deaths))
            self._post(Event.EXHAUSTED)
            return
        self.notify("instance.backoff", f"starting again in {delay_s:.1f} s", delay_s=round(delay_s, 3))
        self._start_task(self._retry_after(delay_s))

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
            self._publish(self._account.record)
            if news := self._vigil.news():
                await asyncio.to_thread(service.stepper.learn_use, self._plan, news)
            if self._account.record.n_ladder_steps and not self._vigil.is_strained():
                await self._look_up(service, self._plan)

    async def _look_up(self, service: Service, plan: Plan) -> None:
        """Offer a better plan; take it, where the profile says so, once it has been on offer at two looks in a row."""
        better = await asyncio.to_thread(service.stepper.better_plan, plan, self._vigil.own_bytes())
        was_offered, self._offered = better is not None and self._offered == better, better
        offer = None if better is None else f"there is room again: {'; '.join(describe_step(plan, better))}"
        if self._account.record.offer != offer:
            self._account.update(offer=offer)
            if offer is not None:
                self.notify("ladder.offer", offer)
        if service.step_up and was_offered and better is not None and offer is not None:
            step_up = Step(plan=better, story=(offer,), is_up=True)
            self._post(Event.ROOMIER, Failure(message=offer, step=step_up))

    async def _replan(self) -> None:
        """Take the step that was found before, or ask for one, in a thread: the machine has to be measured."""
        failure = self._failure
        assert self._service is not None and failure is not None  # noqa: S101, PT018 - something led here
        answer: Step | Refusal | None = failure.step
        if answer is None:
            assert failure.setback is not None  # noqa: S101 - no other failure leads here
            try:
                answer = await asyncio.to_thread(self._service.stepper.next_plan, failure.setback)
            except LauncherError as error:
                self._failure = failures.of_error(error)
                self._post(Event.FOOT, self._failure)
                return
        if isinstance(answer, Refusal):
            self._failure = failures.of_refusal(answer)
            self._post(Event.FOOT, self._failure)
        else:
            self._take(answer)

    def _take(self, step: Step) -> None:
        """Make a step's plan the one to serve, and say so; one that has to wait is the restart policy's."""
        if step.after_backoff:
            self._remember_death()
            self.notify("ladder.wait", f"waiting: {'; '.join(step.story)}")
            self._post(Event.CROWDED)
            return
        self._plan = step.plan
        n_before = self._account.record.n_ladder_steps
        if step.is_up:
            event, what, n_steps = "ladder.up", "back up", 0
        elif step.is_retry:
            event, what, n_steps = "ladder.retry", "once more", n_before
        else:
            event, what, n_steps = "ladder.step", f"step {n_before + 1} down", n_before + 1
        story = step.story if n_steps else ()
        self._account.update(plan=without_tensors(step.plan), story=story, n_ladder_steps=n_steps, offer=None)
        self.notify(event, f"{what}: {'; '.join(step.story)}", n_steps=n_steps)
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
        self._account.close()
