"""A state directory of one's own, and real supervisor processes over the fake engine."""

import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launcher.supervisor.checks import free_port
from tests.fakes.harness import Served, poll, start, start_stepping


def is_gone(served: Served) -> bool:
    """Whether nothing of the engine is left."""
    return not served.tree()


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the program at an empty state directory."""
    path = tmp_path / "state"
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(path))
    return path


@pytest.fixture
def serve(started: list[Served], state_dir: Path, tmp_path: Path) -> Callable[..., Served]:
    """Start supervisors."""
    del state_dir

    def begin(*arguments: str, name: str = "fake", port: int | None = None, **more: Any) -> Served:
        output = tmp_path / f"output-{len(started)}"
        served = start(*arguments, name=name, port=port or free_port("127.0.0.1"), output=output, **more)
        started.append(served)
        return served

    return begin


@pytest.fixture
def serve_stepping(started: list[Served], state_dir: Path, tmp_path: Path) -> Callable[..., Served]:
    """Start supervisors with a gateway, whose engines may be replaced."""
    del state_dir

    def begin(port: int | None = None, options: dict[str, Any] | None = None, **scenario: Any) -> Served:
        output = tmp_path / f"output-{len(started)}"
        port = port or free_port("127.0.0.1")
        served = start_stepping(scenario, name="fake", port=port, output=output, options=options or {})
        started.append(served)
        return served

    return begin


@pytest.fixture
def started() -> Iterator[list[Served]]:
    """Collect supervisors; whatever a test leaves is ended after it, and nothing of an engine may be left then."""
    started: list[Served] = []
    yield started
    for served in started:
        if served.process.poll() is None:
            served.process.send_signal(signal.SIGKILL)
            served.process.wait()
    for served in started:
        assert poll(partial(is_gone, served)), "the engine outlived its supervisor"
