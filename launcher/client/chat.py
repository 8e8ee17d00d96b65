"""Have a question answered by an endpoint, and pass the answer on piece by piece.

It must not know terminals nor what a conversation is shown as. An endpoint that is not there yet, or whose engine is being
started again, is asked once more; an answer that has begun is never asked for again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Final

from launcher.client.chat_events import CUT, ChatStream, Piece, Said, read_fault
from launcher.client.endpoint import FAULTS, Endpoint, UnreachedError, call
from launcher.errors import AnswerIncompleteError, ContextExceededError, EndpointAccessError, EndpointError
from launcher.units import MIB

PATH: Final = "/v1/chat/completions"
_OK: Final = 200
_REFUSES_KEY: Final = frozenset({401, 403})
_BAD_GATEWAY: Final = 502
_UNAVAILABLE: Final = 503
_STOPPING: Final = "stopping"  # the gateway's word for a server that will not come back
_PREFIX: Final = "the answer is not complete: "  # the gateway's, of a stream that it ends; it is said here anyway
_PAUSE_S: Final = 1.0
_MAX_PAUSE_S: Final = 60.0
_MAX_LINE: Final = 4 * MIB
_MAX_FAULT: Final = 64 * 1024
_NOT_YET: Final = "it does not listen yet"
_NOBODY: Final = "nothing listens at its address"
_EVENTS: Final = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """One question, and who is told what of it.

    ``locate`` says where the endpoint is now, ``None`` while nothing listens there yet, and raises once it has ended.
    ``tell`` hears why it takes long.
    """

    locate: Callable[[], Endpoint | None]
    body: Callable[[Endpoint], bytes]
    on_piece: Callable[[Piece], None]
    tell: Callable[[str], None]
    on_wait: Callable[[], None] = lambda: None
    """Called once a second while the answer has not begun."""
    patience_s: float = 600.0
    """For the endpoint to take the request; once it has, there is no bound."""
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.monotonic


class _AwayError(Exception):
    """It cannot be answered now; ``after_s`` is when to ask again."""

    def __init__(self, why: str, after_s: float) -> None:
        super().__init__(why)
        self.why, self.after_s = why, after_s


def have_answered(asking: Asking) -> ChatStream:
    """Return what came of the answer, which is whole or was cut at a limit of tokens.

    Raises:
        NotServedError: as ``locate`` says.
        EndpointAccessError: the endpoint wants a key, or another one.
        ContextExceededError: what was sent is longer than the context.
        AnswerIncompleteError: the answer ended in the middle.
        EndpointError: it refused, or was away for longer than ``patience_s``.
    """
    give_up_s = asking.now() + asking.patience_s
    while True:
        try:
            return _ask(asking)
        except _AwayError as away:
            left_s = give_up_s - asking.now()
            if left_s <= 0:
                message = f"no answer within {asking.patience_s:g} s: {away.why}"
                raise EndpointError(message, help="`launch ps` shows what is served and how it is") from None
            asking.tell(away.why)
            asking.sleep(min(away.after_s, left_s))


def _ask(asking: Asking) -> ChatStream:
    endpoint = asking.locate()
    if endpoint is None:
        raise _AwayError(_NOT_YET, _PAUSE_S)
    try:
        with call(endpoint, "POST", PATH, asking.body(endpoint), on_wait=asking.on_wait) as response:
            if response.status != _OK:
                raise _judge(endpoint, response)
            if response.headers.get_content_type() != _EVENTS:
                message = f"the endpoint of `{endpoint.name}` answered with no stream of events"
                raise EndpointError(message, help=f"see what serves there: `launch status {endpoint.name}`")
            return _read(endpoint, response, asking.on_piece)
    except UnreachedError:
        asking.locate()  # it says so where the instance has ended
        raise _AwayError(_NOBODY, _PAUSE_S) from None


def _read(endpoint: Endpoint, response: HTTPResponse, on_piece: Callable[[Piece], None]) -> ChatStream:
    """Pass a stream on to its end."""
    stream = ChatStream()
    try:
        while not stream.is_done and (line := response.readline(_MAX_LINE)):
            piece = stream.feed(line)
            if piece is not None:
                on_piece(piece)
    except FAULTS as error:
        if stream.finish_reason is None:
            raise _lost(endpoint, "the connection broke") from error
    except ValueError as error:
        raise _lost(endpoint, "an event came that is none of a chat") from error
    if stream.error is not None and stream.error.is_of_context:
        raise _too_long(endpoint, stream.error)
    if stream.error is not None:
        raise _lost(endpoint, stream.error.text.removeprefix(_PREFIX))
    if not stream.is_whole and stream.finish_reason != CUT:
        raise _lost(endpoint, "the connection ended")
    return stream


def _judge(endpoint: Endpoint, response: HTTPResponse) -> Exception:
    """Return what an answer with an error's status means."""
    try:
        said = read_fault(response.read(_MAX_FAULT))
    except FAULTS as error:
        said = Said(message=str(error))
    status = response.status
    if status in _REFUSES_KEY:
        kind = "wants an API key" if endpoint.api_key is None else "does not take this API key"
        return EndpointAccessError(
            f"the endpoint of `{endpoint.name}` {kind}",
            help="give the file that it is served with (`--api-key-file`), or set LAUNCHER_API_KEY",
        )
    if status == _UNAVAILABLE and said.code != _STOPPING:
        after_s = _seconds(response.headers.get("Retry-After"))
        if after_s is not None:
            return _AwayError(said.text or "its engine is not available", after_s)
    if said.is_of_context:
        return _too_long(endpoint, said)
    message = f"the endpoint of `{endpoint.name}` refused with status {status}: {said.text or 'it does not say why'}"
    help_ = f"look at it with `launch status {endpoint.name}` and `launch logs {endpoint.name}`"
    if status == _BAD_GATEWAY:  # llama-cpp-python 0.3.36 does: its stream breaks off, and only its log says why
        help_ += "; some engines break off where a conversation is longer than their context"
    return EndpointError(message, help=help_)


def _seconds(retry_after: str | None) -> float | None:
    """Return a wait in seconds within bounds; a date, which no endpoint of ours sends, counts as the shortest."""
    if retry_after is None:
        return None
    text = retry_after.strip()
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0  # noqa: PLR2004 - no more digits than a year has seconds
    return min(_MAX_PAUSE_S, max(_PAUSE_S, float(seconds)))


def _lost(endpoint: Endpoint, why: str) -> AnswerIncompleteError:
    message = f"the answer of `{endpoint.name}` is not whole: {why}"
    return AnswerIncompleteError(message, help=f"ask again; `launch status {endpoint.name}` says how it is")


def _too_long(endpoint: Endpoint, said: Said) -> ContextExceededError:
    figures = ""
    if said.n_prompt_tokens is not None and said.n_ctx is not None:
        figures = f": {said.n_prompt_tokens} tokens, where {said.n_ctx} is all that fits"
    return ContextExceededError(
        f"this is longer than the context of `{endpoint.name}`{figures}",
        details=(said.text,) if said.text else (),
        help=f"say less, or serve a larger context: `launch serve {endpoint.name} --context N`",
    )
