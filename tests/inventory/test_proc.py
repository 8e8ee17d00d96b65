"""A program asked within bounds: whatever it does, the call ends, and nothing of it stays."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.inventory import proc
from launcher.inventory.proc import ProcResult, run_bounded

Program = Callable[[str, str], Path]


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie that waits to be reaped does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_gone(pid: int) -> bool:
    """Wait up to five seconds for a process to be gone."""
    deadline = time.monotonic() + 5
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_alive(pid)


def test_output_and_exit_code(program: Program) -> None:
    """Both streams and the exit code come back apart, and standard input is empty."""
    path = program("talk", "cat; echo out; echo err >&2; exit 3")
    assert run_bounded([str(path)], timeout_s=10) == ProcResult(3, "out\n", "err\n")


def test_environment_is_laid_over(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inherited environment stays, apart from what is given."""
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("CHANGED", "1")
    path = program("env", 'echo "$KEPT $CHANGED $ADDED"')
    assert run_bounded([str(path)], timeout_s=10, env={"CHANGED": "2", "ADDED": "3"}).stdout == "1 2 3\n"


def test_hang_is_ended_with_its_children(program: Program) -> None:
    """A program that hangs is killed at the timeout, with a child that ignores SIGTERM, and says what it printed."""
    path = program("hang", "trap '' TERM; sleep 100 & echo $!; wait")
    start = time.monotonic()
    result = run_bounded([str(path)], timeout_s=0.3)
    assert (result.timed_out, result.ok) == (True, False)
    assert time.monotonic() - start < 5
    assert wait_gone(int(result.stdout))


def test_child_that_holds_the_output(program: Program) -> None:
    """A child that outlives its parent, output open, neither delays the call nor survives it."""
    path = program("leave", "sleep 100 & echo $!")
    start = time.monotonic()
    result = run_bounded([str(path)], timeout_s=30)
    assert result.ok
    assert time.monotonic() - start < 10
    assert wait_gone(int(result.stdout))


def test_hang_with_closed_output(program: Program) -> None:
    """A program that closes its output and hangs is killed at the timeout."""
    assert run_bounded([str(program("mute", "exec >&- 2>&-; sleep 100"))], timeout_s=0.3).timed_out


def test_endless_output_is_cut() -> None:
    """A program that prints without end is killed at the cap, and no more than the cap is kept."""
    result = run_bounded(["yes"], timeout_s=30, max_output_bytes=1000)
    assert (result.truncated, result.ok, len(result.stdout)) == (True, False, 1000)


def test_bytes_that_are_no_text(program: Program) -> None:
    """Output that is no UTF-8 is kept, with marks where it cannot be read."""
    assert run_bounded([str(program("bytes", r"printf 'a\377b'"))], timeout_s=10).stdout == "a\ufffdb"


@pytest.mark.parametrize(
    ("body", "described"),
    [
        ("echo 'no such option' >&2; exit 1", "ended with exit code 1: no such option"),
        ("kill -SEGV $$", "was killed by signal 11"),
        ("exit 7", "ended with exit code 7"),
        (r"printf 'a\033[2J\n' >&2; exit 1", "ended with exit code 1: a\ufffd[2J"),
    ],
)
def test_outcome_in_words(body: str, described: str, program: Program) -> None:
    """An outcome reads as half a sentence with the program's last line."""
    assert run_bounded([str(program("fail", body))], timeout_s=10).describe(timeout_s=10) == described


def test_what_cannot_be_started(tmp_path: Path) -> None:
    """A missing file, a file that is no program, and a name with a null byte are results, no exceptions."""
    garbage = tmp_path / "garbage"
    garbage.write_bytes(os.urandom(64))
    garbage.chmod(0o755)
    for name in (str(tmp_path / "missing"), str(garbage), "a\0b"):
        result = run_bounded([name], timeout_s=10)
        assert (result.exit_code, result.ok) == (None, False)
        assert result.describe(timeout_s=10).startswith("cannot be started: ")


@pytest.mark.slow
def test_a_program_that_no_signal_ends(program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that hangs in the kernel is left behind after a bound. Here signals are withheld, which is the same to the caller."""
    pid_file = tmp_path / "pid"
    path = program("stuck", f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 600")
    kill = os.killpg
    monkeypatch.setattr(proc, "_REAP_S", 0.1)
    monkeypatch.setattr(os, "killpg", lambda _group, _number: None)
    try:
        found = run_bounded([str(path)], timeout_s=2)
        assert (found.timed_out, found.exit_code) == (True, -signal.SIGKILL)
        assert is_alive(int(pid_file.read_text()))
    finally:
        pid = int(pid_file.read_text())
        kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
