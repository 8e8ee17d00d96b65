"""Takes memory in a control group of version 1 and holds it: `hog.py GROUP BYTES`. Says so on stdout."""

import mmap
import os
import signal
import sys
from pathlib import Path


def main() -> None:
    """Join, take, tell, hold."""
    group, n_bytes = Path(sys.argv[1]), int(sys.argv[2])
    (group / "cgroup.procs").write_text(str(os.getpid()))
    held = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, n_bytes, mmap.PAGESIZE):
        held[at] = 1  # a page is taken when it is written to
    sys.stdout.write("taken\n")
    sys.stdout.flush()
    signal.pause()


if __name__ == "__main__":
    main()
