"""``launch export``: where the file goes, how it ends, and the advice that names it."""

import json
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import yaml
from typer.testing import CliRunner

from launcher.cli import app
from launcher.errors import UsageError
from launcher.inventory import list_machines, load_inventory, load_machines
from launcher.planner.hosts import devices_of
from tests.fakes.hub import make_gguf

_COMPOSE: Final = ("export", "gemma2-27b", "--inventory", "rtx4090", "--to", "compose")


def test_the_file_is_what_stdout_would_have(tmp_path: Path) -> None:
    """Written as a whole, readable as any other, with nothing printed and nothing left beside it."""
    path = tmp_path / "compose.yaml"
    text = CliRunner().invoke(app, [*_COMPOSE]).stdout
    result = CliRunner().invoke(app, [*_COMPOSE, "--output", str(path)])
    assert (result.exit_code, result.output) == (0, "")
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "other").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_a_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    """It stays as it is, to the byte; with --overwrite it is replaced."""
    path = tmp_path / "compose.yaml"
    path.write_text("mine")
    result = CliRunner().invoke(app, [*_COMPOSE, "--output", str(path)])
    assert isinstance(result.exception, UsageError)
    assert "there is a file" in result.exception.message
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]
    assert CliRunner().invoke(app, [*_COMPOSE, "--output", str(path), "--overwrite"]).exit_code == 0
    assert path.read_text().startswith("# gemma2-27b")


@pytest.mark.parametrize("place", [".", "/", "folder"])
def test_a_folder_is_no_file(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told as any other wrong usage."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    result = CliRunner().invoke(app, [*_COMPOSE, "--output", place])
    assert isinstance(result.exception, UsageError)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_where_nothing_fits_nothing_is_written(tmp_path: Path) -> None:
    """The refusal is `plan`'s own, with its exit code, and stdout is empty."""
    path = tmp_path / "f"
    words = ["llama3.1-405b", "--inventory", "rtx4090"]
    result = CliRunner().invoke(app, ["export", *words, "--to", "skypilot", "-o", str(path)])
    plan = CliRunner().invoke(app, ["plan", *words])
    assert (result.exit_code, result.stdout, result.stderr) == (3, "", plan.stderr)
    assert not path.exists()


@pytest.mark.parametrize(
    "words", [("--to", "helm"), ("--to", "compose", "--weights", "here.gguf"), ("--to", "kuberay", "--host", "my host")]
)
def test_wrong_usage_is_told_with_help(words: tuple[str, ...]) -> None:
    """An unknown program, a path that is not whole, a name where an address belongs."""
    result = CliRunner().invoke(app, ["export", "gemma2-27b", "--inventory", "rtx4090", *words])
    assert isinstance(result.exception, UsageError)
    assert result.exception.help


def test_the_settings_are_plans() -> None:
    """What is fixed for `plan` is fixed here: quantization and context come out in the engine's arguments."""
    words = (*_COMPOSE, "--quant", "q4_k_m", "--context", "4096", "--parallel", "2", "--port", "9000")
    engine = yaml.safe_load(CliRunner().invoke(app, words).stdout)["services"]["engine"]
    assert "gemma-2-27b-it-Q4_K_M.gguf" in engine["command"]
    assert engine["command"][engine["command"].index("--ctx-size") + 1] == "8192"
    assert engine["ports"] == ["127.0.0.1:9000:9000"]


def test_a_file_of_this_machine_is_mounted_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it was named from where the user stands; no repository has it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.gguf").write_bytes(make_gguf())
    result = CliRunner().invoke(app, ["export", "m.gguf", "--inventory", "cpu-16g", "--to", "compose"])
    engine = yaml.safe_load(result.stdout)["services"]["engine"]
    assert engine["volumes"][0]["source"] == str(tmp_path)
    assert engine["command"][:2] == ["--model", "/models/m.gguf"]


def _exports(stderr: str) -> list[list[str]]:
    return [shlex.split(line) for line in stderr.splitlines() if line.startswith("    launch export ")]


@pytest.mark.parametrize(
    "words",
    [
        ("llama3.1-405b", "--inventory", "rtx4090"),
        ("llama3.1-405b", "--quant", "bf16", "--inventory", "8xh100"),
        ("llama3.1-405b", "--engine", "vllm", "--inventory", "4xrtx4090"),
        ("llama3.1-70b", "--quant", "q8_0", "--inventory", "rtx4090"),
        ("gpt-oss-120b", "--inventory", "cpu-16g"),
    ],
)
def test_advice_of_a_rented_machine_names_an_export_that_works(words: tuple[str, ...]) -> None:
    """The very command, as it is printed, writes a task for as many GPUs as that machine has or fewer."""
    refusal = CliRunner().invoke(app, ["plan", *words])
    assert refusal.exit_code == 3
    commands = _exports(refusal.stderr)
    assert commands
    for command in commands:
        result = CliRunner().invoke(app, command[1:])
        assert result.exit_code == 0, result.output
        task = yaml.safe_load(result.stdout)
        n_gpus = sum(task["resources"]["accelerators"].values()) * task.get("num_nodes", 1)
        machines = load_machines(command[command.index("--inventory") + 1])
        assert 1 <= n_gpus <= len(list(devices_of(machines)))
    advised = json.loads(CliRunner().invoke(app, ["plan", *words, "--json"]).stdout)
    assert commands == [each["export_argv"] for each in advised["refusal"]["advice"] if each["export_argv"]]


@pytest.mark.parametrize("machine", [name for name in list_machines() if load_inventory(name).is_cloud])
def test_every_rented_machine_can_be_exported(machine: str) -> None:
    """A small model on each of them is a task for SkyPilot."""
    result = CliRunner().invoke(app, ["export", "gemma2-9b", "--inventory", machine, "--to", "skypilot"])
    assert result.exit_code == 0, result.output
    assert re.search(r"^run: \|$", result.stdout, re.MULTILINE)


def test_a_plan_does_not_pay_for_exports() -> None:
    """Neither the writers nor YAML's library are imported where nothing is exported."""
    program = (
        "import sys\nfrom launcher.cli import app\n"
        "app(['plan', 'gemma2-27b', '--inventory', 'rtx4090'], standalone_mode=False)\n"
        "print([name for name in sys.modules if name == 'yaml' or name.startswith('launcher.export')])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
