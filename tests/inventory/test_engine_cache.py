"""What is remembered of a binary: never a stale fact, never a fault."""

import os
from pathlib import Path

import pytest

from launcher.inventory.engine_cache import (
    Capabilities,
    build_id,
    fingerprint,
    read_capabilities,
    write_capabilities,
)


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    """Return a program with a library beside it, as llama.cpp is built."""
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "libllama.so.0").write_bytes(b"library")
    (folder / "llama-server").write_bytes(b"program")
    return folder / "llama-server"


def facts(binary: Path) -> Capabilities:
    """Return facts on the binary as it is now."""
    return Capabilities(
        path=str(binary.resolve()),
        fingerprint=fingerprint(binary),
        version="1",
        build=build_id(binary, "1"),
        flags=frozenset({"--model"}),
    )


def test_remembered(binary: Path, tmp_path: Path) -> None:
    """What was written is read back, also through a link to the same file."""
    known = facts(binary)
    write_capabilities(tmp_path / "a" / "b", binary, known)
    link = tmp_path / "link"
    link.symlink_to(binary)
    assert read_capabilities(tmp_path / "a" / "b", link, fingerprint(link)) == known


@pytest.mark.parametrize("name", ["llama-server", "libllama.so.0"])
def test_forgotten_when_replaced(name: str, binary: Path, tmp_path: Path) -> None:
    """A program, or a library beside it, with another time stamp is another binary."""
    write_capabilities(tmp_path, binary, facts(binary))
    changed = binary.with_name(name)
    os.utime(changed, ns=(1, changed.stat().st_mtime_ns + 1))
    assert read_capabilities(tmp_path, binary, fingerprint(binary)) is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"path": 1}', b"\xff", b"null", b'{"path": "\xff"}'])
def test_damage_is_ignored_and_repaired(damage: bytes, binary: Path, tmp_path: Path) -> None:
    """A damaged file counts as absent, and the next write replaces it."""
    folder = tmp_path / "cache"
    write_capabilities(folder, binary, facts(binary))
    (file,) = folder.iterdir()
    file.write_bytes(damage)
    assert read_capabilities(folder, binary, fingerprint(binary)) is None
    write_capabilities(folder, binary, facts(binary))
    assert read_capabilities(folder, binary, fingerprint(binary)) == facts(binary)


def test_other_schema_is_ignored(binary: Path, tmp_path: Path) -> None:
    """What another version of this program remembered is not trusted."""
    folder = tmp_path / "cache"
    write_capabilities(folder, binary, facts(binary))
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes().replace(b'"schema_version":2', b'"schema_version":999'))
    assert read_capabilities(folder, binary, fingerprint(binary)) is None


def test_folder_that_cannot_be(binary: Path, tmp_path: Path) -> None:
    """Where nothing can be written, nothing is remembered, and nothing fails or is left over."""
    (tmp_path / "file").touch()
    write_capabilities(tmp_path / "file" / "cache", binary, facts(binary))
    assert read_capabilities(tmp_path / "file" / "cache", binary, fingerprint(binary)) is None


def test_build_is_the_content(binary: Path) -> None:
    """A build keeps its identity when copied or touched, and loses it when version or library change."""
    before = build_id(binary, "1")
    os.utime(binary, (1, 1))
    assert build_id(binary, "1") == before
    assert build_id(binary, "2") != before
    binary.with_name("libllama.so.0").write_bytes(b"Library")
    assert build_id(binary, "1") != before


def test_large_file_differs_at_its_ends(binary: Path) -> None:
    """Of a large file the ends and the size decide."""
    binary.write_bytes(b"a" * (1 << 20))
    before = build_id(binary, None)
    binary.write_bytes(b"a" * ((1 << 20) - 1) + b"b")
    assert build_id(binary, None) != before
