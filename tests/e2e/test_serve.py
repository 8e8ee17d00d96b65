"""The main job on real engines: plan, start, answer, stop; and what goes wrong before that."""

import http.client
import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final

import psutil
import pytest

from launcher.domain import EngineInstall
from launcher.supervisor.checks import free_port
from launcher.supervisor.options import RunOptions
from tests.fakes.stores import manifest_of, put_manifest

_READY_S: Final = 120.0
_GONE_S: Final = 30.0

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("real_model")]


class Serve:
    """A ``launch serve`` in the foreground, and the port it answers at."""

    def __init__(self, process: subprocess.Popen[str], errors: Path, port: int) -> None:
        """Hold the running command; ``errors`` collects its stderr."""
        self.process = process
        self.errors = errors
        self.port = port

    def get(self, path: str) -> str:
        """Read what is told at a path."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """Send one JSON request and read the whole answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _await(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.02)


@contextmanager
def _serving(launch: tuple[str, ...], environment: dict[str, str], folder: Path, *words: str) -> Iterator[Serve]:
    """Run ``launch serve``; on leaving, make sure that it and all it started are gone."""
    port = free_port("127.0.0.1")
    errors = folder / "stderr.txt"
    with ExitStack() as stack:
        stderr = stack.enter_context(errors.open("w"))
        process = subprocess.Popen(
            [*launch, "serve", *words, "--port", str(port)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
            start_new_session=True,
        )
        stack.enter_context(process)
        stack.callback(_end, process)
        assert process.stdout is not None
        first = _read_line(process.stdout)
        assert f"http://127.0.0.1:{port}/v1" in first, errors.read_text()
        yield Serve(process, errors, port)


def _read_line(stream: IO[str]) -> str:
    """Read the line that comes with readiness; the test's own timeout bounds it."""
    return stream.readline()


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GONE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def _run(launch: tuple[str, ...], environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*launch, *words], capture_output=True, text=True, env=environment, timeout=150, check=False)


_CHAT: Final[dict[str, Any]] = {
    "model": "gemma3-270m",
    "messages": [{"role": "user", "content": "Name three colours."}],
    "max_tokens": 12,
    "temperature": 0,
}


@pytest.mark.parametrize("engine", ["llama-server", "llama-cpp-python"])
def test_an_engine_serves_chat_and_streams_it(
    engine: str, launch: tuple[str, ...], environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Both engines answer ``/v1/chat/completions``, whole and streamed; what they hold is told; Ctrl-C leaves nothing behind."""
    request.getfixturevalue(engine.replace("-", "_"))
    words = ("gemma3-270m", "--engine", engine, "--context", "1024")
    with _serving(launch, environment, tmp_path, *words) as served:
        status, answer = served.post("/v1/chat/completions", _CHAT)
        assert status == 200
        assert json.loads(answer)["choices"][0]["message"]["role"] == "assistant"

        status, stream = served.post("/v1/chat/completions", {**_CHAT, "stream": True})
        assert status == 200
        chunks = [line[6:] for line in stream.decode().splitlines() if line.startswith("data: ")]
        assert chunks[-1] == "[DONE]"
        assert all("delta" in json.loads(chunk)["choices"][0] for chunk in chunks[:-1] if json.loads(chunk)["choices"])

        _await(lambda: "\nlauncher_memory_held_bytes{" in served.get("/metrics"), "its memory was looked at", _GONE_S)
        assert '\nlauncher_memory_free_bytes{memory="host"}' in served.get("/metrics")

        started = _children(served.process)
        assert started
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(_GONE_S) == 0
        _await(lambda: not _alive(started), "every process is gone", _GONE_S)
    with pytest.raises(ConnectionRefusedError):
        served.post("/v1/chat/completions", _CHAT)


@pytest.mark.parametrize("engine", ["llama-server", "llama-cpp-python"])
def test_a_long_stream_is_not_disturbed_by_looks_at_its_engine(
    engine: str, launch: tuple[str, ...], environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Longer than the time between two looks at the engine's health, and it goes on."""
    request.getfixturevalue(engine.replace("-", "_"))
    endless = {"prompt": "1 2 3", "max_tokens": 1900, "logit_bias": {"1": -100, "106": -100}, "stream": True}
    with _serving(launch, environment, tmp_path, "gemma3-270m", "--engine", engine, "--context", "2048") as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(endless), {"Content-Type": "application/json"})
        response = connection.getresponse()
        end_s = time.monotonic() + 1.5 * RunOptions().health_pause_s
        while time.monotonic() < end_s:
            line = response.readline()
            assert line
            assert b"[DONE]" not in line
        connection.close()


def test_a_client_of_nonsense_does_not_cost_the_engine(
    launch: tuple[str, ...], environment: dict[str, str], tmp_path: Path, llama_server: EngineInstall
) -> None:
    """llama-server answers 500 to a tool it cannot read; asked something of our own it answers, so it stays."""
    del llama_server
    wrong = {**_CHAT, "tools": [{"type": "nonsense"}]}
    with _serving(
        launch, environment, tmp_path, "gemma3-270m", "--engine", "llama-server", "--context", "1024"
    ) as served:
        started = _children(served.process)
        _await(lambda: _is_sound(served, wrong), "the engine is asked", 60)
        assert served.post("/v1/chat/completions", _CHAT)[0] == 200
        assert _alive(started) == started


def _is_sound(served: Serve, wrong: dict[str, Any]) -> bool:
    assert served.post("/v1/chat/completions", wrong)[0] == 500
    return "the engine is sound" in served.errors.read_text()


def test_the_placement_on_the_cpu_is_as_large_as_planned(
    launch: tuple[str, ...], environment: dict[str, str], tmp_path: Path, llama_server: EngineInstall
) -> None:
    """What the engine says of its cache and compute buffers is what the plan says, within a few MiB."""
    del llama_server
    with _serving(launch, environment, tmp_path, "gemma3-270m", "--engine", "llama-server", "--context", "2048"):
        status = json.loads(_run(launch, environment, "status", "gemma3-270m", "--json").stdout)
        log = _run(launch, environment, "logs", "gemma3-270m", "-n", "2000").stdout
    host = status["record"]["plan"]["footprint"]["host"]
    cache = sum(_mib(line) for line in log.splitlines() if "KV buffer size" in line)
    compute = sum(_mib(line) for line in log.splitlines() if "CPU compute buffer size" in line)
    assert cache > 0
    assert host["kv_cache_bytes"] / 2**20 == pytest.approx(cache, abs=0.01)
    assert host["compute_bytes"] / 2**20 == pytest.approx(compute, abs=8)


def test_an_engine_is_asked_once_what_it_takes(
    launch: tuple[str, ...], environment: dict[str, str], tmp_path: Path, llama_server: EngineInstall
) -> None:
    """The first start tells before it loads; the next is judged by that before it is started, and loads at once."""
    del llama_server
    options, told = [], []
    for _ in range(2):
        with _serving(
            launch, environment, tmp_path, "gemma3-270m", "--engine", "llama-server", "--context", "2048"
        ) as serve:
            (command,) = (child.cmdline() for child in _children(serve.process) if "--fit" in child.cmdline())
            options.append(command[command.index("--fit") + 1])
            told.append([line for line in serve.errors.read_text().splitlines() if "it fits" in line])
    assert options == ["on", "off"]
    assert told == [["it fits, by its own account"], ["it fits, by what it told of itself before"]]


def _mib(line: str) -> float:
    return float(line.partition("=")[2].partition("MiB")[0])


def test_detached_it_is_seen_and_ended_from_another_terminal(
    launch: tuple[str, ...], environment: dict[str, str], llama_server: EngineInstall
) -> None:
    """``--detach`` returns when it is ready; ``ps``, ``status``, ``logs`` and ``stop`` work on it."""
    del llama_server
    words = ("gemma3-270m", "--context", "1024", "--port", "0")
    started = _run(launch, environment, "serve", "--detach", *words)
    try:
        assert started.returncode == 0, started.stderr
        assert "/v1/chat/completions" in started.stderr + started.stdout
        assert "gemma3-270m" in _run(launch, environment, "ps").stdout
        assert "ready" in _run(launch, environment, "status", "gemma3-270m").stdout
        assert "listening" in _run(launch, environment, "logs", "gemma3-270m", "-n", "500").stdout
        again = _run(launch, environment, "serve", *words)
        assert again.returncode == 1
        assert again.stderr.startswith("error[already-served]")
        assert "help: " in again.stderr
    finally:
        stopped = _run(launch, environment, "stop", "gemma3-270m")
    assert stopped.returncode == 0, stopped.stderr
    assert "ready" not in _run(launch, environment, "ps").stdout
    assert _run(launch, environment, "stop", "never-served").returncode == 1


def test_a_port_in_use_is_named_and_nothing_is_left(
    launch: tuple[str, ...], environment: dict[str, str], llama_server: EngineInstall
) -> None:
    """The error names the address; the lock is free for the next start."""
    del llama_server
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = _run(launch, environment, "serve", "gemma3-270m", "--port", port)
        again = _run(launch, environment, "serve", "gemma3-270m", "--port", port)
    assert (result.returncode, again.returncode) == (1, 1)
    assert "error[port-in-use]" in result.stderr
    assert port in result.stderr
    assert "error[port-in-use]" in again.stderr


def test_a_broken_model_file_is_refused_before_anything_starts(
    launch: tuple[str, ...], environment: dict[str, str], tmp_path: Path, real_model: Path
) -> None:
    """A download cut short is named by what is missing of it."""
    cut = tmp_path / "cut.gguf"
    with real_model.open("rb") as whole:
        cut.write_bytes(whole.read(64 << 20))
    result = _run(launch, environment, "serve", str(cut))
    assert result.returncode == 1
    assert "error[bad-weights-file]" in result.stderr
    assert "help: " in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (("gemma2-27b", "--no-pull"), 1, "weights-missing"),
        (("gemma3-270m", "--quant", "q8_0", "--no-pull"), 1, "weights-missing"),
        (("gemma3-270m", "--host", "0.0.0.0"), 2, "usage"),  # noqa: S104 - it is refused
        (("gemma3-270m", "--engine", "llama-cpp-python", "--parallel", "2"), 3, "unsupported"),
        (("gemma3-270m", "--context", "999999"), 3, "exceeds-context"),
    ],
)
def test_what_cannot_be_served_is_said_with_help(
    launch: tuple[str, ...], environment: dict[str, str], words: tuple[str, ...], code: int, kind: str
) -> None:
    """Each has its kind, a way out and its exit code."""
    result = _run(launch, environment, "serve", *words, "--port", "0")
    assert result.returncode == code, result.stderr
    assert f"error[{kind}]" in result.stderr
    assert "help: " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_engine_is_said_with_help(launch: tuple[str, ...], environment: dict[str, str]) -> None:
    """No vLLM is there, or cannot load a GGUF: either way the answer names it."""
    result = _run(launch, environment, "serve", "gemma3-270m", "--engine", "vllm", "--port", "0")
    assert result.returncode == 3
    assert "vllm" in result.stderr


def test_a_state_directory_that_cannot_be_made_is_said(launch: tuple[str, ...], environment: dict[str, str]) -> None:
    """Nothing is started where nothing can be recorded."""
    broken = {**environment, "LAUNCHER_STATE_DIR": "/dev/null/state"}
    result = _run(launch, broken, "serve", "gemma3-270m", "--port", "0")
    assert result.returncode == 1
    assert "error[state-unusable]" in result.stderr
    assert "help: " in result.stderr


@pytest.mark.usefixtures("llama_server")
def test_a_model_of_ollamas_is_served_in_place(
    launch: tuple[str, ...], environment: dict[str, str], real_model: Path, tmp_path: Path
) -> None:
    """Its blob has no extension, is compared with its digest once, and is as it was afterwards."""
    models = tmp_path / "ollama"
    put_manifest(models, manifest_of(models, real_model.read_bytes(), file_type="Q4_K_M"), "gemma3", "270m")
    blob = max((models / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    before = blob.stat()
    environment |= {"OLLAMA_MODELS": str(models), "LAUNCHER_CACHE_DIR": str(tmp_path / "cache")}
    words = ("ollama:gemma3:270m", "--engine", "llama-server", "--context", "1024")
    for n_read in (1, 0):
        with _serving(launch, environment, tmp_path, *words) as served:
            assert served.post("/v1/chat/completions", _CHAT)[0] == 200
            assert served.errors.read_text().count("checking the sha256") == n_read
    after = blob.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns, after.st_size) == (
        before.st_mtime_ns,
        before.st_ctime_ns,
        before.st_size,
    )


@pytest.mark.heavy
def test_layers_are_really_offloaded_to_a_vulkan_device(
    launch: tuple[str, ...], environment: dict[str, str], tmp_path: Path, llama_server: EngineInstall
) -> None:
    """On lavapipe, a Vulkan device in software, the planned layers are on the device, and it answers."""
    seen = {**environment, "GGML_VK_VISIBLE_DEVICES": "0"}
    listed = subprocess.run(
        [*llama_server.argv, "--list-devices"],
        env={**seen, **llama_server.env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "Vulkan0" not in listed.stdout:
        pytest.skip("needs a Vulkan device: apt-get install mesa-vulkan-drivers, and a llama-server with Vulkan")
    words = (
        "gemma3-270m",
        "--engine",
        "llama-server",
        "--n-gpu-layers",
        "5",
        "--context",
        "256",
        "--ubatch-size",
        "32",
    )
    with _serving(launch, seen, tmp_path, *words) as served:
        log = _run(launch, seen, "logs", "gemma3-270m", "-n", "2000").stdout
        status, _ = served.post("/v1/completions", {"prompt": "1", "max_tokens": 1})
    assert "offloaded 5/19 layers to GPU" in log
    assert status == 200
