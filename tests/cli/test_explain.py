"""`launch explain` as a user runs it: pages, and all recorded transcripts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.errors import LauncherError, UsageError
from launcher.pages import PAGES

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"

EXPECTED = {
    "llama-cpp-python/0.3.36-bad-value": "python-argument-refused",
    "llama-cpp-python/0.3.36-cpu-verbose": None,
    "llama-cpp-python/0.3.36-data-cut-off": "weights-cut-off",
    "llama-cpp-python/0.3.36-file-missing": "weights-not-opened",
    "llama-cpp-python/0.3.36-oom-array": "bad-alloc",
    "llama-cpp-python/0.3.36-oom-compute": "compute-buffer-refused",
    "llama-cpp-python/0.3.36-oom-host-serving": "output-buffer-refused",
    "llama-cpp-python/0.3.36-oom-kv-cache": "kv-cache-refused",
    "llama-cpp-python/0.3.36-port-in-use": "address-in-use",
    "llama-cpp-python/0.3.36-unknown-architecture": "unknown-architecture",
    "llama-cpp-python/0.3.36-unknown-flag": "python-argument-refused",
    "llama-cpp-python/0.3.36-words-of-clients": None,
    "llama-server/b10434-bad-device": "argument-refused",
    "llama-server/b10434-bad-value": "argument-refused",
    "llama-server/b10434-data-cut-off": "weights-cut-off",
    "llama-server/b10434-empty": "header-unreadable",
    "llama-server/b10434-file-missing": "weights-not-opened",
    "llama-server/b10434-killed-for-memory": None,
    "llama-server/b10434-lavapipe-ngl10": None,
    "llama-server/b10434-missing-tensor": "tensor-missing",
    "llama-server/b10434-newer-version": "gguf-version",
    "llama-server/b10434-not-a-gguf": "not-a-gguf",
    "llama-server/b10434-oom-compute": "compute-buffer-refused",
    "llama-server/b10434-oom-host-serving": "bad-alloc",
    "llama-server/b10434-oom-kv-cache": "kv-cache-refused",
    "llama-server/b10434-oom-map": "weights-map-refused",
    "llama-server/b10434-oom-weights": "weights-buffer-refused",
    "llama-server/b10434-port-in-use": "port-bind-refused",
    "llama-server/b10434-rpc-oom-kv-cache": "kv-cache-refused",
    "llama-server/b10434-rpc-oom-weights": "weights-buffer-refused",
    "llama-server/b10434-rpc-worker-lost": "rpc-worker-lost",
    "llama-server/b10434-rpc-worker-missing-by-name": "rpc-device-missing",
    "llama-server/b10434-rpc-worker-missing": None,
    "llama-server/b10434-silent-cpu-fallback": None,
    "llama-server/b10434-truncated-weights": "header-unreadable",
    "llama-server/b10434-unknown-architecture": "unknown-architecture",
    "llama-server/b10434-unknown-flag": "argument-refused",
    "llama-server/b10434-vulkan-cache-beyond-largest-buffer": "buffer-beyond-device",
    "llama-server/b10434-vulkan-oom-host-buffer": "compute-buffer-refused",
    "llama-server/b10434-vulkan-oom-weights": "weights-buffer-refused",
    "llama-server/b10434-vulkan-oom": "kv-cache-refused",
    "llama-server/b10434-weights-cut-while-serving": None,
    "llama-server/b10434-words-of-clients": None,
    "llama-server/b11434-bad-device": "argument-refused",
    "llama-server/b11434-bad-value": "argument-refused",
    "llama-server/b11434-data-cut-off": "weights-cut-off",
    "llama-server/b11434-empty": "header-unreadable",
    "llama-server/b11434-missing-tensor": "tensor-missing",
    "llama-server/b11434-newer-version": "gguf-version",
    "llama-server/b11434-oom-compute": "compute-buffer-refused",
    "llama-server/b11434-oom-kv-cache": "kv-cache-refused",
    "llama-server/b11434-oom-weights": "weights-buffer-refused",
    "llama-server/b11434-port-in-use": "port-bind-refused",
    "llama-server/b11434-rpc-ngl10": None,
    "llama-server/b11434-rpc-oom-kv-cache": "kv-cache-refused",
    "llama-server/b11434-rpc-worker-lost-at-load": "rpc-worker-lost",
    "llama-server/b11434-rpc-worker-lost": "rpc-worker-lost",
    "llama-server/b11434-rpc-worker-missing": "rpc-worker-silent",
    "llama-server/b11434-rpc-worker-of-another-version": "rpc-version",
    "llama-server/b11434-two-devices-jsonl": None,
    "llama-server/b11434-two-devices-text": None,
    "llama-server/b11434-unknown-architecture": "unknown-architecture",
    "llama-server/b11434-unknown-flag": "argument-refused",
    "vllm/0.32.0-cpu-bad-value": "vllm-argument-refused",
    "vllm/0.32.0-cpu-cache-below-one-request": "vllm-cache-too-small",
    "vllm/0.32.0-cpu-context-above-the-models": "vllm-context-too-long",
    "vllm/0.32.0-cpu-core-killed": "vllm-core-died",
    "vllm/0.32.0-cpu-data-cut-off": "safetensors-damaged",
    "vllm/0.32.0-cpu-file-missing": "vllm-weights-not-found",
    "vllm/0.32.0-cpu-kv": "vllm-cache-too-small",
    "vllm/0.32.0-cpu-no-such-folder": "vllm-weights-not-found",
    "vllm/0.32.0-cpu-no-such-name": "vllm-weights-not-found",
    "vllm/0.32.0-cpu-oom-at-start": "vllm-share-not-free",
    "vllm/0.32.0-cpu-oom-kv-cache": "vllm-cache-too-small",
    "vllm/0.32.0-cpu-oom-weights": "torch-host-refused",
    "vllm/0.32.0-cpu-other-shapes": "vllm-other-shapes",
    "vllm/0.32.0-cpu-port-in-use": "address-in-use",
    "vllm/0.32.0-cpu-refused-settings": "vllm-argument-refused",
    "vllm/0.32.0-cpu-too-many-ranks": None,
    "vllm/0.32.0-cpu-unknown-architecture": "vllm-unknown-architecture",
    "vllm/0.32.0-cpu-unknown-flag": "vllm-argument-refused",
    "vllm/0.32.0-cpu-unknown-quantization": "vllm-unknown-quantization",
    "vllm/0.32.0-cpu-worker-killed": "vllm-worker-died",
}
"""What each transcript shows; ``None`` for starts that went well, and for ends that leave no text."""


def explain(*words: str) -> str:
    """Return what is printed; a fault is raised as it is."""
    done = CliRunner().invoke(app, ["explain", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_no_transcript_is_left_out() -> None:
    """Each recorded start of an engine has its expectation."""
    found = {str(path.relative_to(TRANSCRIPTS))[: -len(".log")] for path in TRANSCRIPTS.glob("*/*.log")}
    assert found == set(EXPECTED)


@pytest.mark.parametrize(("name", "code"), EXPECTED.items())
def test_transcripts(name: str, code: str | None) -> None:
    """The sign is found, its page given, and what the launcher would do; of a good start nothing is said to be wrong."""
    path = TRANSCRIPTS / f"{name}.log"
    document = json.loads(explain(str(path), "--json"))["log"]
    text = explain(str(path))
    assert document["n_bytes"] == path.stat().st_size
    if code is None:
        assert document["diagnosis"] is None
        assert "no known sign of a failure" in text
        return
    assert document["diagnosis"]["code"] == code
    assert document["diagnosis"]["lines"]
    assert f"{code}: " in text
    assert f"launch explain {code}" in text
    assert "\nthen: the launcher " in text
    assert PAGES[code].do[0].split()[0] in text


def test_every_sign_that_was_recorded_is_recognised() -> None:
    """The transcripts show most of the signs; the others only the source of an engine does."""
    assert len({code for code in EXPECTED.values() if code}) >= 30


@pytest.mark.parametrize("name", [name for name, code in EXPECTED.items() if code and "port-in-use" in name])
def test_a_port_is_nothing_to_give_up_for(name: str) -> None:
    """As the page of the cause says: behind the gateway the engine's port is private, and the next start takes another."""
    found = json.loads(explain(str(TRANSCRIPTS / f"{name}.log"), "--json"))["log"]["diagnosis"]
    assert (found["cause"], found["answer"]) == ("port", "restart")
    assert "takes another" in PAGES["port"].comes


def test_a_page() -> None:
    """A code, as it was printed or bare, has its page, in text and as JSON."""
    text = explain("port-in-use")
    assert text.startswith("port-in-use (error)\n")
    assert explain("error[port-in-use]:") == text
    assert explain("PORT-IN-USE") == text
    assert json.loads(explain("port-in-use", "--json"))["page"]["code"] == "port-in-use"
    assert max(map(len, text.splitlines())) <= 80


def test_the_list() -> None:
    """Without a word all codes are listed."""
    text = explain()
    assert all(f"  {code} " in text for code in PAGES)
    assert len(json.loads(explain("--json"))["pages"]) == len(PAGES)


def test_unknown() -> None:
    """What is neither is wrong usage, with what may be meant."""
    with pytest.raises(UsageError, match="no code is called `exceeds-memry`") as caught:
        explain("exceeds-memry")
    assert caught.value.exit_code == 2
    assert "`exceeds-memory`" in (caught.value.help or "")
    with pytest.raises(UsageError) as other:
        explain("zzzzzzzzzz" * 100)
    assert "lists all codes" in (other.value.help or "")


@pytest.mark.parametrize("path", ["/", "/dev/zero", "/nowhere/engine.log"])
def test_what_is_no_log(path: str) -> None:
    """A folder, a device and nothing at all are told from a log, at once."""
    with pytest.raises(LauncherError) as caught:
        explain(path)
    assert caught.value.exit_code == 2


def test_from_a_pipe() -> None:
    """What `journalctl` prints is taken from a pipe, its prefixes and all."""
    text = (TRANSCRIPTS / "llama-server/b10434-oom-kv-cache.log").read_text()
    given = "".join(f"Nov 22 16:05:32 host launch[123]: {line}\n" for line in text.splitlines())
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "explain", "-"],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "kv-cache-refused: the KV cache does not fit (2.9 GiB of host)" in done.stdout


@pytest.mark.parametrize(
    ("given", "code", "meaning"),
    [
        ("the engine ended (SIGKILL)", "unknown", "it was killed, by somebody or by the kernel for want of memory"),
        ("the engine ended (SIGILL)", "cpu", "it executed an instruction that this CPU lacks"),
        (
            (
                '{"at":1,"event":"engine.exited","code":null,"signal":9}\n'
                "kernel: Memory cgroup out of memory: Killed process 7 (llama-server)"
            ),
            "killed-for-memory",
            "the kernel killed it for want of memory",
        ),
    ],
)
def test_ends_without_a_sign(given: str, code: str, meaning: str, tmp_path: Path) -> None:
    """What the launcher, systemd or the kernel wrote of an end is told as it is; what no log says is left open."""
    path = tmp_path / "supervisor.log"
    path.write_text(given)
    found = json.loads(explain(str(path), "--json"))["log"]["diagnosis"]
    assert (found["code"], found["meaning"]) == (code, meaning)


def test_what_an_error_prints_can_be_explained() -> None:
    """The code in brackets of a real error of the program is a word that explain takes."""
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "plan", "no-such-model", "--inventory", "rtx4090"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    word = done.stderr.split()[0]
    assert word == "error[unknown-model]:"
    assert explain(word).startswith("unknown-model (error)")
