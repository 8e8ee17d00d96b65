"""``launch plan`` as a process: exit codes, streams and JSON."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.shape_file import write_shape
from launcher.profiles import load_profile
from tests.fakes.hub import make_gguf


def _run(launch: tuple[str, ...], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*launch, *words], capture_output=True, text=True, timeout=60, check=False)


def test_json_names_the_choice(launch: tuple[str, ...]) -> None:
    """``.plan`` has the choice by llama.cpp's words; stdout is nothing but JSON."""
    result = _run(launch, "plan", "gemma2-27b", "--inventory", "rtx4090", "--json")
    assert result.returncode == 0
    body = json.loads(result.stdout)
    assert body["schema_version"] == 2
    plan = body["plan"]
    assert (plan["quantization"], plan["engine"], plan["n_ctx"], plan["n_gpu_layers"]) == (
        "q5_k_m",
        "llama-server",
        8192,
        47,
    )


_TINY = """
name = "tiny"
[[artifact]]
quantization = "q8_0"
repository = "some/tiny-GGUF"
files = [{ name = "tiny.gguf", size_bytes = 1000 }]
[[artifact]]
quantization = "q4_0"
local_path = "tiny.gguf"
[model]
spec = "specs/gemma3-270m.json"
"""
_BOTH = "`launch serve gemma3-270m` serves q4_k_m, which is;\n  `launch pull gemma3-270m --quant q8_0` brings these"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("gemma3-270m", _BOTH),
        ("tiny --quant q8_0", "`launch serve tiny` downloads them first"),
        ("offline --quant q8_0", "nothing is downloaded while HF_HUB_OFFLINE is set"),
        ("tiny --quant q4_0", None),
        ("tiny --inventory rtx4090", None),
    ],
)
def test_what_serving_does_where_the_weights_are_not_here_is_said(
    launch: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str | None
) -> None:
    """The best plan is shown, and `serve` takes what is here before it downloads: who reads the plan is told."""
    (tmp_path / "tiny.gguf").write_bytes(make_gguf(n_vocab=300))
    for name in ("tiny", "offline"):
        (tmp_path / f"{name}.toml").write_text(_TINY.replace("tiny", name, 1), encoding="utf-8")
    monkeypatch.setenv("LAUNCHER_PROFILES", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if "offline" in words else "")
    result = _run(launch, "plan", *words.split())
    assert result.returncode == 0, result.stderr
    lead = "\n  these weights are not on this machine: "
    assert lead not in result.stdout if said is None else result.stdout.endswith(f"{lead}{said}\n")


def test_a_refusal_is_exit_code_3_and_goes_to_stderr(launch: tuple[str, ...]) -> None:
    """Facts first, ``help:`` last; as JSON the refusal is data on stdout."""
    result = _run(launch, "plan", "llama3.1-405b", "--inventory", "rtx4090")
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith("error[exceeds-memory]: `llama3.1-405b`")
    assert "\nhelp: " in result.stderr
    refusal = json.loads(_run(launch, "plan", "llama3.1-405b", "--inventory", "rtx4090", "--json").stdout)["refusal"]
    assert refusal["code"] == "exceeds-memory"
    assert refusal["needed_bytes"] > refusal["available_bytes"]


@pytest.mark.slow
def test_each_advised_command_plans(launch: tuple[str, ...]) -> None:
    """Every ``launch ...`` that a refusal proposes exits 0 as it stands."""
    refused = _run(launch, "plan", "llama3.1-405b", "--inventory", "rtx4090")
    commands = [line.split()[1:] for line in refused.stderr.splitlines() if line.startswith("    launch ")]
    assert commands
    for words in commands:
        assert _run(launch, *words).returncode == 0, words


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("gemma2-27bb",), 2, "gemma2-27b"),
        (("gemma2-27b", "--inventory", "rtx490"), 2, "rtx4090"),
        (("gemma2-27b", "--cache-type-k", "f17"), 2, "one of: f32, f16"),
        (("gemma2-27b", "--ctx-size", "1", "--context", "1"), 2, "cannot both be given"),
        (("gemma2-27b", "--flash-attn", "maybe"), 2, "on or off"),
        (("gemma2-27b", "--ctx-size", "0"), 2, "--ctx-size"),
        (("/nowhere/model.gguf",), 1, "help:"),
    ],
)
def test_bad_input_is_one_clear_error(launch: tuple[str, ...], words: tuple[str, ...], code: int, message: str) -> None:
    """Each fault names itself, proposes something, and prints no traceback."""
    result = _run(launch, "plan", *words)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_file_that_is_no_model_is_named(launch: tuple[str, ...], tmp_path: Path) -> None:
    """A broken weights file is an error with the field where reading stopped."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\x00\x00\x00")
    result = _run(launch, "plan", str(broken))
    assert result.returncode == 1
    assert result.stderr.startswith("error[bad-weights-file]")
    assert "offset" in result.stderr


def test_a_profile_without_a_spec_is_planned_by_its_weights(launch: tuple[str, ...], tmp_path: Path) -> None:
    """The small profile of docs/profiles.md: a name, a quantization, a path."""
    spec = next(a.spec for a in load_profile("gemma3-270m").artifacts if a.quantization == "q4_k_m")
    assert spec is not None
    write_shape(spec, tmp_path / "weights.gguf")
    profile = tmp_path / "my-model.toml"
    profile.write_text('name = "my-model"\n[[artifact]]\nquantization = "q4_k_m"\nlocal_path = "weights.gguf"\n')
    result = _run(launch, "plan", str(profile), "--inventory", "cpu-16g", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["plan"]["quantization"] == "q4_k_m"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--min-tps", "nan"), 2, "no number of tokens"),
        (("--min-tps", "inf"), 2, "no number of tokens"),
        (("--quant", " "), 2, "--quant is empty"),
        (("--ctx-size", "3", "--parallel", "4"), 2, "leaves nothing"),
        (("--parallel", "257"), 3, "at most 256"),
        (("--threads", "513"), 2, "--threads"),
        (("--context", "9" * 30), 2, "--context"),
        (("--cache-type-v", "q4_0", "--flash-attn", "off"), 3, "needs flash attention"),
    ],
)
def test_what_no_engine_can_do_is_not_planned(
    launch: tuple[str, ...], words: tuple[str, ...], code: int, message: str
) -> None:
    """Odd values are faults or refusals with a reason, never a plan that fails at start."""
    result = _run(launch, "plan", "gemma2-27b", "--inventory", "rtx4090", *words)
    assert (result.returncode, message in result.stderr) == (code, True), result.stderr


def test_layers_of_experts_are_counted_as_the_engine_counts_them(launch: tuple[str, ...]) -> None:
    """A dense model has none, and no more layers have experts than there are."""
    dense = _run(launch, "plan", "gemma2-27b", "--n-cpu-moe", "5", "--inventory", "rtx4090", "--json")
    assert json.loads(dense.stdout)["plan"]["n_cpu_moe"] == 0
    all_of_them = _run(launch, "plan", "gpt-oss-20b", "--n-cpu-moe", "999", "--inventory", "rtx4090", "--json")
    assert json.loads(all_of_them.stdout)["plan"]["n_cpu_moe"] == 24


def test_a_fault_is_json_where_json_was_asked_for(launch: tuple[str, ...]) -> None:
    """Stdout holds an object in every ending; stderr holds the words."""
    result = _run(launch, "plan", "nosuch", "--json")
    assert (result.returncode, json.loads(result.stdout)["error"]["code"]) == (2, "unknown-model")
    assert result.stderr.startswith("error[unknown-model]")


@pytest.mark.parametrize("words", [("plan", "gemma3-270m", "--inventory", "t4"), ("plan", "nosuch", "--json")])
def test_a_full_disk_behind_stdout_is_a_named_fault(launch: tuple[str, ...], words: tuple[str, ...]) -> None:
    """Nothing is lost in silence, and no traceback is shown."""
    with Path("/dev/full").open("w") as full:
        result = subprocess.run([*launch, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode in {1, 2}
    assert result.stderr.startswith("error[")
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_without_stdout_or_stderr_the_exit_code_still_tells(launch: tuple[str, ...]) -> None:
    """A service may start a command with its streams closed."""
    for redirect, model, code in ((">&-", "gemma3-270m", 0), ("2>&-", "llama3.1-405b", 3)):
        command = f'"$@" plan {model} --inventory t4 {redirect}'
        result = subprocess.run(["sh", "-c", command, "sh", *launch], capture_output=True, text=True, check=False)
        assert (result.returncode, "Traceback" in result.stderr) == (code, False)


def test_no_alternatives_are_explained(launch: tuple[str, ...]) -> None:
    """``--all`` where nothing fits is the refusal itself."""
    result = _run(launch, "plan", "llama3.1-405b", "--all", "--inventory", "rtx4090")
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith("error[exceeds-memory]")
