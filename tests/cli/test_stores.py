"""``launch list``, ``plan``, ``inspect`` and ``serve`` with what other programs have here, started as a user starts them."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.hub import make_gguf
from tests.fakes.stores import manifest_of, put_folder, put_manifest, put_repository

pytestmark = pytest.mark.slow

WEIGHTS = make_gguf(n_vocab=300)
REPOSITORY = "some/tiny-GGUF"
Launch = Callable[..., subprocess.CompletedProcess[str]]

PROFILE = f"""
name = "tiny-1b"
aliases = ["tiny:1b"]
[want]
context = 512
[[artifact]]
quantization = "q8_0"
repository = "{REPOSITORY}"
files = [{{ name = "tiny-Q8_0.gguf", size_bytes = {len(WEIGHTS)} }}]
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a profile, whose weights are nowhere yet."""
    folder = tmp_path / ".config" / "launcher" / "profiles"
    folder.mkdir(parents=True)
    (folder / "tiny-1b.toml").write_text(PROFILE, encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(home: Path, launch: tuple[str, ...]) -> Launch:
    """Run the command in that home, with no hub to ask."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "OLLAMA_", "XDG_"))}
    env = {**kept, "HOME": str(home), "HF_HUB_OFFLINE": "1", "LAUNCHER_STATE_DIR": str(home / "state")}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*launch, *words], capture_output=True, text=True, timeout=120, check=False, env=env)

    return call


def put_ollama(home: Path) -> Path:
    """Have Ollama hold a model, with a system prompt; return its blob."""
    models = home / ".ollama" / "models"
    manifest = manifest_of(models, WEIGHTS, system=b"You are a pirate.")
    put_manifest(models, manifest, "tiny", "1b")
    digest: str = manifest["layers"][0]["digest"]
    return models / "blobs" / digest.replace(":", "-")


def test_the_stores_are_listed(run: Launch, home: Path) -> None:
    """`list --local` has a line per model, a reason where it cannot be served, and warnings on stderr; so has its JSON."""
    assert run("list", "--local").stdout == "no other program's store on this machine has weights\n"
    put_ollama(home)
    put_folder(home / ".lmstudio" / "models", REPOSITORY, {"tiny-Q8_0.gguf": WEIGHTS, "bad-F16.gguf": b"GGUF"})
    put_manifest(home / ".ollama" / "models", b"{", "broken", "1b")
    result = run("list", "--local")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"lmstudio:{REPOSITORY}:bad-F16.gguf")
    assert lines[1].startswith("  cannot be served: ")
    assert lines[2].split()[:3] == [f"lmstudio:{REPOSITORY}:tiny-Q8_0.gguf", "q8_0", "1.7"]
    assert lines[2].endswith(" MiB  LM Studio's store")
    assert lines[3].split()[:2] == ["ollama:tiny:1b", "q8_0"]
    assert result.stderr.startswith("warning[model-store]: ollama:broken:1b: the manifest cannot be read")
    document = json.loads(run("list", "--local", "--json").stdout)
    assert [model["name"] for model in document["models"] if not model["unusable"]][-1] == "ollama:tiny:1b"
    assert len(document["faults"]) == 1


@pytest.mark.usefixtures("llama_server")
def test_a_profiles_weights_are_used_in_place(run: Launch, home: Path) -> None:
    """The plan, its JSON and the list say whose they are; a plan for another machine does not look here."""
    snapshot = put_repository(home / ".cache" / "huggingface" / "hub", REPOSITORY, {"tiny-Q8_0.gguf": WEIGHTS})
    result = run("plan", "tiny-1b", "--json")
    artifact = json.loads(result.stdout)["plan"]["artifact"]
    assert artifact["local_path"] == str(snapshot / "tiny-Q8_0.gguf")
    assert artifact["store"] == "the hub's cache"
    assert "  weights   from the hub's cache, used in place\n" in run("plan", "tiny-1b").stdout
    assert "  in place    q8_0 from the hub's cache\n" in run("list").stdout
    away = run("plan", "tiny-1b", "--inventory", "rtx4090")
    assert away.returncode == 1 or "used in place" not in away.stdout


@pytest.mark.usefixtures("llama_server")
def test_a_model_of_a_store_is_named_as_its_program_names_it(run: Launch, home: Path) -> None:
    """`ollama:` and `lmstudio:` are planned and inspected; stderr says where from and what is left out."""
    blob = put_ollama(home)
    put_folder(home / ".lmstudio" / "models", REPOSITORY, {"tiny-Q8_0.gguf": WEIGHTS})
    result = run("plan", "ollama:tiny:1b", "--context", "512", "--json")
    assert json.loads(result.stdout)["plan"]["artifact"]["local_path"] == str(blob)
    assert result.stderr == f"from Ollama's store, used in place:\n  {blob}\n  left out: its system prompt\n"
    assert run("inspect", "ollama:tiny:1b").stdout.startswith("name             model\narchitecture     llama\n")
    assert run("inspect", f"lmstudio:{REPOSITORY}:Q8_0").returncode == 0
    assert run("inspect", f"lmstudio:{REPOSITORY}:q4_0").returncode == 2
    assert run("plan", f"lmstudio:{REPOSITORY}:q8_0", "--context", "512").returncode == 0
    assert run("inspect", str(blob)).returncode == 0
    assert run("plan", str(blob), "--context", "512").returncode == 0


@pytest.mark.usefixtures("llama_server")
def test_a_repository_is_described_by_what_is_here_where_the_hub_is_not_asked(run: Launch, home: Path) -> None:
    """With HF_HUB_OFFLINE a repository is what a store has of it, and it is said that nobody was asked."""
    asked = ("plan", f"hf:{REPOSITORY}:q8_0", "--context", "512")
    nothing = run(*asked)
    assert nothing.returncode == 1
    assert nothing.stderr.startswith("error[remote-failed]: HF_HUB_OFFLINE is set")
    put_repository(home / ".cache" / "huggingface" / "hub", REPOSITORY, {"tiny-Q8_0.gguf": WEIGHTS})
    result = run(*asked)
    assert result.returncode == 0, result.stderr
    assert "used in place" in result.stdout
    assert "the hub is no help, what is here is used: HF_HUB_OFFLINE is set" in result.stderr
    assert run("inspect", f"hf:{REPOSITORY}:Q8_0").returncode == 0
    other = run("inspect", f"hf:{REPOSITORY}:Q4_0")
    assert other.returncode == 1
    assert "  here is q8_0\n" in other.stderr


def test_weights_that_are_elsewhere_are_pointed_to(run: Launch, home: Path) -> None:
    """Ollama's own file of the same name is another one: it is not served instead, but named."""
    put_ollama(home)
    result = run("serve", "tiny-1b")
    assert result.returncode == 1
    assert "Ollama's store has another file of it: launch serve ollama:tiny:1b" in result.stderr
