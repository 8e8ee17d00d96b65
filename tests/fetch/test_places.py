"""Where what can be had again is kept."""

from pathlib import Path

import pytest

from launcher.fetch.places import cache_dir
from launcher.inventory import probe


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
    """What was named by hand first, then what systemd made for a service; both rooms that keep things agree."""
    for name in ("LAUNCHER_CACHE_DIR", "CACHE_DIRECTORY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/u", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == probe.cache_dir() == Path(expected)
