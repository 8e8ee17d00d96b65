"""Whatever is planted where the state is to be: it is not followed, not waited for, not written to, and the rest is private."""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from launcher import store
from launcher.domain import Address, Calibration, Command, Engine, EngineInstall, MemoryUse
from launcher.errors import LauncherError
from launcher.fetch.places import models_dir
from launcher.inventory.engine_cache import Capabilities, _file, read_capabilities, write_capabilities
from launcher.private import (
    NotOursError,
    close_to_others,
    create_private,
    find_open_parent,
    make_private,
    open_private,
    open_regular,
    own_directory,
    read_own,
)
from launcher.supervisor import guard, remote
from launcher.supervisor.breakdown import Breakdown, DeviceRow
from launcher.supervisor.logs import RotatingFile
from launcher.supervisor.recall import Recall, key_of
from launcher.supervisor.scratch import Scratch, place
from tests.fakes.planted import CONTENT, KINDS, SOMEBODY, Victim, open_to_others
from tests.store.test_store import record

pytestmark = pytest.mark.timeout(30)  # what waits for a pipe would wait for ever


@pytest.fixture(autouse=True)
def loose() -> Iterator[None]:
    """A shell that gives everything away, as far as the process itself lets it."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture(name="state")
def make_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory that is not there yet."""
    path = tmp_path / "deep" / "er" / "state"
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(path))
    monkeypatch.setenv("LAUNCHER_CACHE_DIR", str(tmp_path / "cache"))
    return path


@pytest.fixture(name="victim")
def make_victim(tmp_path: Path) -> Victim:
    """Somebody's files."""
    return Victim(tmp_path)


@contextmanager
def _fault_or_nothing() -> Iterator[None]:
    """A refusal is a fault with a name, or one of the system's; never a hang."""
    with suppress(LauncherError, OSError):
        yield


def _serve() -> None:
    """All that a supervisor does to its folder."""
    with store.open_instance("a") as instance:
        instance.write(record())
        instance.read()
        instance.read_guards()
        for path in (instance.log_path, instance.events_path):
            log = RotatingFile(path, 40, lambda _: None)
            for _ in range(3):
                log.write("x" * 30)
            log.close()
        with suppress(OSError):
            guard.write_record(str(instance.guard_path("0" * 32)), "0" * 32, os.getpid())
        instance.forget_guard("0" * 32)


def _look() -> None:
    """All that a reader does."""
    store.list_instances()
    with _fault_or_nothing():
        view = store.find_instance("a")
        remote.last_lines(Path(view.log_path), 10)


def _detach() -> None:
    remote.spawn_detached([sys.executable, "-c", ""], name="a", relay=lambda _: None)


_NAMES = (
    "instance.json",
    f".instance.json.{os.getpid()}",
    "lock",
    "engine.log",
    "engine.log.1",
    "events.jsonl",
    "supervisor.log",
    f"guard-{'0' * 32}.json",
    f"guard-{'0' * 32}.json.new",
    "tmp",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", _NAMES)
def test_what_is_planted_in_an_instance_harms_nobody(kind: str, name: str, state: Path, victim: Victim) -> None:
    """In each place that a supervisor, its guard or a detached start writes to, or a reader looks at."""
    folder = state / "instances" / "a"
    victim.plant(kind, folder / name)
    for act in (_serve, _look, _detach, _serve, _look):
        with _fault_or_nothing():
            act()
    command = Command(
        argv=("e",), address=Address(), ready_path="/", canary_path="/", canary_body="", temp_env="TMPDIR"
    )
    scratch = Scratch(folder)
    scratch.open(command)
    scratch.clear()
    assert victim.is_whole()
    if kind not in {"folder", "socket", "pipe"}:
        left = [line for line in open_to_others(state) if f"/{name}" not in line]  # what was planted, set aside too
        assert left == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_no_folder_of_the_state_is_anything_else(kind: str, level: int, state: Path, victim: Victim) -> None:
    """The state directory, the one of all instances and the one of one: a fault with help, or the victim stays whole."""
    victim.plant(kind, (state, state / "instances", state / "instances" / "a")[level])
    with pytest.raises(LauncherError) as caught:
        _serve()
    assert caught.value.help
    with _fault_or_nothing():
        _look()
    assert victim.is_whole()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["m.json", f".m.json.{os.getpid()}", "m.lock"])
def test_what_is_planted_among_calibrations_harms_nobody(kind: str, name: str, state: Path, victim: Victim) -> None:
    """They are read by every plan, and written by whoever learns."""
    victim.plant(kind, state / "calibrations" / name)
    for act in (
        lambda: store.read_calibration("m"),
        lambda: store.write_calibration(Calibration(machine="m")),
        lambda: store.read_calibration("m"),
        lambda: store.forget_calibration("m"),
    ):
        with _fault_or_nothing():
            act()
    assert victim.is_whole()


_TOLD = Breakdown(devices=(DeviceRow(use=MemoryUse(name="CUDA0", weights_bytes=7)),), hosts=(), complete=True)
_INSTALL = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("llama-server",), build="abc")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_among_accounts_harms_nobody(kind: str, state: Path, victim: Victim, tmp_path: Path) -> None:
    """What an engine told once decides whether it is asked again."""
    weights = tmp_path / "w.gguf"
    weights.write_bytes(b"GGUF")
    argv = ("llama-server", "--model", str(weights))
    command = Command(argv=argv, address=Address(), ready_path="/", canary_path="/", canary_body="")
    victim.plant(kind, state / "accounts" / "here" / f"{key_of(command, _INSTALL)}.json")
    recall = Recall("here")
    assert recall.find(command, _INSTALL) is None
    recall.keep(command, _INSTALL, _TOLD)
    assert victim.is_whole()
    if kind != "folder":
        assert recall.find(command, _INSTALL) == _TOLD
        assert list(open_to_others(state)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_among_capabilities_is_not_believed(
    kind: str, state: Path, victim: Victim, tmp_path: Path
) -> None:
    """Who could write there would tell of an engine what it never said."""
    del state
    binary = tmp_path / "llama-server"
    binary.write_bytes(b"")
    folder = tmp_path / "cache" / "engines"
    known = Capabilities(path=str(binary), fingerprint="f", version=None, build="b", flags=frozenset())
    place_of = _file(folder, binary)
    victim.plant(kind, place_of)
    assert read_capabilities(folder, binary, "f") is None
    write_capabilities(folder, binary, known)
    assert victim.is_whole()
    if kind != "folder":
        assert read_capabilities(folder, binary, "f") == known
        place_of.chmod(0o666)
        assert read_capabilities(folder, binary, "f") is None


def test_everything_is_made_for_its_owner_alone(state: Path, tmp_path: Path) -> None:
    """Under a umask that takes nothing away: state, cache, and the folders above them that were missing."""
    _serve()
    _detach()
    store.write_calibration(Calibration(machine="m"))
    make_private(models_dir())
    Scratch(state / "instances" / "a").open(
        Command(argv=("e",), address=Address(), ready_path="/", canary_path="/", canary_body="", temp_env="TMPDIR")
    )
    assert list(open_to_others(tmp_path / "deep")) == []
    assert list(open_to_others(tmp_path / "cache")) == []
    assert len(list(state.rglob("*"))) > 8


def test_a_state_that_was_open_to_all_is_closed(state: Path) -> None:
    """Of an older version, or copied there."""
    _serve()
    for path in (state, *state.rglob("*")):
        path.chmod(0o777)
    _serve()
    left = [line for line in open_to_others(state) if not line.split()[0].endswith((".1", "instances/a/tmp"))]
    assert left == []


def test_it_is_said_where_anybody_could_exchange_the_state(state: Path) -> None:
    """A folder above it that all may write to and that keeps no names apart, as `/tmp` does."""
    state.parent.mkdir(parents=True)
    state.parent.chmod(0o755)
    state.parent.parent.chmod(0o755)
    assert store.find_exposure() is None
    state.parent.chmod(0o1777)
    assert store.find_exposure() is None
    state.parent.chmod(0o777)
    assert str(state.parent) in str(store.find_exposure())
    assert find_open_parent(state) == state.parent


_SCRATCHES: tuple[Callable[[Path, Victim], None], ...] = (
    lambda where, victim: where.symlink_to(victim.folder),
    lambda where, _: where.mkdir(mode=0o777),
    lambda where, victim: where.hardlink_to(victim.file),
    lambda where, _: os.mkfifo(where),
)


@pytest.mark.parametrize("plant", _SCRATCHES)
def test_a_temporary_folder_of_somebody_else_is_not_used(
    plant: Callable[[Path, Victim], None], victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name can be guessed where the instance's own is too long: then who made it first is asked, not its name."""
    shared = tmp_path / "t"
    shared.mkdir(mode=0o1777)
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    deep = tmp_path / ("x" * 120)
    where = place(deep)
    assert where.parent == shared
    plant(where, victim)
    command = Command(
        argv=("e",), address=Address(), ready_path="/", canary_path="/", canary_body="", temp_env="TMPDIR"
    )
    scratch = Scratch(deep)
    assert scratch.open(command) == {}
    scratch.clear()
    assert where.is_symlink() or where.exists()
    assert victim.is_whole()


# --- The helpers themselves ---


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_file_of_ours_alone_is_opened(kind: str, victim: Victim, tmp_path: Path) -> None:
    """What is open to all is closed first; all else is refused at once, and emptied by nobody."""
    where = tmp_path / "f"
    victim.plant(kind, where)
    if kind == "file open to all":
        os.close(open_private(where, os.O_RDWR))
        assert stat.S_IMODE(where.stat().st_mode) == 0o600
    else:
        for flags in (os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_APPEND):
            with pytest.raises(OSError):  # noqa: PT011 - which one is the system's choice
                open_private(where, flags)
        with pytest.raises(OSError):  # noqa: PT011 - as above
            os.close(own_directory(where)) if kind != "folder" else os.close(open_regular(where))
    assert victim.is_whole()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
def test_a_new_file_takes_the_place_of_what_was_planted(kind: str, victim: Victim, tmp_path: Path) -> None:
    """Its name is free again; what it led to stays."""
    where = tmp_path / "f"
    victim.plant(kind, where)
    fd = create_private(where)
    os.write(fd, b"ours")
    os.close(fd)
    assert stat.S_IMODE(where.lstat().st_mode) == 0o600
    assert read_own(where, 10) == b"ours"
    assert victim.is_whole()


def test_what_belongs_to_somebody_else_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that tells whose it is."""
    folder = tmp_path / "f"
    folder.mkdir(mode=0o700)
    file = tmp_path / "g"
    file.write_bytes(CONTENT)
    file.chmod(0o600)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)
    with pytest.raises(NotOursError) as caught:
        own_directory(folder)
    assert caught.value.uid == owner
    for refuse in (lambda: open_private(file, os.O_RDWR), lambda: read_own(file, 9)):
        with pytest.raises(NotOursError):
            refuse()


def test_a_process_gives_nothing_away(tmp_path: Path) -> None:
    """The umask is only ever made stricter."""
    close_to_others()
    (tmp_path / "f").touch()
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600
    os.umask(0o777)
    close_to_others()
    assert os.umask(0) == 0o777
