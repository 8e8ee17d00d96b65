"""What a long-lived process no longer uses goes back to the system."""

import gc
import platform
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from launcher.supervisor.allocator import one_heap, set_aside, trim
from launcher.units import MIB

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such settings")

_SCATTERED = """
from launcher.supervisor.allocator import trim

def anonymous():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Anonymous:"))

blocks = [bytes(2048) for _ in range(40_000)]
del blocks[:-1]
full = anonymous()
trim()
print(full, anonymous())
"""

_THREADS = """
import contextlib, ctypes, sys, threading
from launcher.supervisor.allocator import one_heap

def fill():
    blocks = [bytes(2048) for _ in range(1000)]
    meeting.wait()

meeting = threading.Barrier(4)
with one_heap() if sys.argv[1] == "one" else contextlib.nullcontext():
    threads = [threading.Thread(target=fill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


class Cycle:
    """Something that only the collector can free."""

    def __init__(self) -> None:
        """Hold oneself."""
        self.own = self


@pytest.fixture
def _no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collection")
def test_cycles_are_freed_those_that_were_set_aside_at_the_next_time() -> None:
    """What was set aside while it was used, and is used no more, does not stay for ever."""
    early, late = Cycle(), Cycle()
    is_early, is_late = weakref.ref(early), weakref.ref(late)
    with one_heap():
        set_aside()
        del early
        trim()
        assert is_early() is not None
        assert is_late() is not None
        del late
        set_aside()
        assert (is_early(), is_late()) == (None, None)


@pytest.mark.usefixtures("_no_collection")
def test_after_the_block_the_collector_passes_over_nothing() -> None:
    """A program that serves and goes on has its collector as it was."""
    before = gc.get_freeze_count()
    with one_heap():
        set_aside()
        during = gc.get_freeze_count()
    assert during > before
    assert gc.get_freeze_count() == 0


@glibc
def test_free_pages_below_a_used_one_are_given_back() -> None:
    """The last of many blocks holds the heap's top: without being asked glibc keeps all that is below."""
    full, after = map(int, _run(_SCATTERED).split())
    assert full > 80 * MIB
    assert after < full - 60 * MIB


@glibc
@pytest.mark.parametrize(("which", "is_one"), [("one", True), ("many", False)])
def test_threads_share_one_heap(which: str, is_one: bool) -> None:  # noqa: FBT001 - one of two cases
    """And without it they would not: the test sees the difference."""
    assert (_run(_THREADS, which).count("<heap nr=") == 1) is is_one


def _run(script: str, *words: str) -> str:
    return subprocess.check_output([sys.executable, "-c", script, *words], text=True, timeout=60)
