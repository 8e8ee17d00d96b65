"""Says what of a profile's weights is on this machine.

It must not know how weights are fetched or read.
"""

import re
from pathlib import Path
from typing import Final

from launcher.domain import Artifact, ArtifactFile, Engine, ModelSpec, Profile, WeightsFormat, Wishes
from launcher.errors import UsageError
from launcher.tensor_types import TensorType

_FILE_TYPES: Final = (
    *("f32", "f16", "q4_0", "q4_1", None, None, None, "q8_0", "q5_0", "q5_1", "q2_k", "q3_k_s", "q3_k_m", "q3_k_l"),
    *("q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "iq2_xxs", "iq2_xs", "q2_k_s", "iq3_xs", "iq3_xxs", "iq1_s"),
    *("iq4_nl", "iq3_s", "iq3_m", "iq2_s", "iq2_m", "iq4_xs", "iq1_m", "bf16", None, None, None, "tq1_0", "tq2_0"),
    *("mxfp4", "nvfp4", "q1_0", "q2_0"),
)
"""Quantizations by a GGUF file's `general.file_type` (``enum llama_ftype`` in llama.cpp's ``include/llama.h``, build 11434)."""

_METHODS: Final = {
    "awq": "awq-int",
    "gptq": "gptq-int",
    "auto-round": "int",
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "mxfp4": "mxfp4",
    "modelopt": "fp8",
    "modelopt_fp4": "nvfp4",
    "quark": "fp8",
}
"""Quantizations of safetensors by ``quantization_config.quant_method``; what ends in ``int`` has its bits behind it."""
_DEFAULT_BITS: Final = 4

_ENGINES: Final = {
    WeightsFormat.GGUF: (Engine.LLAMA_SERVER, Engine.LLAMA_CPP_PYTHON),
    WeightsFormat.SAFETENSORS: (Engine.VLLM,),
}
"""What loads a format."""

_SHARD: Final = re.compile(r"-(\d{5})-of-(\d{5})(?=\.[a-z]+$)")
_MAX_SHARDS: Final = 1000


def is_local(artifact: Artifact) -> bool:
    """Return whether the weights are on this machine: at their local path, or in an installed package."""
    if artifact.local_path is not None and Path(artifact.local_path).exists():
        return True
    if artifact.package is None:
        return False
    from importlib.util import find_spec  # noqa: PLC0415  not needed to make a plan

    return find_spec(artifact.package) is not None


def profile_for_weights(path: Path, spec: ModelSpec) -> Profile:
    """Return a profile made up for weights on this machine: a GGUF file, its first shard, or a Hugging Face folder.

    Raises:
        UsageError: its path is no UTF-8, which neither a plan's JSON nor a record can hold.
    """
    path = path.absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        msg = f"the path `{ascii(str(path))[1:-1]}` is no UTF-8"
        raise UsageError(msg, help="rename what is not, or name a link to it: ln -s PATH /path/to/model.gguf") from None
    stem = path.name if path.is_dir() else _SHARD.sub("", path.name).removesuffix(path.suffix)
    artifact = Artifact(
        format=spec.format,
        quantization=name_quantization(spec),
        files=tuple(_file(shard) for shard in _shards(path)),
        local_path=str(path),
        spec=spec,
    )
    return profile_for_artifacts(stem, (artifact,), asked=str(path), source=str(path))


def profile_for_artifacts(
    title: str, artifacts: tuple[Artifact, ...], *, asked: str, source: str = "", urls: tuple[str, ...] = ()
) -> Profile:
    """Return a profile made up for artifacts that have a spec each; ``asked`` is what a command calls them.

    It wishes for what any profile wishes for, but for no more context than the model was trained with.
    """
    name = re.sub(r"[^a-z0-9._-]+", "-", title.lower()).strip(".-_")[:64] or "model"
    spec = next((artifact.spec for artifact in artifacts if artifact.spec is not None), None)
    wishes = Wishes() if spec is None else _wishes(spec)
    formats = {artifact.format for artifact in artifacts}
    engines = tuple(engine for kind in WeightsFormat if kind in formats for engine in _ENGINES[kind])
    return Profile(
        name=name,
        title=title,
        artifacts=artifacts,
        engines=engines,
        wishes=wishes,
        source=source,
        urls=urls,
        asked=asked,
    )


def _wishes(spec: ModelSpec) -> Wishes:
    names = (f"{spec.architecture}.context_length", "max_position_embeddings", "text_config.max_position_embeddings")
    n_ctx_train = next((spec.metadata[name] for name in names if name in spec.metadata), None)
    default = Wishes()
    if isinstance(n_ctx_train, int) and 0 < n_ctx_train < default.n_ctx_per_request:
        return Wishes(n_ctx_per_request=n_ctx_train)
    return default


def _shards(path: Path) -> list[Path]:
    shard = _SHARD.search(path.name)
    if path.is_dir() or shard is None or int(shard[2]) > _MAX_SHARDS:
        return [] if path.is_dir() else [path]
    return [path.with_name(_SHARD.sub(f"-{n:05}-of-{shard[2]}", path.name)) for n in range(1, int(shard[2]) + 1)]


def _file(path: Path) -> ArtifactFile:
    try:
        return ArtifactFile(name=path.name, size_bytes=path.stat().st_size)
    except OSError:
        return ArtifactFile(name=path.name)


def _name_method(spec: ModelSpec) -> str | None:
    """Name the quantization of safetensors as profiles do, by the configuration's own word."""
    method = spec.metadata.get("quantization_config.quant_method")
    if method == "compressed-tensors":
        types = {tensor.type for tensor in spec.tensors}
        if any(tensor.name.endswith("weight_global_scale") for tensor in spec.tensors):
            return "nvfp4"
        by_type = {TensorType.F8_E4M3: "fp8", TensorType.I32: "int4", TensorType.I8: "int8"}
        return next((name for kind, name in by_type.items() if kind in types), None)
    named = _METHODS.get(method.lower()) if isinstance(method, str) else None
    if named is None or not named.endswith("int"):
        return named
    bits = spec.metadata.get("quantization_config.bits")
    return f"{named}{bits if isinstance(bits, int) else _DEFAULT_BITS}"


def name_quantization(spec: ModelSpec) -> str:
    """Name the quantization by the file's own word, or by the type that most of the bytes have."""
    file_type = spec.metadata.get("general.file_type")
    if spec.format is WeightsFormat.GGUF and isinstance(file_type, int) and 0 <= file_type < len(_FILE_TYPES):
        named = _FILE_TYPES[file_type]
        if named is not None:
            return named
    if spec.format is WeightsFormat.SAFETENSORS and (named := _name_method(spec)) is not None:
        return named
    n_bytes: dict[str, int] = {}
    for tensor in spec.tensors:
        kind = tensor.type.lower()
        n_bytes[kind] = n_bytes.get(kind, 0) + tensor.n_bytes
    return max(n_bytes, key=n_bytes.__getitem__) if n_bytes else "unknown"
