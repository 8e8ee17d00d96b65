"""What the scheduler of Ray 2.60 was seen to list, and whose it is."""

import json
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from launcher.backends.ray_serve import Value, build_application
from launcher.cluster.demands import find_demand, parse_demands
from launcher.cluster.serve_details import Application
from launcher.domain import Engine, Footprint, HostUse, MemoryUse, VllmTerms
from launcher.errors import ClusterError
from tests.cluster.conftest import RECORDED
from tests.fakes.plans import plan_for


def _status(**report: Any) -> bytes:
    return json.dumps({"data": {"clusterStatus": {"loadMetricsReport": report}}}).encode()


def _application(resources: object, node: str | None = None) -> Application:
    deployment = {"required_resources": resources, "replicas": [{"replica_id": "r", "node_id": node}]}
    return msgspec.convert({"status": "DEPLOYING", "deployments": {"d": deployment}}, Application)


def _declared(n_gpu: int) -> Value:
    """Return an application of one copy over so many GPUs of a node."""
    devices = tuple(MemoryUse(name=f"n/gpu{idx}", host="n") for idx in range(n_gpu))
    return build_application(
        replace(
            plan_for(),
            engine=Engine.VLLM,
            vllm=VllmTerms(dtype="bfloat16", kv_cache_tokens=1),
            tensor_parallel=n_gpu,
            footprint=Footprint(devices=devices, host=HostUse()),
        ),
        source="/m",
    )


def test_a_replica_that_waits_is_told_by_what_it_takes() -> None:
    """Ray does not say whose a demand is; one of a replica that has its node is another's."""
    demands = parse_demands(_status(resourceDemand=[[{"CPU": 0.1, "GPU": 8.0}, 3]]), "http://ray")
    assert find_demand(demands, _application({"CPU": 0.1, "GPU": 8})) == "8 GPU, 0.1 CPU"
    assert find_demand(demands, _application({"CPU": 0.1, "GPU": 2})) is None
    assert find_demand(demands, _application({"CPU": 0.1, "GPU": 8}, node="n1")) is None
    on_cpu = parse_demands(_status(resourceDemand=[[{"CPU": 2.0}, 1]]), "http://ray")
    assert find_demand(on_cpu, _application({"CPU": 2})) == "2 CPU"
    assert find_demand(on_cpu, _application({})) is None


def test_a_placement_group_counts_as_a_whole() -> None:
    """Ray Serve LLM asks for one, with a bundle for each GPU; Serve tells of the replica's first process alone."""
    group = {"strategy": "STRICT_PACK", "bundles": [[{"CPU": 1.0, "GPU": 1.0}, 1], [{"GPU": 1.0}, 3]]}
    behind = {"CPU_group_0_db9a6411fecb": 1.0, "bundle_group_db9a6411fecb": 0.001}
    demands = parse_demands(_status(pgDemand=[[group, 1]], resourceDemand=[[behind, 1]]), "http://ray")
    application = msgspec.structs.replace(_application({"CPU": 1}), deployed_app_config=_declared(4))
    assert find_demand(demands, application) == "4 GPU, 1 CPU"
    smaller = msgspec.structs.replace(application, deployed_app_config=_declared(2))
    assert find_demand(demands, smaller) is None


def test_a_cluster_on_which_nothing_waits() -> None:
    """As it was recorded; before the first report there is none."""
    recorded = json.dumps(RECORDED["answers"]["GET /api/cluster_status"]).encode()
    assert parse_demands(recorded, "http://ray") == ()
    assert parse_demands(b'{"data": {"clusterStatus": null}}', "http://ray") == ()
    assert parse_demands(b'{"data": {}}', "http://ray") == ()


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data": {"clusterStatus": {"loadMetricsReport": {"pgDemand": 3}}}}'])
def test_another_answer_is_said_to_be_one(body: bytes) -> None:
    """Whatever is at that address."""
    with pytest.raises(ClusterError, match="does not answer as"):
        parse_demands(body, "http://ray")
