"""What the scheduler of Ray 2.60 was seen to list, and whose it is."""

import json
from typing import Any

import msgspec
import pytest

from launcher.cluster.demands import find_demand, parse_demands
from launcher.cluster.serve_details import Application
from launcher.errors import ClusterError
from tests.cluster.conftest import RECORDED


def _status(**report: Any) -> bytes:
    return json.dumps({"data": {"clusterStatus": {"loadMetricsReport": report}}}).encode()


def _application(resources: object, node: str | None = None) -> Application:
    deployment = {"required_resources": resources, "replicas": [{"replica_id": "r", "node_id": node}]}
    return msgspec.convert({"status": "DEPLOYING", "deployments": {"d": deployment}}, Application)


def test_a_replica_that_waits_is_told_by_what_it_takes() -> None:
    """Ray does not say whose a demand is; one of a replica that has its node is another's."""
    demands = parse_demands(_status(resourceDemand=[[{"CPU": 0.1, "GPU": 8.0}, 3]]), "http://ray")
    assert find_demand(demands, _application({"CPU": 0.1, "GPU": 8})) == "8 GPU"
    assert find_demand(demands, _application({"CPU": 0.1, "GPU": 2})) is None
    assert find_demand(demands, _application({"CPU": 0.1, "GPU": 8}, node="n1")) is None


def test_a_placement_group_counts_as_a_whole() -> None:
    """Ray Serve LLM asks for one, with a bundle for each GPU."""
    group = {"strategy": "PACK", "bundles": [[{"CPU": 1.0, "GPU": 1.0}, 1], [{"GPU": 1.0}, 3]]}
    demands = parse_demands(_status(pgDemand=[[group, 1]]), "http://ray")
    bundles = [{"CPU": 1, "GPU": 1}, *[{"GPU": 1}] * 3]
    assert find_demand(demands, _application(bundles)) == "4 GPU, 1 CPU"


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
