"""Hold one engine for as long as a block of code lasts: started by a guard, ready, and gone afterwards.

For measuring, not for serving: nothing is restarted, and no state but the guard's own record is kept. It must not know
what the block does with the engine.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from launcher.domain import Command, Plan
from launcher.errors import EngineFailedError, LauncherError, PlacementError, PortInUseError
from launcher.inventory.environment import redact
from launcher.store import Instance
from launcher.supervisor import faults, placement
from launcher.supervisor.checks import check_port, check_start
from launcher.supervisor.environment import environment_of, known_secrets
from launcher.supervisor.holding import Holding
from launcher.supervisor.reclaim import reclaim
from launcher.supervisor.scratch import Scratch
from launcher.supervisor.signs import Cause

if TYPE_CHECKING:
    import aiohttp

_N_LINES: Final = 4000
_GRACE_S: Final = 5.0
_GUARD_PATIENCE_S: Final = 5.0
_ORPHAN_GRACE_S: Final = 1.0
_LAST_WORDS_S: Final = 2.0
"""Between a connection that breaks and the guard's report that the engine has ended."""


class _Engine:
    """One engine, and what it printed."""

    def __init__(self, command: Command, instance: Instance) -> None:
        self._command = command
        self._scratch = Scratch(instance.path)
        self.env = {**environment_of(command), **self._scratch.open(command)}
        secrets = known_secrets(self.env)
        self._lines: deque[str] = deque(maxlen=_N_LINES)
        self.holding = Holding(
            command.argv,
            self.env,
            instance=instance,
            orphan_grace_s=_ORPHAN_GRACE_S,
            on_line=lambda line: self._lines.append(redact(line, secrets)),
        )

    async def close(self) -> None:
        """End its whole tree, and remove what it leaves behind elsewhere."""
        self._scratch.note(self.holding.tether.pid)
        await self.holding.close(_GRACE_S, _GUARD_PATIENCE_S)
        self._scratch.clear()

    def fault(self) -> LauncherError:
        """Say how the engine ended, with its telling lines."""
        found = faults.classify(faults.End(lines=tuple(self._lines), signal_number=self.holding.signal_number))
        message = f"the engine ended ({self.holding.ended.result()}): {faults.describe(found)}"
        kind = PortInUseError if found.cause is Cause.PORT else EngineFailedError
        return kind(message, help=found.help, details=found.lines)

    async def await_ready(self, session: "aiohttp.ClientSession", timeout_s: float) -> None:
        """Return once the engine answers, with the model where it was planned."""
        from launcher.supervisor import readiness  # noqa: PLC0415 - imports aiohttp, which a plan does not need

        answer = asyncio.ensure_future(readiness.await_answer(session, self._command.ready_path))
        events: set[asyncio.Future[Any]] = {answer, self.holding.ended}
        try:
            done, _ = await asyncio.wait(events, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answer.cancel()
        if self.holding.ended in done:
            raise self.fault()
        if not done:
            message = f"the engine was not ready within {timeout_s:.0f} s"
            raise EngineFailedError(message, details=faults.telling_lines(tuple(self._lines)))
        self.holding.tether.drain()
        realised = placement.parse_placement([line for line in self._lines if placement.is_telling(line)])
        difference = placement.mismatch(realised, self._command.expected_gpu_layers, self._command.expected_footprint)
        if difference is not None:
            raise PlacementError(difference, help="see what the engine finds with `launch hardware`")


@asynccontextmanager
async def open_engine(
    command: Command, *, instance: Instance, plan: Plan | None = None, start_timeout_s: float = 120.0
) -> AsyncIterator["aiohttp.ClientSession"]:
    """Start the command's engine and yield a session to its endpoint; the caller holds the instance's lock.

    Raises:
        EngineFailedError: it ended before it was ready, or was not ready in time; what the block says of an engine that has
            ended by then is replaced by how it ended.
        PlacementError: it put the model elsewhere than planned.
        PortInUseError: another process has the address, or had it before the engine.
        EngineMissingError, WeightsMissingError, StateError: found before anything was started.
    """
    from launcher.supervisor import readiness  # noqa: PLC0415 - imports aiohttp, which a plan does not need

    await asyncio.to_thread(reclaim, instance)
    check_start(command, plan, instance.path)
    check_port(command.address)
    try:
        engine = _Engine(command, instance)
    except OSError as error:
        message = f"no process can be started: {(error.strerror or str(error)).lower()}"
        raise EngineFailedError(message) from error
    try:
        async with readiness.open_session(command, engine.env) as session:
            await engine.await_ready(session, start_timeout_s)
            try:
                yield session
            except EngineFailedError as error:
                await asyncio.wait([engine.holding.ended], timeout=_LAST_WORDS_S)
                if engine.holding.ended.done():
                    raise engine.fault() from error
                raise
    finally:
        await _to_its_end(engine.close())


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
