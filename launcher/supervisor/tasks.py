"""Run pieces of work beside a loop: those of the present phase, and duties that come to their end whatever happens.

It must not know what they do.
"""

import asyncio
from collections.abc import Callable, Coroutine


class Tasks:
    """The work that is under way in one event loop; ``on_fault`` is called with what a piece of it raised."""

    def __init__(self, on_fault: Callable[[BaseException], None]) -> None:
        """Nothing yet."""
        self._on_fault = on_fault
        self._passing: set[asyncio.Task[None]] = set()
        self._duties: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None], *, to_its_end: bool = False) -> None:
        """Run a piece of work; it is cancelled with the phase, unless it must come to its end."""
        task = asyncio.get_running_loop().create_task(work)
        tasks = self._duties if to_its_end else self._passing
        tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._passing.discard(task)
        self._duties.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fault(error)

    def cancel(self) -> None:
        """The phase is over: cancel what belongs to it."""
        for task in self._passing:
            task.cancel()

    async def finish(self) -> None:
        """Wait for the duties."""
        await asyncio.gather(*self._duties, return_exceptions=True)
