"""Bounds on what is kept of an engine's output."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.supervisor.logs import MAX_LINE_BYTES, LineSplitter, RotatingFile


def split(chunks: list[bytes]) -> list[str]:
    """Feed the chunks and end the stream."""
    lines: list[str] = []
    splitter = LineSplitter(lines.append)
    for chunk in chunks:
        splitter.feed(chunk)
    splitter.close()
    return lines


@given(st.binary(max_size=300), st.integers(1, 40))
def test_lines_do_not_depend_on_how_the_bytes_arrive(data: bytes, size: int) -> None:
    """A pipe may cut anywhere, inside a character too."""
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    assert split(chunks) == split([data])


@given(st.lists(st.text(st.characters(categories=["L", "N", "P"]), max_size=50), max_size=20))
def test_lines_come_out_as_they_went_in(lines: list[str]) -> None:
    """Printable text is kept to the letter."""
    assert split(["".join(f"{line}\n" for line in lines).encode()]) == lines


@given(st.integers(1, 9), st.integers(1, 4096))
def test_a_line_without_end_is_cut(n: int, size: int) -> None:
    """However long, and in whatever pieces: one bounded line, and the next one is whole again."""
    endless = b"x" * (n * MAX_LINE_BYTES)
    chunks = [endless[start : start + size] for start in range(0, len(endless), size)]
    lines = split([*chunks, b"\nnext\n"])
    assert lines[-1] == "next"
    assert len(lines) == 2
    assert len(lines[0]) <= MAX_LINE_BYTES + len(" [...]")


def test_control_characters_do_not_reach_a_terminal() -> None:
    """An engine's line cannot move the cursor of whoever reads the log."""
    assert split([b"a\x1b[2Jb\r\n"]) == ["a\N{REPLACEMENT CHARACTER}[2Jb"]


@given(st.lists(st.integers(0, 200), max_size=60))
def test_a_rotating_file_keeps_the_newest_lines_in_bounds(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    """Two files, neither above the bound; together they end with what was written last."""
    path = tmp_path_factory.mktemp("log") / "log"
    lines = [f"{number}:{'x' * size}" for number, size in enumerate(sizes)]
    faults: list[OSError] = []
    file = RotatingFile(path, 500, faults.append)
    for line in lines:
        file.write(line)
    file.close()
    parts = [part for part in (Path(f"{path}.1"), path) if part.exists()]
    assert all(part.stat().st_size <= 500 for part in parts)
    kept = [line for part in parts for line in part.read_text().splitlines()]
    assert kept == lines[len(lines) - len(kept) :]
    assert kept or not lines
    assert not faults


@contextmanager
def file_size_limit(n_bytes: int) -> Iterator[None]:
    """Let the kernel refuse to let any file grow beyond ``n_bytes``, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_takes_no_more_costs_lines_and_one_warning(tmp_path: Path) -> None:
    """Writing goes on when there is room again, and a second shortage is told again."""
    faults: list[OSError] = []
    file = RotatingFile(tmp_path / "log", 10_000, faults.append)
    file.write("first")
    with file_size_limit(100):
        for _ in range(50):
            file.write("x" * 30)
    assert len(faults) == 1
    file.write("room again")
    with file_size_limit(100):
        file.write("x" * 30)
    file.close()
    assert len(faults) == 2
    assert "room again" in (tmp_path / "log").read_text()
