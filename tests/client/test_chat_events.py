"""What the lines of a stream come to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.client.chat_events import ChatStream, Piece, read_fault
from tests.fakes.scripted import DONE, event


def feed(*data: bytes) -> tuple[ChatStream, list[Piece]]:
    """Feed what came, line by line."""
    stream = ChatStream()
    pieces = [stream.feed(line) for line in b"".join(data).splitlines(keepends=True)]
    return stream, [piece for piece in pieces if piece is not None]


def test_the_pieces_are_the_answer() -> None:
    """Comments, blank lines, names of events and events without text add nothing; a role and a usage are no text."""
    stream, pieces = feed(
        b": ping\r\n\r\nevent: message\n",
        event(role="assistant"),
        event("two "),
        event("words"),
        event(finish="stop"),
        b'data:{"choices":[],"usage":{"completion_tokens":2}}\n\n',
        DONE,
    )
    assert "".join(piece.text for piece in pieces) == "two words"
    assert stream.is_whole
    assert stream.is_done


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_what_a_model_thinks_is_no_answer(field: str) -> None:
    """It comes apart, under either engine's name for it."""
    _, pieces = feed(event(**{field: "hm"}), event("yes"))
    assert pieces == [Piece(thought="hm"), Piece(text="yes")]


@pytest.mark.parametrize(
    "said",
    [
        b'data: {"error":{"message":"the answer is not complete: gone","type":"server_error","code":"engine-lost"}}\n\n',
        b'data: {"error":{"message":"compute error","code":500}}\n\n',
        b'data: {"error":"compute error"}\n\n',
    ],
)
def test_an_error_is_the_last_word(said: bytes) -> None:
    """The gateway's event and engines' own: the answer has ended, and is not whole, whatever came before."""
    stream, _ = feed(event("a"), event(finish="stop"), said)
    assert stream.is_done
    assert not stream.is_whole
    assert stream.error is not None
    assert stream.error.text


def test_an_answer_at_a_limit_is_not_whole() -> None:
    """Nor is one of which nobody said that it has ended."""
    assert not feed(event("a"), event(finish="length"), DONE)[0].is_whole
    assert not feed(event("a"))[0].is_whole


@pytest.mark.parametrize(
    ("body", "is_of_context"),
    [
        (b'{"error":{"code":400,"message":"request (9 tokens) exceeds","type":"exceed_context_size_error"}}', True),
        (b'{"error":{"code":"context_length_exceeded","message":"x","type":"invalid_request_error"}}', True),
        (b'{"error":{"code":400,"message":"This model\'s maximum context length is 128 tokens."}}', True),
        (b'{"object":"error","message":"the prompt is longer than the context length"}', True),
        (b'{"error":{"code":400,"message":"messages are missing"}}', False),
        (b'{"detail":"Not Found"}', False),
        (b"Bad Gateway", False),
        (b"\xff\xfe", False),
    ],
)
def test_what_is_too_long_is_known_in_each_engines_words(body: bytes, *, is_of_context: bool) -> None:
    """llama-server's, llama-cpp-python's and vLLM's; what is none of the known forms is said as it is."""
    said = read_fault(body)
    assert said.is_of_context is is_of_context
    assert said.text
    assert said.text.isprintable()


def test_a_servers_words_do_not_steer_a_terminal() -> None:
    """They are one line of printable characters, and not many."""
    text = read_fault(b'{"error":{"message":"a\\u001b[2Jb\\nc' + b"d" * 9999 + b'"}}').text
    assert text.startswith("a\ufffd[2Jb c")
    assert len(text) == 300


def test_an_event_nested_too_deep_is_named_wrong() -> None:
    """Whoever took the port may send any JSON: it is a fault in words, never a traceback."""
    deep = b'{"x":' + b"[" * 100_000
    with pytest.raises(ValueError, match="nested too deep"):
        ChatStream().feed(b"data: " + deep)
    assert read_fault(deep).text.startswith('{"x":[[[')


@given(st.binary())
def test_any_line_is_taken_or_named_wrong(line: bytes) -> None:
    """No bytes do anything but add to the answer, or raise what says that they are no event."""
    for data in (line, b"data: " + line):
        try:
            ChatStream().feed(data)
        except ValueError:
            continue
    assert isinstance(read_fault(line).text, str)
