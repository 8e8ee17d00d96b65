"""``launch systemd`` as an administrator uses it, below a root of its own: no test touches this machine's units."""

import errno
import grp
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import click
import pytest
from msgspec.structs import replace

from launcher.cli import app, service
from launcher.domain import ArtifactFile, Plan
from launcher.errors import EngineMissingError, LauncherError, UnitError
from launcher.installation import places, reach, standing
from launcher.render.systemd import Scope, is_unchanged, mark
from launcher.render.text import render_error
from launcher.supervisor.service_manager import ServiceManager
from tests.fakes.harness import poll
from tests.fakes.hub import make_gguf
from tests.fakes.manager import Manager
from tests.fakes.plans import plan_for
from tests.fakes.systemd_reader import ANALYZE, verify

_UNITS: Final = "etc/systemd/system"
_KEY: Final = "sentinel-0123456789abcdef"


class Result(NamedTuple):
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Launch(Protocol):
    """Runs ``launch systemd``."""

    def __call__(self, *words: str, **variables: str) -> Result:
        """Return how it ended; variables are of the environment."""


@pytest.fixture(scope="module")
def weights() -> bytes:
    """A small model's file."""
    return make_gguf(n_vocab=2000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a system is that nobody runs."""
    return tmp_path / "root"


@pytest.fixture
def model(tmp_path: Path, weights: bytes) -> Path:
    """Weights that others may read."""
    path = tmp_path / "My Model.gguf"
    path.write_bytes(weights)
    path.chmod(0o644)
    return path


@pytest.fixture
def launch(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Launch]:
    """Run the command line in a folder of its own; it changes its environment, which is therefore put back."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)

    def run(*words: str, **variables: str) -> Result:
        os.environ.clear()
        os.environ.update(before)
        os.environ.update({"HOME": str(tmp_path / "home"), "LAUNCHER_CACHE_DIR": str(tmp_path / "cache"), **variables})
        where = () if "--user" in words else ("--root", str(root))
        fault = ""
        try:
            code = app(["systemd", *words, *where], standalone_mode=False) or 0
        except LauncherError as error:
            code, fault = error.exit_code, render_error(error)
        except click.ClickException as error:
            code, fault = error.exit_code, error.format_message()
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err + fault)

    yield run
    os.environ.clear()
    os.environ.update(before)


def _on_gpu(name: object, *more: str) -> tuple[str, ...]:
    return (str(name), "--inventory", "rtx4090", *more)


def _files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def _instance(root: Path) -> str:
    (folder,) = (root / _UNITS).glob("launch@*.service.d")
    return folder.name.removeprefix("launch@").removesuffix(".service.d")


def test_installing_writes_a_unit_that_systemd_takes(launch: Launch, root: Path, model: Path) -> None:
    """Template, instance and GPU drop-in; what was written and what to type next is shown; options reach the command."""
    done = launch("install", "--port", "8099", *_on_gpu("My Model.gguf", "--quant", "q8_0"))
    assert done.returncode == 0, done.stderr
    instance = _instance(root)
    folder = f"{_UNITS}/launch@{instance}.service.d"
    assert set(_files(root)) == {f"{_UNITS}/launch@.service", f"{folder}/50-launcher.conf", f"{folder}/60-gpu.conf"}
    text = _files(root)[f"{folder}/50-launcher.conf"]
    command = f'serve "{model}" --quant q8_0 --port 8099 --inventory rtx4090\n'
    assert command in text
    assert f'BindReadOnlyPaths="{model}"' in text
    assert [line.split()[0] for line in done.stdout.splitlines()[:3]] == ["written"] * 3
    assert f"enable launch@{instance}.service" in done.stdout
    assert instance == "my-model"
    if ANALYZE is not None:
        assert verify(root / _UNITS, f"launch@{instance}.service") == ""


def test_installing_again_changes_nothing(launch: Launch, root: Path, model: Path) -> None:
    """Nor does rendering write; another option replaces what is ours."""
    assert launch("render", *_on_gpu(model)).returncode == 0
    assert not root.exists()
    launch("install", *_on_gpu(model))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    done = launch("install", *_on_gpu(model))
    assert [line.split()[0] for line in done.stdout.splitlines()[:3]] == ["unchanged"] * 3
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    done = launch("install", *_on_gpu(model, "--port", "9000"))
    assert sorted(line.split()[0] for line in done.stdout.splitlines()[:3]) == ["replaced", "unchanged", "unchanged"]
    done = launch("install", str(model), "--inventory", "cpu-64g")
    assert "removed" in done.stdout
    assert not [name for name in _files(root) if "gpu" in name]


def test_what_is_rendered_is_what_is_installed(launch: Launch, root: Path, model: Path) -> None:
    """The JSON has the same files, and the folder they go to."""
    rendered = json.loads(launch("render", "--json", *_on_gpu(model)).stdout)
    launch("install", *_on_gpu(model))
    assert rendered["folder"] == str(root / _UNITS)
    assert {f"{_UNITS}/{file['name']}": file["text"] for file in rendered["files"]} == _files(root)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("nosuch",), (2, "unknown-model")),
        (("--min-tps", "1000000"), (3, "error[")),
        (("--detach",), (2, "--detach")),
        (("--cluster", "http://127.0.0.1:1"), (2, "--cluster")),
        (("--host", "0.0.0.0"), (2, "API key")),  # noqa: S104 - what is refused
        (("--port", "soon"), (2, "not a valid integer")),
        (("--no-such-option",), (2, "--no-such-option")),
        (("--api-key-file", "nosuch"), (2, "nosuch")),
        (("--group", "no-such-group"), (2, "no-such-group")),
        (("--n-gpu-layers", "99999999999"), (2, "99999999999")),
    ],
)
def test_nothing_is_written_that_could_not_serve(
    launch: Launch, root: Path, model: Path, words: tuple[str, ...], expected: tuple[int, str]
) -> None:
    """A refused plan, a name that nobody has, an option that makes no sense: the fault, and no file."""
    given = words if words[0] == "nosuch" else _on_gpu(model, *words)
    done = launch("install", *given, LAUNCHER_API_KEY=_KEY)
    assert done.returncode == expected[0], done.stderr
    assert expected[1] in done.stderr
    assert not root.exists()


def test_weights_that_the_services_user_cannot_read_are_said_before(launch: Launch, root: Path, model: Path) -> None:
    """With the command that opens them; a unit of one's own reads them as they are."""
    model.chmod(0o600)
    done = launch("install", *_on_gpu(model))
    assert done.returncode == 1
    assert f"chmod o+r '{model}'" in done.stderr
    assert not root.exists()
    assert launch("render", "--user", *_on_gpu(model)).returncode == 0


def test_a_persons_change_is_kept_until_it_is_given_up(launch: Launch, root: Path, model: Path) -> None:
    """Changed, written by somebody, or a link that masks the unit: exit code 1, not a byte is touched anywhere."""
    launch("install", *_on_gpu(model))
    drop_in = root / _UNITS / f"launch@{_instance(root)}.service.d/50-launcher.conf"
    for changed in (drop_in.read_text() + "Nice=5\n", "[Service]\n"):
        drop_in.write_text(changed)
        before = _files(root)
        done = launch("install", *_on_gpu(model, "--port", "9000"))
        assert done.returncode == 1
        assert str(drop_in) in done.stderr
        assert "--overwrite" in done.stderr
        assert _files(root) == before
    done = launch("install", *_on_gpu(model), "--overwrite")
    assert done.returncode == 0, done.stderr
    assert is_unchanged(drop_in.read_text())
    drop_in.unlink()
    drop_in.symlink_to("/dev/null")
    assert launch("install", *_on_gpu(model)).returncode == 1
    assert drop_in.is_symlink()


def test_what_is_left_over_and_was_changed_is_said(launch: Launch, root: Path, model: Path) -> None:
    """A GPU that a person's change keeps open to a service without one is told of, and goes with --overwrite."""
    assert launch("install", *_on_gpu(model)).returncode == 0
    left_over = root / _UNITS / f"launch@{_instance(root)}.service.d/60-gpu.conf"
    left_over.write_text(left_over.read_text() + "# mine\n")
    without = (str(model), "--inventory", "cpu-16g")
    assert f"kept      {left_over}" in launch("install", *without).stdout
    assert left_over.exists()
    assert f"removed   {left_over}" in launch("install", *without, "--overwrite").stdout
    assert not left_over.exists()


def test_uninstalling_removes_what_was_installed_and_nothing_else(launch: Launch, root: Path, model: Path) -> None:
    """A person's drop-in stays, and so does the template while another instance needs it; twice is no fault."""
    launch("install", *_on_gpu(model))
    instance = _instance(root)
    other = model.with_name("other.gguf")
    other.write_bytes(model.read_bytes())
    launch("install", *_on_gpu(other))
    own = root / _UNITS / f"launch@{instance}.service.d/90-local.conf"
    own.write_text("[Service]\nNice=5\n")
    assert launch("uninstall", instance).returncode == 0
    assert own.exists()
    template = root / _UNITS / "launch@.service"
    assert template.exists()
    assert launch("uninstall", str(other)).returncode == 0
    assert set(_files(root)) == {str(path.relative_to(root)) for path in (own, template)}
    own.unlink()
    own.parent.rmdir()
    launch("install", *_on_gpu(model))
    assert launch("uninstall", instance).returncode == 0
    assert _files(root) == {}
    done = launch("uninstall", instance)
    assert (done.returncode, "is not installed" in done.stdout) == (0, True)


def test_uninstalling_refuses_what_is_enabled_or_changed(launch: Launch, root: Path, model: Path) -> None:
    """A unit that would be started at the next boot, or holds a person's work, is not taken away in silence."""
    launch("install", *_on_gpu(model))
    instance = _instance(root)
    link = root / _UNITS / f"multi-user.target.wants/launch@{instance}.service"
    link.parent.mkdir()
    link.symlink_to(root / _UNITS / "launch@.service")
    before = _files(root)
    done = launch("uninstall", instance)
    assert done.returncode == 1
    assert f"disable launch@{instance}.service" in done.stderr
    assert _files(root) == before
    link.unlink()
    drop_in = root / _UNITS / f"launch@{instance}.service.d/50-launcher.conf"
    drop_in.write_text(drop_in.read_text() + "Nice=5\n")
    before = _files(root)
    assert launch("uninstall", instance).returncode == 1
    assert _files(root) == before
    assert launch("uninstall", instance, "--overwrite").returncode == 0
    assert _files(root) == {}


def test_keys_are_named_and_never_shown(launch: Launch, root: Path, model: Path, tmp_path: Path) -> None:
    """A system unit passes the files on as credentials; a key is in no unit and in nothing that is printed."""
    keys, token = tmp_path / "keys", tmp_path / "token"
    for path in (keys, token):
        path.write_text(_KEY)
        path.chmod(0o600)
    given = ("--host", "0.0.0.0", "--api-key-file", "keys", "--hub-token-file", "token")  # noqa: S104 - on purpose
    done = launch("install", *_on_gpu(model, *given))
    assert done.returncode == 0, done.stderr
    text = "".join(_files(root).values())
    assert f"LoadCredential=api-key:{keys}\nLoadCredential=hub-token:{token}\n" in text
    assert "--api-key-file" not in text
    user = launch("render", "--user", *_on_gpu(model, *given))
    assert f"--api-key-file {keys}" in user.stdout
    assert f"Environment=HF_TOKEN_PATH={token}" in user.stdout
    assert "LoadCredential" not in user.stdout
    assert _KEY not in text + done.stdout + done.stderr + user.stdout + user.stderr


def test_a_key_file_that_others_can_read_is_refused(launch: Launch, root: Path, model: Path, tmp_path: Path) -> None:
    """As `serve` refuses it."""
    (tmp_path / "keys").write_text(_KEY)
    (tmp_path / "keys").chmod(0o644)
    done = launch("install", *_on_gpu(model, "--api-key-file", str(tmp_path / "keys")))
    assert (done.returncode, "chmod 600" in done.stderr) == (1, True)
    assert not root.exists()


def test_a_unit_of_ones_own_is_below_the_users_configuration(launch: Launch, model: Path, tmp_path: Path) -> None:
    """As systemd finds it, with the folders of the user's own terminal."""
    config = tmp_path / "config"
    env = {"XDG_CONFIG_HOME": str(config), "LAUNCHER_STATE_DIR": str(tmp_path / "my state")}
    done = launch("install", "--user", *_on_gpu(model), **env)
    assert done.returncode == 0, done.stderr
    files = _files(config)
    assert "systemd/user/launch@.service" in files
    assert any(f'Environment="LAUNCHER_STATE_DIR={tmp_path}/my state"' in text for text in files.values())
    assert "systemctl --user daemon-reload" in done.stdout
    assert launch("uninstall", "--user", str(model), **env).returncode == 0
    assert _files(config) == {}


def test_what_led_to_a_plan_leads_the_service_there_too(launch: Launch, model: Path, tmp_path: Path) -> None:
    """From another folder, and with none of the variables of this terminal."""
    config = {
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_STATE_HOME": "/state",
        "LAUNCHER_ACCEPT_HOLES": "CVE-1,CVE-2",
    }
    here = {"LAUNCHER_PROFILES": "mine", "LAUNCHER_LLAMA_SERVER": "build/llama-server", "HF_HOME": "~/hub"}
    done = launch("render", "--user", *_on_gpu(model), **config, **here, LAUNCHER_VLLM="vllm", LAUNCHER_API_KEY=_KEY)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.replace('"', "").splitlines() if line.startswith("Environment=")]
    paths = {"LAUNCHER_PROFILES": f"{tmp_path}/mine", "LAUNCHER_LLAMA_SERVER": f"{tmp_path}/build/llama-server"}
    expected = {**config, **here, **paths, "LAUNCHER_VLLM": "vllm"}
    assert {f"Environment={name}={value}" for name, value in expected.items()} <= set(told)
    assert _KEY not in done.stdout
    system = launch("render", *_on_gpu(model), **config)
    assert "Environment=LAUNCHER_ACCEPT_HOLES=CVE-1,CVE-2\n" in system.stdout
    assert "XDG_" not in system.stdout


@pytest.mark.parametrize(
    ("words", "variables", "named"),
    [
        (("--user",), {"HF_ENDPOINT": f"https://me:{_KEY}@mirror.test"}, "HF_ENDPOINT"),
        (("--user", "--group", "root"), {}, "--group"),
    ],
)
def test_what_a_unit_of_ones_own_cannot_have_is_refused(
    words: tuple[str, ...], variables: dict[str, str], named: str, launch: Launch, model: Path
) -> None:
    """A password in a file that others read; an option that would be of no effect."""
    done = launch("render", *_on_gpu(model), *words, **variables)
    assert (done.returncode, named in done.stderr, done.stdout, _KEY in done.stderr) == (2, True, "", False)


def test_a_system_unit_knows_the_administrators_profiles_and_nobodys_own(
    launch: Launch, root: Path, model: Path, tmp_path: Path
) -> None:
    """What the service could not find is not found now either; a profile's path is taken wherever it is."""
    text = f'name = "mine"\n[model]\nspec = "specs/llama3.1-8b.json"\n[[artifact]]\nquantization = "q8_0"\nlocal_path = "{model}"\n'
    own = tmp_path / "home/.config/launcher/profiles/mine.toml"
    own.parent.mkdir(parents=True)
    own.write_text(text)
    assert launch("render", *_on_gpu("mine")).returncode == 2
    etc = root / "etc/launcher/profiles/mine.toml"
    etc.parent.mkdir(parents=True)
    etc.write_text(text)
    done = launch("render", *_on_gpu("mine"))
    assert done.returncode == 0, done.stderr
    assert "launch@mine.service" in done.stdout
    by_path = launch("render", *_on_gpu(own))
    assert f"serve {own} " in by_path.stdout
    assert f"BindReadOnlyPaths={own}" in by_path.stdout


def test_what_lies_here_under_the_name_of_a_profile_or_machine_is_not_meant(
    launch: Launch, root: Path, model: Path, tmp_path: Path
) -> None:
    """The service is told the name, as `serve` would take it here; a path, from any folder, is made absolute."""
    text = f'name = "mine"\n[model]\nspec = "specs/llama3.1-8b.json"\n[[artifact]]\nquantization = "q8_0"\nlocal_path = "{model}"\n'
    etc = root / "etc/launcher/profiles/mine.toml"
    etc.parent.mkdir(parents=True)
    etc.write_text(text)
    for name in ("mine", "rtx4090", "mine.toml"):
        (tmp_path / name).write_text(text)
    assert "serve mine --inventory rtx4090\n" in launch("render", *_on_gpu("mine")).stdout
    assert f"serve {tmp_path}/mine.toml --inventory rtx4090\n" in launch("render", *_on_gpu("mine.toml")).stdout


def test_a_key_file_of_nobodys_home_is_none(launch: Launch, model: Path) -> None:
    """A user that is not there has no home; that is a fault like any path that leads nowhere."""
    done = launch("render", *_on_gpu(model, "--api-key-file", "~nobody-of-that-name/keys"))
    assert done.returncode == 2
    assert "--api-key-file names no file" in done.stderr


def test_a_folder_that_cannot_be_made_is_a_fault_with_a_way_out(launch: Launch, root: Path, model: Path) -> None:
    """Whatever stands in the way is named; there is no traceback."""
    (root / "etc").mkdir(parents=True)
    (root / "etc/systemd").write_text("no folder")
    done = launch("install", *_on_gpu(model))
    assert done.returncode == 1
    assert "error[unit-refused]" in done.stderr
    assert str(root / "etc/systemd") in done.stderr


def test_a_disk_that_takes_no_more_leaves_everything_as_it_was(
    launch: Launch, root: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of several files fails: the others are as before, and nothing lies about."""
    launch("install", *_on_gpu(model))
    before = _files(root)
    sync, n_synced = os.fsync, 0

    def run_full(fd: int) -> None:
        nonlocal n_synced
        n_synced += 1
        if n_synced > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(fd)

    for path in root.rglob("*.conf"):
        path.write_text(mark(path.read_text().partition("\n")[2] + "# older\n"))
    older = _files(root)
    monkeypatch.setattr(os, "fsync", run_full)
    done = launch("install", *_on_gpu(model))
    assert (done.returncode, "no space left" in done.stderr) == (1, True)
    assert _files(root) == older
    monkeypatch.setattr(os, "fsync", sync)
    assert launch("install", *_on_gpu(model)).returncode == 0
    assert _files(root) == before


def test_without_the_rights_the_command_to_type_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sudo` has another PATH: the program is named by its own."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UnitError) as raised:
        places.check_writable(tmp_path / "etc/systemd/system", ("/opt/l/bin/launch", "systemd", "install", "a b"))
    assert "sudo /opt/l/bin/launch systemd install 'a b'" in str(raised.value.help)


@pytest.mark.parametrize("state", ["active", "activating", "deactivating", "reloading", "inactive", "failed", ""])
def test_what_runs_is_asked_of_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """A unit on its way up or down runs as well; where systemd does not answer, nothing does."""
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\necho {state}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert standing.look_up("x", Scope.SYSTEM, tmp_path, ask=True).is_active is (
        state not in {"inactive", "failed", ""}
    )
    assert standing.look_up("x", Scope.SYSTEM, tmp_path, ask=False).is_active is False


def test_what_is_hidden_is_bound_once_and_with_what_it_is_a_link_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path inside of another that is bound needs nothing of its own; a visible one neither."""
    real, link, seen = tmp_path / "real/x", tmp_path / "link", tmp_path / "seen"
    real.mkdir(parents=True)
    link.symlink_to(real)
    monkeypatch.setattr(reach, "_HIDDEN", (tmp_path / "real", tmp_path / "link"))
    found = reach.hidden_paths([link, real / "y", seen])
    assert found == (str(link), str(real))


def test_each_folder_on_the_way_must_let_others_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a path is not bound; a group that the service is in counts."""
    monkeypatch.setattr(reach, "_HIDDEN", ())
    inner = tmp_path / "a/b"
    inner.mkdir(parents=True)
    for path in (inner, *inner.parents):
        if path.owner() == Path.home().owner() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o005)
    file = inner / "w.gguf"
    file.write_text("w")
    file.chmod(0o640)
    assert reach.find_unreadable([file], ()) == (f"{file} cannot be read by others: chmod o+r {file}",)
    own_group = grp.getgrgid(file.stat().st_gid).gr_name
    assert reach.find_unreadable([file], (own_group,)) == ()
    file.chmod(0o644)
    inner.chmod(0o700)
    assert reach.find_unreadable([file], ()) == (f"{inner} is closed to others: chmod o+x {inner}",)
    inner.chmod(0o755)
    assert reach.find_unreadable([file, inner], ()) == ()


def _plan_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Return a plan for 20 MiB of weights whose digest is known; each part of them that is read is told."""
    monkeypatch.setenv("LAUNCHER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(service, "_TELL_PAUSE_S", 0.0)
    weights = tmp_path / "w.gguf"
    weights.write_bytes(b"w" * (20 << 20))
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    files = (ArtifactFile(name="w.gguf", sha256=sha256),)
    plan = plan_for()
    return replace(plan, artifact=replace(plan.artifact, files=files, local_path=str(weights)))


def test_a_service_that_reads_its_weights_first_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing gigabytes with their digest takes longer than a start may: each second of it extends the start."""
    plan = _plan_to_check(tmp_path, monkeypatch)
    manager = Manager(tmp_path / "notify")
    ours = ServiceManager(manager.address)
    service.check_weights(plan, ours)
    assert poll(
        lambda: manager.values("STATUS")[-1:] == ["starting: checking the sha256 of w.gguf once, 20.0 MiB read"]
    )
    n_told = len(manager.messages)
    assert len(manager.values("EXTEND_TIMEOUT_USEC")) == n_told
    service.check_weights(plan, ours)
    ours.close()
    manager.close()
    assert len(manager.messages) == n_told


def test_a_restart_that_reads_weights_says_so_and_leaves_the_watchdog_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no digest can be recorded, files are read for each command; once ready, that extends no time."""
    for name in ("cache", "state"):
        (tmp_path / name).write_text("a file where the folder should be")
    plan = _plan_to_check(tmp_path, monkeypatch)
    manager = Manager(tmp_path / "notify")
    ours = ServiceManager(manager.address)
    last = "starting: checking the sha256 of w.gguf once, 20.0 MiB read"
    try:
        with pytest.raises(EngineMissingError):  # what is read is read before an engine is needed
            service.make_command(plan, tell=False, manager=ours)
        assert poll(lambda: manager.values("STATUS")[-1:] == [last])
        n_extended = len(manager.values("EXTEND_TIMEOUT_USEC"))
        assert n_extended == len(manager.messages)
        ours.tell({"READY": "1"})
        with pytest.raises(EngineMissingError):  # what is read is read before an engine is needed
            service.make_command(plan, tell=False, manager=ours)
        assert poll(lambda: manager.values("STATUS").count(last) == 2)
        assert len(manager.values("EXTEND_TIMEOUT_USEC")) == n_extended
    finally:
        ours.close()
        manager.close()


def test_what_is_not_here_is_the_services_to_download(launch: Launch, root: Path) -> None:
    """It is planned, said, and left to the first start; who wants no download is told what is missing."""
    done = launch("install", *_on_gpu("gemma2-27b"))
    assert done.returncode == 0, done.stderr
    assert "the first start downloads them, about " in done.stderr
    assert "gguf" not in "".join(_files(root).values())
    assert launch("uninstall", "gemma2-27b").returncode == 0
    done = launch("install", *_on_gpu("gemma2-27b", "--no-pull"))
    assert (done.returncode, "weights-missing" in done.stderr) == (1, True)
    assert _files(root) == {}


def test_what_the_service_has_downloaded_needs_no_rights_of_others(tmp_path: Path) -> None:
    """Its own cache is closed to all but it, and nothing of it is bound."""
    weights = tmp_path / "var/cache/launcher/huggingface/w.gguf"
    weights.parent.mkdir(parents=True)
    weights.touch()
    plan = plan_for()
    plan = replace(plan, artifact=replace(plan.artifact, local_path=str(weights)))
    assert weights not in reach.needed_paths("/bin/sh", [plan], "", tmp_path)
    assert weights in reach.needed_paths("/bin/sh", [plan], "", Path("/"))


def test_what_links_and_profiles_lead_to_is_needed_too(tmp_path: Path) -> None:
    """The shards of the hub's cache are links, and a profile may name a description of its model beside it."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/c"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    shards = [f"w-{n:05}-of-00002.gguf" for n in (1, 2)]
    for name in shards:
        (blobs / f"{name}-sha").touch()
        (snapshot / name).symlink_to(blobs / f"{name}-sha")
    profile = tmp_path / "p/mine.toml"
    (profile.parent / "specs").mkdir(parents=True)
    (profile.parent / "specs/s.json").touch()
    profile.write_text('name = "mine"\n[model]\nspec = "specs/s.json"\n')
    plan = plan_for()
    parts = tuple(ArtifactFile(name=name) for name in shards)
    plan = replace(plan, artifact=replace(plan.artifact, files=parts, local_path=str(snapshot / shards[0])))
    needed = reach.needed_paths("/bin/sh", [plan], str(profile), Path("/"))
    assert {snapshot, blobs, profile, profile.parent / "specs/s.json"} <= set(needed)
