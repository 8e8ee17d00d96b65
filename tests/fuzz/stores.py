"""Hostile stores of other programs: manifests, configurations, settings, references, links and names of files.

It must not know how inputs are changed.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from launcher.cli.profiles import stored_rows
from launcher.errors import ModelStoreError
from launcher.fetch.stores import Shelf, look
from launcher.fetch.stores.ollama import LAYER, LIST
from launcher.render.stores import render_shelf, render_shelf_json
from tests.fakes.stores import manifest_of, put_folder, put_manifest, put_repository
from tests.fuzz.files import memory_folder, patched
from tests.fuzz.target import Take, Target, WrongError, check_figures, check_printable, each_by
from tests.fuzz.trees import Tree
from tests.fuzz.weights import octets, to_json

_PARTS: Final = ("manifest", "newer", "config", "settings", "ref", "pointer", "link", "name")
_SEPARATOR: Final = b"\n-- part --\n"
_WEIGHTS: Final = b"GGUF, as far as a list of names knows"
_SHA256: Final = hashlib.sha256(_WEIGHTS).hexdigest()
_LAYER: Final = {"mediaType": f"{LAYER}model", "digest": f"sha256:{_SHA256}", "size": len(_WEIGHTS)}
_WHOLE: Final = ("hf:some/tiny-GGUF:tiny-Q8_0.gguf", "lmstudio:some/tiny-GGUF:tiny-Q8_0.gguf", "ollama:good:1b")
"""Models that nothing else in a store may hide."""


def _seeds() -> list[Tree]:
    usual = {
        "manifest": {
            "schemaVersion": 2,
            "config": {"mediaType": "x", "digest": f"sha256:{'1' * 64}", "size": 2},
            "layers": [_LAYER, {**_LAYER, "mediaType": f"{LAYER}params"}],
        },
        "newer": {"mediaType": LIST, "manifests": [{"runner": "ollama", "layers": [_LAYER]}, {"digest": "x"}]},
        "config": {"file_type": "Q8_0", "model_format": "gguf", "remote_host": ""},
        "settings": {"downloadsFolder": "/nonexistent"},
        "ref": "c0ffee",
        "pointer": "/nonexistent",
        "link": f"../../blobs/{_SHA256}",
        "name": "more-Q4_0.gguf",
    }
    parts = {key: {"document": value, "patch": b"", "patch_at": 0} for key, value in usual.items()}
    return [parts, {**parts, "link": "../../../../../etc/passwd", "name": "a/../../b.gguf"}]


def _encode(tree: Tree) -> bytes:
    parts: dict[str, Any] = tree if isinstance(tree, dict) else {"manifest": tree}
    return _SEPARATOR.join(patched(parts.get(key), to_json if key in _PARTS[:4] else octets) for key in _PARTS)


@contextmanager
def _open() -> Iterator[Take]:
    """Give what looks at stores, in a home that is gone afterwards; each has a whole model beside what is hostile."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        home = Path(folder).resolve()
        models = home / "ollama"
        environ = {"HOME": str(home), "OLLAMA_MODELS": str(models), "HF_HUB_CACHE": str(home / "hub")}
        put_manifest(models, manifest_of(models, _WEIGHTS), "good", "1b")
        put_repository(home / "hub", "some/tiny-GGUF", {"tiny-Q8_0.gguf": _WEIGHTS})
        put_folder(home / ".lmstudio" / "models", "some/tiny-GGUF", {"tiny-Q8_0.gguf": _WEIGHTS})
        snapshot = put_repository(home / "hub", "some/bad-GGUF", {"x-Q8_0.gguf": _WEIGHTS})

        def take(data: bytes) -> str:
            parts = dict(zip(_PARTS, data.split(_SEPARATOR), strict=False))
            put_manifest(models, parts["manifest"], "bad", "1b")
            put_manifest(models, parts.get("newer", b""), "ollama.com", "library", "new", "1b", folder="manifests-v2")
            (models / "blobs" / f"sha256-{'1' * 64}").write_bytes(parts.get("config", b""))
            (home / ".lmstudio" / "settings.json").write_bytes(parts.get("settings", b""))
            (home / ".lmstudio-home-pointer").write_bytes(parts.get("pointer", b""))
            (snapshot.parent.parent / "refs" / "main").write_bytes(parts.get("ref", b""))
            made = _link(snapshot, parts.get("name", b""), parts.get("link", b""))
            try:
                return _judge(look(environ), home)
            finally:
                if made is not None:
                    made.unlink()

        yield each_by(take)


def _link(snapshot: Path, name: bytes, target: bytes) -> Path | None:
    """Put a link of a hostile name into a snapshot, where the system lets anybody have one."""
    path = snapshot / name.replace(b"/", b"_").decode("utf-8", "surrogateescape")
    with suppress(OSError, ValueError):
        path.symlink_to(target.decode("utf-8", "surrogateescape"))
        return path
    return None


def _judge(shelf: Shelf, home: Path) -> str:
    usable = [model for model in shelf.models if not model.unusable]
    if missing := set(_WHOLE) - {model.name for model in usable}:
        msg = f"{sorted(missing)} was hidden"
        raise WrongError(msg)
    for model in usable:
        for file in model.files:
            if not Path(file.path).resolve(strict=True).is_relative_to(home):
                msg = f"{file.path!r} is outside"
                raise WrongError(msg)
            check_figures(file, model.name)
    rows = stored_rows(shelf)
    check_printable(render_shelf(rows), "list --local", lines=True)
    json.loads(render_shelf_json(rows, shelf.faults))
    for fault in shelf.faults:
        check_printable(fault, "a fault")
    return f"{len(usable)} usable, {len(shelf.models) - len(usable)} not, {len(shelf.faults)} faults"


STORES: Final = Target(
    name="stores",
    modules=(
        "launcher.fetch.stores",
        "launcher.fetch.stores.shelf",
        "launcher.fetch.stores.ollama",
        "launcher.fetch.stores.hub_cache",
        "launcher.fetch.stores.lm_studio",
        "launcher.render.stores",
    ),
    seeds=_seeds,
    encode=_encode,
    open=_open,
    refusals=(ModelStoreError,),
    words=(
        *("mediaType", "layers", "config", "manifests", "digest", "size", "runner", "downloadsFolder", "file_type"),
        *(LIST, *(f"{LAYER}{kind}" for kind in ("model", "adapter", "tensor", "projector"))),
        *(f"sha256:{_SHA256}", "sha256:../x", len(_WEIGHTS), "x-00001-of-00002.gguf", ".incomplete", "/dev/zero"),
    ),
    share=3,
    cpu_s=2.0,
)
