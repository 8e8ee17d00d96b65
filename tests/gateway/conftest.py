"""Engines that are gone after a test."""

import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.fakes.gateway import Engine

collect_ignore = [] if shutil.which("nginx") and shutil.which("openssl") else ["test_reverse_proxy.py"]
"""A reverse proxy is nobody's duty to install for the checks of this project."""


@pytest.fixture
def start_engine() -> Iterator[Callable[[], Engine]]:
    """Start engines; whatever a test leaves of them is ended after it."""
    engines: list[Engine] = []

    def start(port: int = 0) -> Engine:
        engines.append(Engine(port))
        return engines[-1]

    yield start
    for engine in engines:
        engine.end()


@pytest.fixture
def engine(start_engine: Callable[[], Engine]) -> Engine:
    """One engine."""
    return start_engine()
