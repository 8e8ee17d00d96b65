"""SIGKILL of any of the three processes, at any time: no process, port or lock is left, and the next serve works."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.domain import State
from launcher.store import find_instance, open_instance
from launcher.supervisor.checks import check_port
from launcher.supervisor.processes import TOKEN_VARIABLE, find_marked, kill_marked
from launcher.supervisor.reclaim import reclaim
from tests.fakes.harness import Served, poll

Serve = Callable[..., Served]
QUICK = {"restarts": {"first_delay_s": 0.05, "jitter_s": 0.0}}


def assert_nothing_is_left(served: Served) -> None:
    """No process of the engine, the port free, the lock free."""
    assert poll(lambda: not served.tree()), served.tree()
    address = find_instance(served.name).record
    assert address is not None
    check_port(address.address)
    with open_instance(served.name):
        pass


def test_the_supervisor_is_killed(serve: Serve) -> None:
    """The guard ends a stubborn tree, escapees included, without anybody's help; ps tells; the next serve works."""
    served = serve("--stubborn-tree", "--escapee", "--ignore-sigterm")
    served.await_event("engine.ready")
    assert poll(lambda: len(served.tree()) == 5)
    served.process.kill()
    served.process.wait()
    assert_nothing_is_left(served)
    view = find_instance("fake")
    assert (view.state, view.supervisor_alive) == (State.FAILED, False)
    assert view.reason is not None
    assert "was killed" in view.reason
    again = serve(port=served.port)
    again.await_event("engine.ready")


def test_the_guard_is_killed(serve: Serve) -> None:
    """The supervisor ends what the guard left, escapees included, and serves again under a new guard."""
    served = serve("--stubborn-tree", "--escapee", "--ignore-sigterm", options=QUICK)
    served.await_event("engine.ready")
    assert poll(lambda: len(served.tree()) == 5)
    first = set(served.tree())
    os.kill(served.guard_pid(), signal.SIGKILL)
    served.await_event("engine.ready", 2)
    assert first.isdisjoint(served.tree())
    served.process.terminate()
    assert served.end() == 0
    assert_nothing_is_left(served)


def test_guard_and_supervisor_are_killed_and_the_next_serve_reclaims(serve: Serve) -> None:
    """Nobody is left who knows; the guard's record is, and the next start goes by it."""
    served = serve("--stubborn-tree", "--ignore-sigterm")
    served.await_event("engine.ready")
    assert poll(lambda: len(served.tree()) == 4)
    guard = served.guard_pid()
    os.kill(served.process.pid, signal.SIGSTOP)  # so that it cannot see the guard's end before its own
    os.kill(guard, signal.SIGKILL)
    served.process.kill()
    served.process.wait()
    left = set(served.tree())
    assert len(left) == 4
    again = serve(port=served.port)
    again.await_event("engine.ready")
    assert "instance.reclaimed" in again.events()
    assert left.isdisjoint(again.tree())


def test_a_guard_that_is_killed_while_stopping_leaves_nothing(serve: Serve) -> None:
    """The engine ignores SIGTERM, the guard is killed within the grace: the supervisor finishes the work."""
    served = serve("--ignore-sigterm", "--stubborn-tree", options={"grace_s": 600.0})
    served.await_event("engine.ready")
    guard = served.guard_pid()
    served.process.terminate()
    served.await_event("instance.stopping")
    os.kill(guard, signal.SIGKILL)
    assert served.end() == 0
    assert_nothing_is_left(served)


def test_a_guard_that_hangs_is_outlasted(serve: Serve) -> None:
    """A stopped guard obeys nothing: it is killed in the end, and its engine with it."""
    served = serve("--stubborn-tree", options={"grace_s": 0.1, "guard_patience_s": 0.3})
    served.await_event("engine.ready")
    assert poll(lambda: len(served.tree()) == 4)
    os.kill(served.guard_pid(), signal.SIGSTOP)
    served.process.terminate()
    assert served.end() == 0
    assert_nothing_is_left(served)


def test_a_stopped_engine_is_continued_to_end(serve: Serve) -> None:
    """SIGTERM alone would wait until the grace is over."""
    served = serve(options={"grace_s": 600.0})
    served.await_event("engine.ready")
    os.kill(served.engine_pid(), signal.SIGSTOP)
    served.process.terminate()
    assert served.end() == 0


def test_restarts_leak_no_descriptors(serve: Serve) -> None:
    """After many engines the supervisor holds as many open files as after the first ones."""
    served = serve(
        "--exit-after-s",
        "0.15",
        options={"restarts": {"n_deaths": 12, "n_start_deaths": 100, "first_delay_s": 0.01, "jitter_s": 0.0}},
    )
    folder = Path(f"/proc/{served.process.pid}/fd")
    served.await_event("instance.backoff", 3)
    early = len(list(folder.iterdir()))
    served.await_event("instance.backoff", 7)
    assert len(list(folder.iterdir())) <= early + 6  # one guard's pipes more or less


def test_a_guard_that_gets_sigterm_ends_its_engine(serve: Serve) -> None:
    """SIGTERM to the guard means the engine; SIGINT and SIGHUP mean nothing to it."""
    served = serve(options=QUICK)
    served.await_event("engine.ready")
    guard = served.guard_pid()
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(guard, number)
    os.kill(guard, signal.SIGTERM)
    served.await_event("engine.ready", 2)
    assert served.events().count("engine.exited") == 1


@pytest.mark.parametrize("moment", ["at once", "engine.spawned", "loading", "engine.ready"])
def test_the_supervisor_is_killed_at_any_moment(serve: Serve, moment: str) -> None:
    """From its first instant on."""
    served = serve("--load-s", "1", "--stubborn-tree")
    if moment == "loading":
        assert poll(lambda: any(notice["transient"] for notice in served.notices()) or len(served.tree()) >= 3)
    elif moment != "at once":
        served.await_event(moment)
    served.process.kill()
    served.process.wait()
    again = serve(port=served.port)
    again.await_event("engine.ready")
    assert poll(lambda: len(served.tree()) == 1)
    again.process.terminate()
    assert again.end() == 0
    assert_nothing_is_left(again)


def test_a_record_of_an_earlier_boot_hits_nobody(state_dir: Path) -> None:
    """Numbers of processes mean nothing after a reboot: the record is forgotten, a process of that number lives on."""
    del state_dir
    with open_instance("fake") as instance:
        token = "0" * 32
        me = os.getpid()
        identity = f'{{"pid":{me},"start_time":1,"boot_id":"00000000-0000-0000-0000-000000000000"}}'
        text = f'{{"schema_version":1,"token":"{token}","guard":{identity},"engine":{identity}}}'
        instance.guard_path(token).write_text(text)
        assert reclaim(instance) == 1
        assert instance.read_guards() == ()


def test_a_broken_guard_record_still_finds_the_engine(state_dir: Path) -> None:
    """The token is in the record's name."""
    del state_dir
    token = "a" * 32
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; time.sleep(3600)"], env={TOKEN_VARIABLE: token}
    ) as stray:
        assert poll(lambda: find_marked(token) == [stray.pid])
        with open_instance("fake") as instance:
            instance.guard_path(token).write_text("{half a rec")
            assert reclaim(instance) == 1
        assert stray.wait(5) == -signal.SIGKILL


def test_kill_marked_spares_everybody_else() -> None:
    """A process with another token, and this one, are not touched."""
    sleep = [sys.executable, "-S", "-c", "import time; time.sleep(3600)"]
    with (
        subprocess.Popen(sleep, env={TOKEN_VARIABLE: "b" * 32}) as other,
        subprocess.Popen(sleep, env={TOKEN_VARIABLE: "c" * 32}) as target,
    ):
        assert poll(lambda: find_marked("c" * 32) == [target.pid])
        assert kill_marked("c" * 32) == ()
        assert target.wait(5) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()
