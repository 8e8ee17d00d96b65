"""Open the threads in which an event loop has its blocking work done.

It must not know what that work is.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

N_THREADS: Final = 4
"""One looks at processes, one asks for a plan, one awaits the end of processes, and one may still read, for an engine that
is gone, files that take minutes. None of them waits for another, so fewer would be slower, and no deadlock."""


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
    except RuntimeError:
        meeting.abort()  # those that run would wait for ever, and the process for them
        raise
    return pool
