"""Brings one file from a server to its place: taken up where it was cut, verified before it gets its name.

Bytes go to a partial file, which is hashed as they arrive. Only what has the promised digest is renamed to the final
name, so whatever happens, no program finds a part or something else there. It must not know of models, nor of who watches.
"""

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from msgspec import Struct
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from launcher.errors import (
    CorruptDownloadError,
    DiskFullError,
    DownloadError,
    LauncherError,
    RemoteError,
    WeightsMissingError,
)
from launcher.fetch.digests import check_digest, record_digest
from launcher.fetch.hashing import DigestKind, hash_of, new_hasher
from launcher.fetch.locks import exclusive
from launcher.fetch.progress import Phase
from launcher.fetch.room import require_room, where_room_is
from launcher.fetch.web import Incoming, PassingError, UnreachableError, Web, show_url, wait_s
from launcher.metadata.files import label
from launcher.units import KIB, MIB, format_bytes

MAX_FRUITLESS: Final = 8
"""Attempts in a row that brought next to nothing: with the pauses between them, a network may be away for two minutes."""
FRUITFUL_BYTES: Final = MIB
"""An attempt that brought so much more than any before it does not count as one: a link that breaks now and then is used
to the end, while a server that can never bring more is given up."""
MAX_WAIT_S: Final = 300.0
"""A server that asks for a longer wait is not waited for; hubs count requests over five minutes."""
SLOW_S: Final = 60.0
SLOW_BYTES_PER_S: Final = KIB
"""What is slower over so many seconds is taken for stalled: 1 GiB would take twelve days."""

_MAX_ANEW: Final = 3
_PAUSE_S: Final = 0.5
_CHUNK_BYTES: Final = 4 * MIB
_MAX_ETAG: Final = 512
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_BACKOFF: Final = wait_exponential(multiplier=0.5, max=30.0) + wait_random(0.0, 0.5)
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.IGNORECASE | re.ASCII)
_NO_BYTES: Final = re.compile(r"bytes \*/(\d{1,19})", re.IGNORECASE | re.ASCII)


class Source(Struct, frozen=True, kw_only=True):
    """Where a file is read, and what it has to be; ``size_bytes`` is ``None`` where nobody told it."""

    url: str
    name: str
    kind: DigestKind
    digest: str
    size_bytes: int | None


class Place(Struct, frozen=True, kw_only=True):
    """Where a file goes: ``path`` once it is whole and verified, ``partial`` until then.

    Who holds the lock of the file ``lock`` is the one to write either.
    """

    path: Path
    partial: Path
    lock: Path


class Fetched(Struct, frozen=True, kw_only=True):
    """What it took: bytes that came over the network, and where a damaged file was set aside, if one was there."""

    n_bytes: int = 0
    set_aside: Path | None = None


class TellFile(Protocol):
    """Hears how far one file has come: ``n_bytes`` are here."""

    def __call__(self, phase: Phase, n_bytes: int, why: str = "", /) -> None:
        """Take note."""


Sleep: TypeAlias = Callable[[float], None]


class _AnewError(PassingError):
    """The bytes that are here are not the beginning of what the server has now."""


def download(web: Web, source: Source, place: Place, *, tell: TellFile, sleep: Sleep = time.sleep) -> Fetched:
    """Have the file at its place; nothing is asked of the network if it is there.

    One process downloads it: others wait, see it grow, and take over if that process ends before it is done.

    Raises:
        CorruptDownloadError: what came does not have the digest; it was removed.
        DiskFullError: the disk is full; what came is kept.
        RemoteAccessError, RemoteMissingError, RemoteError: as the server would have it; what came is kept.
        DownloadError: something is in the way.
    """
    with named_faults(source.name, place.path.parent):
        place.path.parent.mkdir(parents=True, exist_ok=True)
        place.lock.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(place.lock, waiting=lambda: tell(Phase.SHARING, _size(place)), sleep=sleep):
            is_here, set_aside = _look(source, place, tell)
            if is_here:
                return Fetched(set_aside=set_aside)
            if set_aside is not None:
                _require_room_beside(set_aside, source)
            n_bytes = _bring(web, source, place, tell, sleep)
            return Fetched(n_bytes=n_bytes, set_aside=set_aside)


@contextmanager
def named_faults(name: str, folder: Path) -> Iterator[None]:
    """Tell what the system refuses in a folder as a fault of the download that is called ``name``."""
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        if error.errno in _FULL:
            msg = f"`{label(name)}` finds no more room in {folder}: {why}"
            raise DiskFullError(msg, help=f"{where_room_is(folder)}; what has come is kept") from error
        msg = f"`{label(name)}` cannot be kept in {folder}: {why}"
        raise DownloadError(msg, help="check who owns that folder and its disk, or name another one") from error


# --- What is here -----------------------------------------------------------------------------------------------


def _look(source: Source, place: Place, tell: TellFile) -> tuple[bool, Path | None]:
    """Say whether the file is here as it should be; one that is not is set aside, and where that is."""
    try:
        found = place.path.lstat()
    except FileNotFoundError:
        return False, None
    if not stat.S_ISREG(found.st_mode):
        raise _in_the_way(place.path)
    if _has_digest(source, place, tell):
        if source.size_bytes not in {None, found.st_size}:
            msg = f"`{label(source.name)}` is listed with {source.size_bytes} bytes, but what has its digest has {found.st_size}"
            raise RemoteError(msg, help="whoever lists it is broken: do not use it")
        place.partial.unlink(missing_ok=True)
        return True, None
    aside = place.path.with_name(f"{place.path.name}.corrupt")
    place.path.replace(aside)
    return False, aside


def _require_room_beside(damaged: Path, source: Source) -> None:
    """Make sure that there is room for the file once more: it was thought to be here, and so was not counted."""
    try:
        require_room(source.size_bytes or 0, damaged.parent)
    except DiskFullError as error:
        error.details = (*error.details, f"what was here is damaged: remove {label(str(damaged), limit=4096)}")
        raise


def _has_digest(source: Source, place: Place, tell: TellFile) -> bool:
    if source.kind is DigestKind.GIT_SHA1:
        return hash_of(place.path, source.kind) == source.digest
    with place.path.open("rb"):
        pass  # one that cannot be read may be whole: that is a fault of its own
    try:
        check_digest(place.path, source.digest, on_read=lambda n_bytes: tell(Phase.CHECKING, n_bytes))
    except WeightsMissingError:
        return False
    return True


def _size(place: Place) -> int:
    for path in (place.partial, place.path):
        with suppress(OSError):
            return path.lstat().st_size
    return 0


# --- What is to come --------------------------------------------------------------------------------------------


def _bring(web: Web, source: Source, place: Place, tell: TellFile, sleep: Sleep) -> int:
    """Download into the partial file, and give that its name; return the bytes that came over the network."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(place.partial, flags, mode=0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _in_the_way(place.partial) from None
        raise
    note = place.partial.with_name(f"{place.partial.name}.etag")
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise _in_the_way(place.partial)
        transfer = _Transfer(web, source, descriptor, note=note, tell=tell, sleep=sleep)
        try:
            transfer.run()
        except CorruptDownloadError:
            place.partial.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
            raise
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    place.partial.replace(place.path)
    note.unlink(missing_ok=True)
    _sync_folder(place.path.parent)
    if source.kind is DigestKind.SHA256:
        record_digest(place.path, source.digest)
    return transfer.n_received


class _Transfer:
    """One file on its way: ``n`` bytes of it are here and in the hash."""

    def __init__(self, web: Web, source: Source, descriptor: int, *, note: Path, tell: TellFile, sleep: Sleep) -> None:
        self._web = web
        self._source = source
        self._descriptor = descriptor
        self._note = note
        self._tell = tell
        self._sleep = sleep
        self._total = source.size_bytes
        self._etag = _read_note(note)
        self._hasher = new_hasher(source.kind, source.size_bytes)
        self._furthest = 0
        self._n_anew = 0
        self._has_ended = False
        self.n = 0
        self.n_received = 0

    def run(self) -> None:
        """Have all bytes, with the right digest.

        Raises:
            CorruptDownloadError: they have another one, and none of them was here before.
        """
        was_here = self._take_up()
        self._receive()
        if was_here and not self._is_right():
            self._begin_anew()  # the part that was here may be to blame: it was somebody else's, or the disk's
            self._furthest = 0
            self._receive()
        if not self._is_right():
            msg = f"what {show_url(self._source.url)} sent is not `{label(self._source.name)}`: it has another digest"
            details = (
                f"{self._source.kind} of what came: {self._hasher.hexdigest()}",
                f"{self._source.kind} promised:     {self._source.digest}",
            )
            raise CorruptDownloadError(
                msg, help="it was removed; try again, and if that ends alike, use another source", details=details
            )

    def _is_right(self) -> bool:
        return self._hasher.hexdigest() == self._source.digest

    def _take_up(self) -> bool:
        """Hash what is here already; say whether that is anything."""
        size_bytes = os.fstat(self._descriptor).st_size
        if self._total is not None and size_bytes > self._total:
            self._begin_anew()
            return False
        while chunk := os.pread(self._descriptor, _CHUNK_BYTES, self.n):
            self._hasher.update(chunk)
            self.n += len(chunk)
            self._tell(Phase.CHECKING, self.n)
        self._furthest = self.n
        return self.n > 0

    def _begin_anew(self) -> None:
        os.ftruncate(self._descriptor, 0)
        self._hasher = new_hasher(self._source.kind, self._source.size_bytes)
        self.n = 0
        self._has_ended = False

    def _is_complete(self) -> bool:
        return self._has_ended if self._total is None else self.n >= self._total

    def _receive(self) -> None:
        """Ask until all is here; faults that pass are waited out, longer each time, as long as something comes."""
        while not self._is_complete():
            attempts = Retrying(
                retry=retry_if_exception_type(PassingError),
                stop=stop_after_attempt(MAX_FRUITLESS),
                wait=_wait_s,
                sleep=self._sleep,
                before_sleep=self._tell_fault,
                reraise=True,
            )
            try:
                attempts(self._attempt)
            except PassingError as error:
                error.details = (*error.details, f"tried {MAX_FRUITLESS} times", self._kept())
                raise
            except LauncherError as error:
                if self.n and not isinstance(error, DiskFullError):
                    error.details = (*error.details, self._kept())
                raise

    def _kept(self) -> str:
        return f"the {format_bytes(self.n)} that are here are kept: the same command goes on from there"

    def _tell_fault(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        why = error.message if isinstance(error, LauncherError) else ""
        wait_s = state.next_action.sleep if state.next_action is not None else 0.0
        self._tell(Phase.RETRYING, self.n, f"{why}; trying again in {wait_s:.0f} s")

    def _attempt(self) -> None:
        """Ask once for the rest. An attempt that brought much before it failed returns: it is no reason to give up."""
        self._furthest = max(self._furthest, self.n)
        try:
            self._ask()
        except UnreachableError as error:
            if not self.n_received:
                raise
            raise PassingError(error.message, help=error.help or "") from None
        except PassingError as error:
            if self.n < self._furthest + FRUITFUL_BYTES:
                raise
            self._tell(Phase.RETRYING, self.n, error.message)
            self._sleep(_PAUSE_S)

    def _ask(self) -> None:
        etag = self._etag
        if_range = etag if etag is not None and not etag.startswith("W/") else None
        with self._web.stream(self._source.url, first=self.n, if_range=if_range) as incoming:
            if not self._accept(incoming):
                return
            began_s, n_before = time.monotonic(), self.n
            for chunk in incoming.chunks:
                self._write(chunk)
                now_s = time.monotonic()
                if now_s - began_s >= SLOW_S:
                    self._check_pace(self.n - n_before, now_s - began_s)
                    began_s, n_before = now_s, self.n
        if self._total is not None and self.n < self._total:
            msg = f"{show_url(self._source.url)} ended after {self.n} of {self._total} bytes"
            raise PassingError(msg, help="try again")  # a body without a length, or a shorter part than was asked for
        self._has_ended = True

    def _check_pace(self, n_bytes: int, seconds: float) -> None:
        if n_bytes < SLOW_BYTES_PER_S * seconds:
            msg = f"{show_url(self._source.url)} stalls: {format_bytes(n_bytes)} in {seconds:.0f} s"
            raise PassingError(msg, help="try again later")

    # --- What an answer says ---

    def _accept(self, incoming: Incoming) -> bool:
        """Say whether the answer's body continues what is here, after beginning anew where it is the whole file.

        Raises:
            RemoteError: it is of another file, or no answer to what was asked.
        """
        match incoming.status:
            case 206 if self.n:
                self._accept_part(incoming)
            case 200:
                if self.n:
                    self._begin_anew()  # ranges are not served, or If-Range told the server that this is another file
                self._learn_total(incoming.announced_bytes)
            case 416:
                return self._accept_nothing(incoming)
            case _:
                msg = f"answers {incoming.status} to what was asked for"
                raise self._broken(msg)
        self._remember(incoming.headers.get("etag"))
        return True

    def _accept_part(self, incoming: Incoming) -> None:
        text = incoming.headers.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(text)
        if match is None:
            msg = f"sends a part with Content-Range `{label(text)}`"
            raise self._broken(msg)
        first, last, total = (int(number) for number in match.groups())
        self._learn_total(total)
        etag = incoming.headers.get("etag")
        if None not in {etag, self._etag} and etag != self._etag:
            msg = "was changed on the server since its beginning was downloaded"
            raise self._changed(msg)
        wrong_length = incoming.announced_bytes not in {None, last + 1 - first}
        if first != self.n or not first <= last < total or wrong_length:
            msg = f"sends `{label(text)}` where the bytes from {self.n} on were asked for"
            raise self._broken(msg)

    def _accept_nothing(self, incoming: Incoming) -> bool:
        """Take "no such part": all of the file is here, or what is here is not of this file."""
        match = _NO_BYTES.fullmatch(incoming.headers.get("content-range", ""))
        if match is not None and int(match[1]) == self.n:
            self._learn_total(self.n)
            self._has_ended = True
            return False
        msg = f"has no bytes from {self.n} on"
        raise self._changed(msg)

    def _changed(self, fact: str) -> RemoteError:
        """Drop what is here; a file that changes again and again is given up."""
        self._begin_anew()
        self._remember(None)
        self._furthest = 0
        self._n_anew += 1
        msg = f"`{label(self._source.name)}` {fact}"
        kind = _AnewError if self._n_anew <= _MAX_ANEW else RemoteError
        return kind(msg, help="try again later: whoever serves it may be replacing it")

    def _learn_total(self, total: int | None) -> None:
        if total is None:
            return
        if self._source.size_bytes is not None and total != self._source.size_bytes:
            url = show_url(self._source.url)
            msg = f"{url} has {total} bytes where {self._source.size_bytes} are listed"
            raise RemoteError(msg, help="it may have just been replaced, or another page came: try again")
        if self._total is None:  # nobody knew it before: nor, then, whether there is room
            require_room(total - self.n, self._note.parent)
        self._total = total

    def _broken(self, fact: str) -> PassingError:
        help_ = "the server does not serve parts of files as HTTP has it: try again, or use another one"
        return PassingError(f"{show_url(self._source.url)} {fact}", help=help_)

    # --- What is kept ---

    def _write(self, chunk: bytes) -> None:
        if self._total is not None and self.n + len(chunk) > self._total:
            msg = f"{show_url(self._source.url)} sends more than the {self._total} bytes that it has"
            raise RemoteError(msg, help="the server is broken: use another one")
        view = memoryview(chunk)
        while view:
            # By position: where a file system only pretends to lock, two who write the same bytes do no harm.
            view = view[os.pwrite(self._descriptor, view, self.n + len(chunk) - len(view)) :]
        self._hasher.update(chunk)
        self.n += len(chunk)
        self.n_received += len(chunk)
        self._tell(Phase.DOWNLOADING, self.n)

    def _remember(self, etag: str | None) -> None:
        """Keep the server's tag of the file for a later run; without it the digest alone tells a splice."""
        if etag == self._etag:
            return
        self._etag = etag
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(OSError):
            self._note.unlink(missing_ok=True)
            descriptor = os.open(self._note, flags, mode=0o600)
            try:
                os.write(descriptor, (etag or "").encode())
            finally:
                os.close(descriptor)


def _read_note(path: Path) -> str | None:
    """Return the tag of the file that the partial one is the beginning of; ``None`` where none can be meant."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            etag = os.read(descriptor, _MAX_ETAG).decode("ascii")
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return None
    return etag if etag.isprintable() and etag else None  # it is sent as a header


def _wait_s(state: RetryCallState) -> float:
    """Wait as after any fault that passes; not at all to begin a changed file anew."""
    error = state.outcome.exception() if state.outcome is not None else None
    return 0.0 if isinstance(error, _AnewError) else wait_s(state, _BACKOFF)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _in_the_way(path: Path) -> DownloadError:
    msg = f"{label(str(path), limit=4096)} is in the way: it is no plain file of its own"
    return DownloadError(msg, help="see who put it there, then remove it")
