"""A small real process that streams completions at any rate, and breaks in the middle when a request asks for it.

It knows nothing of the launcher: standard library only. What a request wants done wrong stands in its JSON body under
``fake``; `GET /fake` tells what the engine has seen.

A model called ``NAME@50`` streams 50 tokens a second, for clients whose other fields do not get through.

- ``first_s``, ``tps``: seconds before the first token; tokens per second, without end or as fast as can be.
- ``die_at``: kill the whole process before this token; ``close_at``: only close the connection; ``end_at``: end the
  stream in good order, without the last word; ``hang_at``: say nothing more; ``error_at``: an error event of its own;
  ``no_end``: close the connection after the last word, instead of the end.
- ``announce``: a stream's length stands in its head.
- ``half``: when breaking off, send half an event first. ``once``: misbehave only if this file is not there, and make it.
- ``status``: answer so. ``answer_bytes``: of a plain answer's text. ``crlf``: events end as uvicorn's do.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

SEEN: dict[str, Any] = {"n_requests": 0, "n_running": 0, "n_cancelled": 0, "n_connections": 0, "last": None}

_CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
EVENT = _CHUNK + b'"choices":[{"index":0,"delta":{"content":"t%d "},"finish_reason":null}]}'
LAST = _CHUNK + b'"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":%d,"total_tokens":0}}'


def chunk(data: bytes) -> bytes:
    """Frame one chunk of an answer."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def head(status: int, kind: str, *more: str) -> bytes:
    """Return the head of an answer."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", "Server: fake", "Keep-Alive: timeout=5", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def first_time(name: str) -> bool:
    """Whether the file is not there yet; it is then."""
    path = Path(name)
    if path.exists():
        return False
    path.touch()
    return True


class Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        """Wait for a request."""
        self.buffer = b""
        self.task: asyncio.Task[None] | None = None
        self.flowing = asyncio.Event()
        self.flowing.set()

    def pause_writing(self) -> None:
        """Wait for a client that does not read."""
        self.flowing.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self.flowing.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        SEEN["n_connections"] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        """End the work for a client that left, as engines do."""
        del exc
        if self.task is not None and not self.task.done():
            SEEN["n_cancelled"] += 1
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        """Begin to answer once a request is whole."""
        self.buffer += data
        top, end, rest = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        first, *lines = top.decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(fields.get("content-length", "0"))
        if len(rest) >= size:
            self.buffer = rest[size:]
            method, path, _ = first.split(" ")
            self.task = asyncio.get_running_loop().create_task(self.answer(method, path, fields, rest[:size]))

    async def answer(self, method: str, path: str, fields: dict[str, str], body: bytes) -> None:
        """Answer one request."""
        if path == "/fake":
            self.plain(200, SEEN)
            return
        SEEN["n_requests"] += 1
        SEEN["n_running"] += 1
        SEEN["last"] = {"method": method, "path": path, "headers": fields, "n_body": len(body)}
        try:
            asked = json.loads(body) if body[:1] == b"{" else {}
            wrong = asked.get("fake", {})
            if "@" in asked.get("model", ""):
                wrong = {**wrong, "tps": float(asked["model"].partition("@")[2])}
            if "once" in wrong and not first_time(wrong["once"]):
                wrong = {"tps": wrong.get("tps", 0)}
            if asked.get("stream"):
                await self.stream(asked.get("max_tokens", 8), wrong, path)
            else:
                await self.whole(asked.get("max_tokens", 8), wrong)
        finally:
            SEEN["n_running"] -= 1

    def plain(self, status: int, value: object) -> None:
        """Send a whole answer."""
        body = json.dumps(value).encode()
        self.transport.write(head(status, "application/json", f"Content-Length: {len(body)}") + body)

    async def whole(self, n: int, wrong: dict[str, Any]) -> None:
        """Answer without a stream."""
        await asyncio.sleep(wrong.get("first_s", 0))
        if "hang_at" in wrong:
            await asyncio.sleep(3600)
        usage = {"prompt_tokens": 3, "completion_tokens": n}
        text = "x" * wrong.get("answer_bytes", 1)
        value = {"choices": [{"index": 0, "text": text, "finish_reason": "stop"}], "usage": usage}
        if "die_at" in wrong or "close_at" in wrong:
            body = json.dumps(value).encode()
            part = body[: len(body) // 2]
            self.transport.write(head(200, "application/json", f"Content-Length: {len(body)}") + part)
            await asyncio.sleep(0.05)
            self.break_off(wrong)
            return
        self.plain(wrong.get("status", 200), value)

    def break_off(self, wrong: dict[str, Any]) -> None:
        """End the process, or the connection."""
        if "die_at" in wrong:
            os.kill(os.getpid(), signal.SIGKILL)
        self.transport.close()

    async def stream(self, n: int, wrong: dict[str, Any], path: str) -> None:
        """Answer with events."""
        end = b"\r\n\r\n" if wrong.get("crlf") else b"\n\n"
        if "status" in wrong:
            self.plain(wrong["status"], {"error": {"message": "no"}})
            return
        await asyncio.sleep(wrong.get("first_s", 0))
        loop = asyncio.get_running_loop()
        began_s, tps = loop.time(), wrong.get("tps", 0)
        started = False
        for idx in range(n):
            if idx in {wrong.get("die_at"), wrong.get("close_at"), wrong.get("end_at"), wrong.get("hang_at")}:
                await self.misbehave(idx, wrong, started=started)
                return
            event = EVENT % idx + end
            data = chunk(event)
            if wrong.get("announce"):
                data = event if started else head(200, "text/event-stream", f"Content-Length: {n * len(event)}") + event
            elif not started:
                data = head(200, "text/event-stream", "Transfer-Encoding: chunked") + data
            started = True
            self.transport.write(data)
            if wrong.get("error_at") == idx:
                self.transport.write(chunk(b'data: {"error":{"message":"compute error"}}' + end) + b"0\r\n\r\n")
                return
            if tps:
                await asyncio.sleep(max(0.0, began_s + (idx + 1) / tps - loop.time()))
            elif idx % 32 == 31:
                await asyncio.sleep(0)
            await self.flowing.wait()
        last = LAST % n + end
        done = b"data: [DONE]" + end if path != "/completion" else b""
        if wrong.get("no_end"):
            self.transport.write(chunk(last + done))
            self.transport.close()
            return
        self.transport.write(chunk(last + done) + b"0\r\n\r\n")

    async def misbehave(self, idx: int, wrong: dict[str, Any], *, started: bool) -> None:
        """Break off, as asked."""
        if "hang_at" in wrong:
            await asyncio.sleep(3600)
        if not started and idx == 0 and wrong.get("head"):
            self.transport.write(head(200, "text/event-stream", "Transfer-Encoding: chunked"))
        if wrong.get("half"):
            self.transport.write(chunk(b'data: {"choices":[{"ind'))
        await asyncio.sleep(0.05)  # so that what was sent arrives as data, and then the end
        if "end_at" in wrong:
            self.transport.write(b"0\r\n\r\n")
        else:
            self.break_off(wrong)


async def main() -> None:
    """Serve on the port of the first argument until killed, and say so in a line."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
