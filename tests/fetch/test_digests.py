"""A file is read as a whole before its first use, and again when it has changed."""

import hashlib
import os
import resource
from pathlib import Path

import pytest

from launcher.domain import Artifact, ArtifactFile, WeightsFormat
from launcher.errors import WeightsMissingError
from launcher.fetch import require_weights
from launcher.fetch.digests import check_digest, is_recorded, record_digest, what_changed

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of weights; what is recorded of it goes to a folder of the test's."""
    monkeypatch.setenv("LAUNCHER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "model.gguf"
    path.write_bytes(CONTENT)
    return path


def test_a_file_is_read_once(file: Path) -> None:
    """The first check reads it and says so; the next one knows."""
    told: list[int] = []
    check_digest(file, SHA256, on_hash=told.append)
    check_digest(file, SHA256.upper(), on_hash=told.append)
    assert told == [len(CONTENT)]
    assert is_recorded(file, SHA256)


def test_another_digest_is_a_fault_each_time(file: Path) -> None:
    """A wrong file is never recorded, and the fault names both digests."""
    for _ in range(2):
        with pytest.raises(WeightsMissingError, match="does not have the sha256") as caught:
            check_digest(file, "0" * 64)
        assert SHA256 in caught.value.details[0]
    assert not is_recorded(file, "0" * 64)


@pytest.mark.parametrize("change", ["content", "put back", "replaced", "longer"])
def test_a_change_has_it_read_again(file: Path, tmp_path: Path, change: str) -> None:
    """Other bytes are found although somebody puts the times back, or another file in its place."""
    check_digest(file, SHA256)
    before = file.stat()
    other = b"x" + CONTENT[1:]
    if change == "replaced":
        (tmp_path / "other").write_bytes(other)
        os.utime(tmp_path / "other", ns=(before.st_atime_ns, before.st_mtime_ns))
        (tmp_path / "other").replace(file)
    else:
        file.write_bytes(CONTENT + b"x" if change == "longer" else other)
    if change == "put back":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(WeightsMissingError):
        check_digest(file, SHA256)


def test_who_has_computed_it_meanwhile_records_it(file: Path) -> None:
    """A download that hashed while it wrote has its file not read again."""
    told: list[int] = []
    record_digest(file, SHA256)
    check_digest(file, SHA256, on_hash=told.append)
    assert told == []


@pytest.mark.parametrize("record", [b"", b"{", b"[" * 60_000, b'{"sha256": 1}', b"\xff\xfe", b"{}" * 70_000])
def test_a_spoilt_record_is_none(file: Path, tmp_path: Path, record: bytes) -> None:
    """Whatever lies where the record was, the file is read again and recorded again."""
    check_digest(file, SHA256)
    (path,) = (tmp_path / "cache" / "verified").glob("*.json")
    path.write_bytes(record)
    assert not is_recorded(file, SHA256)
    told: list[int] = []
    check_digest(file, SHA256, on_hash=told.append)
    assert told == [len(CONTENT)]
    assert is_recorded(file, SHA256)


def test_without_a_place_for_records_the_file_is_read_each_time(file: Path, tmp_path: Path) -> None:
    """A cache that cannot be written, nor the state, costs time and nothing else."""
    for name in ("cache", "state"):
        (tmp_path / name).write_text("a file where the folder should be", encoding="utf-8")
    told: list[int] = []
    check_digest(file, SHA256, on_hash=told.append)
    check_digest(file, SHA256, on_hash=told.append)
    assert told == [len(CONTENT)] * 2
    assert what_changed(file) is None


def test_where_the_cache_cannot_be_written_the_record_is_with_the_state(file: Path, tmp_path: Path) -> None:
    """Who serves can write there. It is as good as the other, and of two the one that is true counts."""
    check_digest(file, SHA256)
    (tmp_path / "cache").rename(tmp_path / "old")
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    file.write_bytes(CONTENT)
    told: list[int] = []
    check_digest(file, SHA256, on_hash=told.append)
    check_digest(file, SHA256, on_hash=told.append)
    assert told == [len(CONTENT)]
    assert len(list((tmp_path / "state" / "verified").iterdir())) == 1
    (tmp_path / "cache").unlink()
    (tmp_path / "old").rename(tmp_path / "cache")
    assert is_recorded(file, SHA256)
    assert what_changed(file) == ()


def test_a_record_for_which_no_room_was_left_is_no_record(file: Path, tmp_path: Path) -> None:
    """A full disk leaves neither a part of a record nor what was to become one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        check_digest(file, SHA256)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not is_recorded(file, SHA256)
    assert [*(tmp_path / "cache" / "verified").iterdir(), *(tmp_path / "state" / "verified").iterdir()] == []


def test_records_are_the_owners_alone(file: Path, tmp_path: Path) -> None:
    """Nobody else may say what was verified."""
    check_digest(file, SHA256)
    folder = tmp_path / "cache" / "verified"
    assert not (tmp_path / "state").exists()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def test_a_file_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    """What cannot be read is said, with the reason of the system."""
    with pytest.raises(WeightsMissingError, match="cannot be read"):
        check_digest(tmp_path / "none", SHA256)


def test_every_file_of_an_artifact_is_compared(file: Path) -> None:
    """Of a split model that is the shard that is wrong, whichever it is."""
    folder = file.parent
    names = [f"m-{number:05}-of-00002.gguf" for number in (1, 2)]
    for name in names:
        (folder / name).write_bytes(CONTENT)
    files = [ArtifactFile(name=f"Q8_0/{name}", size_bytes=len(CONTENT), sha256=SHA256) for name in names]
    artifact = Artifact(
        format=WeightsFormat.GGUF, quantization="q8_0", files=tuple(files), local_path=str(folder / names[0])
    )
    assert require_weights(artifact) == folder / names[0]
    (folder / names[1]).write_bytes(b"x" + CONTENT[1:])
    with pytest.raises(WeightsMissingError, match="m-00002-of-00002"):
        require_weights(artifact)


def test_who_waits_hears_how_much_was_read(file: Path) -> None:
    """After each piece, up to the whole; of a file that is known nothing is read."""
    read: list[int] = []
    check_digest(file, SHA256, on_read=read.append)
    assert read[-1] == len(CONTENT)
    assert read == sorted(read)
    n_pieces = len(read)
    check_digest(file, SHA256, on_read=read.append)
    assert len(read) == n_pieces
