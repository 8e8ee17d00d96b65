"""Asks servers on the network, by HTTP.

Every answer is bounded in time, and in bytes unless it is streamed; redirects are followed, and the user's token
goes to the one origin that it is for, wherever a redirect leads. What ``get`` asks is asked again when a fault may have
passed. It must not know of models, nor of what is in an answer.

urllib3 does the transport: it keeps connections, verifies certificates and speaks to proxies. Its own retries and
redirects are off, since they neither count bytes nor bound a wait, and follow from https to http.
"""

import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Final, NoReturn
from urllib.parse import urljoin, urlsplit

import urllib3
from msgspec import Struct
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)
from tenacity.wait import wait_base
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InvalidHeader,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    SSLError,
    TimeoutError,  # noqa: A004  urllib3's own, not Python's
)
from urllib3.util import Timeout, make_headers, parse_url
from urllib3.util.retry import Retry

from launcher.errors import RemoteAccessError, RemoteError, RemoteMissingError, UsageError
from launcher.units import MIB, format_bytes

MAX_TOTAL_BYTES: Final = 256 * MIB
"""Of all answers to one command. Assumed: the headers of twenty quantizations, twice over."""
MAX_ATTEMPTS: Final = 4
MAX_WAIT_S: Final = 30.0
"""A server that asks for a longer wait is not waited for, where somebody waits for a plan."""
MAX_REDIRECTS: Final = 5
MAX_ANSWER_S: Final = 120.0
"""For one whole answer, however steadily it trickles."""
DEFAULT_TIMEOUT_S: Final = 10.0
"""Without a byte; huggingface_hub's own default (``HF_HUB_DOWNLOAD_TIMEOUT``)."""
N_CONNECTIONS: Final = 4

_CHUNK_BYTES: Final = 64 * 1024
_STREAM_BYTES: Final = 256 * 1024
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_RATE_LIMIT: Final = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})", re.ASCII)
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_USABLE: Final = frozenset({200, 206, 416})
_BACKOFF: Final = wait_exponential(multiplier=0.5, max=8.0) + wait_random(0.0, 0.5)


class Token(Struct, frozen=True, kw_only=True):
    """A secret, and the one origin that may see it."""

    secret: str
    origin: tuple[str, str, int]

    def __repr__(self) -> str:
        """Tell where it is for, never what it is."""
        return f"Token(origin={self.origin})"


class Answer(Struct, frozen=True, kw_only=True):
    """What a server answered: ``url`` is where the last redirect led, ``headers`` have lower-case names."""

    status: int
    url: str
    headers: Mapping[str, str]
    body: bytes


class Incoming(Struct, frozen=True, kw_only=True):
    """An answer whose body is still to come: ``chunks`` yields it as it arrives, each time at least a byte.

    ``announced_bytes`` is the length of the body where the server told it; a body that ends before it is a fault.
    """

    status: int
    url: str
    headers: Mapping[str, str]
    announced_bytes: int | None
    chunks: Iterator[bytes]


class PassingError(RemoteError):
    """A fault that may be gone the next time; the server may have said when."""

    def __init__(self, message: str, *, help: str, wait_s: float | None = None) -> None:  # noqa: A002
        """Hold the facts, and for how many seconds the server asked to be left alone."""
        super().__init__(message, help=help)
        self.wait_s = wait_s


class UnreachableError(RemoteError):
    """There is no way to the server: a wrong name, or a network that is away; who had it before may try again."""


class TooLongError(RemoteError):
    """The answer is longer than what is read of it."""


class Web:
    """A client with connections that it keeps, and a count of what was read; threads may share it."""

    def __init__(
        self,
        *,
        token: Token | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        limit_bytes: int = MAX_TOTAL_BYTES,
        max_wait_s: float = MAX_WAIT_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Ask nothing yet. ``limit_bytes`` bounds all answers of ``get`` together; ``sleep`` waits between attempts.

        A server that asks to wait longer than ``max_wait_s`` is not waited for.
        """
        self._token = token
        self._timeout = Timeout(connect=timeout_s, read=timeout_s)
        self._max_wait_s = max_wait_s
        self._limit_bytes = limit_bytes
        self._sleep = sleep
        self._lock = threading.Lock()
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._headers = {"User-Agent": f"launcher/{version('launcher')}", "Accept-Encoding": "identity"}
        self.n_bytes = 0
        self.n_requests = 0

    def get(
        self,
        url: str,
        *,
        limit_bytes: int,
        span: tuple[int, int] | None = None,
        if_range: str | None = None,
    ) -> Answer:
        """Read ``url``, or of it the bytes of ``span`` (first, last); the answer has status 200, 206 or 416.

        Whoever asks for a span must look at the status: a server may send the whole. ``if_range`` is the entity tag of
        which the span is wanted.

        Raises:
            RemoteAccessError: 401 or 403.
            RemoteMissingError: 404 or 410.
            TooLongError: the answer has more than ``limit_bytes``.
            RemoteError: no connection, or faults that did not pass.
        """
        headers: dict[str, str] = {}
        if span is not None:
            headers["Range"] = f"bytes={span[0]}-{span[1]}"
            if if_range is not None:
                headers["If-Range"] = if_range
        attempts = Retrying(
            retry=retry_if_exception_type(PassingError),
            stop=stop_after_attempt(MAX_ATTEMPTS),
            wait=partial(wait_s, backoff=_BACKOFF),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return attempts(self._follow, url, headers, limit_bytes)
        except PassingError as error:
            error.details = (*error.details, f"tried {MAX_ATTEMPTS} times")
            raise

    def _follow(self, url: str, headers: Mapping[str, str], limit_bytes: int) -> Answer:
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._ask(url, headers, limit_bytes)
            if answer.status not in _REDIRECTS:
                return answer
            url = next_url(url, answer.headers.get("location"))
        raise _too_many_redirects(url)

    @contextmanager
    def stream(self, url: str, *, first: int = 0, if_range: str | None = None) -> Iterator[Incoming]:
        """Open ``url`` to read it from the byte ``first`` on; asked once, redirects followed, the answer's bytes unbounded.

        Whoever asks for a part must look at the status: a server may send the whole (200), or have no such part (416).

        Raises:
            PassingError: what may be gone the next time; also from ``chunks``.
            UnreachableError, RemoteAccessError, RemoteMissingError, RemoteError: as for ``get``.
        """
        headers: dict[str, str] = {}
        if first > 0:
            headers["Range"] = f"bytes={first}-"
            if if_range is not None:
                headers["If-Range"] = if_range
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send(url, headers)
            try:
                found = _headers_of(response)
                if response.status not in _REDIRECTS:
                    _check_status(url, response.status, found, self._max_wait_s)
                    announced = _check_body(url, found)
                    yield Incoming(
                        status=response.status,
                        url=url,
                        headers=found,
                        announced_bytes=announced,
                        chunks=_chunks(url, response, announced),
                    )
                    return
                url = next_url(url, found.get("location"))
            finally:
                response.close()
        raise _too_many_redirects(url)

    def _ask(self, url: str, headers: Mapping[str, str], limit_bytes: int) -> Answer:
        """Send one request and read its answer."""
        response = self._send(url, headers)
        try:
            found = _headers_of(response)
            if response.status in _REDIRECTS:
                return Answer(status=response.status, url=url, headers=found, body=b"")
            _check_status(url, response.status, found, self._max_wait_s)
            body = self._read(url, response, found, limit_bytes)
            response.release_conn()
            return Answer(status=response.status, url=url, headers=found, body=body)
        except (HTTPError, OSError) as error:
            _raise_unreachable(url, error)
        finally:
            response.close()

    def _send(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """Send one request, with the token where it is for; of the answer only the head is read."""
        sent = {**self._headers, **headers}
        if self._token is not None and origin(url) == self._token.origin:
            sent["Authorization"] = f"Bearer {self._token.secret}"
        with self._lock:
            self.n_requests += 1
        try:
            return self._pool(url).urlopen(
                "GET",
                url,
                headers=sent,
                redirect=False,
                retries=False,
                timeout=self._timeout,
                preload_content=False,
                decode_content=False,
            )
        except (HTTPError, OSError, ValueError) as error:
            _raise_unreachable(url, error)

    def _read(
        self, url: str, response: urllib3.BaseHTTPResponse, headers: Mapping[str, str], limit_bytes: int
    ) -> bytes:
        """Read a body of at most ``limit_bytes``; what the server announced decides whether it is begun at all."""
        announced = _check_body(url, headers)
        if announced is not None and announced > limit_bytes:
            raise _too_long(url, announced, limit_bytes)
        give_up_at = time.monotonic() + MAX_ANSWER_S
        parts: list[bytes] = []
        n_read = 0
        while chunk := response.read1(_CHUNK_BYTES, decode_content=False):
            parts.append(chunk)
            n_read += len(chunk)
            self._count(len(chunk))
            if n_read > limit_bytes:
                raise _too_long(url, None, limit_bytes)
            if time.monotonic() > give_up_at:
                msg = f"{show_url(url)} sends too slowly: {format_bytes(n_read)} in {MAX_ANSWER_S:.0f} s"
                raise RemoteError(msg, help="try again later")
        _check_end(url, n_read, announced)
        return b"".join(parts)

    def _count(self, n_bytes: int) -> None:
        with self._lock:
            self.n_bytes += n_bytes
            if self.n_bytes > self._limit_bytes:
                msg = f"the headers take more than {format_bytes(self._limit_bytes)} to read, which is where reading stops"
                raise RemoteError(msg, help="name one file: hf:OWNER/NAME:FILE.gguf")

    def _pool(self, url: str) -> urllib3.PoolManager:
        """Return the connections of the proxy that the environment names for ``url``, or those without one."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        proxy = "" if is_loopback(host) or urllib.request.proxy_bypass(host) else _proxy_of(parts.scheme)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = _connect(proxy)
            return self._pools[proxy]


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port: who it is that is asked."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, by its name."""
    return host in {"localhost", "::1"} or (host.startswith("127.") and host.replace(".", "").isdigit())


def show_url(url: str) -> str:
    """Return an address as it may be shown: without what may sign it, and without control characters."""
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return shown if shown.isprintable() else ascii(shown)[1:-1]


def check_url(url: str, *, plain: bool = False) -> None:
    """Refuse an address that is none, that carries a secret, or, unless ``plain``, that is read in the clear over a network.

    Raises:
        UsageError: with the reason.
    """
    try:
        parts = urlsplit(url)
        scheme, host, _port = origin(url)
    except ValueError:
        msg = "the address is malformed"
        raise UsageError(msg, help="give it as https://HOST/PATH.gguf") from None
    if "@" in parts.netloc:
        msg = f"the address {show_url(url)} carries a user or a password, which other users of this machine could read"
        raise UsageError(msg, help="give an address that needs none")
    if scheme not in {"https", "http"} or not host:
        msg = f"`{show_url(url)}` is no address to read from"
        raise UsageError(msg, help="give it as https://HOST/PATH.gguf")
    if scheme == "http" and not plain and not is_loopback(host):
        msg = f"{show_url(url)} would be read unprotected: http is for this machine only"
        raise UsageError(msg, help="use https")


def next_url(url: str, location: str | None) -> str:
    """Return where an answer from ``url`` leads on.

    Raises:
        RemoteError: from a protected to an unprotected address, out of the web, or nowhere.
    """
    try:
        target = urljoin(url, location or "")
        scheme, host, _port = origin(target)
    except ValueError:
        scheme, host, target = "", "", ""
    plain_too = scheme == "http" and urlsplit(url).scheme == "http"
    if location is None or not host or not (scheme == "https" or plain_too):
        msg = f"{show_url(url)} leads to where it must not be followed: {show_url(target) if host else 'nowhere'}"
        raise RemoteError(msg, help="check the address")
    return target


def _headers_of(response: urllib3.BaseHTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _chunks(url: str, response: urllib3.BaseHTTPResponse, announced: int | None) -> Iterator[bytes]:
    """Yield a body as it arrives; a fault is named as the connection's, so that one of the caller's own is not."""
    n_read = 0
    while True:
        try:
            chunk = response.read1(_STREAM_BYTES, decode_content=False)
        except (HTTPError, OSError) as error:
            _raise_unreachable(url, error)
        if not chunk:
            break
        n_read += len(chunk)
        yield chunk
    _check_end(url, n_read, announced)


def _check_end(url: str, n_read: int, announced: int | None) -> None:
    if announced is not None and n_read != announced:
        msg = f"{show_url(url)} ended after {n_read} of {announced} bytes"
        raise PassingError(msg, help="try again")


def _too_many_redirects(url: str) -> RemoteError:
    return RemoteError(
        f"{show_url(url)} is at the end of more than {MAX_REDIRECTS} redirects", help="check the address"
    )


def _check_status(url: str, status: int, headers: Mapping[str, str], max_wait_s: float) -> None:
    if status in _USABLE:
        return
    said = f"{show_url(url)} answered {status}"
    reason = headers.get("x-error-code", "")
    if status in {401, 403}:
        raise RemoteAccessError(said, help="check that you may read it", reason=reason)
    if status in {404, 410}:
        raise RemoteMissingError(said, help="check the address", reason=reason)
    if status in _PASSING:
        wait_s = _asked_wait_s(headers)
        if wait_s is None or wait_s <= max_wait_s:
            raise PassingError(said, help="try again later", wait_s=wait_s)
        said = f"{said} and asks to wait {wait_s:.0f} s"
    raise RemoteError(said, help="try again later" if status in _PASSING else "check the address")


def _asked_wait_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to be left alone, by Retry-After, or by RateLimit as Hugging Face's hub does.

    The latter is a draft of the IETF: draft-ietf-httpapi-ratelimit-headers-09.
    """
    text = headers.get("retry-after")
    if text is None:
        reset = _RATE_LIMIT.search(headers.get("ratelimit", ""))
        return float(reset[1]) if reset else None
    try:
        return float(Retry().parse_retry_after(text))
    except (InvalidHeader, ValueError, OverflowError):
        return None


def wait_s(state: RetryCallState, backoff: wait_base) -> float:
    """Return the seconds until the next attempt: more each time, and not less than the server asked for.

    One that asks for none, or names a moment that is over by this machine's clock, would else have all attempts at once.
    """
    error = state.outcome.exception() if state.outcome is not None else None
    asked_s = error.wait_s if isinstance(error, PassingError) else None
    return max(asked_s or 0.0, backoff(state))


_MAX_DIGITS: Final = 19


def _check_body(url: str, headers: Mapping[str, str]) -> int | None:
    """Return the announced length of a body that is not compressed, ``None`` where none is announced."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        msg = f"{show_url(url)} sends a compressed answer, which was not asked for"
        raise RemoteError(msg, help="the server is broken: use another one")
    text = headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        msg = f"{show_url(url)} announces a length that is none"
        raise RemoteError(msg, help="the server is broken: use another one")
    return int(text)


def _too_long(url: str, announced: int | None, limit_bytes: int) -> TooLongError:
    n = "more" if announced is None else format_bytes(announced)
    msg = f"{show_url(url)} sends {n} where at most {format_bytes(limit_bytes)} are read"
    return TooLongError(msg, help="the server is broken: use another one")


def _raise_unreachable(url: str, error: Exception) -> NoReturn:
    """Name what kept an answer away, without the library's words: these may hold a proxy's password."""
    host = urlsplit(url).hostname
    if isinstance(error, ConnectTimeoutError | TimeoutError) and not isinstance(error, NewConnectionError):
        msg = f"{host} does not answer in time"
        raise PassingError(msg, help="check the network, or try again later") from None
    if isinstance(error, ProxyError):
        msg = f"the proxy between here and {host} cannot be used"
        raise RemoteError(msg, help="check $HTTPS_PROXY and $NO_PROXY") from None
    if isinstance(error, SSLError):
        msg = f"the connection to {host} cannot be protected: {error}"
        raise RemoteError(msg, help="check this machine's certificates, or $SSL_CERT_FILE") from None
    if isinstance(error, NameResolutionError):
        msg = f"the name {host} cannot be resolved"
        raise UnreachableError(
            msg, help="check the network and the address, or plan for a profile: launch list"
        ) from None
    if isinstance(error, NewConnectionError):
        msg = f"there is no connection to {host}"
        raise UnreachableError(
            msg, help="check the network and the address, or plan for a profile: launch list"
        ) from None
    if isinstance(error, ValueError):
        msg = f"{show_url(url)} is no address to read from"
        raise RemoteError(msg, help="check the address") from None
    msg = f"the connection to {host} broke"
    raise PassingError(msg, help="try again") from None


def _proxy_of(scheme: str) -> str:
    proxies = urllib.request.getproxies()
    return proxies.get(scheme) or proxies.get("all") or ""


def _connect(proxy: str) -> urllib3.PoolManager:
    if not proxy:
        return urllib3.PoolManager(maxsize=N_CONNECTIONS)
    try:
        parts = parse_url(proxy if "://" in proxy else f"http://{proxy}")
        headers = make_headers(proxy_basic_auth=parts.auth) if parts.auth else None
        return urllib3.ProxyManager(parts._replace(auth=None).url, proxy_headers=headers, maxsize=N_CONNECTIONS)
    except HTTPError:
        msg = "the proxy that the environment names cannot be used"
        raise RemoteError(msg, help="set $HTTPS_PROXY to http://HOST:PORT") from None
