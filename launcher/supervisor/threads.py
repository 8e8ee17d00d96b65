"""Have blocking work done in threads beside an event loop.

It must not know what that work is.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

N_THREADS: Final = 4
"""One looks at processes, one asks for a plan, one awaits the end of processes, and one may still be at what nobody waits for
any more. None of them waits for another, so fewer would be slower, and no deadlock."""

_ABANDONED: ContextVar[threading.Event] = ContextVar("abandoned")


def open_threads() -> ThreadPoolExecutor:
    """Return a pool whose threads all run already: how many there are depends neither on the load nor on the machine.

    Raises:
        RuntimeError: no more threads are allowed here.
    """
    pool = ThreadPoolExecutor(max_workers=N_THREADS, thread_name_prefix="aside")
    # A pool starts a thread only where none is idle: none is until all have met.
    meeting = threading.Barrier(N_THREADS)
    try:
        for _ in range(N_THREADS):
            pool.submit(meeting.wait)
    except BaseException:
        meeting.abort()  # those that run would wait for ever, and the process for them
        raise
    return pool


async def aside(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Have long work done in a thread; where the one who waits for it is cancelled, `check_wanted` ends it.

    A thread cannot be cancelled, and neither a loop nor a process ends before its threads do.
    """
    abandoned = threading.Event()

    def begin() -> T:
        _ABANDONED.set(abandoned)  # in the thread's own context, a copy
        return work(*args, **kwargs)

    try:
        return await asyncio.to_thread(begin)
    finally:
        abandoned.set()


def check_wanted() -> None:
    """Break the work off that this thread does if nobody waits for it any more; work that is not done aside is wanted.

    Raises:
        CancelledError: nobody does. It is no ``Exception``: what handles faults lets it pass.
    """
    abandoned = _ABANDONED.get(None)
    if abandoned is not None and abandoned.is_set():
        raise asyncio.CancelledError
