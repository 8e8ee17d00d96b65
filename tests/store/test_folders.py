"""Where a user's own folders are."""

import pwd
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest

from launcher.errors import NoHomeError
from launcher.folders import cache_dir, home_dir, xdg_dir


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LAUNCHER_CACHE_DIR": "/a", "CACHE_DIRECTORY": "/b", "XDG_CACHE_HOME": "/c"}, "/a"),
        ({"CACHE_DIRECTORY": "/b:/other", "XDG_CACHE_HOME": "/c"}, "/b"),
        ({"CACHE_DIRECTORY": "", "XDG_CACHE_HOME": "/c"}, "/c/launcher"),
        ({}, "/home/u/.cache/launcher"),
    ],
)
def test_a_services_cache_goes_before_a_users(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was named by hand first, then what systemd made for a service, then XDG's."""
    for name in ("LAUNCHER_CACHE_DIR", "CACHE_DIRECTORY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/u", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)


@pytest.mark.parametrize("value", [None, "", "  ", "/somewhere", "~/there", "relative"])
@pytest.mark.parametrize(
    ("variable", "fallback", "oracle"),
    [
        ("XDG_CONFIG_HOME", ".config", platformdirs.user_config_path),
        ("XDG_STATE_HOME", ".local/state", platformdirs.user_state_path),
        ("XDG_CACHE_HOME", ".cache", platformdirs.user_cache_path),
    ],
)
def test_folders_are_platformdirs(
    variable: str, fallback: str, oracle: Callable[[], Path], value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a variable names, where it is absolute, as another reader of the specification has it."""
    monkeypatch.delenv(variable, raising=False)
    if value is not None:
        monkeypatch.setenv(variable, value)
    assert xdg_dir(variable, fallback) == oracle()


def test_a_user_whom_nobody_knows_has_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without HOME and without an entry in the system's list of users, that is said: no folder is called `~`."""

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert home_dir().is_absolute()
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(NoHomeError, match=r"no home folder: user \d+ has none"):
        xdg_dir("XDG_STATE_HOME", ".local/state")
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert xdg_dir("XDG_STATE_HOME", ".local/state") == Path("/somewhere")


def test_a_home_that_depends_on_the_working_directory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept would be elsewhere at the next command."""
    monkeypatch.setenv("HOME", "nowhere")
    with pytest.raises(NoHomeError, match="HOME is `nowhere`"):
        home_dir()
