"""Coroutines as tests, and engines that are gone after them."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterator

import pytest

from tests.fakes.gateway import Engine


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(_run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})))
    return True


async def _run(test: Coroutine[None, None, None]) -> None:
    await test
    for _ in range(3):  # connections that were closed last are gone some turns of the loop later
        await asyncio.sleep(0)


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
