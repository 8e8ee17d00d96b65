"""Keep one worker of llama.cpp's RPC running until it is told to stop.

It must not know who uses the worker, nor what its lines mean. A worker that ends is started again by the restart policy:
engines lose it whenever one of them sends what it cannot stand, and find it again.
"""

import asyncio
import contextlib
import time
from collections import deque
from typing import Any, Final

from launcher.domain import Address, ProcessId, State
from launcher.errors import EngineFailedError
from launcher.inventory.environment import inherited, redact
from launcher.store import Instance
from launcher.supervisor import faults
from launcher.supervisor.account import Account
from launcher.supervisor.checks import check_port
from launcher.supervisor.environment import known_secrets
from launcher.supervisor.guard import descendants
from launcher.supervisor.holding import Holding
from launcher.supervisor.notices import Report
from launcher.supervisor.options import RunOptions
from launcher.supervisor.processes import probe_listeners, socket_owners
from launcher.supervisor.reclaim import reclaim
from launcher.supervisor.restarts import Death, next_delay_s, remember
from launcher.supervisor.signals import handling
from launcher.supervisor.tether import Tether

_LOOK_S: Final = 0.05
"""Between two looks at whether it listens; each reads /proc/net/tcp."""
_N_LINES: Final = 200
_OPTIONS: Final = RunOptions()


def serve_worker(
    argv: tuple[str, ...],
    env: dict[str, str],
    *,
    address: Address,
    instance: Instance,
    report: Report,
    options: RunOptions = _OPTIONS,
) -> None:
    """Run a worker in the foreground until SIGINT, SIGTERM or SIGHUP; the caller holds the instance's lock.

    ``env`` is laid over what is inherited. Whatever happens, nothing of the worker is left running on return.

    Raises:
        EngineFailedError: it ended too often, or never listened.
        PortInUseError, StateError: found before anything was started.
    """
    n_reclaimed = reclaim(instance)
    check_port(address)
    account = Account(instance, address, None, options, report)
    if n_reclaimed:
        account.notify("instance.reclaimed", "ended what an earlier, killed supervisor had left running")
    try:
        keeper = _Keeper(
            argv,
            {**inherited(), **env},
            address=address,
            instance=instance,
            account=account,
            options=options,
        )
        asyncio.run(keeper.run())
    except EngineFailedError as error:
        account.update(state=State.FAILED, reason=error.message, details=error.details, engine=None, guard=None)
        raise
    finally:
        account.close()


class _Keeper:
    """Starts a worker, and starts it again; lives in one event loop."""

    def __init__(
        self,
        argv: tuple[str, ...],
        env: dict[str, str],
        *,
        address: Address,
        instance: Instance,
        account: Account,
        options: RunOptions,
    ) -> None:
        self._argv = argv
        self._env = env
        self._secrets = known_secrets(env)
        self._address = address
        self._instance = instance
        self._account = account
        self._options = options
        self._stop = asyncio.Event()
        self._lines: deque[str] = deque(maxlen=_N_LINES)

    async def run(self) -> None:
        with handling(asyncio.get_running_loop(), lambda _: self._stop.set()):
            await self._keep()
        self._account.update(state=State.STOPPED, reason=None, details=(), engine=None, guard=None)
        self._account.notify("instance.stopped", "stopped; nothing of the worker is left")

    async def _keep(self) -> None:
        deaths: tuple[Death, ...] = ()
        while not self._stop.is_set():
            how, ready_s = await self._live()
            if self._stop.is_set():
                return
            deaths = remember(deaths, Death(at_s=time.monotonic(), ready_s=ready_s), self._options.restarts)
            reason = f"the worker ended ({how})"
            self._account.notify("engine.exited", reason)
            delay_s = next_delay_s(deaths, self._options.restarts)
            if delay_s is None:
                raise EngineFailedError(
                    f"{reason}, {len(deaths)} times" if len(deaths) > 1 else reason,
                    help=f"read its whole log with `launch logs {self._instance.name}`",
                    details=faults.telling_lines(tuple(self._lines)),
                )
            self._account.update(state=State.BACKOFF, reason=reason, engine=None, guard=None)
            self._account.notify("instance.backoff", f"starting again in {delay_s:.1f} s", delay_s=round(delay_s, 3))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), delay_s)
            self._account.update(n_restarts=self._account.record.n_restarts + 1)

    async def _live(self) -> tuple[str, float | None]:
        """Run one process until it ends or has to; return how it ended and for how long it listened."""
        try:
            holding = Holding(
                self._argv,
                self._env,
                instance=self._instance,
                orphan_grace_s=self._options.orphan_grace_s,
                on_line=self._on_line,
            )
        except OSError as error:
            return (error.strerror or str(error)).lower(), None
        try:
            ready_s = await self._watch(holding)
            return holding.ended.result() if holding.ended.done() else "it never listened", ready_s
        finally:
            await holding.close(self._options.grace_s, self._options.guard_patience_s)

    async def _watch(self, holding: Holding) -> float | None:
        """Wait for the end of the worker or of the wish for it; return for how long it listened."""
        self._account.update(state=State.STARTING, guard=holding.tether.guard)
        stopped = asyncio.ensure_future(self._stop.wait())
        listens = asyncio.ensure_future(self._await_listening(holding.tether))
        ends: set[asyncio.Future[Any]] = {holding.ended, stopped}
        try:
            done, _ = await asyncio.wait(
                {*ends, listens}, timeout=self._options.stall_timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if listens not in done:
                return None
            since_s = time.monotonic()
            self._announce(holding.process)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            return time.monotonic() - since_s
        finally:
            stopped.cancel()
            listens.cancel()

    def _announce(self, worker: ProcessId | None) -> None:
        self._account.update(state=State.READY, engine=worker, ready_at=time.time(), reason=None, details=())
        host, port = self._address.host, self._address.port
        self._account.notify("engine.ready", f"a worker listens at {host}:{port}", host=host, port=port)

    async def _await_listening(self, tether: Tether) -> None:
        """Return once the worker's own socket listens: another process's is none of ours."""
        while True:
            inodes = probe_listeners(self._address.port or 0)
            if inodes and socket_owners(inodes, descendants(tether.pid))[0]:
                return
            await asyncio.sleep(_LOOK_S)

    def _on_line(self, line: str) -> None:
        line = redact(line, self._secrets)
        self._lines.append(line)
        self._account.write_line(line)
