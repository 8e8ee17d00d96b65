"""The manual page says what the commands say."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import click
import pytest
import typer

from launcher.cli import app

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "launch.1"


def test_the_page_is_what_the_commands_say_today() -> None:
    """`make golden` writes it anew."""
    check = [sys.executable, "scripts/make_manual.py", "--check"]
    done = subprocess.run(
        check, cwd=_ROOT, env={"PYTHONPATH": str(_ROOT), "PATH": ""}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_and_option_is_in_it() -> None:
    """Also those of commands within commands; each says what it is for."""
    text = _PAGE.read_text(encoding="utf-8").replace("\\-", "-")

    def walk(command: click.Command, path: str) -> None:
        assert f'.SS "{path}"' in text or path == "launch"
        assert " ".join((command.epilog or "").replace("`", "\\(ga").split()) in text
        for parameter in command.params:
            for option in [name for name in parameter.opts if name.startswith("--")]:
                assert option in text, (path, option)
            assert getattr(parameter, "help", None), (path, parameter.name, "says nothing of itself")
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                walk(child, f"{path} {name}")

    root = typer.main.get_command(app)
    assert isinstance(root, click.Group)
    walk(root, "launch")


_OURS_ALONE: Final = {"LAUNCHER_GUARD_TOKEN", "LAUNCHER_APPLICATION"}
"""What one process of ours tells another, or a cluster: nothing for people to set."""


def test_every_variable_of_ours_is_in_it() -> None:
    """Those that the code reads by name."""
    text = "".join(path.read_text(encoding="utf-8") for path in (_ROOT / "launcher").rglob("*.py"))
    read = set(re.findall(r'"(LAUNCHER_[A-Z_]+)"', text)) - _OURS_ALONE
    assert len(read) > 5
    assert [name for name in sorted(read) if f".B {name}\n" not in _PAGE.read_text(encoding="utf-8")] == []


def test_troff_has_nothing_to_warn_of() -> None:
    """No macro that it does not know, no line that it cannot break; printed plain, without bold."""
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not here")
    done = subprocess.run(
        [groff, "-man", "-ww", "-Tutf8", "-P-cbou", str(_PAGE)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "launch serve" in done.stdout
