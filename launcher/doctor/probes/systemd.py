"""What systemd says of the launcher's units.

It must not know what a unit runs, nor change one. A machine where systemd does not run has no units, which is no fault.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from launcher.doctor.facts import Systemd, Unit
from launcher.doctor.probes.files import is_there
from launcher.inventory.proc import run_bounded
from launcher.inventory.text import printable

_ANSWER_S: Final = 5.0
_PROPERTIES: Final = (
    "Id", "LoadState", "ActiveState", "SubState", "Result", "UnitFileState", "ExecMainStatus", "MainPID",
    "NRestarts", "FragmentPath", "ExecStart",
)  # fmt: skip
_VERSION: Final = re.compile(r"systemd (\d+)")
_PROGRAM: Final = re.compile(r"path=(?P<path>[^ ;]+)")
_SCOPES: Final = {"system": (), "user": ("--user",)}


def probe_systemd(instance: str | None, user: str, root: Path = Path("/")) -> Systemd | None:
    """Return the units of one instance, or of all that systemd has loaded; ``None`` where it does not run."""
    program = shutil.which("systemctl")
    if program is None or not (root / "run/systemd/system").is_dir():
        return None
    told = run_bounded((program, "--version"), timeout_s=_ANSWER_S)
    version = _VERSION.search(told.stdout)
    units: list[Unit] = []
    notes: list[str] = []
    pattern = f"launch@{instance or '*'}.service"
    for scope, options in _SCOPES.items():
        argv = (program, *options, "show", f"--property={','.join(_PROPERTIES)}", "--", pattern)
        answer = run_bounded(argv, timeout_s=_ANSWER_S)
        if answer.ok:
            units += parse_units(answer.stdout, scope)
        elif answer.timed_out or scope == "system":  # a session without a user manager has no user units
            notes.append(f"`systemctl {' '.join((*options, 'show'))}` {answer.describe(timeout_s=_ANSWER_S)}")
    has_user_unit = any(unit.scope == "user" for unit in units)
    return Systemd(
        version=int(version[1]) if version else None,
        units=tuple(units),
        lingers=is_there(root / "var/lib/systemd/linger" / user) if has_user_unit else None,
        notes=tuple(notes),
    )


def parse_units(text: str, scope: str) -> Iterator[Unit]:
    """Yield the units in what ``systemctl show`` printed, blocks of ``KEY=VALUE``; those that are not there are left out."""
    for block in text.strip().split("\n\n"):
        told = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if told.get("LoadState") in {None, "not-found"}:
            continue
        started = _PROGRAM.search(told.get("ExecStart", ""))
        yield Unit(
            name=printable(told.get("Id", "")),
            scope=scope,
            load=told["LoadState"],
            active=told.get("ActiveState", ""),
            sub=told.get("SubState", ""),
            result=told.get("Result", ""),
            enabled=told.get("UnitFileState", ""),
            exit_status=_number(told.get("ExecMainStatus", "")),
            main_pid=_number(told.get("MainPID", "")) or None,
            n_restarts=_number(told.get("NRestarts", "")) or 0,
            path=printable(told.get("FragmentPath", "")),
            program=printable(started["path"]) if started else None,
            is_program_there=started is None or not _is_missing(Path(started["path"])),
        )


def _is_missing(program: Path) -> bool:
    """Tell whether a program is certainly not there: what this user may not look at may well be."""
    try:
        program.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
