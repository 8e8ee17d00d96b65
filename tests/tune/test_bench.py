"""How a plan's engine is measured: over an endpoint that answers as told, and over a real small process."""

import asyncio
import contextlib
import itertools
import json
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from msgspec.structs import replace

from launcher.cli.measuring import measuring
from launcher.domain import Address, Command, Engine, Plan, Provenance, Speed
from launcher.errors import AlreadyServedError, EndpointAccessError, EngineFailedError, LauncherError
from launcher.measured import Bench
from launcher.store import open_instance
from launcher.supervisor.checks import free_port
from launcher.supervisor.session import open_engine
from launcher.tune.bench import bench
from launcher.tune.points import Workload
from launcher.tune.requests import measure
from tests.fakes.harness import FAKES, poll, survivors
from tests.fakes.plans import plan_for

_WORKLOAD = Workload(n_prompt=64, n_generated=8)
_RATES = json.dumps({"1": [100, 30]})
Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the program at an empty state directory."""
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def _plan(engine: Engine = Engine.LLAMA_SERVER, n_parallel: int = 1) -> Plan:
    speed = Speed(generation_tps=60.0, prompt_tps=50.0, basis=Provenance.ASSUMED)
    return replace(plan_for(), engine=engine, n_parallel=n_parallel, speed=speed)


@contextlib.asynccontextmanager
async def _endpoint(answer: Answer) -> AsyncIterator[aiohttp.ClientSession]:
    """Answer every request as told."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await answer(request, await request.json())

    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            yield session
    finally:
        await runner.cleanup()


async def _stream(request: web.Request, *lines: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for line in lines:
        await response.write(line.encode() + b"\n\n")
    await response.write_eof()
    return response


def _timings(n_prompt: int, n_generated: int, prompt_tps: float = 100, generation_tps: float = 30) -> str:
    told = {
        "prompt_n": n_prompt,
        "prompt_ms": 1000 * min(n_prompt, 1000) / prompt_tps,
        "predicted_n": n_generated,
        "predicted_ms": 1000 * n_generated / generation_tps,
    }
    return "data: " + json.dumps({"content": "", "stop": True, "timings": told})


async def _answer_natively(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    words = ['data: {"content":"x","stop":false}'] * body["n_predict"]
    return await _stream(request, *words, _timings(len(body["prompt"].split()), body["n_predict"]))


async def _bench(answer: Answer, plan: Plan, *, n_turns: int = 6, max_s: float = 40.0) -> Bench:
    async with _endpoint(answer) as session:
        return await bench(
            session, plan, is_served=False, report=print, workload=_WORKLOAD, n_turns=n_turns, max_s=max_s
        )


async def test_both_loads_are_measured_in_turns() -> None:
    """One request's rates are the engine's own; no prompt comes twice, in another run either; the loads change places."""
    asked: list[str] = []
    sizes = iter((1, 1, 3, 3, 1, 1, 1, 3))  # a warm-up and two turns at each load, then a warm-up and one turn
    barrier = asyncio.Barrier(next(sizes))

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """Answer once as many have asked as are to ask at once."""
        nonlocal barrier
        asked.append(body["prompt"])
        if await barrier.wait() == 0:
            barrier = asyncio.Barrier(next(sizes, 1))
        return await _answer_natively(request, body)

    plan = _plan(n_parallel=3)
    found = await _bench(answer, plan, n_turns=2, max_s=60.0)
    again = await _bench(answer, plan, n_turns=1, max_s=60.0)
    assert [load.n_requests for load in found.loads] == [1, 3]
    one, many = found.loads
    assert (one.prompt_tps.median, one.generation_tps.median) == pytest.approx((100, 30))
    assert one.prompt_tps.ratio == pytest.approx(2.0)
    assert one.generation_tps.ratio == pytest.approx(0.5)
    assert one.first_token_s.predicted == pytest.approx(64 / 50)
    assert many.each_generation_tps.median == pytest.approx(30)
    assert {figure.n_turns for load in found.loads for figure in (load.prompt_tps, load.first_token_s)} == {2}
    assert (found.n_prompt, found.n_generated, found.is_complete, again.is_complete) == (64, 8, True, True)
    assert [len(prompt.split()) for prompt in asked] == [8, *[64] * 8, 8, *[64] * 4]
    assert len(set(asked) - {asked[0]}) == 12


async def test_one_request_at_a_time_is_one_load() -> None:
    """A plan for one request has nothing else to be measured."""
    found = await _bench(_answer_natively, _plan(), n_turns=1)
    assert [load.n_requests for load in found.loads] == [1]
    assert found.loads[0].prompt_tps.coverage == 0


async def test_a_stream_is_timed_from_here_where_the_engine_tells_no_time() -> None:
    """Vllm tells tokens alone: the rates follow from when the first and the last of them came."""
    told: list[dict[str, Any]] = []

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        told.append(body)
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(0.1)
        for n in range(3, body["max_tokens"] + 1):  # the first three in one event
            event = {"choices": [{"text": "x"}], "usage": {"prompt_tokens": 65, "completion_tokens": n}}
            await response.write(b": a comment\n\ndata: " + json.dumps(event).encode() + b"\n\n")
            await asyncio.sleep(0.01)
        usage = {"prompt_tokens": 65, "completion_tokens": body["max_tokens"]}
        await response.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")
        return response

    async with _endpoint(answer) as session:
        sample = await measure(session, _plan(Engine.VLLM), _WORKLOAD, seed=1)
    assert told[0]["model"] == "gemma3-270m"
    assert (sample.n_prompt, sample.n_timed) == (65, 5)
    assert 0.1 <= sample.first_token_s < sample.last_token_s - 5 * 0.01
    assert sample.prompt_tps == pytest.approx(65 / sample.first_token_s)
    assert sample.generation_tps == pytest.approx(5 / (sample.last_token_s - sample.first_token_s))


async def test_an_answer_in_one_piece_cannot_be_timed_from_here() -> None:
    """As of a model so quick that whoever passes its tokens on comes too late: that is told, not a rate of millions."""

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        usage = {"prompt_tokens": 65, "completion_tokens": body["max_tokens"]}
        event = "data: " + json.dumps({"choices": [{"text": "x"}], "usage": usage})
        return await _stream(request, f"{event}\n\n{event}")

    with pytest.raises(EngineFailedError, match="tokens came in one piece"):
        await _bench(answer, _plan(Engine.VLLM))


_FAULTS: dict[str, tuple[Answer, type[LauncherError], str]] = {
    "an error instead of a stream": (
        lambda _, __: _reply(500, '{"error":{"message":"Compute \x1b error."}}'),
        EngineFailedError,
        "status 500: .*Compute \ufffd error",
    ),
    "an error in the stream": (
        lambda request, _: _stream(request, 'data: {"content":"x"}', 'data: {"error":{"message":"engine lost"}}'),
        EngineFailedError,
        "ended in an error: engine lost$",
    ),
    "a stream without its end": (
        lambda request, _: _stream(request, 'data: {"content":"x"}'),
        EngineFailedError,
        "holds no timings",
    ),
    "no token": (lambda request, _: _stream(request, _timings(64, 8)), EngineFailedError, "no token came"),
    "no JSON": (lambda request, _: _stream(request, "data: {"), EngineFailedError, "holds no timings"),
    "a list": (lambda request, _: _stream(request, "data: []"), EngineFailedError, "holds no timings"),
    "a figure that is none": (
        lambda request, _: _stream(request, 'data: {"content":"x"}', _timings(64, 8, 1, math.nan)),
        EngineFailedError,
        "holds no timings",
    ),
    "a figure below none": (
        lambda request, _: _stream(request, 'data: {"content":"x"}', _timings(64, 8, -100)),
        EngineFailedError,
        "at -100 and 30 tokens/s",
    ),
    "a figure beyond all": (
        lambda request, _: _stream(request, 'data: {"content":"x"}', _timings(10**400, 8)),
        EngineFailedError,
        "holds no timings",
    ),
    "no object": (lambda request, _: _stream(request, "data: 1"), EngineFailedError, "holds no timings"),
    "no time": (
        lambda request, _: _stream(request, 'data: {"content":"x"}', _timings(64, 8, 1e308 * 10)),
        EngineFailedError,
        "holds no timings",
    ),
    "another key": (lambda _, __: _reply(401, ""), EndpointAccessError, "API key"),
}


async def _reply(status: int, body: str) -> web.StreamResponse:
    return web.Response(status=status, text=body)


@pytest.mark.parametrize("kind", _FAULTS)
async def test_an_answer_that_cannot_be_timed_is_a_fault(kind: str) -> None:
    """Nothing is made up: it is said what came instead, fit to be shown."""
    answer, fault, words = _FAULTS[kind]
    with pytest.raises(fault, match=words):
        await _bench(answer, _plan())


async def test_the_first_fault_of_several_ends_the_others() -> None:
    """One of four requests fails: no other is waited for."""
    numbers = itertools.count()
    ended: list[bool] = []

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        number = next(numbers)
        if number < 2:  # the warm-up, and the turn of one request
            return await _answer_natively(request, body)
        if number == 5:  # the last of the four
            return web.Response(status=500, text="sick")
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)
        raise AssertionError

    with pytest.raises(EngineFailedError, match="sick"):
        await _bench(answer, _plan(n_parallel=4), max_s=60.0)
    assert len(ended) == 3


async def test_the_time_is_bounded() -> None:
    """What was measured until then is told as incomplete; where that is nothing, it is a fault."""
    numbers = itertools.count()

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if next(numbers) > 1:
            await asyncio.sleep(3600)
        return await _answer_natively(request, body)

    found = await _bench(answer, _plan(n_parallel=2), max_s=0.5)
    assert [load.n_requests for load in found.loads] == [1]
    assert not found.is_complete
    assert found.elapsed_s < 10
    with pytest.raises(EngineFailedError, match=r"no request .* within 0\.2 s"):
        await _bench(answer, _plan(), max_s=0.2)


def _command(*arguments: str) -> Command:
    port = free_port("127.0.0.1")
    argv = (sys.executable, "-S", str(FAKES / "fake_engine.py"), "--port", str(port), "--rates", _RATES, *arguments)
    return Command(argv=argv, address=Address(port=port), ready_path="/health", canary_path="/", canary_body="{}")


def _over_process(command: Command) -> Bench:
    async def run() -> Bench:
        async with open_engine(command, instance=instance) as session:
            return await bench(
                session, _plan(), is_served=False, report=print, workload=_WORKLOAD, n_turns=1, max_s=40.0
            )

    with open_instance("calibrate") as instance:
        try:
            return asyncio.run(run())
        finally:
            assert poll(lambda: not survivors(command.address.port or 0))
            assert instance.read_guards() == ()


def test_an_engine_is_measured_and_nothing_remembered(state_dir: Path) -> None:
    """The state directory has a lock, and no calibration."""
    found = _over_process(_command())
    assert found.loads[0].generation_tps.median == pytest.approx(30)
    assert {path.name for path in state_dir.rglob("*") if path.is_file()} == {"lock"}


def test_an_engine_that_dies_is_named_by_its_end(state_dir: Path) -> None:
    """Not a broken connection but how it ended is told, with its own words."""
    del state_dir
    command = _command(
        "--answer-s", "60", "--exit-after-s", "0.3", "--exit-code", "7", "--say", "error: no more memory"
    )
    with pytest.raises(EngineFailedError, match="the engine ended") as caught:
        _over_process(command)
    assert "7" in caught.value.message
    assert any("no more memory" in line for line in caught.value.details)


def test_two_measurements_do_not_disturb_each_other(state_dir: Path) -> None:
    """While this machine is being measured no other measurement begins."""
    del state_dir
    with measuring(), pytest.raises(AlreadyServedError, match="measured already"), measuring():
        raise AssertionError
