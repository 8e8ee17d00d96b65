"""How much time the kernel says is lost waiting for memory (pressure stall information).

It must not know what that means for anybody. The format: the kernel's ``Documentation/accounting/psi.rst``.
"""

from pathlib import Path
from typing import NamedTuple

from launcher.inventory.cgroup import find_folders


class Stall(NamedTuple):
    """Shares, 0 to 1, of the last ten seconds: in which some task waited for memory; in which all did."""

    some: float
    full: float


def parse_psi(text: str) -> Stall | None:
    """Return the ten-second averages of a pressure file; ``None`` where there are none."""
    shares: dict[str, float] = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        fields = dict(pair.split("=", 1) for pair in rest.split() if "=" in pair)
        try:
            shares[kind] = min(1.0, max(0.0, float(fields["avg10"]) / 100))
        except (KeyError, ValueError):
            continue
    return Stall(shares["some"], shares.get("full", 0.0)) if "some" in shares else None


def find_psi(root: Path = Path("/"), pid: int | None = None) -> Path | None:
    """Return the pressure file of a process's own group (version 2), else the machine's; ``None`` without either."""
    groups = [folder / "memory.pressure" for version, folder in find_folders(root, "memory", pid) if version != 1]
    machine = root / "proc/pressure/memory"
    return next((path for path in (*groups[:1], machine) if read_psi(path) is not None), None)


def read_psi(path: Path) -> Stall | None:
    """Return what a pressure file says now; a kernel may have the file and refuse to read it."""
    try:
        return parse_psi(path.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None
