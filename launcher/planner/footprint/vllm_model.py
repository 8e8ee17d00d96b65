"""What a Hugging Face configuration with its list of tensors means to vLLM.

Reads only keys and tensor names, never a repository's or a model's name. Every formula restates vLLM 0.32.0, whose file is
named where it is used. It does not know devices, contexts or how many GPUs there are: what depends on the number of
tensor-parallel ranks (``tp``) is asked of the values returned here.
"""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final, TypeAlias

from msgspec import Struct

from launcher.domain import MetadataValue, ModelSpec, TensorInfo
from launcher.planner.words import shown
from launcher.tensor_types import TensorType
from launcher.units import ceil_div, pad

MAX_LAYERS: Final = 512
"""Assumed: four times what published models have; bounds what a hostile file can make the planner do."""
VOCAB_PADDING: Final = 64
"""Embeddings are padded to a multiple of this (``vocab_parallel_embedding.py``: ``DEFAULT_VOCAB_PADDING_SIZE``)."""
MXFP4_PADDING: Final = (128, 256)
"""Of the intermediate and the hidden size of MXFP4 experts (``fused_moe/oracle/mxfp4.py``: Marlin and TensorRT-LLM kernels).
Triton's kernels pad less, so the figure errs high by up to 2.4 % there."""
MXFP4_BLOCK: Final = 32
"""Elements that share a scale (``models/gpt_oss.py``: ``OCP_MX_BLOCK_SIZE``)."""
MAX_COUNT: Final = 2**40
"""Assumed: far above any count in a configuration."""

_TEXT: Final = "text_config."
_MAX_DIGITS: Final = 6
"""Of a block's number."""
_NUMBERED: Final = re.compile(rf"((?:^|\.)(?:layers|h|blocks)\.)(\d{{1,{_MAX_DIGITS}}})\.")
"""It splits a name in three: what is before the block's number, it, and what is behind it."""
_EXPERTS: Final = re.compile(r"\.experts\.")
_ENCODER: Final = re.compile(r"(?:^|\.)(?:visual|vision\w*|audio\w*|multi_modal_projector|embed_vision|embed_audio)\.")
_DRAFT: Final = re.compile(r"^(?:model\.)?mtp\.")
_PARAMETER: Final = re.compile(
    r"(?:\.|_)(weight|bias|qweight|qzeros|scales|g_idx|weight_packed|weight_scale|weight_scale_inv|weight_scale_2"
    r"|weight_global_scale|weight_zero_point|weight_shape|input_scale|input_global_scale|k_scale|v_scale|blocks)$"
)
_COLUMN: Final = frozenset(
    (
        *("q_proj", "qkv_proj", "qkv", "c_attn", "query_key_value", "q_b_proj", "kv_b_proj", "sinks"),
        *("gate_proj", "up_proj", "gate_up_proj", "c_fc", "fc1", "w1", "w3", "dense_h_to_4h"),
        *("in_proj_qkv", "in_proj_z", "in_proj_qkvz", "in_proj_ba", "in_proj_a", "in_proj_b", "conv1d", "A_log"),
    )
)
_KEY_VALUE: Final = frozenset(("k_proj", "v_proj"))
_ROW: Final = frozenset(("o_proj", "down_proj", "out_proj", "w2", "dense", "dense_4h_to_h", "c_proj", "fc2", "wo"))
_VOCAB: Final = frozenset(("embed_tokens", "wte", "lm_head", "embed_out"))
_HEAD: Final = frozenset(("lm_head", "embed_out"))
_FLOATS: Final = frozenset((TensorType.F16, TensorType.BF16, TensorType.F32))
_MATRIX: Final = 2
_PERIOD: Final[Mapping[str, int]] = {
    "Gemma2ForCausalLM": 2,
    "GptOssForCausalLM": 2,
    "Gemma3ForCausalLM": 6,
    "Gemma3ForConditionalGeneration": 6,
}
"""Where a configuration has a window but no ``layer_types``: the last layer of this many attends to everything."""


class Split(StrEnum):
    """How a parameter is divided over tensor-parallel ranks (``model_executor/layers/linear.py``)."""

    COLUMN = "column"
    KEY_VALUE = "key-value"
    ROW = "row"
    VOCAB = "vocabulary"
    EXPERTS = "experts"
    WHOLE = "whole"


class Place(StrEnum):
    """Which pipeline stage holds a parameter: the first, the one of its block, or the last."""

    INPUT = "input"
    BLOCK = "block"
    OUTPUT = "output"


class FullKv(Struct, frozen=True, kw_only=True):
    """A layer that caches every token: ``n_head_kv`` heads of ``n_per_head`` elements, K and V together.

    ``latent`` marks the compressed row of multi-head latent attention, which every rank holds whole.
    """

    n_head_kv: int
    n_per_head: int
    latent: bool = False

    def bytes_per_token(self, tp: int, element_bytes: int) -> int:
        """Return what one token takes on each rank; KV heads are replicated where there are fewer than ranks."""
        return (1 if self.latent else max(1, self.n_head_kv // tp)) * self.n_per_head * element_bytes


class SlidingKv(Struct, frozen=True, kw_only=True):
    """A layer that needs the last ``window`` tokens."""

    n_head_kv: int
    n_per_head: int
    window: int

    def bytes_per_token(self, tp: int, element_bytes: int) -> int:
        """Return what one token takes on each rank."""
        return max(1, self.n_head_kv // tp) * self.n_per_head * element_bytes


class StateKv(Struct, frozen=True, kw_only=True):
    """A linear-attention layer with a state of fixed size (``mamba_utils.py``: ``gated_delta_net_state_shape``)."""

    n_conv: int
    n_recurrent: int
    recurrent_bytes: int

    def state_bytes(self, tp: int, element_bytes: int) -> int:
        """Return the bytes of one sequence's state on each rank: convolution in the model's type, recurrence in its own."""
        return self.n_conv // tp * element_bytes + self.n_recurrent // tp * self.recurrent_bytes


LayerKv: TypeAlias = FullKv | SlidingKv | StateKv | None
"""What a layer keeps; ``None`` where it reuses another layer's cache."""


class Parameter(Struct, frozen=True, kw_only=True):
    """Tensors of one place that are divided alike, and the sum of their bytes. ``layer`` counts where the place is a block."""

    n_bytes: int
    place: Place
    layer: int
    split: Split


class VllmModel(Struct, frozen=True, kw_only=True):
    """The dimensions that vLLM's memory depends on. ``layers`` has one entry per block, in order.

    ``dtype_bytes`` is the size of an element of activations. ``n_linear_heads`` are the key and value heads of linear
    attention, ``n_linear`` the width of its projections. ``latent_copy_elements`` counts per layer what latent attention keeps
    beside its projections. ``known`` is false where a key was missing or a mechanism is not modelled; then the figures err
    high where they can.
    """

    architecture: str
    layers: tuple[LayerKv, ...]
    parameters: tuple[Parameter, ...]
    n_ctx_train: int
    n_embd: int
    n_vocab: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_ff_expert: int
    n_expert: int
    n_expert_used: int
    n_linear_heads: tuple[int, int]
    n_linear: int
    quantization: str | None
    quantization_group: int
    dtype_bytes: int
    tied: bool
    rope_bytes: int
    latent_copy_elements: int
    multimodal: bool
    known: bool

    @property
    def n_layer(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    @property
    def is_moe(self) -> bool:
        """Whether tokens are routed to experts."""
        return self.n_expert_used > 0

    def weights_bytes(self, layers: range, tp: int, *, first: bool, last: bool) -> int:
        """Return what one rank holds of the blocks in ``layers``, with the embeddings where it is first or last.

        Tied embeddings are one tensor unless the first and the last stage are different ranks (``models/llama.py``).
        """
        n_bytes = self.rope_bytes + self.latent_copy_elements // tp * self.dtype_bytes * len(layers)
        held: dict[tuple[Split, int], int] = {}  # blocks repeat
        block, at_input = Place.BLOCK, Place.INPUT
        for parameter in self.parameters:
            place, split = parameter.place, parameter.split
            if place is block:
                counts = parameter.layer in layers
            elif place is at_input:
                counts = first or (last and self.tied and split is Split.VOCAB)
            else:
                counts = last
            if counts:
                key = split, parameter.n_bytes
                own = held.get(key)
                if own is None:
                    own = held[key] = self._held_bytes(parameter, tp)
                n_bytes += own
        return n_bytes

    def read_bytes(self, layers: range, tp: int, *, last: bool) -> float:
        """Return what one generated token makes a rank read of its weights: of the experts those it is routed to."""
        share = self.n_expert_used / self.n_expert if self.is_moe and self.n_expert else 1.0
        n_bytes = 0.0
        for parameter in self.parameters:
            head = last and parameter.place is Place.INPUT and self.tied and parameter.split is Split.VOCAB
            in_block = parameter.place is Place.BLOCK and parameter.layer in layers
            if head or in_block or (parameter.place is Place.OUTPUT and last):
                routed = share if parameter.split is Split.EXPERTS else 1.0
                n_bytes += self._held_bytes(parameter, tp) * routed
        return n_bytes

    def _held_bytes(self, parameter: Parameter, tp: int) -> int:
        match parameter.split:
            case Split.WHOLE:
                return parameter.n_bytes
            case Split.KEY_VALUE:
                heads = max(1, self.n_head_kv)
                return ceil_div(parameter.n_bytes * max(1, heads // tp), heads)
            case Split.VOCAB:
                n_vocab = max(1, self.n_vocab)
                return ceil_div(parameter.n_bytes * pad(n_vocab, VOCAB_PADDING), n_vocab * tp)
            case Split.EXPERTS:
                if self.quantization == "mxfp4":
                    return ceil_div(parameter.n_bytes * self._padded_experts(tp), self.n_ff_expert * self.n_embd or 1)
                return ceil_div(parameter.n_bytes, tp)
            case Split.COLUMN | Split.ROW:
                return ceil_div(parameter.n_bytes, tp)

    def _padded_experts(self, tp: int) -> int:
        """Return the elements of one rank's share of one MXFP4 expert matrix: whole blocks of 32, then the kernel's tiles."""
        share = pad(ceil_div(ceil_div(self.n_ff_expert, MXFP4_BLOCK), tp) * MXFP4_BLOCK, MXFP4_PADDING[0])
        return share * pad(self.n_embd, MXFP4_PADDING[1])


class _Config:
    """Typed look-up in a configuration: the top level, then the language model's own part."""

    def __init__(self, metadata: Mapping[str, MetadataValue]) -> None:
        self._metadata = metadata

    def get(self, *keys: str) -> MetadataValue | None:
        for key in keys:
            for name in (key, _TEXT + key):
                value = self._metadata.get(name)
                if value is not None:
                    return value
        return None

    def number(self, *keys: str, default: int = 0) -> int:
        """Return a count; negative, absurd and missing values are the default."""
        value = self.get(*keys)
        if isinstance(value, tuple):
            value = max((item for item in value if isinstance(item, int)), default=None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MAX_COUNT:
            return default
        return int(value)

    def fraction(self, key: str, default: float) -> float:
        value = self.get(key)
        return float(value) if isinstance(value, int | float) and 0 < value <= 1 else default

    def flag(self, key: str) -> bool | None:
        value = self.get(key)
        return value if isinstance(value, bool) else None

    def text(self, *keys: str) -> str:
        value = self.get(*keys)
        return value if isinstance(value, str) else ""


def quantization_method(spec: ModelSpec) -> str | None:
    """Return the ``quant_method`` of a configuration in lower case, ``None`` where the weights are not quantized."""
    config = _Config(spec.metadata)
    return shown(config.text("quantization_config.quant_method", "compression_config.quant_method").lower()) or None


def stored_dtype(spec: ModelSpec) -> str:
    """Return the element type of activations that the configuration asks for, ``bfloat16`` where it says nothing."""
    return _Config(spec.metadata).text("dtype", "torch_dtype").lower().removeprefix("torch.") or "bfloat16"


def read_model(spec: ModelSpec, *, dtype_bytes: int = 2) -> VllmModel:
    """Derive what vLLM's memory depends on from metadata and tensors.

    ``dtype_bytes`` is 4 where the GPU forces float32. Never raises for odd metadata: what is missing is assumed, and
    ``known`` is false.
    """
    config = _Config(spec.metadata)
    n_layer = min(config.number("num_hidden_layers", "n_layer") or _count_layers(spec), MAX_LAYERS)
    n_embd = config.number("hidden_size", "n_embd")
    n_head = config.number("num_attention_heads", "n_head")
    n_vocab = config.number("vocab_size")
    n_ff = config.number("intermediate_size", "n_inner", default=4 * n_embd)
    n_expert_used = config.number("num_experts_per_tok", "top_k_experts", "moe_topk")
    layers, window_known = _layers(spec, config, n_layer, n_embd, n_head)
    tied = config.flag("tie_word_embeddings")
    parameters, names = _parameters(spec.tensors, n_layer, dtype_bytes, drop_head=bool(tied))
    return VllmModel(
        architecture=shown(spec.architecture),
        layers=layers,
        parameters=parameters,
        n_ctx_train=config.number("max_position_embeddings", "n_positions", "max_seq_len"),
        n_embd=n_embd,
        n_vocab=n_vocab,
        n_head=n_head,
        n_head_kv=config.number("num_key_value_heads", default=n_head),
        n_ff=n_ff,
        n_ff_expert=config.number("moe_intermediate_size", default=n_ff) if n_expert_used else 0,
        n_expert=config.number("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
        n_expert_used=n_expert_used,
        n_linear_heads=(config.number("linear_num_key_heads"), config.number("linear_num_value_heads")),
        n_linear=_conv_width(config),
        quantization=quantization_method(spec),
        quantization_group=config.number("quantization_config.group_size", "quantization_config.weight_block_size"),
        dtype_bytes=dtype_bytes,
        tied=not any(_module(name)[0] in _HEAD for name in names) if tied is None else tied,
        rope_bytes=_rope_bytes(spec, config, n_embd, n_head, dtype_bytes),
        latent_copy_elements=_latent_copy(config, n_head),
        multimodal=any(_ENCODER.search(name) for name in names),
        known=window_known and min(n_layer, n_embd, n_head, n_vocab) > 0 and bool(spec.tensors),
    )


def _count_layers(spec: ModelSpec) -> int:
    return max((idx for tensor in spec.tensors if (idx := _layer_of(tensor.name)) is not None), default=-1) + 1


def _layer_of(name: str) -> int | None:
    match = None if _ENCODER.search(name) else _NUMBERED.search(name)
    return int(match[2]) if match else None


def _module(name: str) -> tuple[str, str]:
    """Split a tensor's name into its module's last word and the parameter's: ``q_proj``, ``qweight``."""
    match = _PARAMETER.search(name)
    stem = name[: match.start()] if match else name
    return stem.rpartition(".")[2], match[1] if match else ""


class _Role(Struct, frozen=True):
    """What the names of tensors say that differ in nothing but the block's number."""

    module: str
    kind: str
    place: Place
    in_block: bool
    sized: dict[tuple[int, int], tuple[int, int]]
    """The number of how tensors of a type and shape are divided, and their bytes as they are held; by identity, which is quick."""


def _parameters(
    tensors: Iterable[TensorInfo], n_layer: int, dtype_bytes: int, *, drop_head: bool
) -> tuple[tuple[Parameter, ...], Iterable[str]]:
    """Sum the tensors that are loaded: draft layers are not, nor a head that is tied though the file has it.

    With them come the names that there are, of all blocks the first's.
    """
    sums: dict[tuple[int, int], int] = {}
    """By the block's number and that of the place and the division."""
    numbers: dict[tuple[Place, Split], int] = {}
    roles: dict[tuple[str, ...], _Role | None] = {}
    names: list[str] = []
    role: _Role | None = None
    before = behind = ""
    for tensor in tensors:
        name = tensor.name
        # mostly the same of the next block: seen at once, and looking for the number takes as long as all the rest
        number = name[len(before) : -len(behind)]
        if not (number.isdecimal() and len(number) <= _MAX_DIGITS and name == f"{before}{number}{behind}"):
            parts = tuple(_NUMBERED.split(name, 1))
            key = parts[:2] + parts[3:]
            if key not in roles:
                roles[key] = _role(tensor, drop_head=drop_head)
                names.append(name)
            role = roles[key]
            before, number, behind = "", "0", ""
            if len(parts) > 1:
                before, number, behind = parts[0] + parts[1], parts[2], f".{parts[3]}"
        if role is None:
            continue
        layer = int(number) if role.in_block else 0
        if role.in_block and layer >= n_layer:
            continue
        key_of_size = id(tensor.type), id(tensor.shape)
        known = role.sized.get(key_of_size)
        if known is None:
            wide = tensor.type in _FLOATS and role.kind in {"weight", "bias"}
            n_bytes = tensor.n_elements * dtype_bytes if wide else tensor.n_bytes
            division = role.place, _split(tensor, role.module, role.kind)
            known = role.sized[key_of_size] = numbers.setdefault(division, len(numbers)), n_bytes
        division_number, n_bytes = known
        place = layer, division_number
        sums[place] = sums.get(place, 0) + n_bytes
    divisions = tuple(numbers)
    parameters = tuple(
        Parameter(n_bytes=n_bytes, place=divisions[number][0], layer=layer, split=divisions[number][1])
        for (layer, number), n_bytes in sums.items()
    )
    return parameters, names


def _role(tensor: TensorInfo, *, drop_head: bool) -> _Role | None:
    """Return what a tensor is for; ``None`` where it is not loaded."""
    module, kind = _module(tensor.name)
    is_head = module in _HEAD
    if _DRAFT.match(tensor.name) or (is_head and drop_head):
        return None
    if _layer_of(tensor.name) is not None:
        place = Place.BLOCK
    elif not is_head and (_split(tensor, module, kind) is Split.VOCAB or _ENCODER.search(tensor.name)):
        place = Place.INPUT
    else:
        place = Place.OUTPUT
    return _Role(module=module, kind=kind, place=place, in_block=place is Place.BLOCK, sized={})


def _split(tensor: TensorInfo, module: str, kind: str) -> Split:  # noqa: PLR0911 - one return per kind of division
    if tensor.n_elements == 1:
        return Split.WHOLE
    if _EXPERTS.search(tensor.name):
        return Split.EXPERTS
    if module in _VOCAB:
        return Split.VOCAB
    if module in _ROW:
        # What there is per output, not per input, every rank needs: biases, and scales of one column.
        per_output = kind != "g_idx" and (len(tensor.shape) < _MATRIX or tensor.shape[0] == 1)
        return Split.WHOLE if per_output else Split.ROW
    if kind == "g_idx":
        return Split.WHOLE
    if module in _KEY_VALUE:
        return Split.KEY_VALUE
    return Split.COLUMN if module in _COLUMN else Split.WHOLE


def _head_size(config: _Config, n_embd: int, n_head: int) -> int:
    return config.number("head_dim", default=n_embd // n_head if n_head else 0)


def _rope_bytes(spec: ModelSpec, config: _Config, n_embd: int, n_head: int, dtype_bytes: int) -> int:
    """Return the bytes of the cosine and sine tables, one for each kind of attention (``rotary_embedding/base.py``)."""
    rotary = config.number("qk_rope_head_dim", default=_head_size(config, n_embd, n_head))
    n_rotary = int(rotary * config.fraction("partial_rotary_factor", 1.0))
    n_tables = 2 if spec.architecture.startswith("Gemma3") else 1
    return n_tables * config.number("max_position_embeddings") * n_rotary * dtype_bytes


def _latent_copy(config: _Config, n_head: int) -> int:
    """Return the elements per layer of the absorbed projections (``mla_attention.py``: ``W_UK_T``, ``W_UV``)."""
    per_head = config.number("qk_nope_head_dim") + config.number("v_head_dim")
    return n_head * per_head * config.number("kv_lora_rank")


def _conv_width(config: _Config) -> int:
    keys = config.number("linear_num_key_heads") * config.number("linear_key_head_dim")
    return 2 * keys + config.number("linear_num_value_heads") * config.number("linear_value_head_dim")


def _state(config: _Config) -> StateKv:
    heads = config.number("linear_num_value_heads")
    wide = config.text("mamba_ssm_dtype", "mamba_ssm_cache_dtype").lower() in {"", "float32"}
    return StateKv(
        n_conv=_conv_width(config) * max(0, config.number("linear_conv_kernel_dim") - 1),
        n_recurrent=heads * config.number("linear_value_head_dim") * config.number("linear_key_head_dim"),
        recurrent_bytes=4 if wide else 2,
    )


def _kinds(spec: ModelSpec, config: _Config, n_layer: int) -> tuple[tuple[str, ...], bool]:
    """Return the kind of each layer, and whether the file or the architecture says which."""
    declared = config.get("layer_types")
    if isinstance(declared, tuple) and declared:
        kinds = tuple(str(kind) for kind in declared)
        return (kinds + kinds[-1:] * n_layer)[:n_layer], True
    interval = config.number("full_attention_interval")
    if interval and config.number("linear_num_value_heads"):
        return tuple("full" if idx % interval == interval - 1 else "linear" for idx in range(n_layer)), True
    if not config.number("sliding_window") or config.flag("use_sliding_window") is False:
        return ("full",) * n_layer, True
    period = config.number("sliding_window_pattern", default=_PERIOD.get(spec.architecture, 0))
    if not period:
        return ("full",) * n_layer, False
    return tuple("sliding" if idx % period < period - 1 else "full" for idx in range(n_layer)), True


def _layers(
    spec: ModelSpec, config: _Config, n_layer: int, n_embd: int, n_head: int
) -> tuple[tuple[LayerKv, ...], bool]:
    kinds, known = _kinds(spec, config, n_layer)
    size = _head_size(config, n_embd, n_head)
    n_head_kv = config.number("num_key_value_heads", default=n_head)
    window = config.number("sliding_window")
    latent = config.number("kv_lora_rank")
    if latent:
        full = FullKv(n_head_kv=1, n_per_head=latent + config.number("qk_rope_head_dim"), latent=True)
    else:
        full = FullKv(
            n_head_kv=config.number("num_global_key_value_heads", default=n_head_kv),
            n_per_head=2 * config.number("global_head_dim", default=size),
        )
    sliding = SlidingKv(n_head_kv=n_head_kv, n_per_head=2 * size, window=window)
    n_own = n_layer - min(n_layer, config.number("num_kv_shared_layers"))
    layers: list[LayerKv] = []
    for idx, kind in enumerate(kinds):
        if idx >= n_own:
            layers.append(None)
        elif "linear" in kind:
            layers.append(_state(config))
        else:
            layers.append(sliding if "sliding" in kind and window else full)
    return tuple(layers), known
