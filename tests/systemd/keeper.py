"""Holds a booted container for as long as whoever started it holds the other end of its stdin.

Nothing stays of the container, however the holder ends: processes and mounts are in namespaces that go with their first
process, control groups and files are removed here. Killed itself, it takes the container along, and the next
`sweep` removes the rest. It must not know what is done in the container.
"""

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from launcher.inventory.cgroup import parse_mountinfo, parse_self_cgroup

_BOOT: Final = Path(__file__).with_name("boot.sh")
_JOIN: Final = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs"; shift; done; shift; exec "$@"'
_GONE_S: Final = 30.0
_HIERARCHIES: Final = frozenset({"memory", "name=systemd"})


def group_folders(name: str) -> list[Path]:
    """Return where the container's control groups are to be, below this process's own.

    Version 1: those of memory and of systemd itself, for others need none; version 2: the one.
    """
    memberships = parse_self_cgroup(Path("/proc/self/cgroup").read_text())
    folders = []
    for mount in parse_mountinfo(Path("/proc/self/mountinfo").read_text()):
        if mount.version == 1 and not mount.controllers & _HIERARCHIES:
            continue
        for membership in memberships:
            own = membership.controllers & mount.controllers if mount.version == 1 else not membership.controllers
            if own and membership.path.is_relative_to(mount.root):
                folders.append(Path(mount.mount_point / membership.path.relative_to(mount.root)) / name)
    return folders


def remove_groups(name: str) -> None:
    """Kill what is in the container's control groups, and remove them, from the innermost outwards."""
    end_s = time.monotonic() + _GONE_S
    for top in group_folders(name):
        while top.is_dir():
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    for pid in (Path(folder) / "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
                with contextlib.suppress(OSError):  # a killed process leaves its group a moment later
                    Path(folder).rmdir()
            if time.monotonic() > end_s:
                message = f"{top}: processes in it cannot be killed"
                raise SystemExit(message)
            time.sleep(0.01)


def sweep(runs: Path) -> None:
    """Remove what killed keepers left below ``runs``: folders whose lock nobody holds, with their control groups."""
    for folder in runs.iterdir() if runs.is_dir() else ():
        with (folder / "lock").open("a") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_groups(folder.name)
            shutil.rmtree(folder)


def _boot(folder: Path, base: Path, wheels: Path) -> subprocess.Popen[bytes]:
    (folder / "root").mkdir()
    (folder / "upper").mkdir()
    (folder / "lower").symlink_to(base.resolve())
    groups = group_folders(folder.name)
    for group in groups:
        group.mkdir()
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    init = ["sh", str(_BOOT), str(folder), folder.name, str(wheels)]
    with (folder / "console.log").open("wb") as console:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "sh", "-c", _JOIN, "join", *map(str, groups), "--", *alone, *init],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
        )


def main() -> None:
    """Boot ``BASE`` with a layer of its own in the new ``FOLDER`` and with ``WHEELS``: until stdin ends, or SIGTERM comes."""
    folder, base, wheels = map(Path, sys.argv[1:])
    folder.mkdir(parents=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        reading, writing = os.pipe()
        signal.signal(signal.SIGTERM, lambda *_: os.write(writing, b"."))
        process = _boot(folder, base, wheels)
        ended = os.pidfd_open(process.pid)
        try:
            select.select([sys.stdin, reading, ended], [], [])
        finally:
            process.kill()
            process.wait()
            remove_groups(folder.name)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
