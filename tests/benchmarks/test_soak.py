"""The accounts of `make soak` can fail: what it is to find is put before it."""

import asyncio
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from msgspec.structs import replace

from benchmarks import soak_load
from benchmarks.chaos_episode import Told
from benchmarks.soak import read, write
from benchmarks.soak_faults import BORNE, KINDS, choose, deaths, kinds_here, permitted
from benchmarks.soak_load import KINDS as REQUESTS
from benchmarks.soak_load import Load
from benchmarks.soak_record import Fault, Record, Sample, Usage
from benchmarks.soak_report import bars, page, render, rests
from launcher.units import MIB

_KEY = "a-key-of-the-test"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _dice(seed: int = 1) -> random.Random:
    return random.Random(seed)  # noqa: S311 - noise and turns, no secrets


@pytest.fixture(autouse=True)
def _swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody here has an interest in how slowly a slow sender sends, or a slow reader reads."""
    monkeypatch.setattr(soak_load, "PIECE_S", 0.001)
    monkeypatch.setattr(soak_load, "PAUSES_S", (0.0, 0.001))


# --- What clients got -------------------------------------------------------------------------------------------


@asynccontextmanager
async def _endpoint(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield str(site.name)
    finally:
        await runner.cleanup()


async def _ask_each_kind(url: str) -> Load:
    """Send one request of every kind, and return the load with its accounts."""
    load = Load(url, _KEY, seed=1, share=0.01)
    async with load:
        await load.rest(0.0)  # none but these
        await asyncio.gather(*(load.ask(kind) for kind in REQUESTS))
    return load


def _error(status: int) -> web.Response:
    headers = {"Retry-After": "1"} if status == 503 else {}
    return web.json_response({"error": {"message": "no"}}, status=status, headers=headers)


async def _good(request: web.Request) -> web.StreamResponse:
    """Answer as the gateway and an engine do."""
    if request.headers.get("Authorization") != f"Bearer {_KEY}":
        return _error(401)
    if request.method == "GET":
        is_metrics = request.path == "/metrics"
        return web.Response(text="# HELP a b\n") if is_metrics else web.json_response({"data": [{"id": "soak"}]})
    try:
        body = msgspec.json.decode(await request.read(), type=dict[str, object])
    except msgspec.DecodeError:
        return _error(400)
    if not {"prompt", "messages"} & body.keys() or not isinstance(body.get("max_tokens"), int):
        return _error(400)
    if body.get("stream"):
        return await _stream(request, b'data: {"choices": []}\n\ndata: [DONE]\n\n')
    return web.json_response({"choices": [{"text": "a"}]})


async def _stream(request: web.Request, data: bytes) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    await answer.write(data)
    await answer.write_eof()
    return answer


async def test_a_good_endpoint_has_neither_losses_nor_oddities() -> None:
    """Every kind of request ends as it has to, and each is counted once."""
    async with _endpoint(_good) as url:
        accounts = (await _ask_each_kind(url)).accounts
    assert (accounts.n_lost, accounts.n_odd) == (0, 0), accounts.oddities
    assert accounts.n == sum(sum(ends.values()) for ends in accounts.table().values()) == len(REQUESTS)


async def _cut(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _half(request: web.Request) -> web.StreamResponse:
    return await _stream(request, b'data: {"choices": []}\n\n')


async def _silent_refusal(_: web.Request) -> web.StreamResponse:
    return web.Response(status=503, text="busy")


@pytest.mark.parametrize("handler", [_cut, _half, _silent_refusal])
async def test_whoever_waits_and_gets_no_whole_answer_is_lost(handler: Handler) -> None:
    """A cut connection, a stream without its end, a refusal that does not say why: each is counted, for each kind."""
    async with _endpoint(handler) as url:
        accounts = (await _ask_each_kind(url)).accounts
    left = {"aborted", "storm-impatient"}
    assert {odd.kind for odd in accounts.oddities} >= set(REQUESTS) - left
    assert accounts.n_lost >= len(REQUESTS) - len(left)


async def test_an_endpoint_that_is_not_there_is_a_loss(unused_port: int) -> None:
    """The launcher is to be there all the time."""
    accounts = (await _ask_each_kind(f"http://127.0.0.1:{unused_port}")).accounts
    assert accounts.n_lost == len(REQUESTS)


async def _let_in(request: web.Request) -> web.StreamResponse:
    """Serve everybody, whatever is asked."""
    if request.method == "GET":
        return await _good(request)
    return web.json_response({"choices": [{"text": "a"}]})


async def test_a_wrong_key_let_in_is_odd() -> None:
    """It has a whole answer, and must not."""
    async with _endpoint(_let_in) as url:
        accounts = (await _ask_each_kind(url)).accounts
    assert {odd.kind for odd in accounts.oddities} == {"wrong-key", "bad"}
    assert accounts.n_lost == 0


async def test_a_completion_refused_for_itself_is_odd() -> None:
    """Only the want of an engine is a reason to refuse one."""

    async def refuse(_: web.Request) -> web.StreamResponse:
        return _error(400)

    async with _endpoint(refuse) as url:
        accounts = (await _ask_each_kind(url)).accounts
    assert {odd.kind for odd in accounts.oddities} >= {
        "chat",
        "completion",
        "long-prompt",
        "storm",
        "wrong-key",
        "metrics",
    }
    assert accounts.n_lost == 0


def test_the_pace_follows_what_is_taken() -> None:
    """More than its share of a core makes requests rarer, less makes them more frequent."""
    load = Load("http://127.0.0.1:1", _KEY, seed=1, share=0.33)
    before = load.gap_s
    load.pace(0.9)
    slower = load.gap_s
    for _ in range(20):
        load.pace(0.0)
    assert load.gap_s < before < slower


# --- Which fault when -------------------------------------------------------------------------------------------


def _told(*events: tuple[float, str]) -> list[Told]:
    return [Told(event=event, at_s=at_s, text="", facts={}) for at_s, event in events]


def test_deaths_are_forgotten_after_ten_healthy_minutes() -> None:
    """As the launcher's restart policy forgets them, and not before."""
    told = _told(
        (0, "engine.ready"), (10, "engine.failed"), (12, "engine.ready"), (20, "engine.failed"), (25, "engine.ready")
    )
    assert deaths(told, 100) == 2
    assert deaths(told, 700) == 0
    assert deaths([*told, *_told((700, "engine.failed"))], 701) == 1


def test_a_step_begins_the_ten_minutes_anew() -> None:
    """The engine after it is another."""
    told = _told((0, "engine.ready"), (10, "engine.failed"), (12, "engine.ready"), (500, "instance.drained"))
    assert deaths([*told, *_told((510, "engine.ready"))], 700) == 1


def test_after_three_deaths_only_what_is_to_be_borne_is_done() -> None:
    """Five within ten minutes would end the instance, by design."""
    kinds = kinds_here(Path("/group"))
    assert set(permitted(kinds, 3)) == BORNE
    assert set(permitted(kinds, 2)) == set(kinds) == set(KINDS) - {"squeeze"}
    assert "squeeze" in kinds_here(None)


def test_each_kind_has_its_turn() -> None:
    """The least played is next, so that none is left out."""
    kinds, played, dice = kinds_here(Path("/group")), Counter[str](), _dice()
    for _ in range(5 * len(kinds)):
        played[choose(kinds, played, 0, dice)] += 1
    assert set(played.values()) == {5}


# --- Bars -------------------------------------------------------------------------------------------------------


def _usage(anonymous: float, n_fds: int = 30) -> Usage:
    size = int(anonymous * MIB)
    return Usage(rss_bytes=2 * size, pss_bytes=2 * size, uss_bytes=size, anonymous_bytes=size, n_fds=n_fds, n_threads=4)


def _sample(at_s: float, anonymous: float, *, n_fds: int = 30, is_at_rest: bool = False) -> Sample:
    return Sample(
        at_s=at_s,
        is_at_rest=is_at_rest,
        launcher=_usage(anonymous, n_fds),
        guard=_usage(5.0),
        engine_rss_bytes=MIB,
        n_engines=1,
        n_processes=2,
        n_zombies=0,
        state_bytes=1000,
        cpu_share=0.3,
        n_answers=int(at_s),
    )


def _record(per_h: float = 0.0, *, n_more: int = 0) -> Record:
    """Return the record of two hours in which the launcher grew by so many MiB an hour, and descriptors by so many in all."""
    dice = _dice()
    samples = [_sample(t, 60.0 + per_h * t / 3600 + dice.gauss(0, 0.1)) for t in range(0, 7200, 5)]
    samples[240] = _sample(1200.0, 60.0, is_at_rest=True)
    samples.append(_sample(7200.0, 60.0, n_fds=30 + n_more, is_at_rest=True))
    return Record(
        lasted_s=7210.0,
        is_over=True,
        warm_up_s=1200.0,
        samples=tuple(samples),
        answers={"chat": {"whole": 7000}},
        log_bound_bytes=2000,
        exit_code=0,
    )


def test_a_good_run_keeps_every_bar() -> None:
    """Two calm hours miss nothing."""
    assert not any(bars(_record()).values())


@pytest.mark.parametrize(
    ("record", "bar"),
    [
        (_record(2.0), "launcher's anonymous not shown to be flat"),
        (_record(n_more=1), "descriptors at rest, more at the end"),
        (replace(_record(), n_lost=1, n_odd=1), "requests without a whole answer"),
        (replace(_record(), n_odd=1), "requests answered as their kind must not be"),
        (replace(_record(), orphans=("1 llama-server",)), "processes left after the end"),
        (replace(_record(), exit_code=1), "the launcher's end"),
        (replace(_record(), log_bound_bytes=999), "bytes of state above what rotation allows"),
        (
            replace(_record(), faults=(Fault(kind="kill", at_s=1.0, is_warm_up=False, wrong="not ready again"),)),
            "faults not recovered from",
        ),
        (replace(_record(), driver_fault="told to end"), "the run's own end"),
        (replace(_record(), is_over=False), "the run's own end"),
    ],
)
def test_each_bar_can_be_missed(record: Record, bar: str) -> None:
    """What is wrong with a run misses its own bar, and no other."""
    assert [name for name, n in bars(record).items() if n] == [bar]


@pytest.mark.parametrize(("at_once", "per_h", "n"), [(0.7, 0.0, 0), (0.0, 40.0, 1)])
def test_a_short_run_is_held_to_what_it_can_show(at_once: float, per_h: float, n: int) -> None:
    """In five minutes less than an arena taken at once is no leak; what rises all the time is one."""
    samples = [_sample(t, 40.0 + per_h * t / 3600 + at_once * (t > 150)) for t in range(0, 300, 5)]
    record = replace(_record(), warm_up_s=-1.0, samples=tuple(samples))
    assert bars(record)["launcher's anonymous not shown to be flat"] == n


@pytest.mark.parametrize(("per_h", "n"), [(0.0, 0), (2.0, 1)])
def test_descriptors_are_compared_while_an_engine_is_there(per_h: float, n: int) -> None:
    """Those of an engine are gone between two of them: that hides no leak, nor looks like one."""
    dice = _dice(3)
    samples = []
    for t in range(1205, 7200, 5):
        n_fds = 16 + int(per_h * t / 3600) + dice.choice((0, 0, 3, 40))
        lost = _sample(t, 60.0, n_fds=n_fds - dice.randint(2, 6))
        is_lost = dice.random() < 0.02
        samples.append(replace(lost, engine_rss_bytes=0, guard=None) if is_lost else _sample(t, 60.0, n_fds=n_fds))
    assert any(sample.guard is None for sample in samples)
    assert bars(replace(_record(), samples=tuple(samples)))["launcher's descriptors not shown to be flat"] == n


def test_what_is_written_gives_the_same_report(tmp_path: Path) -> None:
    """The JSON holds all that the report is made from; a page holds the report of each run."""
    record = _record(0.5)
    write(record, tmp_path / "new" / "soak")
    again = read(tmp_path / "new" / "soak.json")
    assert (tmp_path / "new" / "soak.txt").read_text() == render(again) == render(record)
    assert page([again, again]).count("Every bar was kept.") == 2


def test_a_run_that_was_cut_reports_what_it_has() -> None:
    """Nothing sampled after the warm-up, or nothing at all: a report, and no verdict of flat."""
    for record in (Record(), replace(_record(), warm_up_s=None, is_over=False)):
        assert render(record)
        assert bars(record)["launcher's anonymous not shown to be flat"] == 1


def test_a_rest_is_a_row_of_samples() -> None:
    """Samples at rest that follow each other are one rest, of which the least counts."""
    samples = (*_record().samples, _sample(7205.0, 61.0, is_at_rest=True))
    assert [rest.at_s for rest in rests(replace(_record(), samples=samples))] == [1200.0, 7200.0]


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port on which nobody listens, nor can."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
