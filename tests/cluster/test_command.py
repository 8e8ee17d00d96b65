"""``launch serve --cluster`` and ``launch stop --cluster`` against a dashboard that answers as Ray's does."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.backends.ray_serve import MARK, Value
from launcher.cli import app
from launcher.cluster.serve_details import APPLICATIONS
from launcher.domain import Address, ClusterApplication, InstanceRecord, ProcessId, State
from launcher.errors import ForeignApplicationError
from launcher.store import find_instance, open_instance
from tests.cluster.conftest import FakeDashboard

_OURS: Value = {
    "name": "launcher-llama3.1-8b",
    "route_prefix": "/launcher-llama3.1-8b",
    "import_path": "a:b",
    "runtime_env": {"env_vars": {MARK: "llama3.1-8b"}},
}
_FOREIGN: Value = {"name": "foreign", "route_prefix": "/foreign", "import_path": "c:d"}


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path / "state"))


def _run(dashboard: FakeDashboard, *applications: Value) -> None:
    """Have the dashboard run these, and whatever it is told to later."""

    def take(body: dict[str, list[Value]]) -> None:
        entries = {
            str(each["name"]): {
                "status": "RUNNING",
                "source": "declarative",
                "route_prefix": each["route_prefix"],
                "deployed_app_config": each,
            }
            for each in body["applications"]
        }
        answer = {"applications": entries, "http_options": {"host": "127.0.0.1", "port": 8000}}
        dashboard.answers[APPLICATIONS] = json.dumps(answer).encode()

    dashboard.on_put = take
    take({"applications": list(applications)})


def _record(url: str) -> None:
    """Leave behind what a launcher leaves that was killed."""
    with open_instance("llama3.1-8b") as instance:
        instance.write(
            InstanceRecord(
                name="llama3.1-8b",
                state=State.READY,
                supervisor=ProcessId(pid=2**22 + 1, start_time=1, boot_id="gone"),
                address=Address(),
                started_at=0.0,
                changed_at=0.0,
                application=ClusterApplication(url=url, name="launcher-llama3.1-8b"),
            )
        )


@pytest.mark.parametrize(
    "words",
    [
        ("--n-gpu-layers", "3"),
        ("--flash-attn", "on"),
        ("--threads", "2"),
        ("--engine", "llama-server"),
        ("--rpc", "127.0.0.1:5"),
        ("--inventory", "rtx4090"),
    ],
)
def test_what_a_cluster_does_not_have_is_wrong_usage(dashboard: FakeDashboard, words: tuple[str, str]) -> None:
    """Nothing is asked of it, let alone sent."""
    result = CliRunner().invoke(app, ["serve", "llama3.1-8b", "--cluster", dashboard.url, *words])
    assert getattr(result.exception, "exit_code", None) == 2
    assert getattr(result.exception, "help", None)
    assert dashboard.asked == []


def test_what_does_not_fit_the_cluster_is_refused_with_advice(dashboard: FakeDashboard) -> None:
    """As `launch plan` does, and nothing is sent."""
    _run(dashboard, _FOREIGN)
    result = CliRunner().invoke(app, ["serve", "llama3.1-405b", "--quant", "bf16", "--cluster", dashboard.url])
    assert result.exit_code == 3, result.output
    assert "help:" in result.output
    assert dashboard.sent == []


def test_an_application_of_our_name_that_is_not_ours_is_left_alone(dashboard: FakeDashboard) -> None:
    """Before anything is planned, by `serve` and by `stop`."""
    _run(dashboard, {**_OURS, "runtime_env": {}})
    for words in (["serve", "llama3.1-8b"], ["stop", "llama3.1-8b"]):
        result = CliRunner().invoke(app, [*words, "--cluster", dashboard.url])
        assert isinstance(result.exception, ForeignApplicationError)
    assert dashboard.sent == []


def test_what_a_killed_launcher_left_is_taken_off(dashboard: FakeDashboard) -> None:
    """The record says where it is; others' applications stay, and a second time there is nothing to do."""
    _run(dashboard, _FOREIGN, _OURS)
    _record(dashboard.url)
    result = CliRunner().invoke(app, ["stop", "llama3.1-8b"])
    assert result.exit_code == 0, result.output
    assert "is stopped" in result.output
    assert [body["applications"] for body in dashboard.sent] == [[_FOREIGN]]
    record = find_instance("llama3.1-8b").record
    assert record is not None
    assert (record.state, record.application) == (State.STOPPED, None)
    assert CliRunner().invoke(app, ["stop", "llama3.1-8b"]).exit_code == 0
    assert len(dashboard.sent) == 1


def test_from_another_machine_the_cluster_has_to_be_named(dashboard: FakeDashboard) -> None:
    """By a profile's name or its alias; where there is none of ours, that is said."""
    _run(dashboard, _FOREIGN, _OURS)
    result = CliRunner().invoke(app, ["stop", "llama3.1:8b", "--cluster", dashboard.url])
    assert result.exit_code == 0, result.output
    assert [body["applications"] for body in dashboard.sent] == [[_FOREIGN]]
    again = CliRunner().invoke(app, ["stop", "llama3.1:8b", "--cluster", dashboard.url])
    assert "was not running" in again.output
    assert len(dashboard.sent) == 1


def test_status_tells_where_it_runs(dashboard: FakeDashboard) -> None:
    """An application on a cluster has no engine here."""
    _record(dashboard.url)
    told = CliRunner().invoke(app, ["status", "llama3.1-8b"]).output
    assert f"launcher-llama3.1-8b on the Ray cluster at {dashboard.url}" in told
