"""Send one request to an endpoint of this machine, and hand out the answer as it comes.

It must not know what is asked for, nor how the endpoint was found. No proxy is used and no redirect followed: the key
goes to the one address that was given.
"""

import http.client
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Final

from launcher.errors import EndpointError

_CONNECT_S: Final = 5.0
_TICK_S: Final = 1.0
FAULTS: Final = (http.client.HTTPException, OSError)
"""What reading an answer may raise: the connection ended early, or what came is no HTTP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where an instance answers, under which name it serves its model, and the key that opens it."""

    name: str
    host: str
    port: int
    model: str
    api_key: str | None = field(default=None, repr=False)


class UnreachedError(Exception):
    """Nobody listens there."""


@contextmanager
def call(
    endpoint: Endpoint,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    silence_s: float | None = None,
    on_wait: Callable[[], None] = lambda: None,
) -> Iterator[http.client.HTTPResponse]:
    """Send a request and yield its answer, whose body is read as it comes; the connection ends with the block.

    ``silence_s`` bounds each wait for something to come; without it there is no bound, for an engine may take minutes to
    read a prompt. ``on_wait`` is called once a second until the answer begins.

    Raises:
        UnreachedError: nobody listens there.
        EndpointError: the connection ended before an answer began.
    """
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=_CONNECT_S)
    with closing(connection):
        try:
            connection.connect()
        except (ConnectionRefusedError, TimeoutError) as error:
            raise UnreachedError from error
        except OSError as error:
            raise _broken(endpoint, error) from error
        assert isinstance(connection.sock, socket.socket)  # noqa: S101 - it is connected
        connection.sock.settimeout(silence_s)
        try:
            connection.request(method, path, body, _headers(endpoint, body))
            _await_head(connection.sock, silence_s, on_wait)
            response = connection.getresponse()
        except FAULTS as error:
            raise _broken(endpoint, error) from error
        with closing(response):
            yield response


def _await_head(sock: socket.socket, silence_s: float | None, on_wait: Callable[[], None]) -> None:
    """Return once something came.

    Raises:
        TimeoutError: nothing did for ``silence_s``.
    """
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    waited_s = 0.0
    while not poller.poll(_TICK_S * 1000):
        waited_s += _TICK_S
        if silence_s is not None and waited_s >= silence_s:
            raise TimeoutError
        on_wait()


def _headers(endpoint: Endpoint, body: bytes | None) -> dict[str, str]:
    headers = {"Connection": "close"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if endpoint.api_key is not None:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    return headers


def _broken(endpoint: Endpoint, error: Exception) -> EndpointError:
    message = f"the endpoint of `{endpoint.name}` broke off before it answered: {str(error) or type(error).__name__}"
    return EndpointError(message, help=f"look at it with `launch status {endpoint.name}`")
