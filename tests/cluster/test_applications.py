"""What is sent to Ray Serve keeps what others declared; what it has told was recorded."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.backends.ray_serve import MARK, Value
from launcher.cluster.applications import Proxies, choose_proxies, find_lost, merge, without
from launcher.cluster.serve_details import ServeDetails, find_proxies, held_gpus, parse_details
from launcher.errors import ClusterError, ForeignApplicationError
from tests.cluster.conftest import SERVE

_OURS: Value = {
    "name": "launcher-m",
    "route_prefix": "/launcher-m",
    "import_path": "a:b",
    "runtime_env": {"env_vars": {MARK: "m"}},
    "args": {"n": 2},
}
_PROXIES = Proxies(host="127.0.0.1", port=8000, location="HeadOnly")


def _recorded(name: str) -> ServeDetails:
    return parse_details(json.dumps(SERVE["answers"][name]).encode(), "http://ray")


def _details(*configs: dict[str, Any], **more: Any) -> ServeDetails:
    """Return a Serve that runs these, each with what a test says of it beside its declaration."""
    applications = {
        config["name"]: {
            "status": "RUNNING",
            "source": "declarative",
            "route_prefix": config.get("route_prefix", "/"),
            "deployed_app_config": config,
        }
        for config in configs
    }
    answer = {"applications": applications, "http_options": {"host": _EVERYWHERE, "port": 8000}, **more}
    return msgspec.convert(answer, ServeDetails)


def _other(name: str = "other", **more: Any) -> dict[str, Any]:
    return {"name": name, "route_prefix": f"/{name}", "import_path": "x:y", **more}


_EVERYWHERE = "0.0.0.0"  # noqa: S104 - Ray Serve's own; nothing is bound here
_NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("xyz"), lambda inner: st.lists(inner, max_size=3)
)


@given(names=_NAMES, args=_JSON, has_ours=st.booleans())
def test_what_others_declared_is_sent_again_word_for_word(names: list[str], args: object, has_ours: bool) -> None:  # noqa: FBT001 - drawn
    """Ray deletes what is not in the list; ours is in it once, whether it was there or not."""
    others = [_other(name, args={"some": args}) for name in names]
    before = _details(*others, *([{**_OURS, "args": {}}] if has_ours else []))
    assert merge(before, _OURS, _PROXIES)["applications"] == [*others, _OURS]
    assert without(_details(*others, _OURS), "launcher-m") == {
        "http_options": {"host": _EVERYWHERE, "port": 8000},
        "applications": others,
    }


def test_serve_that_runs_keeps_its_options() -> None:
    """Ray ignores other ones silently while it runs; the capacity it would reset."""
    body = merge(_recorded("running"), _OURS, _PROXIES)
    told = SERVE["answers"]["running"]
    assert body["http_options"] == told["http_options"]
    assert body["proxy_location"] == told["proxy_location"]
    assert body["grpc_options"] == told["grpc_options"]
    assert body["applications"] == [told["applications"]["stub"]["deployed_app_config"], _OURS]
    assert "target_capacity" not in body
    assert merge(_details(target_capacity=50.0), _OURS, _PROXIES)["target_capacity"] == 50.0


def test_serve_that_nobody_has_started_is_told_where_to_listen() -> None:
    """On loopback alone where the dashboard is; Serve asks nobody for a key."""
    assert merge(_recorded("never started"), _OURS, choose_proxies(is_here=True)) == {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "applications": [_OURS],
    }
    assert choose_proxies(is_here=False).location == "EveryNode"


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({**_OURS, "runtime_env": {}}, id="our name without our mark"),
        pytest.param(_other(route_prefix="/launcher-m"), id="our route"),
        pytest.param({**_OURS, "name": "launcher-n"}, id="our route, by another application of ours"),
    ],
)
def test_nobody_elses_application_is_replaced(other: dict[str, Any]) -> None:
    """Its name and its route are its own; the fault says what to do."""
    with pytest.raises(ForeignApplicationError) as caught:
        merge(_details(other), _OURS, _PROXIES)
    assert caught.value.help


def test_nobody_elses_application_is_removed() -> None:
    """Not even one that has our name."""
    with pytest.raises(ForeignApplicationError, match="not put there"):
        without(_details({**_OURS, "runtime_env": {}}), "launcher-m")


def test_what_is_gone_needs_no_removing() -> None:
    """Nothing is sent then; what is being deleted is as good as gone."""
    assert without(_details(_other()), "launcher-m") is None
    deleting = msgspec.convert({"applications": {"launcher-m": {"status": "DELETING"}}}, ServeDetails)
    assert without(deleting, "launcher-m") is None


def test_imperative_applications_are_left_alone() -> None:
    """A ``PUT`` does not touch them, and they have nothing that could be sent; their routes are taken all the same."""
    by_hand = {"by-hand": {"status": "RUNNING", "source": "imperative", "route_prefix": "/by-hand"}}
    details = msgspec.convert({"applications": by_hand, "http_options": {}}, ServeDetails)
    assert merge(details, _OURS, _PROXIES)["applications"] == [_OURS]
    with pytest.raises(ForeignApplicationError):
        merge(details, {**_OURS, "route_prefix": "/by-hand"}, _PROXIES)


@pytest.mark.parametrize(
    "config",
    [
        None,
        _other(runtime_env={"env_vars": {"KEY": "<redacted>"}}),
        _other(args={"deep": [{"x": "<redacted>"}]}),
        _other(port=8001),
    ],
)
def test_what_cannot_be_sent_again_is_not_risked(config: dict[str, Any] | None) -> None:
    """Left out it would be deleted, changed it would be another: nothing is sent."""
    entry = {"status": "RUNNING", "source": "declarative", "route_prefix": "/other", "deployed_app_config": config}
    details = msgspec.convert({"applications": {"other": entry}, "http_options": {}}, ServeDetails)
    with pytest.raises(ClusterError, match="`other` could not be sent again") as caught:
        merge(details, _OURS, _PROXIES)
    assert "nothing was changed" in str(caught.value.help)


def test_one_that_is_being_deleted_is_not_sent_again() -> None:
    """Its owner wants it gone."""
    entry = {"status": "DELETING", "source": "declarative", "route_prefix": "/launcher-m"}
    details = msgspec.convert({"applications": {"other": entry}, "http_options": {}}, ServeDetails)
    assert merge(details, _OURS, _PROXIES)["applications"] == [_OURS]


def test_what_a_put_cost_others_is_found() -> None:
    """Ray knows no "only if nothing has changed": who deployed in between is seen to be deleted."""
    before = _details(_other("a"), _other("b"), _OURS)
    assert find_lost(before, _details(_other("a"), _other("b"), _OURS), "launcher-m") == ()
    assert find_lost(before, _details(_other("a", args={"x": 1}), _other("b")), "launcher-m") == ("a",)
    assert find_lost(before, _details(_other("a"), _OURS), "launcher-m") == ("b",)
    new = {"c": {"status": "DELETING", "source": "declarative"}}
    assert find_lost(_details(), msgspec.convert({"applications": new}, ServeDetails), "launcher-m") == ("c",)


def test_requests_go_to_proxies_that_are_healthy() -> None:
    """Ray lists them for load balancers; where they listen on one address alone, that is it."""
    assert find_proxies(_recorded("running")) == ("http://127.0.0.1:8531",)
    assert find_proxies(_recorded("never started")) == ()
    groups = [{"protocol": "HTTP", "targets": [{"ip": "10.0.0.5", "port": 8000}, {"ip": "fd00::5", "port": 8000}]}]
    everywhere = _details(target_groups=[*groups, {"protocol": "gRPC", "targets": [{"ip": "10.0.0.5", "port": 9000}]}])
    assert find_proxies(everywhere) == ("http://10.0.0.5:8000", "http://[fd00::5]:8000")
    with_tls = _details(http_options={"host": _EVERYWHERE, "ssl_certfile": "c"}, target_groups=groups)
    assert find_proxies(with_tls)[0] == "https://10.0.0.5:8000"


def test_what_replicas_hold_is_counted_where_ray_tells_it() -> None:
    """By a replica that runs there; of Ray Serve LLM's all of it where that is on one node, and nothing where Ray tells too little."""
    stub = _recorded("running").applications["stub"]
    node = stub.deployments["Stub"].replicas[0].node_id
    assert held_gpus(stub) == {node: 1.0}
    replica = msgspec.structs.replace(stub.deployments["Stub"], required_resources={"CPU": 1.0})
    deployments = {"LLMServer:m": replica, "OpenAiIngress": replica}
    for strategy, expected in (("STRICT_PACK", {node: 2.0}), ("PACK", {})):
        llm = {
            "engine_kwargs": {"tensor_parallel_size": 2, "pipeline_parallel_size": 1},
            "placement_group_config": {"bundle_per_worker": {"GPU": 1}, "strategy": strategy},
        }
        config = {"args": {"llm_configs": [llm]}}
        ours = msgspec.structs.replace(stub, deployed_app_config=config, deployments=deployments)
        assert held_gpus(ours) == expected


@pytest.mark.parametrize("body", [b"", b"[]", b'{"applications": 3}', b'{"applications": {"a": {}}}', b"[" * 100_000])
def test_another_answer_is_said_to_be_one(body: bytes) -> None:
    """Whatever is at that address."""
    with pytest.raises(ClusterError, match="does not answer as Ray Serve does"):
        parse_details(body, "http://ray")
