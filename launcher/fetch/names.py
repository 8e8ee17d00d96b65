"""What a remote model is called, and which of a repository's files are one model at one quantization.

File names serve to name and to choose; every figure comes from the headers. It touches no network.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from msgspec import Struct

from launcher.errors import UsageError
from launcher.metadata.files import label

HUB_PREFIX: Final = "hf:"
DIGEST_MARK: Final = "sha256="
MAX_SHARDS: Final = 1000

_REPOSITORY: Final = re.compile(r"(?:[\w][\w.-]{0,95}/)?[\w][\w.-]{0,95}", re.ASCII)
_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE | re.DOTALL)
_QUANTIZATION: Final = re.compile(
    r"""(?:^|(?<=[-._/]))
    (?P<name> (?:ud-)?
        (?: i?q[1-8]_(?:k(?:_(?:xxs|xs|s|m|l|xl|xxl))?|xxs|xs|s|m|nl|[01](?:_[48]_[48])?)
          | tq[12]_0 | bf16 | f16 | f32 | fp16 | fp32 | nvfp4 | mxfp4(?:_moe)? ))
    (?=$|[-._/])""",
    re.IGNORECASE | re.VERBOSE,
)
_SAME: Final[Mapping[str, str]] = {"fp16": "f16", "fp32": "f32", "mxfp4_moe": "mxfp4"}
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SIDE_FILE: Final = re.compile(r"mmproj|imatrix|^(?:mtp|draft|ggml-vocab)[-_.]", re.IGNORECASE)


_MISTRALS_FORM: Final = re.compile(r"consolidated.*\.safetensors", re.DOTALL)


class RemoteName(Struct, frozen=True, kw_only=True):
    """What a user wrote: a repository of the hub with what to take of it, or an address with its files' digests."""

    repository: str = ""
    selector: str = ""
    url: str = ""
    sha256: tuple[str, ...] = ()

    @property
    def written(self) -> str:
        """An address as a command names it, with the digests."""
        return f"{self.url}#{DIGEST_MARK}{','.join(self.sha256)}" if self.sha256 else self.url


class RemoteFile(Struct, frozen=True, kw_only=True):
    """A file of a repository, by its path in it; size and digest where the hub tells them.

    Large files have a ``sha256``; of others the hub tells git's own digest.
    """

    path: str
    size_bytes: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None


class Group(Struct, frozen=True, kw_only=True):
    """Files that are one model at one quantization, in order; ``n_shards`` is how many there should be."""

    quantization: str | None
    files: tuple[RemoteFile, ...]
    n_shards: int = 1

    @property
    def title(self) -> str:
        """The path of the first file."""
        return self.files[0].path

    @property
    def size_bytes(self) -> int:
        """Sum of the sizes that are known."""
        return sum(file.size_bytes or 0 for file in self.files)


def parse_name(name: str) -> RemoteName:
    """Return what ``hf:OWNER/NAME``, ``hf:OWNER/NAME:QUANT``, ``hf:OWNER/NAME:FILE.gguf`` or an address means.

    An address may end in ``#sha256=HEX``, with one digest for each file of a split model, in order, with commas between.

    Raises:
        UsageError: it is none of these.
    """
    if not name.startswith(HUB_PREFIX):
        url, _, fragment = name.partition("#")
        return RemoteName(url=url, sha256=_parse_digests(fragment))
    repository, colon, selector = name.removeprefix(HUB_PREFIX).partition(":")
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or (colon and not selector):
        msg = f"`{label(name)}` is no repository of the hub"
        raise UsageError(msg, help="write hf:OWNER/NAME, hf:OWNER/NAME:QUANT or hf:OWNER/NAME:FILE.gguf")
    return RemoteName(repository=repository, selector=selector)


def _parse_digests(fragment: str) -> tuple[str, ...]:
    """Return what stands behind ``sha256=``; other fragments are for browsers."""
    if not fragment.startswith(DIGEST_MARK):
        return ()
    digests = tuple(fragment.removeprefix(DIGEST_MARK).lower().split(","))
    for digest in digests:
        if not _SHA256.fullmatch(digest):
            msg = f"`{label(digest)}` is no sha256"
            raise UsageError(msg, help="write #sha256= and 64 hexadecimal digits behind the address")
    return digests


def digests_of(asked: RemoteName, n_files: int) -> tuple[str | None, ...]:
    """Return the digest of each file of a model in ``n_files`` files, ``None`` for each where none was given.

    Raises:
        UsageError: another number of them was given.
    """
    if asked.sha256 and len(asked.sha256) != n_files:
        msg = f"{len(asked.sha256)} sha256 are given for a model in {n_files} files"
        raise UsageError(msg, help="give one for each file, in order, with commas between")
    return asked.sha256 or (None,) * n_files


def quantization_of(path: str) -> str | None:
    """Return the quantization that a file's name tells, else that of its folder's; in lower case, ``None`` if neither.

    Of several words that could be one, the last is taken: the first may belong to the model's name.
    """
    pure = PurePosixPath(path)
    shard = _SHARD.fullmatch(pure.name)
    stem = shard["stem"] if shard else pure.name.removesuffix(pure.suffix)
    for text in (stem, *reversed(pure.parts[:-1])):
        found = [match["name"].lower() for match in _QUANTIZATION.finditer(text)]
        if found:
            return _SAME.get(found[-1], found[-1])
    return None


def group_files(files: Iterable[RemoteFile]) -> tuple[Group, ...]:
    """Group a repository's GGUF files, shards together and side files left out, smallest model file first."""
    shards: dict[tuple[str, int], dict[int, RemoteFile]] = {}
    for file in files:
        pure = PurePosixPath(file.path)
        if pure.suffix.lower() != ".gguf" or _SIDE_FILE.search(pure.name):
            continue
        match = _SHARD.fullmatch(pure.name)
        key = (file.path, 1) if match is None else (str(pure.parent / match["stem"]), int(match["count"]))
        shards.setdefault(key, {})[int(match["number"]) if match else 1] = file
    groups = [
        Group(
            quantization=quantization_of(next(iter(members.values())).path),
            files=tuple(members[number] for number in sorted(members)),
            n_shards=count,
        )
        for (_, count), members in shards.items()
    ]
    return tuple(sorted(groups, key=lambda group: (group.size_bytes, group.title)))


def top_files(files: Iterable[RemoteFile]) -> dict[str, RemoteFile]:
    """Return by their names the files at a repository's top, where a model of safetensors is.

    Weights in Mistral's own form are left out where they are there in Hugging Face's too: the same numbers once more, at
    the same size, which nobody who reads the latter opens.
    """
    top = {file.path: file for file in files if "/" not in file.path}
    second = {name for name in top if _MISTRALS_FORM.fullmatch(name)}
    has_others = any(name.endswith(".safetensors") for name in top.keys() - second)
    return {name: file for name, file in top.items() if not (has_others and name in second)}


def select(groups: Iterable[Group], selector: str) -> tuple[Group, ...]:
    """Return the groups that a user's word means: a quantization in any case, or the path of a file."""
    wanted = selector.lower()
    if wanted.endswith(".gguf"):
        return tuple(group for group in groups if selector in {file.path for file in group.files})
    return tuple(group for group in groups if group.quantization == _SAME.get(wanted, wanted))


def shards_of(file_name: str) -> tuple[str, ...]:
    """Return the names of all files of the split model that ``file_name`` is one of; itself alone if it is none.

    Raises:
        UsageError: the name speaks of more files than any model has.
    """
    match = _SHARD.fullmatch(file_name)
    if match is None:
        return (file_name,)
    count = int(match["count"])
    if not 0 < int(match["number"]) <= count <= MAX_SHARDS:
        msg = f"`{label(file_name)}` speaks of {count} files; at most {MAX_SHARDS} are read"
        raise UsageError(msg, help="check the address")
    return tuple(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))


def sibling_url(url: str, name: str, query: str) -> str:
    """Return the address of a file beside another one, or of that itself as it was written; ``query`` may sign it."""
    parts = urlsplit(url)
    folder, _, first = parts.path.rpartition("/")
    path = parts.path if unquote(first) == name else f"{folder}/{quote(name)}"
    return urlunsplit((parts.scheme, parts.netloc, path, query, ""))
