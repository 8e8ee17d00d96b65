"""Pressure stall information, on files as kernels show them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.inventory.psi import Stall, find_psi, parse_psi, read_psi
from tests.inventory.test_cgroup import tree, v1_tree, v2_tree

MEMORY = "some avg10=12.50 avg60=4.10 avg300=1.00 total=58761459\nfull avg10=3.25 avg60=1.00 avg300=0.20 total=37171\n"


def test_the_kernels_own_form() -> None:
    """Percent become shares; the ten-second average is the quickest that there is."""
    assert parse_psi(MEMORY) == Stall(some=0.125, full=0.0325)


@pytest.mark.parametrize("text", ["", "full avg10=1.00", "some avg60=1.00", "some avg10=x", "some"])
def test_a_file_without_the_figure(text: str) -> None:
    """It is unknown, not nothing."""
    assert parse_psi(text) is None


def test_older_kernels_have_no_full_line_for_the_processor() -> None:
    """What is missing there was never full."""
    assert parse_psi("some avg10=100.00 avg60=0 avg300=0 total=1") == Stall(some=1.0, full=0.0)


@given(st.text(alphabet="somefulavg10=.-nainf \n", max_size=60))
def test_garbage_is_no_error(text: str) -> None:
    """Shares stay shares."""
    found = parse_psi(text)
    assert found is None or (0 <= found.some <= 1 and 0 <= found.full <= 1)


def test_the_groups_own_file_goes_before_the_machines(tmp_path: Path) -> None:
    """A group of version 2 has one; with version 1 only the machine has."""
    root = v2_tree(tmp_path / "two", "/a", {"a/memory.pressure": MEMORY})
    tree(root, {"proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0"})
    path = find_psi(root)
    assert path is not None
    assert read_psi(path) == Stall(some=0.125, full=0.0325)
    root = v1_tree(tmp_path / "one", "/a", {"memory/a/memory.usage_in_bytes": "1"})
    tree(root, {"proc/pressure/memory": MEMORY})
    assert find_psi(root) == root / "proc/pressure/memory"


def test_a_kernel_without_it(tmp_path: Path) -> None:
    """No file, or one that cannot be read, is none."""
    assert find_psi(v2_tree(tmp_path, "/a", {})) is None
    assert read_psi(tmp_path) is None
