"""Framing streams of events, and ending them."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.gateway import events
from launcher.gateway.events import Dialect, EventStream, Took, dialect_of, error_event, read_took

_BLANK = st.sampled_from(["\n", "\r\n"])
_TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


@st.composite
def _streams(draw: st.DrawFn) -> tuple[list[bytes], bytes, list[int]]:
    """Draw whole events, a half one after them, and places at which the network cuts the whole."""
    eol = draw(_BLANK)
    lines = st.sampled_from(["data: ", "event: ", ": "]).flatmap(lambda start: _TEXT.map(lambda text: start + text))
    whole = draw(st.lists(st.lists(lines, min_size=1, max_size=3), max_size=6))
    encoded = [(eol.join(event) + eol + eol).encode() for event in whole]
    half = draw(st.sampled_from([b"", b"data: {", b"data: x" + eol.encode()]))
    size = len(b"".join(encoded) + half)
    return encoded, half, sorted(draw(st.lists(st.integers(0, size), max_size=8)))


@given(_streams())
def test_only_whole_events_are_passed_on_and_all_of_them(drawn: tuple[list[bytes], bytes, list[int]]) -> None:
    """However the bytes arrive: every piece passed on ends an event, and together they are what came, less a half one."""
    whole, half, cuts = drawn
    data = b"".join(whole) + half
    stream = EventStream(Dialect.NATIVE)
    passed = [stream.feed(data[a:b]) for a, b in pairwise([0, *cuts, len(data)]) if a < b]
    assert all(piece.endswith((b"\n\n", b"\r\n\r\n")) for piece in passed if piece)
    assert b"".join(passed) + stream.rest() == data
    assert stream.rest() == half
    n_data = sum(line.startswith(b"data:") for line in b"".join(whole).splitlines())
    assert stream.n_events == n_data
    assert stream.take_new_events() == n_data
    assert stream.take_new_events() == 0
    assert stream.can_be_told


def test_an_event_without_end_is_passed_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not kept without bound; inside of it nothing can be said, after it again."""
    monkeypatch.setattr(events, "_N_CARRY", 10)
    stream = EventStream(Dialect.COMPLETIONS)
    assert stream.feed(b"data: 5678") == b""
    assert stream.feed(b"9012") == b"data: 56789012"
    assert not stream.can_be_told
    assert stream.feed(b"\n\n") == b"\n\n"
    assert stream.can_be_told


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", Dialect.COMPLETIONS),
        ("/chat/completions", Dialect.COMPLETIONS),
        ("/v1/completions", Dialect.COMPLETIONS),
        ("/v1/responses", Dialect.RESPONSES),
        ("/v1/messages", Dialect.MESSAGES),
        ("/completion", Dialect.NATIVE),
        ("/completions", Dialect.NATIVE),
    ],
)
def test_the_path_tells_the_convention(path: str, dialect: Dialect) -> None:
    """llama-server's ``/completion`` and ``/completions`` are its own; the rest follow OpenAI or Anthropic."""
    assert dialect_of(path) is dialect


@pytest.mark.parametrize(
    ("dialect", "last"),
    [
        (Dialect.COMPLETIONS, b"data: [DONE]\n\n"),
        (Dialect.COMPLETIONS, b"data: [DONE]\r\n\r\n"),
        (Dialect.COMPLETIONS, b'data: {"error":{"message":"x"}}\n\n'),
        (Dialect.RESPONSES, b'event: response.completed\ndata: {"type":"response.completed"}\n\n'),
        (Dialect.MESSAGES, b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
        (Dialect.MESSAGES, b'event: error\ndata: {"type":"error"}\n\n'),
        (Dialect.NATIVE, b'data: {"content":"","stop":true}\n\n'),
    ],
)
def test_a_last_word_completes_a_stream(dialect: Dialect, last: bytes) -> None:
    """Before it the stream is not complete, even where the engine closed it in good order; but for streams without one."""
    stream = EventStream(dialect)
    stream.feed(b'data: {"x":1}\n\n')
    assert stream.is_complete(at_end=True) == (dialect is Dialect.NATIVE)
    assert not stream.is_complete(at_end=False)
    stream.feed(last)
    assert stream.is_complete(at_end=False)


def test_words_in_the_text_are_no_last_word() -> None:
    """A model may write of ``[DONE]`` and of errors: inside JSON that is no event."""
    stream = EventStream(Dialect.COMPLETIONS)
    stream.feed(b'data: {"choices":[{"text":"data: [DONE] data: {\\"error\\""}]}\n\n')
    assert not stream.is_complete(at_end=True)


@pytest.mark.parametrize(
    ("answer", "took"),
    [
        (b'{"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}', Took(n_prompt=7, n_generated=5)),
        (b'{"usage":{"input_tokens":7,"output_tokens":5}}', Took(n_prompt=7, n_generated=5)),
        (b'{"response":{"usage":{"input_tokens":7,"output_tokens":5}}}', Took(n_prompt=7, n_generated=5)),
        (b'{"choices":[],"timings":{"prompt_n":7,"predicted_n":5,"x":1.5}}', Took(n_prompt=7, n_generated=5)),
        (b'{"content":"a","tokens_evaluated":7,"tokens_predicted":5}', Took(n_prompt=7, n_generated=5)),
        (b'{"usage":null,"data":[]}', Took()),
        (b'{"usage":"much"}', None),
        (b'{"data":[1,2]}', None),
        (b'"usage" and no JSON', None),
        pytest.param(b'{"usage":{},"x":' + b"[" * 10_000, None, id="nested without end"),
    ],
)
def test_what_a_request_took_is_read_from_its_answer(answer: bytes, took: Took | None) -> None:
    """OpenAI's, Anthropic's and llama.cpp's ways to say it; an answer without it, or without sense, says nothing."""
    assert read_took(answer) == took


def test_a_stream_is_counted_by_the_engine_or_else_by_its_events() -> None:
    """The usage of one of the last events holds; without it, each event is a token."""
    stream = EventStream(Dialect.COMPLETIONS)
    for _ in range(3):
        stream.feed(b'data: {"x":1}\n\n')
    assert stream.took() == Took(n_generated=3)
    stream.feed(b'data: {"usage":{"prompt_tokens":9,"completion_tokens":4}}\n\ndata: [DONE]\n\n')
    assert stream.took() == Took(n_prompt=9, n_generated=4)


@pytest.mark.parametrize("dialect", Dialect)
def test_an_error_event_is_one_whole_event(dialect: Dialect) -> None:
    """It has the fields that each convention's clients read, and whatever the message holds stays inside its line."""
    event = error_event(dialect, 'lost:\n\n"it"', "engine-lost").decode()
    assert event.endswith("\n\n")
    assert event.count("\n\n") == 1
    said = json.loads(event.partition("data: ")[2])
    told = said if dialect is Dialect.RESPONSES else said["error"]
    assert told["message"] == 'lost:\n\n"it"'
    assert event.startswith("event: error\n") == (dialect in {Dialect.RESPONSES, Dialect.MESSAGES})
