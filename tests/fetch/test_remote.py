"""A model on a hub becomes the profile that its files would become here, at a small part of their bytes."""

import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest

from launcher.domain import Provenance, WeightsFormat
from launcher.errors import (
    LauncherError,
    MetadataError,
    RemoteError,
    RemoteMissingError,
    UsageError,
    WeightsMissingError,
)
from launcher.fetch import remote
from launcher.fetch.ranges import BLOCK_BYTES, MAX_REQUEST_BYTES
from launcher.fetch.remote import Reading, read_remote
from launcher.fetch.web import Web
from launcher.metadata.load import read_spec
from tests.fakes.hub import Handler, Hub, always, make_gguf, serve

Q = gguf.GGMLQuantizationType
LADDER = {"Q4_K": Q.Q4_K, "Q5_K": Q.Q5_K, "Q6_K": Q.Q6_K, "Q8_0": Q.Q8_0, "F16": Q.F16}


@pytest.fixture(scope="module")
def ladder() -> dict[str, bytes]:
    """One model at five quantizations, with the odd key in some."""
    keys = {"Q4_K": {"quantize.imatrix.file": "/a/long/path/to/imatrix.dat"}}
    return {f"tiny-{name}.gguf": make_gguf(kind, keys=keys.get(name)) for name, kind in LADDER.items()}


def _read(hub: Hub, name: str = "hf:o/tiny-GGUF", *, single: bool = False) -> Reading:
    return read_remote(name, single=single, environ={"HF_ENDPOINT": hub.url, "HF_HOME": "/nonexistent"})


def _check_against_files(reading: Reading, files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for artifact in reading.profile.artifacts:
        assert artifact.spec == read_spec(folder / artifact.files[0].name)


@pytest.mark.slow
def test_all_quantizations_are_described_as_if_they_were_here(
    hub: Hub, ladder: dict[str, bytes], tmp_path: Path
) -> None:
    """Specs equal those read from the files; one header is read in full, of the others three blocks or less."""
    hub.files = {"o/tiny-GGUF": ladder}
    reading = _read(hub)
    profile = reading.profile
    assert (profile.name, profile.title, profile.asked) == ("tiny", "tiny", "hf:o/tiny-GGUF")
    assert sorted(artifact.quantization for artifact in profile.artifacts) == sorted(map(str.lower, LADDER))
    _check_against_files(reading, ladder, tmp_path)
    for artifact in profile.artifacts:
        (file,) = artifact.files
        assert (artifact.repository, file.size_bytes) == ("o/tiny-GGUF", len(ladder[file.name]))
        assert len(file.sha256 or "") == 64
        assert artifact.spec is not None
        assert artifact.spec.provenance is Provenance.READ
    read = sorted(sum(asked.n_sent for asked in hub.asked_for(name)) for name in ladder)
    assert read[-2] <= 3 * BLOCK_BYTES
    assert read[-1] <= 2_000_000 + MAX_REQUEST_BYTES
    assert reading.n_bytes == hub.n_sent < reading.total_bytes // 20
    assert reading.total_bytes == sum(map(len, ladder.values()))
    assert reading.n_requests == len(hub.log)
    assert reading.left_out == ()


@pytest.mark.parametrize(
    "other",
    [
        {"n_vocab": 50_000},
        {"front": "another name that is longer than the first"},
        {"n_layer": 3},
        {"keys": {"tokenizer.late": "x" * 100_000}},
    ],
    ids=["vocabulary", "front", "layers", "late-key"],
)
def test_a_file_that_is_not_like_the_first_is_read_rightly_too(
    hub: Hub, ladder: dict[str, bytes], tmp_path: Path, other: dict[str, object]
) -> None:
    """Another vocabulary, name or depth: what stands in for the vocabulary never changes what is described."""
    odd = make_gguf(Q.Q8_0, **other)  # type: ignore[arg-type]  # one of the function's own arguments each
    files = {
        "tiny-Q4_K.gguf": ladder["tiny-Q4_K.gguf"],
        "tiny-Q8_0.gguf": odd,
        "tiny-F16.gguf": ladder["tiny-F16.gguf"],
    }
    hub.files = {"o/tiny-GGUF": files}
    reading = _read(hub)
    assert len(reading.profile.artifacts) + len(reading.left_out) == 3
    _check_against_files(reading, files, tmp_path)


def test_the_same_length_with_other_words_changes_nothing_that_counts(hub: Hub, tmp_path: Path) -> None:
    """A vocabulary with as many bytes in other words: tensors and sizes are the file's own."""
    one = make_gguf(Q.Q8_0)
    two = make_gguf(Q.Q4_0).replace(b"token-0", b"TOKEN-1")
    files = {"a-Q8_0.gguf": one, "a-Q4_0.gguf": two}
    hub.files = {"o/tiny-GGUF": files}
    _check_against_files(_read(hub), files, tmp_path)


@pytest.mark.slow
def test_the_real_model_is_described(hub: Hub, real_model: Path) -> None:
    """Gemma 3 270M: the spec of the file, for one fortieth of its bytes."""
    hub.files = {"o/gemma": {"gemma-3-270m-Q4_K_M.gguf": real_model.read_bytes()}}
    reading = _read(hub, "hf:o/gemma")
    (artifact,) = reading.profile.artifacts
    assert artifact.quantization == "q4_k_m"
    assert artifact.spec == read_spec(real_model)
    assert reading.n_bytes * 40 < reading.total_bytes == real_model.stat().st_size
    assert reading.profile.wishes.n_ctx_per_request == 8192


def test_a_split_model_is_joined(hub: Hub, tmp_path: Path) -> None:
    """All shards' tensors, by ranges of each; sizes and digests of each."""
    files = {f"tiny-Q8_0-0000{n + 1}-of-00003.gguf": make_gguf(shard=(n, 3)) for n in range(3)}
    hub.files = {"o/tiny-GGUF": files}
    reading = _read(hub)
    (artifact,) = reading.profile.artifacts
    assert [file.name for file in artifact.files] == sorted(files)
    _check_against_files(reading, files, tmp_path)


def test_a_missing_shard_leaves_its_quantization_out(hub: Hub, ladder: dict[str, bytes]) -> None:
    """The others are described; alone it is a fault."""
    part = {"tiny-Q8_0-00001-of-00003.gguf": make_gguf(shard=(0, 3))}
    hub.files = {"o/tiny-GGUF": {**part, "tiny-F16.gguf": ladder["tiny-F16.gguf"]}, "o/part": part}
    reading = _read(hub)
    assert [artifact.quantization for artifact in reading.profile.artifacts] == ["f16"]
    assert "2 of the 3 files" in reading.left_out[0]
    with pytest.raises(WeightsMissingError, match="2 of the 3 files"):
        _read(hub, "hf:o/part")


def test_shards_of_different_models_are_a_fault(hub: Hub) -> None:
    """What the headers say of their place must agree with the names."""
    hub.files = {
        "o/tiny-GGUF": {
            "tiny-Q8_0-00001-of-00002.gguf": make_gguf(shard=(0, 2)),
            "tiny-Q8_0-00002-of-00002.gguf": make_gguf(shard=(2, 3)),
        }
    }
    with pytest.raises(MetadataError, match="says that it is file 3 of 3"):
        _read(hub)


def test_a_broken_quantization_is_left_out_and_named(hub: Hub, ladder: dict[str, bytes]) -> None:
    """One truncated upload or withdrawn type does not take the others away; where nothing is left it is the fault."""
    broken = b"GGUF" + b"\xff" * 5000
    hub.files = {"o/tiny-GGUF": {**ladder, "tiny-Q2_K.gguf": broken}, "o/broken": {"a-Q2_K.gguf": broken}}
    reading = _read(hub)
    assert len(reading.profile.artifacts) == len(LADDER)
    assert len(reading.left_out) == 1
    assert reading.left_out[0].startswith("tiny-Q2_K.gguf: ")
    with pytest.raises(MetadataError) as caught:
        _read(hub, "hf:o/broken")
    assert caught.value.details == ("in a-Q2_K.gguf",)


def test_what_goes_with_a_model_is_no_quantization_of_it(hub: Hub, ladder: dict[str, bytes]) -> None:
    """A draft model under a plain name is known by its size, which the header tells."""
    draft = make_gguf(Q.F16, n_vocab=2000, n_layer=1)
    hub.files = {"o/tiny-GGUF": {**ladder, "tiny-little-F16.gguf": draft}}
    reading = _read(hub)
    assert len(reading.profile.artifacts) == len(LADDER)
    assert "tiny-little-F16.gguf: not this model" in reading.left_out[0]


def test_one_file_can_be_named(hub: Hub, ladder: dict[str, bytes]) -> None:
    """Then only it is read, and the profile is called so."""
    hub.files = {"o/tiny-GGUF": ladder}
    reading = _read(hub, "hf:o/tiny-GGUF:tiny-Q6_K.gguf")
    assert [artifact.quantization for artifact in reading.profile.artifacts] == ["q6_k"]
    assert reading.profile.asked == "hf:o/tiny-GGUF:tiny-Q6_K.gguf"
    assert len({asked.path for asked in hub.log}) == 2
    with pytest.raises(UsageError, match=r"has no `tiny-Q9\.gguf`") as caught:
        _read(hub, "hf:o/tiny-GGUF:tiny-Q9.gguf")
    assert len(caught.value.details) == len(LADDER)


def test_a_single_one_must_be_named(hub: Hub, ladder: dict[str, bytes]) -> None:
    """To look at a header one quantization has to be meant; the list shows which there are."""
    hub.files = {"o/tiny-GGUF": ladder}
    with pytest.raises(UsageError, match="has 5 of these") as caught:
        _read(hub, single=True)
    assert any("q6_k" in line and "tiny-Q6_K.gguf" in line for line in caught.value.details)
    assert hub.asked_for("resolve") == []
    reading = _read(hub, "hf:o/tiny-GGUF:Q6_k", single=True)
    assert [artifact.quantization for artifact in reading.profile.artifacts] == ["q6_k"]


@pytest.fixture
def folder() -> dict[str, bytes]:
    """A Hugging Face folder in two files, with an index."""
    files: dict[str, bytes] = {
        "config.json": json.dumps(
            {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2}
        ).encode(),
        "README.md": b"# tiny",
    }
    weight_map = {}
    for n in range(2):
        name, tensor = f"model-0000{n + 1}-of-00002.safetensors", f"model.layers.{n}.weight"
        data = np.zeros((1024, 1024), np.float16).tobytes()
        header = json.dumps({tensor: {"dtype": "BF16", "shape": [1024, 1024], "data_offsets": [0, len(data)]}}).encode()
        files[name] = len(header).to_bytes(8, "little") + header + data
        weight_map[tensor] = name
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    return files


def test_a_safetensors_repository_is_described(hub: Hub, folder: dict[str, bytes], tmp_path: Path) -> None:
    """Configuration, index and headers, of each file a block; the spec is that of the folder downloaded."""
    hub.files = {"o/tiny": folder}
    reading = _read(hub, "hf:o/tiny")
    (artifact,) = reading.profile.artifacts
    for name, content in folder.items():
        (tmp_path / name).write_bytes(content)
    assert artifact.spec == read_spec(tmp_path)
    assert (artifact.format, artifact.quantization) == (WeightsFormat.SAFETENSORS, "bf16")
    assert "README.md" not in {file.name for file in artifact.files}
    assert reading.n_bytes < 3 * BLOCK_BYTES
    assert _read(hub, "hf:o/tiny:BF16", single=True).profile == reading.profile
    with pytest.raises(UsageError, match="has no `fp8`: its weights are bf16"):
        _read(hub, "hf:o/tiny:fp8", single=True)


def test_an_index_cannot_lead_out_of_a_repository(hub: Hub, folder: dict[str, bytes]) -> None:
    """A name that the hub does not list is not asked for."""
    folder["model.safetensors.index.json"] = b'{"weight_map": {"a": "../../other/secret.safetensors"}}'
    hub.files = {"o/tiny": folder}
    with pytest.raises(LauncherError, match="is not in `o/tiny`"):
        _read(hub, "hf:o/tiny")
    assert hub.asked_for("secret") == []


def test_a_repository_without_a_model_is_told(hub: Hub) -> None:
    """A data set's files are no weights; a projector alone is no model."""
    hub.files = {"o/none": {"README.md": b"", "data.parquet": b""}}
    with pytest.raises(WeightsMissingError, match="has neither GGUF files nor"):
        _read(hub, "hf:o/none")


def test_too_many_models_are_refused(hub: Hub) -> None:
    """A collection of hundreds of models is not one model."""
    hub.files = {"o/all": {f"{idx}-Q4_0.gguf": b"" for idx in range(101)}}
    with pytest.raises(UsageError, match="has 101 models"):
        _read(hub, "hf:o/all")


def test_an_address_is_read(hub: Hub, ladder: dict[str, bytes], tmp_path: Path) -> None:
    """The quantization comes from its name, the figures from its header, shards from their names."""
    split = {f"part-0000{n + 1}-of-00002.gguf": make_gguf(shard=(n, 2)) for n in range(2)}
    hub.files = {"o/r": {**ladder, **split}}
    base = f"{hub.url}/o/r/resolve/main"
    reading = _read(hub, f"{base}/tiny-Q6_K.gguf?download=true")
    assert (reading.profile.name, reading.profile.artifacts[0].quantization) == ("tiny-q6_k", "q6_k")
    assert reading.profile.asked == f"{base}/tiny-Q6_K.gguf?download=true"
    assert reading.total_bytes == len(ladder["tiny-Q6_K.gguf"])
    _check_against_files(reading, ladder, tmp_path)
    assert _read(hub, f"{hub.url}/o/r/blob/main/tiny-Q6_K.gguf").profile.artifacts == reading.profile.artifacts
    reading = _read(hub, f"{base}/part-00002-of-00002.gguf")
    assert len(reading.profile.artifacts[0].files) == 2
    _check_against_files(reading, split, tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        "http://example.invalid/f.gguf",
        "ftp://example.invalid/f.gguf",
        "https:///f.gguf",
        "https://[/f.gguf",
        "https://user:hunter2@example.invalid/f.gguf",
        "https://example.invalid/f.safetensors",
        "https://example.invalid/f-00001-of-99999.gguf",
        "https://example.invalid:port/f.gguf",
        "://",
    ],
)
def test_an_address_that_must_not_be_read_is_refused(hub: Hub, address: str) -> None:
    """Unprotected, with a password, of no GGUF file, or no address: refused before anything is sent."""
    with pytest.raises(UsageError) as caught:
        _read(hub, address)
    assert "hunter2" not in caught.value.message


def test_an_address_gets_no_token_unless_it_is_the_hubs(hub: Hub, ladder: dict[str, bytes]) -> None:
    """The user's token is for the hub: any other address does not see it."""
    with serve(Hub(files={"o/r": ladder})) as other:
        environ = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret"}
        read_remote(f"{other.url}/o/r/resolve/main/tiny-Q6_K.gguf", environ=environ)
        assert not any("authorization" in asked.headers for asked in other.log)
        hub.files = {"o/r": ladder}
        read_remote(f"{hub.url}/o/r/resolve/main/tiny-Q6_K.gguf", environ=environ)
        assert all(asked.headers["authorization"] == "Bearer hf_secret" for asked in hub.log)


def test_offline_is_kept(hub: Hub) -> None:
    """HF_HUB_OFFLINE sends nothing, and says that it is set."""
    with pytest.raises(RemoteError, match="HF_HUB_OFFLINE is set"):
        read_remote("hf:o/r", environ={"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "1"})
    assert hub.log == []


def test_a_file_that_is_gone_is_told(hub: Hub, ladder: dict[str, bytes]) -> None:
    """Listed but not served: the file is named, not the repository blamed."""
    hub.files = {"o/tiny-GGUF": ladder}

    def gone(handler: Handler) -> bool:
        if "resolve" in handler.path:
            handler.send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return True
        return False

    hub.fault = gone
    with pytest.raises(RemoteMissingError, match=r"tiny-Q6_K\.gguf answered 404"):
        _read(hub)


def test_names_are_quoted(hub: Hub, ladder: dict[str, bytes]) -> None:
    """A file's name is a path on the hub, whatever characters it has."""
    hub.files = {"o/tiny-GGUF": {"a folder/ü #1?x=%2e-Q6_K.gguf": ladder["tiny-Q6_K.gguf"]}}
    (artifact,) = _read(hub).profile.artifacts
    assert artifact.quantization == "q6_k"


@pytest.fixture
def hostile(hub: Hub) -> Iterator[Hub]:
    """A hub that lists one file and serves something else."""
    hub.files = {"o/tiny-GGUF": {"a-Q8_0.gguf": b""}}
    yield hub
    assert hub.n_sent < 64 << 20


@pytest.mark.parametrize(
    "content",
    [b"", b"<!DOCTYPE html>", b"GGUF" + b"\x00" * 60, b"\x80\x04pickle", b"GGUF\x03\x00\x00\x00" + b"\xff" * 100],
)
def test_what_is_no_gguf_is_told(hostile: Hub, content: bytes) -> None:
    """A page, a pickle, noise or nothing under a model's name is a named fault."""
    hostile.files["o/tiny-GGUF"]["a-Q8_0.gguf"] = content
    with pytest.raises(MetadataError):
        _read(hostile)


def test_an_absurd_size_is_no_reason_to_read_on(hostile: Hub) -> None:
    """A server that claims exabytes and serves zeros for ever is left after the first field that is wrong."""
    size = 2**62
    hostile.listed = {"size": size, "lfs": {"oid": "0", "size": size}}
    block = b"GGUF\x03\x00\x00\x00" + bytes(BLOCK_BYTES - 8)

    def endless(handler: Handler) -> bool:
        if "resolve" not in handler.path:
            return False
        first, last = handler.headers["Range"].removeprefix("bytes=").split("-")
        handler.send(206, block[: int(last) + 1 - int(first)], {"Content-Range": f"bytes {first}-{last}/{size}"})
        return True

    hostile.fault = endless
    with pytest.raises(MetadataError, match="does not name an architecture"):
        _read(hostile)
    assert hostile.n_sent < 3 * BLOCK_BYTES


def test_a_hub_that_refuses_everything_is_a_fault(hub: Hub) -> None:
    """Whatever is asked, the answer is one named fault with help."""
    hub.fault = always(lambda handler: handler.send(418))
    with pytest.raises(RemoteError, match="answered 418") as caught:
        _read(hub)
    assert caught.value.help


def _misbehave(draw: random.Random, content_bytes: int) -> Callable[[Handler], None]:
    """Return one of the ways in which a server can be wrong."""
    size = draw.choice([0, 1, content_bytes, content_bytes - 1, 2**63, 2**70])
    first, last = draw.randrange(100_000), draw.randrange(100_000)
    noise = draw.randbytes(draw.choice([0, 1, 1000, 70_000]))
    status = draw.choice([200, 201, 204, 206, 206, 206, 300, 302, 307, 400, 401, 403, 404, 416, 429, 500, 503, 599])
    names = ["Content-Range", "Content-Length", "Location", "ETag", "Link", "Retry-After", "X-Error-Code"]
    values = [
        *(f"bytes {first}-{last}/{size}", f"bytes */{size}", str(size), str(len(noise)), "-1", '"other"', "GatedRepo"),
        *(
            "http://127.0.0.1:9/x",
            "/",
            "http://[",
            '</api/models/o/tiny-GGUF/tree/main>; rel="next"',
            "\xff\xfe",
            "9" * 99,
        ),
    ]
    headers = {name: draw.choice(values) for name in draw.sample(names, draw.randrange(4))}

    def answer(handler: Handler) -> None:
        handler.send(status, noise, headers)
        handler.close_connection = True

    return answer


@pytest.mark.slow
def test_whatever_a_server_does_is_a_plan_or_a_named_fault(
    hub: Hub, ladder: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many answers are wrong, each in its own way: what is described is right, or nothing is; both endings are reached."""
    monkeypatch.setattr(remote, "Web", partial(Web, sleep=lambda _: None))
    hub.files = {"o/tiny-GGUF": ladder}
    for name, content in ladder.items():
        (tmp_path / name).write_bytes(content)
    expected = {name: read_spec(tmp_path / name) for name in ladder}
    n_described = n_faults = 0
    for seed in range(60):
        draw = random.Random(seed)  # noqa: S311  no secret
        behaves = 0.7 + 0.005 * seed

        def fault(handler: Handler, draw: random.Random = draw, behaves: float = behaves) -> bool:
            if draw.random() < behaves:
                return False
            _misbehave(draw, len(ladder["tiny-F16.gguf"]))(handler)
            return True

        hub.fault = fault
        try:
            reading = _read(hub)
        except LauncherError as error:
            assert error.help or error.details  # noqa: PT017  a fault is one of two right endings
            assert error.message.isprintable()  # noqa: PT017
            n_faults += 1
        else:
            assert all(artifact.spec == expected[artifact.files[0].name] for artifact in reading.profile.artifacts)
            n_described += 1
    assert n_described > 5
    assert n_faults > 5
