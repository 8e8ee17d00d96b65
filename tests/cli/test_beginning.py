"""`launch serve` before its engine is started: who is at it can be seen and told to stop, and nothing is lost by it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import typer
from msgspec.structs import replace

from launcher.cli.beginning import beginning
from launcher.domain import Address, ClusterApplication, InstanceRecord, State
from launcher.errors import LauncherError, NotServedError, PortInUseError
from launcher.store import Instance, find_instance, identify, open_instance
from tests.fakes.harness import poll
from tests.fakes.hub import make_gguf

pytestmark = pytest.mark.slow

_HERE = Address(port=0)
_PROBED = """#!/bin/sh
echo $$ >> "$0.asked"
while [ ! -e "$0.go" ]; do sleep 0.02; done
"""


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    """An instance that is held, in a state directory of its own."""
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path / "state"))
    with open_instance("m") as held:
        yield held


def _ignore(_: object) -> None:
    """Hear nothing."""


def _earlier(instance: Instance) -> InstanceRecord:
    """Leave the record of a run that has ended."""
    me = identify(os.getpid())
    assert me is not None
    record = InstanceRecord(
        name="m",
        state=State.FAILED,
        supervisor=replace(me, pid=1),
        address=Address(port=9),
        started_at=1.0,
        changed_at=2.0,
        reason="it died",
        application=ClusterApplication(url="http://127.0.0.1:8265", name="m"),
    )
    instance.write(record)
    return record


def test_others_see_who_is_at_it(instance: Instance) -> None:
    """`launch stop` finds the process by it; what a cluster may still hold stays known."""
    before = _earlier(instance)
    with beginning(instance, _HERE, _ignore):
        view = find_instance("m")
        assert (view.state, view.supervisor_alive, view.reason) == (State.STARTING, True, "it is being planned")
        assert view.record is not None
        assert (view.record.supervisor.pid, view.record.application) == (os.getpid(), before.application)


@pytest.mark.parametrize("error", [typer.Exit(3), LauncherError("no engine"), SystemExit(1)])
def test_what_fails_before_anything_was_started_leaves_what_was_known(instance: Instance, error: BaseException) -> None:
    """A refusal is no end of an instance: what its last run came to is still told."""
    before = _earlier(instance)
    with pytest.raises(type(error)), beginning(instance, _HERE, _ignore):
        raise error
    assert instance.read() == before


def test_what_fails_the_first_time_leaves_nothing(instance: Instance) -> None:
    """It was never served."""
    with pytest.raises(KeyError), beginning(instance, _HERE, _ignore):
        raise KeyError
    with pytest.raises(NotServedError):
        find_instance("m")


@pytest.mark.parametrize("error", [LauncherError("it died"), KeyboardInterrupt()])
def test_what_was_put_down_later_stays(instance: Instance, error: BaseException) -> None:
    """How a run ended is said by who ran it."""

    def run() -> None:
        with beginning(instance, _HERE, _ignore):
            _earlier(instance)
            raise error

    with pytest.raises(type(error)):
        run()
    assert instance.read() == _earlier(instance)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(instance: Instance, number: signal.Signals) -> None:
    """Exit code 0, a record that says so, and a line for whoever looks on; after the block signals mean what they did."""
    said: list[str] = []
    handled = signal.getsignal(number)
    with pytest.raises(typer.Exit) as caught, beginning(instance, _HERE, lambda notice: said.append(notice.event)):
        signal.raise_signal(number)
    assert caught.value.exit_code == 0
    assert signal.getsignal(number) is handled
    view = find_instance("m")
    assert (view.state, view.reason) == (State.STOPPED, "stopped before anything was started")
    assert said == ["instance.stopped"]
    assert '"instance.stopped"' in instance.events_path.read_text()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_taken_port_is_told_before_anything_else(instance: Instance, host: str) -> None:
    """Neither is the machine measured nor the record touched."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = f"{port} is taken by process {os.getpid()} "
        with pytest.raises(PortInUseError, match=taken), beginning(instance, Address(host=host, port=port), _ignore):
            pytest.fail("it was planned")
    assert instance.read() is None


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b", "x" * 70])
def test_an_address_that_is_none_of_this_machine_is_told(instance: Instance, host: str) -> None:
    """Nobody has taken its port."""
    with (
        pytest.raises(PortInUseError, match="cannot be listened on: "),
        beginning(instance, Address(host=host), _ignore),
    ):
        pytest.fail("it was planned")


@contextmanager
def _launch(env: dict[str, str], *words: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a command; it is killed where the block leaves it running."""
    command = [sys.executable, "-m", "launcher", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def _points_at(pid: int, other: int) -> bool:
    """Whether a process holds another one to send it a signal."""
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # it was closed since it was listed
            if f"Pid:\t{other}\n" in info.read_text():
                return True
    return False


@pytest.mark.parametrize("is_told", [False, True])
def test_a_serve_that_still_looks_at_the_machine_is_stopped(tmp_path: Path, is_told: bool) -> None:  # noqa: FBT001 - a case
    """By SIGTERM, which killed it where it stood, and by `launch stop`, which did not know of it."""
    weights = tmp_path / "m.gguf"
    weights.write_bytes(make_gguf(n_vocab=300))
    engine = tmp_path / "bin" / "llama-server"
    engine.parent.mkdir()
    engine.write_text(_PROBED)
    engine.chmod(0o700)
    env = {
        **os.environ,
        "PATH": f"{engine.parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LAUNCHER_STATE_DIR": str(tmp_path / "state"),
        "LAUNCHER_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    asked, go = Path(f"{engine}.asked"), Path(f"{engine}.go")
    with _launch(env, "serve", str(weights), "--port", "0") as serving:
        assert poll(asked.exists)
        if is_told:
            with _launch(env, "stop", "m") as stopping:
                assert poll(lambda: _points_at(stopping.pid, serving.pid))
                go.touch()
                assert stopping.communicate(timeout=30) == ("m is stopped\n", "")
        else:
            serving.send_signal(signal.SIGTERM)
            go.touch()
        assert serving.communicate(timeout=30) == ("", "stopped; nothing had been started\n")
        assert serving.returncode == 0
    assert b'"stopped"' in (tmp_path / "state" / "instances" / "m" / "instance.json").read_bytes()
    assert not any(Path(f"/proc/{pid}").exists() for pid in asked.read_text().split())
