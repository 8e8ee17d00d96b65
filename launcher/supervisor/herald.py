"""Keep a service manager told of one instance while it lives.

It must not decide what is worth telling (`tidings`), nor speak the protocol itself (`service_manager`).
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from launcher.domain import InstanceRecord
from launcher.supervisor import tidings
from launcher.supervisor.machine import Event, Phase
from launcher.supervisor.notices import Notice
from launcher.supervisor.options import RunOptions
from launcher.supervisor.service_manager import ServiceManager, microseconds

_MAX_PAUSE_S = 5.0
_SHARE = 4  # of the manager's watchdog time between two messages: two may be late


class Herald:
    """Tells the manager of one instance; belongs to its runner and lives in that one's event loop.

    ``is_watched``: somebody looks at a ready engine, and calls `see_well`.
    """

    def __init__(self, manager: ServiceManager, options: RunOptions, *, is_watched: bool) -> None:
        """Begin with an instance that is about to start."""
        self._manager = manager
        self._options = options
        self._is_watched = is_watched
        self._phase = Phase.IDLE
        self._has_been_ready = False
        self._alive_s = time.monotonic()
        self._said = ""
        self._status = ""

    def hear(self, notice: Notice, record: InstanceRecord) -> None:
        """Take in what is reported."""
        self._said = notice.text
        self.describe(record)

    def describe(self, record: InstanceRecord) -> None:
        """Show how the instance is."""
        status = tidings.status(record, self._said)
        if status != self._status:
            self._status = status
            self._manager.tell({"STATUS": status})

    def take(self, event: Event, phase: Phase) -> None:
        """Take in an event that was dealt with, and the phase that it led to."""
        before, self._phase = self._phase, phase
        message = tidings.milestones(before, phase, has_been_ready=self._has_been_ready)
        self._has_been_ready = self._has_been_ready or phase is Phase.READY
        if message:
            self._manager.tell(message)
        if phase is not before or event is Event.PROGRESS:
            self._show_life()

    def see_well(self) -> None:
        """A look at the ready engine found nothing wrong."""
        self._show_life()

    def _show_life(self) -> None:
        self._alive_s = time.monotonic()
        more_s = tidings.extension_s(
            self._phase, self._options, has_been_ready=self._has_been_ready, is_watched=self._is_watched
        )
        if more_s is not None:
            self._manager.tell({"EXTEND_TIMEOUT_USEC": microseconds(more_s)})

    @contextlib.asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Feed the manager's watchdog from the running event loop, for as long as the block lasts and something moves."""
        beats = asyncio.create_task(self._beat()) if self._manager.is_listening else None
        try:
            yield
        finally:
            if beats is not None:
                beats.cancel()
            self._manager.tell()
            self._manager.close()

    async def _beat(self) -> None:
        watchdog_s = self._manager.watchdog_s
        pause_s = _MAX_PAUSE_S if watchdog_s is None else min(_MAX_PAUSE_S, watchdog_s / _SHARE)
        while True:
            silent_s = time.monotonic() - self._alive_s
            is_moving = tidings.is_moving(self._phase, silent_s, self._options, is_watched=self._is_watched)
            self._manager.tell({"WATCHDOG": "1"} if watchdog_s is not None and is_moving else None)
            await asyncio.sleep(pause_s)
