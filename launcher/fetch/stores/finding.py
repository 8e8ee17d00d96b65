"""Finds weights that are asked for among those that other programs have.

A file is the one that is asked for where both sides know its sha256 and it is the same. Where one of them does not know it,
repository and name have to be the same, and the size where it is known; the digest that one of them knows is then expected of
the file. It must not know any store's layout.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from launcher.domain import Artifact, ArtifactFile, ModelSpec, Profile, WeightsFormat
from launcher.errors import LauncherError, MetadataError, ModelStoreError, WeightsMissingError
from launcher.fetch.stores import ollama
from launcher.fetch.stores.dialects import why_only_ollama
from launcher.fetch.stores.shelf import Shelf, StoredFile, StoredModel
from launcher.metadata.files import label
from launcher.metadata.load import read_spec
from launcher.profiles import is_local, name_quantization, profile_for_artifacts

_SHOWN: Final = 400
_SAME_MODEL: Final = 0.2
"""By how much of its parameters a file may differ from the model that is asked for: a second output matrix, a draft."""


def find(artifact: Artifact, shelf: Shelf) -> Artifact | None:
    """Return the artifact where a store has it: with path, store, files, and the spec that the file's own header gives.

    ``None`` where no store has it, or what is called so is another model.
    """
    for model in shelf.models:
        if not model.unusable and _is_asked_for(artifact, model):
            try:
                spec = _read(model)
            except (MetadataError, WeightsMissingError, ModelStoreError):
                continue  # a damaged copy; another store may have a whole one
            if artifact.spec is None or _is_same(artifact.spec, spec):
                found = replace(as_artifact(model, spec), quantization=artifact.quantization, package=artifact.package)
                return replace(found, files=_with_digests(found, artifact))
    return None


def _with_digests(found: Artifact, asked: Artifact) -> tuple[ArtifactFile, ...]:
    """Return the files of a store with the digests that are expected of them, also where only who asks knows these."""
    if found.format is WeightsFormat.SAFETENSORS:
        known = {file.name: file.sha256 for file in asked.files}
        return tuple(replace(file, sha256=file.sha256 or known.get(file.name)) for file in found.files)
    if len(found.files) != len(asked.files):
        return found.files
    pairs = zip(found.files, asked.files, strict=True)
    return tuple(replace(file, sha256=file.sha256 or wanted.sha256) for file, wanted in pairs)


def mark_found(profile: Profile, shelf: Shelf) -> Profile:
    """Return the profile with those of its artifacts that lie in a store where they lie; what is local stays as it is."""
    if not shelf.models:
        return profile
    artifacts = tuple(
        artifact if is_local(artifact) else find(artifact, shelf) or artifact for artifact in profile.artifacts
    )
    return replace(profile, artifacts=artifacts)


def checked(shelf: Shelf) -> Shelf:
    """Return the shelf with what the models' own headers say against serving them, which takes reading each."""
    return replace(shelf, models=tuple(_checked(model) for model in shelf.models))


def _checked(model: StoredModel) -> StoredModel:
    if model.unusable:
        return model
    try:
        _read(model)
    except (MetadataError, WeightsMissingError, ModelStoreError) as error:
        return replace(model, unusable=error.message)
    return model


def relatives(profile: Profile, shelf: Shelf) -> tuple[StoredModel, ...]:
    """Return the models of Ollama's that answer to one of a profile's names, and are other files than the profile's."""
    names = {f"{ollama.PREFIX}{name}" for name in (profile.name, *profile.aliases)}
    return tuple(model for model in shelf.models if model.name in names and not model.unusable)


def _is_asked_for(artifact: Artifact, model: StoredModel) -> bool:
    if artifact.format is not model.format:
        return False
    same_repository = (
        artifact.repository is not None
        and model.repository is not None
        and artifact.repository.lower() == model.repository.lower()
    )
    if model.format is WeightsFormat.SAFETENSORS:
        here = {file.name: file for file in model.files}
        known = [file for file in artifact.files if file.name in here]
        return (
            same_repository
            and len(known) == len(artifact.files)
            and all(_agree(file, here[file.name]) for file in known)
        )
    if len(artifact.files) == len(model.files):
        pairs = list(zip(artifact.files, model.files, strict=True))
        if all(file.sha256 and stored.sha256 for file, stored in pairs):
            return all(_agree(file, stored) for file, stored in pairs)
        named = all(file.name == stored.name or not stored.name for file, stored in pairs)
        has_names = all(stored.name for stored in model.files)
        return (
            same_repository
            and named
            and all(_agree(file, stored) for file, stored in pairs)
            and (has_names or artifact.quantization == model.quantization)
        )
    return same_repository and not artifact.files and artifact.quantization == model.quantization


def _agree(file: ArtifactFile, stored: StoredFile) -> bool:
    """Whether what is known of both is the same."""
    if file.sha256 is not None and stored.sha256 is not None and file.sha256.lower() != stored.sha256:
        return False
    return file.size_bytes is None or file.size_bytes == stored.size_bytes


def _is_same(expected: ModelSpec, found: ModelSpec) -> bool:
    close = abs(expected.n_parameters - found.n_parameters) <= _SAME_MODEL * max(1, expected.n_parameters)
    # Quantized safetensors pack several parameters into one element: there the shapes say nothing.
    return expected.architecture == found.architecture and (close or found.format is WeightsFormat.SAFETENSORS)


def _read(model: StoredModel) -> ModelSpec:
    """Read the header of a stored model.

    Raises:
        ModelStoreError: only Ollama's own engine reads it.
        MetadataError, WeightsMissingError: the file is no whole model.
    """
    spec = read_spec(Path(model.path))
    if model.store == ollama.STORE and (reason := why_only_ollama(spec)):
        msg = f"`{model.name}` can be served by Ollama alone: {reason}"
        raise ModelStoreError(msg, help="name the same model of the hub: launch plan hf:OWNER/NAME")
    return spec


def as_artifact(model: StoredModel, spec: ModelSpec) -> Artifact:
    """Return a stored model as an artifact, whose files the store's digests are expected of."""
    files = (
        ArtifactFile(name=file.name or Path(file.path).name, size_bytes=file.size_bytes, sha256=file.sha256)
        for file in model.files
    )
    return Artifact(
        format=model.format,
        quantization=model.quantization or name_quantization(spec),
        repository=model.repository,
        files=tuple(files),
        local_path=model.path,
        store=model.store,
        spec=spec,
    )


def profile_of_tag(tag: ollama.Tag, shelf: Shelf) -> tuple[Profile, tuple[str, ...]]:
    """Return the profile of a model in Ollama's store, and what of it is left out.

    Raises:
        ModelStoreError: it cannot be served.
        MetadataError, WeightsMissingError: it is not there, or not whole.
    """
    ours = [model for model in shelf.models if model.store == ollama.STORE]
    model = next((each for each in ours if ollama.parse_tag(_bare(each)).key == tag.key), None)
    if model is None:
        broken = next((fault for fault in shelf.faults if fault.startswith(f"{ollama.PREFIX}{tag.short}: ")), None)
        if broken is not None:
            raise ModelStoreError(broken, help="remove it in Ollama and pull it again")
        msg = f"Ollama's store has no `{tag.short}`"
        raise _missing(msg, ours, shelf, nothing="`ollama pull` brings one")
    _require_usable(model)
    spec = _read(model)
    title = tag.short.removesuffix(":latest").replace(":", "-")
    asked = f"{ollama.PREFIX}{tag.short}"
    profile = profile_for_artifacts(title, (as_artifact(model, spec),), asked=asked, source=model.path)
    if any(key.startswith("tokenizer.chat_template") for key in spec.metadata):
        return profile, model.notes
    return profile, (*(note for note in model.notes if note != ollama.OWN_TEMPLATE), ollama.NO_TEMPLATE)


def _bare(model: StoredModel) -> str:
    return model.name.removeprefix(ollama.PREFIX)


def profile_of_repository(
    repository: str, selector: str, shelf: Shelf, *, prefix: str, stores: Iterable[str]
) -> tuple[Profile, tuple[str, ...]]:
    """Return the profile of a repository by what the named ``stores`` have of it, and what of that is left out.

    ``selector`` may name one file. Of several files at one quantization the first is taken.

    Raises:
        ModelStoreError: what is there cannot be served.
        MetadataError, WeightsMissingError: nothing of it is there, or nothing whole.
    """
    wanted = set(stores)
    there = [model for model in shelf.models if model.store in wanted]
    ours = [model for model in there if model.repository and model.repository.lower() == repository.lower()]
    by_file = selector.lower().endswith(".gguf")
    if by_file:
        ours = [model for model in ours if any(file.name == selector for file in model.files)]
    asked = f"{prefix}{repository}" + (f":{selector}" if by_file else "")
    if not ours:
        msg = f"no store on this machine has `{label(asked)}`"
        raise _missing(msg, there, shelf, nothing="download it first")
    artifacts, left_out = _artifacts(ours)
    title = repository.rpartition("/")[2]
    title = title[: -len("-gguf")] if title.lower().endswith("-gguf") else title
    return profile_for_artifacts(title, artifacts, asked=asked, source=artifacts[0].local_path or ""), left_out


def _artifacts(models: Sequence[StoredModel]) -> tuple[tuple[Artifact, ...], tuple[str, ...]]:
    """Return the first usable model of each format and quantization, and why the others are left out.

    Raises:
        ModelStoreError, MetadataError, WeightsMissingError: none is usable; it is what is wrong with the first.
    """
    found: dict[tuple[WeightsFormat, str], Artifact] = {}
    left_out: list[str] = []
    faults: list[LauncherError] = []
    for model in models:
        name = label(model.name, limit=_SHOWN)
        try:
            _require_usable(model)
            artifact = as_artifact(model, _read(model))
        except (MetadataError, WeightsMissingError, ModelStoreError) as error:
            faults.append(error)
            left_out.append(f"{name}: {error.message}")
            continue
        first = found.setdefault((artifact.format, artifact.quantization), artifact)
        if _sizes(first) != _sizes(artifact):  # else it is the same file in another store
            left_out.append(f"{name} of {model.store}: another file at {artifact.quantization}; name it to use it")
    if not found:
        raise faults[0]
    return tuple(found.values()), tuple(left_out)


def _sizes(artifact: Artifact) -> tuple[int | None, ...]:
    return tuple(file.size_bytes for file in artifact.files)


def _require_usable(model: StoredModel) -> None:
    if model.unusable:
        msg = f"`{label(model.name, limit=_SHOWN)}` in {model.store} cannot be served: {model.unusable}"
        raise ModelStoreError(msg, help="`launch list --local` shows what can")


def _missing(msg: str, there: Sequence[StoredModel], shelf: Shelf, *, nothing: str) -> WeightsMissingError:
    """Return the fault of a name that no store has, with the names that are near it, and what could not be looked at."""
    from difflib import get_close_matches  # noqa: PLC0415  only this fault needs it

    names = [model.name for model in there]
    asked = msg.rpartition("no `")[2].strip("`")
    near = get_close_matches(asked, names, n=3, cutoff=0.4) or names[:3]
    help_ = f"did you mean {' or '.join(f'`{label(name)}`' for name in near)}? " if near else f"{nothing}; "
    return WeightsMissingError(msg, help=f"{help_}`launch list --local` shows what is here", details=shelf.faults)
