"""Whole files of `launch export`, recorded; ``make golden`` rewrites them, and the difference is read."""

import os
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner

from launcher.cli import app

_FOLDER: Final = Path(__file__).parent / "goldens"
_GEMMA: Final = ("gemma2-27b", "--inventory", "rtx4090")
_FP8: Final = ("llama3.1-405b", "--inventory", "8xh100")
_BF16: Final = ("llama3.1-405b", "--inventory", "2x8xa100-80g")
_MOUNTED: Final = (*_GEMMA, "--weights", "/srv/my models/$gemma.gguf", "--host", "0.0.0.0")  # noqa: S104 - it is exported
_CASES: Final = {
    "gemma2-27b-rtx4090.compose.yaml": (*_GEMMA, "--to", "compose"),
    "gemma2-27b-rtx4090-mounted.compose.yaml": (*_MOUNTED, "--to", "compose"),
    "gemma2-27b-rtx4090.container": (*_GEMMA, "--to", "quadlet"),
    "gemma2-27b-rtx4090-mounted.container": (*_MOUNTED, "--to", "quadlet"),
    "gemma2-27b-rtx4090.sky.yaml": (*_GEMMA, "--to", "skypilot"),
    "gemma2-27b-mi300x.compose.yaml": ("gemma2-27b", "--inventory", "mi300x", "--to", "compose"),
    "llama405b-8xh100.compose.yaml": (*_FP8, "--to", "compose"),
    "llama405b-8xh100.container": (*_FP8, "--to", "quadlet"),
    "llama405b-8xh100.sky.yaml": (*_FP8, "--to", "skypilot"),
    "llama405b-8xh100.rayservice.yaml": (*_FP8, "--to", "kuberay"),
    "llama405b-2x8xa100.sky.yaml": (*_BF16, "--to", "skypilot"),
    "llama405b-2x8xa100.rayservice.yaml": (*_BF16, "--to", "kuberay"),
    "llama405b-2x8xa100-mounted.rayservice.yaml": (*_BF16, "--to", "kuberay", "--weights", "/srv/llama"),
    "llama405b-2x8xa100.sh": (*_BF16, "--to", "vllm-multinode"),
}


@pytest.mark.parametrize("name", _CASES)
def test_file(name: str) -> None:
    """The command writes the recorded file to stdout, and nothing else anywhere."""
    result = CliRunner().invoke(app, ["export", *_CASES[name]])
    assert (result.exit_code, result.stderr) == (0, "")
    path = _FOLDER / name
    if os.environ.get("LAUNCHER_GOLDEN"):
        path.write_text(result.stdout)
        return
    assert result.stdout == path.read_text()


def test_no_file_is_left_over() -> None:
    """Each recorded file has its case."""
    assert {path.name for path in _FOLDER.iterdir()} == set(_CASES)
