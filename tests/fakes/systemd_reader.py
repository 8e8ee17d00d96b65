"""Systemd's own reading of a unit: it is loaded by the real program in its test mode, which starts nothing."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

PROGRAM = next((path for path in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd") if Path(path).exists()), None)
ANALYZE = shutil.which("systemd-analyze")
_NOBODY = 65534
_STUBS = ("sysinit", "basic", "default", "shutdown", "multi-user", "network-online")


def read_unit(files: Mapping[str, str], unit: str) -> dict[str, list[str]]:
    """Return all settings of a unit as systemd has read them, values as it prints them."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory() as folder:
        for target in _STUBS:
            (Path(folder) / f"{target}.target").write_text("[Unit]\nDescription=x\nDefaultDependencies=no\n")
        place(files, Path(folder))
        nobody = _NOBODY if os.geteuid() == 0 else None  # it refuses to run as root
        done = subprocess.run(
            [PROGRAM, "--test", "--system", f"--unit={unit}", "--no-pager"],
            env={"SYSTEMD_UNIT_PATH": folder, "HOME": "/", "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            user=nobody,
            group=nobody,
            extra_groups=None if nobody is None else [],
        )
    _, _, dump = done.stdout.partition(f"-> Unit {unit}:\n")
    assert dump, done.stdout + done.stderr
    found: dict[str, list[str]] = {}
    for line in dump.partition("\t-> Unit ")[0].split("\n"):
        name, _, value = line.strip("\t").partition(": ")
        found.setdefault(name, []).append(value)
    return found


def place(files: Mapping[str, str], folder: Path) -> None:
    """Write the files where systemd, as any user, can read them."""
    folder.chmod(0o755)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.write_text(text)


_ESCAPE = re.compile(r"\\([0-7]{3}|[abfnrtv]|.)")
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def words_of(command_line: str) -> list[str]:
    """Return the words of a command line as the dump prints it: double quotes, C escapes within."""
    words = []
    for match in re.finditer(r'"((?:[^"\\]|\\.)*)"|([^ ]+)', command_line):
        quoted, bare = match.groups()
        words.append(bare if quoted is None else _ESCAPE.sub(_unescaped, quoted))
    return words


def _unescaped(match: re.Match[str]) -> str:
    text = match[1]
    return chr(int(text, 8)) if text.isdecimal() else _LETTERS.get(text, text)


def verify(folder: Path, unit: str, *, user: bool = False) -> str:
    """Return all that ``systemd-analyze verify`` has to say of a unit in a folder; it exits 0 on much that is wrong."""
    assert ANALYZE is not None
    done = subprocess.run(
        [ANALYZE, *(["--user"] if user else []), "verify", "--man=no", str(folder / unit)],
        env={
            **os.environ,
            "XDG_RUNTIME_DIR": str(folder),
        },  # which a user's service manager has, and a container has not
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return f"{done.stdout}{done.stderr}" or ("" if done.returncode == 0 else f"exit code {done.returncode}")
