"""How many threads there are is known from the start, whatever is asked of them; what nobody waits for any more ends."""

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from launcher.supervisor.threads import N_THREADS, aside, check_wanted, open_threads
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


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("n_allowed", range(N_THREADS))
def test_threads_that_do_not_all_start_do_not_wait_for_the_others(
    monkeypatch: pytest.MonkeyPatch, n_allowed: int, error: type[BaseException]
) -> None:
    """Under a limit of processes, or where a signal breaks it off, it is said, and those that were started end."""
    start, left = threading.Thread.start, [n_allowed]

    def start_one(thread: threading.Thread) -> None:
        if not left[0]:
            raise error
        left[0] -= 1
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_one)
        with pytest.raises(error):
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


def test_work_that_nobody_waits_for_any_more_is_told() -> None:
    """While it is waited for, and where it is not done aside, it is wanted; once the one who waits is cancelled, it is not."""
    begun, ended = threading.Event(), threading.Event()

    def work() -> None:
        check_wanted()
        begun.set()
        try:
            while True:
                check_wanted()
                time.sleep(0.001)
        finally:
            ended.set()

    async def cancel() -> None:
        task = asyncio.ensure_future(aside(work))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert ended.is_set()  # a loop ends after its threads
    check_wanted()


def test_work_aside_returns_and_raises_as_it_does_without_a_thread() -> None:
    """Arguments go in, the result and faults come out, and the next work knows nothing of the last."""

    async def ask() -> list[int]:
        results = [await aside(int, "11", base=base) for base in (2, 10)]
        with pytest.raises(ValueError, match="invalid literal"):
            await aside(int, "x")
        check_wanted()
        await asyncio.to_thread(check_wanted)
        return results

    assert asyncio.run(ask()) == [3, 11]


def test_a_stop_does_not_wait_for_a_file_that_is_read(serve_stepping: Callable[..., Served], tmp_path: Path) -> None:
    """An engine died, and weights are compared with their digest before the next one: 256 GiB, which takes minutes."""
    weights = tmp_path / "weights"
    with weights.open("wb") as file:
        file.truncate(256 << 30)
    served = serve_stepping(options={"restarts": {"first_delay_s": 0.05, "jitter_s": 0.0}}, weights=str(weights))
    served.await_event("engine.ready")
    os.kill(served.engine_pid(), signal.SIGKILL)
    assert poll(Path(f"{weights}.asked").exists)
    served.process.terminate()
    assert served.end(10.0) == 0
