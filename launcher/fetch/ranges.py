"""A file on a server as a seekable stream, read in ranges.

It asks for blocks, more of them at once the longer it is read in order, keeps those it has, and sees to it that all are of
one file: its size and its entity tag may not change. It must not know what is in the file.
"""

import re
from typing import Final

from msgspec import Struct

from launcher.errors import RemoteAccessError, RemoteError
from launcher.fetch.web import Answer, TooLongError, Web, show_url
from launcher.units import KIB, MIB, ceil_div

BLOCK_BYTES: Final = 64 * KIB
GROWTH: Final = 4
"""By which each request is larger than the one before it, while the file is read in order."""
MAX_REQUEST_BYTES: Final = 2 * MIB
"""So at most this is read in vain, while a header of 10 MiB takes eight requests."""
MAX_WHOLE_BYTES: Final = 8 * MIB
"""A file of at most this size may come from a server that only sends whole files."""

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.IGNORECASE | re.ASCII)
_NO_BYTES: Final = re.compile(r"bytes \*/0", re.IGNORECASE)
_MAX_SIZE_BYTES: Final = 2**63 - 1


class _State(Struct, frozen=True, kw_only=True):
    """What the first answer said of the file, and where later requests may go at once."""

    url: str
    size_bytes: int
    etag: str | None


class RangeStream:
    """The file at ``url``; opening it reads its first block. ``size_bytes`` is its size in bytes."""

    def __init__(self, web: Web, url: str, *, expected_bytes: int | None = None) -> None:
        """Read the beginning of the file, which must have ``expected_bytes`` where these are known.

        Raises:
            RemoteError: the server does not serve it, or not in ranges.
        """
        self._web = web
        self._url = url
        self._blocks: dict[int, bytes] = {}
        self._at = 0
        self._next_idx = 1
        self._n_ahead = 1
        self._state: _State | None = None
        self._fetch(0, 1)
        self.size_bytes = self._first().size_bytes
        if expected_bytes is not None and self.size_bytes != expected_bytes:
            msg = f"{show_url(url)} has {self.size_bytes} bytes where {expected_bytes} are listed"
            raise RemoteError(msg, help="it may have just been replaced: try again")

    def tell(self) -> int:
        """Return where the stream stands, in bytes from the start."""
        return self._at

    def seek(self, offset: int, /) -> int:
        """Stand at ``offset`` bytes from the start; nothing is read."""
        self._at = offset
        return offset

    def read(self, n_bytes: int, /) -> bytes:
        """Return up to ``n_bytes`` from here on, at least one before the end of the file.

        Raises:
            RemoteError: the server failed, or the file was changed.
        """
        if n_bytes <= 0 or not 0 <= self._at < self.size_bytes:
            return b""
        idx, start = divmod(self._at, BLOCK_BYTES)
        if idx not in self._blocks:
            self._read_ahead(idx)
        part = self._blocks[idx][start : start + n_bytes]
        self._at += len(part)
        return part

    def kept(self, offset: int, n_bytes: int) -> bytes:
        """Return up to ``n_bytes`` at ``offset`` if they are here; nothing is read, and threads may ask."""
        idx, start = divmod(offset, BLOCK_BYTES)
        return self._blocks.get(idx, b"")[start : start + n_bytes]

    def prefetch(self, begin: int, end: int) -> None:
        """Read the bytes from ``begin`` to ``end`` in one request, as far as they are not here."""
        last_idx = ceil_div(min(end, self.size_bytes), BLOCK_BYTES)
        wanted = [idx for idx in range(begin // BLOCK_BYTES, last_idx) if idx not in self._blocks]
        if wanted:
            self._fetch(wanted[0], wanted[-1] - wanted[0] + 1)

    def _read_ahead(self, idx: int) -> None:
        """Fetch from block ``idx`` on: one block after a jump, more and more while the file is read in order."""
        in_order = idx == self._next_idx
        self._n_ahead = min(self._n_ahead * GROWTH, MAX_REQUEST_BYTES // BLOCK_BYTES) if in_order else 1
        n = min(self._n_ahead, ceil_div(self.size_bytes, BLOCK_BYTES) - idx)
        n = next((k for k in range(1, n) if idx + k in self._blocks), n)
        self._fetch(idx, n)
        self._next_idx = idx + n

    def _fetch(self, first_idx: int, n: int) -> None:
        begin, end = first_idx * BLOCK_BYTES, (first_idx + n) * BLOCK_BYTES
        if self._state is not None:
            end = min(end, self._state.size_bytes)
        begin, body = self._checked(self._ask(begin, end), begin, end)
        for offset in range(0, len(body), BLOCK_BYTES):
            self._blocks[(begin + offset) // BLOCK_BYTES] = body[offset : offset + BLOCK_BYTES]

    def _ask(self, begin: int, end: int) -> Answer:
        """Ask for a span; a server that sends a whole big file instead is told from one whose file was replaced."""
        span = (begin, end - 1)
        limit = max(end - begin, MAX_WHOLE_BYTES)
        state = self._state
        try:
            if state is None:
                return self._web.get(self._url, span=span, limit_bytes=limit)
            return self._ask_again(state, span, limit)
        except TooLongError:
            # The whole file came: the server knows no ranges, or If-Range told it that this is another file by now.
            if state is not None:
                raise self._changed() from None
            msg = "sends the whole file where a part was asked for"
            raise self._broken(msg) from None

    def _ask_again(self, state: _State, span: tuple[int, int], limit: int) -> Answer:
        """Ask where the last redirect led, which saves one each time; when that has expired, ask from the start."""
        etag = state.etag if state.etag is not None and not state.etag.startswith("W/") else None
        try:
            return self._web.get(state.url, span=span, if_range=etag, limit_bytes=limit)
        except RemoteAccessError:
            if state.url == self._url:
                raise
            return self._web.get(self._url, span=span, if_range=etag, limit_bytes=limit)

    def _checked(self, answer: Answer, begin: int, end: int) -> tuple[int, bytes]:
        """Return where an answer's bytes begin, with the bytes, if they are those asked for and of the same file."""
        if answer.status == 200:  # noqa: PLR2004  the whole file
            self._remember(answer, len(answer.body))
            return 0, answer.body
        content_range = answer.headers.get("content-range", "")
        if answer.status == 416 and self._state is None and _NO_BYTES.fullmatch(content_range):  # noqa: PLR2004  no such range
            self._remember(answer, 0)
            return 0, b""
        match = _CONTENT_RANGE.fullmatch(content_range)
        if match is None or answer.status != 206:  # noqa: PLR2004  a part
            msg = f"answers {answer.status} with Content-Range `{_shown(content_range)}`"
            raise self._broken(msg)
        first, last, size_bytes = (int(number) for number in match.groups())
        if size_bytes > _MAX_SIZE_BYTES:
            msg = f"says that the file has {size_bytes} bytes"
            raise self._broken(msg)
        self._remember(answer, size_bytes)
        if (first, last + 1) != (begin, min(end, size_bytes)) or len(answer.body) != last + 1 - first:
            msg = f"sends {len(answer.body)} bytes as `{_shown(content_range)}` where {begin}-{end - 1} were asked for"
            raise self._broken(msg)
        return begin, answer.body

    def _remember(self, answer: Answer, size_bytes: int) -> None:
        """Keep what the first answer says of the file; later ones must say the same."""
        etag = answer.headers.get("etag")
        if self._state is None:
            self._state = _State(url=answer.url, size_bytes=size_bytes, etag=etag)
            return
        if (self._state.size_bytes, self._state.etag) != (size_bytes, etag):
            raise self._changed()

    def _first(self) -> _State:
        assert self._state is not None  # noqa: S101  the first fetch has set it or raised
        return self._state

    def _changed(self) -> RemoteError:
        return RemoteError(f"{show_url(self._url)} was changed while it was read", help="try again")

    def _broken(self, fact: str) -> RemoteError:
        help_ = "the server does not serve parts of files as HTTP has it: use another one, or download the file"
        return RemoteError(f"{show_url(self._url)} {fact}", help=help_)


def _shown(text: str) -> str:
    return ascii(text[:80])[1:-1]
