"""One file comes over bad links whole or not at all, and only what was promised gets its name."""

import errno
import hashlib
import itertools
import os
import random
import re
import resource
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.errors import (
    CorruptDownloadError,
    DiskFullError,
    DownloadError,
    LauncherError,
    RemoteAccessError,
    RemoteError,
    RemoteMissingError,
)
from launcher.fetch import download as download_module
from launcher.fetch.digests import is_recorded
from launcher.fetch.download import MAX_FRUITLESS, MAX_WAIT_S, Fetched, Place, Source, download
from launcher.fetch.hashing import DigestKind
from launcher.fetch.progress import Phase
from launcher.fetch.room import MIN_MARGIN_BYTES
from launcher.fetch.web import Token, Web, origin
from tests.fakes.hub import Handler, Hub, always, git_sha1, serve

CONTENT = random.Random(7).randbytes(300_007)  # noqa: S311  the same in each run
DIGEST = hashlib.sha256(CONTENT).hexdigest()
CUTS = (0, 1, 2, 255, 4096, 65_535, 65_536, 65_537, 131_072, 262_143, 262_144, 300_005, 300_006)
Run = Callable[..., Fetched]


def quiet(phase: Phase, n_bytes: int, why: str = "") -> None:
    """Hear nothing."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of digests go to a folder of the test."""
    monkeypatch.setenv("LAUNCHER_CACHE_DIR", str(tmp_path / "records"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where the file goes."""
    return place_in(tmp_path / "blobs")


def place_in(folder: Path) -> Place:
    """Return a place in a folder that need not be there."""
    return Place(path=folder / DIGEST, partial=folder / f"{DIGEST}.incomplete", lock=folder / "locks" / "x.lock")


def note_of(place: Place) -> Path:
    """Return where it is kept what the server said of a partial file."""
    return place.partial.with_name(f"{place.partial.name}.etag")


def source_of(hub: Hub, content: bytes = CONTENT, *, size: int | None = -1) -> Source:
    """Return the file of a hub that has it under one name; ``size`` -1 stands for the true one."""
    return Source(
        url=f"{hub.url}/o/r/resolve/main/f.gguf",
        name="f.gguf",
        kind=DigestKind.SHA256,
        digest=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content) if size == -1 else size,
    )


@pytest.fixture
def run(hub: Hub, place: Place, waits: list[float]) -> Run:
    """Download the hub's file to the place without waiting."""
    hub.files = {"o/r": {"f.gguf": CONTENT}}
    web = Web(timeout_s=5.0, max_wait_s=MAX_WAIT_S)

    def call(source: Source | None = None) -> Fetched:
        return download(web, source or source_of(hub), place, tell=quiet, sleep=waits.append)

    return call


def begin(place: Place, content: bytes, etag: str | None = '"one"') -> None:
    """Leave what an interrupted run leaves."""
    place.partial.parent.mkdir(parents=True, exist_ok=True)
    place.partial.write_bytes(content)
    if etag is not None:
        note_of(place).write_text(etag)


def check_whole(place: Place, content: bytes = CONTENT) -> None:
    """Assert that the file is there, recorded, and nothing else is."""
    assert place.path.read_bytes() == content
    assert is_recorded(place.path, hashlib.sha256(content).hexdigest())
    assert sorted(path.name for path in place.path.parent.iterdir()) == [place.path.name, "locks"]


def check_absent(place: Place) -> None:
    """Assert that nothing has the final name."""
    assert not os.path.lexists(place.path)


def cutting(content: bytes, *lengths: int) -> Callable[[Handler], bool]:
    """Answer as asked, but close the connection after so many bytes: of the first answer, of the second, and so on."""
    left = list(lengths)

    def fault(handler: Handler) -> bool:
        if not left:
            return False
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        headers = {"Content-Length": str(len(content) - first), "ETag": '"one"'}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        handler.send(206 if asked else 200, content[first : first + left.pop(0)], headers)
        handler.close_connection = True
        return True

    return fault


# --- The straight way -------------------------------------------------------------------------------------------


def test_a_file_comes_once(run: Run, hub: Hub, place: Place) -> None:
    """It is verified, recorded, readable as the user's other files are; a second time nothing is asked."""
    assert run().n_bytes == len(CONTENT)
    check_whole(place)
    umask = os.umask(0)
    os.umask(umask)
    assert place.path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert run() == Fetched()
    assert len(hub.log) == 1


def test_an_empty_file_is_one(hub: Hub, web: Web, tmp_path: Path) -> None:
    """Nothing to read is not nothing: its digest is checked too."""
    hub.files = {"o/r": {"f.gguf": b""}}
    place = place_in(tmp_path / "b")
    download(web, source_of(hub, b""), place, tell=quiet)
    assert place.path.read_bytes() == b""


def test_a_file_of_unknown_size_comes(run: Run, hub: Hub, place: Place) -> None:
    """The server's own word on its length does."""
    run(source_of(hub, size=None))
    check_whole(place)


def test_a_stream_without_a_length_comes(run: Run, hub: Hub, place: Place) -> None:
    """Chunked answers have none; their end counts."""

    def chunked(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for at in range(0, len(CONTENT), 50_000):
            chunk = CONTENT[at : at + 50_000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        handler.wfile.write(b"0\r\n\r\n")

    hub.fault = always(chunked)
    run(source_of(hub, size=None))
    check_whole(place)


def test_small_files_have_gits_digest(hub: Hub, web: Web, tmp_path: Path) -> None:
    """It is over the size as well; a wrong one is noticed."""
    hub.files = {"o/r": {"config.json": b"{}"}}
    right = Source(
        url=f"{hub.url}/o/r/resolve/main/config.json",
        name="config.json",
        kind=DigestKind.GIT_SHA1,
        digest=git_sha1(b"{}"),
        size_bytes=2,
    )
    assert right.digest == "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # what `git hash-object` says
    place = place_in(tmp_path / "b")
    assert download(web, right, place, tell=quiet).n_bytes == 2
    assert download(web, right, place, tell=quiet).n_bytes == 0
    hub.files = {"o/r": {"config.json": b"[]"}}
    with pytest.raises(CorruptDownloadError):
        download(web, right, place_in(tmp_path / "c"), tell=quiet)


def test_progress_is_told(hub: Hub, web: Web, place: Place) -> None:
    """Bytes never fall while nothing goes wrong, and end at the size."""
    hub.files = {"o/r": {"f.gguf": CONTENT}}
    told: list[tuple[Phase, int]] = []
    begin(place, CONTENT[:1000])

    def tell(phase: Phase, n_bytes: int, why: str = "") -> None:
        assert why == ""
        told.append((phase, n_bytes))

    download(web, source_of(hub), place, tell=tell)
    assert told[0] == (Phase.CHECKING, 1000)
    counts = [n for _, n in told]
    assert counts == sorted(counts)
    assert told[-1] == (Phase.DOWNLOADING, len(CONTENT))


@pytest.mark.parametrize("n", [0, 1, 299_999])
def test_a_body_without_a_length_may_end_early(
    run: Run, hub: Hub, place: Place, *, n: int, tried: Counter[str]
) -> None:
    """Then nothing says that it was cut but the size that is listed: it is taken up, and given up if that leads nowhere."""

    def short(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT[:n])
        handler.close_connection = True

    hub.fault = always(short)
    with pytest.raises(RemoteError, match=f"ended after {n} of 300007 bytes"):
        run()
    tried["cut connection"] += len(hub.log)
    assert len(hub.log) <= 2 * MAX_FRUITLESS
    check_absent(place)


# --- Links that break -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_connection_is_taken_up(run: Run, hub: Hub, place: Place, cut: int, tried: Counter[str]) -> None:
    """Wherever it breaks: what has come is not asked for again, and only of the same file."""
    hub.fault = cutting(CONTENT, cut)
    run()
    tried["cut connection"] += 1
    check_whole(place)
    assert hub.n_sent == len(CONTENT)
    second = hub.log[1].headers
    assert (second.get("range"), second.get("if-range")) == ((f"bytes={cut}-", '"one"') if cut else (None, None))


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(0, 120_000), max_size=MAX_FRUITLESS - 1))
def test_any_row_of_cuts_ends_with_the_file(
    hub: Hub, web: Web, tmp_path_factory: pytest.TempPathFactory, lengths: list[int], tried: Counter[str]
) -> None:
    """However often and wherever it breaks, within the bound: no byte is lost, doubled or taken from elsewhere."""
    hub.files = {"o/r": {"f.gguf": CONTENT}}
    hub.fault = cutting(CONTENT, *lengths)
    place = place_in(tmp_path_factory.mktemp("cuts"))
    download(web, source_of(hub), place, tell=quiet, sleep=lambda _: None)
    tried["row of cuts"] += 1
    assert place.path.read_bytes() == CONTENT


@pytest.mark.parametrize("kept", CUTS)
def test_a_later_run_goes_on(run: Run, place: Place, kept: int, tried: Counter[str]) -> None:
    """What an earlier run left is hashed, not asked for; also when all of it was there."""
    begin(place, CONTENT[:kept])
    assert run().n_bytes == len(CONTENT) - kept
    tried["file left by a killed run"] += 1
    check_whole(place)


def test_a_run_that_died_at_the_very_end_asks_nothing(run: Run, hub: Hub, place: Place) -> None:
    """All bytes were there, only the name was not."""
    begin(place, CONTENT)
    assert run().n_bytes == 0
    check_whole(place)
    assert hub.log == []


@pytest.mark.parametrize("size", [-1, None])
@pytest.mark.parametrize(
    "left", [b"x", b"x" * 299_000, b"x" * 300_007, b"x" * 400_000, CONTENT[1:], CONTENT + b"x"], ids=len
)
def test_a_foreign_part_does_no_harm(
    run: Run, hub: Hub, place: Place, *, left: bytes, size: int | None, tried: Counter[str]
) -> None:
    """A partial file that is not the beginning of this one costs a second download, nothing else."""
    begin(place, left)
    run(source_of(hub, size=size))
    tried["foreign partial file"] += 1
    check_whole(place)


def test_what_keeps_breaking_is_a_fault(run: Run, hub: Hub, place: Place, waits: list[float]) -> None:
    """Attempts without much gain are bounded, pauses grow to a bound; what came is kept, and it is said."""
    hub.fault = cutting(CONTENT, *[1000] * 99)
    with pytest.raises(RemoteError) as caught:
        run()
    assert f"tried {MAX_FRUITLESS} times" in caught.value.details
    assert any("are kept" in line for line in caught.value.details)
    assert len(waits) == MAX_FRUITLESS - 1
    assert max(waits) <= 31
    assert place.partial.read_bytes() == CONTENT[: 1000 * MAX_FRUITLESS]
    check_absent(place)
    hub.fault = None
    run()
    check_whole(place)


def test_a_link_that_breaks_often_is_used_to_the_end(
    run: Run, hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt that brought something lets the next ones count anew."""
    monkeypatch.setattr(download_module, "FRUITFUL_BYTES", 10_000)
    hub.fault = cutting(CONTENT, *[10_001] * 29)
    run()
    check_whole(place)
    assert len(hub.log) == 30


@pytest.mark.parametrize("lengths", [(200_000,), (200_000, 100_000)], ids=str)
def test_a_server_that_only_begins_anew_is_given_up(
    run: Run, hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch, *, lengths: tuple[int, ...]
) -> None:
    """However much it brings each time: what is never more than was here before is no progress."""
    monkeypatch.setattr(download_module, "FRUITFUL_BYTES", 10_000)
    each = itertools.cycle(lengths)

    def short(handler: Handler) -> None:
        assert len(hub.log) < 100
        handler.send(200, CONTENT[: next(each)], {"Content-Length": str(len(CONTENT))})
        handler.close_connection = True

    hub.fault = always(short)
    with pytest.raises(RemoteError, match=r"broke|ended after"):
        run()
    assert len(hub.log) <= 2 * MAX_FRUITLESS
    check_absent(place)


def test_a_network_that_goes_away_is_waited_for(hub: Hub, web: Web, place: Place) -> None:
    """Once something came, a lost connection is no wrong address; before that it is told at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    nowhere = Source(
        url=f"http://127.0.0.1:{port}/f.gguf", name="f.gguf", kind=DigestKind.SHA256, digest=DIGEST, size_bytes=300_007
    )
    waits: list[float] = []
    with pytest.raises(RemoteError, match="there is no connection"):
        download(web, nowhere, place, tell=quiet, sleep=waits.append)
    assert waits == []
    hub.files = {"o/r": {"f.gguf": CONTENT}}
    source = source_of(hub)
    asked: list[str] = []

    def away(handler: Handler) -> bool:
        if not asked:
            asked.append(source.url)
            return cutting(CONTENT, 1000)(handler)
        if len(asked) == 1:
            asked.append(nowhere.url)
            handler.send(302, b"", {"Location": nowhere.url})
            return True
        return False

    hub.fault = away
    download(web, source, place, tell=quiet, sleep=waits.append)
    check_whole(place)
    assert len(waits) == 2


def test_a_server_that_falls_silent_is_asked_again(hub: Hub, place: Place) -> None:
    """The time without a byte ends an attempt, and the next goes on from there."""
    released = threading.Event()
    hub.files = {"o/r": {"f.gguf": CONTENT}}

    def silent(handler: Handler) -> bool:
        if len(hub.log) > 1:
            return False
        handler.send(200, CONTENT[:5000], {"Content-Length": str(len(CONTENT)), "ETag": '"one"'})
        handler.wfile.flush()
        released.wait(20)
        return True

    hub.fault = silent
    hasty = Web(timeout_s=0.1, sleep=lambda _: None)
    download(hasty, source_of(hub), place, tell=quiet, sleep=lambda _: None)
    released.set()
    check_whole(place)
    assert hub.log[1].headers["range"] == "bytes=5000-"


def _trickle(handler: Handler, n: int, tick: threading.Event) -> None:
    handler.send(200, b"", {"Content-Length": str(len(CONTENT)), "ETag": '"one"'})
    for at in range(0, len(CONTENT), n):
        handler.wfile.write(CONTENT[at : at + n])
        handler.wfile.flush()
        tick.wait(0.005)


def test_a_slow_link_is_no_fault(run: Run, hub: Hub, place: Place) -> None:
    """There is no bound on the whole, only on silence."""
    hub.fault = always(partial(_trickle, n=10_000, tick=threading.Event()))
    run()
    check_whole(place)
    assert len(hub.log) == 1


def test_a_link_that_trickles_is_taken_for_silent(
    run: Run, hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then is no progress: below a pace the connection is given up, and asked for again."""
    monkeypatch.setattr(download_module, "SLOW_S", 0.02)
    monkeypatch.setattr(download_module, "SLOW_BYTES_PER_S", 1 << 40)
    hub.fault = always(partial(_trickle, n=10, tick=threading.Event()))
    with pytest.raises(RemoteError, match="stalls"):
        run()
    check_absent(place)


# --- Servers that say no ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RemoteError),
        (401, RemoteAccessError),
        (403, RemoteAccessError),
        (404, RemoteMissingError),
        (410, RemoteMissingError),
        (418, RemoteError),
        (204, RemoteError),
        (451, RemoteError),
        (501, RemoteError),
    ],
)
@pytest.mark.parametrize("kept", [0, 1000])
def test_a_refusal_is_told_at_once(
    run: Run,
    hub: Hub,
    place: Place,
    *,
    waits: list[float],
    status: int,
    kind: type[LauncherError],
    kept: int,
    tried: Counter[str],
) -> None:
    """It will not pass, so it is not asked again; what was here before stays for another try."""
    begin(place, CONTENT[:kept])
    hub.fault = always(lambda handler: handler.send(status, b"<html>no</html>"))
    with pytest.raises(kind):
        run()
    tried["refusing status"] += 1
    assert waits == []
    assert len(hub.log) == 1
    assert place.partial.read_bytes() == CONTENT[:kept]
    check_absent(place)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(
    run: Run, hub: Hub, place: Place, *, waits: list[float], status: int, tried: Counter[str]
) -> None:
    """As late as it asks to be; a hub counts requests over minutes, and is given them."""
    left = [3]

    def busy(handler: Handler) -> bool:
        left[0] -= 1
        if left[0] >= 0:
            handler.send(status, b"busy", {"Retry-After": "290"})
        return left[0] >= 0

    hub.fault = busy
    run()
    tried["busy status"] += 3
    assert waits == [290.0] * 3
    check_whole(place)


@pytest.mark.parametrize(
    ("header", "waited"), [('"resolvers";r=0;t=55', 55.0), ('"api";r=7;t=55', None), ("nonsense", None), ("", None)]
)
def test_a_hubs_rate_limit_is_kept_to(
    run: Run, hub: Hub, waits: list[float], *, header: str, waited: float | None
) -> None:
    """Where there is no Retry-After, it says when its window ends."""

    def limited(handler: Handler) -> bool:
        if len(hub.log) > 1:
            return False
        handler.send(429, b"", {"RateLimit": header})
        return True

    hub.fault = limited
    run()
    assert len(waits) == 1
    assert waits[0] == waited or (waited is None and waits[0] <= 1)


def test_a_server_that_stays_busy_is_given_up(run: Run, hub: Hub, waits: list[float]) -> None:
    """After a bounded number of attempts, each later than the one before."""
    hub.fault = always(lambda handler: handler.send(503))
    with pytest.raises(RemoteError, match="answered 503"):
        run()
    assert len(hub.log) == MAX_FRUITLESS
    assert sum(waits) < 150


@pytest.mark.parametrize("when", ["0", "Thu, 01 Jan 2015 00:00:00 GMT"])
def test_a_server_that_asks_for_no_wait_gets_one(run: Run, hub: Hub, waits: list[float], when: str) -> None:
    """Or that names a moment which is over by our clock: its few attempts are not all made at once."""
    hub.fault = always(lambda handler: handler.send(503, b"", {"Retry-After": when}))
    with pytest.raises(RemoteError, match="answered 503"):
        run()
    assert len(waits) == MAX_FRUITLESS - 1
    assert waits == sorted(waits)
    assert 60 < sum(waits) < 150


def test_a_wait_of_an_hour_is_not_waited(run: Run, hub: Hub, waits: list[float]) -> None:
    """It is told instead."""
    hub.fault = always(lambda handler: handler.send(429, b"", {"Retry-After": "3600"}))
    with pytest.raises(RemoteError, match="asks to wait 3600 s"):
        run()
    assert waits == []


# --- Servers that are wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (bytes([CONTENT[0] ^ 1]) + CONTENT[1:], CorruptDownloadError),
        (CONTENT[:-1] + bytes([CONTENT[-1] ^ 128]), CorruptDownloadError),
        (CONTENT[:150_000] + b"\0" + CONTENT[150_001:], CorruptDownloadError),
        (bytes(len(CONTENT)), CorruptDownloadError),
        (CONTENT[::-1], CorruptDownloadError),
        (CONTENT[:-1], RemoteError),
        (CONTENT + b"x", RemoteError),
        (b"", RemoteError),
        (b"<html>sign in to this network</html>", RemoteError),
    ],
    ids=["first-bit", "last-bit", "middle", "zeros", "reversed", "short", "long", "empty", "page"],
)
@pytest.mark.parametrize("size", [-1, None])
def test_wrong_bytes_never_get_the_name(
    run: Run, hub: Hub, place: Place, *, wrong: bytes, kind: type[LauncherError], size: int | None, tried: Counter[str]
) -> None:
    """By their length where that is known, by their digest in any case; what is wrong is not kept to be resumed."""
    hub.files = {"o/r": {"f.gguf": wrong}}
    with pytest.raises(kind if size == -1 else CorruptDownloadError) as caught:
        run(source_of(hub, size=size))
    tried["wrong bytes"] += 1
    assert caught.value.help
    check_absent(place)
    assert not place.partial.exists() or place.partial.stat().st_size == 0
    hub.files = {"o/r": {"f.gguf": CONTENT}}
    run()
    check_whole(place)


def test_a_server_that_sends_on_and_on_is_stopped(run: Run, hub: Hub, place: Place) -> None:
    """Without a length it could: no more than the file's size is written."""

    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        while True:
            handler.wfile.write(bytes(100_000))

    hub.fault = always(endless)
    with pytest.raises(RemoteError, match="sends more than the 300007 bytes"):
        run()
    assert place.partial.stat().st_size <= len(CONTENT)
    check_absent(place)


def test_a_server_without_ranges_is_read_from_the_start(run: Run, hub: Hub, place: Place) -> None:
    """Its whole file replaces the beginning that was here."""
    begin(place, CONTENT[:100_000])
    hub.fault = always(lambda handler: handler.send(200, CONTENT))
    assert run().n_bytes == len(CONTENT)
    check_whole(place)


@pytest.mark.parametrize(
    "content_range",
    [
        "",
        "bytes",
        "bytes 0-300006/300007",
        "bytes 0-299006/300007",
        "bytes 999-300005/300007",
        "bytes 999-300006/300007",
        "bytes 1001-300006/300007",
        "bytes 1000-300007/300007",
        "bytes 1000-300005/300007",
        "bytes 1000-999/300007",
        "bytes 300007-300006/300007",
        "bytes 1000-300006/*",
        "bytes */300007",
        "bytes 1000-300006/99999999999999999999",
        "items 1000-300006/300007",
        "bytes 1000-300006/300007, bytes 0-1/2",
        "bytes -1000-300006/300007",
        "bytes 1000-300006/300007\x1b[31m",
    ],
)
def test_a_wrong_content_range_is_never_spliced(
    run: Run, hub: Hub, place: Place, content_range: str, tried: Counter[str]
) -> None:
    """Asked again some times, then told; the beginning is kept as it was."""
    begin(place, CONTENT[:1000])
    body = CONTENT[1000:]
    hub.fault = always(lambda handler: handler.send(206, body, {"Content-Range": content_range, "ETag": '"one"'}))
    with pytest.raises(RemoteError) as caught:
        run()
    tried["wrong Content-Range"] += len(hub.log)
    assert caught.value.message.isprintable()
    assert place.partial.read_bytes() == CONTENT[:1000]
    check_absent(place)
    hub.fault = None
    assert run().n_bytes == len(CONTENT) - 1000
    check_whole(place)


@pytest.mark.parametrize("total", [300_006, 300_008, 5])
def test_another_size_is_another_file(run: Run, hub: Hub, place: Place, total: int, tried: Counter[str]) -> None:
    """What is listed and what is served must agree, in a part's answer too."""
    begin(place, CONTENT[:1000])
    answer = {"Content-Range": f"bytes 1000-{total - 1}/{total}"}
    hub.fault = always(lambda handler: handler.send(206, CONTENT[1000:], answer))
    with pytest.raises(RemoteError, match=f"has {total} bytes where 300007 are listed"):
        run()
    tried["wrong size"] += 1
    check_absent(place)


@pytest.mark.parametrize("honours", [True, False])
@pytest.mark.parametrize("etag", ['"one"', '"w"', None])
def test_a_changed_file_is_not_spliced(
    run: Run, hub: Hub, place: Place, etag: str | None, *, honours: bool, tried: Counter[str]
) -> None:
    """By If-Range, by the entity tag where a server ignores that, by the digest where it has none."""
    before = bytes(len(CONTENT))
    begin(place, before[:200_000], etag)
    hub.etag = lambda: '"two"'
    if not honours:

        def ignore(handler: Handler) -> bool:
            del handler.headers["If-Range"]
            return False

        hub.fault = ignore
    run()
    tried["changed file"] += 1
    check_whole(place)
    assert hub.n_sent <= 2 * len(CONTENT)


def test_a_weak_tag_is_not_asked_by(run: Run, hub: Hub, place: Place) -> None:
    """It says nothing of bytes (RFC 9110, 13.1.5)."""
    begin(place, CONTENT[:1000], 'W/"one"')
    hub.etag = lambda: 'W/"one"'
    assert run().n_bytes == len(CONTENT) - 1000
    assert "if-range" not in hub.log[0].headers


def test_a_file_that_changes_all_the_time_is_given_up(
    run: Run, hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time another tag: some times it is begun anew, then told, however much came in between."""
    monkeypatch.setattr(download_module, "FRUITFUL_BYTES", 10_000)
    tags = iter(range(10**6))

    def other(handler: Handler) -> None:
        assert len(hub.log) < 100
        first = int((re.search(r"\d+", handler.headers.get("Range", "0")) or [0])[0])
        headers = {"ETag": f'"{next(tags)}"', "Content-Length": str(len(CONTENT) - first)}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}"
        handler.send(206 if first else 200, CONTENT[first : first + 50_000], headers)
        handler.close_connection = True

    hub.fault = always(other)
    with pytest.raises(RemoteError, match="was changed on the server"):
        run()
    assert len(hub.log) < 20
    check_absent(place)


@pytest.mark.parametrize("answer", ["bytes */300007", "bytes */5", "", "nonsense"])
def test_a_part_that_there_is_not_begins_anew(
    run: Run, hub: Hub, place: Place, answer: str, tried: Counter[str]
) -> None:
    """416 to what the file should have: the beginning is not this file's."""
    begin(place, CONTENT[:1000])

    def no_part(handler: Handler) -> bool:
        if "Range" not in handler.headers:
            return False
        handler.send(416, b"", {"Content-Range": answer})
        return True

    hub.fault = no_part
    run()
    tried["416"] += 1
    check_whole(place)


def test_a_finished_part_of_unknown_size_is_known_by_416(run: Run, hub: Hub, place: Place) -> None:
    """A server that has no more than what is here says so."""
    begin(place, CONTENT)
    assert run(source_of(hub, size=None)).n_bytes == 0
    check_whole(place)


@pytest.mark.parametrize("status", [206, 416])
def test_an_answer_to_another_question_is_a_fault(run: Run, hub: Hub, place: Place, status: int) -> None:
    """A part, or none, of a file that was asked for whole."""
    hub.fault = always(lambda handler: handler.send(status, b"", {"Content-Range": "bytes 0-1/300007"}))
    with pytest.raises(RemoteError):
        run()
    check_absent(place)


def test_a_spoilt_note_does_no_harm(run: Run, place: Place, tried: Counter[str]) -> None:
    """What is kept of the server's words may be anything."""
    for note in (b"", b"\xff\xfe", b"x" * 9999, b"\0", b'"one"\r\nX: y', b"W/", b'W/"', b'"two"'):
        place.path.unlink(missing_ok=True)
        begin(place, CONTENT[:1000], None)
        note_of(place).write_bytes(note)
        run()
        tried["spoilt note"] += 1
        check_whole(place)


def test_the_token_goes_to_the_hub_alone(hub: Hub, place: Place) -> None:
    """A redirect to another host is followed without it, and no fault shows it or what signs the address."""
    hub.files = {"o/r": {"f.gguf": CONTENT}}
    with serve(Hub(files=hub.files), "127.0.0.2") as cdn:
        hub.cdn, hub.token = cdn.url, "hf_secret"
        web = Web(token=Token(secret="hf_secret", origin=origin(hub.url)), sleep=lambda _: None)  # noqa: S106
        cdn.fault = cutting(CONTENT, 1000)
        download(web, source_of(hub), place, tell=quiet, sleep=lambda _: None)
        check_whole(place)
        assert [asked.headers.get("authorization") for asked in hub.log] == ["Bearer hf_secret"] * 2
        assert not any("authorization" in asked.headers for asked in cdn.log)
        place.path.unlink()
        cdn.fault = always(lambda handler: handler.send(403))
        with pytest.raises(RemoteAccessError) as caught:
            download(web, source_of(hub), place, tell=quiet)
    assert "secret" not in repr((caught.value.message, caught.value.details, caught.value.help))


# --- What is in the way -----------------------------------------------------------------------------------------


def _plant(kind: str, at: Path, victim: Path) -> None:
    at.parent.mkdir(parents=True, exist_ok=True)
    victim.write_bytes(b"precious")
    match kind:
        case "symlink":
            at.symlink_to(victim)
        case "dangling":
            at.symlink_to(victim.with_name("nothing"))
        case "hardlink":
            at.hardlink_to(victim)
        case "fifo":
            os.mkfifo(at)
        case _:
            at.mkdir()


@pytest.mark.parametrize("kind", ["symlink", "dangling", "hardlink", "fifo", "folder"])
@pytest.mark.parametrize("where", ["path", "partial", "lock", "note"])
def test_what_is_planted_is_neither_followed_nor_written(
    run: Run, place: Place, tmp_path: Path, *, kind: str, where: str, tried: Counter[str]
) -> None:
    """It is told, or harmless; nothing hangs, and what a link leads to stays as it was."""
    victim = tmp_path / "victim"
    at = note_of(place) if where == "note" else getattr(place, where)
    _plant(kind, at, victim)
    try:
        run()
    except DownloadError:
        pass  # told: `is in the way`
    else:
        assert place.path.read_bytes() == CONTENT
        assert not place.path.is_symlink()
    tried["planted file"] += 1
    assert victim.read_bytes() == b"precious"
    assert not victim.with_name("nothing").exists()


@pytest.mark.parametrize("damaged", [b"", CONTENT[:-1], CONTENT[:-1] + b"\0", CONTENT + b"x"], ids=len)
def test_a_damaged_file_is_set_aside(run: Run, place: Place, damaged: bytes, tried: Counter[str]) -> None:
    """One that does not have the digest any more is replaced, and where it went is told."""
    run()
    place.path.write_bytes(damaged)
    fetched = run()
    tried["damaged file"] += 1
    assert fetched.n_bytes == len(CONTENT)
    assert fetched.set_aside is not None
    assert fetched.set_aside.read_bytes() == damaged
    assert place.path.read_bytes() == CONTENT


def test_a_file_that_cannot_be_read_is_left(
    run: Run, place: Place, monkeypatch: pytest.MonkeyPatch, tried: Counter[str]
) -> None:
    """It may be whole, and another user's: it is told, not set aside."""
    run()
    real = Path.open

    def refusing(path: Path, *words: object, **named: object) -> object:
        if path == place.path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *words, **named)  # type: ignore[call-overload]  # whatever was given

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(DownloadError, match="permission denied"):
        run()
    tried["planted file"] += 1
    assert place.path.exists()


def test_a_hub_that_lists_a_wrong_size_does_not_cost_the_file(run: Run, hub: Hub, place: Place) -> None:
    """What has the digest is right, whoever says what of its size."""
    run()
    with pytest.raises(RemoteError, match="is listed with 5 bytes"):
        run(source_of(hub, size=5))
    assert place.path.read_bytes() == CONTENT


def test_what_takes_a_damaged_file_s_place_needs_room(run: Run, hub: Hub, place: Place, free: list[int]) -> None:
    """It was thought to be here, so that nobody counted it; the one that can be removed is named."""
    place.path.parent.mkdir(parents=True)
    place.path.write_bytes(b"x" + CONTENT[1:])
    with pytest.raises(DiskFullError, match="are to come") as caught:
        run()
    aside = place.path.with_name(f"{DIGEST}.corrupt")
    assert caught.value.details[-1] == f"what was here is damaged: remove {aside}"
    assert hub.log == []
    aside.unlink()
    free[0] = len(CONTENT) + MIN_MARGIN_BYTES
    run()
    check_whole(place)


def test_a_size_that_only_the_server_knows_needs_room_too(run: Run, hub: Hub, place: Place, free: list[int]) -> None:
    """A disk is not filled to its end with what could never find room on it; what is here already counts."""
    half = len(CONTENT) // 2
    begin(place, CONTENT[:half])
    free[0] = len(CONTENT) - half + MIN_MARGIN_BYTES - 1
    with pytest.raises(DiskFullError, match=r"are to come \(1 file\)"):
        run(source_of(hub, size=None))
    assert place.partial.read_bytes() == CONTENT[:half]
    free[0] += 1
    assert run(source_of(hub, size=None)).n_bytes == len(CONTENT) - half
    check_whole(place)


@pytest.mark.slow
def test_a_disk_that_is_full_is_told(hub: Hub, tmp_path: Path, tried: Counter[str]) -> None:
    """What has come is kept, and a later run with room goes on from there. The disk is a limit on the size of files."""
    hub.files = {"o/r": {"f.gguf": CONTENT}}
    folder = tmp_path / "blobs"
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.fetch import test_download as t\n"
        "from launcher.fetch.web import Web\n"
        "hub = t.Hub(url=sys.argv[1])\n"
        "try: t.download(Web(), t.source_of(hub), t.place_in(Path(sys.argv[2])), tell=t.quiet)\n"
        "except t.DiskFullError as error: print(error.message); print(error.help)\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = subprocess.run(
        [sys.executable, "-c", code, hub.url, folder],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=limit,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2])])},
    )
    tried["full disk"] += 1
    assert "finds no more room" in result.stdout, result.stderr
    assert "HF_HUB_CACHE" in result.stdout
    place = place_in(folder)
    check_absent(place)
    assert place.partial.read_bytes() == CONTENT[:100_000]
    assert download(Web(), source_of(hub), place, tell=quiet).n_bytes == len(CONTENT) - 100_000
    check_whole(place)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EIO, DownloadError)]
)
def test_what_the_disk_says_is_told(
    run: Run,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    *,
    number: int,
    kind: type[LauncherError],
    tried: Counter[str],
) -> None:
    """A quota, a broken disk: as what they are, after any number of bytes."""
    real = os.pwrite
    written = [0]

    def failing(descriptor: int, data: bytes, offset: int) -> int:
        if written[0] > 100_000:
            raise OSError(number, os.strerror(number))
        n = real(descriptor, data[: len(data) // 2 + 1], offset)  # and a short write is not the end
        written[0] += n
        return n

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(kind) as caught:
        run()
    tried["failing disk"] += 1
    assert type(caught.value) is kind
    check_absent(place)
    monkeypatch.undo()
    run()
    assert place.path.read_bytes() == CONTENT


# --- Several at once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5])
def test_several_share_one_download(hub: Hub, place: Place, n: int) -> None:
    """The file goes over the network once; those who wait see it grow, and end with the same file."""
    hub.files = {"o/r": {"f.gguf": CONTENT}}
    hub.fault = always(partial(_trickle, n=20_000, tick=threading.Event()))
    told: list[list[Phase]] = [[] for _ in range(n)]
    results: list[Fetched] = []

    def work(idx: int) -> None:
        def tell(phase: Phase, *_: object) -> None:
            told[idx].append(phase)

        results.append(download(Web(), source_of(hub), place, tell=tell))

    threads = [threading.Thread(target=work, args=(idx,)) for idx in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    check_whole(place)
    assert sorted(fetched.n_bytes for fetched in results) == [0] * (n - 1) + [len(CONTENT)]
    assert len(hub.log) == 1
    assert sum(Phase.SHARING in phases for phases in told) >= 1


def test_who_waits_takes_over_from_one_that_fails(hub: Hub, place: Place) -> None:
    """The next goes on from what the first had, when the lock is free."""
    hub.files = {"o/r": {"f.gguf": CONTENT}}
    entered, waiting = threading.Event(), threading.Event()

    def half(handler: Handler) -> bool:
        if len(hub.log) > 1:
            return False
        handler.send(200, CONTENT[:150_000], {"Content-Length": str(len(CONTENT)), "ETag": '"one"'})
        handler.wfile.flush()
        entered.set()
        waiting.wait(20)
        handler.close_connection = True
        return True

    hub.fault = half

    def fail(_seconds: float) -> None:
        raise KeyboardInterrupt

    def first() -> None:
        with pytest.raises(KeyboardInterrupt):
            download(Web(), source_of(hub), place, tell=quiet, sleep=fail)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(20)

    def tell(phase: Phase, *_: object) -> None:
        if phase is Phase.SHARING:
            waiting.set()

    fetched = download(Web(), source_of(hub), place, tell=tell)
    thread.join(20)
    assert fetched.n_bytes == len(CONTENT) - 150_000
    check_whole(place)


def test_a_lock_file_that_is_removed_lets_nobody_in_twice(tmp_path: Path) -> None:
    """Who waited on a file that is gone locks the one that has its name now."""
    from launcher.fetch.locks import exclusive  # noqa: PLC0415  of this test alone

    path = tmp_path / "x.lock"
    order: list[str] = []
    inside, go = threading.Event(), threading.Event()

    def holder() -> None:
        with exclusive(path, waiting=lambda: None):
            inside.set()
            assert go.wait(20)
            path.unlink()

    thread = threading.Thread(target=holder)
    thread.start()
    assert inside.wait(20)
    with exclusive(path, waiting=go.set):
        order.append("in")
        assert path.exists()
    thread.join(20)
    assert order == ["in"]
