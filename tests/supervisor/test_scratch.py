"""What engines leave outside their folders is removed, and nothing else."""

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from launcher.domain import Address, Command
from launcher.supervisor.scratch import Scratch, mapped_shared, place

_COMMAND: Final = Command(
    argv=("engine",), address=Address(port=1), ready_path="/", canary_path="/", canary_body="{}", temp_env="TMPDIR"
)
_HOLDER: Final = """
import sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
block = SharedMemory(create=True, size=4096)
resource_tracker.unregister(block._name, "shared_memory")
print(block.name, flush=True)
sys.stdin.read()
"""
_SOCKET_BYTES: Final = 107
_NAME: Final = "/0026b728-f5f6-425a-8483-2a66c5c5abad"
"""As vLLM names its sockets."""


def test_an_engine_gets_a_private_empty_folder(tmp_path: Path) -> None:
    """It holds nothing of the engine before, and goes with the engine."""
    scratch = Scratch(tmp_path)
    folder = Path(scratch.open(_COMMAND)["TMPDIR"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "left").write_text("by the first")
    assert Path(scratch.open(_COMMAND)["TMPDIR"]) == folder
    assert list(folder.iterdir()) == []
    scratch.clear()
    assert not folder.exists()


def test_what_wants_none_gets_none(tmp_path: Path) -> None:
    """Nothing is made, nothing is set."""
    assert Scratch(tmp_path).open(replace(_COMMAND, temp_env=None)) == {}
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_socket_fits(tmp_path: Path) -> None:
    """However deep the instance's own folder lies; each has its own, and the same one again."""
    deep = tmp_path / ("x" * 120)
    assert place(Path("/home/ann/.local/state/launcher/instances/m")).is_relative_to("/home/ann")
    assert len(os.fsencode(place(deep))) + len(_NAME) <= _SOCKET_BYTES
    assert place(deep) == place(deep) != place(tmp_path / ("y" * 120))


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    """A link in its place is neither followed nor used."""
    scratch, elsewhere = Scratch(tmp_path), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("")
    (tmp_path / "tmp").symlink_to(elsewhere)
    assert scratch.open(_COMMAND) == {}
    scratch.clear()
    assert (elsewhere / "kept").exists()


@pytest.fixture
def block() -> Iterator[SharedMemory]:
    """Shared memory of somebody else."""
    made = SharedMemory(create=True, size=4096)
    yield made
    made.close()
    with contextlib.suppress(FileNotFoundError):
        made.unlink()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="POSIX shared memory is elsewhere")  # noqa: S108 - as the code
def test_shared_memory_goes_with_the_processes_that_had_it(tmp_path: Path, block: SharedMemory) -> None:
    """Killed, they cannot remove it themselves; what others made stays."""
    scratch = Scratch(tmp_path)
    scratch.open(_COMMAND)
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        name = holder.stdout.readline().strip()
        assert mapped_shared([holder.pid]) == {name}
        scratch.note(os.getpid())
        holder.kill()
    assert (Path("/dev/shm") / name).exists()  # noqa: S108 - as the code
    scratch.clear()
    assert not (Path("/dev/shm") / name).exists()  # noqa: S108 - as the code
    assert (Path("/dev/shm") / block.name).exists()  # noqa: S108 - as the code
