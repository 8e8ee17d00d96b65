"""Finds what was downloaded from an address: in a folder that is called after the sha256 of its first file.

It must not know how it came there.
"""

from pathlib import Path

from msgspec.structs import replace

from launcher.domain import Artifact, Profile
from launcher.fetch.names import parse_name, shards_of
from launcher.fetch.places import models_dir


def folder_of(sha256: str) -> Path:
    """Return the folder of what has this digest; it need not be there."""
    return models_dir() / f"sha256-{sha256}"


def mark_downloaded(profile: Profile) -> Profile:
    """Return the profile with those of its artifacts that were downloaded from their address where they lie."""
    if not any(artifact.url for artifact in profile.artifacts):
        return profile
    return replace(profile, artifacts=tuple(map(_marked, profile.artifacts)))


def _marked(artifact: Artifact) -> Artifact:
    if artifact.url is None or not artifact.files or artifact.files[0].sha256 is None:
        return artifact
    folder = folder_of(artifact.files[0].sha256)
    paths = [folder / Path(file.name).name for file in artifact.files]
    return replace(artifact, local_path=str(paths[0])) if all(map(Path.is_file, paths)) else artifact


def read_downloaded(name: str) -> Profile | None:
    """Describe what an address with its digests has by what was downloaded from it; ``None`` where that is not all here.

    Nothing is asked of the network: what has the digest is what the address had.
    """
    from launcher.metadata.load import read_spec  # noqa: PLC0415  for a plan of a profile nothing of it is needed
    from launcher.profiles import profile_for_weights  # noqa: PLC0415

    asked = parse_name(name)
    folder = folder_of(asked.sha256[0]) if asked.url and asked.sha256 else None
    if folder is None or not folder.is_dir():
        return None
    first = min((path for path in folder.glob("*.gguf") if not path.name.startswith(".")), default=None)
    if first is None:
        return None
    paths = [folder / shard for shard in shards_of(first.name)]
    if len(paths) != len(asked.sha256) or not all(map(Path.is_file, paths)):
        return None
    profile = profile_for_weights(first, read_spec(first))
    files = tuple(
        replace(file, sha256=sha256) for file, sha256 in zip(profile.artifacts[0].files, asked.sha256, strict=True)
    )
    return replace(profile, artifacts=(replace(profile.artifacts[0], files=files),), asked=asked.written)
