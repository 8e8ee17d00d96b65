"""What Ray, or whoever else uses the cluster, does not let happen: told with Ray's reason, and nothing of ours stays.

The tests share the cluster of the session and leave it as they found it.
"""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.ray_serve import application_name
from tests.ray.cluster import RayCluster
from tests.ray.conftest import MODEL, N_CPU, NODES, OnCluster, kept

pytestmark = [pytest.mark.ray, pytest.mark.heavy, pytest.mark.timeout(420)]

OURS = application_name(MODEL)


@pytest.fixture
def declare(cluster: RayCluster, foreign: dict[str, Any]) -> Iterator[Callable[..., None]]:
    """Run another application of somebody else's beside the first one, until the test ends."""
    first = json.loads(foreign["config"])

    def also(name: str, **options: object) -> None:
        other = {"name": name, "route_prefix": f"/{name}", "import_path": "foreign:app"}
        other["deployments"] = [{"name": "Foreign", **options}]  # type: ignore[assignment]  # JSON
        cluster.put({"applications": [first, other]})
        cluster.await_that(lambda: cluster.applications()[name]["status"] == "RUNNING", f"{name} runs")

    yield also
    cluster.put({"applications": [first]})
    cluster.await_that(lambda: list(cluster.applications()) == [first["name"]], "the other one is gone")


def test_without_a_token_nothing_is_told(cluster: RayCluster, launch: tuple[str, ...], tmp_path: Path) -> None:
    """A cluster that wants one is not even read, and the words say where a token comes from."""
    cluster.token, token = None, cluster.token
    try:
        serve = OnCluster(launch, tmp_path, cluster, (MODEL,))
        assert serve.process.wait(60) == 1
    finally:
        cluster.token = token
    told = serve.errors.read_text()
    assert "401" in told
    assert "RAY_AUTH_TOKEN" in told


def test_a_foreign_application_of_our_name_is_left_alone(
    cluster: RayCluster, start: Callable[..., OnCluster], declare: Callable[..., None], foreign: dict[str, Any]
) -> None:
    """It bears no mark of ours: nothing is sent."""
    declare(OURS)
    before = cluster.applications()[OURS]["last_deployed_time_s"]
    serve = start(MODEL)
    assert serve.process.wait(60) == 1
    assert OURS in serve.errors.read_text()
    assert cluster.applications()[OURS]["last_deployed_time_s"] == before
    assert kept(cluster) == foreign


def test_what_ray_does_not_place_is_told_with_its_reason(
    cluster: RayCluster, start: Callable[..., OnCluster], declare: Callable[..., None], foreign: dict[str, Any]
) -> None:
    """Others hold all processors beside the GPUs, which no plan knows of: the start ends, and takes the application off."""
    declare(
        "processors",
        num_replicas=len(NODES),
        ray_actor_options={"num_cpus": N_CPU, "resources": {"accelerator_type:A100-80G": 0.5}},
    )
    serve = start(MODEL, "--stall-timeout", "8")
    assert serve.process.wait(120) == 1
    told = serve.errors.read_text()
    assert "no node has room for a replica, which takes 2 GPU, 1 CPU" in told
    assert "help:" in told
    assert OURS not in cluster.applications()
    assert kept(cluster) == foreign


def test_what_a_killed_command_left_is_taken_off(
    cluster: RayCluster, start: Callable[..., OnCluster], foreign: dict[str, Any]
) -> None:
    """SIGKILL leaves the application on the cluster, as nothing of ours is there to see it; a stop takes it off."""
    serve = start(MODEL)
    serve.await_event("engine.ready")
    serve.process.send_signal(signal.SIGKILL)
    serve.process.wait()
    assert OURS in cluster.applications()
    stopped = serve.run("stop", MODEL)
    assert stopped.returncode == 0, stopped.stderr
    assert OURS not in cluster.applications()
    assert kept(cluster) == foreign
