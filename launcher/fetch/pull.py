"""Brings an artifact, all its files, to this machine.

From a hub its files come to the hub's own cache, of one commit; from an address to this program's folder of models. It
must not know why this artifact was chosen, nor how progress is shown.
"""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import Artifact, ArtifactFile, WeightsFormat
from launcher.errors import RemoteError, RemoteMissingError, UsageError, WeightsMissingError
from launcher.fetch.download import (
    MAX_WAIT_S,
    Place,
    Sleep,
    Source,
    download,
    named_faults,
)
from launcher.fetch.downloaded import folder_of
from launcher.fetch.hashing import DigestKind
from launcher.fetch.hub import Settings, file_url, find_commit, list_files, read_settings, told_of
from launcher.fetch.hub_cache import RepositoryFolder
from launcher.fetch.local import promised_digests, require_weights
from launcher.fetch.names import HUB_PREFIX, RemoteFile, group_files, select, shards_of, sibling_url, top_files
from launcher.fetch.places import hub_cache_dir
from launcher.fetch.progress import Meter, Phase, Progress, Tell, left_s
from launcher.fetch.room import require_room
from launcher.fetch.web import Web, check_url, origin
from launcher.metadata.files import label
from launcher.metadata.load import read_spec

_WANTED: Final = re.compile(r".+\.(?:safetensors|json|txt|model|jinja|tiktoken)", re.IGNORECASE)
"""Of a repository of safetensors: weights, configuration, tokenizer. No code, and no format that may hold some."""


class PulledFile(Struct, frozen=True, kw_only=True):
    """A file that is here, verified if it has a digest; ``n_fetched_bytes`` came over the network for it.

    The digest of small files of a hub is git's own, SHA-1.
    """

    name: str
    path: str
    size_bytes: int
    digest: str | None
    n_fetched_bytes: int
    set_aside: str | None = None


class Pulled(Struct, frozen=True, kw_only=True):
    """An artifact that is here, with its ``local_path``, and the files that it took."""

    artifact: Artifact
    files: tuple[PulledFile, ...]

    @property
    def n_fetched_bytes(self) -> int:
        """Bytes of all files that came over the network."""
        return sum(file.n_fetched_bytes for file in self.files)


class _Wanted(Struct, frozen=True, kw_only=True):
    """A file with where it is and where it goes."""

    source: Source
    place: Place


class _Way(Struct, frozen=True, kw_only=True):
    """How servers are asked, and who hears of it."""

    web: Web
    tell: Tell
    sleep: Sleep


def pull(
    artifact: Artifact,
    *,
    query: str = "",
    tell: Tell,
    environ: Mapping[str, str] = os.environ,
    sleep: Sleep = time.sleep,
) -> Pulled:
    """Have all files of an artifact here, verified; ``query`` is that of the address of an artifact that has one.

    Raises:
        UsageError: there is no digest to verify by, or no source.
        DiskFullError: there is not room for all of it; checked before anything is downloaded.
        RemoteError and its kinds, DownloadError and its kinds: as ``download`` and the hub say.
        MetadataError: what came, as it was published, is no model that can be read.
    """
    settings = read_settings(environ)
    if settings.offline:
        msg = f"HF_HUB_OFFLINE is set, and the {artifact.quantization} weights are not on this machine"
        raise RemoteError(msg, help="unset it to download them")
    web = Web(token=settings.token, timeout_s=settings.timeout_s, max_wait_s=MAX_WAIT_S, sleep=sleep)
    way = _Way(web=web, tell=tell, sleep=sleep)
    if artifact.repository is not None:
        files, first = _pull_from_hub(way, settings, artifact, artifact.repository, hub_cache_dir(environ))
    elif artifact.url is not None:
        files, first = _pull_from_url(way, artifact, artifact.url, query)
    else:
        msg = f"no source of the {artifact.quantization} weights is known"
        raise UsageError(msg, help="download them by other means, then serve the file: launch serve PATH.gguf")
    spec = read_spec(first)
    named = tuple(
        ArtifactFile(
            name=file.name, size_bytes=file.size_bytes, sha256=file.digest if _is_sha256(file.digest) else None
        )
        for file in files
    )
    return Pulled(artifact=replace(artifact, files=named, local_path=str(first), spec=spec), files=files)


def find_here(artifact: Artifact, *, tell: Tell = lambda _: None) -> Pulled:
    """Verify the files of an artifact that is on this machine, wherever it lies; ``tell`` hears of what has to be read.

    Raises:
        WeightsMissingError: it is not here, or not what it should be.
    """
    first = require_weights(artifact, on_read=progress_of_reading(tell))
    is_folder = artifact.format is WeightsFormat.SAFETENSORS
    paths = (
        [first / file.name for file in artifact.files]
        if is_folder
        else list(map(first.with_name, shards_of(first.name)))
    )
    promised = dict(promised_digests(artifact, first))
    files = tuple(_found(path, promised.get(path)) for path in paths)
    return Pulled(artifact=replace(artifact, local_path=str(first)), files=files)


def progress_of_reading(tell: Tell) -> Callable[[Path, int], None]:
    """Return what turns the bytes that were read of a file into progress; each file has its own."""
    meter = Meter()

    def on_read(path: Path, n_bytes: int) -> None:
        size_bytes = path.stat().st_size
        rate = meter.rate(n_bytes, time.monotonic())
        tell(
            Progress(
                phase=Phase.CHECKING,
                file=path.name,
                n_bytes=n_bytes,
                total_bytes=size_bytes,
                rate_bytes_per_s=rate,
                left_s=left_s(n_bytes, size_bytes, rate),
            )
        )

    return on_read


def _found(path: Path, sha256: str | None) -> PulledFile:
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        msg = f"`{label(str(path), limit=4096)}` cannot be looked at: {(error.strerror or str(error)).lower()}"
        raise WeightsMissingError(msg, help="all files of a model have to be beside one another") from error
    return PulledFile(name=path.name, path=str(path), size_bytes=size_bytes, digest=sha256, n_fetched_bytes=0)


def _is_sha256(digest: str | None) -> bool:
    return digest is not None and len(digest) == 64  # noqa: PLR2004  hexadecimal digits; git's own digest has 40


# --- From a hub -------------------------------------------------------------------------------------------------


def _pull_from_hub(
    way: _Way, settings: Settings, artifact: Artifact, repository: str, cache: Path
) -> tuple[tuple[PulledFile, ...], Path]:
    """Download into the hub's cache, where every program that uses it finds the files; return the first one's path."""
    commit = find_commit(way.web, settings, repository)
    listed = list_files(way.web, settings, repository, commit)
    chosen = choose_files(artifact, listed)
    folder = RepositoryFolder(cache=cache, repository=repository)
    wanted = []
    for file in chosen:
        source = _hub_source(settings, repository, commit, file, artifact)
        wanted.append(_Wanted(source=source, place=folder.place(source.digest)))
    with told_of(settings, repository):
        fetched = _fetch(way, wanted, require=folder.require_links)
    with named_faults(repository, folder.path):
        links = [folder.link(commit, file.name, Path(file.path)) for file in fetched]
        folder.point(commit)
    files = tuple(replace(file, path=str(link)) for file, link in zip(fetched, links, strict=True))
    if artifact.format is WeightsFormat.SAFETENSORS:
        return files, folder.snapshot(commit)
    return files, links[0]


def choose_files(artifact: Artifact, listed: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Return which files of a repository are the artifact: those that it names, else those of its quantization.

    Raises:
        RemoteMissingError: the repository has not all of them.
        RemoteError: it has another file under a name than the artifact's.
        UsageError: it has several models of that quantization.
    """
    if artifact.format is WeightsFormat.SAFETENSORS:
        return _choose_safetensors(artifact, listed)
    if not artifact.files:
        return _choose_quantization(artifact, listed)
    by_path = {file.path: file for file in listed}
    missing = [file.name for file in artifact.files if file.name not in by_path]
    if missing:
        msg = f"`{artifact.repository}` has no `{label(missing[0])}` any more"
        raise RemoteMissingError(msg, help=f"see what it has: launch plan {HUB_PREFIX}{artifact.repository}")
    for file in artifact.files:
        _check_same(artifact, file, by_path[file.name])
    return tuple(by_path[file.name] for file in artifact.files)


def _check_same(artifact: Artifact, file: ArtifactFile, found: RemoteFile) -> None:
    same_size = None in {file.size_bytes, found.size_bytes} or file.size_bytes == found.size_bytes
    same_digest = None in {file.sha256, found.sha256} or file.sha256 == found.sha256
    if not (same_size and same_digest):
        msg = f"`{label(file.name)}` of `{artifact.repository}` is another file by now"
        details = (
            f"expected {file.size_bytes} bytes, sha256 {file.sha256}",
            f"listed   {found.size_bytes} bytes, sha256 {found.sha256}",
        )
        raise RemoteError(msg, help="plan anew; a profile that names the old digest has to be changed", details=details)


def _choose_quantization(artifact: Artifact, listed: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    groups = select(group_files(listed), artifact.quantization)
    whole = [group for group in groups if len(group.files) == group.n_shards]
    if not whole:
        state = "not all files of" if groups else "no"
        msg = f"`{artifact.repository}` has {state} {artifact.quantization}"
        raise RemoteMissingError(msg, help=f"see what it has: launch plan {HUB_PREFIX}{artifact.repository}")
    if len(whole) > 1:
        msg = f"`{artifact.repository}` has {len(whole)} models at {artifact.quantization}"
        raise UsageError(
            msg,
            help=f"name one: {HUB_PREFIX}{artifact.repository}:FILE.gguf",
            details=tuple(label(group.title) for group in whole),
        )
    return whole[0].files


def _choose_safetensors(artifact: Artifact, listed: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    top = [file for name, file in top_files(listed).items() if _WANTED.fullmatch(name)]
    named = {file.name: file for file in artifact.files}
    for file in top:
        if file.path in named:
            _check_same(artifact, named[file.path], file)
    if not any(file.path.endswith(".safetensors") for file in top):
        msg = f"`{artifact.repository}` has no *.safetensors"
        raise RemoteMissingError(msg, help="name a repository that holds a model")
    return tuple(top)


def _hub_source(settings: Settings, repository: str, commit: str, file: RemoteFile, artifact: Artifact) -> Source:
    promised = {item.name: item.sha256 for item in artifact.files}
    sha256 = file.sha256 or promised.get(file.path)
    digest = sha256 or file.git_sha1
    if digest is None or file.size_bytes is None:
        msg = f"{origin(settings.endpoint)[1]} tells no digest of `{label(file.path)}` of `{repository}`"
        help_ = "name its sha256 and size in a profile's [[artifact]], or use a hub that tells them"
        raise RemoteError(msg, help=help_)
    return Source(
        url=file_url(settings, repository, file.path, commit),
        name=file.path,
        kind=DigestKind.SHA256 if sha256 else DigestKind.GIT_SHA1,
        digest=digest,
        size_bytes=file.size_bytes,
    )


# --- From an address --------------------------------------------------------------------------------------------


def _pull_from_url(way: _Way, artifact: Artifact, url: str, query: str) -> tuple[tuple[PulledFile, ...], Path]:
    """Download into a folder that is called after the digest of the first file: the same bytes are there once."""
    check_url(url)
    if not artifact.files or artifact.files[0].sha256 is None:
        raise _no_digest(url)
    folder = folder_of(artifact.files[0].sha256)
    wanted = []
    for file in artifact.files:
        if file.sha256 is None:
            raise _no_digest(url)
        _check_name(file.name)
        source = Source(
            url=sibling_url(url, file.name, query),
            name=file.name,
            kind=DigestKind.SHA256,
            digest=file.sha256,
            size_bytes=file.size_bytes,
        )
        place = Place(
            path=folder / file.name, partial=folder / f".{file.name}.incomplete", lock=folder / f".{file.name}.lock"
        )
        wanted.append(_Wanted(source=source, place=place))
    fetched = _fetch(way, wanted)
    return fetched, folder / artifact.files[0].name


def _no_digest(url: str) -> UsageError:
    msg = f"what an address has can be anything: its sha256 is needed to download {label(url, limit=4096)}"
    return UsageError(msg, help="write it behind the address, in quotes: 'https://HOST/PATH.gguf#sha256=HEX'")


def _check_name(name: str) -> None:
    if name in {"", ".", ".."} or "/" in name or "\\" in name or not name.isprintable():
        msg = f"`{label(name)}` is no name for a file"
        raise UsageError(msg, help="give an address that ends in a plain file name")


# --- All files --------------------------------------------------------------------------------------------------


def _fetch(
    way: _Way, wanted: Sequence[_Wanted], *, require: Callable[[], None] = lambda: None
) -> tuple[PulledFile, ...]:
    """Download one file after the other, once there is room for all of them; what is here already is verified.

    ``require`` looks into what else has to hold of where they go.
    """
    with named_faults(wanted[0].source.name, wanted[0].place.path.parent):
        _check_room(wanted)
        require()
    total = None if any(item.source.size_bytes is None for item in wanted) else sum(map(_size, wanted))
    meter = Meter()
    fetched: list[PulledFile] = []
    for item in wanted:
        before = sum(file.size_bytes for file in fetched)
        told = _Teller(way.tell, meter, item.source.name, before, total)
        done = download(way.web, item.source, item.place, tell=told, sleep=way.sleep)
        fetched.append(
            PulledFile(
                name=item.source.name,
                path=str(item.place.path),
                size_bytes=item.place.path.stat().st_size,
                digest=item.source.digest,
                n_fetched_bytes=done.n_bytes,
                set_aside=None if done.set_aside is None else str(done.set_aside),
            )
        )
    return tuple(fetched)


def _size(item: _Wanted) -> int:
    return item.source.size_bytes or 0


class _Teller:
    """Turns what is heard of one file into the progress of all."""

    def __init__(self, tell: Tell, meter: Meter, file: str, before_bytes: int, total_bytes: int | None) -> None:
        self._tell = tell
        self._meter = meter
        self._file = file
        self._before_bytes = before_bytes
        self._total_bytes = total_bytes

    def __call__(self, phase: Phase, n_bytes: int, why: str = "", /) -> None:
        n_all = self._before_bytes + n_bytes
        is_moving = phase in {Phase.DOWNLOADING, Phase.SHARING}
        rate = self._meter.rate(n_all, time.monotonic()) if is_moving else None
        self._tell(
            Progress(
                phase=phase,
                file=self._file,
                n_bytes=n_all,
                total_bytes=self._total_bytes,
                rate_bytes_per_s=rate,
                left_s=left_s(n_all, self._total_bytes, rate),
                why=why,
            )
        )


def _check_room(wanted: Sequence[_Wanted]) -> None:
    """Make sure that all files together find room, what is here already left out.

    Raises:
        DiskFullError: they do not.
    """
    missing = [item for item in wanted if not item.place.path.exists()]
    needed = sum(max(0, _size(item) - _partial_bytes(item.place)) for item in missing)
    require_room(needed, wanted[0].place.path.parent, n_files=len(missing))


def _partial_bytes(place: Place) -> int:
    try:
        return place.partial.lstat().st_size
    except OSError:
        return 0
