"""The wheel works where there is no checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def test_a_wheel_brings_its_profiles_machines_and_units(tmp_path: Path) -> None:
    """Unpacked elsewhere it plans a shipped profile on a shipped machine, from its own files."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=_ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = archive.namelist()
    assert {"launcher/_data/systemd/launch@.service", "launcher/_data/systemd/user/launch@.service"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    result = subprocess.run(
        [sys.executable, "-m", "launcher", "plan", "gemma2-27b", "--inventory", "rtx4090"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("`gemma2-27b` at q5_k_m")
    where = [sys.executable, "-c", "import launcher; print(launcher.__file__)"]
    found = subprocess.run(
        where, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(str(site))
