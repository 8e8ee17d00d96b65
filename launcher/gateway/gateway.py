"""The gateway as its supervisor sees it: start, attach, detach, drain, publish, stop.

It must not know how an engine is started, probed or judged: it is told.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from aiohttp import hdrs, web
from msgspec.structs import replace

from launcher.domain import Address, Noun
from launcher.errors import PortInUseError, UsageError
from launcher.gateway.client import Client, HttpError
from launcher.gateway.exchange import Exchange, open_session
from launcher.gateway.front import Front, check_reads, reply
from launcher.gateway.health import Observed, Status, describe_health, describe_model, describe_models, health_of
from launcher.gateway.keys import Keys, check_exposure
from launcher.gateway.line import Line, RefusedError
from launcher.gateway.meters import Meters, Pace
from launcher.gateway.policy import Limits, Loss, Outcome

_LAST_WORDS_S: Final = 2.0  # for streams to be ended in words, and for these to be taken
_MODELS: Final = ("/v1/models", "/models")
Answer = TypeVar("Answer")


class Load(Noun, frozen=True):
    """How busy it is. ``silent_s``: for how long the engine has sent nothing, although it has requests; else ``None``.

    ``n_events`` counts the events passed on since the start, about one per generated token of a stream;
    ``n_received_bytes`` what engines have sent, be it streams or not.
    """

    n_running: int
    n_waiting: int
    n_events: int
    n_received_bytes: int
    n_generated_tokens: int
    n_succeeded: int
    """Whole answers of engines to requests that made them compute."""
    n_failed: int
    """The same, of those that were a failure: 5xx, or a stream that ended in an error event."""
    paces: tuple[Pace, ...]
    """Of the last streams that ran alone."""
    silent_s: float | None


class Gateway:
    """The one stable endpoint of an instance; lives in one event loop."""

    def __init__(self, name: str, *, limits: Limits = Limits(), keys: Keys = Keys()) -> None:  # noqa: B008 - immutable
        """Hold the profile's name, the bounds, and the keys of which clients must send one, if there are any."""
        self._name = name
        self._limits = limits
        self._keys = keys
        self._meters = Meters()
        self._status = Status()
        self._observed = Observed()
        self._created_at = int(time.time())
        self._front = Front(self._answer, limits, self._meters)
        self._line = Line(limits)
        self._exchange: Exchange | None = None

    # --- What a supervisor calls ---

    async def start(self, address: Address) -> Address:
        """Listen, and answer from now on; requests wait until an engine is attached. Return the address with its port.

        Raises:
            UsageError: the address is not of the loopback interface, and no key is required.
            PortInUseError: it cannot be listened on.
        """
        check_exposure(address, self._keys)
        session = open_session(self._limits)
        self._exchange = Exchange(line=self._line, limits=self._limits, meters=self._meters, session=session)
        try:
            # A name may mean anything: what counts is what it turned out to be.
            port = await self._front.listen(
                address.host, address.port or 0, lambda host: check_exposure(Address(host=host), self._keys)
            )
        except UsageError:
            await self._exchange.session.close()
            raise
        except OSError as error:
            await self._exchange.session.close()
            # asyncio's own words repeat the address; a name that nobody knows has a number of its own, below 0
            number = error.errno or 0
            why = (os.strerror(number) if number > 0 else str(error.strerror or error)).lower()
            message = f"{address.host}:{address.port} cannot be listened on: {why}"
            raise PortInUseError(message, help="choose another with `--port`, or end what listens there") from error
        return replace(address, port=port)

    def attach(self, base_url: str, *, api_key: str | None = None, is_behind_proxy: bool = False) -> None:
        """Let requests through to an engine that has proved itself; ``base_url`` is like ``http://127.0.0.1:40123``.

        Requests that still run on another engine end there. ``api_key`` is sent to the engine, never shown. An engine
        that ``is_behind_proxy`` is one of Ray Serve's: ``base_url`` then has a path, and a lost engine a status.
        """
        self._line.open(base_url.rstrip("/"), api_key, is_behind_proxy=is_behind_proxy)

    def detach(self, reason: str) -> None:
        """The engine is lost: take everything back from it, at once. Calling it again changes only the reason."""
        self._line.shut(reason)
        self._interrupt(Loss.BROKEN, reason)

    async def drain(self, timeout_s: float, reason: str) -> int:
        """Send nothing more to the engine, wait until it has ended what it runs, and take back what is left then.

        Return how many requests were taken back: those without an answer wait for the next engine, streams are ended.
        """
        self._line.shut(reason)
        return await self._run_dry(timeout_s, reason)

    def publish(self, status: Status) -> None:
        """Take what ``/health``, ``/metrics`` and refusals tell of the instance."""
        self._status = status
        self._line.expect(status.expected_ready_s)

    def observe(self, observed: Observed) -> None:
        """Take what ``/metrics`` tells of memories and devices."""
        self._observed = observed

    def load(self) -> Load:
        """Return how busy it is now."""
        meters = self._meters
        running = () if self._exchange is None else self._exchange.running
        now_s = asyncio.get_running_loop().time()
        since_s = min((attempt.began_s for attempt in running), default=now_s)
        return Load(
            n_running=len(running),
            n_waiting=self._line.n_waiting,
            n_events=meters.n_events,
            n_received_bytes=meters.n_received_bytes,
            n_generated_tokens=meters.n_generated_tokens,
            n_succeeded=meters.outcomes[Outcome.SUCCESS],
            n_failed=meters.outcomes[Outcome.FAILURE],
            paces=tuple(meters.paces),
            silent_s=now_s - max(since_s, meters.last_byte_s) if running else None,
        )

    async def in_turn(self, ask: Callable[[], Awaitable[Answer]]) -> Answer | None:
        """Ask the engine past the gateway, but in a turn as requests have it; ``None`` where there is none to be had.

        An engine that serves one request at a time would break it off for one that comes out of turn.
        """
        ticket = self._line.issue(is_work=True)
        try:
            await self._line.enter(ticket)
        except RefusedError:
            return None
        try:
            return await ask()
        finally:
            self._line.leave(ticket)

    async def stop(self, timeout_s: float, reason: str = "the server is stopping") -> None:
        """Refuse what waits and what comes, let run what runs for ``timeout_s``, then end it and stop listening."""
        self._line.close(reason)
        self._front.leave()
        await self._run_dry(timeout_s, reason)
        await self._front.close(_LAST_WORDS_S)
        if self._exchange is not None:
            await self._exchange.session.close()

    # --- Running requests ---

    def _interrupt(self, loss: Loss, why: str) -> None:
        if self._exchange is not None:
            for attempt in tuple(self._exchange.running):
                attempt.interrupt(loss, why)

    async def _run_dry(self, timeout_s: float, reason: str) -> int:
        if self._exchange is None:
            return 0
        await self._exchange.wait_until_idle(timeout_s)
        n_left = len(self._exchange.running)
        self._interrupt(Loss.WITHDRAWN, reason)
        await self._exchange.wait_until_idle(_LAST_WORDS_S)
        return n_left

    # --- Requests ---

    async def _answer(self, client: Client, path: str) -> web.StreamResponse:
        request = client.request
        sent = request.headers.get(hdrs.AUTHORIZATION) or request.headers.get("X-Api-Key")
        may_pass = self._keys.admit(sent)
        if path in {"/health", "/v1/health"}:
            check_reads(request)
            return await client.finish(self._tell_health(in_full=may_pass))
        if not may_pass:
            raise HttpError(401, "invalid-api-key", "this endpoint wants an API key" if not sent else "wrong API key")
        own = self._own_answer(request, path)
        if own is not None:
            return await client.finish(own)
        assert self._exchange is not None  # noqa: S101 - it listens
        return await self._exchange.carry(client, path)

    def _own_answer(self, request: web.BaseRequest, path: str) -> web.Response | None:
        if path == "/metrics":
            check_reads(request)
            return self._tell_metrics()
        if path in _MODELS:
            check_reads(request)
            return reply(describe_models(self._name, self._status.plan, self._created_at))
        if path == f"/v1/models/{self._name}":
            check_reads(request)
            return reply(describe_model(self._name, self._status.plan, self._created_at))
        return None

    def _tell_health(self, *, in_full: bool) -> web.Response:
        status, body = describe_health(
            self._line.door,
            self._line.reason,
            self._status,
            n_running=self._line.n_running,
            n_waiting=self._line.n_waiting,
            in_full=in_full,
        )
        return reply(body, status=status)

    def _tell_metrics(self) -> web.Response:
        # Imported when first asked: some MiB that an instance without a scraper does not hold.
        from launcher.gateway.metrics import CONTENT_TYPE, render_metrics  # noqa: PLC0415

        load = self.load()
        gauges = {
            "requests_running": load.n_running,
            "requests_waiting": load.n_waiting,
            "requests_held_bytes": self._meters.n_bodies_bytes,
            "connections": self._front.n_connections,
        }
        health = health_of(self._line.door, self._status)
        body = render_metrics(self._meters, self._status, health, self._observed, gauges)
        return reply(body, content_type=CONTENT_TYPE)
