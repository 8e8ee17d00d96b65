"""Finds models in Ollama's local store.

The layout, as github.com/ollama/ollama has it (``manifest/paths.go``, ``manifest/manifest.go``, ``types/model/name.go``,
``envconfig/config.go`` at commit fb30760, ``manifests-v2`` and lists of manifests at 0018813 and c73feaf)::

    MODELS/manifests/HOST/NAMESPACE/MODEL/TAG       a JSON manifest: layers with media type, digest and size
    MODELS/manifests-v2/HOST/NAMESPACE/MODEL/TAG    newer: the same, or a list of manifests, as a link to a blob
    MODELS/blobs/sha256-HEX                         a layer's bytes; HEX is their sha256
    MODELS/blobs/sha256-HEX-partial                 a download that has not ended (``server/download.go``)

MODELS is ``$OLLAMA_MODELS``, else ``~/.ollama/models`` of who runs it: where ``scripts/install.sh`` made a service of it,
that is ``/usr/share/ollama``. It must not know what a GGUF file holds.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from launcher.domain import WeightsFormat
from launcher.errors import ModelStoreError, UsageError
from launcher.fetch.names import quantization_of
from launcher.fetch.stores.shelf import StoredFile, StoredModel, Walk
from launcher.metadata.files import label
from launcher.units import MIB

PREFIX: Final = "ollama:"
STORE: Final = "Ollama's store"
MAX_MANIFEST_BYTES: Final = 4 * MIB
"""Assumed: eight times the manifest of a model of 2,000 tensors, each a layer."""
MAX_CONFIG_BYTES: Final = MIB
MAX_SIZE_BYTES: Final = 2**63 - 1
SERVICE_MODELS: Final = "/usr/share/ollama/.ollama/models"
HELP: Final = "join the group that may read it, and log in again: sudo usermod -aG ollama $USER"

_FOLDERS: Final = ("manifests-v2", "manifests")
_PUBLIC: Final = ("registry.ollama.ai", "ollama.com")
"""Two names of one registry: the first in ``manifests``, the second in ``manifests-v2``."""
_HUBS: Final = frozenset({"hf.co", "huggingface.co"})
"""Registries whose models are repositories of the hub, with the quantization as tag."""
_LIBRARY: Final = "library"
_LATEST: Final = "latest"

_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:%-]{0,349}")
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_MODEL: Final = re.compile(_PART)
_DIGEST: Final = re.compile(r"(sha256)[:-]([0-9a-fA-F]{64})")

LAYER: Final = "application/vnd.ollama.image."
LIST: Final = "application/vnd.ollama.manifest.list.v2+json"
_RUNNERS: Final = ("llamacpp", "ollama", "ggml", "", "mlx")
"""Of the manifests in a list, by what engine each is for: the first of these is taken."""
OWN_TEMPLATE: Final = "Ollama's template: the file's own chat template is used"
NO_TEMPLATE: Final = (
    "Ollama's template: the file has none, and chats get the engine's generic one, which may be wrong for it"
)
_LEFT_OUT: Final[Mapping[str, str]] = {
    "projector": "pictures: its projector is not loaded",
    "draft": "its draft model",
    "system": "its system prompt",
    "prompt": "its prompt",
    "messages": "its first messages",
    "template": OWN_TEMPLATE,
    "params": "its parameters, such as stop words and temperature",
}
"""By kind of layer: what Ollama would do with it and a server of the bare file does not."""


class Layer(Struct, rename="camel"):
    """A blob by its digest."""

    media_type: str = ""
    digest: str = ""
    size: int = -1


class Manifest(Struct, rename="camel"):
    """What a tag stands for; in a list, an entry with a digest alone stands for the blob that has the rest."""

    media_type: str = ""
    config: Layer | None = None
    layers: list[Layer] | None = None
    runner: str = ""
    manifests: "list[Manifest] | None" = None
    digest: str = ""


class _Config(Struct):
    file_type: str = ""
    model_format: str = ""
    remote_host: str = ""


class Tag(Struct, frozen=True, kw_only=True):
    """A model's whole name."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What two names of one model have in common: case does not count, nor which name its registry is called by."""
        host = _PUBLIC[0] if self.host.lower() in _PUBLIC else self.host
        return host.lower(), self.namespace.lower(), self.model.lower(), self.tag.lower()

    @property
    def short(self) -> str:
        """As Ollama lists it: ``gemma2:27b``, ``someone/model:tag``, ``hf.co/OWNER/NAME:QUANT``."""
        name = f"{self.model}:{self.tag}"
        if self.host.lower() not in _PUBLIC:
            return f"{self.host}/{self.namespace}/{name}"
        return name if self.namespace.lower() == _LIBRARY else f"{self.namespace}/{name}"

    @property
    def repository(self) -> str | None:
        """The repository of the hub that it was pulled from, if it was."""
        return f"{self.namespace}/{self.model}" if self.host.lower() in _HUBS else None


def parse_tag(name: str) -> Tag:
    """Return what ``[[HOST/]NAMESPACE/]MODEL[:TAG]`` means, without the prefix.

    Raises:
        UsageError: it is no name of a model.
    """
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        path, tag = name, _LATEST
    parts = path.split("/")
    if len(parts) <= 3:  # noqa: PLR2004 - host, namespace, model
        host, namespace, model = (*(_PUBLIC[0], _LIBRARY)[: 3 - len(parts)], *parts)
        if found := _tag(host, namespace, model, tag):
            return found
    msg = f"`{PREFIX}{label(name)}` is no name of a model in Ollama"
    raise UsageError(msg, help="write ollama:MODEL:TAG, as `ollama list` does; `launch list --local` shows those here")


def _tag(host: str, namespace: str, model: str, tag: str) -> Tag | None:
    patterns = (_HOST, _NAMESPACE, _MODEL, _MODEL)
    parts = (host, namespace, model, tag)
    if not all(pattern.fullmatch(part) for pattern, part in zip(patterns, parts, strict=True)):
        return None
    return Tag(host=host, namespace=namespace, model=model, tag=tag)


def parse_manifest(content: bytes) -> Manifest:
    """Return what a manifest says; its layers' digests are digests, and their sizes sizes.

    Raises:
        ModelStoreError: it is no manifest.
    """
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = f"the manifest cannot be read: {label(str(error))}"
        raise ModelStoreError(msg, help="pull the model again") from None
    for each in (manifest, *(manifest.manifests or ())):
        for layer in (*(each.layers or ()), *((each.config,) if each.config is not None else ())):
            _check(layer)
        if each.digest:
            blob_name(each.digest)
    return manifest


def _check(layer: Layer) -> None:
    blob_name(layer.digest)
    if not 0 <= layer.size <= MAX_SIZE_BYTES:
        msg = f"the manifest names a layer of {layer.size} bytes"
        raise ModelStoreError(msg, help="pull the model again")


def blob_name(digest: str) -> str:
    """Return the name of the file that a digest stands for.

    Raises:
        ModelStoreError: it is no sha256.
    """
    match = _DIGEST.fullmatch(digest)
    if match is None:
        msg = f"the manifest has a digest that is no sha256: `{label(digest)}`"
        raise ModelStoreError(msg, help="pull the model again")
    return f"{match[1]}-{match[2]}"


def kinds(manifest: Manifest) -> tuple[str, ...]:
    """Return of each layer what it is for: ``model``, ``template``, ...; empty for a media type of somebody else."""
    types = (layer.media_type.partition(";")[0].strip() for layer in manifest.layers or ())
    return tuple(name.removeprefix(LAYER) if name.startswith(LAYER) else "" for name in types)


def why_unusable(manifest: Manifest, config: "_Config | None" = None) -> str:
    """Return why a server of GGUF files cannot serve what a manifest describes; empty where it can, by its layers."""
    found = kinds(manifest)
    if config is not None and config.remote_host:
        return f"it runs on {label(config.remote_host)}, not here"
    if "tensor" in found:
        return "its weights are single tensors, which only Ollama's own engine reads"
    if "model" not in found:
        return "it has no weights"
    if found.count("model") > 1:
        return "its weights are in several blobs, whose order only Ollama's own engine knows"
    if "adapter" in found:
        return "it has an adapter, and without that it is another model"
    return ""


def folders(environ: Mapping[str, str], home: Path) -> tuple[Path, ...]:
    """Return where Ollama may have its models."""
    chosen = environ.get("OLLAMA_MODELS", "").strip().strip("\"'")
    return (Path(chosen),) if chosen else (home / ".ollama" / "models", Path(SERVICE_MODELS))


def look(walk: Walk) -> Iterator[StoredModel]:
    """Yield the models of one store, by their names; what cannot be read is noted in ``walk.faults``."""
    seen: set[tuple[str, str, str, str]] = set()
    for folder, tag in _tags(walk):
        if tag.key in seen:
            continue  # as in Ollama, a newer manifest goes before an older one
        seen.add(tag.key)
        try:
            yield _read(walk, folder, tag)
        except ModelStoreError as error:
            walk.faults.append(f"{PREFIX}{tag.short}: {error.message}")


def _tags(walk: Walk) -> Iterator[tuple[str, Tag]]:
    for folder in _FOLDERS:
        for host in walk.names(folder):
            for namespace in _quietly(walk, folder, host):
                for model in _quietly(walk, folder, host, namespace):
                    for name in _quietly(walk, folder, host, namespace, model):
                        if tag := _tag(host, namespace, model, name):
                            yield folder, tag


def _quietly(walk: Walk, *parts: str) -> list[str]:
    """Return the names in a folder; note where that cannot be listed, and go on with the others."""
    try:
        return walk.names(*parts)
    except ModelStoreError as error:
        walk.faults.append(error.message)
        return []


def _read(walk: Walk, folder: str, tag: Tag) -> StoredModel:
    manifest = _resolved(walk, _load(walk, folder, tag.host, tag.namespace, tag.model, tag.tag))
    config = _read_config(walk, manifest)
    unusable = why_unusable(manifest, config)
    files: tuple[StoredFile, ...] = ()
    if not unusable:
        layer = next(each for kind, each in zip(kinds(manifest), manifest.layers or (), strict=True) if kind == "model")
        file, unusable = _blob(walk, layer)
        files = (file,)
    written = config.file_type.lower() if config is not None else ""
    return StoredModel(
        store=STORE,
        name=f"{PREFIX}{tag.short}",
        format=WeightsFormat.GGUF,
        files=files,
        repository=tag.repository,
        quantization=quantization_of(f"x-{written}.gguf") or quantization_of(f"x-{tag.tag}.gguf"),
        notes=tuple(text for kind, text in _LEFT_OUT.items() if kind in kinds(manifest)),
        unusable=unusable,
    )


def _load(walk: Walk, *parts: str) -> Manifest:
    content = walk.read(*parts, limit=MAX_MANIFEST_BYTES)
    if content is None:
        msg = "its manifest is not there"
        raise ModelStoreError(msg, help="pull the model again")
    return parse_manifest(content)


def _resolved(walk: Walk, manifest: Manifest) -> Manifest:
    """Return the manifest of a list that is for an engine like ours, or what is no list as it is."""
    if manifest.media_type != LIST:
        return manifest
    for runner in _RUNNERS:
        for child in manifest.manifests or ():
            if child.runner.lower() != runner:
                continue
            if child.digest and not child.layers:
                child = _load(walk, "blobs", blob_name(child.digest))  # noqa: PLW2901  an entry stands for its blob
            if child.media_type == LIST:
                break
            return child
    msg = "its list of manifests has none for this machine"
    raise ModelStoreError(msg, help="pull the model again")


def _read_config(walk: Walk, manifest: Manifest) -> _Config | None:
    """Return what the model's configuration says; it is for people, so that a broken one is none."""
    if manifest.config is None:
        return None
    try:
        content = walk.read("blobs", blob_name(manifest.config.digest), limit=MAX_CONFIG_BYTES)
        return None if content is None else msgspec.json.decode(content, type=_Config)
    except (ModelStoreError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _blob(walk: Walk, layer: Layer) -> tuple[StoredFile, str]:
    """Return a layer's file, and why it cannot be used, if so."""
    name = blob_name(layer.digest)
    found = walk.locate("blobs", name)
    path = str(walk.root / "blobs" / name) if found is None else str(found[0])
    file = StoredFile(path=path, name="", size_bytes=layer.size, sha256=name.removeprefix("sha256-").lower())
    if found is None:
        partial = walk.locate("blobs", f"{name}-partial") is not None
        return file, "it is still being downloaded" if partial else "its weights are not there"
    if found[1] != layer.size:
        return file, f"its weights have {found[1]} bytes, and should have {layer.size}"
    return file, ""
