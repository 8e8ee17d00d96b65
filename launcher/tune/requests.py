"""The rates of one engine, measured through its endpoint: prompt and generated tokens/s, and when an answer began.

Native llama-server times itself and says so in its answers; other engines are timed from here. It must not know how
the engine was started, which settings it has, or what stands before it.
"""

import json
import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import aiohttp

from launcher.domain import Engine, Plan
from launcher.errors import EndpointAccessError, EngineFailedError
from launcher.inventory.text import printable
from launcher.tune.points import Sample, Workload

_TEXT: Final = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend"
)
_WORDS: Final = tuple(_TEXT.split())
_N_WARM_UP_WORDS: Final = 8
_N_WARM_UP_TOKENS: Final = 4
_REQUEST_S: Final = 600.0
_OK: Final = 200
_UNAUTHORIZED: Final = 401
_DONE: Final = b"[DONE]"
_TOLD: Final = ("timings", "usage")
_N_EXCERPT: Final = 200
_MOST_BYTES: Final = 1 << 20
"""Of an event."""
_HEADERS: Final = {"Connection": "close"}
"""llama-server (build 10434) closes the connection behind a streamed answer without saying so before: the next request would
run into that."""


def make_prompt(n_words: int, seed: int) -> str:
    """Return common words in an order of its own, about one token each: no engine has it in a cache."""
    chosen = random.Random(seed)  # noqa: S311 - only to differ
    return " ".join(chosen.choice(_WORDS) for _ in range(n_words))


async def warm_up(session: aiohttp.ClientSession, plan: Plan) -> float:
    """Ask for a few tokens, so that what happens only once is over; return how many tokens a word of a prompt is to this model."""
    workload = Workload(n_prompt=_N_WARM_UP_WORDS, n_generated=_N_WARM_UP_TOKENS)
    sample = await measure(session, plan, workload, seed=-1)
    return sample.n_prompt / _N_WARM_UP_WORDS


async def measure(session: aiohttp.ClientSession, plan: Plan, workload: Workload, *, seed: int) -> Sample:
    """Measure one request to the plan's engine.

    Raises:
        EngineFailedError: the engine stopped answering, or answered with something else.
        EndpointAccessError: the endpoint wants a key, or another one.
    """
    prompt = make_prompt(workload.n_prompt, seed)
    try:
        return _checked(await _ask(session, plan, prompt, workload))
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        message = f"the engine stopped answering while it was measured: {str(error) or type(error).__name__}"
        raise EngineFailedError(message) from error
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        message = f"the engine's answer holds no timings: {type(error).__name__} {printable(str(error))}"
        raise EngineFailedError(message) from error


async def _ask(session: aiohttp.ClientSession, plan: Plan, prompt: str, workload: Workload) -> Sample:
    match plan.engine:
        case Engine.LLAMA_SERVER:
            return await _by_its_own_clock(session, prompt, workload)
        case Engine.LLAMA_CPP_PYTHON:
            return await _in_two_requests(session, prompt, workload)
        case Engine.VLLM:
            return await _by_our_clock(session, prompt, workload, plan.model)


def _checked(sample: Sample) -> Sample:
    """Return a sample that is of an answer: JSON knows figures that none has.

    Raises:
        ValueError: it is not.
    """
    rates = (sample.prompt_tps, sample.generation_tps)
    if not all(math.isfinite(rate) and rate > 0 for rate in rates) or min(sample.n_prompt, sample.n_timed) < 1:
        message = f"{sample.n_prompt} and {sample.n_timed} tokens at {rates[0]:g} and {rates[1]:g} tokens/s"
        raise ValueError(message)
    return sample


@asynccontextmanager
async def _post(
    session: aiohttp.ClientSession, path: str, body: dict[str, object]
) -> AsyncIterator[aiohttp.ClientResponse]:
    timeout = aiohttp.ClientTimeout(total=_REQUEST_S)
    async with session.post(path, json=body, headers=_HEADERS, timeout=timeout, allow_redirects=False) as response:
        if response.status == _UNAUTHORIZED:
            message = "the endpoint wants an API key, or another one"
            raise EndpointAccessError(message, help="give it with `--api-key-file FILE`, or in $LAUNCHER_API_KEY")
        if response.status != _OK:
            excerpt = printable((await response.text())[:_N_EXCERPT])
            message = f"a measuring request was answered with status {response.status}: {excerpt}"
            raise EngineFailedError(message)
        yield response


class _Stream(NamedTuple):
    """When the first and the last token of a streamed answer came, in seconds, and what its events told of it."""

    first_s: float
    last_s: float
    n_first: int
    """Tokens that came with the first: who passes them on, or we, may be slower than the engine."""
    told: dict[str, Any]


async def _stream(session: aiohttp.ClientSession, path: str, body: dict[str, object]) -> _Stream:
    first_s = last_s = None
    n_first = 0
    told: dict[str, Any] = {}
    begin_s = time.perf_counter()
    async with _post(session, path, {**body, "stream": True}) as response:
        async for came_s, event in _events(response.content, begin_s):
            if event.get("choices") or ("content" in event and not event.get("stop")):
                first_s, last_s = came_s if first_s is None else first_s, came_s
                if came_s == first_s:
                    n_first = int((event.get("usage") or {}).get("completion_tokens", n_first + 1))
            told.update((name, event[name]) for name in _TOLD if name in event)
    if first_s is None or last_s is None:
        message = "no token came"
        raise ValueError(message)
    return _Stream(first_s, last_s, n_first, told)


async def _events(content: aiohttp.StreamReader, begin_s: float) -> AsyncIterator[tuple[float, dict[str, Any]]]:
    """Yield the events of a stream, each with when it came; those that came together have the same time.

    Raises:
        EngineFailedError: one of them is an error.
    """
    rest = b""
    async for data in content.iter_any():
        came_s = time.perf_counter() - begin_s
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > _MOST_BYTES:
            message = "an event without end"
            raise ValueError(message)
        for line in map(bytes.strip, lines):
            text = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and text != _DONE:
                yield came_s, _understood(text)


def _understood(text: bytes) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(text)
    if "error" not in event:
        return event
    fault = event["error"]
    words = fault.get("message", fault) if isinstance(fault, dict) else fault
    message = f"a measuring request ended in an error: {printable(str(words)[:_N_EXCERPT])}"
    raise EngineFailedError(message)


async def _by_its_own_clock(session: aiohttp.ClientSession, prompt: str, workload: Workload) -> Sample:
    body: dict[str, object] = {
        "prompt": prompt,
        "n_predict": workload.n_generated,
        "ignore_eos": True,
        "cache_prompt": False,
        "temperature": 0,
    }
    stream = await _stream(session, "/completion", body)
    timings = stream.told["timings"]
    return Sample(
        prompt_tps=1000 * timings["prompt_n"] / timings["prompt_ms"],
        generation_tps=1000 * timings["predicted_n"] / timings["predicted_ms"],
        n_prompt=int(timings["prompt_n"]),
        n_timed=int(timings["predicted_n"]) - 1,
        first_token_s=stream.first_s,
        last_token_s=stream.last_s,
    )


async def _by_our_clock(session: aiohttp.ClientSession, prompt: str, workload: Workload, model: str) -> Sample:
    """Time a streamed answer, of which the engine tells only how many tokens came with each event, and in all."""
    body: dict[str, object] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": workload.n_generated,
        "ignore_eos": True,
        "temperature": 0,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    stream = await _stream(session, "/v1/completions", body)
    usage = stream.told["usage"]
    n_prompt = int(usage["prompt_tokens"])
    n_timed = int(usage["completion_tokens"]) - stream.n_first
    if stream.last_s <= stream.first_s:
        message = f"an answer of {usage['completion_tokens']} tokens came in one piece: no rate can be told from that"
        raise EngineFailedError(message, help="with less else to do this machine may get it token by token")
    return Sample(
        prompt_tps=n_prompt / stream.first_s,
        generation_tps=n_timed / (stream.last_s - stream.first_s),
        n_prompt=n_prompt,
        n_timed=n_timed,
        first_token_s=stream.first_s,
        last_token_s=stream.last_s,
    )


async def _in_two_requests(session: aiohttp.ClientSession, prompt: str, workload: Workload) -> Sample:
    """Time the prompt alone, then, with the prompt in the engine's memory, the answer alone.

    llama_cpp.server (0.3.36) does not tell in a stream how many tokens a prompt was.
    """

    async def timed(n_tokens: int) -> tuple[float, int, int]:
        body: dict[str, object] = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0}
        begin_s = time.perf_counter()
        async with _post(session, "/v1/completions", body) as response:
            usage = (await response.json(content_type=None))["usage"]
        return time.perf_counter() - begin_s, int(usage["prompt_tokens"]), int(usage["completion_tokens"])

    prompt_s, n_prompt, _ = await timed(1)
    answer_s, _, n_generated = await timed(workload.n_generated)
    return Sample(
        prompt_tps=n_prompt / prompt_s,
        generation_tps=n_generated / answer_s,
        n_prompt=n_prompt,
        n_timed=n_generated,
        first_token_s=prompt_s,
        last_token_s=prompt_s + answer_s,
    )
