"""The real model over two real workers of llama.cpp's RPC on loopback: it answers, and a lost worker is no end."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import psutil
import pytest

from launcher.domain import EngineInstall
from launcher.inventory.rpc_server import find_rpc_server
from launcher.supervisor.checks import free_port
from launcher.units import MIB

_GONE_S: Final = 30.0
_LIMIT: Final = 700
"""MiB of each worker: less the margin of 512 that holds a part of the model and not the whole."""
_ROW: Final = re.compile(r"memory_breakdown_print: \|   - RPC(\d) .*?\(\s*\d+ =\s*(\d+) \+\s*(\d+) \+\s*(\d+)\)")

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("real_model")]


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _GONE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@contextlib.contextmanager
def _started(
    argv: tuple[str, ...], environment: dict[str, str], errors: Path, says: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a command until the block ends; its first line of output says that it is ready."""
    with contextlib.ExitStack() as stack:
        stderr: IO[str] = stack.enter_context(errors.open("w"))
        process = stack.enter_context(
            subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment)
        )
        stack.callback(_end, process)
        assert process.stdout is not None
        assert says in process.stdout.readline(), errors.read_text()
        yield process


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_GONE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def workers(
    launch: tuple[str, ...], environment: dict[str, str], tmp_path: Path, llama_server: EngineInstall
) -> Iterator[tuple[int, int]]:
    """Two ``launch worker`` on loopback; returns their ports."""
    del llama_server
    if find_rpc_server() is None:
        pytest.skip("needs ggml-rpc-server: pip install 'launcher[llama-server]'")
    ports = free_port("127.0.0.1"), free_port("127.0.0.1")
    with contextlib.ExitStack() as stack:
        for port in ports:
            argv = (*launch, "worker", "--port", str(port), "--threads", "1")
            stack.enter_context(_started(argv, environment, tmp_path / f"worker-{port}.txt", f"127.0.0.1:{port}"))
        yield ports


@contextlib.contextmanager
def _serving(
    launch: tuple[str, ...], environment: dict[str, str], folder: Path, workers: tuple[int, int]
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_port("127.0.0.1")
    rpc = ",".join(f"127.0.0.1:{worker}={_LIMIT}MiB" for worker in workers)
    argv = (*launch, "serve", "gemma3-270m", "--quant", "q4_k_m", "--context", "512", "--port", str(port), "--rpc", rpc)
    with _started(argv, environment, folder / "serve.txt", f":{port}/v1") as process:
        yield process, port


def _complete(port: int, n_tokens: int) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        body = {"prompt": "The capital of France is", "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def _status(launch: tuple[str, ...], environment: dict[str, str], name: str) -> dict[str, Any]:
    argv = (*launch, "status", name, "--json")
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, Any] = json.loads(done.stdout)["record"]
    return found


def test_a_model_over_two_workers_answers_and_takes_what_was_planned(
    launch: tuple[str, ...],
    environment: dict[str, str],
    tmp_path: Path,
    workers: tuple[int, int],
) -> None:
    """All layers are on the workers; the engine's own account of each is the plan's, whole MiB rounded down.

    Weights and cache are exact. The plan counts the compute buffers of builds that keep several batches on their way
    (11434 does, 10434 not yet): there is never more than was planned. The workers serve on afterwards.
    """
    with _serving(launch, environment, tmp_path, workers) as (process, port):
        status, answer = _complete(port, 8)
        assert status == 200
        assert answer["choices"][0]["text"].strip()
        record = _status(launch, environment, "gemma3-270m")
        plan = record["plan"]
        assert plan["n_gpu_layers"] == plan["n_layer"] + 1
        assert plan["engine_devices"] == ["RPC0", "RPC1"]
        log = Path(record["log_path"]).read_text()
        told = {int(row[0]): tuple(map(int, row[1:])) for row in _ROW.findall(log)}
        assert set(told) == {0, 1}
        for idx, use in enumerate(plan["footprint"]["devices"]):
            weights, cache, compute = told[idx]
            assert weights > 0
            assert (use["weights_bytes"] // MIB, use["kv_cache_bytes"] // MIB) == (weights, cache)
            assert compute <= use["compute_bytes"] // MIB
        process.send_signal(signal.SIGINT)
        assert process.wait(_GONE_S) == 0
    assert not psutil.pid_exists(record["engine"]["pid"])
    assert {_status(launch, environment, f"worker-{worker}")["state"] for worker in workers} == {"ready"}


@pytest.mark.heavy
def test_a_lost_worker_leads_to_a_plan_for_what_is_left(
    launch: tuple[str, ...],
    environment: dict[str, str],
    tmp_path: Path,
    workers: tuple[int, int],
    survivors: Callable[[], list[psutil.Process]],
) -> None:
    """SIGKILL of a worker's supervisor under load: the running request is answered all the same, by what is left."""
    with _serving(launch, environment, tmp_path, workers) as (_, port):
        answers: list[tuple[int, dict[str, Any]]] = []
        client = threading.Thread(target=lambda: answers.append(_complete(port, 64)))
        log = Path(_status(launch, environment, "gemma3-270m")["log_path"])
        n_before = log.read_text().count("launch_slot_")
        client.start()
        _await(lambda: log.read_text().count("launch_slot_") > n_before, "the request is running")
        os.kill(_status(launch, environment, f"worker-{workers[1]}")["supervisor"]["pid"], signal.SIGKILL)
        client.join(120)
        (answer,) = answers
        assert answer[0] == 200
        assert answer[1]["usage"]["completion_tokens"] == 64
        record = _status(launch, environment, "gemma3-270m")
        assert record["state"] == "ready"
        assert record["n_ladder_steps"] == 1
        assert f"127.0.0.1:{workers[1]} no longer answers; planned for what is left" in record["story"]
        assert f"127.0.0.1:{workers[1]}" not in record["plan"]["install"]["workers"]
    for worker in workers:
        subprocess.run(
            (*launch, "stop", f"worker-{worker}"), env=environment, capture_output=True, timeout=60, check=True
        )
    _await(lambda: not survivors(), "every process is gone")
