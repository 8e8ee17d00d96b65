"""Where the bytes of a model's weights are: input, blocks, routed experts, output.

Restates which buffer type each tensor is created in (llama.cpp build 11434: ``src/llama-model.cpp`` ``load_tensors``,
``create_tensor``; ``src/llama-arch.cpp``). It does not know configurations, nor which memory a block lands in.
"""

from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from msgspec import Struct

from launcher.domain import ModelSpec, TensorInfo
from launcher.planner.architecture import ENCODERS, count_nextn, is_expert, layer_of
from launcher.planner.footprint.blocks import Weight
from launcher.planner.footprint.compute import Shapes
from launcher.planner.footprint.family import PLAIN, STYLES
from launcher.planner.footprint.graph import Shape, shape
from launcher.tensor_types import TensorType

_OUTPUT_NAMES: Final = ("output", "altup_", "cls", "dense_", "enc.output_norm", "dec.output_norm")
_WITHOUT_OUTPUT: Final = ENCODERS - {"gemma-embedding"}
"""They have no output table; EmbeddingGemma is given one that it never uses."""
_ALWAYS_TWICE: Final = frozenset({"gemma3n", "gemma4"})
"""Their output layer is created before the input layer, which then cannot be shared."""
_BESIDE_FIRST_BLOCK: Final = frozenset(
    {"per_layer_model_proj.weight", "per_layer_proj_norm.weight", "token_embd_norm.weight", "token_embd_norm.bias"}
)
"""Tensors of no block that the engine keeps where the first block is."""

_NEXTN_HEAD: Final = ("nextn.embed_tokens", "nextn.shared_head")
_LOADED_AHEAD: Final[Mapping[str, tuple[str, ...]]] = {
    "cohere2moe": _NEXTN_HEAD,
    "hy_v3": _NEXTN_HEAD,
    "step35": (
        *_NEXTN_HEAD,
        "attn_gate",
        "attn_k_norm",
        "attn_q_norm",
        "exp_probs_b",
        "ffn_down",
        "ffn_gate",
        "ffn_up",
    ),
}
"""How the names begin that are loaded even in blocks that predict ahead: the engine forgot to skip them."""


class BlockWeights(Struct, frozen=True, kw_only=True):
    """Bytes of one block's tensors, routed experts apart."""

    dense_bytes: int
    expert_bytes: int


class ModelWeights(Struct, frozen=True, kw_only=True):
    """Where the bytes of a model's weights are, summed once so that many configurations can be tried.

    ``input_bytes`` always stays on the host. ``output_bytes`` counts the output layer's own tensors;
    ``tied_output_type`` is set where the token embeddings serve as output too, and ``input_bytes`` may be held twice.
    """

    blocks: tuple[BlockWeights, ...]
    dense_sums: tuple[int, ...]
    """Of the blocks before each, and of all: the dense bytes of a run of blocks are a difference."""
    expert_sums: tuple[int, ...]
    input_bytes: int
    output_bytes: int
    largest_output_bytes: int
    tied_output_type: TensorType | None
    n_tied_rows: int = 0
    always_twice: bool = False
    shapes: Shapes = Shapes()
    """Every tensor's dimensions, without bytes."""
    sizes: Shapes = Shapes()
    """Every tensor's dimensions and bytes."""

    @property
    def total_bytes(self) -> int:
        """Sum over all tensors, each counted once."""
        return self.dense_sums[-1] + self.expert_sums[-1] + self.input_bytes + self.output_bytes


class _Name(NamedTuple):
    """What a tensor's name means: its block or -1, its name within, whether it holds routed experts."""

    layer: int
    within: str
    is_expert: bool


@lru_cache(maxsize=8192)  # the artifacts of a model share their names
def _read_name(name: str) -> _Name:
    idx = layer_of(name)
    if idx is None:
        return _Name(-1, name, is_expert(name))
    # a decoder's tensors are named as those of other models, but for their beginning
    within = name.removeprefix("dec.").replace(f"blk.{idx}.", "", 1)
    # some norms lack the suffix that all others have
    return _Name(idx, f"{within}.weight" if within.endswith("_norm") else within, is_expert(name))


def _padded(ne: tuple[int, ...]) -> Shape:
    """Return the dimensions as ggml's four."""
    return shape(*(ne or (1,))[:4])


class _Layout(NamedTuple):
    """What the names and shapes of a model's tensors say: by their places among them, block for block.

    Left out are those that are not loaded.
    """

    order: tuple[int, ...]
    """Of what is in blocks: one block after the other."""
    blocks: tuple[slice, ...]
    """What of that order is in each block."""
    experts: tuple[tuple[int, ...], ...]
    """Places of each block's routed experts."""
    outside: tuple[tuple[int, int], ...]
    """Their places and, of what is in none of the blocks but numbered, the number, else -1."""
    plain: tuple[tuple[str, Weight], ...]
    """Each tensor's name within its block, with its dimensions."""
    sized: tuple[dict[int, tuple[str, Weight]], ...]
    """The same with its bytes, by the identity of its type, as far as that was met; one for tensors that are alike."""
    shapes: Shapes
    """All of them, without bytes."""

    def weigh(self, tensors: tuple[TensorInfo, ...]) -> list[tuple[str, Weight]]:
        """Return each tensor's name within its block, with its dimensions and bytes."""
        found = [known.get(id(tensor.type)) for known, tensor in zip(self.sized, tensors, strict=True)]
        missing = [place for place, pair in enumerate(found) if pair is None]
        for place in missing:
            name, weight = self.plain[place]
            tensor, known = tensors[place], self.sized[place]
            if id(tensor.type) not in known:
                known[id(tensor.type)] = name, weight._replace(n_bytes=tensor.n_bytes)
            found[place] = known[id(tensor.type)]
        return [pair for pair in found if pair is not None]


class Described:
    """How tensors are laid out, kept from one quantization of a model to the next: most have the same names and shapes."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._layouts: dict[tuple[object, ...], tuple[list[tuple[int, ...]], _Layout]] = {}

    def layout(self, spec: ModelSpec, n_layer: int) -> _Layout:
        """Return how a model's tensors are laid out."""
        shapes = [tensor.shape for tensor in spec.tensors]
        n_trunk = n_layer - count_nextn(spec, n_layer)
        key = spec.architecture, n_layer, n_trunk, *[tensor.name for tensor in spec.tensors]
        known = self._layouts.get(key)
        if known is None or known[0] != shapes:
            known = self._layouts[key] = shapes, _lay_out(spec, n_layer, n_trunk)
        return known[1]


def _lay_out(spec: ModelSpec, n_layer: int, n_trunk: int) -> _Layout:
    """Sort tensors by their names; what blocks that predict ahead do not load is left out."""
    loaded_ahead = _LOADED_AHEAD.get(spec.architecture, ())
    experts: list[list[int]] = [[] for _ in range(n_layer)]
    blocks: list[list[int]] = [[] for _ in range(n_layer)]
    outside: list[tuple[int, int]] = []
    plain: list[tuple[str, Weight]] = []
    made: dict[tuple[str, tuple[int, ...]], tuple[str, Weight]] = {}
    sized: dict[tuple[str, tuple[int, ...]], dict[int, tuple[str, Weight]]] = {}
    sized_of: list[dict[int, tuple[str, Weight]]] = []
    for place, tensor in enumerate(spec.tensors):
        idx, within, of_expert = _read_name(tensor.name)
        key = within, tensor.shape
        if key not in made:
            made[key], sized[key] = (within, Weight(_padded(tensor.shape), 0)), {}
        plain.append(made[key])
        sized_of.append(sized[key])
        if n_trunk <= idx < n_layer and not within.startswith(loaded_ahead):
            continue
        if 0 <= idx < n_layer:
            blocks[idx].append(place)
            if of_expert:
                experts[idx].append(place)
        else:
            outside.append((place, idx))
    return _Layout(
        order=tuple([place for block in blocks for place in block]),
        blocks=tuple([slice(start, end) for start, end in pairwise(accumulate(map(len, blocks), initial=0))]),
        experts=tuple(map(tuple, experts)),
        outside=tuple(outside),
        plain=tuple(plain),
        sized=tuple(sized_of),
        shapes=_shared(
            Shapes(
                tuple([tuple([plain[place] for place in block]) for block in blocks]),
                tuple([(spec.tensors[place].name, plain[place][1]) for place, _ in outside]),
            )
        ),
    )


@lru_cache(maxsize=256)
def _shared(shapes: Shapes) -> Shapes:
    """Return the first that was equal: comparing one with itself is quick."""
    return shapes


def sum_weights(spec: ModelSpec, n_layer: int, described: Described | None = None) -> ModelWeights:
    """Sort the tensors of a model into input, blocks and output, as ``llama_model::load_tensors`` assigns them.

    ``described`` is what the caller keeps from one quantization of a model to the next, empty at first.
    """
    layout = (described or Described()).layout(spec, n_layer)
    sized = layout.weigh(spec.tensors)
    sizes = [weight.n_bytes for _, weight in sized]
    table: list[tuple[str, Weight]] = []
    ordered = tuple([sized[place] for place in layout.order])
    in_order = [sizes[place] for place in layout.order]
    experts = [sum([sizes[place] for place in places]) if places else 0 for places in layout.experts]
    dense = [sum(in_order[block]) - n_expert for block, n_expert in zip(layout.blocks, experts, strict=True)]
    input_bytes = output_bytes = largest_output = 0
    embedding: TensorInfo | None = None
    has_output = False
    for place, idx in layout.outside:
        tensor, n_bytes = spec.tensors[place], sizes[place]
        name = tensor.name
        table.append((name, sized[place][1]))
        if name in _BESIDE_FIRST_BLOCK and n_layer:
            dense[0] += n_bytes
        elif idx < 0 and not name.startswith(_OUTPUT_NAMES):
            input_bytes += n_bytes
            embedding = tensor if name == "token_embd.weight" else embedding
        else:
            output_bytes += n_bytes
            largest_output = max(largest_output, n_bytes)
            has_output = has_output or name == "output.weight"
    return ModelWeights(
        blocks=tuple([_block_weights(n_dense, n_expert) for n_dense, n_expert in zip(dense, experts, strict=True)]),
        dense_sums=tuple(accumulate(dense, initial=0)),
        expert_sums=tuple(accumulate(experts, initial=0)),
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        largest_output_bytes=embedding.n_bytes if embedding and not has_output else largest_output,
        tied_output_type=None
        if embedding is None
        or has_output
        or spec.architecture in _WITHOUT_OUTPUT
        or STYLES.get(spec.architecture, PLAIN).output_on_host
        else embedding.type,
        n_tied_rows=embedding.shape[1] if embedding and len(embedding.shape) > 1 else 0,
        always_twice=spec.architecture in _ALWAYS_TWICE,
        shapes=layout.shapes,
        sizes=Shapes(tuple([ordered[block] for block in layout.blocks]), tuple(table)),
    )


@lru_cache(maxsize=4096)  # the blocks of a model repeat
def _block_weights(dense_bytes: int, expert_bytes: int) -> BlockWeights:
    return BlockWeights(dense_bytes=dense_bytes, expert_bytes=expert_bytes)
