"""Asks systemd, or its links on disk, how a unit stands.

It must not know what follows from it.
"""

from pathlib import Path
from typing import Final, NamedTuple

from launcher.inventory.proc import run_bounded
from launcher.render.systemd import Scope, unit_name

_SYSTEMCTL_S: Final = 5.0
_AT_REST: Final = frozenset({"inactive", "failed", ""})


class Standing(NamedTuple):
    """How a unit stands: whether it runs, and whether it is started by itself."""

    is_active: bool
    is_enabled: bool


def look_up(instance: str, scope: Scope, folder: Path, *, ask: bool) -> Standing:
    """Return how the unit stands; where no service manager answers, or none is to be asked, by its links on disk."""
    unit = unit_name(instance)
    is_enabled = any(folder.glob(f"*.wants/{unit}"))
    if not ask:
        return Standing(is_active=False, is_enabled=is_enabled)
    words = ("systemctl", *(("--user",) if scope is Scope.USER else ()), "show", "--property=ActiveState", "--value")
    answer = run_bounded((*words, unit), timeout_s=_SYSTEMCTL_S)
    state = answer.stdout.strip() if answer.ok else ""
    return Standing(is_active=state not in _AT_REST, is_enabled=is_enabled)
