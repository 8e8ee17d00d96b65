"""Have one request answered by an engine: wait for its turn, send it, and send it again where its engine was lost.

What is decided stands in `policy`; whose turn it is, in `line`. It must not know who attaches engines, or why.
"""

import asyncio
import contextlib
import io
from dataclasses import dataclass, field
from typing import Final

import aiohttp
from aiohttp import web
from yarl import URL

from launcher.gateway import policy
from launcher.gateway.client import Client, HttpError
from launcher.gateway.headers import request_headers
from launcher.gateway.interim import Connector, EndlessError
from launcher.gateway.line import Line, RefusedError, Ticket, Upstream
from launcher.gateway.meters import Meters
from launcher.gateway.policy import Limits, Loss, Outcome, Remedy
from launcher.gateway.relay import IO_FAULTS, Attempt, LostError, Relay
from launcher.units import MIB

_CONNECT_S: Final = 5.0  # over loopback: an engine whose backlog is full is as good as away
_IDLE_S: Final = 2.0  # engines close idle connections after 5 s: to be first avoids sending into a closed one
_NO_AUTO: Final = ("Accept", "Content-Type", "User-Agent")
_LARGE: Final = MIB  # aiohttp wants larger bodies as files, which it sends piece by piece
_UNAVAILABLE: Final = 503
_FIRST_FINAL: Final = 200  # below it no answer is one: 101 would begin another protocol, which nobody asked for


def open_session(limits: Limits) -> aiohttp.ClientSession:
    """Open what all requests to engines share: no limit but the line's, no proxy, no cookie, no end of patience."""
    return aiohttp.ClientSession(
        connector=Connector(n_interim=limits.n_interim, keepalive_timeout=_IDLE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=_NO_AUTO,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
    )


@dataclass(eq=False, slots=True, kw_only=True)
class Exchange:
    """What all requests of a gateway share."""

    line: Line
    limits: Limits
    meters: Meters
    session: aiohttp.ClientSession
    running: set[Attempt] = field(default_factory=set)
    """Requests that an engine works on, also those that take nobody's turn."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_until_idle(self, timeout_s: float) -> None:
        """Return once no engine works on anything, or the time is over."""
        self.idle.clear()
        if self.running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self.idle.wait()

    async def carry(self, client: Client, path: str) -> web.StreamResponse:
        """Have one request answered.

        Raises:
            HttpError: it is answered without an engine.
            ConnectionError: the client left.
        """
        ticket = self.line.issue(is_work=policy.is_work(client.request.method, path))
        if self.line.refuses(is_work=ticket.is_work):  # before the body, which may be large, is even asked for
            raise self._refuse(self.line.refusal())
        body = await client.read_body(self.limits, self.meters)
        try:
            while True:
                upstream = await self._take_turn(ticket)
                attempt = self._begin(ticket)
                try:
                    return await self._attempt(client, path, body, upstream, attempt, is_work=ticket.is_work)
                except LostError as lost:
                    self._judge(lost, ticket)
                finally:
                    attempt.end()
        finally:
            self.meters.n_bodies_bytes -= len(body)

    def _refuse(self, refusal: RefusedError) -> HttpError:
        after_s = policy.retry_after_s(self.line.door, self.line.expected_in_s())
        return HttpError(_UNAVAILABLE, refusal.code, refusal.message, retry_after_s=after_s)

    async def _take_turn(self, ticket: Ticket) -> Upstream:
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        try:
            upstream = await self.line.enter(ticket)
            while not self.line.reaches(upstream):  # lost again in the moment between
                self.line.leave(ticket)
                upstream = await self.line.enter(ticket)
        except RefusedError as refusal:
            raise self._refuse(refusal) from None
        self.meters.waited.observe(loop.time() - asked_s)
        return upstream

    def _judge(self, lost: LostError, ticket: Ticket) -> None:
        """Note a loss before the answer began; raise where the request is not sent again."""
        now_s = asyncio.get_running_loop().time()
        verdict = policy.remedy(lost.loss, begun=False, is_events=False, n_replays=ticket.n_replays, limits=self.limits)
        if verdict is Remedy.REFUSE:
            message = f"no engine answered this request in {ticket.n_replays + 1} attempts: {lost.why}"
            if lost.loss is Loss.REJECTED:
                raise self._refuse(RefusedError("not-ready", message))
            raise HttpError(502, "engine-lost", message)
        if ticket.first_loss_s is None:
            ticket.first_loss_s = now_s
        elif now_s - ticket.first_loss_s > self.limits.max_wait_s:
            message = f"no engine answered within {self.limits.max_wait_s:g} s: {lost.why}"
            raise self._refuse(RefusedError("not-ready", message))
        ticket.n_losses += 1
        if policy.counts_as_replay(lost.loss):
            ticket.n_replays += 1
            self.meters.n_replays += 1

    def _begin(self, ticket: Ticket) -> Attempt:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one

        def end(attempt: Attempt) -> None:
            self.running.discard(attempt)
            if ticket.is_work and attempt.outcome is not None:
                self.meters.outcomes[attempt.outcome] += 1
            self.line.leave(ticket)
            if not self.running:
                self.idle.set()

        attempt = Attempt(task, asyncio.get_running_loop().time(), end)
        for other in self.running:
            attempt.was_alone = other.was_alone = False
        self.running.add(attempt)
        return attempt

    async def _attempt(
        self, client: Client, path: str, body: bytes, upstream: Upstream, attempt: Attempt, *, is_work: bool
    ) -> web.StreamResponse:
        try:
            async with await self._send(client.request, body, upstream) as answer:
                if answer.status < _FIRST_FINAL:
                    raise LostError(Loss.BROKEN, f"the engine answered with status {answer.status}")
                if answer.status == _UNAVAILABLE and is_work:  # a lookup may well be answered so
                    attempt.outcome = Outcome.FAILURE
                    raise LostError(Loss.REJECTED, "the engine says that it is not available")
                if upstream.is_behind_proxy and policy.is_of_proxy(answer.status, answer.content_type):
                    raise LostError(Loss.BROKEN, "the engine was lost, says the proxy before it")
                return await Relay(client, answer, attempt, self.limits, self.meters).run(path)
        except asyncio.CancelledError:
            lost = attempt.absorb()
            if lost is None:
                raise
            raise lost from None

    async def _send(self, request: web.BaseRequest, body: bytes, upstream: Upstream) -> aiohttp.ClientResponse:
        try:
            return await self.session.request(
                request.method,
                URL(f"{upstream.base_url}{request.rel_url.raw_path_qs}", encoded=True),
                data=(io.BytesIO(body) if len(body) > _LARGE else body) or None,
                headers=request_headers(request.headers, upstream.api_key),
                allow_redirects=False,
            )
        except aiohttp.ClientConnectorError as error:
            raise LostError(Loss.UNREACHED, "the engine cannot be reached") from error
        except EndlessError as error:
            raise LostError(Loss.BROKEN, str(error)) from error
        except IO_FAULTS as error:
            raise LostError(Loss.BROKEN, "the engine ended without an answer") from error
