"""Builds the stores of other programs as those lay them out, whole and broken."""

import hashlib
import json
from pathlib import Path
from typing import Any

MODEL = "application/vnd.ollama.image.model"
LIST = "application/vnd.ollama.manifest.list.v2+json"


def put_blob(models: Path, content: bytes) -> str:
    """Put a blob into Ollama's store; return its digest."""
    digest = hashlib.sha256(content).hexdigest()
    (models / "blobs").mkdir(parents=True, exist_ok=True)
    (models / "blobs" / f"sha256-{digest}").write_bytes(content)
    return f"sha256:{digest}"


def layer(models: Path, kind: str, content: bytes) -> dict[str, Any]:
    """Put a layer's blob; return the layer."""
    name = f"application/vnd.ollama.image.{kind}"
    return {"mediaType": name, "digest": put_blob(models, content), "size": len(content)}


def manifest_of(models: Path, weights: bytes, *, file_type: str = "Q8_0", **layers: bytes) -> dict[str, Any]:
    """Put a model's blobs; return its manifest, with further layers by kind."""
    config = json.dumps({"model_format": "gguf", "model_family": "llama", "file_type": file_type}).encode()
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": put_blob(models, config),
            "size": len(config),
        },
        "layers": [
            layer(models, "model", weights),
            *(layer(models, kind, content) for kind, content in layers.items()),
        ],
    }


def put_manifest(models: Path, content: bytes | dict[str, Any], *parts: str, folder: str = "manifests") -> Path:
    """Put a manifest under ``HOST, NAMESPACE, MODEL, TAG``, or the last two of them in Ollama's library."""
    whole = parts if len(parts) == 4 else ("registry.ollama.ai", "library", *parts)
    path = models.joinpath(folder, *whole)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def put_repository(
    cache: Path, repository: str, files: dict[str, bytes], *, commit: str = "c0ffee", main: bool = True
) -> Path:
    """Put a repository into the cache of the hub's client; return its snapshot."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for name, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        (folder / "blobs" / digest).write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("../" * (name.count("/") + 2) + f"blobs/{digest}")
    if main:
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(commit, encoding="ascii")
    return snapshot


def put_folder(models: Path, repository: str, files: dict[str, bytes]) -> Path:
    """Put a repository's files into LM Studio's folder; return the repository's."""
    folder = models / repository
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
