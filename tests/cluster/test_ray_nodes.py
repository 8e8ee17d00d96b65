"""What a Ray dashboard's recorded answers mean, and what is said of answers that are none of Ray's."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.cluster.ray_nodes import build_cluster
from launcher.domain import Cluster, DeviceKind, Provenance
from launcher.errors import ClusterError
from launcher.inventory import load_inventory
from launcher.units import MIB
from tests.cluster.conftest import RECORDED

_NODES, _SUMMARY = "GET /api/v0/nodes?detail=1&limit=10000", "GET /nodes?view=summary"
_STATUS, _VERSION = "GET /api/cluster_status", "GET /api/version"
_H100 = {
    "index": 0,
    "name": "NVIDIA H100 80GB HBM3",
    "uuid": "GPU-1",
    "utilizationGpu": 0,
    "memoryUsed": 1024,
    "memoryTotal": 81559,
    "processesPids": None,
}
"""As ``ray/dashboard/modules/reporter/gpu_providers.py`` (2.60.0) writes it, under ``/nodes``'s names; no GPU was at hand to record."""


def _answers() -> dict[str, Any]:
    return copy.deepcopy(RECORDED["answers"])


def _build(answers: dict[str, Any]) -> Cluster:
    def body(key: str) -> bytes:
        return json.dumps(answers[key]).encode()

    return build_cluster(
        "http://127.0.0.1:8265",
        nodes=body(_NODES),
        summary=body(_SUMMARY),
        status=body(_STATUS),
        version=body(_VERSION),
    )


def _with_gpus(answers: dict[str, Any], ip: str, gpus: list[dict[str, Any]]) -> None:
    next(node for node in answers[_SUMMARY]["data"]["summary"] if node["ip"] == ip)["gpus"] = gpus


def test_the_recorded_cluster() -> None:
    """Three nodes by address, since one machine posed as all; the head first; memory as each measured it."""
    found = _build(_answers())
    assert [node.name for node in found.nodes] == ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    assert [len(node.devices) for node in found.nodes] == [0, 8, 2]
    for node in found.nodes:
        assert node.host.total_bytes == 25_276_063_744
        assert 0 < node.host.available_bytes < node.host.total_bytes
        assert (node.host.n_cpu, node.engines) == (2, None)
    assert found.provenance is Provenance.ASSUMED
    assert "Ray 2.60.0: 3 nodes" in found.notes


def test_declared_gpus_are_those_of_the_reference_machine() -> None:
    """By the node's resource or its label; of an A100 the smaller one; that it is assumed is said."""
    found = _build(_answers())
    a100, l4 = load_inventory("a100-40g").devices[0], load_inventory("l4").devices[0]
    assert {device.total_bytes for device in found.nodes[1].devices} == {a100.total_bytes}
    assert {device.description for device in found.nodes[2].devices} == {l4.description}
    assert [device.name for device in found.nodes[2].devices] == ["gpu0", "gpu1"]
    assert "taken for" in found.nodes[1].notes[0]
    assert any(note.startswith("127.0.0.3: 8 GPUs are declared and not measured") for note in found.notes)


def test_measured_gpus_go_before_declared_ones() -> None:
    """Memory is what the node's agent saw; bandwidth and compute capability are looked up by the GPU's name."""
    answers = _answers()
    _with_gpus(answers, "127.0.0.4", [_H100 | {"index": 1, "memoryUsed": 40000}, _H100])
    first, second = _build(answers).nodes[2].devices
    assert (first.kind, first.total_bytes, first.free_bytes) == (DeviceKind.CUDA, 81559 * MIB, 80535 * MIB)
    assert second.free_bytes == 41559 * MIB
    reference = load_inventory("h100").devices[0]
    assert (first.bandwidth_bytes_per_s, first.compute_capability) == (
        reference.bandwidth_bytes_per_s,
        reference.compute_capability,
    )


def test_a_gpu_that_nobody_knows_keeps_what_was_measured() -> None:
    """Its bandwidth and compute capability stay unknown."""
    answers = _answers()
    _with_gpus(answers, "127.0.0.4", [_H100 | {"name": "Some GPU\x1b[2J"}] * 2)
    device = _build(answers).nodes[2].devices[0]
    assert (device.total_bytes, device.compute_capability, device.bandwidth_bytes_per_s) == (81559 * MIB, None, None)
    assert device.description.isprintable()


def test_no_more_gpus_than_ray_may_use() -> None:
    """A node whose Ray was given two of eight GPUs has two, and one that was given none has none."""
    answers = _answers()
    _with_gpus(answers, "127.0.0.4", [_H100 | {"index": idx} for idx in range(8)])
    _with_gpus(answers, "127.0.0.2", [_H100])
    found = _build(answers)
    assert [len(node.devices) for node in found.nodes] == [0, 8, 2]


def test_gpus_of_a_type_that_nobody_tells_are_left_out() -> None:
    """Declared without a type, nothing is known of them: they are named in a note."""
    answers = _answers()
    for node in answers[_NODES]["data"]["result"]["result"]:
        node["labels"] = {}
    found = _build(answers)
    assert [len(node.devices) for node in found.nodes] == [0, 8, 0]
    assert "left out" in found.nodes[2].notes[0]


def test_reserved_gpus_are_left_out() -> None:
    """An application holds three and a half of eight: four are left, the fullest ones taken for the reserved."""
    answers = _answers()
    by_node = answers[_STATUS]["data"]["clusterStatus"]["loadMetricsReport"]["usageByNode"]
    node_id = next(key for key, usage in by_node.items() if usage.get("GPU") == [0.0, 8.0])
    by_node[node_id]["GPU"] = [3.5, 8.0]
    _with_gpus(answers, "127.0.0.3", [_H100 | {"index": idx, "memoryUsed": 10000 * (idx < 4)} for idx in range(8)])
    node = _build(answers).nodes[1]
    assert [device.name for device in node.devices] == ["gpu4", "gpu5", "gpu6", "gpu7"]
    assert "4 of 8 GPUs are reserved" in node.notes[0]


def test_gpus_that_are_left_stay_in_order() -> None:
    """By number, not by name: the tenth does not come before the second."""
    answers = _answers()
    (listed,) = (each for each in answers[_NODES]["data"]["result"]["result"] if each["node_ip"] == "127.0.0.3")
    listed["resources_total"]["GPU"] = 12.0
    by_node = answers[_STATUS]["data"]["clusterStatus"]["loadMetricsReport"]["usageByNode"]
    by_node[listed["node_id"]]["GPU"] = [1.0, 12.0]
    node = _build(answers).nodes[1]
    assert [device.name for device in node.devices] == [f"gpu{idx}" for idx in range(11)]


def test_a_lost_node_is_no_machine() -> None:
    """Recorded after a node was stopped: ``/nodes`` still called it alive, the state API did not."""
    answers = _answers() | RECORDED["after the second node was stopped"]
    found = _build(answers)
    assert [node.name for node in found.nodes] == ["127.0.0.2", "127.0.0.3"]


def test_a_node_that_was_not_measured_yet_has_what_it_declares() -> None:
    """Its memory is what Ray may use of it, and said to be."""
    answers = _answers()
    answers[_SUMMARY]["data"]["summary"] = []
    node = _build(answers).nodes[1]
    assert node.host.total_bytes == node.host.available_bytes == 23_632_198_656
    assert any("nothing was measured yet" in note for note in node.notes)


def test_machines_of_different_names_keep_them() -> None:
    """A host's name is used where no other node has it."""
    answers = _answers()
    for idx, node in enumerate(answers[_SUMMARY]["data"]["summary"]):
        node["hostname"] = f"gpu-box-{idx}/x"
    names = [node.name for node in _build(answers).nodes]
    assert sorted(names) == ["gpu-box-0_x", "gpu-box-1_x", "gpu-box-2_x"]


def test_a_cluster_without_load_report_is_read() -> None:
    """A dashboard that has no autoscaler's report yet tells of no reservations."""
    answers = _answers()
    answers[_STATUS]["data"]["clusterStatus"] = None
    assert [len(node.devices) for node in _build(answers).nodes] == [0, 8, 2]


def test_no_living_node_is_an_error() -> None:
    """There is nothing to plan for."""
    answers = _answers()
    for node in answers[_NODES]["data"]["result"]["result"]:
        node["state"] = "DEAD"
    with pytest.raises(ClusterError, match="no node of the Ray cluster"):
        _build(answers)


def test_too_many_nodes_are_an_error() -> None:
    """More than are planned for are refused rather than cut."""
    answers = _answers()
    nodes = answers[_NODES]["data"]["result"]["result"]
    answers[_NODES]["data"]["result"]["result"] = [nodes[0] | {"node_id": str(idx)} for idx in range(65)]
    with pytest.raises(ClusterError, match="has 65 nodes"):
        _build(answers)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"<html>", b"\xff", b'{"data": {}}', b"[" * 100_000])
def test_what_is_none_of_ray_s_answers_is_an_error(body: bytes) -> None:
    """The address is named, and nothing else surfaces than a fault of ours."""
    with pytest.raises(ClusterError, match="does not answer as Ray's dashboard does"):
        build_cluster("http://127.0.0.1:1", nodes=body, summary=b"{}", status=b"{}", version=b"{}")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
def test_absurd_figures_are_read_or_refused(data: st.DataObject) -> None:
    """Any value in the place of any other gives a cluster of sane figures, or a fault of ours."""
    answers = _answers()
    node: Any = answers[data.draw(st.sampled_from([_NODES, _SUMMARY, _STATUS]))]
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.integers(0, 9)) == 0:
            break
        node = node[key]
    node[key] = data.draw(_JSON)
    try:
        found = _build(answers)
    except ClusterError:
        return
    for inventory in found.nodes:
        assert inventory.host.total_bytes > 0
        assert 0 <= inventory.host.available_bytes <= inventory.host.total_bytes
        assert inventory.host.n_cpu >= 1
        assert inventory.name.isprintable()
