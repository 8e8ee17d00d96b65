"""Asks a Ray dashboard, by HTTP.

It goes to loopback with or without a token, and to no other address without one. The token is sent to the one address that was
given: redirects are not followed. Every answer is bounded in bytes and time: when that is over the connection is shut,
whatever is waited for on it. It must not know what is in an answer.

The token is Ray's own (``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH``, else ``~/.ray/auth_token``), and so is its header
(``ray/_private/authentication/http_token_authentication.py``, 2.60.0).
"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, Final

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, MaxRetryError, NewConnectionError, TimeoutError  # noqa: A004
from urllib3.util import Timeout, Url, parse_url

from launcher.errors import ClusterAccessError, ClusterError, UsageError
from launcher.folders import home_dir
from launcher.inventory.addresses import is_loopback
from launcher.inventory.text import printable
from launcher.resources import from_home
from launcher.units import MIB, format_bytes

TOKEN_VARIABLE: Final = "RAY_AUTH_TOKEN"  # noqa: S105 - a variable's name
TOKEN_PATH_VARIABLE: Final = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - as above
DEFAULT_PORT: Final = 8265
MAX_ANSWER_BYTES: Final = 64 * MIB
"""Assumed: Ray 2.60 tells 13 KB of a node on which nothing runs (measured), more where many processes do."""
MAX_ANSWER_S: Final = 30.0
"""For one whole answer, its head included, however steadily it trickles and however it is packed."""
_CONNECT_S: Final = 5.0
_READ_S: Final = 15.0
_CHUNK_BYTES: Final = 64 * 1024
_MAX_TOKEN_BYTES: Final = 4096
_MAX_SAID: Final = 200
"""Characters of a server's own words that are shown."""

_HELP: Final = "give the address of the dashboard, such as http://127.0.0.1:8265; `ray status` on its machine tells whether Ray runs"


class Dashboard:
    """A dashboard that can be asked; ``url`` is its address without a slash at the end."""

    def __init__(self, url: str, pool: urllib3.PoolManager, token: str | None) -> None:
        """Hold where to ask, and with which token."""
        self.url = url
        self._pool = pool
        self._token = token
        self._fuse = _Fuse()
        self._asking = threading.Lock()
        host = pool.connection_from_url(url)
        host.ConnectionCls = _fused(host.ConnectionCls, self._fuse)

    @property
    def is_here(self) -> bool:
        """Whether it is reached over loopback."""
        return _is_here(parse_url(self.url))

    @property
    def is_exposed(self) -> bool:
        """Whether the token goes there unencrypted, over a network."""
        return self._token is not None and parse_url(self.url).scheme == "http" and not self.is_here

    def get(self, path: str) -> bytes:
        """Return the body of the answer to ``path``.

        Raises:
            ClusterError: nobody answers, or with anything but 200.
            ClusterAccessError: a token is wanted, or another one.
        """
        return self._ask("GET", path)

    def put(self, path: str, body: bytes) -> bytes:
        """Send JSON to ``path`` and return the body of the answer. It is sent once: whether it arrived is not known on failure.

        Raises:
            ClusterError: nobody answers, or with anything but 200.
            ClusterAccessError: a token is wanted, or another one.
        """
        return self._ask("PUT", path, body)

    def _ask(self, method: str, path: str, sent: bytes | None = None) -> bytes:
        headers = {"Accept": "application/json"}
        if sent is not None:
            headers["Content-Type"] = "application/json"
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            with self._asking, self._fuse.lit(MAX_ANSWER_S):
                answer = self._pool.request(
                    method,
                    self.url + path,
                    body=sent,
                    headers=headers,
                    preload_content=False,
                    redirect=False,
                    retries=False,
                )
                try:
                    body = self._read(answer)
                finally:
                    answer.close()
        except (HTTPError, OSError, ValueError) as error:  # what is no HTTP at all surfaces as any of the three
            self._check_time(error)
            message = f"no Ray dashboard answers at {self.url}: {_reason(error)}"
            raise ClusterError(message, help=_HELP) from error
        self._check_time()
        self._check(answer.status, body, path)
        return body

    def _check_time(self, error: Exception | None = None) -> None:
        if self._fuse.is_blown:
            message = f"{self.url} takes more than {MAX_ANSWER_S:g} s for one answer"
            raise ClusterError(message) from error

    def _read(self, answer: urllib3.BaseHTTPResponse) -> bytes:
        body = bytearray()
        while part := answer.read(_CHUNK_BYTES, decode_content=True):
            body += part
            if len(body) > MAX_ANSWER_BYTES:
                message = f"{self.url} answers with more than {format_bytes(MAX_ANSWER_BYTES)}"
                raise ClusterError(message)
        return bytes(body)

    def _check(self, status: int, body: bytes, path: str) -> None:
        if status == HTTPStatus.OK:
            return
        said = printable(body[:_MAX_SAID].decode(errors="replace").strip())
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            message = f"the Ray dashboard at {self.url} does not let us in ({status}): {said}"
            raise ClusterAccessError(
                message, help=f"`ray get-auth-token` on its machine prints the token; set {TOKEN_VARIABLE}"
            )
        message = f"{self.url} answers {path} with {status}: {said}"
        raise ClusterError(message, help=_HELP)


class _Fuse:
    """Shuts a connection when its time is over: nothing else ends a wait for a head, a chunk or a packed byte."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.is_blown = False

    def guard(self, connected: socket.socket) -> None:
        """Take over a connection, the only one; it is shut at once where the time is over already."""
        with self._lock:
            self._socket = connected
            if self.is_blown:
                self._shut()

    @contextmanager
    def lit(self, after_s: float) -> Iterator[None]:
        """Blow after so long, unless the block has ended; what a fuse before this one did is forgotten."""
        with self._lock:
            self.is_blown = False
        timer = threading.Timer(after_s, self._blow)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _blow(self) -> None:
        with self._lock:
            self.is_blown = True
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # it is closed
                self._socket.shutdown(socket.SHUT_RDWR)


def _fused(kind: Any, fuse: _Fuse) -> Any:
    """Return the same kind of connection, guarded by the fuse from when it is made."""

    class Fused(kind):  # type: ignore[misc]  # HTTP's or HTTPS's, as the address says
        def connect(self) -> None:
            super().connect()
            fuse.guard(self.sock)

    return Fused


@contextmanager
def open_dashboard(url: str) -> Iterator[Dashboard]:
    """Yield a client of the dashboard at ``url``; nothing is asked yet.

    Raises:
        UsageError: the address is malformed, or beyond this machine without a token.
        ClusterError: the file of the token cannot be read.
    """
    parsed = _parse(url)
    token = read_token()
    address = parsed.url.rstrip("/")
    if token is None and not _is_here(parsed):
        message = f"{address} is beyond this machine, and there is no token to show it"
        help_ = f"set {TOKEN_VARIABLE}; a Ray dashboard without a token lets anybody on its network run programs"
        raise UsageError(message, help=help_)
    with urllib3.PoolManager(num_pools=1, timeout=Timeout(connect=_CONNECT_S, read=_READ_S)) as pool:
        yield Dashboard(address, pool, token)


def read_token() -> str | None:
    """Return Ray's token as Ray's own programs find it, ``None`` where there is none.

    Raises:
        ClusterError: a file that was named cannot be read, or what is there is no token.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    named = os.environ.get(TOKEN_PATH_VARIABLE, "").strip()
    if not token:
        path = from_home(named) if named else home_dir() / ".ray" / "auth_token"
        try:
            with path.open("rb") as stream:
                token = stream.read(_MAX_TOKEN_BYTES).decode().strip()
        except FileNotFoundError:
            if named:
                message = f"there is no file with a token at {path}, which {TOKEN_PATH_VARIABLE} names"
                raise ClusterError(message) from None
        except (OSError, UnicodeDecodeError) as error:
            message = f"cannot read the token in {path}: {getattr(error, 'strerror', None) or 'it is no text'}"
            raise ClusterError(message) from error
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        message = f"the token of {TOKEN_VARIABLE}, or of its file, holds characters that no token has"
        raise ClusterError(message)
    return token or None


def _parse(url: str) -> Url:
    """Return the address in its parts, with Ray's scheme and port where they were left out."""
    try:
        parsed = parse_url(url if "://" in url else f"http://{url}")
    except LocationParseError:
        parsed = Url()
    fault = None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        fault = f"`{printable(url)}` is no address of a Ray dashboard"
    elif parsed.auth is not None:
        fault = "an address with a user or a password in it is not used: it would be shown"
    elif parsed.query is not None or parsed.fragment is not None:
        fault = f"`{printable(url)}` has more than an address and a path"
    if fault is not None:
        raise UsageError(fault, help=_HELP)
    port = parsed.port or (DEFAULT_PORT if parsed.scheme == "http" else None)
    return parsed._replace(port=port)


def _is_here(parsed: Url) -> bool:
    return is_loopback((parsed.host or "").strip("[]"))


def _reason(error: Exception) -> str:
    """Return the cause of a failed request in few words."""
    cause: BaseException = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    if isinstance(cause, NewConnectionError):
        return "nothing listens there, or nobody knows the name"
    if isinstance(cause, TimeoutError):
        return "it does not answer in time"
    return printable(str(cause))[:_MAX_SAID].lower() or type(cause).__name__
