"""Logs in the forms in which they are passed on, and within bounds."""

import bz2
import gzip
import json
import lzma
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.doctor import log_file
from launcher.doctor.log_file import read_log
from launcher.doctor.log_text import LogText, parse_log
from launcher.errors import UsageError

LINE = "llama_init: failed to allocate buffer for kv cache"


@pytest.mark.parametrize(
    "passed_on",
    [
        LINE,
        f"Nov 22 16:05:32 host launch[123]: {LINE}",
        f"2026-11-22T16:05:32+0000 host launch@gemma.service[1]: {LINE}",
        json.dumps({"MESSAGE": LINE, "_PID": "1"}),
        json.dumps({"MESSAGE": list(f"\x1b[31m{LINE}\x1b[0m".encode()), "_PID": "1"}),
        f"\x1b[31m{LINE}\x1b[0m",
    ],
)
def test_a_line_is_taken_out_of_what_passed_it_on(passed_on: str) -> None:
    """Bare, by journalctl in two forms and as JSON, and coloured: the same line."""
    assert parse_log(passed_on).lines == (LINE,)


def test_a_message_of_many_lines() -> None:
    """The journal keeps as one message what was written at once: its lines are lines."""
    assert parse_log(json.dumps({"MESSAGE": "one\n" * 60 + LINE})).lines == ("one",) * 60 + (LINE,)


@pytest.mark.parametrize("message", [[300], ["a"], [-1], [None], {}, 7, None])
def test_a_message_that_is_none(message: object) -> None:
    """What is neither text nor bytes stays as it stands there."""
    line = json.dumps({"MESSAGE": message})
    assert parse_log(line).lines == (line,)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"at":1,"event":"engine.exited","expected":false,"code":null,"signal":9}', LogText(signal_number=9)),
        ('{"at":1,"event":"engine.exited","expected":false,"code":1,"signal":null}', LogText(code=1)),
        ("the engine ended (SIGBUS)", LogText(signal_number=7)),
        ("error[engine-failed]: the engine ended while it served (exit code 3): x", LogText(code=3, codes=("engine-failed",))),
        ("launch@x.service: Main process exited, code=exited, status=3/NOTIMPLEMENTED", LogText(code=3)),
        ("launch@x.service: Main process exited, code=killed, status=9/KILL", LogText(signal_number=9)),
        ("Nov 22 16:05:32 host kernel: Memory cgroup out of memory: Killed process 77 (llama-server) total-vm:1kB", LogText(n_oom_kills=1)),
        ("Nov 22 16:05:32 host kernel: Out of memory: Killed process 77 (firefox) total-vm:1kB", LogText()),
        ("launch@x.service: A process of this unit has been killed by the OOM killer.", LogText(n_oom_kills=1)),
        ('{"event": ["engine.exited"]}', LogText()),
        ('{"event":"engine.exited","code":true,"signal":"9"}', LogText()),
        ("{" * 5000 + "}", LogText()),
    ],
)  # fmt: skip
def test_what_a_log_says_of_an_end(line: str, found: LogText) -> None:
    """Code, signal and the kernel's kills, by the launcher's events and messages, systemd's and the kernel's words."""
    told = parse_log(line)
    assert (told.code, told.signal_number, told.n_oom_kills, told.codes) == (
        found.code,
        found.signal_number,
        found.n_oom_kills,
        found.codes,
    )


@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    """No text breaks it, and it has as many lines as the text."""
    assert len(parse_log(text).lines) == len(text.splitlines())


def test_a_large_log_is_cut_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a log beyond the bounds beginning and end are kept, no line is made of two, and it is said."""
    monkeypatch.setattr(log_file, "HEAD_BYTES", 1000)
    monkeypatch.setattr(log_file, "TAIL_BYTES", 100_000)
    path = tmp_path / "engine.log"
    lines = [f"line {number:07}" for number in range(50_000)]
    path.write_text("\n".join(lines))
    found = read_log(str(path))
    assert (found.is_cut, found.n_bytes) == (True, path.stat().st_size)
    kept = found.text.splitlines()
    assert (kept[0], kept[-1]) == (lines[0], lines[-1])
    assert len(found.text) < 1000 + 100_000 + 2 * (1 << 16)
    assert len(set(kept) - set(lines)) <= 2


def test_a_small_log_is_whole(tmp_path: Path) -> None:
    """Bytes that are no text are replaced, nothing else is changed."""
    path = tmp_path / "engine.log"
    path.write_bytes(b"a\xffb\nc")
    assert read_log(str(path)) == ("a\ufffdb\nc", 5, False)


@pytest.mark.parametrize(
    ("pack", "program"), [(gzip.compress, "zcat"), (lzma.compress, "xzcat"), (bz2.compress, "bzcat")]
)
def test_a_log_that_was_packed(pack: Callable[[bytes], bytes], program: str, tmp_path: Path) -> None:
    """What a rotated log became is not taken for one without a sign: the command that unpacks it is told, and works."""
    path = tmp_path / "my engine.log.1"
    path.write_bytes(pack(b"main: failed\n"))
    with pytest.raises(UsageError, match=f"what `{program}` reads") as caught:
        read_log(str(path))
    command = (caught.value.help or "").split("`")[1].partition(" | ")[0]
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=20, check=False)
    assert done.stdout == b"main: failed\n" or shutil.which(program) is None


def test_a_pipe(tmp_path: Path) -> None:
    """A named pipe that nobody writes to ends at once, instead of waiting."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert read_log(str(path)).text == ""


def test_what_a_shell_substitutes() -> None:
    """`launch explain <(journalctl ...)` names an open pipe, which is read to its end."""
    reader, writer = os.pipe()
    os.write(writer, b"hello\n")
    os.close(writer)
    try:
        assert read_log(f"/dev/fd/{reader}") == ("hello\n", 6, False)
    finally:
        os.close(reader)


def test_what_may_not_be_read(tmp_path: Path) -> None:
    """A link to itself is wrong usage with the system's words."""
    path = tmp_path / "loop.log"
    path.symlink_to(path)
    with pytest.raises(UsageError, match="too many levels of symbolic links"):
        read_log(str(path))
