"""Read back from vLLM's log what it came to hold, and compare that with the plan.

What it prints while it loads (version 0.32.0, transcripts in tests/transcripts/vllm; the lines of GPUs by its source,
``v1/worker/gpu_model_runner.py`` and ``gpu_worker.py``): ``CPU KV cache size: 2,176 tokens, Maximum concurrency for 2,048
tokens per request: 1.06x``, where earlier versions have two lines; on GPUs ``Model loading took 14.99 GiB memory`` and
``Available KV cache memory: 5.20 GiB`` too. It must not know how the log was captured, nor what follows. Pure.
"""

import re
from collections.abc import Iterable
from typing import Final

from launcher.domain import Noun, Plan
from launcher.units import GIB, format_bytes

MARKS: Final = ("KV cache size: ", "Maximum concurrency for ", "Model loading took ", "Available KV cache memory: ")
"""One of these is in every line that is read."""

_TOKENS: Final = re.compile(r"KV cache size: (\d[\d,]{0,18}) tokens")
_CONCURRENCY: Final = re.compile(r"Maximum concurrency for [\d,]+ tokens per request: (\d{1,12}(?:\.\d{1,6})?)x")
_WEIGHTS: Final = re.compile(r"Model loading took (\d{1,9}(?:\.\d{1,6})?) GiB")
_AVAILABLE: Final = re.compile(r"Available KV cache memory: (\d{1,9}(?:\.\d{1,6})?) GiB")


class VllmTold(Noun, frozen=True):
    """What vLLM said that it holds; ``None`` where it said nothing. Bytes are of its largest rank."""

    kv_cache_tokens: int | None = None
    max_concurrency: float | None = None
    """Requests of full length that the cache holds at once."""
    weights_bytes: int | None = None
    kv_cache_bytes: int | None = None


class Difference(Noun, frozen=True):
    """What was told beside what was planned, in words and as facts."""

    text: str
    facts: dict[str, int | float | str]


def parse_told(lines: Iterable[str]) -> VllmTold | None:
    """Read the lines of one start; ``None`` where vLLM told nothing in them, as another engine does."""
    text = "\n".join(lines)
    tokens = [int(found.replace(",", "")) for found in _TOKENS.findall(text)]
    concurrency = [float(found) for found in _CONCURRENCY.findall(text)]
    weights = [int(float(found) * GIB) for found in _WEIGHTS.findall(text)]
    available = [int(float(found) * GIB) for found in _AVAILABLE.findall(text)]
    if not (tokens or concurrency or weights or available):
        return None
    return VllmTold(
        kv_cache_tokens=min(tokens, default=None),
        max_concurrency=min(concurrency, default=None),
        weights_bytes=max(weights, default=None),
        kv_cache_bytes=max(available, default=None),
    )


def compare(told: VllmTold, plan: Plan) -> Difference | None:
    """Say how far what was told is from the plan; ``None`` for a plan that was not made for vLLM.

    A cache of fewer requests than were planned still serves: vLLM makes some of them wait.
    """
    if plan.vllm is None:
        return None
    words = []
    facts: dict[str, int | float | str] = {"planned_kv_cache_tokens": plan.vllm.kv_cache_tokens}
    if told.kv_cache_tokens is not None:
        facts["kv_cache_tokens"] = told.kv_cache_tokens
        off = told.kv_cache_tokens - plan.vllm.kv_cache_tokens
        how = f"{abs(off):,} {'more' if off > 0 else 'fewer'} than planned" if off else "as planned"
        words.append(f"its cache holds {told.kv_cache_tokens:,} tokens, {how}")
    if told.max_concurrency is not None:
        facts["max_concurrency"] = told.max_concurrency
        if told.max_concurrency < plan.n_parallel:
            words.append(f"{told.max_concurrency:.2f} requests of full length at once, of {plan.n_parallel}")
    planned_bytes = max((use.weights_bytes for use in plan.footprint.devices), default=0)
    if told.weights_bytes is not None and planned_bytes:
        facts |= {"weights_bytes": told.weights_bytes, "planned_weights_bytes": planned_bytes}
        words.append(f"weights {format_bytes(told.weights_bytes)}, planned {format_bytes(planned_bytes)}")
    if told.kv_cache_bytes is not None:
        facts["kv_cache_bytes"] = told.kv_cache_bytes
    return Difference(text="; ".join(words), facts=facts) if words else None


def fewer_tokens(told: VllmTold, plan: Plan) -> int | None:
    """Return how many tokens the cache was told to hold, where they are fewer than planned."""
    if plan.vllm is None or told.kv_cache_tokens is None or told.kv_cache_tokens >= plan.vllm.kv_cache_tokens:
        return None
    return told.kv_cache_tokens
