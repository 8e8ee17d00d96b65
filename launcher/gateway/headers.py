"""Choose which header fields go on to the other side.

Pure. It must not know who asks, nor what for.
"""

import re
from typing import Final

from aiohttp import hdrs
from multidict import CIMultiDict, CIMultiDictProxy

_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""RFC 9110, section 7.6.1: they speak of one connection."""
_FOR_GATEWAY: Final = _HOP_BY_HOP | {
    "accept-encoding",  # events in a compressed stream could not be told apart
    "authorization",  # the client's key is for the gateway; many clients send one of another service
    "api-key",  # Azure's name of the same
    "content-length",  # follows from the body that is sent
    "cookie",  # of other services on this host: a browser sends them to every port of it
    "expect",
    "host",
    "x-api-key",
    "x-auth-token",
    "x-goog-api-key",
}

_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""RFC 9110, section 5.5: no field has them. What reads them from an engine does not send them on."""


def request_headers(headers: CIMultiDictProxy[str], api_key: str | None) -> CIMultiDict[str]:
    """Return the fields for the engine, with its own key where it wants one."""
    kept = _without(headers, _FOR_GATEWAY)
    kept[hdrs.ACCEPT_ENCODING] = "identity"
    if api_key is not None:
        kept[hdrs.AUTHORIZATION] = f"Bearer {api_key}"
    return kept


def answer_headers(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Return the fields for the client; the length is kept, since what is passed on is not changed."""
    return _without(headers, _HOP_BY_HOP)


def answer_reason(reason: str | None) -> str | None:
    """Return the words behind the status for the client; ``None``, the usual ones, where no line can hold the engine's."""
    return None if reason is None or _CONTROL.search(reason) else reason


def _without(headers: CIMultiDictProxy[str], dropped: frozenset[str]) -> CIMultiDict[str]:
    named = headers.get(hdrs.CONNECTION)
    if named is not None:
        dropped |= {name.strip().lower() for name in named.split(",")}
    return CIMultiDict(
        (name, value) for name, value in headers.items() if name.lower() not in dropped and not _CONTROL.search(value)
    )
