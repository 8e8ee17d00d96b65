"""Asks an application on a cluster whether it really answers, through one of Serve's proxies.

It must not know what follows from an answer.
"""

import json
from typing import Final

import aiohttp

from launcher.backends.canary import listed_models
from launcher.inventory.text import printable

_LOOK_S: Final = 5.0
_CANARY_S: Final = 120.0
"""For a first token, which may have to wait until an engine has compiled for it."""
_OK: Final = 200
_MAX_SAID: Final = 200
_MAX_BYTES: Final = 1 << 20
_UNREACHABLE: Final = (aiohttp.ClientError, OSError, TimeoutError)


async def find_fault(session: aiohttp.ClientSession, base_url: str, model: str, path: str, body: str) -> str | None:
    """Return what is wrong with the model below ``base_url``, ``None`` where it is listed and completes a token."""
    try:
        status, answer = await _ask(session, "GET", f"{base_url}/v1/models", None, _LOOK_S)
        if model not in listed_models(answer):
            return f"{base_url} does not list `{model}` (status {status}: {_excerpt(answer)})"
        status, answer = await _ask(session, "POST", base_url + path, body, _CANARY_S)
    except _UNREACHABLE as error:
        return f"{base_url} does not answer: {printable(str(error)) or type(error).__name__}"
    if status != _OK or not _is_completion(answer):
        return f"{base_url} answers the canary request with status {status}: {_excerpt(answer)}"
    return None


async def is_up(session: aiohttp.ClientSession, proxy: str) -> bool:
    """Tell whether a proxy answers at all, whatever it says."""
    try:
        await _ask(session, "GET", f"{proxy}/-/healthz", None, _LOOK_S)
    except _UNREACHABLE:
        return False
    return True


async def _ask(
    session: aiohttp.ClientSession, method: str, url: str, body: str | None, timeout_s: float
) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with session.request(
        method, url, data=body, headers=headers, timeout=timeout, allow_redirects=False
    ) as response:
        answer = bytearray()
        async for part in response.content.iter_any():
            answer += part
            if len(answer) > _MAX_BYTES:
                break
        return response.status, bytes(answer)


def _is_completion(answer: bytes) -> bool:
    try:
        return bool(json.loads(answer)["choices"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _excerpt(answer: bytes) -> str:
    return printable(answer[:_MAX_SAID].decode("utf-8", "replace").strip())
