"""Containers of these tests leave nothing behind, however they end; on a root file system alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from tests.systemd import keeper
from tests.systemd.container import BOOTED_S, GONE_S, await_
from tests.systemd.image import ROOT, parse_targets

pytestmark = [pytest.mark.systemd, pytest.mark.heavy, pytest.mark.timeout(300)]

_HOLD = """
import sys
from pathlib import Path
from tests.systemd.container import Container
folder, base, wheels = map(Path, sys.argv[1:])
with Container(folder, base, wheels) as container:
    print(container.keeper.pid, container.leader, flush=True)
    sys.stdin.read()
"""


@contextmanager
def _held(folder: Path, base: Path, wheels: Path) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Run a process that holds a container; yields it, with the pids of the keeper and of the systemd in there."""
    words = [sys.executable, "-c", _HOLD, str(folder), str(base), str(wheels)]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            pids = process.stdout.readline().split()
            assert len(pids) == 2, "it did not boot"
            yield process, int(pids[0]), int(pids[1])
        finally:
            process.kill()


def _in_namespace_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/mnt").readlink()


def _left(space: Path) -> list[int]:
    """Return the processes in a mount namespace: with the last of them its mounts are gone."""
    found = []
    for pid in psutil.pids():
        with suppress(OSError):
            if _in_namespace_of(pid) == space:
                found.append(pid)
    return found


def _parent_of(pid: int) -> int:
    return psutil.Process(pid).ppid()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_ended_tests_leave_nothing(runs: Path, base: Path, wheels: Path, how: signal.Signals) -> None:
    """Killed or interrupted, they leave no process, namespace, control group or file."""
    folder = runs / f"launcher-{uuid4().hex[:8]}"
    with _held(folder, base, wheels) as (holder, keeper_pid, leader):
        spaces = {_in_namespace_of(leader), _in_namespace_of(_parent_of(leader))}
        groups = keeper.group_folders(folder.name)
        assert any(group.is_dir() for group in groups)
        holder.send_signal(how)
        holder.wait(BOOTED_S)
        await_(lambda: not psutil.pid_exists(keeper_pid), "the keeper ends", GONE_S)
    assert not [pid for space in spaces for pid in _left(space)]
    assert not [group for group in groups if group.exists()]
    assert not folder.exists()
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()


def test_a_killed_keeper_takes_the_container_along(runs: Path, base: Path, wheels: Path) -> None:
    """Its processes and mounts go at once; files and control groups when the next tests begin."""
    folder = runs / f"launcher-{uuid4().hex[:8]}"
    with _held(folder, base, wheels) as (_, keeper_pid, leader):
        spaces = {_in_namespace_of(leader), _in_namespace_of(_parent_of(leader))}
        os.kill(keeper_pid, signal.SIGKILL)
        await_(lambda: not [pid for space in spaces for pid in _left(space)], "the container ends", GONE_S)
    keeper.sweep(runs)
    assert not folder.exists()
    assert not [group for group in keeper.group_folders(folder.name) if group.exists()]


def test_a_running_container_is_not_swept(runs: Path, base: Path, wheels: Path) -> None:
    """The next tests' look for what was left spares what another run of the tests uses."""
    folder = runs / f"launcher-{uuid4().hex[:8]}"
    with _held(folder, base, wheels) as (holder, _, leader):
        keeper.sweep(runs)
        assert psutil.pid_exists(leader)
        assert folder.is_dir()
        assert holder.poll() is None
    await_(lambda: not folder.exists(), "the keeper ends", GONE_S)


def test_the_mirror_is_the_one_that_apt_uses() -> None:
    """The first Debian of main, without its updates and without what others offer."""
    text = (
        "Other|nodistro|main|https://packages.invalid\n"
        "Debian|bookworm-updates|main|http://one.invalid/debian\n"
        "Debian|bookworm|contrib|http://two.invalid/debian\n"
        "Debian|bookworm|main|http://three.invalid/debian\n"
    )
    assert parse_targets(text) == ("bookworm", "http://three.invalid/debian")
    assert parse_targets("Ubuntu|noble|main|http://four.invalid\n") is None
