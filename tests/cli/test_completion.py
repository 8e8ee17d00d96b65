"""What a shell offers while a command is typed, asked as bash asks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def _offers(line: str, state: Path) -> list[str]:
    """Return what is offered for the last word of a line, which may be empty."""
    env = {**os.environ, "_LAUNCH_COMPLETE": "complete_bash", "COMP_WORDS": line, "LAUNCHER_STATE_DIR": str(state)}
    env["COMP_CWORD"] = str(len(line.split(" ")) - 1)
    code = "import sys; sys.argv[0] = 'launch'; from launcher.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("launch pla", ["plan"]),
        ("launch plan gemma2-", ["gemma2-27b", "gemma2-9b"]),
        ("launch serve gemma3-27", ["gemma3-270m"]),
        ("launch plan gemma2-27b --quant q5", ["q5_k_m"]),
        ("launch plan gemma2-27b --inventory rtx409", ["rtx4090"]),
        ("launch plan gemma2-27b --flash-attn o", ["on", "off"]),
        ("launch plan gemma2-27b --cache-type-k f", ["f16"]),
        ("launch plan gemma2-27b --engine vl", ["vllm"]),
        ("launch plan gemma2-27b --n-gpu", ["--n-gpu-layers"]),
        ("launch explain exceeds-h", ["exceeds-host-memory"]),
        ("launch doctor gemma3-27", ["gemma3-270m"]),
        ("launch plan no-such-model-", []),
        ("launch stop ", []),
    ],
)
def test_values_are_offered(line: str, offered: list[str], tmp_path: Path) -> None:
    """Commands, options, profiles, quantizations of the profile that was named, machines; nothing where nothing is known."""
    found = _offers(line, tmp_path / "none")
    assert [offer for offer in offered if offer not in found] == []
    last = line.rpartition(" ")[2]
    assert [offer for offer in found if not offer.startswith(last)] == []
    if not offered:
        assert found == []


def test_instances_are_offered_by_name(tmp_path: Path) -> None:
    """Also one whose record cannot be understood; state that cannot be read is no fault here."""
    folder = tmp_path / "instances" / "mine"
    folder.mkdir(parents=True)
    (folder / "instance.json").write_text("{")
    assert _offers("launch logs m", tmp_path) == ["mine"]
    broken = tmp_path / "file"
    broken.write_text("")
    assert _offers("launch logs ", broken) == []
