"""How many threads there are is known from the start, whatever is asked of them."""

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Callable

import psutil
import pytest

from launcher.supervisor.threads import N_THREADS, open_threads
from tests.fakes.harness import Served, poll


def _there() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("aside")]


def test_all_threads_are_there_before_any_work_and_no_more_come() -> None:
    """Neither idle nor asked for more at once than there are threads does their number change."""
    go = threading.Event()

    async def ask() -> tuple[int, int]:
        asyncio.get_running_loop().set_default_executor(open_threads())
        before = len(_there())
        work = [asyncio.ensure_future(asyncio.to_thread(go.wait)) for _ in range(3 * N_THREADS)]
        await asyncio.sleep(0)
        during = len(_there())
        go.set()
        assert all(await asyncio.gather(*work))
        return before, during

    assert asyncio.run(ask()) == (N_THREADS, N_THREADS)
    assert _there() == []


@pytest.mark.parametrize("n_allowed", range(N_THREADS))
def test_threads_that_are_not_all_allowed_do_not_wait_for_the_others(
    monkeypatch: pytest.MonkeyPatch, n_allowed: int
) -> None:
    """Under a limit of processes it is said, and those that could be started end."""
    start, left = threading.Thread.start, [n_allowed]

    def start_one(thread: threading.Thread) -> None:
        if not left[0]:
            message = "can't start new thread"
            raise RuntimeError(message)
        left[0] -= 1
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_one)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            open_threads()
    gc.collect()
    assert poll(lambda: not _there())


def test_a_supervisor_has_the_same_threads_after_an_engine_died(serve_stepping: Callable[..., Served]) -> None:
    """The main one, the one that looks at memory, and the pool: as many with the second engine as with the first."""
    served = serve_stepping(options={"restarts": {"first_delay_s": 0.05, "jitter_s": 0.0}})
    supervisor = psutil.Process(served.process.pid)
    expected = N_THREADS + 2
    served.await_event("engine.ready")
    assert supervisor.num_threads() == expected
    os.kill(served.engine_pid(), signal.SIGKILL)
    served.await_event("engine.ready", 2)
    assert supervisor.num_threads() == expected
    served.process.terminate()
    assert served.end() == 0
