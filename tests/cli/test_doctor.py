"""`launch doctor` as a user runs it, on this machine with one thing spoilt at a time."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from launcher.cli.doctor import _engine_requirement
from launcher.domain import Address, EngineInstall, InstanceRecord, ProcessId, State
from launcher.inventory.cgroup import probe_memory
from launcher.inventory.proc import run_bounded
from launcher.render.doctor import checkup_schema
from launcher.units import GIB, MIB
from tests.fakes.memory_group import inside, memory_group
from tests.fakes.nvml import StandIn, compile_stub

pytestmark = pytest.mark.slow

_SCHEMA = Path(__file__).parents[2] / "docs" / "doctor.schema.json"

_IMPATIENT = """
import os, sys
import launcher.inventory.engines, launcher.inventory.probe
from launcher.doctor import gather
if "PATIENCE_S" in os.environ:
    patience_s = float(os.environ["PATIENCE_S"])
    launcher.inventory.engines._ANSWER_S = launcher.inventory.engines._DEVICES_S = patience_s
    launcher.inventory.probe._NVML_S = gather._DRIVER_S = patience_s
if "WITH_ENGINES" not in os.environ:
    launcher.inventory.engines._package_dir = lambda _module: None
    launcher.inventory.engines._NATIVE_NAMES = ()
sys.argv[0] = "launch"
from launcher.cli import main
main()
"""
"""The program, where asked for with less patience for drivers and engines that hang, so that a test need not have its own.

Engines of this machine are asked only by tests that are about them: else the one that a test names is the only one."""

REAL = {"WITH_ENGINES": "1"}

GPU = {
    "count": 1, "0.name": "NVIDIA GeForce RTX 4090", "0.uuid": "GPU-1", "0.total": 24564 * MIB, "0.free": 24000 * MIB,
    "0.bus_id": "00000000:01:00.0", "driver": "550.54.14", "nvml": "12.550.54.14", "cuda": 12040,
}  # fmt: skip


class Doctor:
    """The program with folders of its own, and an environment to change."""

    def __init__(self, folder: Path) -> None:
        """Hold where everything goes."""
        self.folder = folder
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "LAUNCHER_CACHE_DIR": str(folder / "cache"),
            "LAUNCHER_STATE_DIR": str(folder / "state"),
            "LAUNCHER_PROFILES": str(folder / "profiles"),
        }

    def run(
        self, *words: str, before: tuple[str, ...] = (), env: Mapping[str, str] = {}
    ) -> "subprocess.CompletedProcess[str]":
        """Run it, as it is."""
        argv = [*before, sys.executable, "-c", _IMPATIENT, "doctor", *words]
        return subprocess.run(argv, env={**self.env, **env}, capture_output=True, text=True, timeout=120, check=False)

    def find(
        self, *words: str, before: tuple[str, ...] = (), env: Mapping[str, str] = {}
    ) -> tuple[int, dict[str, Any]]:
        """Return the exit code, and the findings by kind, of which each keeps to the schema."""
        done = self.run(*words, "--json", before=before, env=env)
        assert done.stderr == ""
        document = json.loads(done.stdout)
        jsonschema.validate(document, json.loads(checkup_schema()))
        findings = document["checkup"]["findings"]
        return done.returncode, {finding["code"]: finding for finding in findings if finding["severity"] != "ok"}


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    """The program with folders of its own."""
    return Doctor(tmp_path)


def evidence(finding: Mapping[str, Any]) -> str:
    """All that was read for a finding."""
    return "\n".join(f"{item['source']}: {item['value']}" for item in finding["evidence"])


def test_the_schema_file_is_the_code_s() -> None:
    """``docs/doctor.schema.json`` is what the nouns say; ``make golden`` rewrites it."""
    if os.environ.get("LAUNCHER_GOLDEN"):
        _SCHEMA.write_text(checkup_schema())
    assert _SCHEMA.read_text() == checkup_schema()


def test_this_machine(doctor: Doctor) -> None:
    """The plain form ends with the sum, as many as it showed; nothing is written to stderr, and nothing is made."""
    done = doctor.run(env=REAL)
    assert done.stderr == ""
    *_, last = done.stdout.splitlines()
    assert last.startswith("this machine: ")
    n_faults = sum(line.startswith("fault[") for line in done.stdout.splitlines())
    assert done.returncode == (1 if n_faults else 0)
    assert max(len(line) for line in done.stdout.splitlines() if not line.startswith("    ") and " /" not in line) <= 80
    assert not (doctor.folder / "state").exists()


def test_a_model_that_is_here(doctor: Doctor, real_model: Path) -> None:
    """A model file is planned, its weights looked at, and its name told."""
    done = doctor.run(str(real_model), env=REAL)
    assert "ok weights: 241 MiB of weights are here" in done.stdout
    assert "ok profile: `gemma" in done.stdout


def test_strict_counts_warnings(doctor: Doctor) -> None:
    """A warning alone is no failure, but with --strict."""
    engine = program(doctor.folder, ANSWERS.replace("%s", ""))
    env = {"http_proxy": "http://me:s3cret@proxy:3128", "LAUNCHER_LLAMA_SERVER": engine}
    code, found = doctor.find(env=env)
    assert found["proxy-for-loopback"]["severity"] == "warning"
    assert "s3cret" not in json.dumps(found)
    faults = [finding for finding in found.values() if finding["severity"] == "fault"]
    assert code == (1 if faults else 0)
    assert doctor.find("--strict", env=env)[0] == 1


def test_a_broken_profile(doctor: Doctor) -> None:
    """Asked about it, its faults are one of ours; asked about nothing, a warning that names the file."""
    path = doctor.folder / "profiles/mine.toml"
    path.parent.mkdir()
    path.write_text('name = "mine"\nnonsense = 1\n')
    code, found = doctor.find("mine")
    assert code == 1
    assert found["profile-unusable"]["command"] == ["launch", "explain", "bad-profile"]
    assert "nonsense" in evidence(found["profile-unusable"])
    _, found = doctor.find()
    assert found["profile-broken"]["severity"] == "warning"
    assert "mine.toml" in found["profile-broken"]["text"]


def test_an_unknown_model(doctor: Doctor) -> None:
    """A name that nobody knows is a fault, with what is meant; the machine is looked at all the same."""
    code, found = doctor.find("gemma3-270")
    assert code == 1
    assert "gemma3-270m" in found["profile-unusable"]["help"]


@pytest.mark.parametrize(
    "address",
    [
        "https://me:s3cret@127.0.0.1:1/x.gguf",
        "https://me:s3cret@[/x.gguf",
        "ftp://127.0.0.1:1/x.gguf?signature=s3cret",
    ],
)
def test_no_secret_of_an_address_is_shown(doctor: Doctor, address: str) -> None:
    """Who asks for help with what the doctor said does not give a password or a signature away."""
    for words in ((address,), (address, "--json")):
        done = doctor.run(*words)
        assert (done.returncode, done.stderr) == (1, "")
        assert "profile-unusable" in done.stdout
        assert "s3cret" not in done.stdout


def test_weights_that_are_gone(doctor: Doctor) -> None:
    """A file that was named and is not there is told by its path."""
    code, found = doctor.find(str(doctor.folder / "gone.gguf"))
    assert code == 1
    assert "gone.gguf" in found["profile-unusable"]["text"]


def test_a_model_without_weights(doctor: Doctor) -> None:
    """A shipped profile whose weights are not here would be downloaded; offline that cannot be, which is a fault."""
    doctor.env |= {"HF_HUB_CACHE": str(doctor.folder / "hub"), "HOME": str(doctor.folder)}
    code, found = doctor.find("llama3.1-405b", env={"HF_HUB_OFFLINE": "0"})
    assert code == 1
    assert found["weights-absent"]["severity"] == "note"
    assert found["weights-absent"]["command"] == ["launch", "pull", "llama3.1-405b"]
    assert found["plan-refused"]["command"][0] == "launch"
    _, found = doctor.find("llama3.1-405b", env={"HF_HUB_OFFLINE": "1"})
    assert found["weights-absent"]["severity"] == "fault"
    assert found["weights-absent"]["command"] == ["launch", "plan", "llama3.1-405b"]


def test_a_taken_port(doctor: Doctor, real_model: Path) -> None:
    """Somebody listens where the profile would: it is named, and a command with a free port is offered."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        path = doctor.folder / "profiles/mine.toml"
        path.parent.mkdir()
        path.write_text(
            f'name = "mine"\n[[artifact]]\nquantization = "q4_k_m"\nlocal_path = "{real_model}"\n[serve]\nport = {port}\n'
        )
        code, found = doctor.find("mine")
    assert code == 1
    taken = found["port-taken"]
    assert f"127.0.0.1:{port}" in taken["text"]
    assert str(os.getpid()) in evidence(taken)
    assert taken["command"][:4] == ["launch", "serve", "mine", "--port"]


def test_a_control_group(doctor: Doctor) -> None:
    """Under a memory limit of its own group, the limit is told, with what is used of it."""
    limit = 3 * GIB
    with memory_group(limit) as folder:
        _, found = doctor.find(before=tuple(inside(folder, [])))
    assert (probe_memory().limit_bytes or 1 << 60) > limit
    assert f"{folder}/memory.limit_in_bytes: limit {limit}" in evidence(found["cgroup-limit"])


def test_open_to_others(doctor: Doctor) -> None:
    """A state directory that others may look into is told with its mode, and left as it is."""
    state = doctor.folder / "state"
    state.mkdir(mode=0o755)
    state.chmod(0o755)
    _, found = doctor.find()
    assert "mode 0755" in evidence(found["state-open"])
    assert found["state-open"]["command"] == ["chmod", "700", str(state)]
    assert state.stat().st_mode & 0o777 == 0o755


def test_no_engine(doctor: Doctor) -> None:
    """An engine that is named and is none is a warning with its words."""
    _, found = doctor.find(env={"LAUNCHER_LLAMA_SERVER": "/nowhere/llama-server"})
    assert "/nowhere/llama-server" in found["engine-unusable"]["text"]


def program(folder: Path, body: str) -> str:
    """Write a program that poses as an engine."""
    path = folder / "llama-server"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_an_engine_that_hangs(doctor: Doctor) -> None:
    """It is given up after its bound, and is a fault: what it waits for is mostly a driver."""
    env = {"LAUNCHER_LLAMA_SERVER": program(doctor.folder, "sleep 300"), "PATIENCE_S": "1"}
    code, found = doctor.find(env=env)
    assert code == 1
    assert found["engine-unusable"]["severity"] == "fault"
    assert "did not answer within 1 s" in found["engine-unusable"]["text"]


@pytest.fixture
def gpu(doctor: Doctor) -> StandIn:
    """A driver that is made up; the doctor's program finds it."""
    library = doctor.folder / "nvml"
    library.mkdir()
    stand_in = StandIn(compile_stub(library), doctor.folder / "answers")
    doctor.env |= {name: stand_in.env[name] for name in ("NVML_STUB", "LD_LIBRARY_PATH")}
    return stand_in


ANSWERS = """
case "$1" in
--version) echo 'version: 6123 (abc1234)' >&2 ;;
--help) printf -- '-m,    --model FNAME    model\\n--port PORT   port\\n-c,    --ctx-size N   context\\n--list-devices   list\\n' ;;
--list-devices) printf 'Available devices:\\n%s' ;;
esac
"""
RTX_4090 = "  CUDA0: NVIDIA GeForce RTX 4090 (24108 MiB, 23000 MiB free)\\n"


def test_engines_for_the_processor_on_a_gpu(doctor: Doctor, gpu: StandIn) -> None:
    """There is a GPU, and the engines of this machine do not reach it: the first thing that users get wrong."""
    gpu.answer(GPU)
    code, found = doctor.find(env={"LAUNCHER_LLAMA_SERVER": program(doctor.folder, ANSWERS.replace("%s", ""))})
    assert code == 1
    without = found["engine-without-gpu"]
    assert without["severity"] == "fault"
    assert "NVIDIA GeForce RTX 4090" in evidence(without)
    assert "llama-server 6123 (abc1234)" in without["text"]


def test_an_engine_that_reaches_the_gpu(doctor: Doctor, gpu: StandIn) -> None:
    """With an engine that lists it all is well; that other engines do not is said beside which is used."""
    gpu.answer(GPU)
    _, found = doctor.find(env={"LAUNCHER_LLAMA_SERVER": program(doctor.folder, ANSWERS.replace("%s", RTX_4090))})
    assert "engine-without-gpu" not in found
    assert found.get("backend-not-loaded", {"severity": "note"})["severity"] == "note"
    _, found = doctor.find(
        env={"LAUNCHER_LLAMA_SERVER": program(doctor.folder, ANSWERS.replace("%s", RTX_4090)), **REAL}
    )
    if "several-engines" in found:  # as on a machine where the suite's own engines are installed
        assert "llama-server 6123 (abc1234) would be used" in found["several-engines"]["text"]


@pytest.mark.engine
def test_a_software_renderer(doctor: Doctor, llama_server: EngineInstall) -> None:
    """With a real Vulkan device that is a program, it is told to be none; that no GPU is reached is not said, for none is there."""
    env = {"GGML_VK_VISIBLE_DEVICES": "0", **REAL}
    listed = run_bounded((*llama_server.argv, "--list-devices"), timeout_s=60, env={**llama_server.env, **env})
    if "llvmpipe" not in listed.stdout:
        pytest.skip("needs Mesa's software Vulkan: apt-get install mesa-vulkan-drivers")
    _, found = doctor.find(env=env)
    assert found["software-renderer"]["severity"] == "note"
    assert not {"engine-without-gpu", "backend-not-loaded"} & set(found)


def test_a_driver_whose_parts_differ(doctor: Doctor, gpu: StandIn) -> None:
    """NVML's own code for it is a fault with the remedy."""
    gpu.answer({"init": "!18"})
    code, found = doctor.find()
    assert code == 1
    assert "code 18" in evidence(found["nvidia-mismatch"])
    assert "reboot" in found["nvidia-mismatch"]["help"]


def test_a_driver_that_hangs(doctor: Doctor, gpu: StandIn) -> None:
    """The library never answers: said, and all else is found all the same."""
    gpu.answer({"hang": 1})
    code, found = doctor.find(env={"PATIENCE_S": "1"})
    assert code == 1
    assert "NVIDIA's driver" in found["not-answered"]["text"]
    assert "did not answer within" in evidence(found["not-answered"])


def test_what_a_killed_supervisor_left(doctor: Doctor) -> None:
    """An instance whose record says that it starts, by a process that is gone, is stale."""
    record = InstanceRecord(
        name="tiny",
        state=State.READY,
        supervisor=ProcessId(pid=1, start_time=5, boot_id="another"),
        address=Address(),
        started_at=1.0,
        changed_at=1.0,
    )
    folder = doctor.folder / "state/instances/tiny"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "instance.json").write_bytes(msgspec.json.encode(record))
    _, found = doctor.find()
    assert "`tiny` was ready when its supervisor was killed" in found["instance-stale"]["text"]


@pytest.mark.parametrize(
    ("told", "n_offered"),
    [("glibc 2.35", 1), ("glibc 2.36", 1), ("glibc 2.34", 0), ("other 9.9", 0), (None, 0)],
)
def test_the_prebuilt_engine_is_offered_where_pip_would_find_it(
    told: str | None,
    n_offered: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its wheel is for one kind of machine and newer C libraries: elsewhere the command would end with an error."""
    monkeypatch.setattr("os.confstr", lambda _: told)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert (_engine_requirement() is not None) == bool(n_offered)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert _engine_requirement() is None
