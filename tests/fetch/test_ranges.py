"""A remote file as a stream: the same bytes, few of them, of one file, or a named fault."""

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import LauncherError, RemoteError, RemoteMissingError
from launcher.fetch import web as web_module
from launcher.fetch.ranges import BLOCK_BYTES, MAX_REQUEST_BYTES, RangeStream
from launcher.fetch.web import MAX_ATTEMPTS, MAX_WAIT_S, Token, Web, _check_body, origin
from tests.fakes.hub import Fault, Handler, Hub, always, serve

CONTENT = b"".join(hashlib.sha256(idx.to_bytes(4, "little")).digest() for idx in range(20 * BLOCK_BYTES // 32)) + b"end"
BIG = 160 * BLOCK_BYTES


@pytest.fixture(scope="module")
def still() -> Iterator[str]:
    """The address of ``CONTENT`` on a server that lives as long as the module."""
    with serve(Hub(files={"o/r": {"f.gguf": CONTENT}})) as hub:
        yield f"{hub.url}/o/r/resolve/main/f.gguf"


def _open(hub: Hub, web: Web, content: bytes = CONTENT) -> RangeStream:
    hub.files = {"o/r": {"f.gguf": content}}
    return RangeStream(web, f"{hub.url}/o/r/resolve/main/f.gguf")


def _read_all(stream: RangeStream) -> bytes:
    parts = []
    while part := stream.read(1 << 20):
        parts.append(part)
    return b"".join(parts)


def _once(fault: Callable[[Handler], None], *, times: int = 1) -> Fault:
    """Misbehave the first ``times`` times."""
    left = [times]

    def answer(handler: Handler) -> bool:
        if left[0] <= 0:
            return False
        left[0] -= 1
        fault(handler)
        return True

    return answer


def _cut(handler: Handler) -> None:
    handler.send(206, CONTENT[:100], {"Content-Range": f"bytes 0-65535/{len(CONTENT)}", "Content-Length": "65536"})
    handler.close_connection = True


@given(steps=st.lists(st.tuples(st.integers(0, len(CONTENT) + 10), st.integers(1, 3 * BLOCK_BYTES)), max_size=8))
def test_any_reading_gives_the_bytes_of_the_file(still: str, steps: list[tuple[int, int]]) -> None:
    """Wherever one seeks and however much one asks for, what comes is what stands there, and something comes."""
    stream = RangeStream(Web(), still)
    assert stream.size_bytes == len(CONTENT)
    for offset, n in steps:
        assert stream.seek(offset) == offset
        part = stream.read(n)
        assert part == CONTENT[offset : offset + len(part)]
        assert bool(part) == (offset < len(CONTENT))
        assert stream.tell() == offset + len(part)


def test_reading_in_order_takes_few_requests(hub: Hub, web: Web) -> None:
    """Requests grow up to their bound, no byte comes twice."""
    content = bytes(BIG)
    assert _read_all(_open(hub, web, content)) == content
    assert hub.n_sent == web.n_bytes == BIG
    assert max(asked.n_sent for asked in hub.log) == MAX_REQUEST_BYTES
    assert len(hub.log) == web.n_requests <= 3 + BIG // MAX_REQUEST_BYTES + 1


def test_a_jump_reads_one_block(hub: Hub, web: Web) -> None:
    """After a seek only a block is read; nothing of what was stepped over is."""
    stream = _open(hub, web, bytes(BIG))
    stream.seek(100 * BLOCK_BYTES + 5)
    assert len(stream.read(10)) == 10
    assert [asked.n_sent for asked in hub.log] == [BLOCK_BYTES, BLOCK_BYTES]


def test_an_empty_file_is_empty(hub: Hub, web: Web) -> None:
    """A server cannot send a range of nothing (416), which is no fault."""
    stream = _open(hub, web, b"")
    assert (stream.size_bytes, stream.read(10)) == (0, b"")


def test_a_small_file_may_come_whole(hub: Hub, web: Web) -> None:
    """A server without ranges serves where the file is small anyway."""
    hub.fault = _once(lambda handler: handler.send(200, CONTENT), times=1)
    assert _read_all(_open(hub, web)) == CONTENT
    assert len(hub.log) == 1


def test_a_big_file_must_come_in_parts(hub: Hub, web: Web) -> None:
    """A server that ignores Range is told by what it announces, before the file is read."""

    def whole(handler: Handler) -> bool:
        handler.send(200, b"", {"Content-Length": str(40 << 30)})
        handler.close_connection = True
        return True

    hub.fault = whole
    with pytest.raises(RemoteError, match="sends the whole file where a part was asked for") as caught:
        _open(hub, web)
    assert "does not serve parts" in str(caught.value.help)
    assert web.n_bytes == 0


@pytest.mark.parametrize(
    "content_range",
    [
        "",
        "bytes 0-65535/*",
        "bytes 1-65536/1310723",
        "bytes 0-65534/1310723",
        "bytes 0-99999/1310723",
        "bytes 0-65535/65000",
        "bytes 0-65535/9999999999999999999",
        "bytes 0-65535/99999999999999999999999999",
        "items 0-65535/1310723",
        "bytes 0-65535/13\x1b[31m",
    ],
)
def test_a_wrong_content_range_is_a_fault(hub: Hub, web: Web, content_range: str) -> None:
    """A part that is not the part asked for, or of a file of no size, is not used, and cannot steer the terminal."""
    hub.fault = _once(lambda handler: handler.send(206, bytes(65536), {"Content-Range": content_range}))
    with pytest.raises(RemoteError) as caught:
        _open(hub, web)
    assert caught.value.help
    assert caught.value.message.isprintable()


def test_a_cut_connection_is_tried_again(hub: Hub, web: Web, waits: list[float]) -> None:
    """What broke once is asked for again, after a pause."""
    hub.fault = _once(_cut)
    assert _read_all(_open(hub, web)) == CONTENT
    assert len(waits) == 1


def test_what_keeps_breaking_is_a_fault(hub: Hub, web: Web, waits: list[float]) -> None:
    """Attempts are bounded, pauses grow, and the fault tells how often it was tried."""
    hub.fault = _once(_cut, times=99)
    with pytest.raises(RemoteError) as caught:
        _open(hub, web)
    assert caught.value.details == (f"tried {MAX_ATTEMPTS} times",)
    assert len(hub.log) == MAX_ATTEMPTS
    assert waits == sorted(waits)
    assert len(waits) == MAX_ATTEMPTS - 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_status_is_tried_again(hub: Hub, web: Web, waits: list[float], status: int) -> None:
    """The server's own word on how long to wait is kept."""
    hub.fault = _once(lambda handler: handler.send(status, b"busy", {"Retry-After": "7"}), times=2)
    assert _read_all(_open(hub, web)) == CONTENT
    assert waits == [7.0, 7.0]


@pytest.mark.parametrize("text", ["-1", "soon", "Fri, 99 Xxx 2026", "9" * 400])
def test_a_senseless_retry_after_does_no_harm(hub: Hub, web: Web, waits: list[float], text: str) -> None:
    """Neither a wait without end nor a traceback comes from a header."""
    hub.fault = _once(lambda handler: handler.send(503, b"", {"Retry-After": text}))
    try:
        _open(hub, web)
    except RemoteError as error:
        assert "asks to wait" in error.message  # noqa: PT017  either is right
    assert all(0 <= wait <= MAX_WAIT_S for wait in waits)


def test_a_long_wait_is_not_waited(hub: Hub, web: Web, waits: list[float]) -> None:
    """A server that wants an hour is told to the user at once."""
    hub.fault = _once(lambda handler: handler.send(429, b"", {"Retry-After": "3600"}))
    with pytest.raises(RemoteError, match="answered 429 and asks to wait 3600 s"):
        _open(hub, web)
    assert waits == []


def test_a_server_that_does_not_answer_is_a_fault(waits: list[float]) -> None:
    """Each attempt ends by the time without a byte, not by the server's leave."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/f.gguf"
        with pytest.raises(RemoteError, match="does not answer in time"):
            RangeStream(Web(timeout_s=0.05, sleep=waits.append), url)
    assert len(waits) == MAX_ATTEMPTS - 1


def test_a_server_that_trickles_is_given_up(hub: Hub, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that keep coming do not keep us beyond the bound for one answer."""
    monkeypatch.setattr(web_module, "MAX_ANSWER_S", 0.0)
    with pytest.raises(RemoteError, match="sends too slowly"):
        _open(hub, web)


def test_no_server_is_a_fault(web: Web, waits: list[float]) -> None:
    """A refused connection is told at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RemoteError, match=r"there is no connection to 127\.0\.0\.1"):
        RangeStream(web, f"http://127.0.0.1:{port}/f.gguf")
    assert waits == []


def test_a_dead_proxy_is_a_fault(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond loopback the environment's proxy is asked; where it is dead that is said, without its password."""
    monkeypatch.setenv("http_proxy", "http://user:hunter2@127.0.0.1:9")
    with pytest.raises(RemoteError, match=r"the proxy between here and nowhere\.invalid cannot be used") as caught:
        RangeStream(web, "http://nowhere.invalid/f.gguf")
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_missing_is_told(hub: Hub, web: Web) -> None:
    """404 has its own fault."""
    with pytest.raises(RemoteMissingError, match="answered 404"):
        RangeStream(web, f"{hub.url}/o/r/resolve/main/none.gguf")


def test_a_file_that_changes_is_told(hub: Hub, web: Web) -> None:
    """Two halves of two files are no file: the entity tag and If-Range see to it."""
    stream = _open(hub, web)
    hub.etag = lambda: '"two"'
    stream.seek(5 * BLOCK_BYTES)
    with pytest.raises(RemoteError, match="was changed while it was read"):
        stream.read(1)


def test_a_big_file_that_changes_is_told(hub: Hub, web: Web) -> None:
    """There If-Range makes the server send all of it, which is not read."""
    stream = _open(hub, web, bytes(BIG))
    hub.etag = lambda: '"two"'
    stream.seek(5 * BLOCK_BYTES)
    with pytest.raises(RemoteError, match="was changed while it was read"):
        stream.read(1)
    assert web.n_bytes == BLOCK_BYTES


@pytest.mark.parametrize("etag", ['W/"weak"', None])
def test_a_size_that_changes_is_told(hub: Hub, web: Web, etag: str | None) -> None:
    """Without a strong tag If-Range is not sent, and the size must tell."""
    hub.etag = lambda: etag
    stream = _open(hub, web)
    hub.files["o/r"]["f.gguf"] = CONTENT + b"more"
    stream.seek(5 * BLOCK_BYTES)
    with pytest.raises(RemoteError, match="was changed while it was read"):
        stream.read(1)
    assert "if-range" not in hub.log[-1].headers


def test_another_size_than_listed_is_told(hub: Hub, web: Web) -> None:
    """What the hub lists and what its files have must agree."""
    hub.files = {"o/r": {"f.gguf": CONTENT}}
    with pytest.raises(RemoteError, match=f"has {len(CONTENT)} bytes where 7 are listed"):
        RangeStream(web, f"{hub.url}/o/r/resolve/main/f.gguf", expected_bytes=7)


def test_the_token_stays_at_home(hub: Hub) -> None:
    """A redirect to another host is followed without the token, later ranges go there at once, and no signature is shown."""
    with serve(Hub(files={"o/r": {"f.gguf": CONTENT}}), "127.0.0.2") as cdn:
        hub.cdn, hub.token = cdn.url, "hf_secret"
        web = Web(token=Token(secret="hf_secret", origin=origin(hub.url)))  # noqa: S106  a secret for the test
        stream = _open(hub, web)
        assert _read_all(stream) == CONTENT
        assert [asked.headers.get("authorization") for asked in hub.log] == ["Bearer hf_secret"]
        assert len(cdn.log) > 2
        assert not any("authorization" in asked.headers for asked in cdn.log)
        cdn.etag = lambda: '"two"'
        other = RangeStream(web, f"{hub.url}/o/r/resolve/main/f.gguf")
        cdn.etag = lambda: '"three"'
        other.seek(3 * BLOCK_BYTES)
        with pytest.raises(RemoteError) as caught:
            other.read(1)
    assert "secret" not in str(caught.value)


def test_the_same_host_on_another_port_is_another_origin(hub: Hub) -> None:
    """Who listens on another port need not be who the token is for."""
    with serve(Hub(files={"o/r": {"f.gguf": CONTENT}})) as cdn:
        hub.cdn = cdn.url
        _open(hub, Web(token=Token(secret="hf_secret", origin=origin(hub.url))))  # noqa: S106  a secret for the test
        assert "authorization" in hub.log[0].headers
        assert "authorization" not in cdn.log[0].headers


def test_an_expired_redirect_is_asked_for_again(hub: Hub, web: Web) -> None:
    """Signed addresses last minutes: when one is refused, the hub is asked for another."""
    with serve(Hub(files={"o/r": {"f.gguf": CONTENT}})) as cdn:
        hub.cdn = cdn.url
        stream = _open(hub, web)
        cdn.fault = _once(lambda handler: handler.send(403))
        assert stream.read(BLOCK_BYTES) == CONTENT[:BLOCK_BYTES]
        assert stream.read(10) == CONTENT[BLOCK_BYTES : BLOCK_BYTES + 10]
        assert len(hub.log) == 2


def test_redirects_end(hub: Hub, web: Web) -> None:
    """A circle of redirects is a fault, after a few."""

    def again(handler: Handler) -> bool:
        handler.send(302, b"", {"Location": handler.path})
        return True

    hub.fault = again
    with pytest.raises(RemoteError, match="redirects"):
        _open(hub, web)
    assert len(hub.log) < 10


@pytest.mark.parametrize(
    "location",
    [
        *(
            "file:///etc/passwd",
            "ftp://127.0.0.1/x",
            "",
            "http://",
            "http://[",
            "//",
            "http://127.0.0.1:port/",
            "http://127.0.0.1:99999/",
        ),
        *(
            "http://" + "a" * 70 + ".invalid/",
            "http://" + "a." * 200 + "/",
            "http://%zz/",
            "http://\xff/",
            "javascript:alert(1)",
        ),
    ],
)
def test_a_redirect_out_of_the_web_is_refused(hub: Hub, web: Web, location: str) -> None:
    """Only http and https are followed."""
    hub.fault = always(lambda handler: handler.send(302, b"", {"Location": location} if location else {}))
    with pytest.raises(RemoteError):
        _open(hub, web)


def test_a_redirect_never_loses_protection() -> None:
    """From https the way leads to https only."""
    assert web_module.next_url("https://hub/a", "/b") == "https://hub/b"
    with pytest.raises(RemoteError, match="must not be followed"):
        web_module.next_url("https://hub/a", "http://hub/b")


def test_a_compressed_answer_is_refused(hub: Hub, web: Web) -> None:
    """It was not asked for, and a small one may unpack to anything."""
    hub.fault = _once(lambda handler: handler.send(206, b"x", {"Content-Encoding": "gzip"}))
    with pytest.raises(RemoteError, match="compressed"):
        _open(hub, web)


def test_all_answers_together_are_bounded(hub: Hub) -> None:
    """The bound is on what all threads and files read, and the fault says what to do."""
    web = Web(limit_bytes=3 * BLOCK_BYTES)
    stream = _open(hub, web)
    with pytest.raises(RemoteError, match="192 KiB") as caught:
        _read_all(stream)
    assert "FILE.gguf" in str(caught.value.help)


def test_garbage_is_no_answer(web: Web) -> None:
    """What does not speak HTTP is a named fault, not a traceback."""

    def answer(listener: socket.socket) -> None:
        for _ in range(MAX_ATTEMPTS):
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,), daemon=True)
        thread.start()
        with pytest.raises(LauncherError):
            RangeStream(web, f"http://127.0.0.1:{listener.getsockname()[1]}/f.gguf")
        thread.join()


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "²", "1, 1", ""])
def test_an_announced_length_that_is_none_is_a_fault(length: str) -> None:
    """Python refuses to read thousands of digits as a number, and that is no fault of ours to tell (found by `make fuzz`)."""
    with pytest.raises(RemoteError):
        _check_body("https://hub.example/x", {"content-length": length})
