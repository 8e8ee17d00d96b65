"""The rates of one engine, measured through its own endpoint: prompt tokens/s and generated tokens/s.

Native llama-server times itself and says so in its answers; llama-cpp-python is timed from here. It must not know how
the engine was started or which settings it has.
"""

import random
import time
from typing import Any, Final

import aiohttp

from launcher.domain import Engine
from launcher.errors import EngineFailedError
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


def make_prompt(n_words: int, seed: int) -> str:
    """Return common words in an order of its own, about one token each: no engine has it in a cache."""
    chosen = random.Random(seed)  # noqa: S311 - only to differ
    return " ".join(chosen.choice(_WORDS) for _ in range(n_words))


async def warm_up(session: aiohttp.ClientSession, engine: Engine) -> None:
    """Ask for a few tokens, so that what happens only once is over."""
    workload = Workload(n_prompt=_N_WARM_UP_WORDS, n_generated=_N_WARM_UP_TOKENS)
    await measure(session, engine, workload, seed=-1)


async def measure(session: aiohttp.ClientSession, engine: Engine, workload: Workload, *, seed: int) -> Sample:
    """Measure one request.

    Raises:
        EngineFailedError: the engine stopped answering, or answered with something else.
    """
    prompt = make_prompt(workload.n_prompt, seed)
    try:
        if engine is Engine.LLAMA_SERVER:
            return await _by_its_own_clock(session, prompt, workload)
        return await _by_our_clock(session, prompt, workload)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        message = f"the engine stopped answering while it was measured: {str(error) or type(error).__name__}"
        raise EngineFailedError(message) from error
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        message = f"the engine's answer holds no timings: {type(error).__name__} {error}"
        raise EngineFailedError(message) from error


async def _post(session: aiohttp.ClientSession, path: str, body: dict[str, object]) -> Any:
    timeout = aiohttp.ClientTimeout(total=_REQUEST_S)
    async with session.post(path, json=body, timeout=timeout, allow_redirects=False) as response:
        if response.status != _OK:
            excerpt = (await response.text())[:200]
            message = f"a measuring request was answered with status {response.status}: {excerpt}"
            raise EngineFailedError(message)
        return await response.json(content_type=None)


async def _by_its_own_clock(session: aiohttp.ClientSession, prompt: str, workload: Workload) -> Sample:
    body: dict[str, object] = {
        "prompt": prompt,
        "n_predict": workload.n_generated,
        "ignore_eos": True,
        "cache_prompt": False,
        "temperature": 0,
    }
    timings = (await _post(session, "/completion", body))["timings"]
    return Sample(
        prompt_tps=1000 * timings["prompt_n"] / timings["prompt_ms"],
        generation_tps=1000 * timings["predicted_n"] / timings["predicted_ms"],
        n_prompt=int(timings["prompt_n"]),
    )


async def _by_our_clock(session: aiohttp.ClientSession, prompt: str, workload: Workload) -> Sample:
    """Time the prompt alone, then, with the prompt in the engine's memory, the answer alone."""

    async def timed(n_tokens: int) -> tuple[float, int, int]:
        body: dict[str, object] = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0}
        begin_s = time.perf_counter()
        usage = (await _post(session, "/v1/completions", body))["usage"]
        return time.perf_counter() - begin_s, int(usage["prompt_tokens"]), int(usage["completion_tokens"])

    prompt_s, n_prompt, _ = await timed(1)
    answer_s, _, n_generated = await timed(workload.n_generated)
    return Sample(prompt_tps=n_prompt / prompt_s, generation_tps=n_generated / answer_s, n_prompt=n_prompt)
