"""`launch chat` with the real model behind real engines, what `launch top` sees of it, and an answer whose engine is killed."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

import pytest

from launcher.domain import EngineInstall

_NAME: Final = "gemma3-270m"

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("real_model")]


def _run(launch: tuple[str, ...], environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*launch, *words], capture_output=True, text=True, env=environment, timeout=150, check=False)


@contextmanager
def _served(launch: tuple[str, ...], environment: dict[str, str], *words: str) -> Iterator[None]:
    """Serve in the background; on leaving, it is ended."""
    done = _run(launch, environment, "serve", _NAME, "--port", "0", "--detach", *words)
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        assert _run(launch, environment, "stop", _NAME).returncode == 0


def _record(launch: tuple[str, ...], environment: dict[str, str]) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(_run(launch, environment, "status", _NAME, "--json").stdout)["record"]
    return status


@pytest.mark.parametrize("engine", ["llama-server", "llama-cpp-python"])
def test_an_engine_is_talked_to(
    engine: str, launch: tuple[str, ...], environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """Its answer ends at the limit that was asked for, which is said; what is longer than the context is known in its own words.

    llama-cpp-python has none in a stream: it breaks off without an answer.
    """
    request.getfixturevalue(engine.replace("-", "_"))
    with _served(launch, environment, "--engine", engine, "--context", "512"):
        asked = ("chat", _NAME, "--temperature", "0", "--max-tokens", "12", "--message")
        done = _run(launch, environment, *asked, "Name three colours.")
        if engine == "llama-server":
            assert done.stdout.strip()
        if done.stdout.strip():  # the other engine's template has this model end before it says a word
            assert done.returncode == 1
            assert done.stderr.startswith("error[answer-incomplete]")
            assert "--max-tokens 12" in done.stderr
        else:
            assert (done.returncode, done.stderr) == (0, "")
        assert _run(launch, environment, *asked, "Name three colours.").stdout == done.stdout
        done = _run(launch, environment, *asked, "many words " * 600)
        assert (done.returncode, done.stdout) == (1, "")
        code = "context-exceeded" if engine == "llama-server" else "endpoint-failed"
        assert done.stderr.startswith(f"error[{code}]")
        assert "context" in done.stderr


def test_an_answer_whose_engine_is_killed(
    launch: tuple[str, ...], environment: dict[str, str], llama_server: EngineInstall
) -> None:
    """It ends in words and with exit code 1; the next question waits for the next engine, and is answered."""
    del llama_server
    with _served(launch, environment, "--engine", "llama-server", "--context", "2048"):
        engine = _record(launch, environment)["engine"]["pid"]
        argv = [*launch, "chat", _NAME, "--message", "Count."]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as talk:
            assert talk.stdout is not None
            assert talk.stderr is not None
            assert _first(talk.stdout)
            (seen,) = json.loads(_run(launch, environment, "top", _NAME, "--json").stdout)["instances"]
            os.kill(engine, signal.SIGKILL)
            _, errors = talk.communicate(timeout=60)
        assert talk.returncode == 1
        assert seen["figures"]["n_running"] == 1
        assert seen["figures"]["stream_tps"] > 0
        assert seen["figures"]["memories"][0]["name"] == "host"
        assert errors.startswith("error[answer-incomplete]"), errors
        again = _run(launch, environment, "chat", _NAME, "--max-tokens", "4", "--message", "And now?")
        assert again.stdout.strip()
        assert "--max-tokens 4" in again.stderr
        assert _record(launch, environment)["n_restarts"] == 1


def _first(stream: IO[str]) -> str:
    """Return the first character, once it has come."""
    return stream.read(1)
