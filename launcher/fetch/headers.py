"""Reads the headers of a repository's GGUF files, of each no more than it takes.

The quantizations of one model carry the same vocabulary, which is most of a header. So one file is read in full, and of
the others what lies before and behind the vocabulary: for the arrays between, the bytes of the first file stand in.
Nothing rests on that guess. Names, shapes and types of all tensors are the file's own bytes; that they were found in the
right place shows in their end, which must be the end of the file. Where it is not, the header is read in full.

It must not know how a range is read, nor what a model is for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Final

from msgspec import Struct

from launcher.errors import MetadataError, WeightsMissingError
from launcher.fetch.names import Group
from launcher.fetch.ranges import BLOCK_BYTES, RangeStream
from launcher.metadata.files import label
from launcher.metadata.gguf import GgufHeader, count_shards, join_shards, read_gguf
from launcher.units import KIB, MIB, pad

Opener = Callable[[str], RangeStream]
"""Opens a file by its path in the repository."""

_MIN_SAVED_BYTES: Final = 4 * BLOCK_BYTES
_MAX_FRONT_BYTES: Final = MIB
_ANCHOR_BYTES: Final = 48
"""Before the first array: the end of its key, its types and its length. More of it and less would be found by chance."""
_SLACK_BYTES: Final = 4 * KIB
"""For the keys that one quantization has and another has not, such as those of an importance matrix."""


class Sample(Struct, frozen=True, kw_only=True):
    """A file whose header was read in full, to stand in for others' vocabulary."""

    stream: RangeStream
    header: GgufHeader


class _Spliced:
    """A file whose bytes from ``begin`` to ``end`` are taken from another file, ``shift`` bytes before there."""

    def __init__(self, own: RangeStream, donor: RangeStream, begin: int, end: int, shift: int) -> None:
        self._own = own
        self._donor = donor
        self._begin = begin
        self._end = end
        self._shift = shift
        self._at = 0

    def seek(self, offset: int, /) -> int:
        """Stand at ``offset`` bytes from the start."""
        self._at = offset
        return offset

    def read(self, n_bytes: int, /) -> bytes:
        """Return bytes of the donor where it stands in and has them, else the file's own."""
        part = b""
        if self._begin <= self._at < self._end:
            part = self._donor.kept(self._at - self._shift, min(n_bytes, self._end - self._at))
        elif self._at < self._begin:
            n_bytes = min(n_bytes, self._begin - self._at)
        if not part:
            self._own.seek(self._at)
            part = self._own.read(n_bytes)
        self._at += len(part)
        return part


def read_model(open_file: Opener, group: Group, sample: Sample | None) -> tuple[GgufHeader, Sample]:
    """Read the header of a model, of all its shards; ``sample`` is of another quantization of the same model.

    Returns the header with the file that it begins with, as a sample for the next.

    Raises:
        MetadataError: a file is wrong, or the shards do not belong together.
        WeightsMissingError: a shard is missing.
        RemoteError: the server failed.
    """
    if len(group.files) != group.n_shards:
        msg = f"{group.n_shards - len(group.files)} of the {group.n_shards} files of `{label(group.title)}` are missing"
        raise WeightsMissingError(msg, help="choose another quantization, or tell whoever published it")
    with _told_of(group.title):
        stream = open_file(group.title)
        first = _read_like(stream, sample) if sample else read_header(stream)
    own = Sample(stream=stream, header=first)
    if group.n_shards == 1 and count_shards(first) <= 1:
        return first, own
    rest: list[GgufHeader] = []
    for file in group.files[1:]:
        with _told_of(file.path):
            rest.append(read_header(open_file(file.path)))
    return join_shards([first, *rest], [PurePosixPath(file.path).name for file in group.files]), own


def read_header(stream: RangeStream) -> GgufHeader:
    """Read the header of one GGUF file in full.

    Raises:
        MetadataError: the file is wrong.
        RemoteError: the server failed.
    """
    stream.seek(0)
    return read_gguf(stream, stream.size_bytes, window_bytes=BLOCK_BYTES)


@contextmanager
def _told_of(path: str) -> Iterator[None]:
    """Name the file in a fault inside."""
    try:
        yield
    except MetadataError as error:
        error.details = (*error.details, f"in {label(path, limit=4096)}")
        raise


def _read_like(stream: RangeStream, sample: Sample) -> GgufHeader:
    spliced = _splice(stream, sample)
    if spliced is not None:
        try:
            header = read_gguf(spliced, stream.size_bytes, window_bytes=BLOCK_BYTES)
        except MetadataError:
            return read_header(stream)  # the guess was wrong, or the file is: then this says so
        if _ends_at(header, stream.size_bytes):
            return header
    return read_header(stream)


def _splice(stream: RangeStream, sample: Sample) -> _Spliced | None:
    """Put the sample's arrays into a file, if that has the same key before them; read in one go what lies behind."""
    if sample.header.skipped is None:
        return None
    begin, end = sample.header.skipped
    if end - begin < _MIN_SAVED_BYTES or not _ANCHOR_BYTES <= begin <= _MAX_FRONT_BYTES:
        return None
    anchor = _kept(sample.stream, begin - _ANCHOR_BYTES, begin)
    stream.prefetch(0, begin + _SLACK_BYTES)
    found = _kept(stream, 0, begin + _SLACK_BYTES).find(anchor)
    if found < 0:
        return None
    shift = found + _ANCHOR_BYTES - begin
    stream.prefetch(end + shift, sample.header.data_offset + shift + _SLACK_BYTES)
    return _Spliced(stream, sample.stream, begin + shift, end + shift, shift)


def _kept(stream: RangeStream, begin: int, end: int) -> bytes:
    parts: list[bytes] = []
    while begin < end and (part := stream.kept(begin, end - begin)):
        parts.append(part)
        begin += len(part)
    return b"".join(parts)


def _ends_at(header: GgufHeader, size_bytes: int) -> bool:
    """Tell whether the last tensor ends where the file does, with or without the padding behind it."""
    if not header.tensors:
        return False
    end = header.data_offset + header.tensor_offsets[-1] + header.tensors[-1].n_bytes
    return end <= size_bytes <= pad(end, header.alignment)
