"""Listen for clients: bounded connections, bounded heads, and the paths that the gateway answers itself.

It must not know how a request gets its answer from an engine (`exchange`).
"""

import asyncio
import contextlib
import ctypes
import logging
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.http_exceptions import LineTooLong

from launcher.gateway.client import JSON, Client, HttpError
from launcher.gateway.meters import Meters, route_of
from launcher.gateway.policy import Limits

_LINGER_S: Final = 5.0  # for the rest of a body that was refused: closed at once, the client might lose the answer
_PARTING_S: Final = 0.25  # for the request of a client that has connected, or that thinks its connection will last
_ATTACH_FILTER: Final = 26  # SO_ATTACH_FILTER of Linux, which the socket module does not name
_DROP_SYN: Final = (
    (0x30, 0, 0, 13),  # the flags of the TCP header
    (0x54, 0, 0, 0x12),  # SYN and ACK of them
    (0x15, 0, 1, 0x02),  # SYN alone
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)
"""For BPF: pass nothing of a packet that wants to begin a connection, everything of others."""
_N_SPARE: Final = 64  # connections beyond the bound that are still told so
_N_BACKLOG: Final = 256
_REFUSED_METHODS: Final = frozenset({hdrs.METH_CONNECT, hdrs.METH_TRACE})
_SERVED_METHODS: Final = (
    *(hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_POST),
    *(hdrs.METH_PUT, hdrs.METH_PATCH, hdrs.METH_DELETE, hdrs.METH_OPTIONS),
)
"""What is passed on; which of them an engine's path has, the engine says."""
_READING_METHODS: Final = (hdrs.METH_GET, hdrs.METH_HEAD)
_LOG: Final = logging.getLogger("launcher.gateway")
_LOG_HTTP: Final = logging.getLogger("launcher.gateway.http")  # what clients send that is no HTTP
_LOG_HTTP.disabled = True  # anybody can make it write; and what was asked of a model is nobody's business

Answer = Callable[[Client, str], Awaitable[web.StreamResponse]]


class _Connection(web.RequestHandler):
    """A client's connection, whose faults are answered as the rest is."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP; the connection ends with it."""
        if request.writer.output_size > 0:
            reason = "a part of the answer has been sent"
            raise ConnectionError(reason)
        if isinstance(exc, LineTooLong):
            return HttpError(431, "head-too-large", "a line of the request's head is too long", last=True).to_response()
        text = (message or "the request is not HTTP").strip().partition("\n")[0].rstrip(":.").lower()
        return HttpError(status, "bad-request", text, last=True).to_response()


class Front(web.Server):
    """The HTTP server: every request is a ``Client``, handed to ``answer`` with its path."""

    def __init__(self, answer: Answer, limits: Limits, meters: Meters) -> None:
        """Hold the bounds; nothing is listened on yet."""
        super().__init__(self._handle, handler_cancellation=True)
        self._answer = answer
        self._limits = limits
        self._meters = meters
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._n_connections = 0
        self._is_leaving = False
        self.clients: set[Client] = set()

    async def listen(self, host: str, port: int, check: Callable[[str], None]) -> int:
        """Listen, and return the port; ``check`` sees each address that is bound, before anybody is let in.

        Raises:
            OSError: the address cannot be had.
            LauncherError: as ``check`` says.
        """
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(
            self, host, port, backlog=_N_BACKLOG, reuse_address=True, start_serving=False
        )
        try:
            for listening in listener.sockets:
                check(listening.getsockname()[0])
            await listener.start_serving()
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        self._sweep()
        bound: int = listener.sockets[0].getsockname()[1]
        return bound

    @property
    def n_connections(self) -> int:
        """Connections that are open."""
        return self._n_connections

    def leave(self) -> None:
        """End each connection with its next answer: what clients would send on it later might find nobody."""
        self._is_leaving = True

    async def close(self, grace_s: float) -> None:
        """Stop listening; whoever has connected is heard for a moment, and answered for ``grace_s`` at the latest."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.leave()
        listener, self._listener = self._listener, None
        for listening in () if listener is None else listener.sockets:
            _deafen(listening)
        await self._hear_out()
        if listener is not None:
            listener.close()
        self.pre_shutdown()
        await self.shutdown(grace_s)

    async def _hear_out(self) -> None:
        """Wait for those who are in the kernel's queue, or think that their connection will last: closed, it is reset."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        least_s = begun_s + _PARTING_S / 10
        while loop.time() < least_s or (self._n_connections and loop.time() < begun_s + _PARTING_S):  # noqa: ASYNC110 - no single place knows
            await asyncio.sleep(_PARTING_S / 50)

    # --- Connections ---

    def __call__(self) -> web.RequestHandler:
        """Make the protocol of a new connection."""
        limits = self._limits
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.idle_timeout_s,
            max_line_size=limits.line_bytes,
            max_field_size=limits.line_bytes,
            max_headers=limits.n_headers,
            lingering_time=_LINGER_S,
            auto_decompress=False,
            access_log=_LOG_HTTP,
            logger=_LOG_HTTP,
        )

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection; one far beyond the bound is not even listened to."""
        super().connection_made(handler, transport)
        self._n_connections += 1
        if self._n_connections > self._limits.n_connections + _N_SPARE:
            transport.abort()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Count it out."""
        super().connection_lost(handler, exc)
        self._n_connections -= 1

    def _sweep(self) -> None:
        """Cut clients that have not taken their answer for too long; so look again and again."""
        loop = asyncio.get_running_loop()
        patience_s = self._limits.stall_timeout_s
        for client in tuple(self.clients):
            if client.sending_s is not None and loop.time() - client.sending_s > patience_s:
                self._meters.n_stalled += 1
                client.sending_s = None
                client.cut()
        self._sweeper = loop.call_later(patience_s / 4, self._sweep)

    # --- Requests ---

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        client = Client(request, is_last=lambda: self._is_leaving)
        path = request.rel_url.raw_path
        self.clients.add(client)
        status = 499  # as nginx counts it: the client left first
        try:
            response = await self._respond(client, path)
            status = response.status
        except ConnectionAbortedError:
            status = 502
            raise
        except (asyncio.CancelledError, ConnectionError):
            self._meters.n_disconnects += 1
            raise
        finally:
            self.clients.discard(client)
            self._meters.answers[route_of(path), status] += 1
            self._meters.lasted.observe(asyncio.get_running_loop().time() - client.began_s)
        return response

    async def _respond(self, client: Client, path: str) -> web.StreamResponse:
        try:
            self._check(client.request)
            return await self._answer(client, path)
        except HttpError as error:
            self._meters.refusals[error.code] += 1
            return await client.finish(error.to_response())
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, the client gets an answer, and the log the traceback
            self._meters.n_faults += 1
            _LOG.exception("a request failed by the gateway's own fault")
            if client.request.writer.output_size > 0:
                client.cut()
                raise ConnectionResetError from None
            fault = HttpError(500, "gateway-fault", "the gateway failed; its log says more", last=True)
            return await client.finish(fault.to_response())

    def _check(self, request: web.BaseRequest) -> None:
        if request.version.major != 1:  # 0.9 and 2.0 have no line to begin an answer with
            if request.transport is not None:
                request.transport.close()
            raise ConnectionResetError
        codings = [coding.strip().lower() for coding in request.headers.getall(hdrs.TRANSFER_ENCODING, ())]
        if codings and (codings != ["chunked"] or hdrs.CONTENT_LENGTH in request.headers):
            # Who stands before this may read another end of the body than the library, which takes an empty coding for none.
            raise HttpError(400, "bad-request", "the body has two lengths, or another coding than chunked", last=True)
        if self._n_connections > self._limits.n_connections:
            message = f"{self._limits.n_connections} connections are open, as many as may be"
            raise HttpError(503, "too-many-connections", message, retry_after_s=1, last=True)
        if request.method in _REFUSED_METHODS:
            raise HttpError(405, "bad-method", f"{request.method} is not served here", last=True, allow=_SERVED_METHODS)
        if not request.rel_url.raw_path.startswith("/"):  # `OPTIONS *`; behind an engine's address it would be a host
            raise HttpError(400, "bad-target", "the request's target is no path", last=True)


def _deafen(listening: socket.socket) -> None:
    """Begin no more connections, where the kernel can: who comes between the last one and the end would be reset."""
    if sys.platform != "linux":
        return
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in _DROP_SYN))
    with contextlib.suppress(OSError):
        listening.setsockopt(
            socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", len(_DROP_SYN), ctypes.addressof(filters))
        )


def check_reads(request: web.BaseRequest) -> None:
    """Refuse what is no GET or HEAD on a path that the gateway answers itself."""
    if request.method not in _READING_METHODS:
        message = f"{request.path} is only for {', '.join(_READING_METHODS)}"
        raise HttpError(405, "bad-method", message, allow=_READING_METHODS)


def reply(body: bytes, *, status: int = 200, content_type: str = JSON) -> web.Response:
    """Return a whole answer of the gateway's own."""
    kind: dict[str, Any] = {hdrs.CONTENT_TYPE: content_type}
    return web.Response(status=status, body=body, headers=kind)
