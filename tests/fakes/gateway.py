"""Engines that can be killed, a gateway before them, and clients that speak raw bytes."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from launcher.domain import Address
from launcher.gateway.gateway import Gateway
from launcher.gateway.keys import Keys
from launcher.gateway.policy import Limits

ENGINE = Path(__file__).with_name("streaming_engine.py")
DEADLINE_S = 20.0
CHAT = "/v1/chat/completions"


class Engine:
    """A streaming engine's process."""

    def __init__(self, port: int = 0) -> None:
        """Start it, and wait until it listens."""
        self.process = subprocess.Popen(
            [sys.executable, "-S", str(ENGINE), str(port)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def seen(self) -> dict[str, Any]:
        """Ask what it has seen."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request("GET", "/fake")
            value: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return value

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)

    def end(self) -> None:
        """End it and forget it."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Served:
    """A gateway that listens, and a client's session to it."""

    def __init__(self, gateway: Gateway, port: int, session: aiohttp.ClientSession) -> None:
        """Hold them."""
        self.gateway, self.port, self.session = gateway, port, session

    async def ask(self, body: dict[str, Any], path: str = CHAT, **more: Any) -> tuple[int, str]:
        """Send one request; return the status and the whole answer."""
        async with self.session.post(path, json=body, **more) as response:
            return response.status, await response.text()

    async def get(self, path: str, **more: Any) -> tuple[int, str]:
        """The same for a GET."""
        async with self.session.get(path, **more) as response:
            return response.status, await response.text()

    async def raw(self, *parts: bytes, pause_s: float = 0.0) -> bytes:
        """Send bytes on a connection of their own; return all that comes until it is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)
            return await asyncio.wait_for(reader.read(), DEADLINE_S)
        finally:
            writer.close()

    async def figure(self, name: str) -> float:
        """Return one figure of ``/metrics``, labels and all in its name."""
        _, text = await self.get("/metrics")
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return float(lines[name])


@asynccontextmanager
async def serving(engine: Engine | None = None, *, keys: Keys | None = None, **limits: Any) -> AsyncIterator[Served]:
    """Run a gateway, with an engine attached where one is given; leave nothing of it."""
    gateway = Gateway("tiny", limits=Limits(**limits), keys=keys or Keys())
    address = await gateway.start(Address(host="127.0.0.1", port=0))
    if engine is not None:
        gateway.attach(engine.url)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{address.port}") as session:
            yield Served(gateway, address.port or 0, session)
    finally:
        await gateway.stop(0.0)


async def until(look: Callable[[], Any]) -> Any:
    """Return the first true value of ``look``."""
    end_s = time.monotonic() + DEADLINE_S
    while not (seen := look()):
        assert time.monotonic() < end_s, "it never came true"
        await asyncio.sleep(0.005)
    return seen


def events_of(text: str) -> list[Any]:
    """Return the data of a stream's events, decoded where it is JSON."""
    data = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(each) if each[:1] == "{" else each for each in data]
