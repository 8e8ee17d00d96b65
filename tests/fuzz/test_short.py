"""The short form of `make fuzz`: some thousands of hostile inputs, all targets among them."""

import logging
import random
from contextlib import nullcontext

import pytest

from launcher.errors import MetadataError
from tests.fuzz.bounds import GrowthError, check_growth, counted_memory, peak_bytes
from tests.fuzz.chunk import Report, replay, run_chunk
from tests.fuzz.target import Target, WrongError, check_fault, check_figures, check_printable
from tests.fuzz.targets import TARGETS
from tests.fuzz.trees import mutate, shrink
from tests.fuzz.weights import to_json
from tests.fuzz.wire import IncompleteError, Request, WireError, read_request, read_responses

pytestmark = pytest.mark.slow

_N_INPUTS = {
    "planner": 50,
    "profiles": 100,
    "http-clients": 192,
    "http-engines": 128,
    "engine-logs": 150,
    "stores": 100,
}
_N_OTHERS = 300


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_ends_wrongly(name: str) -> None:
    """Accepted or refused by the right fault, within bounds, nothing raw in what is said; and not refused at the door."""
    report = run_chunk(TARGETS[name], seed=1, chunk=0, n_inputs=_N_INPUTS.get(name, _N_OTHERS))
    assert [(each.kind, each.where, each.trace) for each in report.findings] == []
    assert len(report.endings) > 1
    assert len(report.lines) > report.n_lines / 4


def _run(take: "Target", n_inputs: int = 40) -> Report:
    return run_chunk(take, seed=1, chunk=0, n_inputs=n_inputs)


def _target(take: object, **more: object) -> Target:
    return Target(
        name="own",
        modules=("launcher.units",),
        seeds=lambda: [[1, "two", b"three"]],
        encode=lambda tree: repr(tree).encode(),
        take=take,  # type: ignore[arg-type]  # a function, whatever it does
        refusals=(MetadataError,),
        **more,  # type: ignore[arg-type]  # fields of a target
    )


def test_a_fault_of_another_kind_is_found() -> None:
    """And made as small as it can be: the tree that is left holds nothing that does not matter."""

    def take(data: bytes) -> str:
        if b"two" not in data:
            raise KeyError(data)
        return "accepted"

    report = _run(_target(take))
    (found,) = report.findings
    assert (found.kind, found.n_seen) == ("KeyError", report.endings["WRONG"])
    assert len(found.data) < 5
    with pytest.raises(KeyError):
        replay(_target(take), found.data)


def test_a_fault_that_speaks_raw_is_found() -> None:
    """The class is right, its words are not fit for a terminal."""

    def take(data: bytes) -> str:
        msg = f"\x1b[2J{len(data)}"
        raise MetadataError(msg, offset=0, field="x")

    (found,) = _run(_target(take)).findings
    assert found.kind == "WrongError"


def test_an_input_that_takes_too_long_is_found() -> None:
    """By the processor's time, so that a busy machine fails nobody."""

    def take(data: bytes) -> str:
        while b"two" not in data:
            pass
        return "accepted"

    report = _run(_target(take, cpu_s=0.05), n_inputs=6)
    assert {found.kind for found in report.findings} == {"HangError"}


def test_an_input_that_fills_the_memory_is_found() -> None:
    """More than its bytes justify, by Python's count or by the kernel's; an input of that size may."""
    for n_input in (10, 4 << 20):
        with pytest.raises(GrowthError) if n_input == 10 else nullcontext(), counted_memory(n_input, 1 << 20):
            bytes(8 << 20)
    with pytest.raises(GrowthError):
        check_growth(0, 10, 1 << 10)
    check_growth(peak_bytes(), 10, 16 << 20)


def test_the_same_seed_tries_the_same_inputs() -> None:
    """What is found can be found again."""
    tried: list[list[bytes]] = []

    def take(data: bytes) -> str:
        tried[-1].append(data)
        return "accepted"

    for _ in range(2):
        tried.append([])
        _run(_target(take))
    assert tried[0] == tried[1]
    assert len(set(tried[0])) > 30


def test_shrinking_keeps_what_matters() -> None:
    """A tree of many parts, of which one counts."""
    tree = {"a": [1, [2, {"x": "needle in a haystack"}], 3], "b": list(range(50))}
    smallest = shrink(tree, lambda smaller: "needle" in repr(smaller))
    assert len(repr(smallest)) < 40


def test_changes_are_of_the_tree_alone() -> None:
    """What is changed is a copy: the seed stays what it was."""
    seed = {"a": [1, 2, {"b": "c"}], "d": b"e"}
    before = repr(seed)
    rng = random.Random(1)  # noqa: S311 - to be had again
    changed = {to_json(mutate(rng, seed, [seed])) for _ in range(200)}
    assert repr(seed) == before
    assert len(changed) > 100


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), {"n": [3, -2]}])
def test_impossible_figures_are_told(value: object) -> None:
    """Wherever they stand."""
    with pytest.raises(WrongError):
        check_figures({"a": value}, "x")
    check_figures({"a_bytes": -1}, "x", signed=("a_bytes",))


def test_what_a_terminal_obeys_is_told() -> None:
    """In a text of several lines, too."""
    check_printable("one\ntwo", "x", lines=True)
    for text, lines in (("one\ntwo", False), ("one\n\x1b[2J", True), ("\u202e", False)):
        with pytest.raises(WrongError):
            check_printable(text, "x", lines=lines)
    with pytest.raises(WrongError):
        check_fault(MetadataError("fine", offset=0, field="x", help="\x07"))


@pytest.mark.parametrize(
    "stream",
    [
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nX : y\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: y\r\n z\r\n\r\n",
        b"GET /\nX HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\nY: b\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
    ],
)
def test_the_reference_takes_nothing_that_can_be_read_in_two_ways(stream: bytes) -> None:
    """Otherwise it would excuse a gateway that does."""
    with pytest.raises(WireError) as caught:
        read_request(stream)
    assert not isinstance(caught.value, IncompleteError)


def test_the_reference_reads_what_is_right() -> None:
    """Requests one behind the other, answers of every framing."""
    chunked = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhi\r\n0\r\nT: u\r\n\r\n"
    first, rest = read_request(chunked + b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n")
    assert first == Request(b"POST", b"/a", b"hi", ((b"transfer-encoding", b"chunked"),))
    assert read_request(rest)[0].target == b"/b"
    answers = read_responses(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 204 No\r\n\r\n"
        b"HTTP/1.0 200 OK\r\n\r\nto the end",
        closed=True,
    )
    assert [(each.status, each.body) for each in answers] == [
        (100, b""),
        (200, b"hi"),
        (204, b""),
        (200, b"to the end"),
    ]


@pytest.fixture(autouse=True)
def _silent() -> None:
    """Nothing of a hostile client is logged; whatever else is, fails the test by its handler."""
    assert logging.getLogger("launcher.gateway.http").disabled
