"""A hub on loopback, a client that does not wait, and disks that are as full as a test wants."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.fetch.web import Web
from tests.fakes.hub import Hub, serve


@pytest.fixture(autouse=True)
def _no_user_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies of whoever runs the tests have no say: loopback is never asked by way of them."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty hub that behaves."""
    with serve(Hub()) as served:
        yield served


@pytest.fixture
def waits() -> list[float]:
    """The seconds that the client would have waited."""
    return []


@pytest.fixture
def web(waits: list[float]) -> Web:
    """A client without a token that notes waits instead of waiting."""
    return Web(timeout_s=5.0, sleep=waits.append)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every disk has so many bytes free as the list's one item says, none at first."""
    free, real = [0], os.statvfs

    def statvfs(path: Path) -> os.statvfs_result:
        found = list(real(path))
        found[1], found[4] = 1, free[0]
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", statvfs)
    return free


_TRIED: Counter[str] = Counter()


@pytest.fixture(scope="session")
def tried() -> Counter[str]:
    """How many bad inputs of each kind were tried; printed at the end."""
    return _TRIED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many bad inputs were tried on downloads."""
    if _TRIED:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(_TRIED.items()))
        result = "" if terminalreporter.stats.get("failed") else ", none let in"
        terminalreporter.write_line(f"downloads: {_TRIED.total()} bad inputs tried{result}: {kinds}")
