"""What is built works where there is no checkout."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).parents[2]


def _build(source: Path, target: str, folder: Path) -> Path:
    """Build the ``wheel`` or the ``sdist`` of a source tree, and return the file."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return _build(_ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own with the wheel in it, as `pipx install` makes one; what it depends on is borrowed from here."""
    folder = tmp_path_factory.mktemp("pipx") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin" / "python")]
    install += ["install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    return folder


def _run(environment: Path, program: str, *words: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run an installed program with an empty home, away from the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LAUNCHER_", "XDG_"))}
    return subprocess.run(
        [environment / "bin" / program, *words],
        cwd=home,
        env={**kept, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_wheel_brings_its_profiles_machines_units_and_page(wheel: Path) -> None:
    """And nothing that only a checkout needs."""
    names = zipfile.ZipFile(wheel).namelist()
    shipped = [
        *(_ROOT / "profiles").rglob("*.toml"),
        *(path for path in (_ROOT / "systemd").rglob("*") if path.is_file()),
    ]
    assert len(shipped) > 30
    missing = [path for path in shipped if f"launcher/_data/{path.relative_to(_ROOT)}" not in names]
    assert missing == []
    assert "launcher/py.typed" in names
    assert [name for name in names if name.endswith(".data/data/share/man/man1/launch.1")] != []
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "scripts/"))]


def test_an_sdist_is_a_whole_source(wheel: Path, tmp_path: Path) -> None:
    """The wheel that is built from it has the very files of the checkout's, and it brings its tests with what they need."""
    sdist = _build(_ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("launcher-*")
    again = _build(source, "wheel", tmp_path / "again")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {info.filename: info.CRC for info in one.infolist()} == {
            info.filename: info.CRC for info in other.infolist()
        }
    for name in ("tests", "benchmarks", "scripts", "requirements", "docs"):
        ours = {path.relative_to(_ROOT) for path in (_ROOT / name).rglob("*") if _is_source(path)}
        assert {path.relative_to(source) for path in (source / name).rglob("*") if path.is_file()} == ours
    assert (source / ".ci" / "run").stat().st_mode & 0o100


def _is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and path.suffix not in {".pyc", ".pyo"}


def test_an_installed_launcher_needs_no_checkout(installed: Path, tmp_path: Path) -> None:
    """It plans a shipped profile on a shipped machine from its own files, and leaves nothing in an empty home for that."""
    plan = _run(installed, "launch", "plan", "gemma2-27b", "--inventory", "rtx4090", home=tmp_path)
    assert plan.returncode == 0, plan.stderr
    assert plan.stdout.startswith("`gemma2-27b` at q5_k_m")
    assert list(tmp_path.iterdir()) == []
    code = "import launcher, launcher.planner; print(launcher.__file__)"
    where = _run(installed, "python", "-c", code, home=tmp_path)
    assert where.stdout.startswith(str(installed.resolve()))
    assert (installed / "share" / "man" / "man1" / "launch.1").is_file()


def test_an_installed_launcher_writes_units_that_start_it(installed: Path, tmp_path: Path) -> None:
    """By the path of the very program that was asked."""
    done = _run(installed, "launch", "systemd", "render", "gemma3-270m", "--user", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{installed}/bin/launch" in done.stdout


def test_nothing_is_left_of_an_installation_that_was_removed(installed: Path) -> None:
    """Every file that the wheel brought is on its list; asked last, since it removes what the others use."""
    remove = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(installed / "bin" / "python")]
    subprocess.run([*remove, "uninstall", "--yes", "--quiet", "launcher"], check=True, capture_output=True, timeout=120)
    left = [path for path in installed.rglob("*") if "launch" in path.name and path.is_file()]
    assert left == []
