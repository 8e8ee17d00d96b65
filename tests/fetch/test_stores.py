"""What Ollama, LM Studio and the hub's client have on this machine is found and used in place, and never believed."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.domain import Artifact, ArtifactFile, Profile, WeightsFormat
from launcher.errors import LauncherError, ModelStoreError, UsageError, WeightsMissingError
from launcher.fetch import require_weights
from launcher.fetch.stores import Shelf, checked, find, look, mark_found, read_stored, relatives
from launcher.fetch.stores.ollama import blob_name, parse_manifest, parse_tag
from tests.fakes.hub import make_gguf
from tests.fakes.stores import LIST, layer, manifest_of, put_folder, put_manifest, put_repository

WEIGHTS = make_gguf(n_vocab=300)
OTHER = make_gguf(gguf.GGMLQuantizationType.F16, n_vocab=300)
SHARDS = {f"Q8_0/big-{number + 1:05}-of-00002.gguf": make_gguf(n_vocab=300, shard=(number, 2)) for number in range(2)}
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
REPOSITORY = "some/tiny-GGUF"
FILE = "tiny-Q8_0.gguf"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's, without stores."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LAUNCHER_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setattr("launcher.fetch.stores.ollama.SERVICE_MODELS", str(tmp_path / "service"))
    return tmp_path


@pytest.fixture
def ollama(home: Path) -> Path:
    """Ollama's models, with one in it."""
    models = home / ".ollama" / "models"
    put_manifest(models, manifest_of(models, WEIGHTS, template=b"{{ . }}", params=b"{}"), "tiny", "1b")
    return models


def cache_of(home: Path) -> Path:
    """Where the hub's client has its cache."""
    return home / ".cache" / "huggingface" / "hub"


def names(shelf: Shelf) -> list[str]:
    """What can be served, by the names that commands take."""
    return [model.name for model in shelf.models if not model.unusable]


def profile_of(*files: ArtifactFile, quantization: str = "q8_0", repository: str | None = REPOSITORY) -> Profile:
    """A profile with one artifact."""
    artifact = Artifact(format=WeightsFormat.GGUF, quantization=quantization, repository=repository, files=tuple(files))
    return Profile(name="tiny-1b", aliases=("tiny:1b",), artifacts=(artifact,))


# --- Ollama -----------------------------------------------------------------------------------------------------


def test_a_model_of_ollamas_is_found_by_its_name(ollama: Path) -> None:
    """Name, size, quantization and digest are the manifest's; what a server of the bare file leaves out is said."""
    (model,) = look().models
    assert (model.name, model.store, model.quantization) == ("ollama:tiny:1b", "Ollama's store", "q8_0")
    assert model.path == str(ollama / "blobs" / f"sha256-{SHA256}")
    assert (model.size_bytes, model.files[0].sha256) == (len(WEIGHTS), SHA256)
    stored = read_stored("ollama:tiny:1b")
    assert len(stored.notes) == 2
    (artifact,) = stored.profile.artifacts
    assert (artifact.store, artifact.local_path) == ("Ollama's store", model.path)
    assert stored.profile.asked == "ollama:tiny:1b"
    assert require_weights(artifact) == Path(model.path)


@pytest.mark.usefixtures("ollama")
@pytest.mark.parametrize(
    "name",
    ["tiny:1b", "TINY:1B", "library/tiny:1b", "registry.ollama.ai/library/tiny:1b", "ollama.com/library/tiny:1b"],
)
def test_the_names_of_one_model_are_one(name: str) -> None:
    """Registry and namespace may be left out, and case does not count, as with Ollama."""
    assert read_stored(f"ollama:{name}").profile.artifacts[0].files[0].sha256 == SHA256


def test_latest_is_the_tag_that_is_meant(home: Path) -> None:
    """Without a tag it is `latest`, and a model pulled from the hub tells its repository."""
    models = home / ".ollama" / "models"
    put_manifest(models, manifest_of(models, WEIGHTS), "plain", "latest")
    put_manifest(models, manifest_of(models, OTHER, file_type="unknown"), "hf.co", "some", "tiny-GGUF", "F16")
    assert read_stored("ollama:plain").profile.name == "plain"
    assert names(look()) == ["ollama:hf.co/some/tiny-GGUF:F16", "ollama:plain:latest"]
    found = read_stored("ollama:hf.co/some/tiny-GGUF:F16").profile.artifacts[0]
    assert (found.repository, found.quantization) == ("some/tiny-GGUF", "f16")


def test_the_variable_and_the_service_are_looked_at(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own models and the service's are listed together; `$OLLAMA_MODELS` stands for both."""
    service, chosen = home / "service", home / "else where"
    put_manifest(service, manifest_of(service, WEIGHTS), "served", "1b")
    assert names(look()) == ["ollama:served:1b"]
    put_manifest(chosen, manifest_of(chosen, WEIGHTS), "chosen", "1b")
    monkeypatch.setenv("OLLAMA_MODELS", f' "{chosen}" ')
    assert names(look()) == ["ollama:chosen:1b"]


def test_the_newer_layout_goes_first(ollama: Path) -> None:
    """`manifests-v2` has links to blobs and lists of manifests; the one for llama.cpp is taken, and the older name hidden."""
    ours = {**manifest_of(ollama, OTHER, file_type="F16"), "runner": "llamacpp"}
    digest = layer(ollama, "manifest", json.dumps(ours).encode())["digest"]
    theirs = {**manifest_of(ollama, WEIGHTS), "runner": "ollama"}
    listed = {"mediaType": LIST, "manifests": [theirs, {"digest": digest, "runner": "llamacpp"}]}
    blob = layer(ollama, "manifest", json.dumps(listed).encode())["digest"].replace(":", "-")
    link = put_manifest(ollama, b"", "ollama.com", "library", "tiny", "1b", folder="manifests-v2")
    link.unlink()
    link.symlink_to(f"../../../../blobs/{blob}")
    shelf = look()
    assert shelf.faults == ()
    assert names(shelf) == ["ollama:tiny:1b"]
    assert shelf.models[0].quantization == "f16"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layers": []}, "it has no weights"),
        ({"layers": None}, "it has no weights"),
        ("adapter", "it has an adapter"),
        ("tensor; name=x; dtype=F16", "single tensors"),
        ("model", "several blobs"),
    ],
)
def test_what_is_more_than_a_file_is_not_served_as_one(ollama: Path, change: str | dict[str, Any], reason: str) -> None:
    """An adapter makes another model, tensors and several blobs are for Ollama's own engine: that is said."""
    manifest = manifest_of(ollama, WEIGHTS)
    if isinstance(change, dict):
        manifest |= change
    else:
        manifest["layers"].append(layer(ollama, change, b"other"))
    put_manifest(ollama, manifest, "odd", "1b")
    odd = next(model for model in look().models if model.name == "ollama:odd:1b")
    assert reason in odd.unusable
    with pytest.raises(ModelStoreError, match="cannot be served"):
        read_stored("ollama:odd:1b")


def test_a_model_that_runs_elsewhere_is_named_so(ollama: Path) -> None:
    """A cloud model has a manifest and no weights."""
    config = layer(ollama, "config", b'{"remote_host": "https://ollama.com:443"}')
    put_manifest(ollama, {"config": config, "layers": []}, "big", "cloud")
    assert "it runs on https://ollama.com:443, not here" in [model.unusable for model in look().models]


def test_an_unfinished_download_is_never_used(ollama: Path) -> None:
    """Neither `-partial` nor a blob of another size is weights."""
    blob = ollama / "blobs" / f"sha256-{SHA256}"
    partial = blob.with_name(f"{blob.name}-partial")
    blob.rename(partial)
    (model,) = look().models
    assert model.unusable == "it is still being downloaded"
    partial.unlink()
    assert look().models[0].unusable == "its weights are not there"
    blob.write_bytes(WEIGHTS[:-1])
    assert look().models[0].unusable == f"its weights have {len(WEIGHTS) - 1} bytes, and should have {len(WEIGHTS)}"


def test_other_bytes_under_the_digest_are_never_served(ollama: Path) -> None:
    """The digest is compared before the first use, so that a damaged blob of the right size and header is a fault."""
    blob = ollama / "blobs" / f"sha256-{SHA256}"
    blob.write_bytes(WEIGHTS[:-1] + b"x")
    (artifact,) = read_stored("ollama:tiny:1b").profile.artifacts
    with pytest.raises(WeightsMissingError, match="does not have the sha256"):
        require_weights(artifact)


def write_gguf(tmp_path: Path, architecture: str, tensor: str, keys: dict[str, str]) -> bytes:
    """A GGUF file of one tensor."""
    import numpy as np  # noqa: PLC0415  only these tests write one

    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        writer.add_string(key, value)
    writer.add_tensor(tensor, np.zeros((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_a_file_without_a_chat_template_is_told(home: Path) -> None:
    """Ollama keeps the template apart: a server of a file that has none words chats in its own way, and that is said."""
    models = home / ".ollama" / "models"
    put_manifest(models, manifest_of(models, write_gguf(home, "llama", "x", {}), template=b"{{ . }}"), "bare", "1b")
    put_manifest(models, manifest_of(models, WEIGHTS, template=b"{{ . }}"), "tiny", "1b")
    (note,) = read_stored("ollama:bare:1b").notes
    assert "which may be wrong for it" in note
    (note,) = read_stored("ollama:tiny:1b").notes
    assert "the file's own chat template is used" in note


RMS = {"gemma3.attention.layer_norm_rms_epsilon": "there"}


@pytest.mark.parametrize(
    ("architecture", "tensor", "keys", "is_ollamas"),
    [
        ("gptoss", "token_embd.weight", {}, True),
        ("gpt-oss", "token_embd.weight", {}, False),
        ("qwen25vl", "token_embd.weight", {}, True),
        ("mistral3", "v.blk.0.attn_q.weight", {}, True),
        ("qwen3", "mtp.layers.0.weight", {}, True),
        ("gemma3", "token_embd.weight", {}, True),
        ("gemma3", "token_embd.weight", RMS, False),
        ("gemma3", "token_embd.weight", {**RMS, "gemma3.rope.global.freq_base": "x"}, True),
        ("gemma4", "token_embd.weight", {"tokenizer.ggml.model": "llama"}, True),
        ("gemma4", "token_embd.weight", {"tokenizer.ggml.model": "gemma4"}, False),
        ("lfm2", "output_norm.weight", {}, True),
        ("lfm2", "token_embd_norm.weight", {}, False),
        ("qwen3next", "blk.0.ssm_dt", {}, True),
        ("qwen3next", "blk.0.ssm_dt.bias", {}, False),
        ("qwen3vl", "token_embd.weight", {}, True),
    ],
)
def test_files_that_only_ollamas_engine_reads_are_not_served(
    home: Path, architecture: str, tensor: str, keys: dict[str, str], *, is_ollamas: bool
) -> None:
    """By its marks such a file is refused; the same architecture as llama.cpp has it is not."""
    models = home / ".ollama" / "models"
    put_manifest(models, manifest_of(models, write_gguf(home, architecture, tensor, keys)), "own", "1b")
    (model,) = checked(look()).models
    assert ("by Ollama alone" in model.unusable) is is_ollamas
    if is_ollamas:
        with pytest.raises(ModelStoreError, match="by Ollama alone"):
            read_stored("ollama:own:1b")


def test_links_out_of_the_store_are_not_followed(ollama: Path, tmp_path: Path) -> None:
    """Neither a blob nor a manifest may be elsewhere, nor a folder; the models that are whole are still listed."""
    secret = tmp_path / "secret"
    secret.write_bytes(OTHER)
    digest = hashlib.sha256(OTHER).hexdigest()
    manifest = manifest_of(ollama, OTHER)
    (ollama / "blobs" / f"sha256-{digest}").unlink()
    (ollama / "blobs" / f"sha256-{digest}").symlink_to(secret)
    put_manifest(ollama, manifest, "linked", "blob")
    (tmp_path / "manifest").write_text(json.dumps(manifest), encoding="utf-8")
    link = put_manifest(ollama, b"", "linked", "manifest")
    link.unlink()
    link.symlink_to(tmp_path / "manifest")
    (ollama / "manifests" / "registry.ollama.ai" / "away").symlink_to(tmp_path)
    (ollama / "manifests" / "registry.ollama.ai" / "library" / "ring").symlink_to("ring")
    shelf = look()
    assert names(shelf) == ["ollama:tiny:1b"]
    assert len([fault for fault in shelf.faults if "leads out of Ollama's store" in fault]) == 3
    assert any("ring" in fault for fault in shelf.faults)


def test_a_store_that_is_itself_a_link_is_one(ollama: Path, home: Path) -> None:
    """People keep models on another disk, and link the folder."""
    ollama.rename(home / "disk")
    ollama.symlink_to(home / "disk")
    assert names(look()) == ["ollama:tiny:1b"]


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_not_opened(ollama: Path, kind: str) -> None:
    """A pipe would wait for a writer: it is named, and nothing hangs."""
    path = put_manifest(ollama, b"", "odd", "1b")
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    shelf = look()
    assert names(shelf) == ["ollama:tiny:1b"]
    assert any("is no regular file" in fault for fault in shelf.faults)


@pytest.mark.usefixtures("ollama")
def test_a_refusal_of_the_system_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that may not be read is a fault in words, with what to do, and no crash."""

    def deny(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("launcher.fetch.stores.shelf.os.scandir", deny)
    (fault,) = look().faults
    assert "permission denied" in fault
    assert "usermod" in fault


HOSTILE: list[bytes] = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"\xff\xfe{}",
    b"[" * 100_000,
    b'{"layers":' + b"[" * 100_000,
    b'{"x":' * 100_000,
    b'{"manifests":[' * 50_000,
    b'{"layers": {}}',
    b'{"layers": [1]}',
    b'{"layers": [{"digest": 1}]}',
    b'{"layers": [{"mediaType": [], "digest": "x"}]}',
    b'{"config": {"digest": "sha256:' + b"../" * 21 + b'x", "size": 1}}',
    *(
        json.dumps({"layers": [{"mediaType": "m", "digest": digest, "size": 1}]}).encode()
        for digest in (
            "sha256:" + "../" * 21 + "x",
            "sha256-../../../../etc/passwd",
            "sha256:" + "a" * 63,
            "sha256:" + "a" * 63 + "\n",
            "sha256:" + "a" * 64 + "\n",
            "sha256:" + "\uff41" * 64,
            "sha512:" + "a" * 64,
            "/etc/passwd",
            "",
            "\x00" * 71,
        )
    ),
    *(
        json.dumps({"layers": [{"mediaType": "m", "digest": f"sha256:{SHA256}", "size": size}]}).encode()
        for size in (-1, 2**63, 10**400, 1.5, "1", None, True)
    ),
    b" " * (5 << 20),
    json.dumps({"mediaType": LIST, "manifests": []}).encode(),
    json.dumps({"mediaType": LIST, "manifests": [{"mediaType": LIST, "manifests": []}]}).encode(),
    json.dumps({"mediaType": LIST, "manifests": [{"digest": "../x"}]}).encode(),
    json.dumps({"mediaType": LIST, "manifests": [{"digest": "sha256:" + "0" * 64}]}).encode(),
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_manifests_are_one_class_of_fault(ollama: Path, content: bytes) -> None:
    """Each is a fault in words; none hides the model that is whole, and the message can be shown."""
    put_manifest(ollama, content, "bad", "1b")
    shelf = look()
    assert names(shelf) == ["ollama:tiny:1b"]
    told = [*shelf.faults, *(model.unusable for model in shelf.models if model.unusable)]
    assert len(told) == 1
    assert told[0].isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["layers", "config", "manifests", "mediaType", "digest", "size", "runner", "x"]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)
DIGESTS = st.sampled_from([f"sha256:{SHA256}", f"sha256-{SHA256}", "sha256:../x", ""]) | st.text(max_size=80)
LAYERS = st.fixed_dictionaries(
    {"digest": DIGESTS, "size": st.integers(-(2**70), 2**70)},
    optional={"mediaType": st.sampled_from(["application/vnd.ollama.image.model", "x"]) | st.text(max_size=9)},
)
MANIFESTS = st.fixed_dictionaries(
    {"layers": st.lists(LAYERS, max_size=3) | JSON},
    optional={"mediaType": st.sampled_from([LIST, "x"]), "config": LAYERS | JSON, "manifests": JSON},
)


@given(st.binary(max_size=300) | (JSON | MANIFESTS).map(lambda value: json.dumps(value).encode()))
def test_any_manifest_is_read_or_refused(content: bytes) -> None:
    """Whatever a manifest has, it is a value whose digests are digests, or the one fault."""
    try:
        manifest = parse_manifest(content)
    except ModelStoreError as error:
        assert error.message.isprintable()  # noqa: PT017  what is raised is one of two right outcomes
        return
    for each in manifest.layers or ():
        assert set(blob_name(each.digest)) <= set("sha256-0123456789abcdefABCDEF")
        assert each.size >= 0


@given(st.text(max_size=60) | st.text(alphabet="a/:.-_%\\~\x00", max_size=20))
def test_any_name_leads_nowhere_else(name: str) -> None:
    """A name is four plain parts, or wrong usage: none climbs, none is hidden, none is empty."""
    try:
        tag = parse_tag(name)
    except UsageError as error:
        assert error.message.isprintable()  # noqa: PT017  what is raised is one of two right outcomes
        return
    for part in (tag.host, tag.namespace, tag.model, tag.tag):
        assert part
        assert "/" not in part
        assert "\x00" not in part
        assert not part.startswith(".")


# --- The hub's cache --------------------------------------------------------------------------------------------


def test_the_hubs_cache_is_found(home: Path) -> None:
    """Files by revision `main` first; the path is the snapshot's, whose name an engine finds shards by."""
    snapshot = put_repository(cache_of(home), REPOSITORY, {FILE: WEIGHTS, "mmproj-F16.gguf": OTHER, **SHARDS})
    shelf = look()
    assert shelf.faults == ()
    assert sorted(names(shelf)) == [f"hf:{REPOSITORY}:Q8_0/big-00001-of-00002.gguf", f"hf:{REPOSITORY}:{FILE}"]
    split = next(model for model in shelf.models if len(model.files) == 2)
    assert split.path == str(snapshot / "Q8_0" / "big-00001-of-00002.gguf")
    single = next(model for model in shelf.models if len(model.files) == 1)
    assert single.files[0].sha256 == SHA256


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"HF_HOME": "{}/a"}, "a/hub"),
        ({"HF_HUB_CACHE": "{}/b", "HF_HOME": "{}/a"}, "b"),
        ({"HUGGINGFACE_HUB_CACHE": "{}/c"}, "c"),
        ({"XDG_CACHE_HOME": "{}/d"}, "d/huggingface/hub"),
        ({"HF_HOME": "~/e"}, "e/hub"),
        ({"HF_HOME": "$HOME/f"}, "f/hub"),
    ],
)
def test_the_variables_of_the_hubs_client_hold(
    home: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], place: str
) -> None:
    """The cache is where its client has it."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(home))
    put_repository(home / place, REPOSITORY, {FILE: WEIGHTS})
    assert names(look()) == [f"hf:{REPOSITORY}:{FILE}"]


def test_main_is_what_is_asked_for(home: Path) -> None:
    """Of one file at two revisions that of `main` is taken, though another one sorts before it; what only an older has, too."""
    put_repository(cache_of(home), REPOSITORY, {FILE: OTHER, "old-F16.gguf": OTHER}, commit="aaaa", main=False)
    put_repository(cache_of(home), REPOSITORY, {FILE: WEIGHTS}, commit="bbbb")
    shelf = look()
    assert sorted(names(shelf)) == [f"hf:{REPOSITORY}:old-F16.gguf", f"hf:{REPOSITORY}:{FILE}"]
    assert next(model for model in shelf.models if FILE in model.name).files[0].sha256 == SHA256


def test_what_the_hubs_client_has_not_finished_is_never_used(home: Path) -> None:
    """A link to `.incomplete`, a link to nothing, and shards of which one is missing."""
    snapshot = put_repository(cache_of(home), REPOSITORY, {FILE: WEIGHTS, **SHARDS})
    (snapshot / "a-Q8_0.gguf").symlink_to("../../blobs/abc.incomplete")
    (snapshot.parent.parent / "blobs" / "abc.incomplete").write_bytes(WEIGHTS)
    (snapshot / "b-Q8_0.gguf").symlink_to("../../blobs/none")
    (snapshot / "Q8_0" / "big-00002-of-00002.gguf").unlink()
    shelf = look()
    assert names(shelf) == [f"hf:{REPOSITORY}:{FILE}"]
    assert [model.unusable for model in shelf.models if model.unusable] == ["1 of its 2 files are missing"]


def test_links_out_of_the_cache_are_not_followed(home: Path) -> None:
    """A snapshot's file elsewhere is told; a `refs/main` that climbs leads nowhere; odd folders are passed over."""
    snapshot = put_repository(cache_of(home), REPOSITORY, {FILE: WEIGHTS})
    (home / "secret.gguf").write_bytes(OTHER)
    (snapshot / "x-F16.gguf").symlink_to(home / "secret.gguf")
    for name in ("models--", "models--..--x", "models--a--b--c", "models--\n", "datasets--a--b", "x"):
        (cache_of(home) / name).mkdir()
    (snapshot.parent.parent / "refs" / "main").write_bytes(b"../../../..\xff")
    shelf = look()
    assert names(shelf) == [f"hf:{REPOSITORY}:{FILE}"]
    assert sorted("leads out of" in fault or "cannot be shown" in fault for fault in shelf.faults) == [True, True]


def test_a_huge_ref_is_a_fault_of_its_repository_alone(home: Path) -> None:
    """What is too large to be a commit's name is not read on."""
    put_repository(cache_of(home), REPOSITORY, {FILE: WEIGHTS})
    other = put_repository(cache_of(home), "some/other-GGUF", {FILE: WEIGHTS})
    (other.parent.parent / "refs" / "main").write_bytes(b"x" * 100_000)
    shelf = look()
    assert names(shelf) == [f"hf:{REPOSITORY}:{FILE}"]
    assert "has more than 4096 bytes" in shelf.faults[0]


SAFE = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"x"}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (SAFE, ""),
        ({name: SAFE[name] for name in ("tokenizer.json", "model.safetensors")}, "its config.json is missing"),
        ({name: SAFE[name] for name in ("config.json", "model.safetensors")}, "its tokenizer is missing"),
        (
            {**SAFE, "model-00001-of-00003.safetensors": b"x", "model-00003-of-00003.safetensors": b"y"},
            "1 of its 3 files are missing",
        ),
    ],
)
def test_a_folder_of_safetensors_is_whole_or_not_used(home: Path, files: dict[str, bytes], reason: str) -> None:
    """Weights without configuration, tokenizer or a shard are no model."""
    snapshot = put_repository(cache_of(home), "some/model", files)
    (model,) = look().models
    assert (model.format, model.folder, model.unusable) == (WeightsFormat.SAFETENSORS, str(snapshot), reason)


# --- LM Studio --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".lmstudio/models", ".cache/lm-studio/models", "pointed/models", "chosen"])
def test_lm_studios_folder_is_found(home: Path, place: str) -> None:
    """Where it is now, where it was, where its pointer says, and where its user chose."""
    if place == "pointed/models":
        (home / ".lmstudio-home-pointer").write_text(f"{home}/pointed\n", encoding="utf-8")
    if place == "chosen":
        (home / ".lmstudio").mkdir()
        (home / ".lmstudio" / "settings.json").write_text(json.dumps({"downloadsFolder": f"{home}/chosen"}), "utf-8")
    folder = put_folder(home / place, REPOSITORY, {FILE: WEIGHTS, **SHARDS, "mmproj-x.gguf": OTHER})
    (folder / "downloading_y-Q4_K_M.gguf.part").write_bytes(OTHER)
    (folder / "z-Q4_K_M.gguf.part").write_bytes(OTHER)
    shelf = look()
    assert shelf.faults == ()
    assert sorted(names(shelf)) == [
        f"lmstudio:{REPOSITORY}:Q8_0/big-00001-of-00002.gguf",
        f"lmstudio:{REPOSITORY}:{FILE}",
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff",
        b'{"downloadsFolder": 1}',
        b'{"downloadsFolder": "/"}',
        b'{"downloadsFolder": "../x"}',
        b"null",
    ],
)
def test_settings_that_cannot_be_meant_are_none(home: Path, content: bytes) -> None:
    """Broken settings and a pointer to nowhere leave the usual folders."""
    put_folder(home / ".lmstudio" / "models", REPOSITORY, {FILE: WEIGHTS})
    (home / ".lmstudio" / "settings.json").write_bytes(content)
    (home / ".lmstudio-home-pointer").write_bytes(content)
    assert names(look()) == [f"lmstudio:{REPOSITORY}:{FILE}"]


def test_links_out_of_lm_studios_folder_are_not_followed(home: Path) -> None:
    """Neither a file's nor a repository's."""
    folder = put_folder(home / ".lmstudio" / "models", REPOSITORY, {FILE: WEIGHTS})
    put_folder(home / "elsewhere", "a/b", {FILE: OTHER})
    (folder / "x-F16.gguf").symlink_to(home / "elsewhere" / "a" / "b" / FILE)
    (folder.parent / "linked").symlink_to(home / "elsewhere" / "a" / "b")
    (folder.parent.parent / "all").symlink_to(home / "elsewhere")
    shelf = look()
    assert names(shelf) == [f"lmstudio:{REPOSITORY}:{FILE}"]
    assert len(shelf.faults) == 3


def test_a_repository_of_lm_studios_is_a_profile(home: Path) -> None:
    """All quantizations are described; a file can be named, and what is not there is wrong, with what is near."""
    put_folder(home / ".lmstudio" / "models", REPOSITORY, {FILE: WEIGHTS, "tiny-F16.gguf": OTHER})
    profile = read_stored(f"lmstudio:{REPOSITORY}").profile
    assert {artifact.quantization for artifact in profile.artifacts} == {"q8_0", "f16"}
    assert profile.asked == f"lmstudio:{REPOSITORY}"
    assert len(read_stored(f"lmstudio:{REPOSITORY}:{FILE}").profile.artifacts) == 1
    with pytest.raises(WeightsMissingError) as caught:
        read_stored("lmstudio:some/tiny")
    assert f"lmstudio:{REPOSITORY}" in str(caught.value.help)


def test_what_of_a_repository_is_not_taken_is_told(home: Path) -> None:
    """Of two files at one quantization the first is taken, and the other named; so is a broken one, with its reason."""
    third = make_gguf(n_vocab=400)
    files = {FILE: WEIGHTS, "tuned-Q8_0.gguf": third, "bad-F16.gguf": b"GGUF"}
    put_folder(home / ".lmstudio" / "models", REPOSITORY, files)
    put_repository(cache_of(home), REPOSITORY, {FILE: WEIGHTS})
    stored = read_stored(f"lmstudio:{REPOSITORY}")
    assert [artifact.files[0].name for artifact in stored.profile.artifacts] == [FILE]
    assert len(stored.notes) == 2
    assert any("another file at q8_0" in note for note in stored.notes)
    assert any(note.startswith(f"lmstudio:{REPOSITORY}:bad-F16.gguf: ") for note in stored.notes)
    both = read_stored(f"hf:{REPOSITORY}:{FILE}")
    assert (both.store, both.notes) == ("the hub's cache", ())


# --- Finding ----------------------------------------------------------------------------------------------------

Put = Callable[[Path], object]


def put_hub(home: Path) -> None:
    """Have the hub's cache hold the file."""
    put_repository(cache_of(home), REPOSITORY, {FILE: WEIGHTS})


def put_lm_studio(home: Path) -> None:
    """Have LM Studio hold the file."""
    put_folder(home / ".lmstudio" / "models", REPOSITORY, {FILE: WEIGHTS})


def put_ollama(home: Path) -> None:
    """Have Ollama hold the file, from the hub."""
    models = home / ".ollama" / "models"
    put_manifest(models, manifest_of(models, WEIGHTS), "hf.co", *REPOSITORY.split("/"), "Q8_0")


@pytest.mark.parametrize("put", [put_hub, put_lm_studio, put_ollama])
@pytest.mark.parametrize(
    ("file", "is_found"),
    [
        (None, True),
        (ArtifactFile(name=FILE), True),
        (ArtifactFile(name=FILE, size_bytes=len(WEIGHTS)), True),
        (ArtifactFile(name=FILE, size_bytes=len(WEIGHTS) - 1), False),
        (ArtifactFile(name=FILE, size_bytes=len(WEIGHTS), sha256=SHA256), True),
    ],
)
def test_a_profiles_very_file_is_found(home: Path, put: Put, file: ArtifactFile | None, *, is_found: bool) -> None:
    """By repository and name (or quantization, where nobody knows the name), and the size where it is known."""
    put(home)
    profile = mark_found(profile_of(*(() if file is None else (file,))), look())
    assert (profile.artifacts[0].local_path is not None) is is_found
    if is_found:
        assert profile.artifacts[0].spec is not None
        assert require_weights(profile.artifacts[0]).read_bytes() == WEIGHTS


@pytest.mark.parametrize("put", [put_hub, put_ollama])
def test_another_digest_is_another_file(home: Path, put: Put) -> None:
    """Where both sides know the sha256 nothing else counts: neither a name for it, nor one against it."""
    put(home)
    shelf = look()
    wrong = profile_of(ArtifactFile(name=FILE, size_bytes=len(WEIGHTS), sha256="0" * 64))
    assert mark_found(wrong, shelf) == wrong
    renamed = profile_of(ArtifactFile(name="x.gguf", sha256=SHA256), repository="other/name")
    assert mark_found(renamed, shelf).artifacts[0].local_path is not None


def test_a_digest_that_the_store_does_not_know_is_compared_all_the_same(home: Path) -> None:
    """LM Studio knows none: a file of the right name and size is not served where the profile has another digest."""
    put_lm_studio(home)
    right, wrong = (
        mark_found(profile_of(ArtifactFile(name=FILE, size_bytes=len(WEIGHTS), sha256=sha256)), look()).artifacts[0]
        for sha256 in (SHA256, "0" * 64)
    )
    assert require_weights(right).read_bytes() == WEIGHTS
    assert wrong.store == "LM Studio's store"
    with pytest.raises(WeightsMissingError, match="does not have the sha256"):
        require_weights(wrong)


def test_a_digest_of_a_file_in_a_folder_is_compared_too(home: Path) -> None:
    """Of safetensors the profile may know one that the cache, with a copy instead of a link, does not."""
    name = "model.safetensors"
    header = b'{"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}'
    content = len(header).to_bytes(8, "little") + header + bytes(4)
    config = b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'
    folder = put_repository(cache_of(home), REPOSITORY, {**SAFE, "config.json": config, name: content})
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    for sha256, is_right in ((hashlib.sha256(content).hexdigest(), True), ("0" * 64, False)):
        asked = Artifact(
            format=WeightsFormat.SAFETENSORS,
            quantization="f16",
            repository=REPOSITORY,
            files=(ArtifactFile(name=name, sha256=sha256),),
        )
        found = find(asked, look())
        assert found is not None
        if is_right:
            assert require_weights(found) == folder
        else:
            with pytest.raises(WeightsMissingError, match="does not have the sha256"):
                require_weights(found)


@pytest.mark.parametrize("put", [put_hub, put_lm_studio, put_ollama])
def test_another_repository_or_quantization_is_another_file(home: Path, put: Put) -> None:
    """A file of the same name elsewhere is not the one that is asked for."""
    put(home)
    shelf = look()
    for profile in (
        profile_of(ArtifactFile(name=FILE), repository="other/tiny-GGUF"),
        profile_of(ArtifactFile(name=FILE), repository=None),
        profile_of(quantization="q4_k_m"),
    ):
        assert mark_found(profile, shelf) == profile


def test_another_model_under_the_name_is_not_taken(home: Path) -> None:
    """A file whose header is another model's, or none, is left where it is; another store may have the right one."""
    put_repository(cache_of(home), REPOSITORY, {FILE: b"GGUF, or so it says"})
    put_lm_studio(home)
    found = mark_found(profile_of(ArtifactFile(name=FILE)), look()).artifacts[0]
    assert found.store == "LM Studio's store"
    assert found.spec is not None
    other = replace(found.spec, architecture="other")
    asked = replace(profile_of(ArtifactFile(name=FILE)).artifacts[0], spec=other)
    assert find(asked, look()) is None


@pytest.mark.usefixtures("ollama")
def test_ollamas_own_file_of_a_profile_is_named_and_not_taken() -> None:
    """Ollama's `tiny:1b` is another file than the profile's of that name: it is offered by its own name."""
    shelf = look()
    profile = profile_of(ArtifactFile(name=FILE))
    assert mark_found(profile, shelf) == profile
    assert [model.name for model in relatives(profile, shelf)] == ["ollama:tiny:1b"]


def test_a_repository_is_described_by_what_is_here(home: Path) -> None:
    """Without a network `hf:` names mean what any store has of the repository."""
    put_ollama(home)
    put_folder(home / ".lmstudio" / "models", REPOSITORY, {"tiny-F16.gguf": OTHER})
    profile = read_stored(f"hf:{REPOSITORY}").profile
    assert {(artifact.quantization, artifact.store) for artifact in profile.artifacts} == {
        ("f16", "LM Studio's store"),
        ("q8_0", "Ollama's store"),
    }


@pytest.mark.parametrize("name", [b"\xff-Q8_0.gguf", b"\x1b[31m-Q8_0.gguf", "\u202e-Q8_0.gguf".encode()])
def test_names_that_cannot_be_shown_are_left_out(home: Path, name: bytes) -> None:
    """No command could be given such a name, and JSON has no way to write what is no UTF-8: it is told, once, escaped."""
    folder = put_folder(home / ".lmstudio" / "models", REPOSITORY, {FILE: WEIGHTS})
    (folder / os.fsdecode(name)).write_bytes(WEIGHTS)
    shelf = look()
    assert names(shelf) == [f"lmstudio:{REPOSITORY}:{FILE}"]
    (fault,) = shelf.faults
    assert fault.isprintable()


def test_a_link_that_cannot_be_looked_at_hides_nothing(home: Path) -> None:
    """One that is longer than a path may be is told by its own name."""
    snapshot = put_repository(cache_of(home), REPOSITORY, {FILE: WEIGHTS})
    (snapshot / "long-Q4_0.gguf").symlink_to("../../" + "x" * 300)
    shelf = look()
    assert names(shelf) == [f"hf:{REPOSITORY}:{FILE}"]
    assert "file name too long" in shelf.faults[0]


def test_nothing_is_written(home: Path) -> None:
    """Looking and reading leave every store as it was, times of last change included."""
    for put in (put_hub, put_lm_studio, put_ollama):
        put(home)

    def state() -> list[tuple[str, int, int]]:
        paths = sorted(home.rglob("*"))
        return [
            (str(path), path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in paths if "own" not in str(path)
        ]

    before = state()
    shelf = checked(look())
    profile = mark_found(profile_of(ArtifactFile(name=FILE)), shelf)
    require_weights(profile.artifacts[0])
    assert state() == before


@pytest.mark.parametrize(
    "name",
    [
        "ollama:",
        "ollama:../x",
        "ollama:a/b/c/d:e",
        "ollama:x:",
        "ollama: x",
        "lmstudio:",
        "lmstudio:../x",
        "lmstudio:a/b:",
        "ollama:\x1b[2J",
    ],
)
@pytest.mark.usefixtures("home")
def test_names_that_cannot_be_are_wrong_usage(name: str) -> None:
    """They are refused before a store is looked at, in words that can be shown."""
    with pytest.raises(UsageError) as caught:
        read_stored(name)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("name", ["ollama:none:1b", "lmstudio:a/b", "hf:a/b"])
@pytest.mark.usefixtures("home")
def test_names_that_are_not_here_are_a_fault(name: str) -> None:
    """With no store at all nothing is found, and nothing fails otherwise."""
    assert look() == Shelf()
    with pytest.raises(LauncherError, match="no"):
        read_stored(name)
