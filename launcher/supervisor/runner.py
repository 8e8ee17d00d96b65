"""Serve one command until it is stopped or fails: feed the machine with events, carry out its effects.

The only one to start and signal serving engines (through the guard), and the only clock. It must not decide what
follows from an event (`machine`), what an engine's looks and lines mean (`watching`, `memory_watch`, `reports`), or how
long to wait (`restarts`).
"""

import asyncio
import contextlib
import secrets as random_source
import signal
import time
from typing import Final

from launcher.domain import Command, InstanceRecord, Noun, Plan, State
from launcher.errors import LauncherError
from launcher.inventory.environment import redact
from launcher.store import Instance
from launcher.supervisor import failures, placement
from launcher.supervisor.account import Account, without_tensors
from launcher.supervisor.allocator import one_heap, set_aside, trim
from launcher.supervisor.checks import check_port, check_start
from launcher.supervisor.environment import environment_of, key_of, known_secrets
from launcher.supervisor.failures import Failure
from launcher.supervisor.guard import become_subreaper
from launcher.supervisor.heard import Heard
from launcher.supervisor.herald import Herald
from launcher.supervisor.machine import ENDS, GUARDED, LOADING, Effect, Event, Phase, state_of, step
from launcher.supervisor.memory_watch import MemoryWatch
from launcher.supervisor.notices import Notice, Report
from launcher.supervisor.options import RunOptions
from launcher.supervisor.placement import Placement
from launcher.supervisor.reclaim import children, end_adopted, reclaim
from launcher.supervisor.replanning import find_step
from launcher.supervisor.reports import Reports
from launcher.supervisor.restarts import Death, next_delay_s, remember, settle
from launcher.supervisor.scratch import Scratch
from launcher.supervisor.service_manager import ServiceManager
from launcher.supervisor.setback import Front, Service, Step
from launcher.supervisor.signals import handling
from launcher.supervisor.strain import Sample
from launcher.supervisor.tasks import Tasks
from launcher.supervisor.telling import changes_of, name_of, notice_of
from launcher.supervisor.tether import Tether
from launcher.supervisor.threads import aside, open_threads
from launcher.supervisor.vigil import Vigil
from launcher.supervisor.watching import EngineWatch, Watched

_LOOK_S: Final = 0.5  # between two looks at whether others gave memory back; it is sampled once a second
_TIDY_S: Final = 60.0
_LEAD_S: Final = 0.05  # before a start what is free is measured anew, which mostly takes less than this
_SERVING: Final = frozenset({Phase.READY, Phase.DRAINING})
_GIVING_UP: Final = frozenset({Phase.CLEARING_TO_RETRY, Phase.CLEARING_TO_FAIL, Phase.CLEARING_TO_STEP})


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
    manager: ServiceManager | None = None,
) -> ServeResult:
    """Serve the command in the foreground until it is stopped; the caller holds the instance's lock.

    With a ``service`` the endpoint is its front's, each engine has a private port, and one that ran out of memory is
    followed by one with a smaller plan; without it the command's own address is served, and that is an end.

    ``manager`` is the service manager that started this process, if one did: it is kept told.

    SIGINT, SIGTERM and SIGHUP end the engine gracefully, a second one at once. ``report`` hears every act, in the
    thread that called. Whatever happens, nothing of the engine is left running on return.

    Raises:
        EngineFailedError: it died too often, stalled, or failed for good; ``details`` holds its telling log lines.
        PlacementError: it placed the model otherwise than planned.
        PortInUseError: another process has the address.
        EngineMissingError, WeightsMissingError, StateError: found before anything was started.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_heap())
        n_reclaimed = reclaim(instance)
        check_start(command, plan, instance.path)
        if service is None:  # a private port that was taken meanwhile costs a restart, not the service
            check_port(command.address)
        if options.adopt_orphans:
            become_subreaper()
        supervision = _Supervision(
            command, instance, plan, options, report, service=service, manager=manager or ServiceManager()
        )
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
        manager: ServiceManager,
    ) -> None:
        self._use(command)
        self._plan = plan
        self._service = service
        self._n_spawns = 0
        self._next: Command | Failure | None = None
        self._vigil = Vigil(options.strain)
        self._load_s: float | None = None
        self._instance = instance
        self._options = options
        self._phase = Phase.IDLE
        self._queue: asyncio.Queue[tuple[Event, int, Failure | None]] = asyncio.Queue()
        self._generation = 0
        self._tether: Tether | None = None
        self._tasks = Tasks(self._on_own_fault)
        self._stopped_by: str | None = None
        self._failure: Failure | None = None
        self._children = children()
        self._deaths: tuple[Death, ...] = ()
        self._began_serving_s = 0.0
        self._ready_s: float | None = None
        self._heard = Heard()
        self._watch: EngineWatch | None = None
        self._reports: Reports | None = None
        self._was_ready = False
        self._scratch = Scratch(instance.path)
        self._herald = Herald(manager, options, is_watched=service is not None)
        self._report = report
        self._account = Account(instance, command.address, plan, options, self._pass_on)
        self._account.tell(self._publish)
        self.notify = self._account.notify
        self._memories = None if service is None else MemoryWatch(service, self._vigil, self._account, self._post)

    def _pass_on(self, notice: Notice) -> None:
        self._herald.hear(notice, self._account.record)
        self._report(notice)

    def _publish(self, record: InstanceRecord) -> None:
        self._herald.describe(record)
        if self._service is not None:
            self._service.front.publish(record, self._load_s, self._vigil.own_bytes())

    # --- The loop ---

    async def run(self) -> ServeResult:
        """Feed the machine until it comes to an end; leave nothing running."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        with contextlib.ExitStack() as stack:
            if self._options.handle_signals:  # first and last: what is opened below is not broken off in the middle
                stack.enter_context(handling(loop, self._on_signal))
            loop.set_default_executor(open_threads())
            stack.enter_context(self._sampling())
            async with self._herald.beating():
                return await self._live()

    async def _live(self) -> ServeResult:
        try:
            await self._open_front()
            await self._prepare(self._command)
            self._post(Event.START)
            while self._phase not in ENDS:
                event, generation, fault = await self._queue.get()
                if generation in {0, self._generation}:
                    self._advance(event, fault)
        finally:
            await self._leave()
        if self._phase is Phase.FAILED and self._failure is not None:
            raise self._failure.to_error()
        return ServeResult(was_ready=self._was_ready, n_restarts=self._account.record.n_restarts)

    def _sampling(self) -> contextlib.AbstractContextManager[None]:
        """Look at the plan's memories for as long as the instance lives, where something can follow from it."""
        if self._memories is None:
            return contextlib.nullcontext()
        return self._memories.sampling(self._plan, top=self._top, on_sample=self._on_sample)

    def _top(self) -> int | None:
        """Return the process that all of the engine's are below."""
        return None if self._tether is None else self._tether.pid

    def _on_sample(self, sample: Sample) -> None:
        if self._memories is None:
            return
        failure = self._memories.judge(sample, self._plan, is_serving=self._phase is Phase.READY)
        if failure is not None:
            self._tasks.start(self._memories.ask_before_draining(failure))

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

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopped_by is None:
            self._stopped_by = number.name
            self._post(Event.STOP, world=True)
        else:
            self._post(Event.FORCE, world=True)

    def _post(self, event: Event, fault: Failure | None = None, /, *, world: bool = False) -> None:
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
        self._herald.take(event, after)

    def _on_change(self, before: Phase, after: Phase, event: Event, fault: Failure | None) -> None:
        if after not in LOADING or before in {Phase.BACKOFF, Phase.STEPPING}:
            self._tasks.cancel()
        if before in _SERVING and after not in _SERVING:
            self._end_serving(after, event)
            if self._service is not None:
                self._service.front.detach(fault.message if fault is not None else f"it is {state_of(after)}")
        if fault is not None:
            self._on_fault(after, event, fault)
        if notice := notice_of(after, self._instance.name, self._failure, self._stopped_by):
            self._account.report(notice)
        if after not in GUARDED:
            self._drop_tether()
        if before in GUARDED and after not in GUARDED:
            self._scratch.clear()
            self._vigil.bury(time.monotonic())
        if changes := changes_of(before, after, self._account.record, self._failure, time.time()):
            self._account.update(**changes)

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

    def _end_serving(self, after: Phase, event: Event) -> None:
        """Count how long the engine was ready, on from those before it that were replaced as planned."""
        self._ready_s = (self._ready_s or 0.0) + time.monotonic() - self._began_serving_s
        if after is Phase.CLEARING_TO_STEP and event is not Event.DRAINED:  # a step that nobody asked for
            self._deaths = settle(self._deaths, self._ready_s, self._options.restarts)
            self._ready_s = 0.0

    def _remember_death(self, *, is_crowded: bool = False) -> None:
        death = Death(at_s=time.monotonic(), ready_s=self._ready_s, is_crowded=is_crowded)
        self._ready_s = None
        self._deaths = remember(self._deaths, death, self._options.restarts)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Effect.SPAWN:
                self._spawn()
            case Effect.WATCH | Effect.POSTPONE_STALL | Effect.PROVE:
                self._have_watched(effect)
            case Effect.ANNOUNCE:
                self._announce()
            case Effect.TERMINATE | Effect.KILL:
                self._end_engine(effect)
            case Effect.CONSULT_POLICY:
                self._consult_policy()
            case Effect.RECLAIM | Effect.DRAIN | Effect.REPLAN:
                work = {Effect.RECLAIM: self._reclaim, Effect.DRAIN: self._drain, Effect.REPLAN: self._replan}[effect]
                self._tasks.start(work(), to_its_end=effect is Effect.RECLAIM)

    def _have_watched(self, effect: Effect) -> None:
        assert self._watch is not None  # noqa: S101 - an engine was spawned before
        if effect is Effect.WATCH:
            self._tasks.start(self._watch.watch_endpoint())
            self._tasks.start(self._watch.watch_progress())
        elif effect is Effect.POSTPONE_STALL:
            self._watch.postpone_stall()
        else:
            if self._tether is not None:
                self._tether.drain()  # where it placed the model may still be in the pipe
            self._tasks.start(self._watch.prove())

    def _end_engine(self, effect: Effect) -> None:
        if self._tether is None:
            return
        self._scratch.note(self._tether.pid)
        patience_s = self._options.guard_patience_s
        if effect is Effect.TERMINATE and self._phase is Phase.STOPPING and self._service is not None:
            self._tasks.start(self._close_front_first(self._service.front, self._tether))
        elif effect is Effect.TERMINATE:
            self._tether.terminate(self._options.grace_s)
            self._tasks.start(self._outlast_guard(self._tether, self._options.grace_s + patience_s))
        else:
            self._tether.kill()
            self._tasks.start(self._outlast_guard(self._tether, patience_s))

    async def _close_front_first(self, front: Front, tether: Tether) -> None:
        """Let running requests end before the engine is asked to; what waits for one is refused at once."""
        await front.stop(self._options.stop_drain_s, "the server is stopping")
        tether.terminate(self._options.grace_s)
        await self._outlast_guard(tether, self._options.grace_s + self._options.guard_patience_s)

    async def _outlast_guard(self, tether: Tether, patience_s: float) -> None:
        """Kill a guard that does not obey: a stopped one, for example. That it is lost then has its own way on."""
        await asyncio.sleep(patience_s)
        tether.kill_guard()

    def _on_own_fault(self, error: BaseException) -> None:
        """End the engine: what watches it has failed, and an engine that nobody watches must not run on."""
        fault = Failure(message=f"the supervisor failed: {type(error).__name__}: {error}")
        self._post(Event.DIED_FOR_GOOD, fault)
        self._end_engine(Effect.KILL)

    # --- Effects ---

    def _spawn(self) -> None:
        self._n_spawns += 1
        command, self._next = self._next, None
        if isinstance(command, Failure):
            self._post(Event.SPAWN_FAILED, command)
            self._post(Event.GONE)
            return
        if command is not None:
            self._use(command)
        if self._is_overdrawn_at_once():
            return
        self._begin_watch()
        token = random_source.token_hex(16)
        try:
            self._tether = Tether(
                self._command.argv,
                {**self._env, **self._scratch.open(self._command)},
                record_path=self._instance.guard_path(token),
                token=token,
                orphan_grace_s=self._options.orphan_grace_s,
                on_report=self._on_report,
                on_line=self._on_line,
                on_lost=lambda: self._post(Event.GUARD_LOST, failures.of_lost_guard(self._heard.lines)),
            )
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            fault = Failure(message=f"no process can be started: {why}")
            self._post(Event.SPAWN_FAILED, fault)
            self._post(Event.GONE)

    def _begin_watch(self) -> None:
        self._heard = Heard()
        engine = Watched(
            name=self._instance.name,
            command=self._command,
            env=self._env,
            plan=self._plan,
            heard=self._heard,
            top=self._top,
            is_replaceable=self._service is not None,
        )
        self._watch = EngineWatch(engine, self._options, self._post, self.notify, on_well=self._herald.see_well)
        self._reports = Reports(engine, self._instance.path, self._account, self._post)
        self._vigil.expect()

    async def _prepare(self, first: Command | None = None) -> None:
        """Make the next engine's command, for the plan of now and on a port that is free now; the first has one.

        One that told already what it takes is not asked again: telling costs it time. Made in a thread: files that have
        changed since their digests were found are read as a whole, which takes minutes.
        """
        if self._service is None or self._plan is None or self._memories is None:
            return
        make, plan = self._service.make_command, self._plan
        try:
            command = first
            if command is None:
                command = await aside(make, plan, tell=not self._vigil.is_known(plan))
            if command.tells_memory and self._memories.recall(plan, command):
                command = await aside(make, plan, tell=False)
        except LauncherError as error:
            self._next = failures.of_error(error)
        else:
            self._next = command

    def _use(self, command: Command) -> None:
        self._command = command
        self._env = environment_of(command)
        self._secrets = known_secrets(self._env)

    def _is_overdrawn_at_once(self) -> bool:
        """Judge the start by what is free now; nothing is started where it is known not to fit.

        Of an engine that will tell its own figure a misfit by the plan's alone is not known yet. What is free was
        measured for the plan just before the first start; later it must have been seen since the last engine went.
        """
        if self._memories is None or self._plan is None or (self._n_spawns > 1 and not self._vigil.is_fresh):
            return False
        verdict = self._vigil.foresee(self._plan)
        if verdict.fits and verdict.confirmed and not self._command.tells_memory:
            self._memories.confirm(verdict, "it fits, by what it told of itself before")
        if verdict.fits or (self._command.tells_memory and not verdict.confirmed):
            return False
        self._post(Event.OVERDRAWN, failures.of_preflight(verdict, self._plan, self._vigil.free_bytes(self._plan)))
        self._post(Event.GONE)
        return True

    def _on_report(self, report: dict[str, int | str]) -> None:
        assert self._reports is not None  # noqa: S101 - the guard was started with them
        is_expected = self._phase is Phase.STOPPING or self._phase in _GIVING_UP
        was_ready = self._phase not in LOADING
        self._reports.take(report, self._tether, was_ready=was_ready, is_expected=is_expected)

    def _on_line(self, line: str) -> None:
        line = redact(line, self._secrets)
        self._account.write_line(line)
        self._heard.take(line, is_loading=self._phase in LOADING)
        if self._phase is Phase.LOADING and self._command.tells_memory:
            self._judge_line(line)

    def _judge_line(self, line: str) -> None:
        if self._memories is not None and self._plan is not None:
            self._memories.hear(self._plan, self._command, line)

    def _announce(self) -> None:
        assert self._watch is not None  # noqa: S101 - it has proved the engine
        self._was_ready = True
        self._heard.begin_serving()
        self._began_serving_s = time.monotonic()
        self._load_s = elapsed_s = self._began_serving_s - self._watch.started_s
        self._scratch.note(self._top())
        realised = self._watch.realised()
        address = self._account.record.address
        if self._service is not None:
            self._attach(self._service, self._watch, realised)
        self.notify(
            "engine.ready",
            f"ready after {elapsed_s:.1f} s at http://{address.host}:{address.port}",
            host=address.host,
            port=address.port,
            elapsed_s=round(elapsed_s, 3),
            n_gpu_layers=realised.realised_gpu_layers,
            placement=placement.describe(realised),
        )
        self._tasks.start(self._tidy())

    def _attach(self, service: Service, watch: EngineWatch, realised: Placement) -> None:
        """Let requests through to the engine, and watch what becomes of it."""
        from launcher.supervisor.readiness import base_url  # noqa: PLC0415 - loaded by now

        service.front.attach(base_url(self._command.address), key_of(self._command, self._env))
        self._vigil.begin()
        self._tasks.start(watch.watch_health(service.front))
        self._tasks.start(watch.watch_answers(service.front))
        if self._memories is not None and self._plan is not None:
            self._memories.compare(self._plan, realised)
            for work in self._memories.watchers(self._plan, realised, self._republish, self._options):
                self._tasks.start(work)

    async def _tidy(self) -> None:
        """Give back what planning, loading and, later, bursts of requests took."""
        set_aside()
        while True:
            await asyncio.sleep(_TIDY_S)
            trim()

    def _republish(self) -> None:
        self._publish(self._account.record)

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
            self._failure = failures.of_many_deaths(self._failure, self._deaths)
            self._post(Event.EXHAUSTED)
            return
        self.notify("instance.backoff", f"starting again in {delay_s:.1f} s", delay_s=round(delay_s, 3))
        self._tasks.start(self._retry_after(delay_s))

    async def _retry_after(self, delay_s: float) -> None:
        """Wait; where the memory is seen to be too little, no longer than until it is seen to be enough."""
        end_s = time.monotonic() + delay_s
        was_short = False
        while (left_s := end_s - _LEAD_S - time.monotonic()) > 0:
            if self._deaths[-1].is_crowded and self._plan is not None and self._vigil.is_fresh:
                fits = self._vigil.foresee(self._plan).fits
                if fits and was_short:
                    break
                was_short = was_short or not fits
            await asyncio.sleep(min(left_s, _LOOK_S))
        else:
            await self._look_before_start()
            await asyncio.sleep(max(0.0, end_s - time.monotonic()))
        await self._prepare()
        self._post(Event.RETRY)

    async def _look_before_start(self) -> None:
        """Know what is free since the last engine went, that a start can be judged without asking the next one."""
        if self._memories is not None and self._plan is not None:
            await self._memories.look_before_start(self._plan)

    # --- Stepping ---

    async def _drain(self) -> None:
        assert self._service is not None  # noqa: S101 - pressure is watched for with a service alone
        reason = self._failure.message if self._failure is not None else "another plan is taken"
        n_left = await self._service.front.drain(self._options.drain_s, reason)
        self.notify("instance.drained", f"drained; {n_left} requests were taken back", n_requests=n_left)
        self._post(Event.DRAINED)

    async def _replan(self) -> None:
        failure = self._failure
        assert self._service is not None and failure is not None  # noqa: S101, PT018 - something led here
        answer = await find_step(self._service.stepper, failure)
        if isinstance(answer, Failure):
            self._failure = answer
            self._post(Event.FOOT, answer)
        else:
            await self._take(answer)

    async def _take(self, step: Step) -> None:
        """Make a step's plan the one to serve, and say so; one that has to wait is the restart policy's."""
        if step.after_backoff:
            self._remember_death(is_crowded=True)
            self.notify("ladder.wait", f"waiting: {'; '.join(step.story)}")
            self._post(Event.CROWDED)
            return
        self._plan = step.plan
        event, what, n_steps = name_of(step, self._account.record.n_ladder_steps)
        story = step.story if n_steps else ()
        self._account.update(plan=without_tensors(step.plan), story=story, n_ladder_steps=n_steps, offer=None)
        self.notify(event, f"{what}: {'; '.join(step.story)}", n_steps=n_steps)
        await self._look_before_start()
        await self._prepare()
        self._post(Event.STEPPED)

    # --- Leaving ---

    def _drop_tether(self) -> None:
        tether, self._tether = self._tether, None
        if tether is not None:
            self._tasks.start(tether.close(), to_its_end=True)

    async def _leave(self) -> None:
        """Let go of everything, also when the loop was left by an exception."""
        self._tasks.cancel()
        self._drop_tether()
        await self._tasks.finish()
        if self._service is not None:
            await self._service.front.stop(0.0, "the server has stopped")

    def close(self) -> None:
        """Close the files."""
        self._account.close()
