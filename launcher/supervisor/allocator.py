"""Give memory that a long-lived process no longer uses back to the system.

It must not know what was allocated, nor when it is no longer used.

Three things keep a Python process at its highest mark. Its collector looks at the oldest objects only when a quarter as many
have come since, so cycles that a lost engine or a burst of requests leaves lie there for hours. glibc gives each thread a
heap of its own, and puts large blocks in the heap once one of their size was freed (``M_MMAP_THRESHOLD`` in mallopt(3)),
where what comes after them holds them. And it gives back the heap's top alone, until it is asked. The C libraries that
have no such settings are left as they are.
"""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from launcher.units import KIB

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
"""As <malloc.h> numbers them."""
_LARGE_BYTES: Final = 128 * KIB
"""glibc's own first threshold for both; that it is set keeps it from rising."""


@contextmanager
def one_heap() -> Iterator[None]:
    """Let all threads share one heap, large blocks be the system's own, and undo ``set_aside`` on leaving."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in (
            (_M_ARENA_MAX, 1),
            (_M_MMAP_THRESHOLD, _LARGE_BYTES),
            (_M_TRIM_THRESHOLD, _LARGE_BYTES),
        ):
            libc.mallopt(parameter, value)
    try:
        yield
    finally:
        gc.unfreeze()


def set_aside() -> None:
    """Give back, and let the collector pass over what is left from now on: takes tens of ms, and makes the next ones short."""
    gc.unfreeze()
    trim()
    gc.freeze()


def trim() -> None:
    """Free the cycles that nothing reaches, and give the heap's free pages back."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
