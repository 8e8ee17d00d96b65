"""Judge what a client got for a request: whether it is a whole HTTP answer, and of which sort.

It must not know how requests are made, nor what was done to the engine meanwhile.
"""

import json
from enum import StrEnum

import aiohttp

_OK = 200
_UNAVAILABLE = 503


class Verdict(StrEnum):
    """What became of a request."""

    WHOLE = "whole"
    """A completion, to its end."""
    TOLD = "told"
    """A stream that had begun, ended by an event that says why."""
    REFUSED = "refused"
    """A status that says why, with its error as JSON; 503 says when to come back."""
    UNCONNECTED = "unconnected"
    """No connection was made: nothing was accepted."""
    LOST = "lost"
    """Anything else after a connection was made: no answer, half an answer, one that means nothing."""


def judge(answer: aiohttp.ClientResponse, data: bytes) -> tuple[Verdict, int, str]:
    """Return what an answer to a completion with this body is, its status, and the end of what is not whole."""
    status = answer.status
    excerpt = data[-200:].decode(errors="replace")
    if status != _OK:
        return judge_refusal(answer, data)
    if answer.content_type == "text/event-stream":
        last = data.rstrip().rpartition(b"\n")[2].removeprefix(b"data: ")
        if last == b"[DONE]":
            return Verdict.WHOLE, status, ""
        return (Verdict.TOLD if _is_error(last) else Verdict.LOST), status, excerpt
    return (Verdict.WHOLE, status, "") if loads(data).get("choices") else (Verdict.LOST, status, excerpt)


def judge_refusal(answer: aiohttp.ClientResponse, data: bytes) -> tuple[Verdict, int, str]:
    """Return the same of an answer that is no success."""
    status = answer.status
    excerpt = data[-200:].decode(errors="replace")
    lacks = "no Retry-After" if status == _UNAVAILABLE and "Retry-After" not in answer.headers else None
    lacks = lacks or (None if _is_error(data) else "no error in JSON")
    return (Verdict.LOST, status, f"{lacks}: {excerpt}") if lacks else (Verdict.REFUSED, status, excerpt)


def loads(data: bytes) -> dict[str, object]:
    """Return a JSON object; an empty one for anything else."""
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _is_error(data: bytes) -> bool:
    return bool(loads(data).get("error"))
