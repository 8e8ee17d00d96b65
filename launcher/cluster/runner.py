"""Serves one application of a Ray cluster until it is stopped or fails: looks, asks the machine, carries out its moves.

The only clock of the room. Ray places and restarts replicas; what is done here is to say how it stands, to let requests through
while somebody answers, and to take the application off at the end. It must not decide what follows from a look (`machine`),
what an answer means (`following`), or how others' applications are kept (`applications`).
"""

import asyncio
import signal
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import aiohttp

from launcher.cluster import NODES, STATUS, VERSION, proof, submission
from launcher.cluster.dashboard import Dashboard
from launcher.cluster.demands import find_demand, parse_demands
from launcher.cluster.following import Look, Stage, describe, describe_with_reason, look_at
from launcher.cluster.machine import Move, Phase, decide
from launcher.cluster.ray_nodes import list_alive, read_session
from launcher.cluster.replica_logs import ReplicaLogs
from launcher.cluster.serve_details import Application, ServeDetails, find_proxies
from launcher.cluster.serving import Account, Chance, FollowOptions, Front, Room, Serving, Signals
from launcher.domain import State
from launcher.errors import ClusterError, EngineFailedError, ForeignApplicationError, LauncherError

_OTHERWISE: Final = (
    "GPUs and memory would suffice: processors, or another resource that Ray counts, are taken; see `ray status`"
)
_N_TELLING: Final = 20
"""Lines of the replicas' logs that a failure is told with."""


class ApplicationRun:
    """The one owner of such an instance's state; lives in one event loop."""

    def __init__(
        self,
        serving: Serving,
        dashboard: Dashboard,
        front: Front,
        account: Account,
        *,
        fetch_log: Callable[[str], bytes],
        explain: Callable[[], Room],
        options: FollowOptions,
    ) -> None:
        """Hold the parts; nothing is done yet.

        ``fetch_log`` asks the dashboard beside everything else: a node that is gone lets whoever asks for its logs wait.
        """
        self._fetch_log = fetch_log
        self._serving, self._dashboard, self._front, self._account = serving, dashboard, front, account
        self._explain, self._options = explain, options
        self._phase = Phase.DEPLOYING
        self._stop = asyncio.Event()
        self._stopped_by: str | None = None
        self._is_forced = False
        self._is_blind = False
        self._is_replaced = False
        self._is_sent = False
        self._proxy: str | None = None
        self._session = ""
        self._look = Look(stage=Stage.GONE)
        self._told = ""
        self._nodes: dict[str, str] = {}
        self._lines: deque[str] = deque(maxlen=_N_TELLING)
        self._n_lines = 0
        self._seen: tuple[object, ...] = ()
        self._since_s = self._began_s = time.monotonic()
        self._explained_s: float | None = None
        self._demand: str | None = None

    async def run(self, signals: Signals) -> None:
        """Serve until a signal; raise what made it fail. Whatever happens, the application is taken off at the end."""
        with signals(asyncio.get_running_loop(), self._on_signal):
            try:
                address = await self._front.start()
                self._account.update(address=address)
                await self._until_stopped()
            except LauncherError as error:
                self._account.update(state=State.FAILED, reason=error.message, details=error.details)
                await self._leave(error)
                raise
            except BaseException:
                await self._leave(None)
                raise
            await self._leave(None)

    async def _until_stopped(self) -> None:
        async with aiohttp.ClientSession(trust_env=False) as session:
            works = [
                asyncio.create_task(work) for work in (self._live(session), self._follow_logs(), self._stop.wait())
            ]
            try:
                done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for work in works:
                    work.cancel()
                await asyncio.gather(*works, return_exceptions=True)
            for work in done:
                work.result()

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopped_by is None:
            self._stopped_by = number.name
            self._stop.set()
        else:
            self._is_forced = True

    # --- Looking ---

    async def _live(self, session: aiohttp.ClientSession) -> None:
        await self._submit()
        while True:
            details = await self._read()
            if details is not None:
                await self._advance(session, details)
            await asyncio.sleep(self._options.poll_s)

    async def _submit(self) -> None:
        """Have Ray run it; not left in the middle, or what was sent could come after it was taken off."""
        work = asyncio.create_task(
            asyncio.to_thread(submission.submit, self._dashboard, self._serving.application, self._serving.proxies)
        )
        self._is_sent = True
        try:
            sent = await asyncio.shield(work)
        except ForeignApplicationError:
            self._is_sent = False
            raise
        except asyncio.CancelledError:
            await asyncio.gather(work, return_exceptions=True)
            raise
        self._is_replaced = sent.was_other
        self._session = await asyncio.to_thread(self._read_session)
        what = "taken over" if sent.was_there else "submitted"
        self._account.notify(
            "cluster.submitted", f"the application `{self._serving.name}` is {what} at {self._dashboard.url}"
        )
        if not sent.was_started and self._serving.proxies.host != "127.0.0.1":
            text = f"Ray Serve was started: its proxies listen on port {self._serving.proxies.port} of {self._serving.proxies.host} and ask for no key"
            self._account.notify("cluster.exposed", text)
        self._tell_lost(sent.lost)

    async def _submit_again(self) -> None:
        """Tell a cluster that was started again; one that does not take it yet is told at the next look."""
        self._account.notify("cluster.restarted", "the cluster was started anew; the application is submitted again")
        try:
            await self._submit()
        except ForeignApplicationError:
            raise
        except ClusterError as error:
            self._account.notify("cluster.unreachable", error.message)

    async def _is_anew(self) -> bool:
        """Return whether this is another life of the cluster; where Serve alone is gone, somebody shut it down."""
        try:
            return await asyncio.to_thread(self._read_session) != self._session
        except ClusterError:
            return False

    def _read_session(self) -> str:
        return read_session(self._dashboard.url, version=self._dashboard.get(VERSION))

    def _tell_lost(self, lost: tuple[str, ...]) -> None:
        if lost:
            names = ", ".join(f"`{name}`" for name in lost)
            self._account.notify(
                "cluster.conflict", f"somebody deployed at the same moment, and Ray no longer runs as declared: {names}"
            )

    async def _read(self) -> ServeDetails | None:
        """Look; a dashboard that does not answer is no death: the application runs without it."""
        try:
            details = await asyncio.to_thread(submission.read_serve, self._dashboard)
        except ClusterError as error:
            self._since_s = time.monotonic()
            if not self._is_blind:
                self._is_blind = True
                self._account.notify("cluster.unreachable", f"{error.message}; the application is left as it is")
            return None
        if self._is_blind:
            self._is_blind = False
            self._account.notify("cluster.reachable", f"{self._dashboard.url} answers again")
        return details

    async def _follow_logs(self) -> None:
        """Keep the replicas' lines where `launch logs` reads them, for as long as there is an instance."""
        logs = ReplicaLogs(self._fetch_log)
        while True:
            replicas = self._look.replicas
            for line in await asyncio.to_thread(lambda: list(logs.read(replicas))):  # noqa: B023 - awaited at once
                self._account.write_line(line)
                self._lines.append(line)
                self._n_lines += 1
            await asyncio.sleep(self._options.logs_s)

    # --- What follows ---

    async def _advance(self, session: aiohttp.ClientSession, details: ServeDetails) -> None:
        self._look = look = look_at(details, self._serving.name)
        is_anew = not look.answers and not details.is_started and await self._is_anew()
        match decide(self._phase, look, is_anew=is_anew, is_replaced=self._is_replaced):
            case Move.WAIT:
                await self._wait(look, details)
            case Move.PROVE:
                await self._prove(session, look, details)
            case Move.KEEP:
                await self._keep(session, look, details)
            case Move.LOSE:
                self._lose(look)
            case Move.SUBMIT:
                if self._phase is Phase.READY:
                    self._lose(look)
                await self._submit_again()
            case Move.GIVE_UP:
                raise self._failure(look)

    async def _wait(self, look: Look, details: ServeDetails) -> None:
        words = describe_with_reason(look)
        if words != self._told:
            self._told = words
            self._account.notify("engine.loading", words, transient=self._phase is Phase.DEPLOYING)
        quiet_s = self._quiet_s(look)
        await self._ask_scheduler(look, details, quiet_s)
        if self._phase is Phase.RETURNING:
            return
        if self._demand is not None:
            await self._judge_room(look, self._demand, quiet_s)
        elif quiet_s > self._options.quiet_s:
            message = f"nothing has changed for {quiet_s:.0f} s: {words}"
            raise EngineFailedError(message, help=self._help(), details=tuple(self._lines))

    def _quiet_s(self, look: Look) -> float:
        """Return for how long nothing has changed."""
        seen = (look.stage, look.n_running, look.n_wanted, len(look.replicas), self._n_lines)
        if seen != self._seen:
            self._seen, self._since_s, self._explained_s = seen, time.monotonic(), None
        return time.monotonic() - self._since_s

    async def _ask_scheduler(self, look: Look, details: ServeDetails, quiet_s: float) -> None:
        """Ask what it has not placed: a replica without a node may as well be starting."""
        application = details.applications.get(self._serving.name)
        if look.stage is not Stage.WAITING or application is None or quiet_s < self._options.explain_s:
            self._demand = None
            return
        demand, gone = await asyncio.to_thread(self._read_demand, application)
        if demand != self._demand and demand is not None and self._phase is Phase.RETURNING:
            lost = f"; node {', '.join(gone)} is gone" if gone else ""
            reason = (
                f"no node has room for a replica, which takes {demand}{lost}: Ray brings it back as soon as one has"
            )
            self._account.update(reason=reason)
            self._account.notify("cluster.waiting", reason)
        self._demand = demand

    def _read_demand(self, application: Application) -> tuple[str | None, list[str]]:
        """Return what waits for a node, and which nodes with replicas are gone; nothing where nobody tells."""
        url = self._dashboard.url
        try:
            demand = find_demand(parse_demands(self._dashboard.get(STATUS), url), application)
            alive = list_alive(url, nodes=self._dashboard.get(NODES))
        except ClusterError:
            return None, []
        return demand, sorted({ip for node, ip in self._nodes.items() if node not in alive})

    async def _judge_room(self, look: Look, demand: str, quiet_s: float) -> None:
        """Ask the planner whether a replica that waits for a node can ever have one; give up at once where it cannot."""
        is_last = quiet_s > self._options.unplaced_s
        if self._explained_s is not None and not is_last:
            return
        self._explained_s = quiet_s
        try:
            room = await asyncio.to_thread(self._explain)
        except LauncherError:
            room = Room(Chance.NOW)
        words = f"no node has room for a replica, which takes {demand}"
        words += f"; {room.words}" if room.words else ""
        if is_last or room.chance is Chance.NEVER:
            help_ = room.help or (_OTHERWISE if room.chance is Chance.NOW else self._help())
            raise EngineFailedError(words, help=help_, details=room.details or look.details)
        self._account.notify("cluster.waiting", words)

    async def _prove(self, session: aiohttp.ClientSession, look: Look, details: ServeDetails) -> None:
        """Ask it through each proxy that is healthy, and let requests through by the first that brings a token back."""
        fault = "none of Ray Serve's proxies is healthy"
        for proxy in find_proxies(details):
            found = await self._try(session, proxy)
            if found is None:
                self._attach(proxy, look)
                return
            fault = found
        if fault != self._told:
            self._told = fault
            self._account.notify("engine.unproved", f"not ready: {fault}")
        if self._phase is Phase.DEPLOYING and self._quiet_s(look) > self._options.unplaced_s:
            message = f"it runs and does not answer: {fault}"
            raise EngineFailedError(message, help=self._help(), details=tuple(self._lines))

    async def _try(self, session: aiohttp.ClientSession, proxy: str) -> str | None:
        serving = self._serving
        return await proof.find_fault(
            session, self._base_url(proxy), serving.model, serving.canary_path, serving.canary_body
        )

    def _base_url(self, proxy: str) -> str:
        return f"{proxy}{self._serving.application['route_prefix']}"

    def _attach(self, proxy: str, look: Look) -> None:
        self._proxy = proxy
        self._front.attach(self._base_url(proxy), None, is_behind_proxy=True)
        self._is_replaced = False
        self._told = ""
        was, self._phase = self._phase, Phase.READY
        if was is Phase.READY:
            self._account.notify("cluster.proxy", f"requests go by {proxy} now")
            return
        now_s = time.monotonic()
        address = self._account.record.address
        self._account.update(
            state=State.READY, ready_at=time.time(), reason=None, details=(), slow=self._shortfall(look)
        )
        again = "ready again" if was is Phase.RETURNING else "ready"
        self._account.notify(
            "engine.ready",
            f"{again} after {now_s - self._began_s:.1f} s at http://{address.host}:{address.port}, by {proxy}: {describe(look)}",
            host=address.host,
            port=address.port,
            elapsed_s=round(now_s - self._began_s, 3),
        )

    async def _keep(self, session: aiohttp.ClientSession, look: Look, details: ServeDetails) -> None:
        """Tell of copies that went or came; go by another proxy where the one that is used is lost."""
        self._nodes.update({each.node_id: each.node_ip or "" for each in look.replicas if each.node_id})
        slow = self._shortfall(look)
        if slow != self._account.record.slow:
            self._account.update(slow=slow)
            self._account.notify("instance.degraded" if slow else "instance.restored", slow or describe(look))
        proxies = find_proxies(details)
        if self._proxy in proxies and await proof.is_up(session, self._proxy or ""):
            return
        for proxy in proxies:
            if proxy != self._proxy and await self._try(session, proxy) is None:
                self._attach(proxy, look)
                return

    @staticmethod
    def _shortfall(look: Look) -> str | None:
        if look.stage is Stage.RUNNING or look.n_running >= look.n_wanted:
            return None
        return describe_with_reason(look)

    def _lose(self, look: Look) -> None:
        """Hold requests until Ray has brought back what was lost; it does so by itself as soon as a node has room."""
        reason = f"no replica answers: {look.reason or describe(look)}"
        self._front.detach(reason)
        self._phase, self._proxy, self._told = Phase.RETURNING, None, ""
        self._began_s = time.monotonic()
        record = self._account.record
        self._account.update(
            state=State.STARTING, reason=reason, n_restarts=record.n_restarts + 1, ready_at=None, slow=None
        )
        self._account.notify("engine.failed", f"{reason}; requests wait until Ray has brought one back")

    def _failure(self, look: Look) -> EngineFailedError:
        if look.stage is Stage.FAILED:
            message = f"Ray could not run it: {look.reason or 'it does not say why'}"
            return EngineFailedError(message, help=self._help(), details=(*look.details, *self._lines)[-_N_TELLING:])
        message = f"somebody took the application `{self._serving.name}` off the cluster"
        return EngineFailedError(message, help="serve it again, once that is settled")

    def _help(self) -> str:
        return f"read the replicas' lines with `launch logs {self._account.record.name}`, or in {self._dashboard.url}"

    # --- Leaving ---

    async def _leave(self, error: LauncherError | None) -> None:
        """Let running requests end, then take the application off; say so where that was not possible."""
        if error is None:
            by = f" ({self._stopped_by})" if self._stopped_by else ""
            self._account.notify("instance.stopping", f"stopping{by}")
            self._account.update(state=State.STOPPING)
        await self._front.stop(0.0 if self._is_forced or error else self._options.drain_s, "the server is stopping")
        left = await self._remove() if self._is_sent else None
        if left is not None:
            self._account.notify("cluster.left", left)
        elif error is None:
            self._account.notify("instance.stopped", f"stopped; `{self._serving.name}` is off the cluster")
        if error is None:
            changes: dict[str, Any] = {"reason": left} if left else {}
            self._account.update(state=State.FAILED if left else State.STOPPED, **changes)
        if left is None:
            self._account.update(application=None)
        if error is None and left is not None:
            raise ClusterError(
                left, help=f"`launch stop {self._account.record.name} --cluster {self._dashboard.url}` tries it again"
            )

    async def _remove(self) -> str | None:
        """Take it off; return what is wrong where that failed."""
        try:
            sent = await asyncio.to_thread(
                submission.remove,
                self._dashboard,
                self._serving.name,
                timeout_s=self._options.remove_s,
                is_forced=lambda: self._is_forced,
            )
        except ClusterError as error:
            return f"the application `{self._serving.name}` may still be on the cluster: {error.message}"
        self._tell_lost(sent.lost)
        return None
