"""A booted Debian with the project installed in it, one for all tests here, and the journal of a test that failed."""

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from tests.systemd import image, keeper
from tests.systemd.container import Container
from tests.systemd.service import Service

BUILD_VARIABLE: Final = "LAUNCHER_SYSTEMD_BUILD"
_INSTALL_S: Final = 300.0
_JOURNAL: Final = pytest.StashKey[tuple[Container, str]]()


@pytest.fixture(scope="session")
def build() -> Path:
    """The folder that `make test-systemd` keeps its image in."""
    if BUILD_VARIABLE not in os.environ:
        pytest.skip("needs a container with systemd: make test-systemd")
    return Path(os.environ[BUILD_VARIABLE]).resolve()


@pytest.fixture(scope="session")
def base(build: Path) -> Path:
    """A root file system with systemd and Python."""
    return image.make_base(build)


@pytest.fixture(scope="session")
def wheels(build: Path, base: Path) -> Path:
    """All that the project needs to be installed in there."""
    return image.download_wheels(build, image.python_of(base))


@pytest.fixture(scope="session")
def runs(build: Path) -> Path:
    """Where running containers have their folders; what killed runs left there is removed first."""
    keeper.sweep(build / "runs")
    return build / "runs"


@pytest.fixture(scope="session")
def container(
    runs: Path, base: Path, wheels: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Container]:
    """A container in which an administrator has installed this checkout's wheel into /opt/launcher."""
    with Container(runs / f"launcher-{uuid4().hex[:8]}", base, wheels) as booted:
        wheel = image.build_wheel(tmp_path_factory.mktemp("wheel"))
        shutil.copy(wheel, Path(f"/proc/{booted.leader}/root/root"))
        booted.run("python3", "-m", "venv", "/opt/launcher", timeout_s=_INSTALL_S)
        pip = ["/opt/launcher/bin/pip", "install", "--quiet", "--no-cache-dir", "--no-index", "--find-links=/wheels"]
        booted.run(*pip, f"/root/{wheel.name}[{image.EXTRAS}]", timeout_s=_INSTALL_S)
        pytestconfig.stash[_JOURNAL] = (booted, booted.cursor())
        yield booted
        del pytestconfig.stash[_JOURNAL]


@pytest.fixture(scope="session")
def installed(container: Container) -> Service:
    """The default model's unit, installed by the project's own command."""
    service = Service(container, "gemma3-270m")
    service.install()
    return service


@pytest.fixture
def service(installed: Service) -> Iterator[Service]:
    """That unit, as it may be left by another test; without drop-ins of this one afterwards."""
    yield installed
    installed.restore()


@pytest.fixture
def serving(service: Service) -> Service:
    """That unit, active."""
    service.ensure_active()
    return service


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Remember where the journal ends before a test."""
    if (held := item.config.stash.get(_JOURNAL, None)) is not None:
        item.config.stash[_JOURNAL] = (held[0], held[0].cursor())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the journal since a test's beginning to its report, if it failed."""
    report = yield
    held = item.config.stash.get(_JOURNAL, None)
    if report.failed and held is not None:
        words = [f"--after-cursor={held[1]}"] if held[1] else []
        try:
            told = held[0].told("--lines=400", *words)
        except Exception as error:  # noqa: BLE001 - the test's own failure is what is to be reported
            told = f"no journal: {error}\n{held[0].console()}"
        report.sections.append(("the container's journal", told))
    return report
