"""Hold one engine for as long as a block of code lasts: started by a guard, ready, and gone afterwards.

For measuring, not for serving: nothing is restarted, and no state but the guard's own record is kept. It must not know
what the block does with the engine.
"""

import asyncio
import os
import secrets as random_source
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from launcher.domain import Command, Plan
from launcher.errors import EngineFailedError, PlacementError
from launcher.store import Instance
from launcher.supervisor import faults, placement
from launcher.supervisor.checks import check_start
from launcher.supervisor.environment import environment_of
from launcher.supervisor.logs import redact, secrets_of
from launcher.supervisor.reclaim import reclaim
from launcher.supervisor.tether import Tether

if TYPE_CHECKING:
    import aiohttp

_N_LINES: Final = 4000
_GRACE_S: Final = 5.0
_GUARD_PATIENCE_S: Final = 5.0
_ORPHAN_GRACE_S: Final = 1.0


class _Holding:
    """One engine under its guard, and what it printed."""

    def __init__(self, command: Command, instance: Instance) -> None:
        self._command = command
        self.env = environment_of(command)
        self._secrets = secrets_of(self.env)
        self.lines: deque[str] = deque(maxlen=_N_LINES)
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._signal: int | None = None
        self._gone = asyncio.Event()
        token = random_source.token_hex(16)
        self.tether = Tether(
            command.argv,
            self.env,
            record_path=instance.guard_path(token),
            token=token,
            orphan_grace_s=_ORPHAN_GRACE_S,
            on_report=self._on_report,
            on_line=lambda line: self.lines.append(redact(line, self._secrets)),
            on_lost=self._on_lost,
        )

    def _end(self, how: str) -> None:
        if not self.ended.done():
            self.ended.set_result(how)

    def _on_lost(self) -> None:
        self._end("its guard was killed")
        self._gone.set()  # nobody is left to report it: what remains is reclaimed by the record

    def _on_report(self, report: dict[str, int | str]) -> None:
        match report["event"]:
            case "exited":
                self.tether.drain()
                code, number = report.get("code"), report.get("signal")
                self._signal = None if number is None else int(number)
                self._end(faults.describe_exit(None if code is None else int(code), self._signal))
            case "spawn-failed" | "record-failed":
                self._end(os.strerror(int(report.get("errno", 0))).lower())
            case "gone":
                self._gone.set()
            case _:  # "spawned"
                pass

    def fault(self) -> EngineFailedError:
        """Say how the engine ended, with its telling lines."""
        found = faults.classify(faults.End(lines=tuple(self.lines), signal_number=self._signal))
        message = f"the engine ended ({self.ended.result()}): {faults.describe(found)}"
        return EngineFailedError(message, help=found.help, details=found.lines)

    async def await_ready(self, session: "aiohttp.ClientSession", timeout_s: float) -> None:
        """Return once the engine answers, with the model where it was planned."""
        from launcher.supervisor import readiness  # noqa: PLC0415 - imports aiohttp, which a plan does not need

        answer = asyncio.ensure_future(readiness.await_answer(session, self._command.ready_path))
        events: set[asyncio.Future[Any]] = {answer, self.ended}
        try:
            done, _ = await asyncio.wait(events, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answer.cancel()
        if self.ended in done:
            raise self.fault()
        if not done:
            message = f"the engine was not ready within {timeout_s:.0f} s"
            raise EngineFailedError(message, details=faults.telling_lines(tuple(self.lines)))
        self.tether.drain()
        realised = placement.parse_placement([line for line in self.lines if placement.is_telling(line)])
        difference = placement.mismatch(realised, self._command.expected_gpu_layers, self._command.expected_footprint)
        if difference is not None:
            raise PlacementError(difference, help="see what the engine finds with `launch hardware`")

    async def close(self) -> None:
        """End the engine's whole tree."""
        self.tether.terminate(_GRACE_S)
        try:
            await asyncio.wait_for(self._gone.wait(), _GRACE_S + _GUARD_PATIENCE_S)
        except TimeoutError:
            self.tether.kill_guard()
        await self.tether.close()


@asynccontextmanager
async def open_engine(
    command: Command, *, instance: Instance, plan: Plan | None = None, start_timeout_s: float = 120.0
) -> AsyncIterator["aiohttp.ClientSession"]:
    """Start the command's engine and yield a session to its endpoint; the caller holds the instance's lock.

    Raises:
        EngineFailedError: it ended before it was ready, or was not ready in time.
        PlacementError: it put the model elsewhere than planned.
        EngineMissingError, WeightsMissingError, PortInUseError, StateError: found before anything was started.
    """
    from launcher.supervisor import readiness  # noqa: PLC0415 - imports aiohttp, which a plan does not need

    await asyncio.to_thread(reclaim, instance)
    check_start(command, plan, instance.path)
    try:
        holding = _Holding(command, instance)
    except OSError as error:
        message = f"no process can be started: {(error.strerror or str(error)).lower()}"
        raise EngineFailedError(message) from error
    try:
        async with readiness.open_session(command, holding.env) as session:
            await holding.await_ready(session, start_timeout_s)
            yield session
    finally:
        await _to_its_end(_let_go(holding, instance))


async def _let_go(holding: _Holding, instance: Instance) -> None:
    await holding.close()
    # A guard that was killed leaves its record and perhaps its engine; one that obeyed leaves neither.
    await asyncio.to_thread(reclaim, instance)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for the work whatever happens: a block that ran out of time is cancelled, its engine is ended all the same."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError
