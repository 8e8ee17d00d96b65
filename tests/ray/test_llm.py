"""Ray Serve LLM itself over vLLM for CPUs: a model of a megabyte, planned for a cluster and asked through the gateway.

The node's GPU is declared, not there. A plugin of vLLM's (`on_cpu`) lets its workers reserve it all the same, and the cache, which the
plan leaves to the GPU's memory, is set by a variable; all else is as it would be on GPUs.
The tests share one start, in the order in which they stand; the last one stops it. ``make test-ray`` runs them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from launcher.supervisor.checks import free_port
from tests.fakes.tiny_model import write_tiny_model
from tests.ray.cluster import RayCluster
from tests.ray.conftest import OnCluster

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ON_CPU: Final = Path(__file__).with_name("on_cpu")
NODE: Final = "127.0.0.3"
READY_S: Final = 480.0
"""Two and a half minutes on a busy 2-core machine: three processes import PyTorch and vLLM, one after the other."""


@pytest.fixture(scope="module")
def bare(ray_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A head and a node with one GPU, whose Serve listens on a free port of loopback, and nothing on it."""
    folder = tmp_path_factory.mktemp("vllm")
    env = {
        "PYTHONPATH": str(ON_CPU),
        "VLLM_PLUGINS": "ray_on_cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "GLOO_SOCKET_IFNAME": "lo",
        "VLLM_CACHE_ROOT": str(folder),
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(folder),
    }
    cluster = RayCluster(ray_python, env=env)
    try:
        cluster.start(n_cpu=4, nodes={NODE: 1})
        cluster.put({"http_options": {"host": "127.0.0.1", "port": free_port("127.0.0.1")}, "applications": []})
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def served(bare: RayCluster, launch: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnCluster]:
    """Ready."""
    folder = tmp_path_factory.mktemp("serve")
    model = write_tiny_model(folder / "tiny")
    serve = OnCluster(launch, folder, bare, (str(model), "--context", "512", "--parallel", "2"))
    serve.name = model.name
    try:
        serve.await_event("engine.ready", timeout_s=READY_S)
        yield serve
    finally:
        serve.close()


def test_it_answers_through_the_gateway(served: OnCluster) -> None:
    """A chat of eight tokens from the model's own weights."""
    status, body = served.chat(max_tokens=8)
    assert status == 200, body
    answer = json.loads(body)
    assert (answer["model"], answer["usage"]["completion_tokens"]) == (served.name, 8)


def test_it_streams(served: OnCluster) -> None:
    """Events as they come, the last one says that it is over."""
    status, body = served.chat(stream=True)
    events = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: ")]
    assert status == 200
    assert events[-1] == b"[DONE]"
    assert len(events) > 2


def test_it_was_started_as_planned(served: OnCluster) -> None:
    """A request longer than planned is refused by the engine, which was given the length."""
    status, body = served.chat(messages=[{"role": "user", "content": "x" * 600}])
    assert (status, b"512" in body) == (400, True), body


def test_its_lines_are_kept(served: OnCluster) -> None:
    """What Ray and vLLM said is read with ``launch logs``."""
    served.await_that(lambda: "Started vLLM engine" in served.run("logs", served.name).stdout, "the lines", 30)


def test_a_stop_takes_it_off(served: OnCluster, bare: RayCluster) -> None:
    """The command ends by itself, and Serve runs nothing any more."""
    assert served.run("stop", served.name).returncode == 0
    assert served.end() == 0
    assert bare.applications() == {}
