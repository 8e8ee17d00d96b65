"""A question and what becomes of it, whatever the endpoint does."""

import asyncio
import json
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from launcher.client.chat import Asking, have_answered
from launcher.client.chat_events import ChatStream, Piece
from launcher.client.endpoint import Endpoint
from launcher.errors import (
    AnswerIncompleteError,
    ContextExceededError,
    EndpointAccessError,
    EndpointError,
    NotServedError,
)
from tests.fakes.gateway import Engine, serving
from tests.fakes.scripted import DONE, EVENTS, HANG, event, fault, scripted, whole

_KEY = "k" * 24


class Listener:
    """One question, and all that was said of it."""

    def __init__(self, port: int | None, *, key: str | None = None, asked: dict[str, Any] | None = None) -> None:
        """Ask at a port of loopback; time does not pass but by waiting."""
        self.text = ""
        self.told: list[str] = []
        self.slept: list[float] = []
        self.endpoint = (
            None if port is None else Endpoint(name="x", host="127.0.0.1", port=port, model="m", api_key=key)
        )
        self.asking = Asking(
            locate=lambda: self.endpoint,
            body=lambda endpoint: json.dumps({"model": endpoint.model, "stream": True, **(asked or {})}).encode(),
            on_piece=self.take,
            tell=self.told.append,
            patience_s=60.0,
            sleep=self.slept.append,
            now=lambda: sum(self.slept),
        )

    def take(self, piece: Piece) -> None:
        """Take a piece."""
        self.text += piece.text

    def ask(self) -> ChatStream:
        """Have it answered."""
        return have_answered(self.asking)


def test_a_whole_answer() -> None:
    """Its pieces come in order; the model's name and the key are sent, and no more is asked of the connection."""
    with scripted(whole("one ", "two")) as server:
        listener = Listener(server.port, key=_KEY)
        assert listener.ask().is_whole
    assert (listener.text, listener.told) == ("one two", [])
    head, body = server.requests[0]
    assert head.startswith("POST /v1/chat/completions HTTP/1.1\r\n")
    assert f"Authorization: Bearer {_KEY}" in head
    assert body["model"] == "m"
    assert _KEY not in repr(listener.endpoint)


def test_an_answer_at_its_limit_is_handed_out_as_it_is() -> None:
    """It is no fault of the endpoint: who asked says what it means."""
    with scripted(EVENTS + event("a") + event(finish="length") + DONE) as server:
        stream = Listener(server.port).ask()
    assert not stream.is_whole
    assert stream.finish_reason == "length"


def test_an_engine_that_is_away_is_asked_again() -> None:
    """503 with `Retry-After`: so long is waited, within bounds, and it is said why; nothing came before, nothing twice."""
    away = {"message": "the engine is starting again", "code": "not-ready"}
    answers = [fault(503, away, f"Retry-After: {text}") for text in ("3", "0", "Sun, 06 Nov 1994 08:49:37 GMT")]
    with scripted(*answers, whole("here")) as server:
        listener = Listener(server.port)
        assert listener.ask().is_whole
    assert listener.slept == [3.0, 1.0, 1.0]
    assert listener.told == ["the engine is starting again"] * 3
    assert listener.text == "here"


def test_patience_ends() -> None:
    """An engine that stays away is a fault in the end, with the server's last words."""
    with scripted(fault(503, {"message": "128 requests are already waiting"}, "Retry-After: 59")) as server:
        listener = Listener(server.port)
        with pytest.raises(EndpointError, match="no answer within 60 s: 128 requests are already waiting") as caught:
            listener.ask()
    assert caught.value.help
    assert sum(listener.slept) == pytest.approx(60.0)


def test_a_server_that_stops_is_not_waited_for() -> None:
    """The gateway's word for it, and a 503 that says nothing of coming back."""
    for answer in (fault(503, {"message": "stopping", "code": "stopping"}, "Retry-After: 5"), fault(503, {})):
        with scripted(answer) as server:
            listener = Listener(server.port)
            with pytest.raises(EndpointError, match="refused with status 503"):
                listener.ask()
        assert listener.slept == []


def test_an_endpoint_that_is_not_there_yet_is_waited_for() -> None:
    """No port yet, then nobody at the port, then somebody: the answer comes."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        free = unused.getsockname()[1]
    with scripted(whole("here")) as server:
        listener = Listener(None)
        ports = [None, free, free, server.port]

        def locate() -> Endpoint | None:
            port = ports.pop(0)
            return None if port is None else Endpoint(name="x", host="127.0.0.1", port=port, model="m")

        have_answered(replace(listener.asking, locate=locate))
    assert listener.text == "here"
    assert listener.told == ["it does not listen yet", "nothing listens at its address"]


def test_an_instance_that_has_ended_is_not_waited_for() -> None:
    """Nobody listens, and a look at the record says why."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        free = unused.getsockname()[1]
    looks = iter([Endpoint(name="x", host="127.0.0.1", port=free, model="m")])

    def locate() -> Endpoint:
        for endpoint in looks:
            return endpoint
        message = "it has ended"
        raise NotServedError(message)

    with pytest.raises(NotServedError, match="it has ended"):
        have_answered(replace(Listener(None).asking, locate=locate))


@pytest.mark.parametrize(("key", "said"), [(None, "wants an API key"), (_KEY, "does not take this API key")])
def test_a_key_that_is_missing_or_wrong(key: str | None, said: str) -> None:
    """A fault that names how to give one, and not the key."""
    answer = fault(401, {"message": "wrong API key"})
    with scripted(answer) as server, pytest.raises(EndpointAccessError, match=said) as caught:
        Listener(server.port, key=key).ask()
    assert "--api-key-file" in str(caught.value.help)
    assert _KEY not in str(caught.value)


def test_what_is_longer_than_the_context() -> None:
    """Before the answer or as its first event: with the figures where the engine tells them."""
    error = {"message": "too long", "type": "exceed_context_size_error", "n_prompt_tokens": 700, "n_ctx": 512}
    for answer in (fault(400, error), EVENTS + b"data: " + json.dumps({"error": error}).encode() + b"\n\n"):
        with (
            scripted(answer) as server,
            pytest.raises(ContextExceededError, match="700 tokens, where 512") as caught,
        ):
            Listener(server.port).ask()
        assert caught.value.details == ("too long",)
        assert "--context" in str(caught.value.help)


_HALF = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_CHUNK = event("half ")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (EVENTS + event("half ") + b'data: {"error":{"message":"the answer is not complete: killed"}}\n\n', "killed"),
        (EVENTS + event("half "), "the connection ended"),
        (_HALF + b"%x\r\n%b\r\n" % (len(_CHUNK), _CHUNK), "the connection"),
        (_HALF + b"%x\r\n%b\r\nzz\r\n" % (len(_CHUNK), _CHUNK), "the connection"),
        (EVENTS + event("half ") + b"data: {]\n\n", "an event came that is none"),
        (EVENTS + event("half ") + b"data: [1]\n\n", "an event came that is none"),
        (EVENTS + event("half ") + b"data: " + b"x" * (5 << 20), "an event came that is none"),
    ],
)
def test_an_answer_that_breaks_off(answer: bytes, why: str) -> None:
    """Told or not, in the middle of a chunk or in no HTTP at all: what came was passed on, and a fault says that it is not whole."""
    with scripted(answer) as server:
        listener = Listener(server.port)
        with pytest.raises(AnswerIncompleteError, match=rf"is not whole: {why}") as caught:
            listener.ask()
    assert listener.text == "half "
    assert caught.value.help
    assert listener.slept == []


def test_a_connection_that_breaks_behind_the_last_word_takes_nothing_back() -> None:
    """The answer said that it has ended: what should come behind it is of no use to anybody."""
    last = event("all of it") + event(finish="stop")
    with scripted(_HALF + b"%x\r\n%b\r\n" % (len(last), last)) as server:
        listener = Listener(server.port)
        assert listener.ask().is_whole
    assert listener.text == "all of it"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>",
        fault(500, {"message": "compute error"}),
        b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n",
        fault(502, "Bad Gateway"),
    ],
)
def test_what_is_no_answer_is_a_fault_with_help(answer: bytes) -> None:
    """Nothing, no HTTP, a page, another place to look at: none of it is followed or waited for."""
    with scripted(answer) as server:
        listener = Listener(server.port)
        with pytest.raises(EndpointError) as caught:
            listener.ask()
    assert type(caught.value) is EndpointError
    assert caught.value.help
    assert (listener.text, listener.slept) == ("", [])


def test_waiting_for_the_first_word_can_be_told() -> None:
    """Once a second somebody may look why it takes long; leaving ends it, and the server sees that."""
    with scripted(HANG) as server:
        listener = Listener(server.port)

        def leave() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            have_answered(replace(listener.asking, on_wait=leave))
        assert server.left.wait(20)


async def _ask(port: int, **asked: Any) -> tuple[Listener, BaseException | None]:
    listener = Listener(port, asked=asked)
    outcome = await asyncio.gather(asyncio.to_thread(listener.ask), return_exceptions=True)
    return listener, outcome[0] if isinstance(outcome[0], BaseException) else None


async def test_the_gateways_own_words_are_understood(start_engine: Callable[[], Engine]) -> None:
    """Through the real one: a whole answer, an engine killed in the middle, and a server that stops for good."""
    async with serving(start_engine()) as served:
        listener, error = await _ask(served.port, max_tokens=3)
        assert (listener.text, error) == ("t0 t1 t2 ", None)
        listener, error = await _ask(served.port, max_tokens=9, fake={"die_at": 4})
        assert listener.text == "t0 t1 t2 t3 "
        assert isinstance(error, AnswerIncompleteError)
        assert "engine-lost" not in error.message
        assert "is not whole: the answer is not complete" not in error.message


async def test_a_lost_engine_is_waited_for_at_the_gateway(start_engine: Callable[[], Engine]) -> None:
    """A question that comes while no engine is there is answered by the next one."""
    async with serving() as served:
        began_s = time.monotonic()
        waiting = asyncio.create_task(_ask(served.port, max_tokens=2))
        while not served.gateway.load().n_waiting:
            await asyncio.sleep(0.01)
            assert time.monotonic() - began_s < 20
        engine = start_engine()
        served.gateway.attach(engine.url)
        listener, error = await waiting
        assert (listener.text, error) == ("t0 t1 ", None)
        engine.kill(signal.SIGKILL)
