"""What a shell offers while a command is typed, asked as shells ask."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def _ask(shell: str, **asked: str) -> str:
    """Return what a shell is answered."""
    code = "import sys; sys.argv[0] = 'launch'; from launcher.cli import main; main()"
    env = {**os.environ, "_LAUNCH_COMPLETE": f"complete_{shell}", **asked}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.stdout


def _offers(line: str, state: Path) -> list[str]:
    """Return what bash is offered for the last word of a line, which may be empty."""
    n_before = len(line.split(" ")) - 1
    return _ask("bash", COMP_WORDS=line, COMP_CWORD=str(n_before), LAUNCHER_STATE_DIR=str(state)).split()


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
        ("launch export gemma2-27b --to ku", ["kuberay"]),
        ("launch calibrate gemma3-27", ["gemma3-270m"]),
        ("launch systemd install gemma2-", ["gemma2-27b", "gemma2-9b"]),
        ("launch systemd render gemma2-27b --quant q5", ["q5_k_m"]),
        ("launch systemd install gemma2-27b --h", ["--host", "--hub-token-file", "--help"]),
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


def test_only_what_the_named_profile_has_is_offered(tmp_path: Path) -> None:
    """Others have more quantizations than Gemma 3 270M."""
    offers = [_offers(f"launch plan {name}--quant ", tmp_path) for name in ("gemma3-270m ", "")]
    assert set(offers[0]) < set(offers[1])
    assert _offers("launch pull gemma3-270m --json --quant ", tmp_path) == offers[0] != []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_words_of_a_profile_are_words_for_a_shell(shell: str, tmp_path: Path) -> None:
    """Zsh evaluates what it is answered: its writer would have had commands run where somebody looks for a name."""
    hostile = ("\\$(x)", "\\`x\\`", "' ; x ; '", '\\" ; x ; "', "${x}", "[/red] [bold]", ")) ; x")
    for idx, title in enumerate(hostile):
        (tmp_path / f"mine-{idx}.toml").write_text(
            f'name = "mine-{idx}"\ntitle = {json.dumps(title)}\n[[artifact]]\nquantization = "q8_0"\nlocal_path = "/m.gguf"\n'
        )
    asked = {"_TYPER_COMPLETE_ARGS": "launch plan mine-", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    told = _ask(shell, LAUNCHER_PROFILES=str(tmp_path), **asked)
    told = told.strip().removeprefix("_arguments '*: :((").removesuffix("))'")
    words = re.findall(r'^"?mine-(\d)"?[:\t]"?(.*?)"?$', told, re.MULTILINE)
    assert [idx for idx, _ in words] == [str(idx) for idx in range(len(hostile))]
    assert [text for _, text in words if re.search(r"[^\w ;()/]", text)] == []


def test_units_are_offered_where_they_would_be_removed(tmp_path: Path) -> None:
    """Those of the system below its root; `--user` has others."""
    (tmp_path / "etc/systemd/system/launch@mine.service.d").mkdir(parents=True)
    (tmp_path / "etc/systemd/system/other@yours.service.d").mkdir()
    assert _offers(f"launch systemd uninstall --root {tmp_path} ", tmp_path) == ["mine"]
    assert _offers(f"launch systemd uninstall --root {tmp_path} --user ", tmp_path) == []


def test_instances_are_offered_by_name(tmp_path: Path) -> None:
    """Also one whose record cannot be understood; state that cannot be read is no fault here."""
    folder = tmp_path / "instances" / "mine"
    folder.mkdir(parents=True)
    (folder / "instance.json").write_text("{")
    assert _offers("launch logs m", tmp_path) == ["mine"]
    broken = tmp_path / "file"
    broken.write_text("")
    assert _offers("launch logs ", broken) == []
