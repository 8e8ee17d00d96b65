"""A real Ray cluster on loopback, one process group per node, that leaves nothing behind.

Each node is a ``ray start`` with an address of its own in 127.0.0.0/8 and GPUs that it declares. It must not know what is
deployed on it.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from launcher.supervisor.checks import free_port
from tests.fakes.processes import heirs

HEAD: Final = "127.0.0.2"
UP_S: Final = 240.0
"""Three nodes are up in 15 to 20 s on a 2-core machine, most of it imports; in several times that on a busy one."""
GONE_S: Final = 20.0
_OBJECTS_BYTES: Final = 80_000_000
"""The least that Ray takes is 75 MB."""
_TOO_SLOW: Final = "The current node timed out during startup"
_MAX_BEGUN: Final = 12
"""Starts of nodes in all; the tests want seven."""
_ENVIRONMENT: Final[Mapping[str, str]] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_SLOW_STARTUP_WARNING_S": "2",  # Ray waits half a minute until it says why nothing is placed
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}


class RayCluster:
    """A head without a GPU, and the nodes that are started on it; ``url`` is its dashboard's."""

    def __init__(self, python: str, *, token: str | None = None, env: Mapping[str, str] | None = None) -> None:
        """Hold which Python has Ray, and what its processes inherit; nothing is started yet."""
        # Not pytest's own folder: a Unix socket's path may have 107 characters, of which Ray takes some 60.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self._python = python
        self.token = token
        self._groups: dict[str, subprocess.Popen[bytes]] = {}
        self._words: dict[str, tuple[str, ...]] = {}
        self._n_begun = 0
        self._head = f"{HEAD}:{free_port('127.0.0.1')}"
        self._port = free_port("127.0.0.1")
        self.url = f"http://127.0.0.1:{self._port}"
        (self.folder / "home").mkdir()
        self._env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            **_ENVIRONMENT,
            "RAY_AUTH_MODE": "disabled" if token is None else "token",
            **({} if token is None else {"RAY_AUTH_TOKEN": token}),
            "HOME": str(self.folder / "home"),
            "LAUNCHER_STATE_DIR": str(self.folder),
            **(env or {}),
        }

    def start(self, *, n_cpu: int, nodes: Mapping[str, int]) -> None:
        """Start the head with so many CPUs, then nodes of as many CPUs by address with so many GPUs; wait for all."""
        self._begin(HEAD, "--head", f"--port={self._head.rpartition(':')[2]}", "--include-dashboard=true",
                    "--dashboard-host=127.0.0.1", f"--dashboard-port={self._port}", f"--num-cpus={n_cpu}", "--num-gpus=0",
                    f"--ray-client-server-port={free_port('127.0.0.1')}")  # fmt: skip
        self.await_that(lambda: len(self.alive()) == 1, "the head")
        for address, n_gpus in nodes.items():
            self.join(address, n_gpus, n_cpu=n_cpu)
        self.await_that(lambda: len(self.alive()) == 1 + len(nodes), "all nodes")

    def join(self, address: str, n_gpus: int, *, n_cpu: int) -> None:
        """Start a node, and do not wait."""
        self._begin(address, f"--address={self._head}", f"--num-cpus={n_cpu}", f"--num-gpus={n_gpus}",
                    "--labels", "ray.io/accelerator-type=A100-80G",
                    "--resources", json.dumps({"accelerator_type:A100-80G": 1}))  # fmt: skip

    def lose(self, address: str) -> None:
        """Kill a node, which has no time to say good-bye."""
        process = self._groups.pop(address)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def alive(self) -> list[str]:
        """Return the addresses of the nodes that Ray counts as alive, none where nobody answers."""
        try:
            answer = self.get("/api/v0/nodes?detail=1")
        except (OSError, http.client.HTTPException, ValueError):
            return []
        nodes = answer["data"]["result"]["result"]
        return sorted({node["node_ip"] for node in nodes if node["state"] == "ALIVE"})

    def get(self, path: str) -> Any:
        """Return what the dashboard answers to a path."""
        return json.loads(self._ask("GET", path))

    def put(self, body: object) -> None:
        """Declare what Serve shall run."""
        self._ask("PUT", "/api/serve/applications/", json.dumps(body))

    def applications(self) -> dict[str, Any]:
        """Return what Serve tells of each application."""
        found: dict[str, Any] = self.get("/api/serve/applications/")["applications"]
        return found

    def await_that(self, holds: Callable[[], bool], what: str, timeout_s: float = UP_S) -> None:
        """Wait for a condition; fail where a node has ended meanwhile."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            for address in [address for address, process in self._groups.items() if process.poll() is not None]:
                self._begin_again(address, what)
            assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s: {self.output(HEAD)}"
            time.sleep(0.1)

    def output(self, address: str) -> str:
        """Return the end of what a node's ``ray start`` printed."""
        return (self.folder / f"{address}.log").read_text()[-2000:]

    def close(self) -> None:
        """Kill all nodes, and whatever they started."""
        for address in list(self._groups):
            self.lose(address)
        deadline = time.monotonic() + GONE_S
        while left := heirs(str(self.folder)):
            for process in left:
                process.kill()
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.1)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin_again(self, address: str, what: str) -> None:
        """Start a node once more that Ray gave up after its fixed 30 s, as it does on a busy machine."""
        said = self.output(address)
        is_slow = _TOO_SLOW in said and self._n_begun < _MAX_BEGUN
        assert is_slow, f"{what}: {address} has ended: {said}"
        self.lose(address)
        self._begin(address, *self._words[address])

    def _begin(self, address: str, *words: str) -> None:
        self._words[address] = words
        self._n_begun += 1
        with (self.folder / f"{address}.log").open("wb") as log:
            self._groups[address] = subprocess.Popen(
                [
                    *(self._python, "-m", "ray.scripts.scripts", "start", "--block", *words),
                    f"--node-ip-address={address}",
                    f"--object-store-memory={_OBJECTS_BYTES}",
                    # Else all agents of this machine want one port, and the second's logs cannot be read.
                    f"--dashboard-agent-listen-port={free_port('127.0.0.1')}",
                    *("--min-worker-port=0", "--max-worker-port=0"),
                    f"--temp-dir={self.folder / str(self._n_begun)}",  # two nodes that start in one folder hinder each other
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )

    def _ask(self, method: str, path: str, body: str | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        headers = {"Content-Type": "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != http.client.OK:
            message = f"{method} {path}: {answer.status} {content[:300]!r}"
            raise ValueError(message)
        return content
