"""A hub on loopback, and a client that does not wait."""

from collections.abc import Iterator

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
