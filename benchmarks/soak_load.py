"""Ask an endpoint what users and their mistakes ask, at a pace that leaves the machine to others, and account for it all.

It must not know supervisors, engines or faults. Requests come at random moments, whether or not those before them were
answered (up to ``N_AT_ONCE``), each over a connection of its own: one that the endpoint closes between two requests
would be nobody's loss, and could not be told from one.

Every kind of request has verdicts that it may end with. What ends otherwise is an oddity: a wrong key let in, a bad
request served, a completion refused for anything but want of an engine. No whole HTTP answer is a loss, an endpoint
that does not take the connection as well: the launcher is there all the time.
"""

import asyncio
import itertools
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, Self

import aiohttp

from benchmarks.chaos_load import WORDS
from benchmarks.soak_record import Oddity
from benchmarks.verdicts import Verdict, judge, judge_refusal, loads

PATIENCE_S: Final = 420.0
"""The gateway itself gives up after 300 s without an engine, and says so."""
N_AT_ONCE: Final = 40
N_STORM: Final = 100
_N_CROWDED: Final = 12
PIECE_S = 0.3
"""Between two pieces of a slow sender's body."""
PAUSES_S = (0.05, 0.8)
"""Between two looks of a slow reader: least and most."""
_KEPT_ODDITIES: Final = 200
_FIRST_GAP_S: Final = 1.5
_GAPS_S: Final = (0.1, 10.0)
_OK: Final = 200
_UNAUTHORISED: Final = 401
_AWAY: Final = frozenset({502, 503})
"""With which the gateway refuses when no engine is there, or one was lost too often with this request."""
LEFT: Final = "left"
"""The client went away by itself, and so nothing is known of its answer."""


class Ended:
    """How one request ended, in the words of the accounts."""

    def __init__(self, verdict: Verdict | None, status: int = 0, why: str = "") -> None:
        """``None`` for who left."""
        self.verdict = verdict
        self.status = status
        self.why = why

    @property
    def word(self) -> str:
        """Return the column of the table of answers."""
        if self.verdict is None:
            return LEFT
        return f"{self.verdict.value} {self.status}" if self.verdict is Verdict.REFUSED else self.verdict.value


def is_lost(ended: Ended) -> bool:
    """Whether there was no whole HTTP answer for somebody who waited for it."""
    return ended.verdict in {Verdict.LOST, Verdict.UNCONNECTED}


def is_odd(kind: str, ended: Ended) -> bool:
    """Whether a request of this kind may not end so; a loss is one always."""
    if is_lost(ended):
        return True
    match kind:
        case "wrong-key":
            return ended.status != _UNAUTHORISED
        case "bad":
            return ended.verdict is not Verdict.REFUSED or ended.status == _UNAUTHORISED
        case "metrics" | "models":
            return ended.status != _OK
        case _:
            return ended.verdict is Verdict.REFUSED and ended.status not in _AWAY


class Accounts:
    """What became of all requests: counts by kind and end, and the first oddities in full."""

    def __init__(self) -> None:
        """Begin with none."""
        self.answers: dict[str, Counter[str]] = defaultdict(Counter)
        self.oddities: list[Oddity] = []
        self.n = self.n_odd = self.n_lost = 0
        self.longest_s = 0.0
        self.whole_s = 0.0
        """On the monotonic clock: when the request that had the latest whole completion ended."""

    def enter(self, kind: str, ended: Ended, *, at_s: float, lasted_s: float) -> None:
        """Account for one request that ended ``at_s`` after the beginning."""
        self.n += 1
        self.answers[kind][ended.word] += 1
        if ended.verdict is not None:
            self.longest_s = max(self.longest_s, lasted_s)
        self.n_lost += is_lost(ended)
        if is_odd(kind, ended):
            self.n_odd += 1
            if len(self.oddities) < _KEPT_ODDITIES:
                verdict = ended.verdict or Verdict.LOST
                odd = Oddity(at_s=at_s, kind=kind, verdict=verdict, status=ended.status, why=ended.why[-300:])
                self.oddities.append(odd)

    def table(self) -> dict[str, dict[str, int]]:
        """Return the counts, by kind and end."""
        return {kind: dict(sorted(ends.items())) for kind, ends in sorted(self.answers.items())}


class Load:
    """Clients of one endpoint."""

    def __init__(self, url: str, key: str, *, seed: int, share: float) -> None:
        """Hold where to ask, the key, and how much of a core the served instance is to take on average."""
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"}
        self._dice = random.Random(seed)  # noqa: S311 - moments and prompts, no secrets
        self._share = share
        self.gap_s = _FIRST_GAP_S
        """Between two requests, on average."""
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_resting = self._is_over = False
        self._began_s = time.monotonic()
        self._arrivals: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None
        self.accounts = Accounts()
        self._senders: Mapping[str, Callable[[], Awaitable[Ended]]] = {
            "chat-stream": self._chat_stream,
            "chat": self._chat_plain,
            "completion": self._plain,
            "completion-stream": self._stream,
            "long-prompt": self._long,
            "aborted": self._abort,
            "slow-reader": self._slow_reader,
            "slow-sender": self._slow_sender,
            "bad": self._bad,
            "wrong-key": self._wrong_key,
            "metrics": self._metrics,
            "models": self._models,
            "storm": self._storm,
            "storm-impatient": self._impatient,
        }

    async def __aenter__(self) -> Self:
        """Begin."""
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        self._arrivals = asyncio.create_task(self._arrive())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let the requests at hand come to their end."""
        self._is_over = True
        assert self._arrivals is not None  # noqa: S101 - made on entering
        assert self._session is not None  # noqa: S101 - as above
        await self._arrivals
        await asyncio.gather(*self._tasks)
        await self._session.close()

    def pace(self, share: float) -> None:
        """Ask more often, or less, by what share of a core was taken lately; less when answers lag behind on a busy machine."""
        if len(self._tasks) > _N_CROWDED:
            share = 2 * self._share
        factor = min(1.15, max(0.87, share / self._share)) if share > 0 else 0.87
        self.gap_s = min(_GAPS_S[1], max(_GAPS_S[0], self.gap_s * factor))

    async def rest(self, patience_s: float) -> bool:
        """Send no more until ``go_on``; whether all that was sent came to its end in time."""
        self._is_resting = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience_s)
        return not self._tasks

    def go_on(self) -> None:
        """End a rest."""
        self._is_resting = False

    async def until_whole(self, since_s: float, timeout_s: float) -> bool:
        """Wait for a whole completion after a moment of the monotonic clock."""
        end_s = time.monotonic() + timeout_s
        while self.accounts.whole_s <= since_s and time.monotonic() < end_s:  # noqa: ASYNC110 - a time is over, too
            await asyncio.sleep(0.05)
        return self.accounts.whole_s > since_s

    async def storm(self, n: int = N_STORM) -> None:
        """Let so many clients come at once, each for a word or two; four in ten have no patience."""
        storm = [
            self._spawn("storm-impatient" if self._dice.random() < 0.4 else "storm")  # noqa: PLR2004 - as said
            for _ in range(n)
        ]
        await asyncio.wait(storm)

    async def _arrive(self) -> None:
        kinds, weights = zip(*_WEIGHTS.items(), strict=True)
        while not self._is_over:
            await asyncio.sleep(min(30.0, self._dice.expovariate(1 / self.gap_s)))
            if not (self._is_resting or self._is_over) and len(self._tasks) < N_AT_ONCE:
                self._spawn(self._dice.choices(kinds, weights)[0])

    def _spawn(self, kind: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self.ask(kind))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def ask(self, kind: str) -> None:
        """Send one request of a kind, and account for its end."""
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                ended = await self._senders[kind]()
        except aiohttp.ClientConnectorError as error:
            ended = Ended(Verdict.UNCONNECTED, why=str(error))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            ended = Ended(Verdict.LOST, why=f"{type(error).__name__}: {error}")
        now_s = time.monotonic()
        if ended.verdict is Verdict.WHOLE and kind not in _READS:
            self.accounts.whole_s = now_s
        self.accounts.enter(kind, ended, at_s=now_s - self._began_s, lasted_s=now_s - began_s)

    # --- What is asked ---

    def _words(self, n: int) -> str:
        """Return a prompt that no other resembles."""
        return f"{next(self._numbers)} {' '.join(self._dice.choices(WORDS, k=n))}"

    def _completion(self, *, stream: bool, n_words: int = 12, n_tokens: int | None = None) -> dict[str, object]:
        n_tokens = self._dice.randint(4, 24) if n_tokens is None else n_tokens
        return {"model": "soak", "prompt": self._words(n_words), "max_tokens": n_tokens, "stream": stream}

    def _chat(self, *, stream: bool, n_tokens: int | None = None) -> dict[str, object]:
        body = self._completion(stream=stream, n_tokens=n_tokens)
        return {**body, "messages": [{"role": "user", "content": body.pop("prompt")}]}

    def _post(self, path: str, body: object, **words: object) -> "aiohttp.client._RequestContextManager":
        assert self._session is not None  # noqa: S101 - entered
        return self._session.post(f"{self._url}{path}", json=body, **words)  # type: ignore[arg-type]  # headers alone

    async def _complete(self, path: str, body: object) -> Ended:
        async with self._post(path, body) as answer:
            return Ended(*judge(answer, await answer.read()))

    async def _chat_stream(self) -> Ended:
        return await self._complete("/v1/chat/completions", self._chat(stream=True))

    async def _chat_plain(self) -> Ended:
        return await self._complete("/v1/chat/completions", self._chat(stream=False))

    async def _plain(self) -> Ended:
        return await self._complete("/v1/completions", self._completion(stream=False))

    async def _stream(self) -> Ended:
        return await self._complete("/v1/completions", self._completion(stream=True))

    async def _long(self) -> Ended:
        n_words = self._dice.randint(300, 1500)
        return await self._complete("/v1/completions", self._completion(stream=True, n_words=n_words, n_tokens=8))

    async def _storm(self) -> Ended:
        return await self._complete("/v1/completions", self._completion(stream=False, n_words=4, n_tokens=2))

    async def _impatient(self) -> Ended:
        """Leave after some seconds, answered or not."""
        try:
            async with asyncio.timeout(self._dice.uniform(0.05, 3.0)):
                return await self._storm()
        except TimeoutError:
            return Ended(None)

    async def _abort(self) -> Ended:
        """Leave before the answer, or in the middle of it."""
        n_events = self._dice.choice((0, 0, 1, 3, 8))
        try:
            async with asyncio.timeout(self._dice.uniform(0.01, 1.0) if n_events == 0 else PATIENCE_S):
                async with self._post("/v1/chat/completions", self._chat(stream=True, n_tokens=64)) as answer:
                    if answer.status != _OK:
                        return Ended(*judge_refusal(answer, await answer.read()))
                    for _ in range(2 * n_events):  # an event, and the empty line after it
                        if not await answer.content.readline():
                            break
        except TimeoutError:
            if n_events:
                raise
        return Ended(None)

    async def _slow_reader(self) -> Ended:
        """Take each part of a stream only after a while."""
        async with self._post("/v1/chat/completions", self._chat(stream=True, n_tokens=32)) as answer:
            parts = []
            async for part in answer.content.iter_any():
                parts.append(part)
                await asyncio.sleep(self._dice.uniform(*PAUSES_S))
            return Ended(*judge(answer, b"".join(parts)))

    async def _slow_sender(self) -> Ended:
        """Send a body in pieces."""
        data = json.dumps(self._completion(stream=False)).encode()

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 40):
                yield data[start : start + 40]
                await asyncio.sleep(PIECE_S)

        assert self._session is not None  # noqa: S101 - entered
        headers = {"Content-Type": "application/json"}
        async with self._session.post(f"{self._url}/v1/completions", data=pieces(), headers=headers) as answer:
            return Ended(*judge(answer, await answer.read()))

    async def _bad(self) -> Ended:
        """Send what no engine can serve: no JSON, no prompt, a path that is not there, embeddings that are not served."""
        assert self._session is not None  # noqa: S101 - entered
        path, data = self._dice.choice(_BAD)
        headers = {"Content-Type": "application/json"}
        async with self._session.post(f"{self._url}{path}", data=data, headers=headers) as answer:
            return Ended(*judge(answer, await answer.read()))

    async def _wrong_key(self) -> Ended:
        headers = {"Authorization": self._dice.choice(("Bearer wrong-key-wrong-key", "Bearer", ""))}
        async with self._post("/v1/completions", self._completion(stream=False), headers=headers) as answer:
            return Ended(*judge(answer, await answer.read()))

    async def _metrics(self) -> Ended:
        return await self._get("/metrics", lambda data: b"# HELP" in data)

    async def _models(self) -> Ended:
        return await self._get("/v1/models", lambda data: bool(loads(data).get("data")))

    async def _get(self, path: str, is_whole: Callable[[bytes], bool]) -> Ended:
        assert self._session is not None  # noqa: S101 - entered
        async with self._session.get(f"{self._url}{path}") as answer:
            data = await answer.read()
            if answer.status != _OK:
                return Ended(*judge_refusal(answer, data))
            return Ended(Verdict.WHOLE if is_whole(data) else Verdict.LOST, answer.status)


_BAD: Final = (
    ("/v1/chat/completions", b'{"messages": ['),
    ("/v1/chat/completions", b"{}"),
    ("/v1/completions", b"\xff\xfe"),
    ("/v1/completions", b'{"prompt": "a", "max_tokens": "many"}'),
    ("/v1/no-such-thing", b"{}"),
    ("/v1/embeddings", b'{"input": "not served"}'),
)
_WEIGHTS: Final[Mapping[str, float]] = {
    "chat-stream": 28,
    "chat": 10,
    "completion": 14,
    "completion-stream": 10,
    "long-prompt": 2,
    "aborted": 8,
    "slow-reader": 4,
    "slow-sender": 3,
    "bad": 8,
    "wrong-key": 5,
    "metrics": 4,
    "models": 4,
}
"""How often each kind is asked, of the sum."""
_READS: Final = frozenset({"metrics", "models"})
KINDS: Final = (*_WEIGHTS, "storm", "storm-impatient")
