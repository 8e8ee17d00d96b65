"""``launch bench``: what it asks and starts, what it prints, and how it ends; over small processes that pose as engines."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.domain import Engine, State
from launcher.errors import NotServedError, UsageError, WeightsMissingError
from launcher.inventory.engines import EXPLICIT_VARIABLE
from launcher.planner.abilities import NEEDED_OPTIONS
from launcher.render.bench import bench_schema
from launcher.store import find_instance
from launcher.supervisor.checks import free_port
from tests.fakes.harness import FAKES, Served, poll, start_stepping
from tests.fakes.processes import heirs

pytestmark = pytest.mark.slow

_SCHEMA = Path(__file__).parents[2] / "docs" / "bench.schema.json"
_RATES = '{"1": [100, 30]}'
_PROFILE = """
name = "poser"
[want]
context = 2048
[pin]
n_threads = 1
[model]
spec = "specs/gemma3-270m.json"
[[artifact]]
quantization = "q4_k_m"
local_path = "weights.gguf"
"""
_ENGINE = """#!/bin/sh
case "$*" in
--version) echo 'version: 10434 (0000000)' ;;
--list-devices) echo 'Available devices:' ;;
--help) printf '%s\\n' {options} ;;
*) exec {python} -S {fake} --rates '{rates}' {more} "$@" ;;
esac
"""
_QUICK: dict[str, Any] = {"restarts": {"first_delay_s": 0.05, "jitter_s": 0.0}}


class Poser:
    """A profile, weights of no bytes and an engine that only poses as one, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        """Write them down; nothing is started."""
        self.folder = folder
        (folder / "poser.toml").write_text(_PROFILE)
        (folder / "weights.gguf").touch()
        self.state = str(folder / "state")

    def start(self, *words: str, engine: str = "") -> "subprocess.Popen[str]":
        """Start ``launch bench`` with an engine that has these further arguments."""
        program = self.folder / "llama-server"
        fake = FAKES / "fake_engine.py"
        options = " ".join((*NEEDED_OPTIONS[Engine.LLAMA_SERVER], "--model", "--alias", "--host", "--port"))
        program.write_text(_ENGINE.format(python=sys.executable, fake=fake, rates=_RATES, options=options, more=engine))
        program.chmod(0o755)
        env = {**os.environ, EXPLICIT_VARIABLE: str(program), "LAUNCHER_STATE_DIR": self.state}
        argv = [sys.executable, "-m", "launcher", "bench", str(self.folder / "poser.toml"), *words]
        return subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
        )

    def run(self, *words: str, engine: str = "") -> tuple[int, str, str]:
        """Return the exit code and what was printed; nothing of it is left afterwards."""
        with self.start("--engine", "llama-server", *words, engine=engine) as process:
            out, err = process.communicate(timeout=60)
        assert poll(self.is_gone)
        return process.returncode, out, err

    def is_gone(self) -> bool:
        """Whether no process of it is left."""
        return not heirs(self.state)


@pytest.fixture
def poser(tmp_path: Path) -> Iterator[Poser]:
    """A command whose engine poses as one."""
    made = Poser(tmp_path)
    yield made
    for process in heirs(made.state):
        process.kill()


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the program at an empty state directory."""
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def serve(tmp_path: Path, state_dir: Path) -> Iterator[Callable[..., Served]]:
    """Serve ``fake`` by a real supervisor and gateway; whatever it started is ended after the test."""
    started: list[Served] = []

    def begin(*arguments: str, **scenario: Any) -> Served:
        engine = ("--rates", _RATES, *arguments)
        told = {"arguments": engine, **scenario}
        started.append(
            start_stepping(told, name="fake", port=free_port("127.0.0.1"), output=tmp_path / "output", options=_QUICK)
        )
        started[-1].await_event("engine.ready")
        return started[-1]

    yield begin
    for served in started:
        served.process.terminate()
        served.end()
    assert poll(lambda: not heirs(str(state_dir)))


def _figures(document: dict[str, Any]) -> dict[str, Any]:
    jsonschema.validate(document, json.loads(bench_schema()))
    figures: dict[str, Any] = document["bench"]
    return figures


def test_the_schema_file_is_the_code_s() -> None:
    """``docs/bench.schema.json`` is what the nouns say; ``make golden`` rewrites it."""
    if os.environ.get("LAUNCHER_GOLDEN"):
        _SCHEMA.write_text(bench_schema())
    assert _SCHEMA.read_text() == bench_schema()
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema_version": 2, "bench": {}}, json.loads(bench_schema()))


def test_measured_stands_beside_predicted(poser: Poser) -> None:
    """The plan's choice, then a table: medians, how sure they are, the prediction, their ratio."""
    code, out, err = poser.run("--parallel", "2", "--repetitions", "2")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("`poser` at q4_k_m with llama-server: on the CPU")
    assert any("2048 tokens per request x 2 parallel" in line for line in lines)
    (row, *_) = (line.split() for line in lines if line.startswith("    generated tokens/s "))
    assert row[2] == "30.0"
    assert float(row[-1]) == pytest.approx(30 / float(row[-2]), abs=0.01)
    assert any(line.startswith("  2 requests at once, 2 turns") for line in lines)
    assert "the interval of 2 turns is their range" in out
    assert "turn 2 of 2, 1 request" in err
    assert max(len(line) for line in lines if " /" not in line) <= 80


def test_json_keeps_to_the_schema(poser: Poser) -> None:
    """The document says what was planned and what was reached."""
    code, out, err = poser.run("--repetitions", "1", "--json")
    assert code == 0, err
    found = _figures(json.loads(out))
    assert (found["plan"]["quantization"], found["is_served"], found["is_complete"]) == ("q4_k_m", False, True)
    figure = found["loads"][0]["generation_tps"]
    assert figure["median"] == pytest.approx(30)
    assert figure["predicted"] == found["plan"]["speed"]["generation_tps"]
    assert figure["ratio"] == pytest.approx(30 / figure["predicted"])


def test_what_does_not_fit_is_refused_as_a_plan_is(state_dir: Path) -> None:
    """Exit code 3, the same facts, and advice whose commands measure."""
    result = CliRunner().invoke(app, ["bench", "llama3.1-405b", "--ctx-size", "131072"])
    assert result.exit_code == 3
    assert "error[exceeds" in result.stderr
    assert "launch bench " in result.stderr
    told = CliRunner().invoke(app, ["bench", "llama3.1-405b", "--ctx-size", "131072", "--json"])
    document = json.loads(told.stdout)
    jsonschema.validate(document, json.loads(bench_schema()))
    assert document["refusal"]["model"] == "llama3.1-405b"
    assert not any(path.suffix == ".json" for path in state_dir.rglob("*"))


def test_what_fits_and_is_not_here_is_not_downloaded(state_dir: Path) -> None:
    """The command that brings it is named."""
    del state_dir
    result = CliRunner().invoke(app, ["bench", "gemma3-270m", "--quant", "q8_0"])
    assert isinstance(result.exception, WeightsMissingError)
    assert "launch pull gemma3-270m --quant q8_0" in str(result.exception.help)


@pytest.mark.parametrize(
    "words", [("--seconds", "nan"), ("--seconds", "0"), ("--repetitions", "0"), ("--start-timeout", "inf")]
)
def test_numbers_that_mean_nothing_are_wrong_usage(words: tuple[str, str]) -> None:
    """They are told before anything is looked at."""
    result = CliRunner().invoke(app, ["bench", "gemma3-270m", *words])
    assert isinstance(result.exception, UsageError) or result.exit_code == 2
    assert result.stdout == ""


def test_an_engine_short_of_memory_is_named(poser: Poser) -> None:
    """While it loads or while it is measured: the cause, in words, and nothing is left."""
    said = "--say 'alloc_tensor_range: failed to allocate CPU buffer of size 1073741824'"
    code, out, err = poser.run(engine=f"{said} --exit-after-load 1")
    assert (code, out) == (1, "")
    assert "error[engine-failed]: the engine ended" in err
    assert "memory" in err
    code, out, err = poser.run(engine=f"{said} --answer-s 60 --exit-after-s 0.3")
    assert (code, out) == (1, "")
    assert "memory does not suffice" in err


@pytest.mark.parametrize(
    ("number", "tree"), [(signal.SIGINT, ""), (signal.SIGTERM, "--stubborn-tree"), (signal.SIGHUP, "")]
)
def test_a_signal_ends_it_and_its_engine(poser: Poser, number: signal.Signals, tree: str) -> None:
    """In the middle of a request: the exit code is a shell's for that signal, and no engine is left, a stubborn one either."""
    with poser.start("--engine", "llama-server", engine=f"--answer-s 600 {tree}") as process:
        assert process.stderr is not None
        assert poll(lambda: [p for p in heirs(poser.state) if _is_connected(p, process.pid)])
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == ""
    assert err.endswith("interrupted: nothing is told, and nothing is left running\n")
    assert poll(poser.is_gone)


def _is_connected(process: psutil.Process, pid: int) -> bool:
    """Whether the command itself, not its guard, has a connection that stands: to its engine."""
    if process.pid != pid:
        return False
    return any(connection.status == psutil.CONN_ESTABLISHED for connection in process.net_connections("tcp"))


def test_a_served_instance_is_asked_by_its_endpoint(serve: Callable[..., Served]) -> None:
    """Nothing is started; it is said that others' load counts in; what it is served with can be repeated, not changed."""
    served = serve()
    result = CliRunner().invoke(app, ["bench", "fake", "--repetitions", "2", "--json"])
    assert result.exit_code == 0, result.output
    found = _figures(json.loads(result.stdout))
    assert found["is_served"]
    assert found["plan"]["model"] == "llama3.1-8b"
    assert found["loads"][0]["prompt_tps"]["median"] == pytest.approx(100)
    assert "`fake` is being served: what its other clients ask for counts in" in result.stderr
    assert served.events().count("engine.spawned") == 1
    same = CliRunner().invoke(
        app, ["bench", "fake", "--repetitions", "1", "--parallel", str(found["plan"]["n_parallel"])]
    )
    assert "other clients" in same.stdout
    for words in (("--parallel", "7"), ("--quant", "q2_k"), ("--min-tps", "1"), ("--min-tps", "0"), ("--force",)):
        other = CliRunner().invoke(app, ["bench", "fake", *words])
        assert isinstance(other.exception, UsageError), words
        assert "launch stop fake" in str(other.exception.help)


def test_an_engine_that_is_lost_while_it_serves_is_a_fault(serve: Callable[..., Served]) -> None:
    """The gateway has the request answered by the next engine: no figure of serving, so none is told."""
    served = serve("--answer-s", "0.5")
    with subprocess.Popen(
        [sys.executable, "-m", "launcher", "bench", "fake", "--repetitions", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        while "turn 1" not in (line := process.stderr.readline()):
            assert line
        os.kill(served.engine_pid(), signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "error[engine-failed]" in err
    assert "launch status fake" in err


def test_an_instance_that_is_not_ready_is_not_measured(serve: Callable[..., Served]) -> None:
    """Waiting for it would count as its speed."""
    served = serve(options=None)
    os.kill(served.process.pid, signal.SIGSTOP)
    try:
        view = find_instance("fake")
        assert view.record is not None
        path = Path(view.path) / "instance.json"
        told = json.loads(path.read_bytes())
        path.write_text(json.dumps({**told, "state": State.BACKOFF.value}))
        result = CliRunner().invoke(app, ["bench", "fake"])
    finally:
        os.kill(served.process.pid, signal.SIGCONT)
    assert isinstance(result.exception, NotServedError)
    assert "backoff" in str(result.exception)
