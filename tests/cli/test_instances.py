"""`launch ps`, `status`, `logs`, `stop` and detached starts, as a second terminal uses them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launcher.domain import State
from launcher.errors import EngineFailedError
from launcher.store import find_instance
from launcher.supervisor import remote
from launcher.supervisor.checks import free_port
from tests.fakes.harness import FAKES, Served, poll, start, survivors

Serve = Callable[..., Served]


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state directory."""
    path = tmp_path / "state"
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(path))
    return path


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start supervisors; each is ended after the test."""
    started: list[Served] = []

    def begin(*arguments: str, name: str = "fake", **more: Any) -> Served:
        output = tmp_path / f"output-{len(started)}"
        started.append(start(*arguments, name=name, port=free_port("127.0.0.1"), output=output, **more))
        return started[-1]

    yield begin
    for served in started:
        served.process.kill()
        served.process.wait()
        assert poll(partial(is_gone, served))


def is_gone(served: Served) -> bool:
    """Whether nothing of the engine is left."""
    return not served.tree()


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "launcher", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_nothing_is_served() -> None:
    """Both forms say so; an unknown name is a fault with help and exit code 1."""
    assert launch("ps").stdout == "nothing is served\n"
    assert json.loads(launch("ps", "--json").stdout) == {"schema_version": 2, "instances": []}
    for verb in ("status", "logs", "stop"):
        done = launch(verb, "nix")
        assert (done.returncode, done.stdout) == (1, "")
        assert "error[not-served]: `nix` is not served here\nhelp: " in done.stderr


def test_an_instance_from_its_start_to_its_end(serve: Serve) -> None:
    """ps, status, logs and stop agree; stop returns when nothing is left, and again says that nothing ran."""
    served = serve("--fork-child")
    served.await_event("engine.ready")
    table = launch("ps").stdout.splitlines()
    assert table[0].split() == ["NAME", "STATE", "ADDRESS", "MODEL", "UP", "RESTARTS"]
    assert table[1].split()[:3] == ["fake", "ready", f"127.0.0.1:{served.port}"]
    status = launch("status", "fake").stdout
    assert f"supervisor {served.process.pid}, guard {served.guard_pid()}, engine {served.engine_pid()}" in status
    value = json.loads(launch("status", "fake", "--json").stdout)
    assert (value["state"], value["record"]["engine"]["pid"]) == ("ready", served.engine_pid())
    assert launch("logs", "fake", "-n", "1").stdout == "srv llama_server: server is listening\n"
    assert launch("logs", "fake", "-n", "0").stdout == ""
    # The test is the supervisor's parent and has to collect it, as a shell would.
    collector = threading.Thread(target=served.process.wait)
    collector.start()
    assert launch("stop", "fake").stdout == "fake is stopped\n"
    collector.join()
    assert served.tree() == []
    assert launch("stop", "fake").stdout == "fake was not running\n"
    assert launch("ps").stdout == "nothing is served\n"
    assert "stopped" in launch("ps", "--all").stdout


def test_stop_clears_what_a_killed_supervisor_and_guard_left(serve: Serve) -> None:
    """Nobody answers for the engine any more: stop does, and says so."""
    served = serve("--stubborn-tree", "--ignore-sigterm")
    served.await_event("engine.ready")
    guard = served.guard_pid()
    os.kill(served.process.pid, signal.SIGSTOP)
    os.kill(guard, signal.SIGKILL)
    served.process.kill()
    served.process.wait()
    assert len(served.tree()) == 4
    assert "its supervisor" in launch("status", "fake").stdout
    assert launch("stop", "fake").stdout == "fake is stopped\n"
    assert served.tree() == []
    assert find_instance("fake").state is State.STOPPED


def test_stop_waits_no_longer_than_told_and_force_ends_it(serve: Serve) -> None:
    """An engine that ignores SIGTERM with a long grace: the fault names the way, which works."""
    served = serve("--ignore-sigterm", options={"grace_s": 600.0})
    served.await_event("engine.ready")
    with pytest.raises(EngineFailedError, match="still ending") as caught:
        remote.stop("fake", timeout_s=0.2)
    assert "--force" in str(caught.value.help)
    collector = threading.Thread(target=served.process.wait)
    collector.start()
    assert remote.stop("fake", timeout_s=10, force=True)
    collector.join()
    assert served.tree() == []


def test_force_ends_a_supervisor_that_hangs(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped supervisor cannot obey: it is killed, and its guard ends the engine."""
    monkeypatch.setattr(remote, "_KILL_S", 0.2)
    served = serve("--stubborn-tree")
    served.await_event("engine.ready")
    os.kill(served.process.pid, signal.SIGSTOP)
    assert remote.stop("fake", timeout_s=10, force=True)
    assert served.process.wait(5) == -signal.SIGKILL
    assert served.tree() == []


def test_following_goes_across_rotation_and_ends_with_the_instance(serve: Serve) -> None:
    """Every line of a log that rotates many times, in order, once; then the end."""
    served = serve("--flood-lines", "3000", "--exit-after-s", "1.5", "--exit-code", "0", options={
        "log_bytes": 200_000, "restarts": {"n_deaths": 1}
    })  # fmt: skip
    served.await_event("engine.spawned")
    collector = threading.Thread(target=served.process.wait)
    collector.start()
    followed = list(remote.follow("fake", Path(find_instance("fake").log_path), 10))
    collector.join()
    numbers = [int(line.split()[1]) for line in followed if line.startswith("line ")]
    assert numbers == list(range(numbers[0], 3000))
    assert followed[-1] == "srv llama_server: server is listening"


def detached_argv(port: int, *arguments: str) -> list[str]:
    """The command of a supervisor over a fake engine."""
    return [sys.executable, str(FAKES / "serve_fake.py"), "fake", str(port), "{}", "{}", "--", *arguments]


def test_a_detached_start_returns_when_it_is_ready() -> None:
    """What it says meanwhile is relayed, it goes on in a session of its own, and stop ends it."""
    port = free_port("127.0.0.1")
    relayed: list[str] = []
    assert remote.spawn_detached(detached_argv(port, "--load-s", "0.5"), name="fake", relay=relayed.append) == 0
    view = find_instance("fake")
    assert view.state is State.READY
    assert view.record is not None
    pid = view.record.supervisor.pid
    assert os.getsid(pid) == pid
    assert any("engine.ready" in line for line in relayed)
    collector = threading.Thread(target=os.waitpid, args=(pid, 0))
    collector.start()
    assert remote.stop("fake", timeout_s=20)
    collector.join()
    assert survivors(port) == []


def test_a_detached_start_that_is_stopped_is_no_success() -> None:
    """Who ends in order before it is ready, as on `launch stop` while it downloads, serves nothing."""
    relayed: list[str] = []
    argv = [sys.executable, "-c", "print('stopped')"]
    assert remote.spawn_detached(argv, name="fake", relay=relayed.append) == 1
    assert relayed == ["stopped"]


def test_a_detached_start_that_fails_relays_the_fault() -> None:
    """The exit code and the rendered error are the supervisor's own."""
    port = free_port("127.0.0.1")
    relayed: list[str] = []
    argv = detached_argv(port, "--say", "invalid magic", "--exit-after-load", "1")
    begin_s = time.monotonic()
    assert remote.spawn_detached(argv, name="fake", relay=relayed.append) == 1
    assert time.monotonic() - begin_s < 10
    assert any(line.startswith("error[engine-failed]") for line in relayed)
    assert find_instance("fake").state is State.FAILED
