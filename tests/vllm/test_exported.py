"""Exported command lines, read by vLLM's own parser; no server, no weights."""

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Final

import pytest
import yaml

from launcher.inventory.vllm_install import EXPLICIT_VARIABLE

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(700)]

_FOLDER: Final = Path(__file__).parents[1] / "export" / "goldens"
_READ: Final = """\
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
names = "model_tag nnodes node_rank master_addr headless tensor_parallel_size pipeline_parallel_size".split()
for line in sys.stdin:
    args = parser.parse_args(json.loads(line))
    validate_parsed_serve_args(args)
    print("read", json.dumps([getattr(args, name) for name in names]))
"""


def _lines() -> list[list[str]]:
    """Return what follows ``vllm serve`` in a container's file, and in the script for each of two machines."""
    compose = yaml.safe_load((_FOLDER / "llama405b-8xh100.compose.yaml").read_text())
    lines = [compose["services"]["engine"]["command"]]
    for line in (_FOLDER / "llama405b-2x8xa100.sh").read_text().split("\n"):
        if line.strip().startswith("exec "):
            words = shlex.split(line.replace('"$MASTER_ADDR"', "10.0.0.1"))
            lines.append(words[words.index("serve") :])
    return [line[1:] for line in lines]


def test_vllm_reads_exported_lines_as_they_were_meant(tmp_path: Path) -> None:
    """Every option is known to it, and each machine of several has its place."""
    python = os.environ.get(EXPLICIT_VARIABLE)
    if not python:
        pytest.skip(f"needs vLLM for CPUs in an environment that ${EXPLICIT_VARIABLE} names: make test-vllm")
    env = {**os.environ, "HOME": str(tmp_path), "VLLM_NO_USAGE_STATS": "1"}
    env.pop("PYTHONPATH", None)
    given = "".join(f"{json.dumps(line)}\n" for line in _lines())
    result = subprocess.run(
        [python, "-c", _READ], input=given, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    fp8, bf16 = "RedHatAI/Meta-Llama-3.1-405B-Instruct-FP8", "meta-llama/Llama-3.1-405B-Instruct"
    assert [json.loads(line[5:]) for line in result.stdout.splitlines() if line.startswith("read ")] == [
        [fp8, 1, 0, "127.0.0.1", False, 8, 1],
        [bf16, 2, 0, "10.0.0.1", False, 8, 2],
        [bf16, 2, 1, "10.0.0.1", True, 8, 2],
    ]
