"""A whole artifact comes to where every program that uses the hub's cache finds it, or nothing of it counts."""

import errno
import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gguf
import pytest

from launcher.domain import Artifact, ArtifactFile, WeightsFormat
from launcher.errors import (
    CorruptDownloadError,
    DiskFullError,
    DownloadError,
    LauncherError,
    MetadataError,
    RemoteAccessError,
    RemoteError,
    RemoteMissingError,
    UsageError,
    WeightsMissingError,
)
from launcher.fetch.digests import is_recorded
from launcher.fetch.progress import Meter, Phase, Progress, left_s
from launcher.fetch.pull import Pulled, choose_files, find_here, pull
from launcher.fetch.remote import read_remote
from launcher.fetch.room import MIN_MARGIN_BYTES
from launcher.fetch.stores import find, look
from tests.fakes.hub import COMMIT, Handler, Hub, always, git_sha1, make_gguf, serve

SECRET = "hf_secret"  # noqa: S105  a secret for the test
Pull = Callable[..., Pulled]


@pytest.fixture(scope="module")
def shards() -> dict[str, bytes]:
    """A small model in three files."""
    return {f"Q8_0/tiny-Q8_0-0000{n + 1}-of-00003.gguf": make_gguf(n_vocab=500, shard=(n, 3)) for n in range(3)}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A small model at two quantizations, with what stands beside one."""
    return {
        "tiny-Q8_0.gguf": make_gguf(n_vocab=500),
        "tiny-F16.gguf": make_gguf(gguf.GGMLQuantizationType.F16, n_vocab=500),
        "mmproj-F16.gguf": b"no model",
        "README.md": b"# tiny",
    }


class Here(NamedTuple):
    """Folders of a test, and the environment that names them."""

    cache: Path
    models: Path
    environ: dict[str, str]


@pytest.fixture
def here(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """An empty cache of the hub's, and an empty folder of our own."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LAUNCHER_CACHE_DIR", str(tmp_path / "own"))
    environ = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path)}
    return Here(cache=tmp_path / "hf" / "hub", models=tmp_path / "own" / "models", environ=environ)


@pytest.fixture
def bring(here: Here) -> Pull:
    """Pull an artifact without waiting."""

    def call(artifact: Artifact, *, query: str = "", **environ: str) -> Pulled:
        return pull(
            artifact, query=query, tell=lambda _: None, environ={**here.environ, **environ}, sleep=lambda _: None
        )

    return call


def tiny(quantization: str = "q8_0", *files: str, format: WeightsFormat = WeightsFormat.GGUF) -> Artifact:  # noqa: A002
    """Return what a profile may say of the model."""
    return Artifact(
        format=format,
        quantization=quantization,
        repository="o/tiny",
        files=tuple(ArtifactFile(name=name) for name in files),
    )


def digest(content: bytes) -> str:
    """Return the sha256."""
    return hashlib.sha256(content).hexdigest()


def test_a_quantization_is_found_and_brought(hub: Hub, here: Here, bring: Pull, files: dict[str, bytes]) -> None:
    """By its name alone: one file, in the hub's own layout, of one commit, described by its own header."""
    hub.files = {"o/tiny": files}
    pulled = bring(tiny())
    path = here.cache / "models--o--tiny" / "snapshots" / COMMIT / "tiny-Q8_0.gguf"
    assert pulled.artifact.local_path == str(path)
    assert path.read_bytes() == files["tiny-Q8_0.gguf"]
    assert path.resolve() == here.cache / "models--o--tiny" / "blobs" / digest(files["tiny-Q8_0.gguf"])
    assert os.readlink(path) == f"../../blobs/{path.resolve().name}"  # noqa: PTH115  the text: a moved cache stays whole
    assert (here.cache / "models--o--tiny" / "refs" / "main").read_text() == COMMIT
    (file,) = pulled.artifact.files
    assert (file.name, file.size_bytes) == ("tiny-Q8_0.gguf", len(files["tiny-Q8_0.gguf"]))
    assert is_recorded(path, file.sha256 or "")
    assert pulled.artifact.spec is not None
    assert pulled.artifact.spec.architecture == "llama"
    assert pulled.n_fetched_bytes == file.size_bytes
    assert all(COMMIT in asked.path for asked in hub.log if "resolve" in asked.path or "tree" in asked.path)


def test_what_was_brought_is_found_in_place(hub: Hub, here: Here, bring: Pull, files: dict[str, bytes]) -> None:
    """The same lookup that finds what other programs downloaded finds it, and a second pull brings nothing."""
    hub.files = {"o/tiny": files}
    pulled = bring(tiny())
    found = find(tiny("q8_0", "tiny-Q8_0.gguf"), look(here.environ))
    assert found is not None
    assert found.local_path == pulled.artifact.local_path
    assert bring(tiny()).n_fetched_bytes == 0


def test_the_hubs_own_client_finds_it(hub: Hub, here: Here, bring: Pull, files: dict[str, bytes]) -> None:
    """huggingface_hub takes the file for one that it downloaded itself, and its scan of the cache has no complaint."""
    hub.files = {"o/tiny": files}
    pulled = bring(tiny())
    code = (
        "import sys\n"
        "from huggingface_hub import hf_hub_download, scan_cache_dir\n"
        "print(hf_hub_download('o/tiny', 'tiny-Q8_0.gguf', cache_dir=sys.argv[1], local_files_only=True))\n"
        "scan = scan_cache_dir(sys.argv[1])\n"
        "print(len(scan.warnings), [(repo.repo_id, repo.size_on_disk) for repo in scan.repos])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, here.cache], capture_output=True, text=True, timeout=60, check=False
    )
    size = len(files["tiny-Q8_0.gguf"])
    assert result.stdout.splitlines() == [pulled.artifact.local_path, f"0 [('o/tiny', {size})]"], result.stderr


def test_the_hubs_own_client_is_waited_for(hub: Hub, here: Here, files: dict[str, bytes]) -> None:
    """It locks the same file before it downloads a blob, and is let finish."""
    hub.files = {"o/tiny": files}
    name = digest(files["tiny-Q8_0.gguf"])
    code = (
        "import os, sys\n"
        "from huggingface_hub.utils import WeakFileLock\n"
        "os.makedirs(os.path.dirname(sys.argv[1]))\n"
        "with WeakFileLock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    lock = here.cache / ".locks" / "models--o--tiny" / f"{name}.lock"
    with subprocess.Popen([sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdin is not None
        assert client.stdout.readline() == b"held\n"
        told: list[Phase] = []

        def tell(progress: Progress) -> None:
            told.append(progress.phase)
            if client.stdin is not None and not client.stdin.closed:
                client.stdin.close()

        pull(tiny(), tell=tell, environ=here.environ)
    assert told[0] is Phase.SHARING
    assert told[-1] is Phase.DOWNLOADING


def test_all_shards_come(hub: Hub, bring: Pull, shards: dict[str, bytes]) -> None:
    """The path is the first one's, and the others lie beside it under their names, as engines look for them."""
    hub.files = {"o/tiny": shards}
    pulled = bring(tiny())
    assert [file.name for file in pulled.files] == sorted(shards)
    first = Path(pulled.artifact.local_path or "")
    for name, content in shards.items():
        assert (first.parent / Path(name).name).read_bytes() == content
    assert pulled.artifact.spec is not None
    assert len(pulled.artifact.spec.tensors) == 38


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_broken_shard_leaves_the_others(hub: Hub, bring: Pull, shards: dict[str, bytes], broken: int) -> None:
    """What is whole and verified is not asked for again; until all are, there is no path to serve."""
    names = sorted(shards)
    hub.files = {"o/tiny": shards}

    def missing(handler: Handler) -> bool:
        if names[broken] not in handler.path:
            return False
        handler.send(404)
        return True

    hub.fault = missing
    with pytest.raises(RemoteMissingError):
        bring(tiny())
    hub.fault = None
    n_left = sum(len(shards[name]) for name in names[broken:])
    assert bring(tiny()).n_fetched_bytes == n_left


def test_a_folder_of_safetensors_comes_without_code(hub: Hub, bring: Pull) -> None:
    """Weights, once, configuration and tokenizer; neither scripts nor formats that run code, nor subfolders."""
    header = b'{"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}'
    weights = len(header).to_bytes(8, "little") + header + bytes(4)
    wanted = {
        "config.json": b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}',
        "model.safetensors": weights,
        "tokenizer.json": b"{}",
        "tokenizer.model": b"spm",
        "merges.txt": b"a b",
        "chat_template.jinja": b"{{ messages }}",
    }
    other = {
        "modeling_evil.py": b"import os",
        "pytorch_model.bin": b"\x80\x04.",
        "training_args.pt": b"\x80\x04.",
        "original/consolidated.safetensors": weights,
        "consolidated.safetensors": weights,
        ".gitattributes": b"",
    }
    hub.files, hub.small = {"o/tiny": {**wanted, **other}}, frozenset({".json", ".txt", ".jinja"})
    pulled = bring(tiny("bf16", format=WeightsFormat.SAFETENSORS))
    folder = Path(pulled.artifact.local_path or "")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
    digests = {file.name: file.digest for file in pulled.files}
    assert digests["config.json"] == git_sha1(wanted["config.json"])
    assert digests["model.safetensors"] == digest(weights)


def test_files_that_are_named_are_taken(hub: Hub, bring: Pull, files: dict[str, bytes]) -> None:
    """A profile's word on size and digest is kept: another file under the name is a fault, before it comes."""
    hub.files = {"o/tiny": files}
    assert bring(tiny("f16", "tiny-F16.gguf")).files[0].name == "tiny-F16.gguf"
    for file in (
        ArtifactFile(name="tiny-Q8_0.gguf", sha256="0" * 64),
        ArtifactFile(name="tiny-Q8_0.gguf", size_bytes=5),
    ):
        artifact = Artifact(format=WeightsFormat.GGUF, quantization="q8_0", repository="o/tiny", files=(file,))
        with pytest.raises(RemoteError, match="is another file by now"):
            bring(artifact)
    with pytest.raises(RemoteMissingError, match=r"has no `gone\.gguf` any more"):
        bring(tiny("q8_0", "gone.gguf"))
    with pytest.raises(RemoteMissingError, match="has no q5_k_m"):
        bring(tiny("q5_k_m"))


def test_a_quantization_that_is_not_one_model_is_told(hub: Hub, bring: Pull, shards: dict[str, bytes]) -> None:
    """Shards that are missing, or two models: nothing is guessed."""
    names = sorted(shards)
    hub.files = {"o/tiny": {name: shards[name] for name in names[:2]}}
    with pytest.raises(RemoteMissingError, match="not all files of q8_0"):
        bring(tiny())
    hub.files = {"o/tiny": {"a-Q8_0.gguf": b"a", "b-Q8_0.gguf": b"b"}}
    with pytest.raises(UsageError, match="has 2 models at q8_0") as caught:
        bring(tiny())
    assert set(caught.value.details) == {"a-Q8_0.gguf", "b-Q8_0.gguf"}


@pytest.mark.parametrize(
    "listed",
    [
        {"path": "../../../../evil.gguf"},
        {"path": "/etc/evil.gguf"},
        {"path": "a/../../evil.gguf"},
        {"path": "a\\..\\evil.gguf"},
        {"path": "evil\n.gguf"},
        {"path": ""},
        {"size": -1, "lfs": None},
        {"lfs": {"oid": "../../../../tmp/evil", "size": 5}},
        {"lfs": {"oid": "/etc/passwd", "size": 5}},
        {"lfs": {"oid": "0" * 63, "size": 5}},
        {"lfs": {"oid": "0" * 64 + "\n", "size": 5}},
        {"lfs": None, "oid": "../evil"},
        {"lfs": None, "oid": None},
        {"lfs": {"oid": "0" * 64, "size": 2**62}},
        {"lfs": {"oid": "0" * 64, "size": None}, "size": None},
    ],
)
def test_a_hostile_list_writes_nowhere(
    hub: Hub, here: Here, bring: Pull, files: dict[str, bytes], *, listed: dict[str, object], tried: Counter[str]
) -> None:
    """Neither a name nor a digest that a hub tells becomes a path outside the cache, or a download without a digest."""
    hub.files, hub.listed = {"o/tiny": {"tiny-Q8_0.gguf": files["tiny-Q8_0.gguf"]}}, listed
    with pytest.raises(LauncherError) as caught:
        bring(tiny())
    tried["hostile list"] += 1
    assert caught.value.help
    assert caught.value.message.isprintable()
    assert hub.asked_for("resolve") == []
    assert not here.cache.exists()


@pytest.mark.parametrize(
    "commit", [None, "", "main", "../../evil", "0" * 39, "0" * 41, "C0FFEE" + "0" * 34, "0" * 40 + "\n"]
)
def test_a_hostile_commit_is_none(
    hub: Hub, bring: Pull, files: dict[str, bytes], *, commit: str, tried: Counter[str]
) -> None:
    """It becomes a folder's name: what is no commit is a fault."""
    hub.files, hub.commit = {"o/tiny": files}, commit
    with pytest.raises(RemoteError, match="does not say which commit"):
        bring(tiny())
    tried["hostile commit"] += 1


def test_a_mirror_without_revisions_will_do(hub: Hub, bring: Pull, files: dict[str, bytes]) -> None:
    """Some serve only the model's own page, which names the commit too."""
    hub.files = {"o/tiny": files}

    def page(handler: Handler) -> bool:
        if "/revision/" in handler.path:
            handler.send(404)
        elif handler.path.endswith("/api/models/o/tiny"):
            handler.send(200, b'{"id": "o/tiny", "sha": "%s"}' % COMMIT.encode())
        else:
            return False
        return True

    hub.fault = page
    assert bring(tiny()).n_fetched_bytes


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("token", ["", "hf_wrong"])
def test_a_closed_repository_says_what_to_do(
    hub: Hub, bring: Pull, files: dict[str, bytes], *, gated: bool, token: str
) -> None:
    """Accept its conditions, set a token: and never which token was sent."""
    hub.files, hub.token, hub.gated = {"o/tiny": files}, SECRET, gated
    with pytest.raises(RemoteAccessError) as caught:
        bring(tiny(), HF_TOKEN=token)
    said = " ".join((caught.value.message, caught.value.help or "", *caught.value.details))
    assert ("is gated" in said) == gated
    assert "HF_TOKEN" in said
    assert not token or token not in said
    assert bring(tiny(), HF_TOKEN=SECRET).n_fetched_bytes


def test_a_file_that_is_closed_alone_is_told_too(hub: Hub, here: Here, bring: Pull, files: dict[str, bytes]) -> None:
    """Hubs list gated repositories to everybody, and refuse their files."""
    hub.files = {"o/tiny": files}

    def closed(handler: Handler) -> bool:
        if "resolve" not in handler.path:
            return False
        handler.send(403, b"", {"X-Error-Code": "GatedRepo"})
        return True

    hub.fault = closed
    with pytest.raises(RemoteAccessError, match="`o/tiny` is gated"):
        bring(tiny())
    assert list((here.cache / "models--o--tiny" / "blobs").glob("*.gguf")) == []


def test_the_token_is_nowhere_on_disk(hub: Hub, here: Here, bring: Pull, files: dict[str, bytes]) -> None:
    """Neither it nor what signs an address is kept, in the cache or in our own folder."""
    hub.files, hub.token = {"o/tiny": files}, SECRET
    with serve(Hub(files=hub.files), "127.0.0.2") as cdn:
        hub.cdn = cdn.url
        bring(tiny(), HF_TOKEN=SECRET)
        assert not any("authorization" in asked.headers for asked in cdn.log)
    for path in [*here.cache.rglob("*"), *here.models.parent.rglob("*")]:
        assert b"secret" not in (path.read_bytes() if path.is_file() else b"")


def test_offline_nothing_is_asked(hub: Hub, bring: Pull) -> None:
    """The user's word."""
    with pytest.raises(RemoteError, match="HF_HUB_OFFLINE"):
        bring(tiny(), HF_HUB_OFFLINE="1")
    assert hub.log == []


def test_room_is_made_sure_of_first(
    hub: Hub, here: Here, bring: Pull, *, shards: dict[str, bytes], free: list[int], tried: Counter[str]
) -> None:
    """For all files together and something beyond; nothing is downloaded otherwise. What is here already counts."""
    hub.files = {"o/tiny": shards}
    total = sum(map(len, shards.values()))
    for free[0] in (0, total - 1, total, total + MIN_MARGIN_BYTES - 1):
        with pytest.raises(DiskFullError, match="3 files") as caught:
            bring(tiny())
        tried["full disk"] += 1
        assert "HF_HUB_CACHE" in (caught.value.help or "")
    assert hub.asked_for("resolve") == []
    assert not here.cache.exists()
    free[0] = total + MIN_MARGIN_BYTES
    bring(tiny())
    free[0] = 0
    assert bring(tiny()).n_fetched_bytes == 0


def test_what_stands_where_a_link_goes_is_replaced_or_told(
    hub: Hub, here: Here, bring: Pull, *, files: dict[str, bytes], tmp_path: Path, tried: Counter[str]
) -> None:
    """A link elsewhere is replaced, not followed; so is a copy; a folder is told."""
    hub.files = {"o/tiny": files}
    path = here.cache / "models--o--tiny" / "snapshots" / COMMIT / "tiny-Q8_0.gguf"
    path.parent.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    bring(tiny())
    assert victim.read_bytes() == b"precious"
    assert path.read_bytes() == files["tiny-Q8_0.gguf"]
    path.unlink()
    path.write_bytes(b"a damaged copy")
    bring(tiny())
    assert path.read_bytes() == files["tiny-Q8_0.gguf"]
    path.unlink()
    path.mkdir()
    with pytest.raises(DownloadError, match="is in the way"):
        bring(tiny())
    tried["planted file"] += 3


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EPERM, DownloadError, "has no symbolic links"),
        (errno.EOPNOTSUPP, DownloadError, "has no symbolic links"),
        (errno.ENOSPC, DiskFullError, "finds no more room"),
        (errno.EROFS, DownloadError, "cannot be kept"),
    ],
)
def test_where_links_cannot_be_made_nothing_comes(
    hub: Hub,
    here: Here,
    bring: Pull,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    *,
    number: int,
    kind: type[LauncherError],
    words: str,
) -> None:
    """A disk from another system has none: that is told before the first byte, not after the last."""
    hub.files = {"o/tiny": files}

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(kind, match=words):
        bring(tiny())
    assert hub.asked_for("resolve") == []
    assert [path for path in here.cache.rglob("*") if not path.is_dir()] == []


def test_what_is_published_broken_is_told(hub: Hub, bring: Pull) -> None:
    """Its digest is right, and it is no model."""
    hub.files = {"o/tiny": {"tiny-Q8_0.gguf": b"GGUF" + b"\xff" * 100}}
    with pytest.raises(MetadataError):
        bring(tiny())


# --- From an address --------------------------------------------------------------------------------------------


def _at(name: str, environ: dict[str, str]) -> Artifact:
    return read_remote(name, environ=environ).profile.artifacts[0]


def test_an_address_with_its_digest_is_brought(hub: Hub, here: Here, bring: Pull, files: dict[str, bytes]) -> None:
    """It comes to a folder that is called after the digest, under its own name."""
    hub.files = {"o/tiny": files}
    content = files["tiny-F16.gguf"]
    name = f"{hub.url}/o/tiny/resolve/main/tiny-F16.gguf#sha256={digest(content).upper()}"
    artifact = _at(name, here.environ)
    pulled = bring(artifact)
    assert Path(pulled.artifact.local_path or "") == here.models / f"sha256-{digest(content)}" / "tiny-F16.gguf"
    assert Path(pulled.artifact.local_path or "").read_bytes() == content
    assert bring(artifact).n_fetched_bytes == 0


def test_room_for_what_an_address_has_is_made_elsewhere(
    hub: Hub, here: Here, bring: Pull, files: dict[str, bytes], free: list[int]
) -> None:
    """Its folder is not the hub's: the variable that is named is the one which moves it."""
    hub.files = {"o/tiny": files}
    content = files["tiny-F16.gguf"]
    artifact = _at(f"{hub.url}/o/tiny/resolve/main/tiny-F16.gguf#sha256={digest(content)}", here.environ)
    with pytest.raises(DiskFullError, match="are to come") as caught:
        bring(artifact)
    assert "$LAUNCHER_CACHE_DIR" in (caught.value.help or "")
    assert "HF_HUB_CACHE" not in (caught.value.help or "")
    free[0] = len(content) + MIN_MARGIN_BYTES
    assert bring(artifact).n_fetched_bytes == len(content)


def test_an_address_of_shards_has_a_digest_for_each(
    hub: Hub, here: Here, bring: Pull, shards: dict[str, bytes]
) -> None:
    """In order, with commas between; another number is a fault."""
    hub.files = {"o/tiny": shards}
    names = sorted(shards)
    url = f"{hub.url}/o/tiny/resolve/main/{names[0]}"
    digests = [digest(shards[name]) for name in names]
    pulled = bring(_at(f"{url}#sha256={','.join(digests)}", here.environ))
    folder = Path(pulled.artifact.local_path or "").parent
    assert [(folder / Path(name).name).read_bytes() for name in names] == [shards[name] for name in names]
    with pytest.raises(UsageError, match="1 sha256 are given for a model in 3 files"):
        _at(f"{url}#sha256={digests[0]}", here.environ)


def test_an_address_keeps_its_query_to_itself(hub: Hub, here: Here, bring: Pull, files: dict[str, bytes]) -> None:
    """It may sign the address: it is asked with, and neither a plan nor the disk has it."""
    hub.files = {"o/tiny": files}
    content = files["tiny-F16.gguf"]
    name = f"{hub.url}/o/tiny/resolve/main/tiny-F16.gguf?signature=sesame#sha256={digest(content)}"
    artifact = _at(name, here.environ)
    assert "sesame" not in repr(artifact)
    hub.log.clear()
    bring(artifact, query="signature=sesame")
    assert all(asked.path.endswith("?signature=sesame") for asked in hub.log)


@pytest.mark.parametrize("bad", ["", "0", "g" * 64, "0" * 63, "0" * 65, "../" * 21 + "0", "0" * 64 + "," + "x"])
def test_a_digest_that_is_none_is_told(hub: Hub, here: Here, *, bad: str, tried: Counter[str]) -> None:
    """Before anything is asked."""
    with pytest.raises(UsageError, match="is no sha256"):
        _at(f"{hub.url}/o/tiny/resolve/main/tiny-F16.gguf#sha256={bad}", here.environ)
    tried["bad digest"] += 1
    assert hub.log == []


def test_an_address_without_a_digest_is_not_downloaded(
    hub: Hub, here: Here, bring: Pull, files: dict[str, bytes]
) -> None:
    """It can be planned for; what an address has may be anything."""
    hub.files = {"o/tiny": files}
    artifact = _at(f"{hub.url}/o/tiny/resolve/main/tiny-F16.gguf", here.environ)
    with pytest.raises(UsageError, match="its sha256 is needed") as caught:
        bring(artifact)
    assert "#sha256=" in (caught.value.help or "")


def test_an_address_that_has_something_else_is_told(hub: Hub, here: Here, bring: Pull, files: dict[str, bytes]) -> None:
    """The digest decides."""
    hub.files = {"o/tiny": files}
    artifact = _at(f"{hub.url}/o/tiny/resolve/main/tiny-F16.gguf#sha256={'0' * 64}", here.environ)
    with pytest.raises(CorruptDownloadError):
        bring(artifact)


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../x.gguf", "a\\b", "x\n.gguf", "x\0.gguf"])
def test_a_name_that_is_none_is_no_file(here: Here, bring: Pull, *, name: str, tried: Counter[str]) -> None:
    """An artifact may have come from a profile, a plan or an address: its names never leave the folder."""
    artifact = Artifact(
        format=WeightsFormat.GGUF,
        quantization="f16",
        url="http://127.0.0.1:9/a.gguf",
        files=(ArtifactFile(name=name, size_bytes=5, sha256="0" * 64),),
    )
    with pytest.raises(UsageError, match="no name for a file"):
        bring(artifact)
    tried["hostile name"] += 1
    assert not here.models.exists()


def test_an_artifact_without_a_source_is_told(bring: Pull) -> None:
    """What nobody publishes cannot be brought."""
    with pytest.raises(UsageError, match="no source"):
        bring(Artifact(format=WeightsFormat.GGUF, quantization="q8_0"))


def test_safetensors_must_be_there() -> None:
    """A repository of another kind is told."""
    with pytest.raises(RemoteMissingError, match=r"no \*\.safetensors"):
        choose_files(tiny("bf16", format=WeightsFormat.SAFETENSORS), ())


# --- Progress ---------------------------------------------------------------------------------------------------


def test_progress_is_of_all_files_together(hub: Hub, here: Here, shards: dict[str, bytes]) -> None:
    """It begins at nothing, ends at the sum, never falls, and names the file of the moment."""
    hub.files = {"o/tiny": shards}
    told: list[Progress] = []
    pull(tiny(), tell=told.append, environ=here.environ)
    counts = [progress.n_bytes for progress in told]
    assert counts == sorted(counts)
    assert {progress.total_bytes for progress in told} == {counts[-1]} == {sum(map(len, shards.values()))}
    assert list(dict.fromkeys(progress.file for progress in told)) == sorted(shards)
    assert {progress.phase for progress in told} == {Phase.DOWNLOADING}


def test_a_rate_is_of_the_last_seconds() -> None:
    """Steady bytes give their rate, a stall lets it fall, a file begun anew begins the measurement anew."""
    meter = Meter()
    rates = [meter.rate(n * 1000, n / 10) for n in range(100)]
    assert rates[0] is None
    assert rates[-1] == pytest.approx(10_000)
    assert meter.rate(99_000, 9.9 + 30) == pytest.approx(0, abs=2500)
    assert meter.rate(0, 50.0) is None
    assert left_s(50, 100, 10.0) == pytest.approx(5.0)
    assert left_s(50, None, 10.0) is None
    assert left_s(50, 100, 0.0) is None


def test_everything_may_fail_at_any_request(
    hub: Hub, bring: Pull, files: dict[str, bytes], tried: Counter[str]
) -> None:
    """Whatever the hub answers to whichever request: a named fault with a way out, and the next pull succeeds."""
    hub.files = {"o/tiny": files}
    answers: list[Callable[[Handler], None]] = [
        lambda handler: handler.send(200, b"<html>"),
        lambda handler: handler.send(200, b"[]"),
        lambda handler: handler.send(200, b"{}"),
        lambda handler: handler.send(200, b"\xff\xfe"),
        lambda handler: handler.send(302, b"", {"Location": "file:///etc/passwd"}),
        lambda handler: handler.send(302, b"", {"Location": handler.path}),
        lambda handler: handler.send(200, b"{}", {"Content-Encoding": "gzip"}),
        lambda handler: handler.send(200, b"x", {"Content-Length": "banana"}),
        lambda handler: handler.send(999),
        lambda handler: handler.send(500),
    ]
    for at in range(3):
        for answer in answers:
            hub.log.clear()

            def fault(handler: Handler, at: int = at, answer: Callable[[Handler], None] = answer) -> bool:
                return len(hub.log) > at and (always(answer))(handler)

            hub.fault = fault
            with pytest.raises(LauncherError) as caught:
                bring(tiny())
            tried["senseless answer"] += 1
            assert caught.value.help
    hub.fault = None
    assert bring(tiny()).n_fetched_bytes


def test_a_file_that_is_gone_is_missing(tmp_path: Path) -> None:
    """A folder that has lost one of its files is told as that, whether anybody knows the file's digest or not."""
    (tmp_path / "model.safetensors").write_bytes(b"x")
    names = ("model.safetensors", "config.json")
    files = tuple(ArtifactFile(name=name, size_bytes=None) for name in names)
    artifact = Artifact(
        format=WeightsFormat.SAFETENSORS, quantization="bf16", local_path=str(tmp_path), files=files, spec=None
    )
    with pytest.raises(WeightsMissingError, match=r"config\.json` cannot be looked at: no such file"):
        find_here(artifact)
    (tmp_path / "config.json").write_bytes(b"{}")
    found = find_here(artifact).files
    assert [(file.name, file.size_bytes, file.digest) for file in found] == [(names[0], 1, None), (names[1], 2, None)]


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("models--o--tiny/snapshots", "not a directory"),
        ("models--o--tiny/refs", "file exists"),
        ("x" * 300, "file name too long"),
    ],
)
def test_what_the_system_refuses_beside_the_bytes_is_named(
    hub: Hub, here: Here, bring: Pull, *, files: dict[str, bytes], folder: str, why: str
) -> None:
    """Room is looked for, and names are given, in folders that may refuse it: the same fault as for the bytes."""
    hub.files = {"o/tiny": files}
    if len(folder) < 255:
        (here.cache / folder).parent.mkdir(parents=True)
        (here.cache / folder).write_bytes(b"")
    more = {"HF_HUB_CACHE": str(here.cache / folder)} if len(folder) > 255 else {}
    with pytest.raises(DownloadError, match=f"cannot be kept in .*: {why}"):
        bring(tiny(), **more)
