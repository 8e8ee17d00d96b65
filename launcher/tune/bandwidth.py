"""How many bytes per second this host's memory delivers to reading threads.

Each thread searches its own block, far larger than any cache, for a byte that is not there: the C library reads it
with the widest instructions and without the interpreter's lock. It must not know models or engines.
"""

import ctypes
import mmap
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from launcher.units import GIB

BLOCK_BYTES: Final = 1 * GIB
"""Over all threads together: larger than the last-level cache of all but the largest server processors."""
DURATION_S: Final = 1.5
_FILL: Final = b"\x00"
_ABSENT: Final = 1


def measure_bandwidth(n_threads: int, *, n_bytes: int = BLOCK_BYTES, duration_s: float = DURATION_S) -> float:
    """Return the best rate of several passes by ``n_threads`` threads, in bytes per second.

    The best, not the mean: other programs can only slow a pass down. Takes about ``duration_s`` and ``n_bytes``.
    """
    libc = ctypes.CDLL(None)
    libc.memchr.restype = ctypes.c_void_p
    libc.memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    share = max(mmap.PAGESIZE, n_bytes // n_threads // mmap.PAGESIZE * mmap.PAGESIZE)
    blocks = [mmap.mmap(-1, share) for _ in range(n_threads)]
    views = [(ctypes.c_char * share).from_buffer(block) for block in blocks]
    try:
        with ThreadPoolExecutor(max_workers=n_threads, thread_name_prefix="read") as pool:
            # Untouched pages are all the same page of zeros: write each once, by the thread that will read it.
            list(pool.map(lambda view: ctypes.memset(view, _FILL[0], share), views))
            best = 0.0
            end_s = time.monotonic() + duration_s
            while time.monotonic() < end_s:
                begin_s = time.perf_counter()
                list(pool.map(lambda view: libc.memchr(view, _ABSENT, share), views))
                best = max(best, share * n_threads / (time.perf_counter() - begin_s))
    finally:
        views.clear()  # a block that is still looked at cannot be closed
        for block in blocks:
            block.close()
    return best
