"""What follows when memory ran out: real supervisors, gateways and engines' processes over a machine as told."""

import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.domain import Correction, InstanceView, Lesson, State
from launcher.store import find_instance, read_calibration, state_root
from launcher.units import GIB, MIB
from tests.fakes.harness import Served, poll

ServeStepping = Callable[..., Served]
_ENOUGH = 13 * GIB // 2
"""Below what the planner gives llama3.1-8b at Q6_K on the machine as told, above what a smaller step takes."""
QUICK: dict[str, Any] = {"restarts": {"first_delay_s": 0.05, "jitter_s": 0.0}}


def _ask(served: Served, path: str = "/v1/chat/completions", body: bytes | None = b"{}") -> dict[str, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{served.port}{path}", data=body)
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - http, above
        found: dict[str, Any] = json.load(answer)
    return found


def _health(served: Served) -> dict[str, Any]:
    return _ask(served, "/health", None)


def _view() -> InstanceView:
    return find_instance("fake")


def _lessons() -> tuple[Correction, ...]:
    (file,) = (state_root() / "calibrations").glob("*.json")
    known, _ = read_calibration(file.stem)
    assert known is not None
    return known.corrections


def test_out_of_memory_steps_down_until_it_fits(serve_stepping: ServeStepping) -> None:
    """Each step is a smaller plan; the same port answers, degraded, with the whole story in the record."""
    served = serve_stepping(fits_bytes=_ENOUGH)
    served.await_event("engine.ready")
    n_steps = served.events().count("ladder.step")
    assert n_steps
    assert served.events().count("engine.spawned") == n_steps + 1
    health = _health(served)
    assert (health["status"], health["n_ladder_steps"]) == ("degraded", n_steps)
    assert " -> " in health["reason"]
    record = _view().record
    assert record is not None
    assert record.plan is not None
    assert record.plan.footprint.host.engine_bytes <= _ENOUGH
    assert "the memory does not suffice" in record.story[0]
    served.process.terminate()
    assert served.end() == 0


def test_a_step_tells_no_secret(
    serve_stepping: ServeStepping, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans, lessons, records and logs of engines that were replaced hold none of the launcher's, nor does what it tells."""
    secrets = {
        "LAUNCHER_API_KEY": "sentinel-of-the-key",
        "HF_TOKEN": "sentinel-of-the-hub",
        "all_proxy": "http://me:sentinel-of-it@p:1",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    served = serve_stepping(fits_bytes=_ENOUGH)
    served.await_event("engine.ready")
    assert served.events().count("ladder.step")
    _health(served)
    assert b"sentinel" in Path(f"/proc/{served.process.pid}/environ").read_bytes()
    for pid in (served.guard_pid(), served.engine_pid()):
        told = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"LAUNCHER_STATE_DIR" in told
        assert b"sentinel" not in told
    served.process.terminate()
    served.end()
    written = [path for path in state_dir.rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"engine.log", "events.jsonl", "instance.json"}
    assert not any(b"sentinel" in path.read_bytes() for path in written)
    assert "sentinel" not in served.output.read_text()


def test_an_engine_without_memory_for_its_first_request_is_stepped_down(serve_stepping: ServeStepping) -> None:
    """It loads and answers the canary with an error of memory: the same plan would again; the lesson is kept."""
    served = serve_stepping(serves_bytes=_ENOUGH)
    served.await_event("engine.ready")
    events = served.events()
    assert events.count("engine.spawned") == events.count("ladder.step") + 1 >= 2
    assert "instance.backoff" not in events
    assert {(lesson.lesson, lesson.memory) for lesson in _lessons()} == {(Lesson.OUT_OF_MEMORY, "host")}
    assert any("the host's memory does not suffice" in notice["text"] for notice in served.notices())


def test_what_ran_out_is_not_tried_again(serve_stepping: ServeStepping) -> None:
    """The lesson is on disk: the next serve begins with the plan that fits, and says that it was learnt."""
    first = serve_stepping(fits_bytes=_ENOUGH)
    first.await_event("engine.ready")
    first.process.terminate()
    assert first.end() == 0
    assert {(lesson.lesson, lesson.memory) for lesson in _lessons()} == {(Lesson.OUT_OF_MEMORY, "host")}
    again = serve_stepping(fits_bytes=_ENOUGH)
    again.await_event("engine.ready")
    assert "ladder.step" not in again.events()


def test_the_foot_of_the_ladder_fails_with_what_was_tried(serve_stepping: ServeStepping) -> None:
    """Nothing smaller is left: exit code 1, the reason and a way out, nothing running."""
    served = serve_stepping(fits_bytes=0, ladder=["ubatch"])
    assert served.end() == 1
    assert "ran out of memory on host" in served.error()
    assert "tried in turn: ubatch" in served.error()
    assert "help:" in served.error()
    assert _view().state is State.FAILED


def test_no_step_where_the_profile_forbids_it(serve_stepping: ServeStepping) -> None:
    """An empty ladder: the first out-of-memory is the end."""
    served = serve_stepping(fits_bytes=0, ladder=[])
    assert served.end() == 1
    assert "ladder.step" not in served.events()


def test_the_same_plan_is_tried_once_more_where_others_had_the_memory(serve_stepping: ServeStepping) -> None:
    """Another process took memory and the plan would still fit: one retry, which is no step and teaches nothing."""
    served = serve_stepping(free_bytes=[14 * GIB, 13 * GIB], fits_bytes=7 * GIB)
    served.await_event("engine.ready")
    events = served.events()
    assert events.count("ladder.retry") == 1
    assert events.index("ladder.retry") < events.index("ladder.step")


def test_what_others_hold_is_waited_for_as_long_as_the_restart_policy_lets_it(serve_stepping: ServeStepping) -> None:
    """Nothing fits beside another process: tried again after a while; for too long, and the instance has failed."""
    served = serve_stepping(
        free_bytes=[14 * GIB, GIB], fits_bytes=0, options={"restarts": {**QUICK["restarts"], "crowded_s": 1.0}}
    )
    assert served.end() == 1
    events = served.events()
    assert events.count("ladder.wait") == events.count("instance.backoff") + 1 >= 3
    assert "ladder.step" not in events
    assert re.search(r"\(waited for [1-9] s, no further start\)", served.error())
    assert "end what holds the memory" in served.error()


def test_requests_wait_for_the_next_engine(serve_stepping: ServeStepping) -> None:
    """A request made while nothing is ready is answered by the engine that comes in the end."""
    served = serve_stepping(fits_bytes=_ENOUGH, arguments=["--load-s", "0.5"])
    served.await_event("engine.spawned")
    assert poll(lambda: _listening(served))
    assert _ask(served)["choices"]
    assert "ladder.step" in served.events()


def _listening(served: Served) -> bool:
    try:
        return bool(_ask(served, "/v1/models", None))
    except OSError:
        return False


def test_an_engine_that_was_killed_comes_back_behind_the_same_port(serve_stepping: ServeStepping) -> None:
    """A restart is no step; the next request is answered."""
    served = serve_stepping(options=QUICK)
    served.await_event("engine.ready")
    os.kill(served.engine_pid(), signal.SIGKILL)
    served.await_event("engine.exited")
    assert _ask(served)["choices"]
    assert served.events().count("engine.ready") == 2
    assert _health(served)["status"] == "ready"


def _seen(tmp_path: Path, n_bytes: int) -> str:
    """Let the sampler see so much to be free, from one look to the next."""
    new, file = tmp_path / "seen.new", tmp_path / "seen"
    new.write_text(str(n_bytes))
    new.replace(file)
    return str(file)


def test_an_engine_that_told_what_it_takes_is_not_asked_at_its_restart(serve_stepping: ServeStepping) -> None:
    """However soon it is: what is free is looked at after the end and before the start, and judged by what was told."""
    served = serve_stepping(options=QUICK, tells=True)
    for n in range(1, 4):
        served.await_event("engine.ready", n)
        if n < 3:
            os.kill(served.engine_pid(), signal.SIGKILL)
    verdicts = [notice["text"] for notice in served.notices() if notice["event"] == "engine.preflight"]
    assert verdicts == ["it fits, by its own account", *["it fits, by what it told of itself before"] * 2]


@pytest.mark.parametrize("tells", [True, False])
def test_a_restart_beside_what_others_took_is_refused_before_anything_is_spawned(
    serve_stepping: ServeStepping, tmp_path: Path, *, tells: bool
) -> None:
    """Judged by what was told before, or by the plan of an engine that tells nothing; it starts once they have left."""
    seen_file = _seen(tmp_path, 14 * GIB)
    served = serve_stepping(options=QUICK, tells=tells, seen_file=seen_file)
    served.await_event("engine.ready")
    _seen(tmp_path, 300 * MIB)  # too little for the engine, not for one that serves
    os.kill(served.engine_pid(), signal.SIGKILL)
    served.await_event("engine.failed", 2)
    _seen(tmp_path, 14 * GIB)
    served.await_event("engine.ready", 2)
    events = served.events()
    died, refused, *_ = (idx for idx, event in enumerate(events) if event == "engine.failed")
    assert "engine.spawned" not in events[died:refused]
    failed = [notice for notice in served.notices() if notice["event"] == "engine.failed"]
    assert failed[1]["facts"]["cause"] == "overdrawn"
    assert "300 MiB is free" in failed[1]["text"]


def test_a_hung_engine_is_replaced(serve_stepping: ServeStepping) -> None:
    """Stopped, it answers nothing: it is killed, although it heeds no request, and another serves."""
    served = serve_stepping(options={**QUICK, "health_pause_s": 0.3})
    served.await_event("engine.ready")
    os.kill(served.engine_pid(), signal.SIGSTOP)
    served.await_event("engine.ready", 2)
    assert any("hangs" in notice["text"] for notice in served.notices())
    assert _ask(served)["choices"]


QUICK_LOOKS: dict[str, Any] = {**QUICK, "health_pause_s": 0.1}


def _status_of(served: Served, body: bytes = b"{}") -> int:
    try:
        _ask(served, body=body)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    return 200


def test_an_engine_that_answers_everybody_with_errors_is_restarted(
    serve_stepping: ServeStepping, tmp_path: Path
) -> None:
    """It is up and healthy, says nothing of memory, and refuses a request of our own, too: a restart, and no step."""
    sick = tmp_path / "sick"
    served = serve_stepping(options=QUICK_LOOKS, arguments=["--sick-file", str(sick)])
    served.await_event("engine.ready")
    sick.touch()
    assert {_status_of(served) for _ in range(5)} == {500}
    served.await_event("engine.ready", 2)
    events = served.events()
    assert "ladder.step" not in events
    why = next(notice for notice in served.notices() if notice["event"] == "engine.failed")
    assert why["facts"]["cause"] == "sick"
    assert "the last 5 requests" in why["text"]
    assert "Compute error." in why["text"]
    assert _status_of(served) == 200


def test_a_client_cannot_have_an_engine_restarted(serve_stepping: ServeStepping) -> None:
    """Whoever sends nothing but requests that the engine cannot read gets errors, and nobody else does."""
    served = serve_stepping(options=QUICK_LOOKS)
    served.await_event("engine.ready")
    wrong = json.dumps({"fake": {"status": 500}}).encode()
    while "engine.sound" not in served.events():
        assert _status_of(served, wrong) == 500
    assert {_status_of(served, wrong) for _ in range(20)} == {500}
    assert _status_of(served) == 200
    assert served.events().count("engine.spawned") == 1


def test_a_stolen_port_costs_one_restart(serve_stepping: ServeStepping) -> None:
    """The engine's port is private: when another program has it, the next start takes another."""
    served = serve_stepping(options=QUICK, stolen=2)
    served.await_event("engine.ready")
    os.kill(served.engine_pid(), signal.SIGKILL)
    served.await_event("engine.ready", 2)
    assert _ask(served)["choices"]
    assert served.process.poll() is None


def test_the_first_engines_port_may_be_stolen_too(serve_stepping: ServeStepping) -> None:
    """Whoever takes it between the look for a free one and the start does not keep the model from being served."""
    served = serve_stepping(options=QUICK, stolen=1)
    served.await_event("engine.ready")
    assert served.events().count("engine.spawned") == 2
    assert _ask(served)["choices"]


def test_the_endpoints_own_port_in_use_is_said_before_anything_starts(serve_stepping: ServeStepping) -> None:
    """Exit code 1 with who has it; no engine was started."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        served = serve_stepping(port=held.getsockname()[1])
        assert served.end() == 1
    assert "cannot be listened on: address already in use" in served.error()
    assert "engine.spawned" not in served.events()
    view = _view()
    assert view.state is State.FAILED
    assert "cannot be listened on" in (view.reason or "")


def test_strain_drains_and_steps_down_and_serves_on_where_nothing_smaller_is_left(
    serve_stepping: ServeStepping,
) -> None:
    """A memory that is always short: down rung by rung, and then on, for an engine that serves is not given up."""
    always = {"host": {"act_bytes": 1 << 50, "calm_bytes": 1 << 51}}
    served = serve_stepping(options={**QUICK, "strain": always}, ladder=["context", "quantization"])
    served.await_event("ladder.none")
    events = served.events()
    assert events.count("ladder.step") == events.count("instance.drained") >= 1
    assert "engine.failed" not in events[: events.index("instance.drained")]
    assert _ask(served)["choices"]
    health = _health(served)
    assert (health["status"], health["n_ladder_steps"]) == ("degraded", events.count("ladder.step"))
    assert "memory runs short" in health["reason"]


def test_a_planned_step_goes_on_with_the_healthy_time(serve_stepping: ServeStepping, tmp_path: Path) -> None:
    """What clients saw was healthy: the engine after the step, however young, does not answer for a death before it."""
    healthy_s = 1.0
    restarts = {**QUICK["restarts"], "healthy_s": healthy_s}
    seen_file = _seen(tmp_path, 14 * GIB)
    served = serve_stepping(options={"restarts": restarts}, free_bytes=[14 * GIB, 6 * GIB], seen_file=seen_file)
    served.await_event("engine.ready")
    os.kill(served.engine_pid(), signal.SIGKILL)
    served.await_event("engine.ready", 2)
    ready_s = time.monotonic()
    assert poll(lambda: time.monotonic() - ready_s >= healthy_s)
    _seen(tmp_path, 100 * MIB)
    served.await_event("instance.drained")
    _seen(tmp_path, 14 * GIB)
    served.await_event("engine.ready", 3)
    os.kill(served.engine_pid(), signal.SIGKILL)
    served.await_event("engine.ready", 4)
    delays = [notice["facts"]["delay_s"] for notice in served.notices() if notice["event"] == "instance.backoff"]
    assert delays == [0.05, 0.05]


def test_a_request_that_runs_while_memory_is_short_is_answered(serve_stepping: ServeStepping) -> None:
    """Draining waits for it, or sends it again to the next engine: either way the client gets its answer."""
    always = {"host": {"act_bytes": 1 << 50, "calm_bytes": 1 << 51}}
    served = serve_stepping(options={**QUICK, "strain": always}, ladder=["ubatch"])
    assert poll(lambda: _listening(served))
    while "ladder.none" not in served.events():
        assert _ask(served)["choices"]


_TAKEN_AND_GIVEN_BACK = [14 * GIB, 6 * GIB, 14 * GIB]
"""Free bytes at the first plan, when its engine ran out of memory, and from then on."""


def test_room_for_more_is_offered(serve_stepping: ServeStepping) -> None:
    """Once others have given the memory back the record says what could be had; nothing is done unasked."""
    served = serve_stepping(options={"review_s": 0.2}, free_bytes=_TAKEN_AND_GIVEN_BACK, fits_bytes=7 * GIB)
    served.await_event("ladder.offer")
    record = _view().record
    assert record is not None
    assert "there is room again" in (record.offer or "")
    assert _health(served)["status"] == "degraded"
    assert "ladder.up" not in served.events()


def test_going_up_by_itself_is_the_profiles_to_allow(serve_stepping: ServeStepping) -> None:
    """It drains, takes the offer, and is no longer below its plan; a request made meanwhile is answered."""
    served = serve_stepping(
        options={"review_s": 0.2}, free_bytes=_TAKEN_AND_GIVEN_BACK, fits_bytes=7 * GIB, step_up=True
    )
    served.await_event("ladder.up")
    assert _ask(served)["choices"]
    events = served.events()
    assert events.index("ladder.offer") < events.index("instance.drained") < events.index("ladder.up")
