"""Hold one process under its guard, from its start until nothing of it is left.

It must not know what the process does, nor what follows from its end.
"""

import asyncio
import os
import secrets as random_source
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from launcher.store import Instance, identify
from launcher.supervisor import faults
from launcher.supervisor.reclaim import reclaim
from launcher.supervisor.tether import Tether

if TYPE_CHECKING:
    from launcher.domain import ProcessId


class Holding:
    """One process under its guard; lives in the event loop that runs when it is made."""

    def __init__(
        self,
        argv: tuple[str, ...],
        env: Mapping[str, str],
        *,
        instance: Instance,
        orphan_grace_s: float,
        on_line: Callable[[str], None],
    ) -> None:
        """Start the guard, and the process by it; ``env`` is all of its environment.

        Raises:
            OSError: no guard can be started.
        """
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """How it ended, in words."""
        self.process: ProcessId | None = None
        self.signal_number: int | None = None
        """Of the signal that ended it."""
        self._gone = asyncio.Event()
        self._instance = instance
        token = random_source.token_hex(16)
        self.tether = Tether(
            argv,
            env,
            record_path=instance.guard_path(token),
            token=token,
            orphan_grace_s=orphan_grace_s,
            on_report=self._on_report,
            on_line=on_line,
            on_lost=self._on_lost,
        )

    def _on_report(self, report: dict[str, int | str]) -> None:
        match report["event"]:
            case "spawned":
                self.process = identify(int(report["pid"]))
            case "exited":
                self.tether.drain()  # what it printed last is to be known before it is judged
                code, number = report.get("code"), report.get("signal")
                self.signal_number = None if number is None else int(number)
                self._end(faults.describe_exit(None if code is None else int(code), self.signal_number))
            case "gone":
                self._gone.set()
            case _:  # "spawn-failed", "record-failed"
                self._end(os.strerror(int(report.get("errno", 0))).lower())

    def _on_lost(self) -> None:
        self._end("its guard was killed")
        self._gone.set()  # nobody is left to report it: what remains is reclaimed by the record

    def _end(self, how: str) -> None:
        if not self.ended.done():
            self.ended.set_result(how)

    async def close(self, grace_s: float, guard_patience_s: float) -> None:
        """End the process's whole tree, after ``grace_s`` by force; a guard that does not obey is killed."""
        self.tether.terminate(grace_s)
        try:
            await asyncio.wait_for(self._gone.wait(), grace_s + guard_patience_s)
        except TimeoutError:
            self.tether.kill_guard()
        await self.tether.close()
        # A guard that was killed leaves its record and perhaps its process; one that obeyed leaves neither.
        await asyncio.to_thread(reclaim, self._instance)
