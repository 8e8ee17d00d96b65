"""Ask a starting engine whether it answers, and then whether it can really complete a token.

It must not know processes or logs, nor decide what an answer means for the instance.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import aiohttp

from launcher.backends.canary import listed_models
from launcher.domain import Address, Command
from launcher.inventory.addresses import reached_at
from launcher.inventory.text import printable
from launcher.supervisor.environment import key_of

_FIRST_PAUSE_S: Final = 0.05
_MAX_PAUSE_S: Final = 0.25
_PAUSE_GROWTH: Final = 1.05  # makes each pause a twentieth of the time before it longer than the first
_REQUEST_S: Final = 5.0  # of one look at the endpoint; a busy loader may answer late, and is then asked again
_OK: Final = 200
_MAX_BYTES: Final = 1 << 20
_MAX_SAID: Final = 200
_MODELS_PATH: Final = "/v1/models"
_UNREACHABLE: Final = (aiohttp.ClientError, OSError, TimeoutError)


def base_url(address: Address) -> str:
    """Return where this machine reaches the endpoint; a wildcard address is reached over loopback."""
    host = reached_at(address.host)
    return f"http://[{host}]:{address.port}" if ":" in host else f"http://{host}:{address.port}"


@asynccontextmanager
async def open_session(command: Command, env: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a session to the command's endpoint, with its key where one is required; proxies are not used."""
    headers = {"Content-Type": "application/json"}
    key = key_of(command, env)
    if key:
        headers["Authorization"] = f"Bearer {key}"
    async with aiohttp.ClientSession(base_url(command.address), headers=headers, trust_env=False) as session:
        yield session


async def await_answer(session: aiohttp.ClientSession, path: str) -> None:
    """Return once ``path`` answers 200; ask at first every 50 ms, after 4 s every 250: late by little of what it took."""
    pause_s = _FIRST_PAUSE_S
    timeout = aiohttp.ClientTimeout(total=_REQUEST_S)
    while True:
        try:
            async with session.get(path, timeout=timeout, allow_redirects=False) as response:
                if response.status == _OK:
                    return
        except _UNREACHABLE:
            pass
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * _PAUSE_GROWTH, _MAX_PAUSE_S)


async def answers(session: aiohttp.ClientSession, path: str, timeout_s: float) -> bool:
    """Tell whether ``path`` answers anything at all in time: an engine that says 503 is alive."""
    try:
        async with session.get(path, timeout=aiohttp.ClientTimeout(total=timeout_s), allow_redirects=False):
            return True
    except _UNREACHABLE:
        return False


async def check_model(session: aiohttp.ClientSession, name: str) -> str | None:
    """Ask for the list of models; return what is wrong where it does not name ours, or ``None``."""
    try:
        timeout = aiohttp.ClientTimeout(total=_REQUEST_S)
        async with session.get(_MODELS_PATH, timeout=timeout, allow_redirects=False) as response:
            answer = await _read_bounded(response)
    except _UNREACHABLE as error:
        return f"the list of models was not answered: {str(error) or type(error).__name__}"
    names = listed_models(answer)
    listed = printable(", ".join(names)[:_MAX_SAID]) or "no model"
    return None if name in names else f"the engine lists {listed}, not `{name}`"


async def send_canary(session: aiohttp.ClientSession, path: str, body: str) -> str | None:
    """Ask for one completion without a time limit; return what was wrong with the answer, or ``None``."""
    try:
        status, answer = await _complete(session, path, body, None)
    except _UNREACHABLE as error:
        return f"the canary request got no answer: {str(error) or type(error).__name__}"
    excerpt = _excerpt(answer)
    if status // 100 != 2:  # noqa: PLR2004 - the class of HTTP's success codes
        return f"the canary request was answered with status {status}: {excerpt}"
    if not is_completion(answer):
        return f"the canary request was answered without a completion: {excerpt}"
    return None


async def refusal_of_canary(session: aiohttp.ClientSession, path: str, body: str, timeout_s: float) -> str | None:
    """Ask for one completion; return the status and words of an answer of 5xx, nothing (``""``) of any other answer.

    ``None``: there was none in time.
    """
    try:
        status, answer = await _complete(session, path, body, timeout_s)
    except _UNREACHABLE:
        return None
    return f"status {status}, {_excerpt(answer)}" if status // 100 == 5 else ""  # noqa: PLR2004 - HTTP's class


async def _complete(session: aiohttp.ClientSession, path: str, body: str, timeout_s: float | None) -> tuple[int, bytes]:
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with session.post(path, data=body, timeout=timeout, allow_redirects=False) as response:
        return response.status, await _read_bounded(response)


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    """Return the beginning of an answer: no more of it is looked at than a completion of one token can need."""
    answer = bytearray()
    async for part in response.content.iter_any():
        answer += part
        if len(answer) > _MAX_BYTES:
            break
    return bytes(answer[:_MAX_BYTES])


def _excerpt(answer: bytes) -> str:
    return printable(answer[:_MAX_SAID].decode("utf-8", "replace").strip())


def is_completion(answer: bytes) -> bool:
    """Whether an answer holds a completion: OpenAI's ``choices``, or llama-server's own ``content``."""
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict):
        return False
    choices = value.get("choices")
    return bool(choices) if isinstance(choices, list) else isinstance(value.get("content"), str)
