"""What the gateway tells of the instance: health, models, metrics."""

import asyncio
import json
import subprocess
import sys
import time
from typing import Final

import pytest
from aiohttp import web
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from launcher.domain import Artifact, DeviceLoad, State, WeightsFormat
from launcher.gateway.client import Client
from launcher.gateway.health import Health, MemoryFigure, Observed, Status, describe_health, health_of, summarise
from launcher.gateway.meters import SECONDS, Histogram, route_of
from launcher.gateway.policy import Door
from launcher.units import GIB
from tests.fakes.gateway import CHAT, Engine, serving, until
from tests.fakes.plans import plan_for

_PLAN: Final = replace(
    plan_for(),
    model="tiny",
    n_ctx=8192,
    n_ctx_per_request=4096,
    n_parallel=2,
    n_batch=512,
    n_ubatch=128,
    n_gpu_layers=9,
    artifact=Artifact(format=WeightsFormat.GGUF, quantization="q4_k_m", local_path="/home/me/secret.gguf"),
)


@pytest.mark.parametrize(
    ("door", "status", "health", "code"),
    [
        (Door.SHUT, Status(), Health.LOADING, 503),
        (Door.OPEN, Status(state=State.READY), Health.READY, 200),
        (Door.OPEN, Status(state=State.READY, is_degraded=True), Health.DEGRADED, 200),
        (Door.SHUT, Status(state=State.BACKOFF, is_degraded=True), Health.LOADING, 503),
        (Door.SHUT, Status(state=State.FAILED), Health.FAILED, 503),
        (Door.CLOSED, Status(state=State.READY), Health.STOPPING, 503),
    ],
)
def test_health_says_whether_requests_get_through(door: Door, status: Status, health: Health, code: int) -> None:
    """200 exactly while they do; degraded is a way to be ready."""
    assert health_of(door, status) is health
    answer = describe_health(door, "away", status, n_running=1, n_waiting=2, in_full=True)
    assert answer[0] == code
    told = json.loads(answer[1])
    assert (told["status"], told["n_running"], told["n_waiting"]) == (health, 1, 2)
    assert told["reason"] == (None if door is Door.OPEN else "away")


async def test_a_degraded_instance_tells_plan_and_reason(engine: Engine) -> None:
    """What it serves by, why it is less than was planned, and no path of this machine."""
    async with serving(engine) as served:
        plan = _PLAN
        reason = "gpu0 ran out of memory (1.2 GiB); now at 4096 tokens instead of 8192"
        served.gateway.publish(
            Status(state=State.READY, is_degraded=True, reason=reason, plan=plan, n_restarts=2, n_ladder_steps=1)
        )
        status, text = await served.get("/health")
        told = json.loads(text)
        assert (status, told["status"], told["reason"]) == (200, "degraded", reason)
        assert (told["n_restarts"], told["n_ladder_steps"]) == (2, 1)
        assert told["plan"] == {name: getattr(plan, name) for name in summarise(plan).__struct_fields__}
        assert "secret" not in text
        models = json.loads((await served.get("/v1/models"))[1])["data"]
        assert [(model["id"], model["meta"]["n_ctx"]) for model in models] == [("tiny", plan.n_ctx_per_request)]


async def test_models_are_told_while_nothing_runs() -> None:
    """A client's first question is answered at once, whatever the engine does."""
    async with serving() as served:
        assert json.loads((await served.get("/v1/models"))[1])["data"][0]["id"] == "tiny"
        assert json.loads((await served.get("/v1/models/tiny"))[1])["object"] == "model"
        assert (await served.get("/v1/health"))[0] == 503


async def test_metrics_are_what_happened(engine: Engine) -> None:
    """Requests by path and code, tokens as the engine counts them, the supervisor's figures; all of it well formed."""
    async with serving(engine) as served:
        memory = (MemoryFigure(memory="gpu0", kind="weights", planned_bytes=3 * GIB, measured_bytes=4 * GIB),)
        served.gateway.publish(Status(state=State.READY, n_restarts=3, n_ladder_steps=2, memory=memory))
        await served.ask({"stream": True, "max_tokens": 5})
        await served.ask({"max_tokens": 7})
        await served.ask({"fake": {"status": 400}})
        await served.ask({}, path="/some/" + "x" * 50)
        _, text = await served.get("/metrics")
        families = {family.name: family for family in text_string_to_metric_families(text)}
        figures = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in families.values()
            for sample in family.samples
        }
        assert figures["launcher_requests_total", CHAT, "200"] == 2
        assert figures["launcher_requests_total", CHAT, "400"] == 1
        assert figures["launcher_requests_total", "200", "other"] == 1
        assert figures["launcher_tokens_total", "generated"] == 5 + 7 + 8 + 8
        assert figures["launcher_tokens_total", "prompt"] == 12
        assert figures[("launcher_stream_events_total",)] == 7
        assert (figures[("launcher_engine_restarts_total",)], figures[("launcher_ladder_steps_total",)]) == (3, 2)
        assert figures["launcher_memory_bytes", "gpu0", "planned", "weights"] == 3 * GIB
        assert figures["launcher_memory_bytes", "gpu0", "measured", "weights"] == 4 * GIB
        assert figures["launcher_state", "ready"] == figures["launcher_health", "ready"] == 1
        assert figures["launcher_state", "failed"] == 0
        assert figures[("launcher_requests_running",)] == 0
        assert figures[("launcher_first_byte_seconds_count",)] == 4
        assert all(family.documentation for family in families.values())


async def test_metrics_tell_what_was_measured_last(engine: Engine) -> None:
    """Memories and devices, each figure under its name; what nobody tells is absent, which is not zero."""
    async with serving(engine) as served:
        load = DeviceLoad(
            name="gpu0",
            total_bytes=24 * GIB,
            free_bytes=GIB,
            utilization=0.97,
            power_w=320.5,
            power_limit_w=450.0,
            throttled=("heat", "power cap"),
        )
        served.gateway.observe(
            Observed(
                free_bytes={"gpu0": GIB, "host": 2 * GIB}, own_bytes={"gpu0": 20 * GIB}, loads=(load,), stalled=0.25
            )
        )
        _, text = await served.get("/metrics")
    figures = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert figures["launcher_memory_free_bytes", "gpu0"] == GIB
    assert figures["launcher_memory_free_bytes", "host"] == 2 * GIB
    assert figures["launcher_memory_held_bytes", "gpu0"] == 20 * GIB
    assert ("launcher_memory_held_bytes", "host") not in figures
    assert figures["launcher_device_utilization_ratio", "gpu0"] == 0.97
    assert figures["launcher_device_power_watts", "gpu0"] == 320.5
    assert figures["launcher_device_power_limit_watts", "gpu0"] == 450
    assert ("launcher_device_temperature_celsius", "gpu0") not in figures
    assert figures["launcher_device_throttled", "gpu0", "heat"] == 1
    assert figures["launcher_device_throttled", "gpu0", "power cap"] == 1
    assert figures[("launcher_memory_stalled_ratio",)] == 0.25


async def test_engines_answers_are_told_apart(engine: Engine) -> None:
    """What fails by 5xx or by an error event, and what succeeds; what says nothing of the engine is neither."""
    async with serving(engine) as served:
        await served.ask({"max_tokens": 1})
        await served.ask({"stream": True})
        await served.ask({"max_tokens": 1, "fake": {"answer_bytes": 2 << 20}})
        await served.ask({"fake": {"status": 500}})
        await served.ask({"stream": True, "fake": {"status": 502}})
        await served.ask({"stream": True, "fake": {"error_at": 2}})
        await served.ask({"fake": {"status": 400}})  # the request's own doing
        await served.ask({"fake": {"status": 501}})  # what this model never does
        await served.ask({"fake": {"status": 500}}, path="/tokenize")  # computes nothing
        await served.ask({"stream": True, "fake": {"close_at": 2}})  # lost: its supervisor will know
        load = served.gateway.load()
        assert (load.n_succeeded, load.n_failed) == (3, 3)
        assert await served.figure('launcher_engine_answers_total{outcome="failure"}') == 3


async def test_the_pace_of_a_stream_that_ran_alone(engine: Engine) -> None:
    """Events per second from the first on, waiting for that one left out; of two at once neither counts."""
    async with serving(engine) as served:
        slow = {"stream": True, "max_tokens": 40, "fake": {"tps": 200, "first_s": 0.5}}
        began_s = time.monotonic()
        await served.ask(slow)
        (pace,) = served.gateway.load().paces
        assert 40 / pace.tps < time.monotonic() - began_s - 0.4
        await asyncio.gather(served.ask(slow), served.ask(slow))
        await served.ask({"stream": True, "max_tokens": 5, "fake": {"tps": 200}})  # too short to tell
        await served.ask({"max_tokens": 40})  # nobody knows how long it generated
        await served.ask({**slow, "fake": {"tps": 200, "close_at": 30}})
        assert served.gateway.load().paces == (pace,)


async def test_a_client_that_reads_slowly_does_not_make_an_engine_slow(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the client is not waited for the engine: no part is passed on in less than 20 ms here."""
    write, n_writes = Client.write, 0

    async def write_slowly(self: Client, response: web.StreamResponse, data: bytes) -> None:
        nonlocal n_writes
        n_writes += 1
        await asyncio.sleep(0.02)
        await write(self, response, data)

    monkeypatch.setattr(Client, "write", write_slowly)
    n_tokens = 300
    async with serving(engine) as served:
        began_s = time.monotonic()
        await served.ask({"stream": True, "max_tokens": n_tokens, "fake": {"tps": 1000}})
        (pace,) = served.gateway.load().paces
        assert n_tokens / pace.tps < time.monotonic() - began_s - 0.02 * (n_writes - 2)


async def test_an_unavailable_engine_has_failed_each_time(engine: Engine) -> None:
    """503 is sent again, and each of them counts."""
    async with serving(engine, n_replays=2) as served:
        assert (await served.ask({"fake": {"status": 503}}))[0] == 503
        assert served.gateway.load().n_failed == 3


async def test_what_is_asked_in_turn_waits_for_the_running_request(engine: Engine) -> None:
    """An engine that serves one at a time is not interrupted; then who waits has the turn."""
    async with serving(engine, n_running=1) as served:

        async def ask() -> int:
            return served.gateway.load().n_running

        running = asyncio.create_task(served.ask({"stream": True, "max_tokens": 20, "fake": {"tps": 100}}))
        await until(lambda: served.gateway.load().n_running)
        assert await served.gateway.in_turn(ask) == 0
        await running
        assert served.gateway.load().n_succeeded == 1
        assert (await served.ask({"max_tokens": 1}))[0] == 200


async def test_no_turn_where_the_line_is_closed(engine: Engine) -> None:
    """Nothing is asked of an engine that is about to go."""
    async with serving(engine) as served:
        await served.gateway.stop(0.0)

        async def ask() -> str:
            raise AssertionError

        assert await served.gateway.in_turn(ask) is None


def test_a_histograms_buckets_hold_their_bounds() -> None:
    """A time on a bound falls below it, as Prometheus' ``le`` says; beyond the last there is one more bucket."""
    histogram = Histogram()
    for seconds in (0.0, SECONDS[0], SECONDS[0] + 1e-9, SECONDS[-1] + 1):
        histogram.observe(seconds)
    assert histogram.counts[:2] == [2, 1]
    assert histogram.counts[-1] == 1
    assert sum(histogram.counts) == 4


def test_paths_do_not_become_labels_without_end() -> None:
    """Clients choose paths; only known ones are told apart."""
    assert route_of("/v1/completions") == "/v1/completions"
    assert {route_of(f"/x{n}") for n in range(100)} == {"other"}


def test_a_gateway_without_a_scraper_does_not_pay_for_one() -> None:
    """`prometheus_client` is imported when `/metrics` is first asked, and by nothing else."""
    code = "import sys; import launcher.gateway.gateway; print('prometheus_client' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
