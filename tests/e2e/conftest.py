"""What the end-to-end tests share: a state directory of their own, and how to find what it left running."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.fakes.processes import heirs


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The user's environment with a state directory of the test's own."""
    return {**os.environ, "LAUNCHER_STATE_DIR": str(tmp_path / "state")}


@pytest.fixture
def survivors(environment: dict[str, str]) -> Callable[[], list[psutil.Process]]:
    """Find every living process that inherited the test's environment: supervisors, guards and engines."""
    return partial(heirs, environment["LAUNCHER_STATE_DIR"])
