"""A real Ray cluster of three nodes on loopback, an application of somebody else's on it, and ``launch serve --cluster``."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from launcher.supervisor.checks import free_port
from tests.ray.cluster import RayCluster
from tests.vllm.conftest import Serve

RAY_VARIABLE: Final = "LAUNCHER_TEST_RAY"
DOUBLE: Final = Path(__file__).with_name("double")
TOKEN: Final = "f" * 64
N_CPU: Final = 4
NODES: Final = {"127.0.0.3": 2, "127.0.0.4": 2}
"""Declared GPUs by address."""
FOREIGN: Final = "somebody else's"
MODEL: Final = "llama3.1-70b"
"""Its bf16 weights take two GPUs of 80 GB."""


class OnCluster(Serve):
    """A ``launch serve --cluster`` of a profile."""

    def __init__(self, launch: tuple[str, ...], folder: Path, cluster: RayCluster, words: tuple[str, ...]) -> None:
        """Start it; the first word is the name of the profile."""
        self.name = words[0]
        token = {} if cluster.token is None else {"RAY_AUTH_TOKEN": cluster.token}
        super().__init__(launch, folder, (*words, "--cluster", cluster.url), env=token)

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return what the instance recorded of an event so far."""
        path = self.state / "instances" / self.name / "events.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [found for line in lines if (found := json.loads(line)).get("event") == event]

    def chat(self, **more: object) -> tuple[int, bytes]:
        """Ask for a few words."""
        body = {"model": self.name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, **more}
        return self.ask("/v1/chat/completions", body)


@pytest.fixture(scope="session")
def ray_python() -> str:
    """The Python of an environment that has Ray."""
    python = os.environ.get(RAY_VARIABLE)
    if not python:
        pytest.skip(f"needs Ray in an environment whose Python ${RAY_VARIABLE} names: make test")
    return python


@pytest.fixture(scope="session")
def cluster(ray_python: str) -> Iterator[RayCluster]:
    """A head without a GPU and two nodes with two each, which want a token; Ray Serve LLM has a double."""
    ray = RayCluster(ray_python, token=TOKEN, env={"PYTHONPATH": str(DOUBLE)})
    try:
        ray.start(n_cpu=N_CPU, nodes=NODES)
        yield ray
    finally:
        ray.close()


@pytest.fixture(scope="session")
def foreign(cluster: RayCluster) -> dict[str, Any]:
    """Whatever Ray tells of the foreign application, once it runs; it must never change.

    Somebody has put it there with words that we would not choose. Serve listens where they said.
    """
    declared = {
        "name": FOREIGN,
        "route_prefix": "/foreign",
        "import_path": "foreign:app",
        "runtime_env": {"env_vars": {"NUMBER": "0017", "EMPTY": ""}},
        "deployments": [{"name": "Foreign", "max_ongoing_requests": 3, "user_config": None}],
        "unknown_field": {"kept?": [1, 2.5, None]},
    }
    cluster.put({"http_options": {"host": "127.0.0.1", "port": free_port("127.0.0.1")}, "applications": [declared]})
    cluster.await_that(lambda: cluster.applications()[FOREIGN]["status"] == "RUNNING", "the foreign one runs")
    return kept(cluster)


def kept(cluster: RayCluster) -> dict[str, Any]:
    """Return what must stay of the foreign application: how it was declared, to the byte, and the very process."""
    found = cluster.applications()[FOREIGN]
    deployment = found["deployments"]["Foreign"]
    replicas = [{key: each.get(key) for key in ("replica_id", "pid", "node_id")} for each in deployment["replicas"]]
    return {"config": json.dumps(found["deployed_app_config"]), "replicas": replicas}


def are_all_free(cluster: RayCluster) -> bool:
    """Tell whether nobody has reserved any GPU of all nodes; Ray leaves out a kind whose count it is about to renew."""
    status = cluster.get("/api/cluster_status")["data"]["clusterStatus"] or {}
    used, total = ((status.get("loadMetricsReport") or {}).get("usage") or {}).get("GPU", (0.0, 0.0))
    return float(total - used) == sum(NODES.values())


@pytest.fixture(scope="module")
def start(
    cluster: RayCluster, launch: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., OnCluster]]:
    """Start ``launch serve --cluster`` with more words; all of it is killed after the module.

    Ray tells some seconds late that the GPUs of an application which is gone are free again: that is waited for.
    """
    started: list[OnCluster] = []
    cluster.await_that(lambda: are_all_free(cluster), "the GPUs of earlier applications are free")

    def begin(*words: str) -> OnCluster:
        started.append(OnCluster(launch, tmp_path_factory.mktemp("serve"), cluster, words))
        return started[-1]

    yield begin
    for serve in started:
        serve.close()


def eventually(holds: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Wait for a condition of which no process of ours is the reason."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.1)
