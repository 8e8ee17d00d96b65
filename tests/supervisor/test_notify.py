"""What systemd hears of a real supervisor over a real process, through a real datagram socket."""

import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.harness import Served, poll
from tests.fakes.manager import Manager

Serve = Callable[..., Served]
QUICK_RESTARTS = {"restarts": {"first_delay_s": 0.05, "jitter_s": 0.0}}
_WATCHDOG_S = 0.4


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A service manager that asks for a sign of life every 0.4 s."""
    made = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", made.address)
    monkeypatch.setenv("WATCHDOG_USEC", str(int(_WATCHDOG_S * 1e6)))
    yield made
    made.close()


def _is_fed(manager: Manager, n: int = 3) -> bool:
    """Whether so many more signs of life arrive."""
    n_before = len(manager.values("WATCHDOG"))
    return bool(poll(lambda: len(manager.values("WATCHDOG")) >= n_before + n))


def _is_starved(manager: Manager) -> bool:
    """Whether the signs of life end: none for five times as long as they are apart."""
    pause_s = 5 * _WATCHDOG_S / 4

    def look() -> bool:
        n = len(manager.values("WATCHDOG"))
        return not poll(lambda: len(manager.values("WATCHDOG")) > n, deadline_s=pause_s)

    return bool(poll(look))


def test_a_start_is_pushed_on_by_progress_then_ready_then_stopping(manager: Manager, serve: Serve) -> None:
    """In this order, each of the two once, all from the supervisor itself, and a status with each."""
    served = serve("--load-s", "3")
    served.await_event("engine.ready")
    assert poll(lambda: manager.values("READY"))
    assert _is_fed(manager)
    served.process.terminate()
    assert served.end() == 0
    assert poll(lambda: "stopped" in " ".join(manager.values("STATUS")[-1:]))
    names = [name for message in manager.messages for name in message.fields]
    assert names.index("EXTEND_TIMEOUT_USEC") < names.index("READY") < names.index("STOPPING")
    assert "EXTEND_TIMEOUT_USEC" not in names[names.index("READY") :]
    assert (names.count("READY"), names.count("STOPPING")) == (1, 1)
    assert {message.pid for message in manager.messages} == {served.process.pid}
    statuses = manager.values("STATUS")
    assert [text for text in statuses if text.startswith("starting: loading,")]
    assert any(text == f"ready: at http://127.0.0.1:{served.port}" for text in statuses)


def test_ready_waits_for_the_canary(manager: Manager, serve: Serve) -> None:
    """An engine that answers, but not its first request, is not ready."""
    served = serve("--canary-hangs")
    assert poll(lambda: len(manager.values("EXTEND_TIMEOUT_USEC")) >= 2)
    assert _is_fed(manager)
    assert manager.values("READY") == []
    served.process.terminate()
    served.end()


def test_a_start_that_stalls_extends_nothing(manager: Manager, serve: Serve) -> None:
    """The last extension is of the last sign: a silent load is not pushed on until it is given up."""
    served = serve("--silent-load-s", "60", options={"stall_timeout_s": 3.0, "restarts": {"n_start_deaths": 1}})
    assert served.end() == 1
    given_up_s = next(m.at_s for m in manager.messages if m.fields.get("STATUS", "").startswith("stopping"))
    last_s = max(at_s for at_s in manager.times("EXTEND_TIMEOUT_USEC") if at_s < given_up_s)
    assert given_up_s - last_s >= 2.5
    assert manager.values("READY") == []
    assert manager.values("STATUS")[-1].startswith("failed: ")


def test_an_engine_cannot_speak_in_our_name(manager: Manager, serve: Serve) -> None:
    """Neither the guard nor the engine finds the socket, the watchdog's time, or the way to credentials."""
    served = serve()
    served.await_event("engine.ready")
    for pid in (served.guard_pid(), served.engine_pid()):
        names = {entry.partition(b"=")[0] for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}
        assert not names & {b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"WATCHDOG_PID"}
    served.process.terminate()
    served.end()
    assert manager.values("READY") == ["1"]


def test_a_hung_supervisor_feeds_nothing(manager: Manager, serve: Serve) -> None:
    """The signs of life come from the event loop that does the work."""
    served = serve()
    served.await_event("engine.ready")
    assert _is_fed(manager)
    os.kill(served.process.pid, signal.SIGSTOP)
    assert _is_starved(manager)
    os.kill(served.process.pid, signal.SIGCONT)
    assert _is_fed(manager)
    served.process.terminate()
    served.end()


def test_an_engine_that_is_silent_while_it_is_believed_to_be_ready_feeds_nothing(
    manager: Manager, serve_stepping: Serve
) -> None:
    """Only a look that finds it well counts; with one that answers again, all is well again."""
    options = {"health_pause_s": 0.2, "hang": {"n_misses": 1000}}
    served = serve_stepping(options=options)
    served.await_event("engine.ready")
    assert _is_fed(manager, n=10)
    os.kill(served.engine_pid(), signal.SIGSTOP)
    assert _is_starved(manager)
    assert "engine.failed" not in served.events()
    os.kill(served.engine_pid(), signal.SIGCONT)
    assert _is_fed(manager)
    served.process.terminate()
    assert served.end() == 0


def test_a_restart_keeps_the_unit_alive_and_says_so(manager: Manager, serve_stepping: Serve) -> None:
    """The engine dies after it was ready: the status tells it, the watchdog is fed, READY is not repeated."""
    served = serve_stepping(options=QUICK_RESTARTS)
    served.await_event("engine.ready")
    os.kill(served.engine_pid(), signal.SIGKILL)
    served.await_event("engine.ready", n=2)
    assert _is_fed(manager)
    assert manager.values("READY") == ["1"]
    assert manager.values("STOPPING") == []
    backoff = [text for text in manager.values("STATUS") if text.startswith("backoff: ")]
    assert any("starting again in 0.1 s; the engine ended while it served (SIGKILL)" in text for text in backoff)
    served.process.terminate()
    assert served.end() == 0


def test_a_command_that_takes_long_to_make_holds_up_nobody(
    manager: Manager, serve_stepping: Serve, tmp_path: Path
) -> None:
    """Weights that changed are read as a whole before a restart: clients are answered meanwhile, the watchdog is fed."""
    file, asked = tmp_path / "held-up", tmp_path / "held-up.asked"
    served = serve_stepping(options=QUICK_RESTARTS, held_up=str(file))
    served.await_event("engine.ready")
    file.touch()
    asked.unlink()
    os.kill(served.engine_pid(), signal.SIGKILL)
    assert poll(asked.exists)
    assert _is_fed(manager)
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"http://127.0.0.1:{served.port}/health", timeout=10)
    assert served.events().count("engine.spawned") == 1
    file.unlink()
    served.await_event("engine.ready", n=2)
    served.process.terminate()
    assert served.end() == 0


def test_a_step_down_is_told(manager: Manager, serve_stepping: Serve) -> None:
    """An engine that runs out of memory is followed by a smaller one; the unit never notices but for its status."""
    served = serve_stepping(free_bytes=[8 << 30], fits_bytes=6 << 30)
    served.await_event("engine.ready")
    assert poll(lambda: manager.values("READY"))
    assert "; degraded: " in manager.values("STATUS")[-1]
    served.process.terminate()
    assert served.end() == 0
