"""The gateway before the real llama-server: what OpenAI's client gets, and what the engine is spared."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import openai
import psutil
import pytest
from msgspec.structs import replace

from launcher.backends import build_command, with_key
from launcher.cli.options import keep_local
from launcher.domain import Address, EngineInstall, Plan, Request, Settings
from launcher.fetch import require_weights
from launcher.gateway.gateway import Gateway
from launcher.inventory import probe_inventory
from launcher.planner.fit import decide
from launcher.profiles import load_profile
from launcher.store import Instance, open_instance
from launcher.supervisor.checks import free_port
from launcher.supervisor.session import open_engine
from tests.fakes.gateway import until

_DEADLINE_S: Final = 60.0
_TWO_AT_ONCE: Final = Settings(n_parallel=2)

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("real_model")]


def _plan(install: EngineInstall, settings: Settings = _TWO_AT_ONCE) -> Plan:
    machine = replace(probe_inventory(), engines=(install,))
    outcome = decide(Request(profile=keep_local(load_profile("gemma3-270m"), settings), settings=settings), machine)
    assert isinstance(outcome, Plan)
    return outcome


@asynccontextmanager
async def _engine(plan: Plan, instance: Instance) -> AsyncIterator[str]:
    """Run the plan's engine on a port of its own; yield where."""
    address = Address(port=free_port("127.0.0.1"))
    command = build_command(plan, weights_path=str(require_weights(plan.artifact)), address=address, alias=plan.model)
    async with open_engine(command, instance=instance, plan=plan):
        yield f"http://127.0.0.1:{address.port}"


@asynccontextmanager
async def _gateway(name: str) -> AsyncIterator[tuple[Gateway, str]]:
    gateway = Gateway(name)
    address = await gateway.start(Address(port=0))
    try:
        yield gateway, f"http://127.0.0.1:{address.port}"
    finally:
        await gateway.stop(0.0)


async def _until_idle(url: str) -> None:
    """Wait until no slot of the engine works."""
    end_s = time.monotonic() + _DEADLINE_S
    async with aiohttp.ClientSession(url) as session:
        while True:
            async with session.get("/slots") as response:
                slots: list[dict[str, Any]] = await response.json()
            if not any(slot["is_processing"] for slot in slots):
                return
            assert time.monotonic() < end_s, slots
            await asyncio.sleep(0.05)


def _kill_engine(port: int) -> None:
    """Kill what listens on the port, as the kernel would."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
            psutil.Process(connection.pid).kill()


def test_openais_client_is_served_through_it(llama_server: EngineInstall, state_dir: Path) -> None:
    """It waits for the engine, streams token by token, gives work up when its client leaves, and counts as the engine."""
    asyncio.run(_serve_through(_plan(llama_server)))
    assert state_dir.exists()


async def _serve_through(plan: Plan) -> None:
    async with AsyncExitStack() as stack:
        instance = stack.enter_context(open_instance("through"))
        gateway, url = await stack.enter_async_context(_gateway(plan.model))
        client = await stack.enter_async_context(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x"))
        early = asyncio.create_task(client.completions.create(model=plan.model, prompt="1 2 3", max_tokens=4))
        engine_url = await stack.enter_async_context(_engine(plan, instance))
        gateway.attach(engine_url)
        assert (await early).usage is not None
        stream = await client.chat.completions.create(
            model=plan.model,
            messages=[{"role": "user", "content": "count"}],
            stream=True,
            max_tokens=16,
            stream_options={"include_usage": True},
        )
        parts = [part async for part in stream]
        usage = parts[-1].usage
        assert usage is not None
        assert len(parts) >= usage.completion_tokens
        assert gateway.load().n_generated_tokens == 4 + usage.completion_tokens
        await _give_up(url)
        await _until_idle(engine_url)


def test_the_pace_is_the_engines_own(llama_server: EngineInstall, state_dir: Path) -> None:
    """What the gateway measures of a stream that runs alone is what llama-server says that it generated per second."""
    asyncio.run(_pace(_plan(llama_server)))
    assert state_dir.exists()


async def _pace(plan: Plan) -> None:
    async with AsyncExitStack() as stack:
        gateway, url = await stack.enter_async_context(_gateway(plan.model))
        gateway.attach(await stack.enter_async_context(_engine(plan, stack.enter_context(open_instance("paced")))))
        session = await stack.enter_async_context(aiohttp.ClientSession(url))
        body = {"prompt": "1 2 3", "n_predict": 60, "ignore_eos": True, "stream": True}
        async with session.post("/completion", json=body) as response:
            events = [line[6:] for line in (await response.text()).splitlines() if line.startswith("data: {")]
        (pace,) = gateway.load().paces
        assert pace.tps == pytest.approx(json.loads(events[-1])["timings"]["predicted_per_second"], rel=0.15)


async def _give_up(url: str) -> None:
    """Begin a long answer, and leave."""
    body = {"prompt": "1", "n_predict": 100_000, "ignore_eos": True, "stream": True}
    async with aiohttp.ClientSession(url) as session, session.post("/completion", json=body) as response:
        assert (await response.content.readuntil(b"\n\n")).startswith(b"data: ")


def test_a_killed_engine_costs_no_answer(llama_server: EngineInstall, state_dir: Path) -> None:
    """Killed in the middle of two answers: the stream ends with an error that OpenAI's client raises, the other is whole."""
    asyncio.run(_lose_engine(_plan(llama_server)))
    assert state_dir.exists()


async def _lose_engine(plan: Plan) -> None:
    body = {"model": plan.model, "prompt": "1", "max_tokens": 60, "ignore_eos": True}
    async with AsyncExitStack() as stack:
        gateway, url = await stack.enter_async_context(_gateway(plan.model))
        client = await stack.enter_async_context(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x"))
        session = await stack.enter_async_context(aiohttp.ClientSession(url))
        first = await stack.enter_async_context(_engine(plan, stack.enter_context(open_instance("first"))))
        gateway.attach(first)
        stream = await client.completions.create(
            model=plan.model, prompt="1", max_tokens=60, stream=True, extra_body={"ignore_eos": True}
        )
        whole = asyncio.create_task(_read(session, body))
        await anext(stream)
        await until(lambda: gateway.load().n_running == 2)
        _kill_engine(int(first.rsplit(":", 1)[1]))
        with pytest.raises(openai.APIError, match="not complete"):
            [part async for part in stream]
        gateway.detach("the engine was killed by signal 9")
        gateway.attach(await stack.enter_async_context(_engine(plan, stack.enter_context(open_instance("second")))))
        status, answer = await whole
        assert (status, answer["usage"]["completion_tokens"]) == (200, 60)


async def _read(session: aiohttp.ClientSession, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    async with session.post("/v1/completions", json=body) as response:
        return response.status, json.loads(await response.read())


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the program at an empty state directory."""
    path = tmp_path / "state"
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(path))
    return path


@pytest.mark.parametrize("engine", ["llama_server", "llama_cpp_python"])
@pytest.mark.usefixtures("state_dir")
def test_an_engine_answers_only_who_knows_its_key(engine: str, request: pytest.FixtureRequest) -> None:
    """Another user of the machine finds the private port closed to every request for work."""
    install: EngineInstall = request.getfixturevalue(engine)
    plan = _plan(install, Settings(n_parallel=1, n_ctx_per_request=512, engine=install.engine))

    async def statuses() -> list[int]:
        address = Address(port=free_port("127.0.0.1"))
        weights = str(require_weights(plan.artifact))
        command = build_command(plan, weights_path=weights, address=address, alias=plan.model)
        command = with_key(command, plan.engine, "key-" * 8)
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        found = []
        with open_instance("key") as instance:
            async with open_engine(command, instance=instance, plan=plan) as knowing, aiohttp.ClientSession() as other:
                url = f"http://127.0.0.1:{address.port}/v1/chat/completions"
                for session in (other, knowing):
                    async with session.post(url if session is other else "/v1/chat/completions", json=body) as answer:
                        found.append(answer.status)
        return found

    assert asyncio.run(statuses()) == [401, 200]
