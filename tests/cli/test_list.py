"""`launch list`, started as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MINE = """
name = "mine"
title = "My own"
aliases = ["m:1"]
[[artifact]]
quantization = "q4_k_m"
local_path = "here.gguf"
files = [{ name = "here.gguf", size_bytes = 1_610_612_736 }]
[[artifact]]
quantization = "q2_k"
repository = "someone/something"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's profiles: one of their own, whose weights are there, and one that is broken."""
    monkeypatch.setenv("LAUNCHER_PROFILES", str(tmp_path))
    (tmp_path / "mine.toml").write_text(MINE, encoding="utf-8")
    (tmp_path / "here.gguf").touch()
    (tmp_path / "broken.toml").write_text('name = "broken"\nnam = 1\n', encoding="utf-8")
    return tmp_path


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program with these arguments."""
    argv = [sys.executable, "-m", "launcher", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def test_own_and_shipped_profiles_are_listed(folder: Path) -> None:
    """Names, aliases, parameters, sizes and what is local go to stdout; a broken file is a warning on stderr."""
    run = launch("list")
    assert run.returncode == 0
    assert "mine, m:1: My own\n  gguf        q4_k_m* 1.5 GiB, q2_k\n" in run.stdout
    assert "gemma2-27b, gemma2:27b: Gemma 2 27B Instruct, 27.2 B parameters, gemma\n" in run.stdout
    assert "q3_k_m 12.5 GiB" in run.stdout
    assert run.stdout.endswith("* is on this machine\n")
    assert run.stderr.splitlines() == [
        f"warning[bad-profile]: {folder}/broken.toml is not a valid profile: 2 faults",
        "  nam: unknown key; did you mean `name`?",
        "  artifact: is missing",
        "help: see docs/profiles.md for every key",
    ]


def test_the_json_is_versioned_and_whole(folder: Path) -> None:
    """`--json` prints one object: unknown sizes are null, and each size says where it is from."""
    run = launch("list", "--json")
    assert run.returncode == 0
    document = json.loads(run.stdout)
    assert document["schema_version"] == 2
    profiles = {profile["name"]: profile for profile in document["profiles"]}
    assert profiles["mine"] == {
        "name": "mine",
        "title": "My own",
        "aliases": ["m:1"],
        "license": "",
        "urls": [],
        "source": str(folder / "mine.toml"),
        "n_parameters": None,
        "artifacts": [
            {
                "format": "gguf",
                "quantization": "q4_k_m",
                "repository": None,
                "size_bytes": 1610612736,
                "size_provenance": "published",
                "local": True,
                "store": None,
            },
            {
                "format": "gguf",
                "quantization": "q2_k",
                "repository": "someone/something",
                "size_bytes": None,
                "size_provenance": None,
                "local": False,
                "store": None,
            },
        ],
    }
    sizes = {entry["size_provenance"] for entry in profiles["llama3.1-405b"]["artifacts"] if entry["format"] == "gguf"}
    assert sizes == {"derived"}
    # Meta's figure is 405,853,388,800; the file adds 64 rotary factors.
    assert profiles["llama3.1-405b"]["n_parameters"] == 405_853_388_864
