"""``launch serve`` over a real vLLM, in an environment of its own, and a model of a megabyte."""

import contextlib
import http.client
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from launcher.domain import Engine, EngineInstall, Plan, Request
from launcher.inventory import probe_inventory
from launcher.inventory.vllm_install import EXPLICIT_VARIABLE
from launcher.metadata.load import read_spec
from launcher.planner.fit import decide
from launcher.profiles.local import profile_for_weights
from launcher.supervisor.checks import free_port
from tests.fakes.processes import heirs
from tests.fakes.tiny_model import write_tiny_model

READY_S: Final = 400.0
"""A start takes half a minute on an idle 2-core machine, most of it imports; several times that on a busy one."""
GONE_S: Final = 30.0
NAME: Final = "tiny"


class Serve:
    """A ``launch serve`` in the foreground, the port it answers at, and all that it started."""

    def __init__(
        self, launch: tuple[str, ...], folder: Path, words: tuple[str, ...], env: Mapping[str, str] | None = None
    ) -> None:
        """Start it, with more in its environment; what it leaves on disk goes below ``folder``."""
        self.state = folder / "state"
        self._launch = launch
        self._env = {
            **os.environ,
            "LAUNCHER_STATE_DIR": str(self.state),
            "LAUNCHER_CACHE_DIR": str(folder / "cache"),
            **(env or {}),
        }
        self.errors = folder / "stderr.txt"
        self.port = free_port("127.0.0.1")
        with self.errors.open("w") as stderr:
            self.process = subprocess.Popen(
                [*launch, "serve", *words, "--port", str(self.port)],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=self._env,
            )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another command in the same state directory."""
        return subprocess.run(
            [*self._launch, *words], env=self._env, capture_output=True, text=True, timeout=60, check=False
        )

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        """Send a request, JSON where there is a body, and read the whole answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=READY_S)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def chat(self, **more: object) -> tuple[int, bytes]:
        """Ask for a few tokens."""
        body = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, **more}
        return self.ask("/v1/chat/completions", body)

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return what the instance recorded of an event so far."""
        path = self.state / "instances" / NAME / "events.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [found for line in lines if (found := json.loads(line)).get("event") == event]

    def await_event(self, event: str, n: int = 1, timeout_s: float = READY_S) -> None:
        """Wait until it was recorded so many times; fail at once where the command has ended."""
        self.await_that(lambda: len(self.events(event)) >= n, f"{event} for the {n}. time", timeout_s)

    def await_that(self, holds: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert self.process.poll() is None or holds(), f"{what}: it ended: {self.errors.read_text()[-2000:]}"
            assert time.monotonic() < deadline, (
                f"{what}: not within {timeout_s:.0f} s: {self.errors.read_text()[-2000:]}"
            )
            time.sleep(0.1)

    def tree(self) -> list[psutil.Process]:
        """Return every living process that inherited the state directory."""
        return heirs(str(self.state))

    def engines(self, title: str) -> list[psutil.Process]:
        """Return the engine's processes of a title: ``vllm.entrypoints`` is the main one, ``EngineCore`` its core."""
        found = []
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                if title in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def engine(self, title: str) -> psutil.Process:
        """Return the one of a title."""
        (process,) = self.engines(title)
        return process

    def end(self) -> int:
        """Wait until the command has ended and nothing of it lives; return its exit code."""
        code = self.process.wait(GONE_S)
        self.await_that(lambda: not self.tree(), "all processes gone", GONE_S)
        return code

    def close(self) -> None:
        """Kill what a failed test left."""
        for process in self.tree():
            process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def vllm() -> EngineInstall:
    """The vLLM that is named, which has to be one for CPUs."""
    if not os.environ.get(EXPLICIT_VARIABLE):
        pytest.skip(f"needs vLLM for CPUs in an environment that ${EXPLICIT_VARIABLE} names: make test-vllm")
    found = [install for install in probe_inventory().engines or () if install.engine is Engine.VLLM]
    assert found, "the environment has no vLLM"
    return found[0]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model, whose name is the instance's."""
    return write_tiny_model(tmp_path_factory.mktemp("weights") / NAME)


@pytest.fixture(scope="session")
def plan(vllm: EngineInstall, model: Path) -> Plan:
    """What is planned for it here."""
    del vllm
    outcome = decide(Request(profile=profile_for_weights(model, read_spec(model))), probe_inventory())
    assert isinstance(outcome, Plan)
    return outcome


@pytest.fixture(scope="module")
def start(
    vllm: EngineInstall, launch: tuple[str, ...], model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Serve]]:
    """Start ``launch serve`` of the model with more words; all of it is killed after the module."""
    del vllm
    started: list[Serve] = []

    def begin(*words: str) -> Serve:
        started.append(Serve(launch, tmp_path_factory.mktemp("serve"), (str(model), *words)))
        return started[-1]

    yield begin
    for serve in started:
        serve.close()
