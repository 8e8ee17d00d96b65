"""Speak with one client: read what it sends and write what it is to get, for a bounded time and a bounded size.

It must not know engines, nor whose turn it is.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import aiohttp
from aiohttp import hdrs, web

from launcher.gateway.events import error_body
from launcher.gateway.meters import Meters
from launcher.gateway.policy import Limits
from launcher.units import format_bytes

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_PAYLOAD_FAULTS: Final = (web.RequestPayloadError, aiohttp.http.HttpProcessingError, aiohttp.ClientPayloadError)
JSON: Final = "application/json"


class HttpError(Exception):
    """The request is answered by the gateway itself; ``last``: its connection ends with the answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after_s: int | None = None,
        last: bool = False,
        allow: tuple[str, ...] = (),
    ) -> None:
        """Hold the answer; ``allow`` are the methods that the path has, which a 405 tells."""
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after_s, self.last, self.allow = retry_after_s, last, allow

    def to_response(self) -> web.Response:
        """Return the answer, in the words of OpenAI's API."""
        body = error_body(self.message, self.code, self.status)
        response = web.Response(status=self.status, body=body, content_type=JSON)
        if self.retry_after_s is not None:
            response.headers[hdrs.RETRY_AFTER] = str(self.retry_after_s)
        if self.allow:
            response.headers[hdrs.ALLOW] = ", ".join(self.allow)
        if self.status == 401:  # noqa: PLR2004 - RFC 9110 wants a challenge with it
            response.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
        if self.last:
            response.force_close()
        return response


class Client:
    """The client's side of one request."""

    __slots__ = ("_is_last", "_loop", "began_s", "request", "sending_s")

    def __init__(self, request: web.BaseRequest, *, is_last: Callable[[], bool]) -> None:
        """Begin with the head of a request; ``is_last`` tells whether its connection ends with the answer."""
        self._loop = asyncio.get_running_loop()
        self._is_last = is_last
        self.request = request
        self.began_s = self._loop.time()
        self.sending_s: float | None = None
        """Since when the client has been taking what was written last; ``None``: it has taken everything."""

    # --- Reading ---

    async def read_body(self, limits: Limits, meters: Meters) -> bytes:
        """Return the body; it counts in ``n_bodies_bytes``, and the caller takes it out again.

        Raises:
            HttpError: it is too large, too slow, or not what HTTP wants.
        """
        request = self.request
        announced = request.content_length
        if announced is not None and announced > limits.body_bytes:
            raise _too_large(limits)
        await self._bid_continue()
        if not request.body_exists:
            return b""
        n_bytes = 0
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(limits.body_timeout_s):
                while part := await request.content.readany():
                    n_bytes += len(part)
                    meters.n_bodies_bytes += len(part)
                    parts.append(part)
                    _check_room(n_bytes, limits, meters)
        except BaseException as error:
            meters.n_bodies_bytes -= n_bytes
            raise _body_fault(error, limits) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _bid_continue(self) -> None:
        """Tell a client that waits for it to send its body."""
        expected = self.request.headers.get(hdrs.EXPECT)
        if expected is None or self.request.version < aiohttp.HttpVersion11:
            return
        if expected.lower() != "100-continue":
            raise HttpError(417, "expectation-failed", "no expectation but 100-continue is met", last=True)
        writer = self.request.writer
        await writer.write(_CONTINUE)
        writer.output_size = 0  # the answer has not begun by it

    # --- Writing ---

    async def begin(self, response: web.StreamResponse) -> None:
        """Send the head of an answer."""
        self.sending_s = self._loop.time()
        await self._prepare(response)
        self.sending_s = None

    async def write(self, response: web.StreamResponse, data: bytes) -> None:
        """Send a part of an answer's body; return once it is on its way, or soon will be."""
        self.sending_s = self._loop.time()
        await response.write(data)
        self.sending_s = None

    async def finish(self, response: web.StreamResponse) -> web.StreamResponse:
        """Send what is left of an answer, and its end."""
        self.sending_s = self._loop.time()
        await self._prepare(response)
        await response.write_eof()
        self.sending_s = None
        return response

    async def _prepare(self, response: web.StreamResponse) -> None:
        # No upgrade is made, and aiohttp's parser loses what came behind a request for one: let it be sent anew.
        if (hdrs.UPGRADE in self.request.headers or self._is_last()) and not response.prepared:
            response.force_close()
        await response.prepare(self.request)

    def cut(self) -> None:
        """End the connection at once: what was sent cannot be completed, or the client does not take it."""
        if self.request.transport is not None:
            self.request.transport.abort()


def _check_room(n_bytes: int, limits: Limits, meters: Meters) -> None:
    if n_bytes > limits.body_bytes:
        raise _too_large(limits)
    if meters.n_bodies_bytes > limits.bodies_bytes:
        message = f"the requests at hand fill {format_bytes(limits.bodies_bytes)}"
        raise HttpError(503, "bodies-full", message, retry_after_s=1, last=True)


def _too_large(limits: Limits) -> HttpError:
    return HttpError(413, "body-too-large", f"the body is larger than {format_bytes(limits.body_bytes)}", last=True)


def _body_fault(error: BaseException, limits: Limits) -> BaseException:
    if isinstance(error, TimeoutError):
        return HttpError(408, "body-timeout", f"no whole body within {limits.body_timeout_s:g} s", last=True)
    if isinstance(error, _PAYLOAD_FAULTS):
        return HttpError(400, "bad-body", "the body is not framed as HTTP wants it", last=True)
    return error
