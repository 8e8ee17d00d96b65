"""The state on disk: one writer, many readers, never a half-written file, never a broken program."""

import errno
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher import store
from launcher.domain import (
    Address,
    Calibration,
    Correction,
    InstanceRecord,
    Lesson,
    MeasuredRates,
    ProcessId,
    State,
)
from launcher.errors import AlreadyServedError, NotServedError, StateError, UsageError


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state directory."""
    path = tmp_path / "state"
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(path))
    return path


def record(name: str = "a", state: State = State.READY, supervisor: ProcessId | None = None) -> InstanceRecord:
    """A record, by default of this living process."""
    me = supervisor or store.identify(os.getpid())
    assert me is not None
    return InstanceRecord(
        name=name, state=state, supervisor=me, address=Address(), started_at=time.time(), changed_at=time.time()
    )


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))
def test_a_name_is_a_safe_folder_of_its_own(one: str, other: str) -> None:
    """No path, no hidden file, no two names in one folder; naming the folder names it again."""
    folder, second = store.instance_name(one), store.instance_name(other)
    assert set(folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert folder[0] not in ".-"
    assert len(folder) <= 80
    assert (folder == second) == (one == other) or folder in {one, other}


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..", "/etc", "a/b", ".hidden", "-rf", "Ünïcode", "a\0b", "x" * 500]
)
def test_hostile_names_stay_inside(name: str, state_dir: Path) -> None:
    """The folder is a direct child of the instances' folder, and can be found by the same name."""
    with store.open_instance(name) as instance:
        assert instance.path.parent == state_dir / "instances"
        instance.write(record(instance.name))
    assert store.find_instance(name).name == instance.name


def test_a_name_is_needed() -> None:
    """The empty name is wrong usage."""
    with pytest.raises(UsageError):
        store.instance_name("")


def test_a_record_comes_back_as_it_was_written() -> None:
    """Through JSON and the disk."""
    written = record()
    with store.open_instance("a") as instance:
        instance.write(written)
        assert instance.read() == written
    view = store.find_instance("a")
    assert (view.record, view.state, view.supervisor_alive) == (written, State.READY, True)


def test_a_second_owner_is_refused() -> None:
    """In another process as in this one; the message names the holder and the way to end it."""
    with store.open_instance("a") as instance:
        instance.write(record())
        with pytest.raises(AlreadyServedError, match=f"process {os.getpid()}") as caught, store.open_instance("a"):
            pass
        assert "launch stop a" in str(caught.value.help)
        script = "from launcher.store import open_instance\nwith open_instance('a'): pass"
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert "AlreadyServedError" in other.stderr
    with store.open_instance("a"):
        pass


def test_a_child_process_does_not_inherit_the_lock() -> None:
    """What the owner starts may outlive it without holding the name."""
    with store.open_instance("a"):
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(3600)"], close_fds=False)
    try:
        with store.open_instance("a"):
            pass
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    "changes", [{"start_time": 1}, {"boot_id": "00000000-0000-0000-0000-000000000000"}, {"pid": 2**22 - 7}]
)
def test_a_dead_supervisor_is_seen_through(changes: dict[str, Any]) -> None:
    """A number that was given anew, an earlier boot, a number of nobody: the instance failed, by its supervisor's end."""
    me = store.identify(os.getpid())
    assert me is not None
    fields = {"pid": me.pid, "start_time": me.start_time, "boot_id": me.boot_id, **changes}
    with store.open_instance("a") as instance:
        instance.write(record(supervisor=ProcessId(**fields)))
    view = store.find_instance("a")
    assert (view.state, view.supervisor_alive) == (State.FAILED, False)
    assert "was killed" in str(view.reason)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'{"name": 3}', b"\xff\xfe", b'{"schema_version": 0}', b'{"schema_version": 2}', b"0" * 1000],
)
def test_a_broken_record_is_shown_and_set_aside(data: bytes, state_dir: Path) -> None:
    """Readers say so and change nothing; the next owner sets it aside and begins anew."""
    with store.open_instance("a"):
        (state_dir / "instances" / "a" / "instance.json").write_bytes(data)
    view = store.find_instance("a")
    assert view.state is State.FAILED
    assert "cannot be understood" in str(view.reason)
    assert len(store.list_instances()) == 1
    with store.open_instance("a") as instance:
        assert instance.read() is None
        assert (instance.path / "instance.json.corrupt").read_bytes() == data


def test_nothing_is_known_where_nothing_was_served(state_dir: Path) -> None:
    """Reading creates nothing; the help names what is known."""
    assert store.list_instances() == ()
    with pytest.raises(NotServedError, match="`a` is not served here"):
        store.find_instance("a")
    assert not state_dir.exists()


def test_links_are_not_followed(state_dir: Path, tmp_path: Path) -> None:
    """Neither for the folder nor for the record."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (state_dir / "instances").mkdir(parents=True)
    (state_dir / "instances" / "a").symlink_to(outside)
    with (
        pytest.raises(StateError, match=r"use the state directory .*: it is a link") as caught,
        store.open_instance("a"),
    ):
        pass
    assert "systemctl stop" in str(
        caught.value.help
    )  # whose link it mostly is; to remove it would cost a service its state
    assert list(outside.iterdir()) == []
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with store.open_instance("b") as instance:
        (instance.path / "instance.json").symlink_to(secret)
    assert "cannot be read" in str(store.find_instance("b").reason)


def test_a_file_where_the_folder_should_be(state_dir: Path) -> None:
    """A clear fault with help."""
    state_dir.write_text("")
    with pytest.raises(StateError) as caught, store.open_instance("a"):
        pass
    assert caught.value.help


def test_a_place_where_nobody_can_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clear fault with help; not even root makes folders there."""
    monkeypatch.setenv("LAUNCHER_STATE_DIR", "/proc/launcher")
    with pytest.raises(StateError, match="/proc/launcher") as caught, store.open_instance("a"):
        pass
    assert caught.value.help


def test_a_disk_that_refuses_to_be_closed_to_others(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only folder that others may read is a clear fault, not a traceback."""

    def refuse(_: int, __: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    state_dir.mkdir(mode=0o755)
    monkeypatch.setattr(os, "fchmod", refuse)
    with pytest.raises(StateError, match="read-only file system"), store.open_instance("a"):
        pass


def test_a_folder_of_somebody_else(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the state directory could replace what we signal by."""
    state_dir.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(StateError, match="belongs to user"), store.open_instance("a"):
        pass


def test_a_disk_that_is_full_leaves_the_old_record() -> None:
    """A write that fails half-way raises, keeps the old bytes, and leaves no temporary file."""
    with store.open_instance("a") as instance:
        instance.write(record())
        script = (
            "import os, resource, signal, sys\n"
            "from launcher import store\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
            "directory = os.open(sys.argv[1], os.O_RDONLY)\n"
            "try:\n    store.replace_file(directory, 'instance.json', b'x' * 1000)\n"
            "except OSError:\n    sys.exit(7)\n"
        )
        assert subprocess.run([sys.executable, "-c", script, str(instance.path)], check=False).returncode == 7
        assert instance.read() is not None
        assert sorted(path.name for path in instance.path.iterdir()) == ["instance.json", "lock"]


def test_readers_never_see_half_a_record() -> None:
    """While one process replaces the record as fast as it can, another reads whole ones only."""
    with store.open_instance("a") as instance:
        instance.write(record())
        script = (
            "from launcher import store\n"
            "for _ in range(400):\n"
            "    view = store.find_instance('a')\n"
            "    assert view.record is not None, view.reason\n"
        )
        reader = subprocess.Popen([sys.executable, "-c", script])
        n = 0
        while reader.poll() is None:
            n += 1
            instance.write(record(state=State.READY if n % 2 else State.STARTING))
        assert reader.returncode == 0
        assert n > 1


@pytest.mark.parametrize(("variable", "value"), [("STATE_DIRECTORY", "{}:/other"), ("XDG_STATE_HOME", "{}")])
def test_where_the_state_is(variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systemd's directory, else the XDG one; our own variable before both."""
    assert store.state_root() == tmp_path / "state"
    monkeypatch.delenv("LAUNCHER_STATE_DIR")
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv(variable, value.format(tmp_path / "else"))
    expected = tmp_path / "else" if variable == "STATE_DIRECTORY" else tmp_path / "else" / "launcher"
    assert store.state_root() == expected


def test_what_many_processes_learn_at_once_is_all_kept() -> None:
    """Each change is made to what the others have written, none is lost."""
    code = """
import sys
from msgspec.structs import replace
from launcher.domain import MeasuredRates
from launcher.store import update_calibration
for n in range(20):
    rate = MeasuredRates(name=f"{sys.argv[1]}-{n}", bandwidth_bytes_per_s=1.0, efficiency=0.5)
    update_calibration("m", lambda known: replace(known, rates=(*known.rates, rate)))
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(idx)]) for idx in range(3)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    known, warning = store.read_calibration("m")
    assert warning is None
    assert known is not None
    assert {rates.name for rates in known.rates} == {f"{idx}-{n}" for idx in range(3) for n in range(20)}


def test_a_new_calibration_keeps_what_was_learnt_meanwhile() -> None:
    """``launch calibrate`` reads, measures for minutes, and writes: corrections of that time survive."""
    lesson = Correction(
        memory="gpu0",
        build="b",
        model="llama-32x4096",
        configuration="1 device",
        lesson=Lesson.OUT_OF_MEMORY,
        planned_bytes=2,
        unaccounted_bytes=1,
        learnt_at=0.0,
    )
    store.update_calibration("m", lambda known: replace(known, corrections=(lesson,)))
    rates = MeasuredRates(name="host", bandwidth_bytes_per_s=1.0, efficiency=0.5)
    store.write_calibration(Calibration(machine="m", rates=(rates,)))
    known, _ = store.read_calibration("m")
    assert known == Calibration(machine="m", rates=(rates,), corrections=(lesson,))


def test_learning_goes_on_after_a_corrupt_file(state_dir: Path) -> None:
    """It is set aside, and what is learnt next stands in a new one."""
    store.write_calibration(Calibration(machine="m"))
    path = state_dir / "calibrations" / "m.json"
    path.write_text("{")
    changed = store.update_calibration("m", lambda known: known)
    assert changed == Calibration(machine="m")
    assert path.with_name("m.json.corrupt").exists()
    assert store.read_calibration("m") == (changed, None)


@pytest.mark.parametrize(
    "rates",
    [
        {"bandwidth_bytes_per_s": 0.0, "efficiency": 0.5},
        {"bandwidth_bytes_per_s": 1e9, "efficiency": 0.0},
        {"bandwidth_bytes_per_s": 1e9, "efficiency": 5e-324},
        {"bandwidth_bytes_per_s": 1e9, "efficiency": -1.0},
        {"bandwidth_bytes_per_s": 1e9, "efficiency": 0.5, "prompt_flops": 0.0},
        {"bandwidth_bytes_per_s": 1e300, "efficiency": 0.5},
    ],
    ids=str,
)
def test_rates_that_nothing_measured_are_set_aside(rates: dict[str, float], state_dir: Path) -> None:
    """They would be divided by (found by `make fuzz`)."""
    store.write_calibration(Calibration(machine="here", rates=(MeasuredRates(name="gpu0", **rates),)))
    found, warning = store.read_calibration("here")
    assert found is None
    assert "set aside" in str(warning)
    assert (state_dir / "calibrations" / "here.json.corrupt").exists()


def test_a_small_record_takes_little_memory() -> None:
    """Asked for as much as a record may ever have, Python had 32 MiB ready for each (found by `make fuzz`)."""
    with store.open_instance("a") as instance:
        instance.write(record())
        store.find_instance("a")
        tracemalloc.start()
        try:
            store.find_instance("a")
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


def test_the_state_directory_of_a_dynamic_user_may_be_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systemd makes it one; it names the folder behind it, which is then opened without following any."""
    monkeypatch.delenv("LAUNCHER_STATE_DIR")
    (tmp_path / "private").mkdir()
    (tmp_path / "public").symlink_to("private")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "public"))
    assert store.state_root() == tmp_path / "private"
    with store.open_instance("x") as instance:
        assert instance.path == tmp_path / "private/instances/x"
