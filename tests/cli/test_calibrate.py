"""``launch calibrate``: what it says without measuring."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.domain import Calibration
from launcher.errors import WeightsMissingError
from launcher.inventory import probe_inventory
from launcher.planner.calibration import machine_id
from launcher.store import read_calibration, write_calibration


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the program at an empty state directory."""
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def test_forget_removes_what_was_measured_here_and_nothing_else() -> None:
    """Another machine's file, in a shared state directory, stays."""
    here = machine_id(probe_inventory())
    write_calibration(Calibration(machine=here))
    write_calibration(Calibration(machine="elsewhere"))
    assert "forgotten" in CliRunner().invoke(app, ["calibrate", "--forget"]).output
    assert read_calibration(here) == (None, None)
    assert read_calibration("elsewhere")[0] is not None
    assert "nothing was measured" in CliRunner().invoke(app, ["calibrate", "--forget"]).output


def test_weights_that_are_not_here_are_a_clear_fault(state_dir: Path) -> None:
    """Nothing is measured, and nothing written."""
    result = CliRunner().invoke(app, ["calibrate", "llama3.1-405b"])
    assert isinstance(result.exception, WeightsMissingError)
    assert not (state_dir / "calibrations").exists()


def test_a_corrupt_calibration_warns_and_the_plan_goes_on(state_dir: Path) -> None:
    """``launch plan`` warns on stderr, plans without it, and sets the file aside."""
    here = machine_id(probe_inventory())
    write_calibration(Calibration(machine=here))
    path = state_dir / "calibrations" / f"{here}.json"
    path.write_text("{")
    result = CliRunner().invoke(app, ["plan", "gemma3-270m"])
    assert "warning: the calibration" in result.stderr
    assert path.with_name(path.name + ".corrupt").exists()
    assert "warning" not in result.stdout
