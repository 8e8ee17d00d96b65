"""Read the events of a streamed chat completion, line by line, and what an endpoint says of a fault. Pure.

It must not know connections. The convention is OpenAI's: each event is a line ``data: JSON``, the last one ``[DONE]``; one
with an ``error`` object ends the stream, and the answer is not whole. What a model thinks before it answers comes as
``reasoning_content`` from llama-server, as ``reasoning`` from newer vLLM.
"""

from typing import Final

import msgspec

from launcher.inventory.text import printable

_MAX_SAID: Final = 300
_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"
CUT: Final = "length"
"""The reason of an answer that ended at a limit of tokens: what was asked for, or the end of the context."""
_CONTEXT_TYPES: Final = frozenset({"exceed_context_size_error", "context_length_exceeded"})
_CONTEXT_WORDS: Final = ("context size", "context length", "context window")


class Said(msgspec.Struct, frozen=True):
    """An error as a server words it."""

    message: str = ""
    code: str | int | None = None
    type: str | None = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None

    @property
    def text(self) -> str:
        """Its words, as they may be shown."""
        return printable(" ".join(self.message.split())[:_MAX_SAID])

    @property
    def is_of_context(self) -> bool:
        """Whether it says that what was sent is longer than the context: engines have no common word for it."""
        if self.type in _CONTEXT_TYPES or self.code in _CONTEXT_TYPES:
            return True
        return any(words in self.message.lower() for words in _CONTEXT_WORDS)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: tuple[_Choice, ...] | None = None
    error: Said | str | None = None


class _Fault(msgspec.Struct):
    error: Said | str | None = None
    message: str | None = None
    detail: str | None = None


class Piece(msgspec.Struct, frozen=True):
    """A part of an answer, as it came: text of the answer itself, and of what the model thinks before."""

    text: str = ""
    thought: str = ""


_decode_event: Final = msgspec.json.Decoder(_Event).decode
_decode_fault: Final = msgspec.json.Decoder(_Fault).decode


class ChatStream:
    """What has come of one answer."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.finish_reason: str | None = None
        self.error: Said | None = None
        self.is_done = False
        """The server has said its last word, be it an error."""

    @property
    def is_whole(self) -> bool:
        """Whether the answer has ended as answers do; one that is ``CUT`` is not whole."""
        ended = self.is_done or self.finish_reason is not None
        return ended and self.error is None and self.finish_reason != CUT

    def feed(self, line: bytes) -> Piece | None:
        """Take one line; return what it adds to the answer, if anything.

        Raises:
            ValueError: it is an event, but none of a chat completion.
        """
        line = line.strip()
        if not line.startswith(_DATA):
            return None  # a blank line between events, a comment, an event's name
        data = line[len(_DATA) :].strip()
        if data == _DONE:
            self.is_done = True
            return None
        try:
            event = _decode_event(data)
        except RecursionError as error:
            message = "it is nested too deep"
            raise ValueError(message) from error
        if event.error is not None:
            self._fail(event.error if isinstance(event.error, Said) else Said(message=event.error))
            return None
        return self._take(event.choices[0]) if event.choices else None

    def _take(self, choice: _Choice) -> Piece | None:
        if choice.finish_reason is not None:
            self.finish_reason = choice.finish_reason
        delta = choice.delta or _Delta()
        thought = delta.reasoning_content or delta.reasoning or ""
        return Piece(text=delta.content or "", thought=thought) if delta.content or thought else None

    def _fail(self, error: Said) -> None:
        self.error = error
        self.is_done = True


def read_fault(body: bytes) -> Said:
    """Return what the body of an answer with an error's status says; its own text where it is none of the known forms."""
    try:
        fault = _decode_fault(body.strip())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Said(message=body.decode("utf-8", "replace"))
    if isinstance(fault.error, Said):
        return fault.error
    return Said(message=fault.error or fault.message or fault.detail or body.decode("utf-8", "replace"))
