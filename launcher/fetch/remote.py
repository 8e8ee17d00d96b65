"""Describes a model that is not on this machine: a name on a hub or an address in, a profile out.

Only headers are read. All quantizations of a repository are described, whichever is asked for, so that advice can offer
the others. It must not know of machines or plans.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from threading import TIMEOUT_MAX
from typing import Final, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from msgspec import Struct

from launcher.domain import Artifact, ArtifactFile, Profile, WeightsFormat
from launcher.errors import MetadataError, RemoteError, UsageError, WeightsMissingError
from launcher.fetch.headers import Sample, read_model
from launcher.fetch.hub import Settings, file_url, list_files, read_settings, told_of
from launcher.fetch.names import (
    HUB_PREFIX,
    Group,
    RemoteFile,
    RemoteName,
    digests_of,
    group_files,
    parse_name,
    quantization_of,
    select,
    shards_of,
    sibling_url,
    top_files,
)
from launcher.fetch.ranges import RangeStream
from launcher.fetch.web import MAX_TOTAL_BYTES, N_CONNECTIONS, Web, check_url, origin
from launcher.inventory.bounded import Bounded
from launcher.metadata.files import ByteStream, label
from launcher.metadata.gguf import GgufHeader
from launcher.metadata.safetensors import CONFIG_NAME, read_files
from launcher.profiles import name_quantization, profile_for_artifacts
from launcher.units import format_bytes

_Read = TypeVar("_Read")

MAX_GROUPS: Final = 100
"""Quantizations of one repository. Assumed: twice the most that was seen."""

_NO_MODEL_TYPES: Final = frozenset({"mmproj", "adapter", "imatrix", "vocab"})
"""Of ``general.type``: files beside a model, named however they are."""
_SAME_MODEL: Final = 0.8
"""Of the most parameters: one form of a model may lack a second output matrix or a layer that guesses ahead."""
_NO_MODEL_ARCHITECTURES: Final = frozenset({"clip", "imatrix"})


class Reading(Struct, frozen=True, kw_only=True):
    """A model as its headers describe it, with what it took to read them.

    ``total_bytes`` is the size of the files described; ``left_out`` says of each file that is not, why.
    """

    profile: Profile
    host: str
    n_bytes: int
    n_requests: int
    total_bytes: int
    left_out: tuple[str, ...] = ()


_Described: TypeAlias = tuple[tuple[Artifact, ...], tuple[str, ...]]
"""Artifacts, and why others were left out."""


def read_remote(name: str, *, single: bool = False, environ: Mapping[str, str] = os.environ) -> Reading:
    """Describe what ``name`` means: ``hf:OWNER/NAME``, with ``:QUANT`` or ``:FILE.gguf`` behind, or an address.

    With ``single`` only what ``:QUANT`` names is read, and it must be one artifact. Otherwise ``:QUANT`` is for the
    caller to choose by, for all quantizations are described.

    Raises:
        UsageError: the name means nothing, or not one model.
        RemoteError: the server cannot be reached, does not let us, has no such file, or answers what cannot be used.
        MetadataError, WeightsMissingError: no file there is a whole, readable model.
    """
    asked = parse_name(name)
    settings = read_settings(environ)
    if settings.offline:
        msg = f"HF_HUB_OFFLINE is set, and `{label(name)}` is not on this machine"
        raise RemoteError(msg, help="unset it, or plan for a profile or a file: launch list")
    web = Web(token=settings.token, timeout_s=settings.timeout_s, limit_bytes=MAX_TOTAL_BYTES)
    left_out: tuple[str, ...] = ()
    if asked.url:
        profile = _describe_url(web, settings, asked)
    else:
        profile, left_out = _describe_hub(web, settings, asked, single=single)
    return Reading(
        profile=profile,
        host=origin(asked.url or settings.endpoint)[1],
        n_bytes=web.n_bytes,
        n_requests=web.n_requests,
        total_bytes=sum(file.size_bytes or 0 for artifact in profile.artifacts for file in artifact.files),
        left_out=left_out,
    )


def _describe_hub(web: Web, settings: Settings, asked: RemoteName, *, single: bool) -> tuple[Profile, tuple[str, ...]]:
    repository = asked.repository
    files = list_files(web, settings, repository)
    groups = group_files(files)
    by_file = asked.selector.lower().endswith(".gguf")
    if by_file or (single and asked.selector and groups):
        groups = _chosen(groups, asked)
    with told_of(settings, repository):
        if groups:
            if single:
                _require_one(groups, asked)
            artifacts, left_out = _read_groups(web, settings, repository, groups)
        else:
            artifacts, left_out = (_read_safetensors(web, settings, asked, files, single=single),), ()
    title = repository.rpartition("/")[2]
    name = f"{HUB_PREFIX}{repository}" + (f":{asked.selector}" if by_file else "")
    page = f"{settings.endpoint}/{repository}"
    title = title[: -len("-gguf")] if title.lower().endswith("-gguf") else title
    return profile_for_artifacts(title, artifacts, asked=name, source=page, urls=(page,)), left_out


def _describe_url(web: Web, settings: Settings, asked: RemoteName) -> Profile:
    check_url(asked.url)
    parts = urlsplit(asked.url)
    path = parts.path
    if origin(asked.url) == origin(settings.endpoint):
        path = path.replace("/blob/", "/resolve/", 1)  # the page of a file, as a browser shows its address
    url = urlunsplit((parts.scheme, parts.netloc, path, "", ""))  # a query may sign it: that is nobody's to read
    file_name = unquote(path.rpartition("/")[2])
    if not file_name.lower().endswith(".gguf"):
        msg = "the address does not end in .gguf"
        raise UsageError(msg, help=f"give a file's address, or a repository: {HUB_PREFIX}OWNER/NAME")

    sizes: dict[str, int] = {}

    def open_file(name: str) -> RangeStream:
        stream = RangeStream(web, sibling_url(url, name, parts.query))
        sizes[name] = stream.size_bytes
        return stream

    names = shards_of(file_name)
    digests = digests_of(asked, len(names))
    group = Group(
        quantization=quantization_of(file_name),
        files=tuple(RemoteFile(path=name) for name in names),
        n_shards=len(names),
    )
    header, _ = read_model(open_file, group, None)
    artifact = Artifact(
        format=WeightsFormat.GGUF,
        quantization=group.quantization or name_quantization(header.spec),
        files=tuple(
            ArtifactFile(name=name, size_bytes=sizes[name], sha256=sha256)
            for name, sha256 in zip(names, digests, strict=True)
        ),
        url=url,
        spec=header.spec,
    )
    title = file_name.removesuffix(".gguf")
    return profile_for_artifacts(title, (artifact,), asked=asked.written, source=asked.url)


def _chosen(groups: Sequence[Group], asked: RemoteName) -> tuple[Group, ...]:
    found = select(groups, asked.selector)
    if not found:
        msg = f"`{asked.repository}` has no `{label(asked.selector)}`"
        raise UsageError(msg, help=_how_to_name(asked), details=_listed(groups))
    return found


def _require_one(groups: Sequence[Group], asked: RemoteName) -> None:
    if len(groups) > 1:
        msg = f"`{asked.repository}` has {len(groups)} of these"
        raise UsageError(msg, help=_how_to_name(asked), details=_listed(groups))


def _how_to_name(asked: RemoteName) -> str:
    return f"name one: {HUB_PREFIX}{asked.repository}:QUANT, or {HUB_PREFIX}{asked.repository}:FILE.gguf"


def _listed(groups: Sequence[Group]) -> tuple[str, ...]:
    width = max(len(group.quantization or "") for group in groups) if groups else 0
    return tuple(
        f"{group.quantization or '':<{width}}  {format_bytes(group.size_bytes):>8}  {label(group.title)}"
        for group in groups[:MAX_GROUPS]
    )


def _read_groups(web: Web, settings: Settings, repository: str, groups: Sequence[Group]) -> _Described:
    """Read the headers of all quantizations: of one in full, then of the others what differs, some at once."""
    if len(groups) > MAX_GROUPS:
        msg = f"`{repository}` has {len(groups)} models; at most {MAX_GROUPS} are described"
        raise UsageError(msg, help=f"name one: {HUB_PREFIX}{repository}:FILE.gguf")

    sizes = {file.path: file.size_bytes for group in groups for file in group.files}

    def open_file(path: str) -> RangeStream:
        return RangeStream(web, file_url(settings, repository, path), expected_bytes=sizes[path])

    def read(group: Group, sample: Sample | None) -> tuple[GgufHeader, Sample] | MetadataError | WeightsMissingError:
        try:
            header, own = read_model(open_file, group, sample)
            header.spec  # noqa: B018  names no architecture: that is this file's fault, told with it
        except (MetadataError, WeightsMissingError) as error:
            return error
        return header, own

    read_in_full: list[tuple[Group, tuple[GgufHeader, Sample]]] = []
    faults: list[tuple[Group, MetadataError | WeightsMissingError]] = []
    middle = len(groups) // 2  # neither a draft model, which is small, nor 16 bits in many shards
    rest = [*groups[middle:], *groups[:middle]]
    while rest and not read_in_full:
        group = rest.pop(0)
        outcome = read(group, None)
        if isinstance(outcome, tuple):
            read_in_full.append((group, outcome))
        else:
            faults.append((group, outcome))
    if not read_in_full:
        raise faults[0][1]
    sample = read_in_full[0][1][1]
    found = [(group, header) for group, (header, _) in read_in_full]
    for group, outcome in zip(rest, _some_at_once(lambda group: read(group, sample), rest), strict=True):
        if isinstance(outcome, tuple):
            found.append((group, outcome[0]))
        else:
            faults.append((group, outcome))
    kept, others = _models_of(sorted(found, key=lambda pair: (pair[0].size_bytes, pair[0].title)))
    left_out = (*(f"{label(group.title)}: {error.message}" for group, error in faults), *others)
    return tuple(_artifact(repository, group, header) for group, header in kept), left_out


def _some_at_once(read: Callable[[Group], _Read], groups: Sequence[Group]) -> Iterator[_Read]:
    """Yield what is read of each group, in order; an interrupted command leaves servers that do not answer to themselves."""
    under_way: deque[Bounded[_Read]] = deque()
    for group in groups:
        if len(under_way) == N_CONNECTIONS:
            yield _awaited(under_way.popleft())
        under_way.append(Bounded(partial(read, group)))
    while under_way:
        yield _awaited(under_way.popleft())


def _awaited(reading: Bounded[_Read]) -> _Read:
    reading.wait(TIMEOUT_MAX)
    return reading.value()


def _models_of(
    found: Sequence[tuple[Group, GgufHeader]],
) -> tuple[list[tuple[Group, GgufHeader]], list[str]]:
    """Keep the files that are the repository's model, by what their headers say; name the others.

    A file that is much smaller goes with the model (a projector, a draft model) or is another one.
    """
    sizes = {group.title: header.spec.n_parameters for group, header in found}
    largest = max(sizes.values())
    kept: list[tuple[Group, GgufHeader]] = []
    others: list[str] = []
    for group, header in found:
        is_model = (
            header.metadata.get("general.type") not in _NO_MODEL_TYPES
            and header.spec.architecture not in _NO_MODEL_ARCHITECTURES
            and sizes[group.title] >= _SAME_MODEL * largest
        )
        if is_model:
            kept.append((group, header))
        else:
            others.append(f"{label(group.title)}: not this model but one of {sizes[group.title]} parameters")
    if not kept:
        msg = "none of the GGUF files is a language model"
        raise MetadataError(msg, offset=0, field="general.type", help="name a repository that holds a model")
    return kept, others


def _artifact(repository: str, group: Group, header: GgufHeader) -> Artifact:
    return Artifact(
        format=WeightsFormat.GGUF,
        quantization=group.quantization or name_quantization(header.spec),
        repository=repository,
        files=tuple(_artifact_file(file) for file in group.files),
        spec=header.spec,
    )


def _artifact_file(file: RemoteFile) -> ArtifactFile:
    return ArtifactFile(name=file.path, size_bytes=file.size_bytes, sha256=file.sha256)


class _HubFolder:
    """The top folder of a repository, as the reader of Hugging Face folders sees it."""

    def __init__(self, web: Web, settings: Settings, repository: str, files: Sequence[RemoteFile]) -> None:
        self._web = web
        self._settings = settings
        self._repository = repository
        self.files = top_files(files)
        self.title = f"{HUB_PREFIX}{repository}"

    def names(self) -> list[str]:
        """Return the names of the files in it, sorted."""
        return sorted(self.files)

    def open(self, name: str) -> AbstractContextManager[tuple[ByteStream, int]]:
        """Open a file of the list; a name that is not in it leads nowhere."""
        return self._opened(name)

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[ByteStream, int]]:
        file = self.files.get(name)
        if file is None:
            msg = f"`{label(name)}` is not in `{self._repository}`"
            raise WeightsMissingError(msg, help="choose another repository, or tell whoever published it")
        try:
            url = file_url(self._settings, self._repository, name)
            stream = RangeStream(self._web, url, expected_bytes=file.size_bytes)
            yield stream, stream.size_bytes
        except MetadataError as error:
            error.details = (*error.details, f"in {label(name)} of {self.title}")
            raise


def _read_safetensors(
    web: Web, settings: Settings, asked: RemoteName, files: Sequence[RemoteFile], *, single: bool
) -> Artifact:
    repository = asked.repository
    folder = _HubFolder(web, settings, repository, files)
    names = folder.names()
    if CONFIG_NAME not in names and not any(name.endswith(".safetensors") for name in names):
        msg = f"`{repository}` has neither GGUF files nor {CONFIG_NAME} with *.safetensors"
        raise WeightsMissingError(msg, help="name a repository that holds a model")
    spec = read_files(folder)
    quantization = name_quantization(spec)
    if single and asked.selector.lower() not in {"", quantization}:
        msg = f"`{repository}` has no `{label(asked.selector)}`: its weights are {quantization}"
        raise UsageError(msg, help=f"leave it out: {HUB_PREFIX}{repository}")
    return Artifact(
        format=WeightsFormat.SAFETENSORS,
        quantization=quantization,
        repository=repository,
        files=tuple(_artifact_file(folder.files[name]) for name in names if name.endswith((".safetensors", ".json"))),
        spec=spec,
    )
