"""Take memory in a control group until so much of its limit is left: `chaos_hog.py GROUP LEAVE_BYTES [MOST_BYTES]`; then hold it.

It says so on stdout. With nothing to leave it goes on until the kernel has killed somebody of the group, and ends then. Where
``MOST_BYTES`` are given it takes no more, else it would have what the engine gives back, too; and it holds them in any case.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

STEP = 16 << 20


def n_kills(group: Path) -> int:
    """Return the kernel's count of kills for memory in the group."""
    rows = dict(line.split() for line in (group / "memory.oom_control").read_text().splitlines())
    return int(rows["oom_kill"])


def main() -> None:
    """Join, take, hold."""
    group, leave = Path(sys.argv[1]), int(sys.argv[2])
    most = int(sys.argv[3]) if len(sys.argv) > 3 else None  # noqa: PLR2004 - the third word
    (group / "cgroup.procs").write_text(str(os.getpid()))
    with contextlib.suppress(OSError):  # its victims go first, where that may be wished
        Path("/proc/self/oom_score_adj").write_text("-900")
    limit, before = int((group / "memory.limit_in_bytes").read_text()), n_kills(group)
    held: list[bytes] = []
    while n_kills(group) == before:
        if leave and limit - int((group / "memory.usage_in_bytes").read_text()) < leave + STEP:
            break
        if most is not None and len(held) * STEP >= most:
            break
        held.append(bytes([1]) * STEP)
    print("full", flush=True)
    while leave or most is not None:
        time.sleep(60)


if __name__ == "__main__":
    main()
