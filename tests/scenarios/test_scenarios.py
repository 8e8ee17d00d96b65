"""Whole commands and the whole text they print.

Each ``*.toml`` beside this file has ``args``, ``exit`` and ``text``; ``make golden`` rewrites ``text`` and ``exit`` from
what is printed now, and the difference is read before it is committed.
"""

import os
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli import app

_FILES = sorted(Path(__file__).parent.glob("*.toml"))


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_scenario(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends and prints as recorded; machines of a scenario's own are in ``machines/``."""
    monkeypatch.chdir(path.parent)
    scenario = tomllib.loads(path.read_text())
    result = CliRunner().invoke(app, scenario["args"])
    text = result.output
    if os.environ.get("LAUNCHER_GOLDEN"):
        args = ", ".join(f'"{word}"' for word in scenario["args"])
        path.write_text(f"args = [{args}]\nexit = {result.exit_code}\ntext = '''\n{text}'''\n")
        return
    assert text == scenario["text"]
    assert result.exit_code == scenario["exit"]


def test_there_are_scenarios() -> None:
    """The folder is found."""
    assert len(_FILES) >= 60
