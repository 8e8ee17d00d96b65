"""Commands of a user who has no home folder, as in a container that was started with a number for a user."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ELSEWHERE = ("LAUNCHER_PROFILES", "LAUNCHER_STATE_DIR", "LAUNCHER_CACHE_DIR", "HF_HOME")
"""What the page of the error names: with all of them set, nothing is looked for in a home folder."""


def run(folder: Path, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a folder of its own, with a HOME that is none."""
    own = ("LAUNCHER_", "XDG_", "HF_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    env |= {"HOME": "nowhere", "PYTHONPATH": str(Path(__file__).parents[2]), **variables}
    argv = [sys.executable, "-m", "launcher", *words]
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "words",
    [("list",), ("ps",), ("doctor",), ("stop", "x"), ("hardware",), ("systemd", "uninstall", "x", "--user")],
    ids="-".join,
)
def test_it_is_said(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A named error with what helps; nothing is made where the command was given."""
    done = run(tmp_path, *words)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error[no-home]: there is no home folder: HOME is `nowhere`")
    assert "help: set HOME" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("list",), ("ps",), ("doctor",), ("hardware",)], ids="-".join)
def test_nothing_else_is_looked_for_there(tmp_path: Path, words: tuple[str, ...]) -> None:
    """With each folder named by itself, commands work without a home."""
    done = run(tmp_path, *words, **{name: str(tmp_path / name.lower()) for name in ELSEWHERE})
    assert "no-home" not in done.stderr + done.stdout
    assert done.returncode == 0 or words == ("doctor",)
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "~").exists()


def test_what_needs_none_works(tmp_path: Path) -> None:
    """A code is explained, and one that is none is said to be none."""
    assert run(tmp_path, "explain", "no-home").returncode == 0
    assert "no code is called `nonsense`" in run(tmp_path, "explain", "nonsense").stderr
