"""The programs that hold much of the host's memory now.

It must not know why one asks: on a machine with hundreds of processes this takes milliseconds, so nobody asks in vain.
"""

import os
from pathlib import Path
from typing import Final

from launcher.domain import DeviceProcess
from launcher.inventory.text import printable
from launcher.units import KIB, MIB

MIN_BYTES: Final = 256 * MIB
"""Smaller programs are not worth ending for a model."""
MAX_PROGRAMS: Final = 4

_OWN: Final = ("RssAnon", "RssShmem")
"""What is given back when a program ends; mapped files (``RssFile``) are page cache, which counts as available anyway."""


def parse_status(text: str) -> tuple[str, int]:
    """Return a program's name and the bytes that its end would free, from ``/proc/PID/status``."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    n_kib = sum(int(fields[name].split()[0]) for name in _OWN if name in fields)
    return printable(fields.get("Name", "").strip()), n_kib * KIB


def probe_programs(root: Path = Path("/")) -> tuple[DeviceProcess, ...]:
    """Return the programs that hold the most of the host's memory, the largest first; never this one itself."""
    found = []
    for folder in (root / "proc").glob("[0-9]*"):
        try:
            name, used_bytes = parse_status((folder / "status").read_text(errors="replace"))
        except (OSError, ValueError, IndexError):
            continue  # it has ended, or is not ours to read
        if used_bytes >= MIN_BYTES and folder.name != str(os.getpid()):
            found.append(DeviceProcess(pid=int(folder.name), name=name or None, used_bytes=used_bytes))
    return tuple(sorted(found, key=lambda process: (-(process.used_bytes or 0), process.pid))[:MAX_PROGRAMS])
