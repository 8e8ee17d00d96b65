"""Engines that are lost: every accepted request still gets a whole answer."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from launcher.domain import State
from launcher.gateway.health import Status
from tests.fakes.gateway import CHAT, Engine, Served, events_of, serving, until

Start = Callable[[], Engine]
STREAM = {"stream": True, "max_tokens": 8}


def _openai(served: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="x", max_retries=3)


async def _gone(engine: Engine) -> None:
    """Wait until an engine has ended."""
    await until(lambda: engine.process.poll() is not None)


async def _replayed(served: Served, n: int) -> None:
    """Wait until a request has been sent again so often."""
    await until(lambda: served.gateway._meters.n_replays == n)


async def _grown(answers: list[tuple[int, str]], n: int) -> None:
    """Wait until there are more answers than that."""
    await until(lambda: len(answers) > n)


async def test_requests_wait_for_an_engine(engine: Engine) -> None:
    """What comes before an engine is there is answered when it is, streams and others."""
    async with serving() as served:
        asked = [asyncio.create_task(served.ask({**STREAM, "stream": n % 2 == 0})) for n in range(6)]
        await until(lambda: served.gateway.load().n_waiting == 6)
        served.gateway.attach(engine.url)
        assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 6


async def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    """503, ``Retry-After`` from what the supervisor expects, and an error as OpenAI's API words it."""
    async with serving(n_waiting=1) as served:
        waiting = asyncio.create_task(served.ask(STREAM))
        await until(lambda: served.gateway.load().n_waiting == 1)
        served.gateway.publish(Status(state=State.STARTING, expected_ready_s=17.2))
        async with served.session.post(CHAT, json=STREAM) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "17")
            error = (await response.json())["error"]
        assert error["code"] == "queue-full"
        assert "not ready yet" in error["message"]
        waiting.cancel()


async def test_waiting_ends() -> None:
    """Without an engine, a request is refused after the bound, with the reason."""
    async with serving(max_wait_s=0.1) as served:
        served.gateway.detach("the engine was killed by signal 9")
        status, text = await served.ask(STREAM)
        assert status == 503
        assert "within 0 s: the engine was killed by signal 9" in text


@pytest.mark.parametrize("body", [{"stream": True}, {"stream": False}])
async def test_an_unanswered_request_is_sent_again(start_engine: Start, tmp_path: Path, body: dict[str, Any]) -> None:
    """The engine is killed after its answer's head, before a byte of the body went on: the next engine answers."""
    first, second = start_engine(), start_engine()
    wrong = {"once": str(tmp_path / "died"), "die_at": 0, "head": True}
    async with serving(first) as served:
        asked = asyncio.create_task(served.ask({**body, "max_tokens": 3, "fake": wrong}))
        await _gone(first)
        served.gateway.detach("the engine was killed")
        await until(lambda: served.gateway.load().n_waiting == 1)
        served.gateway.attach(second.url)
        status, text = await asked
        assert status == 200
        assert "error" not in text
        assert await served.figure("launcher_replays_total") == 1
        assert second.seen()["n_requests"] == 1


@pytest.mark.parametrize("half", [False, True])
async def test_a_begun_stream_ends_with_an_error_event(
    engine: Engine,
    half: bool,  # noqa: FBT001 - a case of the test
) -> None:
    """Whole events, then the error, then the end of a complete HTTP answer; half an event is not passed on."""
    async with serving(engine) as served:
        status, text = await served.ask({**STREAM, "fake": {"die_at": 3, "half": half}})
        events = events_of(text)
        assert (status, len(events)) == (200, 4)
        assert events[2]["choices"][0]["delta"]["content"] == "t2 "
        assert events[3]["error"]["code"] == "engine-lost"
        assert "[DONE]" not in text
        assert text.endswith("\n\n")
        assert await served.figure("launcher_streams_ended_total") == 1


@pytest.mark.parametrize("wrong", [{"die_at": 3}, {"close_at": 3, "half": True}, {"end_at": 3}, {"error_at": 3}])
async def test_openais_own_client_understands_how_a_stream_ended(engine: Engine, wrong: dict[str, Any]) -> None:
    """It raises, after the tokens that came, however the stream was cut; the engine's own error comes through as it is."""
    async with serving(engine) as served:
        async with _openai(served) as client:
            stream = await client.chat.completions.create(
                model="tiny", messages=[], stream=True, max_tokens=8, extra_body={"fake": wrong}
            )
            got = [(await anext(stream)).choices[0].delta.content for _ in range(3)]
            with pytest.raises(openai.APIError) as caught:
                [part async for part in stream]
        assert got == ["t0 ", "t1 ", "t2 "]
        expected = "compute error" if "error_at" in wrong else "not complete"
        assert expected in caught.value.message


async def test_openais_own_client_reads_whole_answers(engine: Engine) -> None:
    """The usual case: a stream and its end, a plain answer, the list of models."""
    async with serving(engine) as served, _openai(served) as client:
        stream = await client.chat.completions.create(model="tiny", messages=[], stream=True, max_tokens=5)
        parts = [part async for part in stream]
        assert len(parts) == 6
        answer = await client.completions.create(model="tiny", prompt="")
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 8
        assert [model.id async for model in client.models.list()] == ["tiny"]
        assert (await client.models.retrieve("tiny")).id == "tiny"


async def test_openais_own_client_comes_back_when_told(engine: Engine) -> None:
    """Refused with ``Retry-After``, it tries again by itself and is served."""
    async with serving(n_waiting=0) as served:
        served.gateway.publish(Status(expected_ready_s=1.0))
        async with _openai(served) as client:
            asked = asyncio.create_task(client.completions.create(model="tiny", prompt=""))
            await until(lambda: served.gateway._meters.refusals["queue-full"] == 1)
            served.gateway.attach(engine.url)
            assert (await asked).choices


async def test_a_stream_cut_after_its_last_word_is_whole(engine: Engine) -> None:
    """The engine is lost between ``[DONE]`` and the end of its answer: nothing is missing, so nothing is said."""
    async with serving(engine) as served:
        status, text = await served.ask({**STREAM, "fake": {"no_end": True}})
        assert status == 200
        assert text.endswith("data: [DONE]\n\n")
        assert "error" not in text


async def test_a_stream_of_announced_length_is_ended_in_words_too(engine: Engine) -> None:
    """The length in the engine's head is not promised to the client, to whom something else may be said."""
    async with serving(engine) as served:
        status, text = await served.ask({**STREAM, "fake": {"announce": True, "close_at": 3}})
        assert (status, len(events_of(text))) == (200, 4)
        assert events_of(text)[3]["error"]["code"] == "engine-lost"


async def test_a_request_that_kills_engines_ends(start_engine: Start) -> None:
    """Sent to three engines, it killed three: the fourth is spared, and the client told."""
    async with serving(start_engine(), n_replays=2) as served:
        asked = asyncio.create_task(served.ask({"fake": {"die_at": 0}}))
        for n in (1, 2):
            await _replayed(served, n)
            served.gateway.detach("the engine was killed")
            served.gateway.attach(start_engine().url)
        status, text = await asked
        assert status == 502
        assert "in 3 attempts" in text


async def test_an_engine_that_is_away_is_asked_again_until_told(start_engine: Start) -> None:
    """Nobody has said yet that it is lost: connecting fails, which is not the request's doing, and it waits."""
    engine, spare = start_engine(), start_engine()
    async with serving(engine, n_replays=0) as served:
        engine.end()
        asked = asyncio.create_task(served.ask(STREAM))
        await until(lambda: served.gateway.load().n_waiting == 1)
        await asyncio.sleep(0.3)
        assert not asked.done()
        served.gateway.attach(spare.url)
        assert (await asked)[0] == 200


async def test_an_engine_that_never_comes_back_is_not_awaited_for_ever(engine: Engine) -> None:
    """Attached and away, and nobody says more: after the bound the client is told."""
    async with serving(engine, max_wait_s=0.2) as served:
        engine.end()
        status, text = await served.ask(STREAM)
        assert status == 503
        assert "cannot be reached" in text


async def test_an_engine_that_says_503_is_asked_again(engine: Engine, tmp_path: Path) -> None:
    """As vLLM does for some seconds when its core has died; in the end the client gets a 503 with ``Retry-After``."""
    async with serving(engine) as served:
        status, _ = await served.ask({**STREAM, "fake": {"once": str(tmp_path / "once"), "status": 503}})
        assert status == 200
        async with served.session.post(CHAT, json={**STREAM, "fake": {"status": 503}}) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1


async def test_other_errors_of_an_engine_are_its_own(engine: Engine) -> None:
    """400 and 500 are answers: passed on as they are, once."""
    async with serving(engine) as served:
        for code in (400, 500):
            status, text = await served.ask({**STREAM, "fake": {"status": code}})
            assert (status, text) == (code, '{"error": {"message": "no"}}')
        assert engine.seen()["n_requests"] == 2


async def test_a_hung_engine_gives_its_requests_back(start_engine: Start, tmp_path: Path) -> None:
    """Detached by whoever noticed: what had no answer is answered by the next, a begun stream is ended, none waits on."""
    hung, spare = start_engine(), start_engine()
    async with serving(hung) as served:
        begun = asyncio.create_task(served.ask({**STREAM, "fake": {"hang_at": 2}}))
        wrong = {"once": str(tmp_path / "hung"), "hang_at": 0}
        unanswered = asyncio.create_task(served.ask({**STREAM, "fake": wrong}))
        await until(lambda: served.gateway.load().n_events == 2 and hung.seen()["n_requests"] == 2)
        hung.kill(signal.SIGSTOP)
        served.gateway.detach("no token for 30 s")
        assert (await begun)[1].endswith('"code":"engine-lost"}}\n\n')
        assert "no token for 30 s" in (await begun)[1]
        served.gateway.attach(spare.url)
        assert (await unanswered)[0] == 200


async def test_draining_lets_running_requests_end(start_engine: Start) -> None:
    """Nothing more is sent to the old engine, what runs ends there, what comes waits for the new one."""
    old, new = start_engine(), start_engine()
    async with serving(old) as served:
        running = asyncio.create_task(served.ask({**STREAM, "fake": {"tps": 40}}))
        await until(lambda: served.gateway.load().n_events > 0)
        drained = asyncio.create_task(served.gateway.drain(10.0, "stepping down"))
        await asyncio.sleep(0)
        late = asyncio.create_task(served.ask(STREAM))
        assert await drained == 0
        assert "[DONE]" in (await running)[1]
        assert (old.seen()["n_requests"], served.gateway.load().n_waiting) == (1, 1)
        served.gateway.attach(new.url)
        assert (await late)[0] == 200
        assert new.seen()["n_requests"] == 1


async def test_draining_is_bounded(start_engine: Start, tmp_path: Path) -> None:
    """What has not ended is taken back: unanswered requests go to the next engine, free of charge; streams are ended."""
    old, new = start_engine(), start_engine()
    async with serving(old, n_replays=0) as served:
        stream = asyncio.create_task(served.ask({**STREAM, "max_tokens": 10_000, "fake": {"tps": 50}}))
        slow = asyncio.create_task(served.ask({"fake": {"once": str(tmp_path / "slow"), "first_s": 600}}))
        await until(lambda: served.gateway.load().n_events > 0 and old.seen()["n_requests"] == 2)
        assert await served.gateway.drain(0.1, "stepping down to q3_k_m") == 2
        assert "stepping down to q3_k_m" in (await stream)[1]
        await until(lambda: old.seen()["n_running"] == 0)
        served.gateway.attach(new.url)
        assert (await slow)[0] == 200


async def test_stopping_answers_everybody(engine: Engine) -> None:
    """Who waits is refused, what runs may end within the time, a stream beyond it is told; then nobody listens."""
    async with serving(engine, n_running=2) as served:
        short = asyncio.create_task(served.ask({**STREAM, "fake": {"first_s": 0.4}}))
        endless = asyncio.create_task(served.ask({**STREAM, "max_tokens": 10_000, "fake": {"tps": 50}}))
        await until(lambda: served.gateway.load().n_running == 2)
        waiting = asyncio.create_task(served.ask(STREAM))
        await until(lambda: served.gateway.load().n_waiting == 1)
        stopped = asyncio.create_task(served.gateway.stop(2.0))
        assert (await waiting)[0] == 503
        assert (await served.ask(STREAM))[0] == 503
        assert "[DONE]" in (await short)[1]
        assert "the server is stopping" in (await endless)[1]
        await stopped
        with pytest.raises(aiohttp.ClientConnectorError):
            await served.get("/health")


async def test_a_large_answer_that_cannot_be_completed_is_cut(engine: Engine) -> None:
    """A part has been sent, and no event can follow: only the missing rest tells the client, and it does."""
    async with serving(engine, answer_bytes=1000) as served:
        with pytest.raises(aiohttp.ClientError):
            await served.ask({"fake": {"answer_bytes": 5_000_000, "close_at": 0}})
        assert await served.figure("launcher_answers_cut_total") == 1
        assert await served.figure("launcher_client_disconnects_total") == 0


async def test_an_answer_that_is_only_being_taken_is_not_asked_for_again(engine: Engine) -> None:
    """The engine has answered in full, the client takes its time, the engine is lost: nobody loses anything by it."""
    async with serving(engine, answer_bytes=1 << 27, n_running=1) as served:
        size = 40_000_000
        body = json.dumps({"fake": {"answer_bytes": size}}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        fields = f"Host: x\r\nConnection: close\r\nContent-Length: {len(body)}"
        writer.write(f"POST {CHAT} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body)
        await until(lambda: any(client.sending_s for client in served.gateway._front.clients))
        assert served.gateway.load().n_running == 0, "the engine is free for the next"
        served.gateway.detach("lost")
        data = await reader.read()
        writer.close()
        assert data.count(b"HTTP/1.1 ") == 1
        assert data.count(b"x" * size) == 1
        assert engine.seen()["n_requests"] == 1


async def test_silence_is_told_from_the_oldest_request_on(engine: Engine) -> None:
    """What a supervisor asks to notice a hang: nothing while nothing runs, and no silence from before it began."""
    async with serving(engine) as served:
        await served.ask(STREAM)
        assert served.gateway.load().silent_s is None
        served.gateway._meters.last_byte_s -= 1000.0
        asked = asyncio.create_task(served.ask({"fake": {"first_s": 0.3}}))
        await until(lambda: served.gateway.load().n_running == 1)
        silent_s = served.gateway.load().silent_s
        assert silent_s is not None
        assert 0.0 <= silent_s < 500.0
        n_before = served.gateway.load().n_received_bytes
        status, text = await asked
        assert (status, served.gateway.load().n_received_bytes - n_before) == (200, len(text))


async def test_an_engine_that_is_lost_at_once_gets_nothing(start_engine: Start) -> None:
    """Attached and detached in one moment: who had waited waits on, and is answered by the next."""
    brief, engine = start_engine(), start_engine()
    async with serving() as served:
        asked = asyncio.create_task(served.ask(STREAM))
        await until(lambda: served.gateway.load().n_waiting == 1)
        served.gateway.attach(brief.url)
        served.gateway.detach("lost at once")
        await asyncio.sleep(0.1)
        assert (served.gateway.load().n_waiting, brief.seen()["n_requests"]) == (1, 0)
        served.gateway.attach(engine.url)
        assert (await asked)[0] == 200


async def test_every_request_is_answered_while_engines_die(start_engine: Start) -> None:
    """Ten engines killed under load: each answer is whole, or an error in words; none is missing."""
    async with serving(start_engine(), n_replays=20) as served:
        asking = True
        answers: list[tuple[int, str]] = []

        async def keep_asking(body: dict[str, Any]) -> None:
            while asking:
                answers.append(await served.ask(body))

        bodies = [{"stream": n % 2 == 0, "max_tokens": 5, "fake": {"tps": 100, "first_s": 0.01}} for n in range(8)]
        crowd = [asyncio.create_task(keep_asking(body)) for body in bodies]
        engine = start_engine()
        for _ in range(10):
            served.gateway.attach(engine.url)
            await _grown(answers, len(answers) + 8)
            engine.kill()
            await _gone(engine)
            served.gateway.detach("the engine was killed by signal 9")
            engine = start_engine()
        served.gateway.attach(engine.url)
        asking = False
        await asyncio.gather(*crowd)
        for status, text in answers:
            assert status == 200
            assert "[DONE]" in text or '"usage"' in text or "killed by signal 9" in text or "before it was" in text


async def test_a_lost_replica_behind_a_proxy_is_a_lost_engine() -> None:
    """Ray Serve's proxy answers 500 in plain text for a replica that died with a request: that one is sent again.

    What the engine itself says is passed on, and without a proxy before it every 500 is.
    """
    answers = [(500, "text/plain", "Internal Server Error"), (500, "application/json", '{"error": 1}')]

    async def answer(request: web.BaseRequest) -> web.Response:
        paths.append(request.path)
        status, kind, text = answers[min(len(paths), len(answers)) - 1]
        return web.Response(status=status, content_type=kind, text=text)

    for is_behind_proxy, expected in ((True, '{"error": 1}'), (False, "Internal Server Error")):
        paths: list[str] = []
        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            async with serving() as served:
                base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/launcher-m"
                served.gateway.attach(base_url, is_behind_proxy=is_behind_proxy)
                assert await served.ask({}) == (500, expected)
            assert set(paths) == {f"/launcher-m{CHAT}"}
        finally:
            await runner.cleanup()
