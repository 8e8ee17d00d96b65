"""The shell lines, run by a real shell with a program in vLLM's place that writes down how it was called."""

import json
import os
import subprocess
from pathlib import Path
from typing import Final

import pytest
import yaml
from msgspec.structs import replace

from launcher.domain import Address
from launcher.export import Target, export
from launcher.export.handover import Surroundings, hand_over
from tests.fakes.exports import planned

_AT: Final = Address(port=8080)
_FAKE: Final = """\
#!/usr/bin/env python3
import json, os, sys
print(json.dumps({"argv": sys.argv, "env": dict(os.environ)}))
"""
_NAMES: Final = ("llama", "a b'c\"d", "$(touch x) `id` $HOME", "a\nb \\ *")
_PLAN, _MACHINES = planned("llama3.1-405b", "2x8xa100-80g")


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    """Return a folder for PATH that has the program in vLLM's place."""
    path = tmp_path / "vllm"
    path.write_text(_FAKE)
    path.chmod(0o755)
    return tmp_path


def _run(text: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    everything = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), **env}
    return subprocess.run(["sh", "-c", text], env=everything, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("rank", [0, 1])
def test_each_machine_starts_its_part(vllm: Path, rank: int, name: str) -> None:
    """The plan's own arguments, its place among the machines, the addresses given, and its key in the environment alone."""
    plan = replace(_PLAN, model=name)
    text = export(plan, _MACHINES, Target.VLLM_MULTINODE, weights=f"/srv/{name}", address=_AT)
    env = {
        "NODE_RANK": str(rank),
        "MASTER_ADDR": "10.0.0.1",
        "OWN_ADDR": f"10.0.0.{rank + 1}",
        "VLLM_API_KEY": "secret",
    }
    result = _run(text, vllm, **env)
    assert result.returncode == 0, result.stderr
    called = json.loads(result.stdout)
    bare = Surroundings(has_own_gpus=False, has_mounts=False, is_container=False)
    node = hand_over(plan, _MACHINES, weights=f"/srv/{name}", address=_AT, around=bare).nodes[rank]
    assert called["argv"][1:] == [
        *node.argv[1:],
        *("--distributed-executor-backend", "mp", "--nnodes", "2", "--node-rank", str(rank), "--master-port", "29501"),
        *(("--headless",) if rank else ()),
        *("--master-addr", "10.0.0.1"),
    ]
    assert called["env"]["VLLM_HOST_IP"] == env["OWN_ADDR"]
    assert called["env"]["VLLM_API_KEY"] == "secret"
    assert called["env"]["HF_HUB_OFFLINE"] == "1"
    assert sorted(path.name for path in vllm.iterdir()) == ["vllm"]


@pytest.mark.parametrize("missing", ["NODE_RANK", "MASTER_ADDR", "OWN_ADDR", "VLLM_API_KEY"])
def test_what_only_the_machine_knows_is_asked_for(vllm: Path, missing: str) -> None:
    """Nothing is started without it, the first machine's key included."""
    text = export(_PLAN, _MACHINES, Target.VLLM_MULTINODE, address=_AT)
    env = {"NODE_RANK": "0", "MASTER_ADDR": "a", "OWN_ADDR": "a", "VLLM_API_KEY": "k"}
    result = _run(text, vllm, **{name: value for name, value in env.items() if name != missing})
    assert result.returncode != 0
    assert result.stdout == ""
    assert missing in result.stderr


def test_a_machine_too_many_is_told(vllm: Path) -> None:
    """It starts nothing."""
    text = export(_PLAN, _MACHINES, Target.VLLM_MULTINODE, address=_AT)
    result = _run(text, vllm, NODE_RANK="2", MASTER_ADDR="a", OWN_ADDR="a")
    assert (result.returncode, result.stdout) == (2, "")
    assert "no machine number 2" in result.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_skypilots_variables_say_who_is_who(vllm: Path, rank: int) -> None:
    """Its list of addresses is one a line, the first machine's first."""
    task = yaml.safe_load(export(_PLAN, _MACHINES, Target.SKYPILOT, address=_AT))
    env = {"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.9", "VLLM_API_KEY": "secret"}
    result = _run(task["run"], vllm, **env)
    assert result.returncode == 0, result.stderr
    called = json.loads(result.stdout)
    assert called["env"]["VLLM_HOST_IP"] == ("10.0.0.7", "10.0.0.9")[rank]
    assert called["argv"][called["argv"].index("--master-addr") + 1] == "10.0.0.7"
    assert called["argv"][called["argv"].index("--node-rank") + 1] == str(rank)
