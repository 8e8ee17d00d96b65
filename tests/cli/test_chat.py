"""``launch chat`` as a process: in a pipe, and on a terminal."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from launcher.domain import State
from launcher.store import identify
from tests.fakes.harness import poll
from tests.fakes.recorded import GONE, record_served
from tests.fakes.scripted import DONE, EVENTS, HANG, Scripted, event, fault, scripted, whole
from tests.fakes.typist import CTRL_C, CTRL_D, typing

pytestmark = pytest.mark.slow

_KEY: Final = "sentinel-7c1e5a9d02b84f36"
_NASTY: Final = "a\x1b]0;owned\x07\x1b[2Jb\rc\x9b31m\u202egnp\nd\té\u3000\U0001f469\u200d\U0001f52c"


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty state directory, and no key."""
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LAUNCHER_API_KEY", raising=False)


def chat(
    launch: tuple[str, ...], *words: str, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run it in a pipe."""
    return subprocess.run(
        [*launch, "chat", "x", *words],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, **(env or {})},
    )


def said(server: Scripted, idx: int = -1) -> list[tuple[str, str]]:
    """What was sent of the conversation with one of the requests."""
    return [(message["role"], message["content"]) for message in server.requests[idx][1]["messages"]]


def test_a_pipe_gets_the_answer_and_nothing_else(launch: tuple[str, ...]) -> None:
    """From stdin or by `--message`; what stdout gets is the answer byte for byte, with a line's end."""
    with scripted(whole("Grüße", " \x1b[1m2")) as server:
        record_served("x", server.port)
        piped = chat(launch, "--system", "be brief", "--max-tokens", "9", "--temperature", "0", stdin=b"wie?\n")
        asked = chat(launch, "-m", "how?", stdin=b"not read")
    for done in (piped, asked):
        assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "Grüße \x1b[1m2\n", b"")
    assert said(server, 0) == [("system", "be brief"), ("user", "wie?\n")]
    assert said(server, 1) == [("user", "how?")]
    body = server.requests[0][1]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("gemma3-270m", 9, 0.0)
    assert not {"max_tokens", "temperature"} & set(server.requests[1][1])


def test_thoughts_are_no_answer(launch: tuple[str, ...]) -> None:
    """What a model thinks before it answers is not in the pipe."""
    with scripted(EVENTS + event(reasoning_content="hm") + event("yes") + event(finish="stop") + DONE) as server:
        record_served("x", server.port)
        done = chat(launch, "-m", "?")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"yes\n", b"")


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        (EVENTS + event("half") + b'data: {"error":{"message":"gone"}}\n\n', "answer-incomplete", "half\n"),
        (EVENTS + event("half") + event(finish="length") + DONE, "answer-incomplete", "half\n"),
        (fault(400, {"message": "exceeds the available context size"}), "context-exceeded", ""),
        (fault(401, {"message": "wrong"}), "endpoint-access", ""),
        (fault(500, {"message": "compute error"}), "endpoint-failed", ""),
    ],
)
def test_what_is_not_whole_is_exit_code_1(launch: tuple[str, ...], answer: bytes, code: str, text: str) -> None:
    """What came is printed all the same; stderr has the fault with its code and help, and no traceback."""
    with scripted(answer) as server:
        record_served("x", server.port)
        done = chat(launch, "-m", "?", "--max-tokens", "4")
    assert (done.returncode, done.stdout.decode()) == (1, text)
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith(f"error[{code}]: ")
    assert lines[-1].startswith("help: ")


def test_who_is_not_served_is_named_with_the_way_to_it(launch: tuple[str, ...]) -> None:
    """Never served, ended, killed, a worker, or not even planned: none of them is asked."""
    for fields, words in (
        (None, "is not served here"),
        ({"state": State.STOPPED, "supervisor": GONE}, "it is stopped"),
        ({"state": State.READY, "supervisor": GONE}, "it is failed (its supervisor"),
        ({"plan": None}, "serves no model"),
        ({"plan": None, "state": State.STARTING, "reason": "it is being planned"}, "is starting: it is being planned"),
    ):
        if fields is not None:
            record_served("x", 1, **fields)
        done = chat(launch, "-m", "?")
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"error[not-served]: `x`" in done.stderr
        assert words.encode() in done.stderr
        if fields is None or "plan" not in fields:
            assert b"`launch serve x`" in done.stderr


def test_an_alias_is_known_as_serve_knows_it(launch: tuple[str, ...]) -> None:
    """What was served by an alias has the profile's name; it is found by either."""
    with scripted(whole("yes")) as server:
        record_served("gemma3-270m", server.port)
        for name in ("gemma3:270m", "gemma3-270m"):
            done = subprocess.run([*launch, "chat", name, "-m", "?"], capture_output=True, timeout=60, check=False)
            assert (done.returncode, done.stdout, done.stderr) == (0, b"yes\n", b"")


def test_wrong_usage(launch: tuple[str, ...]) -> None:
    """No message, or one of nothing but space, and limits that are none: exit code 2, and nobody is asked."""
    with scripted(whole("no")) as server:
        record_served("x", server.port)
        limits = (("--max-tokens", "0"), ("--max-tokens", "2147483648"), ("--temperature", "-1"))
        for words in ((), ("-m", " \n"), *(("-m", "?", *limit) for limit in limits)):
            done = chat(launch, *words)
            assert (done.returncode, done.stdout) == (2, b"")
    assert server.requests == []


def test_an_engine_that_is_away_is_waited_for(launch: tuple[str, ...]) -> None:
    """It is said on stderr, and the answer comes."""
    away = fault(503, {"message": "the engine is starting again", "code": "not-ready"}, "Retry-After: 1")
    with scripted(away, away, whole("back")) as server:
        record_served("x", server.port)
        done = chat(launch, "-m", "?")
    assert (done.returncode, done.stdout) == (0, b"back\n")
    assert done.stderr == b"waiting: the engine is starting again\n"


def test_the_key_is_sent_and_never_shown(launch: tuple[str, ...], tmp_path: Path) -> None:
    """From the environment or a file of one's own; it is not in what is printed, whatever goes wrong."""
    file = tmp_path / "key"
    file.write_text(f"# mine\n{_KEY}\n")
    file.chmod(0o600)
    env = {"LAUNCHER_API_KEY": _KEY}
    with scripted(whole("yes"), whole("yes"), fault(401, {"message": f"wrong {_KEY[:4]}"})) as server:
        record_served("x", server.port)
        by_env = chat(launch, "-m", "?", env=env)
        by_file = chat(launch, "-m", "?", "--api-key-file", str(file))
        refused = chat(launch, "-m", "?", env=env)
        file.chmod(0o644)
        open_to_all = chat(launch, "-m", "?", "--api-key-file", str(file))
    assert [done.returncode for done in (by_env, by_file, refused, open_to_all)] == [0, 0, 1, 1]
    assert [f"Bearer {_KEY}" in head for head, _ in server.requests] == [True] * 3
    assert b"does not take this API key" in refused.stderr
    assert b"open to other users" in open_to_all.stderr
    for done in (by_env, by_file, refused, open_to_all):
        assert _KEY.encode() not in done.stdout + done.stderr


def test_no_key_goes_to_a_stranger(launch: tuple[str, ...]) -> None:
    """Who listens at the address but is not the instance's supervisor gets nothing."""
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        with scripted(whole("give me that")) as server:
            record_served("x", server.port, supervisor=identify(sleeper.pid))
            done = chat(launch, "-m", "?", env={"LAUNCHER_API_KEY": _KEY})
        assert done.returncode == 1
        assert b"error[endpoint-access]: another process than that of `x` listens" in done.stderr
        assert server.requests == []
    finally:
        sleeper.kill()
        sleeper.wait()


# --- On a terminal ----------------------------------------------------------------------------------------------


def test_a_conversation_on_a_terminal(launch: tuple[str, ...], tmp_path: Path) -> None:
    """All that was said is sent each time; a line can be had again by an arrow key; Ctrl-D ends it, and nothing was written."""
    with scripted(whole("one"), whole("two"), whole("three"), whole("four")) as server:
        record_served("x", server.port)
        before = sorted(tmp_path.rglob("*"))
        with typing(*launch, "chat", "x", "--system", "s", env=os.environ) as typist:
            typist.await_text("> ")
            typist.type("first\n")
            typist.await_text("one\r\n.*> ")
            typist.type("\x1b[A\n")
            typist.await_text("two\r\n.*> ")
            typist.type("/forget\n")
            typist.await_text("1 question left\r\n.*> ")
            typist.type("third\n")
            typist.await_text("three\r\n.*> ")
            typist.type("/clear\n \n")
            typist.await_text("(?s)> .*> ")
            typist.type("fourth\n")
            typist.await_text("four\r\n.*> ")
            typist.type(CTRL_D)
            assert typist.end() == 0
            assert typist.settings() == typist.before
        assert sorted(tmp_path.rglob("*")) == before
    s = ("system", "s")
    assert said(server, 0) == [s, ("user", "first")]
    assert said(server, 1) == [s, ("user", "first"), ("assistant", "one"), ("user", "first")]
    assert said(server, 2) == [s, ("user", "first"), ("assistant", "two"), ("user", "third")]
    assert said(server, 3) == [s, ("user", "fourth")]


def test_what_a_model_writes_does_not_steer_the_terminal(launch: tuple[str, ...]) -> None:
    """Control characters of its answer, its thoughts and a server's error are escaped; lines, tabs and letters stay."""
    answers = (
        EVENTS + event(reasoning_content="\x1b[31m") + event(_NASTY) + event(finish="stop") + DONE,
        fault(500, {"message": "\x1b[2J"}),
    )
    with scripted(*answers) as server:
        record_served("x", server.port)
        with typing(*launch, "chat", "x", env={**os.environ, "LANG": "C.UTF-8"}) as typist:
            typist.await_text("> ")
            typist.type("go\n")
            text = typist.await_text("\\\\u202egnp\r\nd.*\r\n")
            assert "\\x1b[31m" in text
            assert "a\\x1b]0;owned\\x07\\x1b[2Jb\\rc\\x9b31m\\u202egnp\r\nd" in text
            assert "é\u3000\U0001f469\u200d\U0001f52c" in text
            typist.await_text("> ")
            typist.type("go\n")
            text = typist.await_text("(?s)launch logs.*> ")
            assert "\x1b[2J" not in text
            typist.type(CTRL_D)
            assert typist.end() == 0


def test_ctrl_c_ends_the_answer_and_then_the_chat(launch: tuple[str, ...]) -> None:
    """The endpoint sees its client leave; what came stays a part of what was said, and the next question is answered."""
    with scripted(EVENTS + event("begun ") + HANG, HANG, whole("done")) as server:
        record_served("x", server.port)
        with typing(*launch, "chat", "x", env=os.environ) as typist:
            typist.await_text("> ")
            typist.type("first\n")
            typist.await_text("begun ")
            typist.type(CTRL_C)
            typist.await_text("counts as the answer\r\n.*> ")
            assert server.left.wait(20)
            typist.type("second\n")
            typist.await_text("second\r\n")
            _await_requests(server, 2)
            typist.type(CTRL_C)
            typist.await_text("ended before it began\r\n.*> ")
            typist.type("third\n")
            typist.await_text("done\r\n.*> ")
            typist.settle()
            typist.type(CTRL_C)
            assert typist.end() == 0
            assert typist.settings() == typist.before
    assert said(server) == [("user", "first"), ("assistant", "begun "), ("user", "third")]


def _await_requests(server: Scripted, n: int) -> None:
    assert poll(lambda: len(server.requests) >= n)


def test_faults_leave_the_conversation_usable(launch: tuple[str, ...]) -> None:
    """A lost answer and a question that is too long are told and left out; the next one is sent without them."""
    lost = EVENTS + event("half") + b'data: {"error":{"message":"the answer is not complete: killed"}}\n\n'
    long = fault(400, {"message": "x", "type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 8})
    with scripted(whole("fine"), lost, long, whole("good")) as server:
        record_served("x", server.port)
        with typing(*launch, "chat", "x", env=os.environ) as typist:
            typist.await_text("> ")
            typist.type("a\n")
            typist.await_text("fine\r\n.*> ")
            typist.type("b\n")
            typist.await_text(r"(?s)half\r\nerror\[answer-incomplete\]: .*killed.*help: .*> ")
            typist.type("c\n")
            typist.await_text(r"(?s)error\[context-exceeded\]: .*9 tokens, where 8.*/forget.*> ")
            typist.type("d\n")
            typist.await_text("good\r\n.*> ")
            typist.type(CTRL_D)
            assert typist.end() == 0
    assert said(server) == [("user", "a"), ("assistant", "fine"), ("user", "d")]


def test_an_instance_that_ends_ends_the_chat(launch: tuple[str, ...]) -> None:
    """Its address is dead and its record says why: exit code 1, with the way to serve it again."""
    with scripted(whole("fine")) as server:
        record_served("x", server.port)
        with typing(*launch, "chat", "x", env=os.environ) as typist:
            typist.await_text("> ")
            server.stop()
            record_served("x", server.port, state=State.STOPPED, supervisor=GONE)
            typist.type("still there?\n")
            typist.await_text(r"error\[not-served\]: `x` is not served: it is stopped")
            assert typist.end() == 1
            assert typist.settings() == typist.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(launch: tuple[str, ...], number: signal.Signals) -> None:
    """While a line is typed, when it is not as the shell had it: echo and line editing are back."""
    with scripted(whole("fine")) as server:
        record_served("x", server.port)
        with typing(*launch, "chat", "x", env=os.environ) as typist:
            typist.await_text("> ")
            typist.type("half a li")
            typist.await_text("half a li")
            typist.settle()
            typist.process.send_signal(number)
            assert typist.end() == 128 + number
            assert typist.settings() == typist.before


def test_data_goes_to_stdout_where_that_is_no_terminal(launch: tuple[str, ...]) -> None:
    """Questions typed, answers in a file: the prompt is not among them."""
    with scripted(whole("one\x1b"), whole("two\n")) as server:
        record_served("x", server.port)
        with typing(*launch, "chat", "x", env=os.environ, pipe_stdout=True) as typist:
            for question in ("first\n", "second\n"):
                typist.await_text("> ")
                typist.type(question)
            typist.await_text("> ")
            typist.type(CTRL_D)
            assert typist.end() == 0
            assert typist.process.stdout is not None
            assert typist.process.stdout.read() == b"one\x1b\ntwo\n"


def test_what_is_pasted_is_one_message(launch: tuple[str, ...]) -> None:
    """Lines that come in one paste are not sent one by one."""
    with scripted(whole("one")) as server:
        record_served("x", server.port)
        with typing(*launch, "chat", "x", env=os.environ) as typist:
            typist.await_text("> ")
            typist.type("\x1b[200~first\nsecond\x1b[201~\n")
            typist.await_text("one\r\n.*> ")
            typist.type(CTRL_D)
            assert typist.end() == 0
    assert said(server) == [("user", "first\nsecond")]


def test_nothing_of_it_is_read_at_start_up() -> None:
    """`launch plan` pays nothing for it."""
    script = "import sys, launcher.cli; print([m for m in sys.modules if m.startswith(('http', 'launcher.client', 'readline'))])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
