"""Where an application stands, by what Ray Serve 2.60 was recorded to say, and what follows."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.cluster.following import Look, Stage, describe, look_at
from launcher.cluster.machine import Move, Phase, decide
from launcher.cluster.serve_details import ServeDetails, parse_details
from tests.cluster.conftest import SERVE


def _recorded(name: str, application: str) -> Look:
    return look_at(parse_details(json.dumps(SERVE["answers"][name]).encode(), "http://ray"), application)


def _failed(case: str) -> Look:
    applications = SERVE["applications"][case]
    details = msgspec.convert({"applications": applications}, ServeDetails)
    return look_at(details, next(iter(applications)))


def _app(status: str, *replicas: list[tuple[str, str | None]]) -> Look:
    """Return the look at an application; of each deployment the states and nodes of its replicas are given."""
    deployments = {
        f"d{idx}": {
            "target_num_replicas": 2,
            "replicas": [
                {"replica_id": f"{idx}{n}", "state": state, "node_id": node} for n, (state, node) in enumerate(each)
            ],
        }
        for idx, each in enumerate(replicas)
    }
    entry = {"status": status, "deployments": deployments}
    return look_at(msgspec.convert({"applications": {"m": entry}}, ServeDetails), "m")


def test_what_runs_is_running() -> None:
    """One replica of one, with the log that can be read."""
    look = _recorded("running", "stub")
    assert (look.stage, look.n_running, look.n_wanted, look.reason) == (Stage.RUNNING, 1, 1, None)
    assert [replica.replica_id for replica in look.replicas] == ["pouxt2e2"]
    assert describe(look) == "1 of 1 replicas run"


def test_what_is_not_listed_is_gone() -> None:
    """Also where nobody has started Serve."""
    assert _recorded("running", "other").stage is Stage.GONE
    assert _recorded("never started", "stub").stage is Stage.GONE


def test_the_end_of_a_traceback_is_the_reason() -> None:
    """Ray words the failure of a program as a traceback: of its import, its builder, its constructor."""
    assert _failed("import-fails").reason == "ModuleNotFoundError: No module named 'nonesuch'"
    assert str(_failed("builder-raises").reason).startswith("ValueError: Specifying 'nonsense' in ray_actor_options")
    constructor = _failed("constructor-raises")
    assert constructor.reason == "RuntimeError: no weights here"
    assert any("raise RuntimeError(fail)" in line for line in constructor.details)
    assert {_failed(case).stage for case in ("import-fails", "builder-raises")} == {constructor.stage} == {Stage.FAILED}
    assert not any("\x1b" in line for line in constructor.details)


def test_the_schedulers_reason_is_in_few_words() -> None:
    """It comes after half a minute, in the message of a deployment that else looks as if it were being updated."""
    look = _failed("cannot-be-placed")
    assert look.stage is Stage.WAITING
    assert (
        look.reason
        == 'a replica that takes {"CPU": 1, "GPU": 8} has not started; {"CPU": 2.9, "GPU": 4.0} is free in all'
    )


def test_a_lost_replica_without_a_node_waits_for_one() -> None:
    """A node was killed and nothing else had its GPUs: Ray never says so, the replica has no node."""
    look = _recorded("raylet killed", "stub")
    assert look.stage is Stage.WAITING
    assert "health check failed" in str(look.reason)
    assert _recorded("raylet killed", "foreign").stage is Stage.RUNNING


def test_it_answers_when_each_deployment_has_a_replica_that_runs() -> None:
    """The model behind Ray Serve LLM's ingress is one deployment, the ingress another."""
    up, placed, waiting = ("RUNNING", "n"), ("STARTING", "n"), ("STARTING", None)
    assert _app("DEPLOYING").stage is Stage.BUILDING
    assert _app("DEPLOYING", [placed], []).stage is Stage.WAITING
    assert _app("DEPLOYING", [placed], [up]).stage is Stage.LOADING
    assert _app("DEPLOYING", [waiting, up], [placed]).stage is Stage.WAITING
    assert _app("DEPLOYING", [up, waiting], [up]).stage is Stage.PARTLY
    assert _app("UNHEALTHY", [up], [up]).stage is Stage.PARTLY
    assert _app("RUNNING", [up], [up]).stage is Stage.RUNNING
    assert _app("DELETING", [up], [up]).stage is Stage.DELETING


@pytest.mark.parametrize("stage", Stage)
def test_every_stage_has_words(stage: Stage) -> None:
    """For whoever waits."""
    assert describe(Look(stage=stage, n_running=1, n_wanted=2))


@given(phase=st.sampled_from(Phase), stage=st.sampled_from(Stage), is_anew=st.booleans(), is_replaced=st.booleans())
def test_requests_flow_only_while_somebody_answers(
    *,
    phase: Phase,
    stage: Stage,
    is_anew: bool,
    is_replaced: bool,
) -> None:
    """They are held at once when nobody does; and nothing is let through that has not been asked before."""
    look = Look(stage=stage)
    move = decide(phase, look, is_anew=is_anew, is_replaced=is_replaced)
    assert (move is Move.KEEP) == (phase is Phase.READY and look.answers)
    assert (move is Move.PROVE) <= look.answers
    if phase is Phase.READY and not look.answers:
        assert move in {Move.LOSE, Move.GIVE_UP, Move.SUBMIT}
    if stage is Stage.FAILED:
        assert move is Move.GIVE_UP


def test_replicas_of_another_version_do_not_count_as_ours() -> None:
    """While Ray puts ours in their place they answer; ours is proved once Ray is content."""
    partly = Look(stage=Stage.PARTLY)
    assert decide(Phase.DEPLOYING, partly, is_anew=False, is_replaced=True) is Move.WAIT
    assert decide(Phase.DEPLOYING, Look(stage=Stage.RUNNING), is_anew=False, is_replaced=True) is Move.PROVE
    assert decide(Phase.DEPLOYING, partly, is_anew=False, is_replaced=False) is Move.PROVE


def test_one_taken_off_by_somebody_stays_off() -> None:
    """Unless the whole cluster was started again: then it is submitted again."""
    gone = Look(stage=Stage.GONE)
    assert decide(Phase.READY, gone, is_anew=False, is_replaced=False) is Move.GIVE_UP
    assert decide(Phase.READY, gone, is_anew=True, is_replaced=False) is Move.SUBMIT


def test_messages_are_bounded_and_printable() -> None:
    """They come over a network, and go to a terminal."""
    message = "\x1b[31mred\x1b[0m\n" + "x" * 10_000 + "\n" + "line\n" * 1000 + "the \x07 end"
    entry: dict[str, Any] = {"status": "DEPLOY_FAILED", "message": message}
    look = look_at(msgspec.convert({"applications": {"m": entry}}, ServeDetails), "m")
    assert len(look.details) < 20
    assert all(line.isprintable() and len(line) <= 400 for line in (*look.details, str(look.reason)))
