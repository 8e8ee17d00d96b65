"""Engines that are gone after a test."""

from collections.abc import Callable, Iterator

import pytest

from tests.fakes.gateway import Engine


@pytest.fixture
def start_engine() -> Iterator[Callable[[], Engine]]:
    """Start engines; whatever a test leaves of them is ended after it."""
    engines: list[Engine] = []

    def start() -> Engine:
        engines.append(Engine())
        return engines[-1]

    yield start
    for engine in engines:
        engine.end()
