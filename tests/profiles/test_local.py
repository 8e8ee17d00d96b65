"""Laws of weights that are already here."""

from pathlib import Path

import pytest
from msgspec import structs

from launcher.domain import Artifact, Engine, ModelSpec, TensorInfo, WeightsFormat
from launcher.errors import UsageError
from launcher.profiles import is_local, profile_for_weights
from launcher.tensor_types import TensorType


def spec(weights_format: WeightsFormat = WeightsFormat.GGUF, **metadata: int) -> ModelSpec:
    """Return a small spec; `__` in a key of the metadata stands for a dot."""
    return ModelSpec(
        architecture="llama",
        format=weights_format,
        metadata={key.replace("__", "."): value for key, value in metadata.items()},
        tensors=(
            TensorInfo(name="norm", shape=(64,), type=TensorType.F32),
            TensorInfo(name="big", shape=(64, 64), type=TensorType.BF16),
        ),
    )


@pytest.mark.parametrize("path", ["model-\udcff.gguf", "folder\udcff/model.gguf"])
def test_a_path_that_is_no_utf8_is_refused(tmp_path: Path, path: str) -> None:
    """Neither JSON nor a record can hold it; it is named fit to be shown."""
    with pytest.raises(UsageError, match=r"\\udcff.* is no UTF-8"):
        profile_for_weights(tmp_path / path, spec())


def test_a_file_becomes_a_profile(tmp_path: Path) -> None:
    """A GGUF file gives a profile of its own name with one local artifact, its size, and the file's own quantization."""
    path = tmp_path / "My Model (v2) Q4_K_M.gguf"
    path.write_bytes(b"12345")
    profile = profile_for_weights(path, spec(general__file_type=15))
    assert profile.name == "my-model-v2-q4_k_m"
    assert profile.title == "My Model (v2) Q4_K_M"
    (artifact,) = profile.artifacts
    assert (artifact.quantization, artifact.local_path) == ("q4_k_m", str(path))
    assert [(file.name, file.size_bytes) for file in artifact.files] == [(path.name, 5)]
    assert artifact.spec is not None
    assert is_local(artifact)


def test_a_first_shard_brings_the_others(tmp_path: Path) -> None:
    """Every shard is named, with its size where it is there."""
    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(b"1")
    profile = profile_for_weights(path, spec())
    assert profile.name == "m"
    sizes = [(file.name, file.size_bytes) for file in profile.artifacts[0].files]
    assert sizes == [("m-00001-of-00002.gguf", 1), ("m-00002-of-00002.gguf", None)]


def test_a_folder_becomes_a_profile(tmp_path: Path) -> None:
    """A Hugging Face folder is one safetensors artifact, named after what most of its bytes are."""
    folder = tmp_path / "Model-7B"
    folder.mkdir()
    profile = profile_for_weights(folder, spec(WeightsFormat.SAFETENSORS, general__file_type=15))
    assert (profile.name, profile.artifacts[0].quantization) == ("model-7b", "bf16")
    assert profile.artifacts[0].local_path == str(folder)


@pytest.mark.parametrize("file_type", [-1, 4, 33, 9999])
def test_an_unknown_file_type_is_no_quantization(tmp_path: Path, file_type: int) -> None:
    """A number that names no quantization falls back to the tensors' own type."""
    profile = profile_for_weights(tmp_path / "x.gguf", spec(general__file_type=file_type))
    assert profile.artifacts[0].quantization == "bf16"


@pytest.mark.parametrize(("n_ctx_train", "wished"), [(2048, 2048), (131072, 8192), (0, 8192)])
def test_no_more_context_is_wished_for_than_was_trained(tmp_path: Path, n_ctx_train: int, wished: int) -> None:
    """The wish is the usual one, or all that the model was trained with if that is less."""
    profile = profile_for_weights(tmp_path / "x.gguf", spec(llama__context_length=n_ctx_train))
    assert profile.wishes.n_ctx_per_request == wished


@pytest.mark.parametrize("name", ["(((", "模型.gguf", "-" * 200 + ".gguf"])
def test_any_file_name_gives_a_usable_name(tmp_path: Path, name: str) -> None:
    """A profile's name is never empty, and never longer than a name may be."""
    assert 0 < len(profile_for_weights(tmp_path / name, spec()).name) <= 64


def test_what_is_elsewhere_is_not_local(tmp_path: Path) -> None:
    """A missing path, a missing package, or a repository alone is not on this machine."""
    base = Artifact(format=WeightsFormat.GGUF, quantization="q8_0", repository="a/b")
    missing = Artifact(format=WeightsFormat.GGUF, quantization="q8_0", local_path=str(tmp_path / "none"))
    package = Artifact(format=WeightsFormat.GGUF, quantization="q8_0", package="no_such_package_here")
    assert not any(is_local(artifact) for artifact in (base, missing, package))
    assert is_local(Artifact(format=WeightsFormat.GGUF, quantization="q8_0", package="msgspec"))


@pytest.mark.parametrize(
    ("method", "bits", "name"),
    [
        ("awq", 4, "awq-int4"),
        ("gptq", 8, "gptq-int8"),
        ("fp8", None, "fp8"),
        ("MXFP4", None, "mxfp4"),
        ("odd", 4, "bf16"),
    ],
)
def test_safetensors_are_named_by_their_configuration(tmp_path: Path, method: str, bits: int | None, name: str) -> None:
    """The quantization has the name that profiles use; an unknown method falls back to the tensors' own type."""
    metadata: dict[str, str | int] = {"quantization_config.quant_method": method}
    if bits is not None:
        metadata["quantization_config.bits"] = bits
    described = structs.replace(spec(WeightsFormat.SAFETENSORS), metadata=metadata)
    assert profile_for_weights(tmp_path, described).artifacts[0].quantization == name


@pytest.mark.parametrize(
    ("suffix", "kind", "name"),
    [
        ("weight", TensorType.F8_E4M3, "fp8"),
        ("weight_packed", TensorType.I32, "int4"),
        ("weight", TensorType.I8, "int8"),
        ("weight_global_scale", TensorType.F32, "nvfp4"),
    ],
)
def test_compressed_tensors_are_named_by_their_types(tmp_path: Path, suffix: str, kind: TensorType, name: str) -> None:
    """One method stands for several quantizations, which the tensors tell apart."""
    plain = spec(WeightsFormat.SAFETENSORS)
    described = structs.replace(
        plain,
        metadata={"quantization_config.quant_method": "compressed-tensors"},
        tensors=(*plain.tensors, TensorInfo(name=f"x.{suffix}", shape=(8, 8), type=kind)),
    )
    assert profile_for_weights(tmp_path, described).artifacts[0].quantization == name


def test_the_format_decides_the_engines(tmp_path: Path) -> None:
    """GGUF is for llama.cpp, safetensors for vLLM."""
    assert profile_for_weights(tmp_path / "x.gguf", spec()).engines == (Engine.LLAMA_SERVER, Engine.LLAMA_CPP_PYTHON)
    assert profile_for_weights(tmp_path, spec(WeightsFormat.SAFETENSORS)).engines == (Engine.VLLM,)
