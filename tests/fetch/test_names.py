"""Names: what a user means, and which files are one model."""

import pytest

from launcher.errors import UsageError
from launcher.fetch.names import (
    RemoteFile,
    RemoteName,
    group_files,
    parse_name,
    quantization_of,
    select,
    shards_of,
    sibling_url,
    top_files,
)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("hf:o/r", RemoteName(repository="o/r")),
        ("hf:gpt2", RemoteName(repository="gpt2")),
        ("hf:O.o-1/R_r.GGUF:Q4_K_M", RemoteName(repository="O.o-1/R_r.GGUF", selector="Q4_K_M")),
        ("hf:o/r:sub/f.gguf", RemoteName(repository="o/r", selector="sub/f.gguf")),
        ("https://h/f.gguf", RemoteName(url="https://h/f.gguf")),
    ],
)
def test_a_name_means(name: str, meant: RemoteName) -> None:
    """A repository, what to take of it, or an address."""
    assert parse_name(name) == meant


@pytest.mark.parametrize(
    "name", ["hf:", "hf:o/", "hf:/r", "hf:o/r/x", "hf:../r", "hf:o/..", "hf:o/r:", "hf:o r/x", "hf:o/r?x=1"]
)
def test_a_name_that_means_nothing_is_refused(name: str) -> None:
    """What could lead elsewhere on the hub than to a repository is no name."""
    with pytest.raises(UsageError, match="is no repository"):
        parse_name(name)


@pytest.mark.parametrize(
    ("path", "quantization"),
    [
        ("gemma-2-27b-it-Q5_K_M.gguf", "q5_k_m"),
        ("model.Q4_0.gguf", "q4_0"),
        ("Llama-3-8B-Q8_0-iq4_nl.gguf", "iq4_nl"),
        ("x-IQ2_XXS.gguf", "iq2_xxs"),
        ("x-Q6_K_L.gguf", "q6_k_l"),
        ("x-Q4_0_4_8.gguf", "q4_0_4_8"),
        ("x-UD-Q4_K_XL-00001-of-00002.gguf", "ud-q4_k_xl"),
        ("BF16/x-00001-of-00002.gguf", "bf16"),
        ("Q3_K_S/deep/x.gguf", "q3_k_s"),
        ("gpt-oss-20b-mxfp4.gguf", "mxfp4"),
        ("x-fp16.gguf", "f16"),
        ("x-f16-Q2_K.gguf", "q2_k"),
        ("x-TQ1_0.gguf", "tq1_0"),
        ("seq4_0x.gguf", None),
        ("model.gguf", None),
    ],
)
def test_a_quantization_is_read_from_a_file_name(path: str, quantization: str | None) -> None:
    """In lower case, the last word that is one; the folder's where the file's name has none."""
    assert quantization_of(path) == quantization


def _files(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path=path, size_bytes=idx + 1) for idx, path in enumerate(paths)]


def test_shards_are_one_model_and_side_files_none() -> None:
    """Shards of a folder belong together whatever their order; projectors, matrices and heads are no models."""
    groups = group_files(
        _files(
            "README.md",
            "a-Q4_K_M.gguf",
            "big/a-Q8_0-00002-of-00002.gguf",
            "big/a-Q8_0-00001-of-00002.gguf",
            "other/a-Q8_0-00001-of-00002.gguf",
            "mmproj-a-f16.gguf",
            "a.imatrix.gguf",
            "mtp-a-Q8_0.gguf",
            "a-MTP-Q2_K.gguf",
        )
    )
    assert [(group.quantization, [file.path for file in group.files], group.n_shards) for group in groups] == [
        ("q4_k_m", ["a-Q4_K_M.gguf"], 1),
        ("q8_0", ["other/a-Q8_0-00001-of-00002.gguf"], 2),
        ("q8_0", ["big/a-Q8_0-00001-of-00002.gguf", "big/a-Q8_0-00002-of-00002.gguf"], 2),
        ("q2_k", ["a-MTP-Q2_K.gguf"], 1),
    ]


def test_a_user_selects_in_any_case() -> None:
    """By quantization, or by the path of any of its files."""
    groups = group_files(_files("a-Q4_K_M.gguf", "a-F16-00001-of-00002.gguf", "a-F16-00002-of-00002.gguf"))
    assert [group.quantization for group in select(groups, "q4_k_m")] == ["q4_k_m"]
    assert [group.quantization for group in select(groups, "FP16")] == ["f16"]
    assert [group.quantization for group in select(groups, "a-F16-00002-of-00002.gguf")] == ["f16"]
    assert select(groups, "Q5_K_M") == ()


def test_shards_are_named_by_one_of_them() -> None:
    """Any file's name tells the others'; a name that announces a million files is refused."""
    assert shards_of("a-00002-of-00003.gguf") == tuple(f"a-0000{n}-of-00003.gguf" for n in (1, 2, 3))
    assert shards_of("a.gguf") == ("a.gguf",)
    for absurd in ("a-00001-of-99999.gguf", "a-00000-of-00002.gguf", "a-00003-of-00002.gguf"):
        with pytest.raises(UsageError):
            shards_of(absurd)


def test_weights_in_two_forms_are_taken_once() -> None:
    """Mistral's own form is left out where Hugging Face's is beside it, and taken where it is the only one."""

    def taken(*names: str) -> list[str]:
        return list(top_files(RemoteFile(path=name) for name in names))

    both = ("consolidated-00001-of-00002.safetensors", "consolidated.safetensors", "model-1.safetensors", "params.json")
    assert taken(*both, "original/model.safetensors") == ["model-1.safetensors", "params.json"]
    assert taken("consolidated.safetensors", "params.json") == ["consolidated.safetensors", "params.json"]


def test_an_address_is_asked_for_as_it_was_written() -> None:
    """What is beside it is written as any name is; neither takes a query that was not given."""
    url = "https://h/a%20b/x+y%20z.gguf"
    assert sibling_url(url, "x+y z.gguf", "sig=1") == f"{url}?sig=1"
    assert sibling_url(url, "w+ 1%.gguf", "") == "https://h/a%20b/w%2B%201%25.gguf"
