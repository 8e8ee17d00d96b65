"""Pass an engine's answer on to a client, as it comes, and end it in words where the engine is lost.

It must not know whose turn it is, nor how the engine was reached; what a loss leads to is decided in `policy`.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp import hdrs, web

from launcher.gateway import policy
from launcher.gateway.client import Client
from launcher.gateway.events import EventStream, Took, dialect_of, error_event, read_took
from launcher.gateway.headers import answer_headers, answer_reason
from launcher.gateway.meters import Meters, Pace
from launcher.gateway.policy import Limits, Loss, Outcome, Remedy

IO_FAULTS: Final = (aiohttp.ClientError, OSError, TimeoutError)
_N_PACED: Final = 24
_EMPTY: Final = frozenset({204, 304})
_ENDED_EARLY: Final = "the engine ended its answer before it was complete"


class LostError(Exception):
    """An attempt ended without a whole answer."""

    def __init__(self, loss: Loss, why: str) -> None:
        """Hold how, and the words for a client."""
        super().__init__(why)
        self.loss, self.why = loss, why


@dataclass(eq=False, slots=True)
class Attempt:
    """A request that an engine works on; the task is what carries it.

    ``on_end`` is called once, when the engine has no more to do with it: the client may still be taking its answer.
    """

    task: asyncio.Task[object]
    began_s: float
    on_end: Callable[["Attempt"], None]
    has_ended: bool = False
    was_alone: bool = True
    """The engine had no other request meanwhile."""
    outcome: Outcome | None = None
    """Of a whole answer, as far as one came."""
    loss: Loss | None = None
    why: str = ""

    def interrupt(self, loss: Loss, why: str) -> None:
        """Take the request back from the engine: its connection is closed, and that ends its work."""
        if self.loss is None and not self.has_ended:
            self.loss, self.why = loss, why
            self.task.cancel()

    def end(self) -> None:
        """Say that the engine has no more to do with it: from now on, losing the engine does not matter."""
        if not self.has_ended:
            self.has_ended = True
            self.on_end(self)

    def absorb(self) -> LostError | None:
        """Return what a cancellation means, where it was only ours: the client may have left in the same moment."""
        if self.loss is None or self.task.uncancel() > 0:
            return None
        return LostError(self.loss, self.why)


class _Events(web.StreamResponse):
    """A streamed answer whose head goes out with its first event: one packet fewer before the first token."""

    _send_headers_immediately = False


class Relay:
    """One answer on its way from an engine to a client."""

    __slots__ = ("_answer", "_attempt", "_client", "_limits", "_loop", "_meters", "_waited_s")

    def __init__(
        self, client: Client, answer: aiohttp.ClientResponse, attempt: Attempt, limits: Limits, meters: Meters
    ) -> None:
        """Begin with the head of the answer."""
        self._client, self._answer, self._attempt = client, answer, attempt
        self._limits, self._meters = limits, meters
        self._loop = asyncio.get_running_loop()
        self._waited_s = 0.0

    async def run(self, path: str) -> web.StreamResponse:
        """Pass the answer on.

        Raises:
            LostError: the engine was lost before the client got anything.
            ConnectionAbortedError: the client's connection was closed, since its answer could not be completed.
            ConnectionError: the client left.
        """
        if self._client.request.method == hdrs.METH_HEAD or self._answer.status in _EMPTY:
            self._attempt.end()
            return await self._client.finish(self._open_response())
        if self._answer.content_type == "text/event-stream":
            return await self._pass_events(EventStream(dialect_of(path)))
        return await self._pass_whole()

    def _open_response(self, kind: type[web.StreamResponse] = web.StreamResponse) -> web.StreamResponse:
        headers = answer_headers(self._answer.headers)
        if kind is _Events:
            headers.popall(hdrs.CONTENT_LENGTH, None)  # an event may be added
        return kind(status=self._answer.status, reason=answer_reason(self._answer.reason), headers=headers)

    async def _read(self) -> bytes:
        """Return what came, empty at the end."""
        began_s = self._loop.time()
        try:
            data = await self._answer.content.readany()
        except IO_FAULTS as error:
            raise LostError(Loss.BROKEN, _ENDED_EARLY) from error
        self._meters.last_byte_s = now_s = self._loop.time()
        self._waited_s += now_s - began_s
        self._meters.n_received_bytes += len(data)
        return data

    def _note_first_byte(self) -> None:
        self._meters.first_byte.observe(self._loop.time() - self._client.began_s)

    def _end(self, *, ended_in_error: bool = False) -> None:
        """The answer has come as a whole."""
        self._attempt.outcome = policy.outcome_of(self._answer.status, ended_in_error=ended_in_error)
        self._attempt.end()

    def _note_took(self, took: Took) -> None:
        self._meters.n_prompt_tokens += took.n_prompt
        self._meters.n_generated_tokens += took.n_generated

    # --- What is no stream of events ---

    async def _pass_whole(self) -> web.StreamResponse:
        """Hold the answer back until it is complete: until then it can still be asked for again."""
        parts: list[bytes] = []
        n_bytes = 0
        while part := await self._read():
            parts.append(part)
            n_bytes += len(part)
            if n_bytes > self._limits.answer_bytes:
                return await self._pass_in_parts(parts)
        self._end()
        body = b"".join(parts)
        self._note_first_byte()
        self._note_took(read_took(body) or Took())
        headers = answer_headers(self._answer.headers)
        headers.popall(hdrs.CONTENT_LENGTH, None)
        response = web.Response(
            status=self._answer.status, reason=answer_reason(self._answer.reason), headers=headers, body=body
        )
        return await self._client.finish(response)

    async def _pass_in_parts(self, parts: list[bytes]) -> web.StreamResponse:
        response = self._open_response()
        await self._client.begin(response)
        self._note_first_byte()
        try:
            for part in parts:
                await self._client.write(response, part)
            while part := await self._read():
                await self._client.write(response, part)
        except LostError as lost:
            self._cut(lost)
        except asyncio.CancelledError:
            self._cut(self._attempt.absorb())
            raise
        self._end()
        return await self._client.finish(response)

    def _cut(self, lost: LostError | None) -> None:
        """Close the connection before the announced end: HTTP has no other way to say that the rest will not come."""
        if lost is not None:
            self._meters.n_cut += 1
            self._client.cut()
            raise ConnectionAbortedError(lost.why) from lost

    # --- Streams of events ---

    async def _pass_events(self, stream: EventStream) -> web.StreamResponse:
        response = self._open_response(_Events)
        try:
            await self._pass_to_end(response, stream)
            lost = None if stream.is_complete(at_end=True) else LostError(Loss.BROKEN, _ENDED_EARLY)
        except LostError as error:
            lost = error
        except asyncio.CancelledError:
            lost = self._attempt.absorb()
            if lost is None:
                raise
        if lost is not None and stream.is_complete(at_end=False):
            lost = None
        if lost is None:
            self._end(ended_in_error=stream.has_failed)
        self._attempt.end()
        if lost is not None and not response.prepared:
            raise lost
        self._note_took(stream.took())
        if lost is not None:
            await self._tell(response, stream, lost)
        elif rest := stream.rest():
            await self._pass_event(response, stream, rest)
        return await self._client.finish(response)

    async def _pass_to_end(self, response: web.StreamResponse, stream: EventStream) -> None:
        n_before, before_s = 0, 0.0
        while part := await self._read():
            await self._pass_event(response, stream, stream.feed(part))
            if not n_before:
                n_before, before_s = stream.n_events, self._waited_s
        self._note_pace(stream.n_events - n_before, self._waited_s - before_s)

    def _note_pace(self, n_events: int, waited_s: float) -> None:
        """Note how fast a stream came that ran alone, where it was long enough to tell."""
        if self._attempt.was_alone and n_events >= _N_PACED and waited_s > 0:
            self._meters.paces.append(Pace(at_s=self._loop.time(), tps=n_events / waited_s))

    async def _pass_event(self, response: web.StreamResponse, stream: EventStream, data: bytes) -> None:
        if not data:
            return
        if not response.prepared:
            await self._client.begin(response)
            self._note_first_byte()
        self._meters.n_events += stream.take_new_events()
        await self._client.write(response, data)

    async def _tell(self, response: web.StreamResponse, stream: EventStream, lost: LostError) -> None:
        """End a stream that has begun by saying what happened."""
        verdict = policy.remedy(lost.loss, begun=True, is_events=stream.can_be_told, n_replays=0, limits=self._limits)
        if verdict is Remedy.CUT:
            self._cut(lost)
        self._meters.n_streams_ended += 1
        await self._client.write(
            response, error_event(stream.dialect, f"the answer is not complete: {lost.why}", "engine-lost")
        )
