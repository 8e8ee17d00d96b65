"""An upgrade keeps what earlier versions wrote, and an earlier version leaves alone what a later one wrote.

``states/N`` is the state directory of a launcher of schema N that served Gemma 3 270M, calibrated and learnt; its paths
are another machine's.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from launcher import store
from launcher.domain import READABLE_VERSIONS, SCHEMA_VERSION, Lesson, State
from launcher.errors import NewerStateError
from launcher.state_schema import STEPS

_STATES: Final = Path(__file__).parent / "states"
_OLDER: Final = sorted(READABLE_VERSIONS - {SCHEMA_VERSION})
_NAME: Final = "gemma3-270m"


@pytest.fixture(params=_OLDER)
def older(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of an older launcher, in use."""
    path = tmp_path / "state"
    shutil.copytree(_STATES / str(request.param), path)
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(path))
    return path


def _without_versions(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_versions(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_versions(item) for key, item in value.items() if key != "schema_version"}
    return value


def _kept(before: Any, after: Any) -> bool:
    """Whether all that was said before is said after, whatever was added."""
    if isinstance(before, dict):
        return isinstance(after, dict) and all(key in after and _kept(before[key], after[key]) for key in before)
    if isinstance(before, list):
        if before and isinstance(before[0], str):  # sets of words have no order of their own
            return sorted(before) == sorted(after)
        return isinstance(after, list) and len(before) == len(after) and all(map(_kept, before, after))
    return bool(before == after)


def test_every_older_version_has_a_step_and_a_stored_state() -> None:
    """Who raises the version writes both."""
    assert sorted(STEPS) == list(range(1, SCHEMA_VERSION)) == _OLDER
    assert [path.name for path in sorted(_STATES.iterdir())] == [str(version) for version in _OLDER]


def test_an_older_instance_is_shown_and_taken_over(older: Path) -> None:
    """Readers understand its record; its next owner reads it, finds its guard, and writes all of it in today's version."""
    path = older / "instances" / _NAME / "instance.json"
    before = json.loads(path.read_bytes())
    view = store.find_instance(_NAME)
    assert view.record is not None, view.reason
    assert (view.state, view.record.plan is not None) == (State.STOPPED, True)
    with store.open_instance(_NAME) as instance:
        record = instance.read()
        assert record == view.record
        assert [guard.guard is not None for guard in instance.read_guards()] == [True]
        assert record is not None
        instance.write(record)
    after = json.loads(path.read_bytes())
    assert after["schema_version"] == after["plan"]["schema_version"] == SCHEMA_VERSION > before["schema_version"]
    assert _kept(_without_versions(before), after)
    assert not list(older.rglob("*.corrupt"))


def test_what_was_measured_and_learnt_is_kept(older: Path) -> None:
    """Rates, tunings and lessons hold as before; a first lesson after the upgrade is laid beside them."""
    (path,) = (older / "calibrations").glob("*.json")
    before = json.loads(path.read_bytes())
    known, warning = store.read_calibration(path.stem)
    assert warning is None
    assert known is not None
    assert known.rates_of("host") is not None
    assert len(known.tunings) == 1
    assert [lesson.lesson for lesson in known.corrections] == [Lesson.MEASURED]
    store.require_readable_calibration(path.stem)
    store.update_calibration(path.stem, lambda found: found)
    after = json.loads(path.read_bytes())
    assert after["schema_version"] == SCHEMA_VERSION
    assert _kept(_without_versions(before), after)
    assert not list(older.rglob("*.corrupt"))


def test_what_a_newer_launcher_wrote_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, not used, not set aside and not written over: after a downgrade nothing is lost."""
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path))
    newer = msgspec.json.encode({"schema_version": SCHEMA_VERSION + 1, "what": "is to come"})
    files = [
        tmp_path / "instances" / _NAME / "instance.json",
        tmp_path / "instances" / _NAME / f"guard-{'0' * 32}.json",
        tmp_path / "calibrations" / "m.json",
    ]
    for path in files:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(newer)
    assert "a newer launcher wrote it" in str(store.find_instance(_NAME).reason)
    with store.open_instance(_NAME) as instance:
        with pytest.raises(NewerStateError) as caught:
            instance.read()
        assert "LAUNCHER_STATE_DIR" in str(caught.value.help)
        assert [guard.token for guard in instance.read_guards()] == ["0" * 32]
    known, warning = store.read_calibration("m")
    assert known is None
    assert "is not used: a newer launcher wrote it" in str(warning)
    for act in (store.require_readable_calibration, lambda name: store.update_calibration(name, lambda found: found)):
        with pytest.raises(NewerStateError):
            act("m")
    assert [path.read_bytes() for path in files] == [newer] * 3
    assert not list(tmp_path.rglob("*.corrupt"))


@pytest.mark.parametrize("version", [0, -1, 1.5, "1", None, [], True])
def test_a_version_that_never_was_is_set_aside(version: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any file that cannot be understood."""
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path))
    path = tmp_path / "calibrations" / "m.json"
    path.parent.mkdir(mode=0o700)
    path.write_bytes(json.dumps({"machine": "m", "schema_version": version}).encode())
    known, warning = store.read_calibration("m")
    assert known is None
    assert "set aside" in str(warning)
    assert path.with_name("m.json.corrupt").exists()


@pytest.mark.parametrize(
    "data", [b"\xff", b'"\xff"', b'{"machine": "\xff"}', *(b"[" * n + b"]" * n for n in (900, 100_000))]
)
@pytest.mark.parametrize("version", [1, SCHEMA_VERSION])
def test_what_is_no_text_or_nested_too_deep_is_not_understood(
    version: int, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk's garbage, in a record or in a measurement: told and set aside, never a fault of ours."""
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path))
    for path in (tmp_path / "calibrations" / "m.json", tmp_path / "instances" / _NAME / "instance.json"):
        path.parent.mkdir(mode=0o700, parents=True)
        path.write_bytes(b'{"schema_version": %d, "x": %b}' % (version, data))
    assert "set aside" in str(store.read_calibration("m")[1])
    assert "cannot be understood" in str(store.find_instance(_NAME).reason)
    with store.open_instance(_NAME) as instance:
        assert instance.read() is None
