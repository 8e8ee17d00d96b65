"""``launch top`` as a process: one table, JSON, and a terminal that is left as it was."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from launcher.domain import State
from launcher.store import identify
from tests.fakes.harness import poll
from tests.fakes.recorded import GONE, record_served
from tests.fakes.scripted import HANG, Scripted, fault, scripted
from tests.fakes.typist import CTRL_C, CTRL_Z, typing

pytestmark = pytest.mark.slow

_KEY: Final = "sentinel-5b0f6d1c9a2e4873"
_SCREEN_ON: Final = "\x1b[?1049h"
_SCREEN_OFF: Final = "\x1b[?1049l"


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty state directory, and no key."""
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("LAUNCHER_API_KEY", raising=False)


def metrics(n_events: int, *more: str) -> bytes:
    """Return an answer of ``/metrics``."""
    lines = [f"launcher_stream_events_total {n_events}.0", "launcher_requests_running 3.0", *more]
    body = "\n".join([*lines, ""]).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


@contextmanager
def served(*answers: bytes, name: str = "x", **fields: object) -> Iterator[Scripted]:
    """Have an endpoint that answers so, and a record that says that it is served."""
    with scripted(*answers) as server:
        record_served(name, server.port, **fields)
        yield server


def top(launch: tuple[str, ...], *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run it without a terminal."""
    return subprocess.run(
        [*launch, "top", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(env or {})},
    )


def test_without_a_terminal_it_is_one_table(launch: tuple[str, ...]) -> None:
    """Two looks, so that there is a rate; no word that steers a terminal; `--once` is the same."""
    assert top(launch).stdout == "nothing is served\n"
    with served(metrics(0), metrics(1000), metrics(1000)) as server:
        record_served("gone", 1, state=State.STOPPED, supervisor=GONE)
        done = top(launch, "--interval", "0.2")
        assert len(server.requests) == 2
        assert top(launch, "--once", "--interval", "0.1").returncode == 0
    head, row = done.stdout.splitlines()
    assert head.split() == ["NAME", "STATE", "ENGINE", "TOK/S", "RUN", "WAIT", "CONTEXT", "STEP"]
    cells = row.split()
    assert (cells[:3], cells[4:]) == (["x", "ready", "llama-server"], ["3", "0", "2048x1", "0"])
    assert 0 < float(cells[3]) <= 1000 / 0.2
    assert (done.returncode, done.stderr, "\x1b" in done.stdout) == (0, "", False)


def test_an_endpoint_that_was_made_anew_has_no_negative_rate(launch: tuple[str, ...]) -> None:
    """Its count begins at nought again."""
    with served(metrics(1000), metrics(3)):
        document = json.loads(top(launch, "--json", "--interval", "0.1").stdout)
    assert document["instances"][0]["figures"]["stream_tps"] == 0.0


def test_json_is_that_of_ps_with_figures(launch: tuple[str, ...]) -> None:
    """The same instances, each with all that `ps --json` says of it."""
    with served(metrics(1), metrics(2)):
        document = json.loads(top(launch, "--json", "--interval", "0.1").stdout)
        listed = subprocess.run([*launch, "ps", "--json"], capture_output=True, text=True, timeout=60, check=True)
    figures = document["instances"][0].pop("figures")
    assert document["instances"][0].pop("unread") is None
    assert document == json.loads(listed.stdout)
    assert (figures["n_running"], figures["n_stream_events"]) == (3, 2)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (fault(401, {"message": "this endpoint wants an API key"}), "it wants an API key"),
        (fault(500, {"message": "no"}), "its endpoint answered with status 500"),
        (HANG, "its endpoint does not answer"),
        (b"SSH-2.0-x\r\n", "its endpoint does not answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nlaun", "its endpoint does not answer"),
    ],
)
def test_an_endpoint_without_figures_is_shown_with_the_reason(launch: tuple[str, ...], answer: bytes, why: str) -> None:
    """The record is shown all the same, one that hangs is not waited for, and the others have theirs."""
    with served(answer), served(metrics(1), name="y"):
        done = top(launch, "--interval", "0.1")
    lines = done.stdout.splitlines()
    assert lines[1].split() == ["x", "ready", "llama-server", "-", "-", "-", "2048x1", "0"]
    assert lines[2] == f"  no figures: {why}"
    assert lines[3].split()[4] == "3"
    assert done.returncode == 0


def test_who_serves_nothing_now_is_shown_as_it_is(launch: tuple[str, ...]) -> None:
    """A killed one among all; a stopped one, where it is asked for by name; one that was never served is a fault."""
    record_served("killed", 1, supervisor=GONE)
    record_served("gone", 1, state=State.STOPPED, supervisor=GONE)
    record_served("early", None, state=State.STARTING, fetching="3% of 9 GiB")
    done = top(launch)
    assert [line.split()[:2] for line in done.stdout.splitlines() if not line.startswith(" ")][1:] == [
        ["early", "starting"],
        ["killed", "failed"],
    ]
    assert "  download: 3% of 9 GiB\n  no figures: it does not listen yet\n" in done.stdout
    assert "was killed" in done.stdout
    assert top(launch, "gone").stdout.splitlines()[1].split()[:2] == ["gone", "stopped"]
    missing = top(launch, "nix", "--json")
    assert missing.returncode == 1
    assert json.loads(missing.stdout)["error"]["code"] == "not-served"


def test_the_key_is_sent_to_the_supervisor_alone(launch: tuple[str, ...]) -> None:
    """It opens the figures, is shown nowhere, and a stranger at the address of another instance does not get it."""
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        with served(metrics(1)) as ours, served(metrics(1), name="y", supervisor=identify(sleeper.pid)) as stranger:
            done = top(launch, "--interval", "0.1", env={"LAUNCHER_API_KEY": _KEY})
    finally:
        sleeper.kill()
        sleeper.wait()
    assert all(f"Bearer {_KEY}" in head for head, _ in ours.requests)
    assert ours.requests
    assert stranger.requests == []
    assert "another process than that of `y` listens" in done.stdout
    assert _KEY not in done.stdout + done.stderr


# --- On a terminal ----------------------------------------------------------------------------------------------


def test_it_is_drawn_again_and_again(launch: tuple[str, ...]) -> None:
    """On a screen of its own, each time from the top; `q` ends it, and the terminal is as it was."""
    with (
        served(metrics(0), metrics(50), metrics(100)) as server,
        typing(*launch, "top", "--interval", "0.1", env=os.environ) as typist,
    ):
        before = typist.await_text(r"\x1b\[H")
        assert _SCREEN_ON in before
        typist.await_text(r"(?s)\x1b\[H\x1b\[KNAME.*x .*ready.*\x1b\[J.*\x1b\[H\x1b\[KNAME")
        assert poll(lambda: typist.read(0.01) is not None and len(server.requests) > 3)
        typist.type("x")  # says nothing, is not shown
        typist.type("q")
        assert typist.end() == 0
        assert typist.seen.endswith(f"\x1b[?7h\x1b[?25h{_SCREEN_OFF}")
        assert typist.settings() == typist.before


@pytest.mark.parametrize(
    ("end", "code"), [("ctrl-c", 0), ("sigterm", 128 + signal.SIGTERM), ("sighup", 128 + signal.SIGHUP), ("sigint", 0)]
)
def test_each_end_leaves_the_terminal_as_it_was(launch: tuple[str, ...], end: str, code: int) -> None:
    """Its own screen is left, the cursor is back, and keys are echoed again; also while an endpoint hangs."""
    with served(metrics(1), HANG), typing(*launch, "top", env=os.environ) as typist:
        typist.await_text(r"(?s)\x1b\[H\x1b\[KNAME.*\x1b\[J")
        match end:
            case "ctrl-c":
                typist.type(CTRL_C)
            case "sigterm":
                typist.process.send_signal(signal.SIGTERM)
            case "sighup":
                typist.process.send_signal(signal.SIGHUP)
            case _:
                typist.process.send_signal(signal.SIGINT)
        assert typist.end() == code
        assert typist.seen.count(_SCREEN_OFF) == 1
        assert typist.seen.rstrip().endswith(_SCREEN_OFF)
        assert typist.settings() == typist.before


def test_a_window_that_changes_is_drawn_for_at_once(launch: tuple[str, ...]) -> None:
    """No line is longer than the window, none is below its last; what finds no room is counted."""
    with served(metrics(1)):
        for number in range(8):
            record_served(f"idle{number}", None)
        with typing(*launch, "top", "--interval", "600", env=os.environ, size=(40, 100)) as typist:
            text = typist.await_text(r"(?s)\x1b\[H\x1b\[KNAME.*\x1b\[J")
            assert text.count("\r\n") == 18
            typist.resize(6, 30)
            text = typist.await_text(r"(?s)\x1b\[H\x1b\[KNAME.*lines more").rpartition("\x1b[H")[2]
            lines = text.replace("\x1b[K", "").split("\r\n")
            assert len(lines) == 6
            assert max(map(len, lines)) == 30
            assert lines[-1] == "... 13 lines more"
            typist.type(CTRL_C)
            assert typist.end() == 0
            assert typist.settings() == typist.before


def test_a_shell_gets_the_terminal_while_it_is_stopped(launch: tuple[str, ...]) -> None:
    """Ctrl-Z gives it back as it was; `fg` takes it again."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash: apt-get install bash")
    script = 'launch=("$@"); "${launch[@]}" top --interval 0.1; echo "paused"; stty -a | tr ";" "\\n" | grep -ow -- "-*echo"; fg >/dev/null; echo "ended $?"'
    with served(metrics(1)), typing(bash, "-m", "-c", script, "bash", *launch, env=os.environ) as typist:
        typist.await_text(r"(?s)\x1b\[H\x1b\[KNAME.*\x1b\[J")
        typist.type(CTRL_Z)
        text = typist.await_text(r"paused\r\n-?echo\r\n")
        assert _SCREEN_OFF in text
        assert text.endswith("\necho\r\n")
        assert _SCREEN_ON in typist.await_text(r"(?s)\x1b\[H\x1b\[KNAME.*\x1b\[J")
        typist.type("q")
        typist.await_text("ended 0")
        assert typist.end() == 0
        assert typist.settings() == typist.before


def test_a_terminal_that_cannot_be_drawn_on_gets_a_table(launch: tuple[str, ...]) -> None:
    """A dumb one, as editors have it."""
    with served(metrics(1)), typing("env", "TERM=dumb", *launch, "top", "--interval", "0.1", env=os.environ) as typist:
        assert typist.end() == 0
        assert "NAME" in typist.seen
        assert "\x1b" not in typist.seen
