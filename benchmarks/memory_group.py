"""Make a real memory limit around processes, and take the memory within it from outside: control groups of version 1.

It must not know what runs in a group.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

from launcher.inventory.cgroup import parse_mountinfo

_HOG: Final = Path(__file__).with_name("chaos_hog.py")


def make_group(name: str, limit_bytes: int) -> Path | None:
    """Return a new group with a memory limit, which the caller removes; ``None`` where this machine permits none."""
    mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    mount = next((mount for mount in mounts if "memory" in mount.controllers), None)
    if mount is None:
        return None
    folder = Path(mount.mount_point) / f"launcher-{name}-{uuid4().hex[:8]}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError:
        if folder.exists():
            folder.rmdir()
        return None
    return folder


def inside(group: Path | None, argv: Sequence[str]) -> list[str]:
    """Return the command line that runs ``argv`` in the group, as the same process."""
    if group is None:
        return list(argv)
    return ["/bin/sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(group), *argv]


def start_hog(group: Path, *, leave_bytes: int, most_bytes: int | None = None) -> subprocess.Popen[str]:
    """Start what takes the group's memory but for so much; with 0 until the kernel kills. It prints a line when done."""
    most = () if most_bytes is None else (str(most_bytes),)
    argv = [sys.executable, "-S", str(_HOG), str(group), str(leave_bytes), *most]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own words


def held_bytes(group: Path) -> int:
    """Return what the group's processes hold of the limit, without the page cache, which the kernel would drop."""
    rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(rows["total_rss"])


def limit_of(group: Path) -> int:
    """Return the group's limit in bytes."""
    return int((group / "memory.limit_in_bytes").read_text())


def end_hog(hog: subprocess.Popen[str]) -> None:
    """End it, and take what it printed."""
    hog.kill()
    hog.communicate()


def offer_to_kernel(pid: int) -> None:
    """Let the kernel prefer this process where it has to kill one for memory."""
    Path(f"/proc/{pid}/oom_score_adj").write_text("1000", encoding="ascii")
