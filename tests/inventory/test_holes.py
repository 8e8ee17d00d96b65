"""Published faults of engines: which version has which, and how one is accepted."""

import pytest

from launcher.cluster.ray_holes import HOLES as RAY_HOLES
from launcher.cluster.ray_holes import find_holes as find_ray_holes
from launcher.inventory.holes import ACCEPT_VARIABLE, tell_holes
from launcher.inventory.llama_holes import (
    BUILD_HOLES,
    PYTHON_HOLES,
    find_build_holes,
    find_python_holes,
    parse_build,
)


@pytest.mark.parametrize(
    ("version", "build"),
    [
        ("6123 (abc1234)", 6123),
        ("b11434", 11434),
        ("0.5.0 (build 11175, commit abc1234)", 11175),
        ("0.10434.0, 0.1.0-dev (build 1, commit 7e4c0a9)", 10434),
        ("0.10434.0", 10434),
        ("1 (abc1234)", None),
        ("0 (unknown)", None),
        ("0.6.0-dev (build 0, commit unknown)", None),
        ("0.6.0", None),
        ("", None),
        (None, None),
    ],
)
def test_a_build_is_read_from_what_a_server_tells(version: str | None, build: int | None) -> None:
    """Both ways in which it told it, and the version of the wheel; a build from a bare source tree tells none."""
    assert parse_build(version) == build


def test_what_mends_a_fault_has_it_no_more() -> None:
    """It is there from its first version on, and not from the version on that mends it."""
    for hole in BUILD_HOLES:
        assert any(hole.ids in told for told in find_build_holes(f"{hole.mended[0] - 1} (abc1234)"))
        assert not any(hole.ids in told for told in find_build_holes(f"{hole.mended[0]} (abc1234)"))
    for hole in PYTHON_HOLES:
        told = [find_python_holes(".".join(map(str, release))) for release in (hole.since, hole.mended)]
        assert [bool(each) for each in told] == [True, False]
    for hole in RAY_HOLES:
        release = ".".join(map(str, hole.mended))
        assert not any(hole.ids in told for told in find_ray_holes(release))
        assert any(hole.ids in told for told in find_ray_holes("2.51.1"))


def test_of_an_unknown_version_nothing_is_said() -> None:
    """A guess would refuse what people build by themselves."""
    assert find_build_holes("0.6.0-dev (build 0, commit unknown)") == ()
    assert find_python_holes(None) == ()
    assert find_ray_holes("of an unknown version") == ()


def test_a_fault_is_accepted_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """By any of its ids, and no other fault with it."""
    (first, second, *_) = find_build_holes("8000 (abc1234)")
    monkeypatch.setenv(ACCEPT_VARIABLE, "GHSA-0000-0000-0000, CVE-2026-21869")
    assert find_build_holes("8000 (abc1234)") == (second,)
    assert find_build_holes("8500 (abc1234)") == ()
    monkeypatch.setenv(ACCEPT_VARIABLE, "CVE-2026")
    assert find_build_holes("8000 (abc1234)")[0] == first


def test_a_note_tells_the_ways_out() -> None:
    """A newer engine, or the variable that accepts a fault."""
    assert tell_holes("it", ()) == ()
    (note,) = tell_holes("`/usr/bin/llama-server` (b8000)", find_build_holes("b8000"))
    assert note.startswith("`/usr/bin/llama-server` (b8000) is not used: a request can write")
    assert "and 1 more" in note
    assert ACCEPT_VARIABLE in note
