"""The speed of the real model, as it is measured over a real engine and through a served one's endpoint."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest

from launcher.domain import EngineInstall
from launcher.render.bench import bench_schema

pytestmark = [pytest.mark.engine, pytest.mark.heavy, pytest.mark.usefixtures("real_model")]

_KEY = "sk-0123456789abcdef0123"
_PLAN = ("--context", "256", "--parallel", "2")
_QUICK = ("--repetitions", "1", "--seconds", "120", "--json")


def _bench(launch: tuple[str, ...], environment: dict[str, str], *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [*launch, "bench", "gemma3-270m", *words, *_QUICK],
        capture_output=True,
        text=True,
        env=environment,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, json.loads(bench_schema()))
    found: dict[str, Any] = document["bench"]
    return found


def _check(found: dict[str, Any]) -> None:
    """What holds of any machine, however busy it is."""
    assert found["is_complete"]
    assert found["n_prompt"] >= 100
    assert found["n_generated"] == 48
    one, two = found["loads"]
    assert (one["n_requests"], two["n_requests"]) == (1, 2)
    for load in (one, two):
        names = ("prompt_tps", "generation_tps", "each_generation_tps", "first_token_s")
        assert all(load[name]["median"] > 0 for name in names)
    # The engine's own clock and ours agree on a prompt's time, but for what a first token takes besides.
    assert one["first_token_s"]["median"] >= 0.9 * found["n_prompt"] / one["prompt_tps"]["median"]
    speed = found["plan"]["speed"]["generation_tps"]
    assert one["generation_tps"]["ratio"] == pytest.approx(one["generation_tps"]["median"] / speed)


@pytest.mark.usefixtures("llama_server")
def test_the_real_model_is_measured(
    launch: tuple[str, ...],
    environment: dict[str, str],
    survivors: Callable[[], list[psutil.Process]],
    llama_server: EngineInstall,
) -> None:
    """At one request and at two by an engine of its own, and again by the endpoint of a served one, with its key."""
    engine = ("--engine", llama_server.engine.value)
    _check(_bench(launch, environment, *_PLAN, *engine))
    assert not survivors()
    assert not list(Path(environment["LAUNCHER_STATE_DIR"]).rglob("*.json"))
    with_key = {**environment, "LAUNCHER_API_KEY": _KEY}
    served = [*launch, "serve", "gemma3-270m", *_PLAN, *engine, "--port", "0", "--detach"]
    try:
        subprocess.run(served, capture_output=True, env=with_key, timeout=120, check=True)
        found = _bench(launch, with_key)
        _check(found)
        assert found["is_served"]
    finally:
        subprocess.run([*launch, "stop", "gemma3-270m"], capture_output=True, env=environment, timeout=60, check=False)
    assert not survivors()
