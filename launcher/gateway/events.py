"""Frame the server-sent events of a streamed answer, so that a stream that is cut can be ended in words.

Pure. It must not know connections, nor why a stream was cut.

A stream is passed on in whole events: a client cannot use half a one, and after half a one no other can be sent. How an
engine's stream ends, and how an error is said within it, is the client library's convention:

- OpenAI's completions end with ``data: [DONE]``; an event with an ``error`` object makes OpenAI's own clients raise.
- OpenAI's responses end with ``response.completed`` and its like, Anthropic's messages with ``message_stop``; both name
  an event ``error``.
- llama-server's own ``/completion`` ends with ``"stop":true``; other streams may end as they like.

No ``[DONE]`` follows an error: it would tell a client that knows no errors that the answer is whole.
"""

from enum import StrEnum
from typing import Final

import msgspec

from launcher.domain import Noun
from launcher.units import MIB

_N_CARRY: Final = 4 * MIB
"""A longer event is passed on in pieces: then nothing can be said after a cut within it."""
_N_TOLD: Final = 4
"""Events from the last, in which an engine says what a request took."""


class Dialect(StrEnum):
    """Whose convention a stream of events follows."""

    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    NATIVE = "native"


_LAST_WORDS: Final = {
    Dialect.COMPLETIONS: (b"\ndata: [DONE]", b"\ndata:[DONE]"),
    Dialect.RESPONSES: (b"\nevent: response.completed", b"\nevent: response.incomplete", b"\nevent: response.failed"),
    Dialect.MESSAGES: (b"\nevent: message_stop",),
    Dialect.NATIVE: (b'"stop":true',),
}
"""At the start of a line, or with quotes that JSON would escape in a text: a model may write of them."""
_ERROR_SIGNS: Final = (b'\ndata: {"error"', b'\ndata:{"error"', b"\nevent: error", b"\nevent:error")


def dialect_of(path: str) -> Dialect:
    """Return the convention of the streams that a path answers with."""
    if path.endswith(("/v1/chat/completions", "/v1/completions")) or path == "/chat/completions":
        return Dialect.COMPLETIONS
    if path.endswith("/responses"):
        return Dialect.RESPONSES
    return Dialect.MESSAGES if path.endswith("/messages") else Dialect.NATIVE


class Took(Noun, frozen=True):
    """What an engine says that a request took, in tokens."""

    n_prompt: int = 0
    n_generated: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Timings(msgspec.Struct):
    prompt_n: int | None = None
    predicted_n: int | None = None


class _Inner(msgspec.Struct):
    usage: _Usage | None = None


class _Answer(msgspec.Struct):
    """The fields of an answer, or of an event, that say what the request took; OpenAI's, Anthropic's, llama.cpp's."""

    usage: _Usage | None = None
    timings: _Timings | None = None
    response: _Inner | None = None
    tokens_evaluated: int | None = None
    tokens_predicted: int | None = None


_decode_answer: Final = msgspec.json.Decoder(_Answer).decode


def read_took(answer: bytes) -> Took | None:
    """Return what an answer in JSON says that the request took, if it says so."""
    if b'"usage"' not in answer and b'"timings"' not in answer and b'"tokens_predicted"' not in answer:
        return None
    try:
        said = _decode_answer(answer)
    except (msgspec.DecodeError, RecursionError):
        return None
    usage = said.usage or (said.response and said.response.usage) or _Usage()
    timings = said.timings or _Timings()
    n_prompt = (usage.prompt_tokens, usage.input_tokens, timings.prompt_n, said.tokens_evaluated)
    n_generated = (usage.completion_tokens, usage.output_tokens, timings.predicted_n, said.tokens_predicted)
    return Took(
        n_prompt=max(0, next((n for n in n_prompt if n is not None), 0)),  # a counter cannot fall
        n_generated=max(0, next((n for n in n_generated if n is not None), 0)),
    )


def _end_of_events(data: bytes) -> int:
    """Return how many bytes, from the first, are whole events: up to the last blank line."""
    end = data.rfind(b"\n\n") + 2
    crlf = data.rfind(b"\r\n\r\n") + 4
    return max(end if end > 1 else 0, crlf if crlf > 3 else 0)  # noqa: PLR2004 - not found is -1


class EventStream:
    """What of a stream may be passed on, and what has been: feed it the bytes as they come."""

    def __init__(self, dialect: Dialect) -> None:
        """Begin a stream."""
        self.dialect = dialect
        self.n_events = 0
        """Whole events with data that were passed on: with these engines, about one per token."""
        self._carry = b""
        self._recent = (b"", b"")
        self._in_pieces = False
        self._n_noted = 0

    def feed(self, data: bytes) -> bytes:
        """Take what came; return the whole events that it completes, perhaps none."""
        if self._carry:
            data = self._carry + data
            self._carry = b""
        if not data.endswith((b"\n\n", b"\r\n\r\n")):
            end = _end_of_events(data)
            if end == 0 and len(data) > _N_CARRY:
                self._in_pieces = True
                return data
            data, self._carry = data[:end], data[end:]
            if not data:
                return b""
        self._in_pieces = False
        self.n_events += data.count(b"\ndata:") + data.startswith(b"data:")
        self._recent = (self._recent[1], data)
        return data

    def take_new_events(self) -> int:
        """Return how many events came since this was last asked."""
        n, self._n_noted = self.n_events - self._n_noted, self.n_events
        return n

    @property
    def can_be_told(self) -> bool:
        """Whether an event can follow what was passed on; half an event cannot be followed by another."""
        return not self._in_pieces

    def is_complete(self, *, at_end: bool) -> bool:
        """Whether the engine has said its last word, be it an error of its own.

        ``at_end``: it has closed the stream in good order, which is enough where no last word is the convention.
        """
        recent = b"\n" + b"".join(self._recent)
        said = any(word in recent for word in (*_LAST_WORDS[self.dialect], *_ERROR_SIGNS))
        return said or (at_end and self.dialect is Dialect.NATIVE)

    @property
    def has_failed(self) -> bool:
        """Whether the engine has said an error of its own."""
        recent = b"\n" + b"".join(self._recent)
        return any(sign in recent for sign in _ERROR_SIGNS)

    def rest(self) -> bytes:
        """Return what never became a whole event, once the engine has ended the stream."""
        return self._carry

    def took(self) -> Took:
        """Return what the engine said that the request took; otherwise the events are counted as tokens."""
        lines = [line for line in b"".join(self._recent).splitlines() if line.startswith(b"data:")]
        for line in reversed(lines[-_N_TOLD:]):
            told = read_took(line[5:])
            if told is not None:
                return told
        return Took(n_generated=self.n_events)


def error_body(message: str, code: str, status: int) -> bytes:
    """Return an answer's body that says what went wrong, as OpenAI's API says it."""
    return msgspec.json.encode({"error": _describe(message, code, status)})


def _describe(message: str, code: str, status: int) -> dict[str, str | None]:
    kind = {401: "authentication_error", 503: "unavailable_error"}.get(status)
    return {
        "message": message,
        "type": kind or ("invalid_request_error" if status < 500 else "server_error"),  # noqa: PLR2004 - HTTP's classes
        "param": None,
        "code": code,
    }


def error_event(dialect: Dialect, message: str, code: str) -> bytes:
    """Return the event that ends a stream which cannot be completed."""
    match dialect:
        case Dialect.COMPLETIONS | Dialect.NATIVE:
            return b"data: " + error_body(message, code, 500) + b"\n\n"
        case Dialect.RESPONSES:
            event = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": 0}
            return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
        case Dialect.MESSAGES:
            said = {"type": "error", "error": {"type": "api_error", "message": message}}
            return b"event: error\ndata: " + msgspec.json.encode(said) + b"\n\n"
