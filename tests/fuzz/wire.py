"""Judge raw bytes of HTTP/1.1 strictly: the requests in them that nobody could read otherwise, and the answers.

A reference beside the library that the gateway reads with: what of a stream two readers could take for different requests
must not reach an engine. It must not know the gateway. RFC 9112.
"""

import re
from typing import Final, NamedTuple

_LINE: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) +([\x21-\x7e\x80-\xff]+) +HTTP/1\.([01])")
"""RFC 9112, section 3: several spaces may be read as one, for no part of the line has any."""
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3}) ?([\t\x20-\x7e\x80-\xff]*)")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_DIGITS: Final = re.compile(rb"[0-9]{1,19}")


class WireError(ValueError):
    """The bytes are not what HTTP wants, or can be read in more than one way."""


class IncompleteError(WireError):
    """More would have to come."""


class Request(NamedTuple):
    """One request as it was sent."""

    method: bytes
    target: bytes
    body: bytes
    fields: tuple[tuple[bytes, bytes], ...]


class Response(NamedTuple):
    """One answer as it came; ``whole`` is false where it ended before it was complete."""

    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes
    whole: bool = True

    def field(self, name: bytes) -> bytes | None:
        """Return the first field of a name."""
        return next((value for key, value in self.fields if key == name), None)


def read_request(data: bytes) -> tuple[Request, bytes]:
    """Return the first request of a stream, and the bytes behind it.

    Raises:
        IncompleteError: it has not come as a whole.
        WireError: it is none, or two readers could disagree on where it ends.
    """
    data = data.lstrip(b"\r\n")  # empty lines before a request are passed over by all
    head, rest = _cut_head(data)
    line, *lines = head.split(b"\r\n")
    match = _LINE.fullmatch(line)
    if match is None:
        raise WireError(line[:80])
    fields = _read_fields(lines)
    body, rest = _read_body(fields, rest, until_end=False)
    return Request(match[1], match[2], body, fields), rest


def read_responses(data: bytes, *, methods: tuple[bytes, ...] = (), closed: bool) -> list[Response]:
    """Return the answers on a connection; ``methods`` are of the requests, in order; ``closed``: the connection has ended.

    Raises:
        WireError: they are none.
    """
    found: list[Response] = []
    n_final = 0
    while data:
        head, rest = _cut_head(data)
        line, *lines = head.split(b"\r\n")
        match = _STATUS.fullmatch(line)
        if match is None:
            raise WireError(line[:80])
        fields, status = _read_fields(lines), int(match[1])
        method = methods[n_final] if n_final < len(methods) else b""
        if status < 200 or status in {204, 304} or method == b"HEAD":
            # what is no request is refused with a body, whatever its method would have been, and the connection ends
            of_none = status >= 400 and closed and bool(rest) and not rest.startswith(b"HTTP/")
            found.append(Response(status, fields, rest if of_none else b""))
            n_final += status >= 200
            data = b"" if of_none else rest
            continue
        try:
            body, data = _read_body(fields, rest, until_end=True)
            found.append(Response(status, fields, body))
        except IncompleteError:
            if not closed:
                raise
            found.append(Response(status, fields, rest, whole=False))
            data = b""
        n_final += 1
    return found


def _cut_head(data: bytes) -> tuple[bytes, bytes]:
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        raise IncompleteError(data[:80])
    return head, rest


def _read_fields(lines: list[bytes]) -> tuple[tuple[bytes, bytes], ...]:
    fields = []
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise WireError(line[:80])
        fields.append((match[1].lower(), match[2].strip(b" \t")))
    return tuple(fields)


def _read_body(fields: tuple[tuple[bytes, bytes], ...], rest: bytes, *, until_end: bool) -> tuple[bytes, bytes]:
    lengths = {value for name, value in fields if name == b"content-length"}
    codings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
    if codings:
        if lengths or codings != [b"chunked"]:
            raise WireError(codings)
        return _read_chunks(rest)
    if not lengths:
        return (rest, b"") if until_end else (b"", rest)
    value = min(lengths)
    if len(lengths) > 1 or not _DIGITS.fullmatch(value):
        raise WireError(lengths)
    size = int(value)
    if len(rest) < size:
        raise IncompleteError(rest[:80])
    return rest[:size], rest[size:]


def _read_chunks(rest: bytes) -> tuple[bytes, bytes]:
    parts = []
    while True:
        line, end, rest = rest.partition(b"\r\n")
        if not end:
            raise IncompleteError(line[:80])
        match = _CHUNK.fullmatch(line)
        if match is None:
            raise WireError(line[:80])
        size = int(match[1], 16)
        if not size:
            break
        if len(rest) < size + 2:
            raise IncompleteError(rest[:80])
        if rest[size : size + 2] != b"\r\n":
            raise WireError(rest[size : size + 8])
        parts.append(rest[:size])
        rest = rest[size + 2 :]
    if rest.startswith(b"\r\n"):
        return b"".join(parts), rest[2:]
    trailers, rest = _cut_head(rest)
    _read_fields(trailers.split(b"\r\n"))
    return b"".join(parts), rest
