"""What a model's metadata means to llama.cpp: its dimensions, and what each layer keeps in memory per token.

Reads only keys and tensor names of the weights, never a file or model name. The keys are those of
``src/llama-arch.cpp``; which layers slide is fixed in ``src/models/*.cpp`` for older files (llama.cpp build 11434).
It does not know devices, contexts or bytes per element.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, TypeAlias

from msgspec import Struct

from launcher.domain import MetadataValue, ModelSpec
from launcher.planner.covered import COVERED
from launcher.planner.words import shown

_SWA_PERIOD: Final[Mapping[str, int]] = {
    "afmoe": 4,
    "cohere2": 4,
    "cohere2moe": 4,
    "exaone-moe": 4,
    "exaone4": 4,
    "gemma-embedding": 6,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "laguna": 4,
    "llama4": 4,
    "mellum": 4,
    "modern-bert": 3,
    "muse-glimmer": 4,
    "olmo2": 4,
    "plamo3": 8,
    "smallthinker": 4,
}
"""Layer ``i`` slides if ``i % period < period - 1``: what the engine assumes where a file names no pattern."""

_FULL_FIRST: Final = frozenset({"cohere2moe", "laguna", "modern-bert", "smallthinker"})
"""Here layer ``i`` slides if ``i % period > 0``."""

_PATTERN_IN_FILE: Final = frozenset(
    {"dots3note", "gemma4", "granite_swa", "lfm2", "maple", "mimo2", "spark2_5", "step35"}
)
"""Architectures whose files must name the pattern. All others ignore a window."""

_FIXED_N_SWA: Final[Mapping[str, int]] = {"llama4": 8192, "smallthinker": 4096}
"""The window that the engine takes whatever the file says."""

_EXAONE4_SLIDING_LAYERS: Final = 64
"""Only EXAONE 4 of this depth (32B) slides."""

_DEFAULT_N_SWA: Final[Mapping[str, int]] = {"gemma2": 4096, "exaone4": 4096, "exaone-moe": 128}
"""The window that the engine assumes where a file names none."""

_OWN_CACHES: Final[Mapping[str, int]] = {"gemma3n": 20}
"""The engine lets only that many blocks cache, whatever the file says (``n_layer_kv_from_start``)."""

_INDEXED: Final = frozenset({"deepseek32", "dots3note", "glm-dsa", "glm5-next", "hy_v4"})
"""Latent attention to the tokens that an indexer chooses."""
POOLED_PARTS: Final = 3
"""Of what an indexer of pools caches for a token: its key, its gate, and the key of the pool that it is the last of."""
_INDEXED_BLOCKS: Final = frozenset({"minimax-m3"})
"""Attention to the blocks of tokens that an indexer chooses, behind the leading blocks without experts."""
_ALL_INDEXED_BELOW: Final = 1 << 20
"""Files of GLM 5 that were trained for less context have an indexer in every block."""

_COMPRESSED: Final = frozenset({"deepseek4"})
"""Attention to the last tokens, and to rows that each stand for several of those before."""
OVERLAPPING_RATIO: Final = 4
"""Of so many tokens a row: then it also takes in as many before them, and an indexer chooses among the rows."""

_CACHES_NOTHING: Final = frozenset({"deci"})
"""Layers without K have a cache of no width, which grows to the widest V without flash attention."""

_BOTH: Final = frozenset({"falcon-h1"})
ENCODERS: Final = frozenset(
    (
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
    )
)
"""They embed texts: they put out no logits."""
ENCODER_DECODERS: Final = frozenset({"t5"})
"""They decode with attention to what they encoded before."""
_CACHELESS: Final = ENCODERS | {"dream", "llada", "llada-moe", "rnd1"}
"""Encoders and diffusion models: tokens attend to all others of their batch (``create_memory`` returns nothing)."""
_LOOPING: Final = frozenset({"nanbeige"})
"""Their files may ask for several rounds through all blocks."""
_LINEAR: Final = frozenset({"minimax-01"})
"""Linear attention keeps a matrix per head, in the layers that the file's keys say."""
_FULL_INTERVAL: Final = 8
"""Where they say nothing, each such layer attends in full."""

_SECTIONED: Final = frozenset({"qwen2vl", "paddleocr", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen4exp"})
"""Always rotate by four positions per token (``llama_model_rope_type``); others where the file has sections."""
_N_SECTIONS: Final = 4

MAX_LAYERS: Final = 512
"""The engine refuses more (``LLAMA_MAX_LAYERS``); it also bounds what a hostile file can make the planner do."""

MAX_COUNT: Final = 2**40
"""Assumed: far above any count that a model has."""

_STATE_NAME: Final = re.compile(r"\.(?:ssm_|shortconv|time_mix_)")
_LAYER_NAME: Final = re.compile(r"(?:enc\.|dec\.)?blk\.(\d{1,9})\.")
_EXPERT_NAME: Final = re.compile(r"blk\.\d+\.ffn_(?:up|down|gate|gate_up)_(?:ch)?exps")


class FullAttention(Struct, frozen=True, kw_only=True):
    """A layer that caches K and V of every token: ``n_embd_k`` and ``n_embd_v`` elements per token."""

    n_embd_k: int
    n_embd_v: int


class SlidingAttention(Struct, frozen=True, kw_only=True):
    """A layer that needs only the last ``n_swa`` tokens."""

    n_embd_k: int
    n_embd_v: int
    n_swa: int


class RecurrentState(Struct, frozen=True, kw_only=True):
    """A layer that keeps f32 values per sequence, however long it is: a convolution's tail, then the state proper."""

    n_conv: int
    n_state: int

    @property
    def n_elements(self) -> int:
        """Values per sequence."""
        return self.n_conv + self.n_state


class AttentionAndState(Struct, frozen=True, kw_only=True):
    """A layer that attends and keeps a state side by side (Falcon-H1)."""

    attention: FullAttention
    state: RecurrentState


class IndexedAttention(Struct, frozen=True, kw_only=True):
    """A layer that caches the keys of an indexer too, ``n_index`` elements per token, and ``n_index_v`` never used.

    Latent attention has no V.
    """

    n_embd_k: int
    n_embd_v: int = 0
    n_index: int
    n_index_v: int = 0


class CompressedAttention(Struct, frozen=True, kw_only=True):
    """A layer that caches K of the last ``n_swa`` tokens, and of all others one row for ``ratio`` of them (DeepSeek V4).

    Without a ``ratio`` it only slides. ``n_index`` elements more are cached per such row where an indexer chooses among
    the rows. Tokens that do not fill a row yet are kept in ``n_state`` f32 values per sequence. There is no V.
    """

    n_embd_k: int
    n_swa: int
    ratio: int
    n_index: int
    n_state: int


class NoCache(Struct, frozen=True, kw_only=True):
    """A layer that keeps nothing: it reuses another layer's cache, or attends to nothing."""


LayerCache: TypeAlias = (
    FullAttention
    | SlidingAttention
    | RecurrentState
    | AttentionAndState
    | IndexedAttention
    | CompressedAttention
    | NoCache
)


class Heads(Struct, frozen=True, kw_only=True):
    """The attention heads of one layer; ``head_k`` and ``head_v`` are elements per head."""

    n_head: int
    n_head_kv: int
    head_k: int
    head_v: int


class Architecture(Struct, frozen=True, kw_only=True, cache_hash=True):
    """The dimensions that memory and speed depend on. ``layers`` and ``heads`` have one entry per block, in order.

    ``sliding`` tells which blocks slide, the last ``n_layer_shared`` read the cache of a block before them. The last
    ``n_layer_nextn`` blocks predict tokens ahead: they count as layers where layers are dealt out, and the engine
    neither loads nor computes them.
    All blocks are computed ``n_loop`` times, each time with caches of their own: then ``layers``, ``heads`` and ``sliding``
    have an entry for each time. A ``cacheless`` model keeps nothing from one batch to the next.
    ``numbers`` are the architecture's own scalar keys, without their prefix; ``n_position`` counts the positions that
    a token has (4 with multi-section rotation); ``n_ctx_short`` is the context that the rotation was trained for.

    ``n_head``, ``n_ff`` are the largest of any layer; ``n_ff_active`` counts the columns of all experts that one
    token uses. ``known`` is false where a key that this release understands was missing or an unknown mechanism
    was found; then every figure that follows errs high.
    """

    name: str
    layers: tuple[LayerCache, ...]
    heads: tuple[Heads, ...]
    sliding: tuple[bool, ...]
    n_layer_shared: int
    n_layer_nextn: int
    n_loop: int
    cacheless: bool
    numbers: tuple[tuple[str, float], ...]
    n_ctx_train: int
    n_ctx_short: int
    n_embd: int
    n_vocab: int
    n_head: int
    n_ff: int
    n_ff_active: int
    n_expert: int
    n_expert_used: int
    n_position: int
    known: bool

    @property
    def n_layer(self) -> int:
        """Number of layers: all blocks, counted once for each loop; the output layer is not one of them."""
        return len(self.layers)

    @property
    def n_block(self) -> int:
        """Number of blocks that have weights of their own."""
        return self.n_layer // self.n_loop

    @property
    def n_trunk(self) -> int:
        """Number of layers that are computed: all but those that predict ahead."""
        return self.n_layer - self.n_layer_nextn

    @property
    def is_latent(self) -> bool:
        """Whether one compressed row per token serves as K and V (multi-head latent attention)."""
        return any(
            isinstance(layer, FullAttention | IndexedAttention) and layer.n_embd_k > 0 and layer.n_embd_v == 0
            for layer in self.layers
        )

    @property
    def is_moe(self) -> bool:
        """Whether the model routes tokens to experts."""
        return self.n_expert > 0


@lru_cache(maxsize=8192)  # the artifacts of a model share their names
def layer_of(tensor_name: str) -> int | None:
    """Return the block that a tensor belongs to, or ``None`` for the embedding and output tensors."""
    match = _LAYER_NAME.match(tensor_name)
    return int(match[1]) if match else None


def is_expert(tensor_name: str) -> bool:
    """Tell whether a tensor holds routed experts: what llama-server's ``--n-cpu-moe`` keeps on the host."""
    return _EXPERT_NAME.match(tensor_name) is not None


def _count(value: MetadataValue | None, default: int) -> int:
    """Return a value as a count; what is none (negative, absurd, not a number, a text) is as good as missing."""
    return int(value) if isinstance(value, int | float) and 0 <= value < MAX_COUNT else default


class _Keys:
    """Typed look-up of ``<architecture>.<key>`` in a metadata mapping."""

    def __init__(self, spec: ModelSpec) -> None:
        self._metadata = spec.metadata
        self._prefix = spec.architecture

    def get(self, key: str) -> MetadataValue | None:
        return self._metadata.get(f"{self._prefix}.{key}")

    def numbers(self) -> tuple[tuple[str, float], ...]:
        """Return all scalar numbers under the architecture's prefix."""
        start = f"{self._prefix}."
        return tuple(
            (key.removeprefix(start), float(value))
            for key, value in self._metadata.items()
            if key.startswith(start) and isinstance(value, int | float) and -MAX_COUNT < value < MAX_COUNT
        )

    def number(self, key: str, default: int = 0) -> int:
        """Return a count, of an array the largest."""
        value = self.get(key)
        if isinstance(value, tuple):
            return max((_count(item, default) for item in value), default=default)
        return _count(value, default)

    def per_layer(self, key: str, n_layer: int, default: int = 0) -> tuple[int, ...]:
        """Return one number per layer: the file has one for all, or an array."""
        value = self.get(key)
        if isinstance(value, tuple) and value:
            items = tuple(_count(item, default) for item in value)
            return (items + items[-1:] * n_layer)[:n_layer]
        return (self.number(key, default),) * n_layer


def count_nextn(spec: ModelSpec, n_layer: int) -> int:
    """Return how many of the last blocks only predict tokens ahead: weights that llama-server skips by default."""
    value = spec.metadata.get(f"{spec.architecture}.nextn_predict_layers")
    return min(n_layer, 0 if isinstance(value, tuple) else _count(value, 0))


def _sliding_layers(spec: ModelSpec, keys: _Keys, n_layer: int, n_nextn: int) -> tuple[bool, ...]:
    """Return which layers slide (``load_swa_pattern``)."""
    name = spec.architecture
    none = (False,) * n_layer
    if name not in _SWA_PERIOD and name not in _PATTERN_IN_FILE:
        return (name in _COMPRESSED,) * n_layer
    if name == "exaone4" and n_layer - n_nextn != _EXAONE4_SLIDING_LAYERS:
        return none
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, tuple) and pattern:
        flags = tuple(bool(item) for item in pattern)
        return (flags * (n_layer // len(flags) + 1))[:n_layer]
    period = int(pattern) if isinstance(pattern, int) else _SWA_PERIOD.get(name)
    if period is None:
        return none
    if name in _FULL_FIRST:
        return tuple(period == 0 or idx % period > 0 for idx in range(n_layer))
    return tuple(period == 0 or idx % period < period - 1 for idx in range(n_layer))


def _window(spec: ModelSpec, keys: _Keys) -> int:
    """Return the tokens that a sliding layer sees; 0 where the file switches windows off."""
    name = spec.architecture
    in_file = keys.number("attention.sliding_window", _DEFAULT_N_SWA.get(name, -1))
    if name in _FIXED_N_SWA:
        fixed = _FIXED_N_SWA[name]
        needs_key = name == "smallthinker"
        return 0 if in_file == 0 or (needs_key and in_file < 0) else fixed
    return max(0, in_file)


def _recurrent_layers(spec: ModelSpec, keys: _Keys, n_layer: int) -> tuple[bool, ...]:
    """Return which layers keep a state: those whose block has a state-space, convolution or time-mix tensor.

    Linear attention has no such tensor; its layers are told by keys.
    """
    if spec.architecture in _LINEAR:
        named = keys.get("attention.recurrent_layers")
        if isinstance(named, tuple) and named:
            return tuple(flag != 0 for flag in keys.per_layer("attention.recurrent_layers", n_layer))
        interval = max(1, keys.number("full_attention_interval", _FULL_INTERVAL))
        return tuple((idx + 1) % interval != 0 for idx in range(n_layer))
    recurrent = [False] * n_layer
    for tensor in spec.tensors:
        idx = layer_of(tensor.name)
        if idx is not None and idx < n_layer and _STATE_NAME.search(tensor.name):
            recurrent[idx] = True
    return tuple(recurrent)


def _recurrent_state(spec: ModelSpec, keys: _Keys, n_embd: int, heads: tuple[Heads, ...]) -> RecurrentState:
    """State per sequence of every kind (``llama_hparams::n_embd_r`` and ``n_embd_s``)."""
    if spec.architecture in _LINEAR and heads:
        return RecurrentState(n_conv=0, n_state=heads[0].head_k ** 2 * heads[0].n_head)
    n_head = max((head.n_head for head in heads), default=0)
    d_conv, d_inner = keys.number("ssm.conv_kernel"), keys.number("ssm.inner_size")
    if head := keys.number("wkv.head_size"):
        return RecurrentState(n_conv=keys.number("token_shift_count", 2) * n_embd, n_state=n_embd * head)
    if n_cache := keys.number("shortconv.l_cache"):
        return RecurrentState(n_conv=n_embd * (n_cache - 1), n_state=0)
    if head := keys.number("kda.head_dim"):
        n_conv = 3 * (d_conv - 1 if d_conv else 3) * n_head * head
        return RecurrentState(n_conv=n_conv, n_state=head * head * n_head)
    d_state, n_group = keys.number("ssm.state_size"), keys.number("ssm.group_count")
    n_conv = max(d_conv - 1, 0) * (d_inner + 2 * n_group * d_state)
    return RecurrentState(n_conv=n_conv, n_state=d_state * d_inner)


def _heads(keys: _Keys, n_layer: int, n_embd: int, sliding: tuple[bool, ...]) -> tuple[Heads, ...]:
    """Attention heads by layer; ``head_count_kv`` defaults to ``head_count``, sliding layers may have their own."""
    n_head = keys.per_layer("attention.head_count", n_layer)
    n_head_kv = keys.per_layer("attention.head_count_kv", n_layer)
    if keys.get("attention.head_count_kv") is None:
        n_head_kv = n_head
    most_heads = keys.number("attention.head_count")
    head_default = n_embd // most_heads if most_heads else 0
    head_k, head_v = (keys.number(f"attention.{part}_length", head_default) for part in ("key", "value"))
    head_k_swa = keys.number("attention.key_length_swa", head_k)
    head_v_swa = keys.number("attention.value_length_swa", head_v)
    return tuple(
        Heads(
            n_head=n_head[idx],
            n_head_kv=n_head_kv[idx],
            head_k=head_k_swa if sliding[idx] else head_k,
            head_v=head_v_swa if sliding[idx] else head_v,
        )
        for idx in range(n_layer)
    )


def _count_shared(spec: ModelSpec, keys: _Keys, n_layer: int) -> int:
    """Return how many of the last layers read another's cache."""
    if spec.architecture in _OWN_CACHES:
        return max(0, n_layer - _OWN_CACHES[spec.architecture])
    return min(n_layer, keys.number("attention.shared_kv_layers"))


def _indexed_layers(spec: ModelSpec, keys: _Keys, n_layer: int) -> tuple[bool, ...]:
    """Return which layers choose tokens by an indexer of their own (``is_indexer_full``); others reuse its choice."""
    if spec.architecture in _INDEXED_BLOCKS:
        return tuple(idx >= keys.number("leading_dense_block_count") for idx in range(n_layer))
    if spec.architecture not in _INDEXED:
        return (False,) * n_layer
    if spec.architecture == "hy_v4" and not keys.number("attention.indexer.top_k"):
        return (False,) * n_layer
    kinds = keys.get("attention.indexer.types")
    if isinstance(kinds, tuple) and kinds:
        return tuple(kind != 0 for kind in keys.per_layer("attention.indexer.types", n_layer))
    if spec.architecture in {"deepseek32", "glm5-next"} or keys.number("context_length") < _ALL_INDEXED_BELOW:
        return (True,) * n_layer
    return tuple(idx < 2 or (idx - 2) % 4 == 0 for idx in range(n_layer))  # noqa: PLR2004 - GLM 5.2's fixed pattern


def _indexed_cache(spec: ModelSpec, keys: _Keys, head: Heads) -> IndexedAttention:
    n_embd_k, n_index = head.head_k * head.n_head_kv, keys.number("attention.indexer.key_length")
    if keys.number("attention.indexer.kpool"):
        n_index *= POOLED_PARTS
    if spec.architecture not in _INDEXED_BLOCKS:
        return IndexedAttention(n_embd_k=n_embd_k, n_index=n_index)
    n_embd_v = head.head_v * head.n_head_kv
    return IndexedAttention(n_embd_k=n_embd_k, n_embd_v=n_embd_v, n_index=n_index, n_index_v=head.head_v)


def _compressed_cache(keys: _Keys, head: Heads, ratio: int, *, n_swa: int, keeps_state: bool) -> CompressedAttention:
    """``llama_kv_cache_dsv4``: an overlapping row needs twice the tokens, each with two halves."""
    n_index = keys.number("attention.indexer.key_length") if ratio == OVERLAPPING_RATIO else 0
    n_kept, n_values = (2 * ratio, 2 * (head.head_k + n_index)) if n_index else (ratio, head.head_k)
    return CompressedAttention(
        n_embd_k=head.head_k * head.n_head_kv,
        n_swa=n_swa,
        ratio=ratio,
        n_index=n_index,
        n_state=2 * n_kept * n_values if keeps_state else 0,  # a value and a score of each
    )


def _caches(
    spec: ModelSpec, keys: _Keys, heads: tuple[Heads, ...], sliding: tuple[bool, ...], *, n_swa: int, n_embd: int
) -> tuple[LayerCache, ...]:
    n_layer = len(heads)
    if spec.architecture in _CACHELESS:
        return (NoCache(),) * n_layer
    n_trunk = n_layer - count_nextn(spec, n_layer)
    # here the engine's filter lets a block that predicts ahead have a cache, unless its length says that it has experts
    in_hybrid, n_ff = spec.architecture.startswith("nemotron_h"), keys.per_layer("feed_forward_length", n_layer)
    recurrent = _recurrent_layers(spec, keys, n_layer)
    state = _recurrent_state(spec, keys, n_embd, heads)
    n_shared = _count_shared(spec, keys, n_layer)
    # With the *_length_mla keys the file caches one compressed row for all heads, and no V (deepseek2).
    latent = keys.number("attention.key_length_mla") > 0
    indexed = _indexed_layers(spec, keys, n_layer)
    if spec.architecture in _COMPRESSED:
        ratios = keys.per_layer("attention.compress_ratios", n_layer)
        return tuple(
            _compressed_cache(keys, head, max(0, ratio), n_swa=n_swa, keeps_state=idx < n_trunk)
            for idx, (head, ratio) in enumerate(zip(heads, ratios, strict=True))
        )
    layers: list[LayerCache] = []
    for idx, head in enumerate(heads):
        n_embd_k, n_embd_v = head.head_k * head.n_head_kv, head.head_v * head.n_head_kv
        full = FullAttention(n_embd_k=n_embd_k, n_embd_v=n_embd_v)
        caches_nothing = spec.architecture in _CACHES_NOTHING or (in_hybrid and n_ff[idx] == 0)
        if idx >= n_trunk and not (in_hybrid and n_ff[idx] == 0):
            layers.append(NoCache())
        elif recurrent[idx] and spec.architecture in _BOTH:
            layers.append(AttentionAndState(attention=full, state=state))
        elif recurrent[idx]:
            layers.append(state)
        elif (head.n_head_kv == 0 and not caches_nothing) or (n_shared and idx >= n_layer - n_shared):
            layers.append(NoCache())
        elif indexed[idx] and not sliding[idx]:
            layers.append(_indexed_cache(spec, keys, head))
        elif sliding[idx]:
            layers.append(SlidingAttention(n_embd_k=n_embd_k, n_embd_v=0 if latent else n_embd_v, n_swa=n_swa))
        else:
            layers.append(FullAttention(n_embd_k=n_embd_k, n_embd_v=0) if latent else full)
    return tuple(layers)


def _is_sectioned(spec: ModelSpec, keys: _Keys) -> bool:
    if spec.architecture in _SECTIONED:
        return True
    sections = keys.get("rope.dimension_sections")
    return isinstance(sections, tuple) and len(sections) > 1 and all(_count(item, 0) > 0 for item in sections[:2])


def _is_known(spec: ModelSpec, keys: _Keys) -> bool:
    """Whether the architecture was compared with the engine's figures, and the file has nothing that was not."""
    loops = spec.architecture in _LOOPING or keys.number("num_loops", 1) <= 1
    n_block = keys.number("block_count")
    return spec.architecture in COVERED and loops and keys.number("decoder_block_count", n_block) == n_block


def _count_loops(spec: ModelSpec, keys: _Keys, n_block: int) -> int:
    """Return how often all blocks are computed for a token; the engine refuses more layers in all than ``MAX_LAYERS``."""
    n_loop = keys.number("num_loops", 1) if spec.architecture in _LOOPING else 1
    return max(1, min(n_loop, MAX_LAYERS // max(1, n_block)))


def read_architecture(spec: ModelSpec) -> Architecture:
    """Derive the dimensions from metadata and tensor list.

    Never raises for odd metadata: what is missing is taken from the tensors or assumed high, and ``known`` is false.
    """
    keys = _Keys(spec)
    shapes = {tensor.name: tensor.shape for tensor in spec.tensors}
    blocks = [idx for tensor in spec.tensors if (idx := layer_of(tensor.name)) is not None]
    n_layer = max(0, min(keys.number("block_count", max(blocks, default=-1) + 1), MAX_LAYERS))
    embedding = shapes.get("token_embd.weight", (0, 0))
    n_embd = keys.number("embedding_length", embedding[0])
    n_vocab = embedding[1] if len(embedding) > 1 else keys.number("vocab_size")
    n_expert, n_expert_used = keys.number("expert_count"), keys.number("expert_used_count")
    n_swa = _window(spec, keys)
    n_nextn = count_nextn(spec, n_layer)
    sliding = _sliding_layers(spec, keys, n_layer, n_nextn) if n_swa else (False,) * n_layer
    heads = _heads(keys, n_layer, n_embd, sliding)
    n_loop = _count_loops(spec, keys, n_layer)
    n_ff = keys.number("feed_forward_length")
    n_ff_expert = keys.number("expert_feed_forward_length", n_ff if n_expert else 0)
    n_ff_shared = keys.number("expert_shared_feed_forward_length", n_ff_expert * keys.number("expert_shared_count"))
    return Architecture(
        name=shown(spec.architecture),
        layers=_caches(spec, keys, heads, sliding, n_swa=n_swa, n_embd=n_embd) * n_loop,
        heads=heads * n_loop,
        sliding=sliding * n_loop,
        n_layer_shared=_count_shared(spec, keys, n_layer),
        n_layer_nextn=n_nextn,
        n_loop=n_loop,
        cacheless=spec.architecture in _CACHELESS,
        numbers=keys.numbers(),
        n_ctx_train=keys.number("context_length"),
        n_ctx_short=keys.number("rope.scaling.original_context_length", keys.number("context_length")),
        n_embd=n_embd,
        n_vocab=n_vocab,
        n_head=keys.number("attention.head_count"),
        n_ff=n_ff,
        n_ff_active=n_ff_expert * n_expert_used + n_ff_shared if n_expert else n_ff,
        n_expert=n_expert,
        n_expert_used=n_expert_used,
        n_position=_N_SECTIONS if _is_sectioned(spec, keys) else 1,
        known=_is_known(spec, keys) and n_layer > 0 and n_embd > 0 and n_vocab > 0,
    )
