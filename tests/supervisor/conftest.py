"""A state directory of one's own, and real supervisor processes over the fake engine."""

import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launcher.supervisor.checks import free_port
from tests.fakes.harness import Served, poll, start


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
def serve(state_dir: Path, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start supervisors; whatever a test leaves is ended after it, and nothing of an engine may be left then."""
    del state_dir
    started: list[Served] = []

    def begin(*arguments: str, name: str = "fake", port: int | None = None, **more: Any) -> Served:
        output = tmp_path / f"output-{len(started)}"
        served = start(*arguments, name=name, port=port or free_port("127.0.0.1"), output=output, **more)
        started.append(served)
        return served

    yield begin
    for served in started:
        if served.process.poll() is None:
            served.process.send_signal(signal.SIGKILL)
            served.process.wait()
    for served in started:
        assert poll(partial(is_gone, served)), "the engine outlived its supervisor"
