"""``--rpc`` as a user gives it: what is refused, and that a worker which is not there is no silent loss of memory."""

import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def _launch(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "launcher", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", [("plan", "gemma3-270m"), ("serve", "gemma3-270m"), ("hardware",)])
@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (("--rpc", "8.8.8.8:50052"), "no address of this machine or of a private network"),
        (("--rpc", "localhost"), "does not understand `localhost`"),
        (("--rpc", "127.0.0.1:1", "--inventory", "rtx4090"), "--rpc and --inventory cannot both be given"),
    ],
)
def test_wrong_usage(command: tuple[str, ...], words: tuple[str, ...], fact: str) -> None:
    """Exit code 2 before any worker is asked, with help."""
    done = _launch(*command, *words)
    assert done.returncode == 2
    assert fact in done.stderr
    assert "help: " in done.stderr


def test_a_worker_that_is_not_there_is_an_error() -> None:
    """No plan is made without the memory that was asked for."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        done = _launch("plan", "gemma3-270m", "--rpc", f"127.0.0.1:{closed.getsockname()[1]}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error[worker-unusable]")
