"""Fixtures of the tests of profiles."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.profiles.search import DIRECTORY_VARIABLE

WriteProfile = Callable[[str, str], Path]

MINIMAL = 'name = "{name}"\n{more}\n[[artifact]]\nquantization = "q8_0"\n'


@pytest.fixture
def user_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory of the user's own profiles, in force."""
    folder = tmp_path / "profiles"
    folder.mkdir()
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(folder))
    return folder


@pytest.fixture
def write_profile(user_profiles: Path) -> WriteProfile:
    """Write a minimal profile of a name, with more lines at its top, among the user's own."""

    def write(name: str, more: str = "") -> Path:
        path = user_profiles / f"{name}.toml"
        path.write_text(MINIMAL.format(name=name, more=more), encoding="utf-8")
        return path

    return write
