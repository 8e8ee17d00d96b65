"""What systemd hears of ``launch serve`` over a real engine with the real model."""

import http.client
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.supervisor.checks import free_port
from tests.fakes.harness import poll
from tests.fakes.manager import Manager

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("real_model")]
_READY_S = 120.0


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """A service manager that listens."""
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def _start(
    launch: tuple[str, ...], environment: dict[str, str], manager: Manager, *words: str
) -> "subprocess.Popen[str]":
    told = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "8000000"}
    return subprocess.Popen(
        [*launch, "serve", *words],
        env={**environment, **told},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _ask(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


def test_what_is_ready_answers_and_what_stops_says_so(
    launch: tuple[str, ...], environment: dict[str, str], manager: Manager
) -> None:
    """At READY a request is answered; the journal has no line for each second of loading, the status has it."""
    port = free_port("127.0.0.1")
    process = _start(launch, environment, manager, "gemma3-270m", "--port", str(port))
    try:
        assert poll(lambda: manager.values("READY") or process.poll() is not None, _READY_S)
        assert _ask(port) == 200
        assert poll(lambda: manager.values("WATCHDOG"))
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert poll(lambda: manager.values("STATUS")[-1].startswith("stopped"))
    assert manager.values("READY") == manager.values("STOPPING") == ["1"]
    assert {message.pid for message in manager.messages} == {process.pid}
    statuses = manager.values("STATUS")
    assert statuses[0] == "planning"
    assert f"ready: gemma3-270m q4_k_m at http://127.0.0.1:{port}" in statuses
    assert "loading, " not in errors


def test_a_refusal_is_told_and_never_ready(
    launch: tuple[str, ...], environment: dict[str, str], manager: Manager
) -> None:
    """Exit code 3, which the unit does not restart, and the reason where an administrator looks first."""
    process = _start(launch, environment, manager, "gemma3-270m", "--min-tps", "1000000")
    process.communicate(timeout=60)
    assert process.returncode == 3
    assert poll(lambda: manager.values("STATUS")[-1:] != ["planning"])
    assert manager.values("STATUS")[-1].startswith("refused: `gemma3-270m` ")
    assert manager.values("READY") == []
