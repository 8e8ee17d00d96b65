"""Keep an endpoint under a steady load of streaming and plain requests.

It must not know engines, supervisors or faults. Each request has a connection of its own: one that the endpoint closes
between two requests would be nobody's loss, and could not be told from one.
"""

import asyncio
import itertools
import random
import time
from typing import Final, Self

import aiohttp

from benchmarks.verdicts import Verdict, judge
from launcher.domain import Noun

PATIENCE_S: Final = 180.0
"""For one answer, however often its engine was lost: a machine that does other work is slow."""
_PAUSE_S: Final = 0.05
_REFUSED_PAUSE_S: Final = 0.3
_LONG_SHARE: Final = 0.1
WORDS: Final = (
    "count",
    "the",
    "small",
    "blue",
    "houses",
    "between",
    "seven",
    "rivers",
    "and",
    "tell",
    "why",
    "slowly",
)


class Answer(Noun, frozen=True):
    """One request's end: when, on the monotonic clock, after how long, and what was wrong with it."""

    at_s: float
    lasted_s: float
    is_stream: bool
    verdict: Verdict
    status: int = 0
    why: str = ""


class Load:
    """Clients of one endpoint, each with one request after another."""

    def __init__(self, url: str, *, n_streaming: int, n_plain: int, seed: int) -> None:
        """Hold where to ask, and by how many at a time."""
        self._url = url
        self._kinds = [True] * n_streaming + [False] * n_plain
        self._dice = random.Random(seed)  # noqa: S311 - prompts, no secrets
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._is_over = False
        self.answers: list[Answer] = []

    async def __aenter__(self) -> Self:
        """Begin."""
        self._tasks = [asyncio.create_task(self._ask_on(is_stream)) for is_stream in self._kinds]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let the requests at hand come to their end."""
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def until_whole(self, since_s: float, timeout_s: float) -> bool:
        """Wait for a completion of a request that ended after ``since_s``."""
        end_s = time.monotonic() + timeout_s
        n_seen = 0
        while time.monotonic() < end_s:
            new, n_seen = self.answers[n_seen:], len(self.answers)
            if any(answer.verdict is Verdict.WHOLE and answer.at_s > since_s for answer in new):
                return True
            await asyncio.sleep(0.02)
        return False

    async def _ask_on(self, is_stream: bool) -> None:  # noqa: FBT001 - the one thing that clients differ in
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            while not self._is_over:
                began_s = time.monotonic()
                verdict, status, why = await _ask(session, self._url, self._body(is_stream))
                now_s = time.monotonic()
                answer = Answer(
                    at_s=now_s, lasted_s=now_s - began_s, is_stream=is_stream, verdict=verdict, status=status, why=why
                )
                self.answers.append(answer)
                is_served = verdict in {Verdict.WHOLE, Verdict.TOLD}
                await asyncio.sleep(_PAUSE_S if is_served else _REFUSED_PAUSE_S)

    def _body(self, is_stream: bool) -> dict[str, object]:  # noqa: FBT001 - as above
        """Return a request that no other resembles; one in ten has a long prompt."""
        n_words = 300 if self._dice.random() < _LONG_SHARE else 12
        words = " ".join(self._dice.choices(WORDS, k=n_words))
        n_tokens = self._dice.randint(4, 24)
        prompt = f"{next(self._numbers)} {words}"
        return {"model": "gemma3-270m", "prompt": prompt, "max_tokens": n_tokens, "stream": is_stream}


async def _ask(session: aiohttp.ClientSession, url: str, body: dict[str, object]) -> tuple[Verdict, int, str]:
    try:
        async with asyncio.timeout(PATIENCE_S), session.post(f"{url}/v1/completions", json=body) as answer:
            data = await answer.read()
            return judge(answer, data)
    except aiohttp.ClientConnectorError as error:
        return Verdict.UNCONNECTED, 0, str(error)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return Verdict.LOST, 0, f"{type(error).__name__}: {error}"
