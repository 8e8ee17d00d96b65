"""One real vLLM behind the gateway: what it answers, how it was started, that nothing of it stays.

The tests share one start, in the order in which they stand; the last one stops it.
"""

import json
import re
import urllib.request
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from launcher.supervisor.scratch import mapped_shared
from tests.vllm.conftest import NAME, Serve

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(450)]


@pytest.fixture(scope="module")
def served(start: Callable[..., Serve]) -> Serve:
    """Ready with two requests at once."""
    serve = start("--context", "512", "--parallel", "2")
    serve.await_event("engine.ready")
    return serve


def test_it_answers_through_the_gateway(served: Serve) -> None:
    """A chat, under the name that it was served as; another name is the engine's own 404."""
    status, body = served.chat()
    assert status == 200
    answer = json.loads(body)
    assert (answer["model"], answer["usage"]["completion_tokens"]) == (NAME, 8)
    assert NAME in [entry["id"] for entry in json.loads(served.ask("/v1/models")[1])["data"]]
    assert served.chat(model="another")[0] == 404


def test_it_streams(served: Serve) -> None:
    """Events as they come, the last one says that it is over."""
    status, body = served.chat(stream=True)
    events = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: ")]
    assert status == 200
    assert events[-1] == b"[DONE]"
    assert len([event for event in events[:-1] if json.loads(event)["choices"]]) > 1


def test_a_request_longer_than_planned_is_refused(served: Serve) -> None:
    """The engine was given the planned length, and says so; it serves on."""
    status, body = served.chat(messages=[{"role": "user", "content": "x" * 600}])
    assert (status, b"maximum context length is 512" in body) == (400, True)
    assert served.chat()[0] == 200


def test_it_was_started_as_planned(served: Serve) -> None:
    """On loopback, with the planned sizes; its key is in no argument, and nobody without it gets through."""
    words = served.engine("vllm.entrypoints").cmdline()
    options = dict(pairwise(words))
    assert options["--host"] == "127.0.0.1"
    assert (options["--max-model-len"], options["--max-num-seqs"]) == ("512", "2")
    # 512 tokens are 4 blocks of 128; one more is never given to a request; a token takes 512 bytes
    assert options["--kv-cache-memory-bytes"] == str((2 * 4 + 1) * 128 * 512)
    key = served.engine("vllm.entrypoints").environ()["VLLM_API_KEY"]
    assert key
    assert not any(key in word for word in words)


def test_what_it_holds_is_what_was_planned(served: Serve) -> None:
    """Of the cache to the token, by what it said while it loaded and by its own metrics."""
    (measured,) = served.events("engine.measured")
    assert measured["kv_cache_tokens"] == measured["planned_kv_cache_tokens"] == 9 * 128
    options = dict(pairwise(served.engine("vllm.entrypoints").cmdline()))
    with urllib.request.urlopen(f"http://127.0.0.1:{options['--port']}/metrics", timeout=30) as answer:
        told = re.search(r'vllm:cache_config_info\{.*kv_cache_size_tokens="(\d+)"', answer.read().decode())
    assert told is not None
    assert int(told[1]) == 9 * 128


def test_a_stop_leaves_nothing(served: Serve) -> None:
    """``launch stop`` ends it by itself, not by force; no process of it lives, and its sockets and shared memory are gone."""
    folder = Path(served.engine("vllm.entrypoints").environ()["TMPDIR"])
    assert any(path.is_socket() for path in folder.iterdir())
    mapped = mapped_shared(process.pid for process in served.tree())
    assert served.run("stop", NAME).returncode == 0
    assert served.end() == 0
    assert [event["code"] for event in served.events("engine.exited")] == [0]
    assert not folder.exists()
    assert not [name for name in mapped if (Path("/dev/shm") / name).exists()]  # noqa: S108 - where the kernel has it
