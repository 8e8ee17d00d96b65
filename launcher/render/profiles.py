"""Writes the known profiles, for a person or as JSON.

It must not know where profiles lie or how they are read, nor print.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Final

import msgspec

from launcher.domain import SCHEMA_VERSION, Artifact, Profile, Provenance, WeightsFormat
from launcher.units import format_bytes

_WIDTH: Final = 100
"""Columns that the lists of quantizations are wrapped to."""

_LOCAL_MARK: Final = "*"


def render_profiles(profiles: Sequence[Profile], local: Collection[Artifact]) -> str:
    """Return a block of lines per profile: its names, its size, its quantizations, with a mark on the ``local`` ones.

    Those that lie in another program's store are named again, with whose it is.
    """
    blocks = [_block(profile, local) for profile in profiles]
    marked = any(artifact in local for profile in profiles for artifact in profile.artifacts)
    legend = [f"{_LOCAL_MARK} is on this machine"] if marked else []
    return "\n\n".join(["\n".join(lines) for lines in blocks] + legend) + "\n" if blocks else "no profile is known\n"


def render_profiles_json(profiles: Sequence[Profile], local: Collection[Artifact]) -> str:
    """Return the same as a JSON object of schema version 1; unknown figures are ``null``."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "profiles": [
            {
                "name": profile.name,
                "title": profile.title,
                "aliases": profile.aliases,
                "license": profile.license,
                "urls": profile.urls,
                "source": profile.source,
                "n_parameters": n_parameters(profile),
                "artifacts": [_artifact(artifact, local) for artifact in profile.artifacts],
            }
            for profile in profiles
        ],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def n_parameters(profile: Profile) -> int | None:
    """Return the number of parameters by the first GGUF artifact that has a spec, or ``None``.

    Quantized safetensors pack several parameters into one stored element, so their elements are no parameters.
    """
    for artifact in profile.artifacts:
        if artifact.spec is not None and artifact.format is WeightsFormat.GGUF:
            return artifact.spec.n_parameters
    return None


def size_of(artifact: Artifact) -> tuple[int, Provenance] | None:
    """Return the bytes of an artifact: of its files as published, else of the tensors in its spec, else ``None``."""
    sizes = [file.size_bytes for file in artifact.files]
    known = [size for size in sizes if size is not None]
    if known and len(known) == len(sizes):
        return sum(known), Provenance.PUBLISHED
    if artifact.spec is not None:
        return artifact.spec.weights_bytes, artifact.spec.provenance
    return None


def _artifact(artifact: Artifact, local: Collection[Artifact]) -> dict[str, object]:
    size_bytes, provenance = size_of(artifact) or (None, None)
    return {
        "format": artifact.format,
        "quantization": artifact.quantization,
        "repository": artifact.repository,
        "size_bytes": size_bytes,
        "size_provenance": provenance,
        "local": artifact in local,
        "store": artifact.store,
    }


def _block(profile: Profile, local: Collection[Artifact]) -> Iterator[str]:
    n = n_parameters(profile)
    facts = (profile.title, f"{_in_words(n)} parameters" if n else "", profile.license)
    names = ", ".join((profile.name, *profile.aliases))
    yield f"{names}: {', '.join(fact for fact in facts if fact)}"
    for weights_format in WeightsFormat:
        entries = [_entry(artifact, local) for artifact in profile.artifacts if artifact.format is weights_format]
        yield from _wrapped(f"  {weights_format.value:<12}", entries)
    found = [f"{artifact.quantization} from {artifact.store}" for artifact in profile.artifacts if artifact.store]
    yield from _wrapped("  in place    ", found)


def _entry(artifact: Artifact, local: Collection[Artifact]) -> str:
    size = size_of(artifact)
    written = f" {format_bytes(size[0])}" if size else ""
    return f"{artifact.quantization}{_LOCAL_MARK if artifact in local else ''}{written}"


def _wrapped(heading: str, entries: Sequence[str]) -> Iterator[str]:
    line = heading
    for idx, entry in enumerate(entries):
        piece = entry + (", " if idx < len(entries) - 1 else "")
        if len(line) > len(heading) and len(line) + len(piece.rstrip()) > _WIDTH:
            yield line.rstrip()
            line = " " * len(heading)
        line += piece
    if entries:
        yield line.rstrip()


def _in_words(n: int) -> str:
    for step, unit in ((10**9, "B"), (10**6, "M")):
        if n >= step:
            return f"{n / step:.1f} {unit}"
    return str(n)
