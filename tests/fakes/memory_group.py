"""A real control group of version 1 with a memory limit, where this machine lets one be made.

Where it does not, a test is expected to fail rather than skipped: a skip fails a run under CI, where all that a test needs
can be installed, and a permission cannot.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from launcher.inventory.cgroup import parse_mountinfo


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """Make a group with this limit; yields its folder. Ends the test, with the reason, where that is not permitted."""
    mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    mount = next((mount for mount in mounts if "memory" in mount.controllers), None)
    if mount is None:
        pytest.xfail("needs a mounted memory controller of cgroup version 1")
    folder = Path(mount.mount_point) / f"launcher-test-{uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.xfail(f"needs a control group of one's own: {error}")
    try:
        try:
            (folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
        except OSError as error:
            pytest.xfail(f"needs a memory limit of one's own: {error}")
        yield folder
    finally:
        folder.rmdir()


def inside(folder: Path, argv: list[str]) -> list[str]:
    """Return the command line that runs ``argv`` in the group."""
    return ["/bin/sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(folder), *argv]
