"""A model on a real Ray cluster: submitted beside a foreign application, answered through the gateway, nodes lost and back.

Ray, its scheduler and its proxies are real; in place of vLLM there is a double of Ray Serve LLM, which reads the same application
and asks for the same GPUs. The tests share one start, in the order in which they stand; the last one stops it.
"""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from launcher.backends.ray_serve import application_name
from tests.ray.cluster import RayCluster
from tests.ray.conftest import MODEL, N_CPU, NODES, OnCluster, are_all_free, eventually, kept

pytestmark = [pytest.mark.ray, pytest.mark.heavy, pytest.mark.timeout(420)]

OURS = application_name(MODEL)


@pytest.fixture(scope="module")
def served(start: Callable[..., OnCluster], foreign: dict[str, Any]) -> OnCluster:
    """Ready, with a copy on either node: each takes both GPUs of one."""
    del foreign
    serve = start(MODEL)
    serve.await_event("engine.ready")
    return serve


def _replicas(cluster: RayCluster) -> list[dict[str, Any]]:
    (deployment,) = cluster.applications()[OURS]["deployments"].values()
    found: list[dict[str, Any]] = deployment["replicas"]
    return found


def _where(cluster: RayCluster) -> list[str]:
    return sorted(each["node_ip"] for each in _replicas(cluster) if each["state"] == "RUNNING" and each["node_ip"])


def test_it_runs_beside_what_ran(served: OnCluster, cluster: RayCluster, foreign: dict[str, Any]) -> None:
    """Both copies find their node; the foreign application is the same process, declared with the same bytes."""
    assert served.events("engine.ready")
    cluster.await_that(lambda: _where(cluster) == sorted(NODES), "a copy on each node")
    assert kept(cluster) == foreign


def test_it_answers_through_the_gateway(served: OnCluster) -> None:
    """A chat under the name that it was served as, and the list of models."""
    status, body = served.chat()
    assert status == 200, body
    answer = json.loads(body)
    assert (answer["model"], answer["usage"]["completion_tokens"]) == (MODEL, 3)
    assert answer["where"]["node"] in NODES
    assert MODEL in [entry["id"] for entry in json.loads(served.ask("/v1/models")[1])["data"]]


def test_it_streams(served: OnCluster) -> None:
    """Events as they come, the last one says that it is over."""
    status, body = served.chat(stream=True, max_tokens=5)
    events = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: ")]
    assert status == 200
    assert events[-1] == b"[DONE]"
    assert len(events) == 6


def test_the_commands_know_it(served: OnCluster) -> None:
    """Its state, the cluster it runs on and the replicas' own lines are told as for an engine of this machine."""
    assert MODEL in served.run("ps").stdout
    told = json.loads(served.run("status", MODEL, "--json").stdout)
    assert OURS in json.dumps(told)
    served.await_that(
        lambda: f"the double of {MODEL} is loaded" in served.run("logs", MODEL).stdout, "the replicas' lines", 30
    )


def test_a_lost_node_costs_a_copy(served: OnCluster, cluster: RayCluster) -> None:
    """The raylet is killed: the other copy answers, what was lost is told, and Ray takes a request for it no more."""
    (lost, *_) = _where(cluster)
    cluster.lose(lost)
    served.await_event("instance.degraded")
    answers = {served.chat()[0] for _ in range(5)}
    assert answers == {200}
    assert len(served.events("engine.ready")) == 1


def test_requests_wait_for_a_node_to_return(served: OnCluster, cluster: RayCluster, foreign: dict[str, Any]) -> None:
    """Without any node that it fits on, what is asked is held, and answered once one has joined."""
    (last,) = _where(cluster)
    cluster.lose(last)
    served.await_event("engine.failed")
    answers: list[tuple[int, bytes]] = []
    asking = threading.Thread(target=lambda: answers.append(served.chat()))
    asking.start()
    for address, n_gpus in NODES.items():
        cluster.join(address, n_gpus, n_cpu=N_CPU)
    cluster.await_that(lambda: len(cluster.alive()) == 1 + len(NODES), "both nodes are back")
    asking.join(120)
    assert [status for status, _ in answers] == [200]
    served.await_event("engine.ready", 2)
    assert kept(cluster) == foreign


def test_all_copies_are_back(served: OnCluster, cluster: RayCluster) -> None:
    """Nobody has to be asked: each node that joins again takes its copy."""
    cluster.await_that(lambda: _where(cluster) == sorted(NODES), "a copy on each node")
    assert served.chat()[0] == 200


def test_a_stop_removes_ours_alone(served: OnCluster, cluster: RayCluster, foreign: dict[str, Any]) -> None:
    """The application is gone when the command has ended; the foreign one never noticed."""
    assert served.run("stop", MODEL).returncode == 0
    assert served.end() == 0
    assert OURS not in cluster.applications()
    assert kept(cluster) == foreign
    eventually(lambda: are_all_free(cluster), "all GPUs are free")
