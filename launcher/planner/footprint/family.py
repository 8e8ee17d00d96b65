"""What all families of architectures share: the model as they see it, its style, its beginning and its end.

Restates the common parts of ``src/models/*.cpp`` (llama.cpp build 11434). What a block holds is read from its tensors;
only what the tensors cannot tell is looked up by architecture name. It does not know devices, bytes of weights or how
memory is allocated.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeVar, overload

from launcher.planner.footprint.blocks import SIGMOID, SOFTMAX, SOFTMAX_WEIGHT, Batch, Blocks, Layer, Routing, Weight
from launcher.planner.footprint.graph import Graph, Tensor, in_place, mul_mat, reshape

Numbers = Mapping[str, float]
"""An architecture's own numeric keys without their prefix; arrays are left out."""


class Model(NamedTuple):
    """What a graph is built for: representative layers in order, and where the output layer is."""

    name: str
    numbers: Numbers
    n_embd: int
    layers: tuple[Layer, ...]
    table: Mapping[str, Weight]
    output_home: int
    cpu: int
    batch: Batch


class Style(NamedTuple):
    """What a transformer's tensors do not tell."""

    layer_norm: bool = False
    """Norms subtract the mean: they need memory of their own."""
    bare_norms: bool = False
    """Norms have no weights."""
    scales_embedding: bool = False
    scales_rows: bool = False
    """Embeddings are scaled by a factor per row (``tok_scale``)."""
    parallel: tuple[str, ...] = ()
    """Attention and feed-forward read the same residual; the three are added up in this order."""
    picks_at_end: bool = False
    """Output rows are picked after the last block, not inside it."""
    picks_after_norm: bool = False
    puts_out_all: bool = False
    """Every token's logits are computed, whatever is asked for."""
    drafts: bool = False
    """What leaves the last block is an output of the graph: drafts start from it (``t_h_nextn``)."""
    scales_q: bool = False
    caps_scores: bool = False
    residual_first: bool = False
    """The stream, not what the feed-forward part adds to it, is the sum's first operand."""
    ropes: bool = True
    ropes_full: bool = True
    """Layers that see everything rotate too, not only sliding ones (where some slide)."""
    ropes_dense: bool = False
    """The leading blocks without experts rotate too."""
    reuses_norm: bool = False
    """Without a norm of its own the feed-forward part reads what attention reads."""
    routes_early: bool = False
    """Experts are chosen by the residual before attention."""
    output_norms: tuple[str, str] = ("post_attention_norm", "post_ffw_norm")
    """What the norms of what attention and feed-forward part put out are called."""
    dense_beside_experts: bool = False
    """A dense feed-forward part is added to what the experts say, and the sum is scaled (Grok 2)."""
    scales_experts: bool = False
    """The sum of routed and shared experts is scaled."""
    output_on_host: bool = False
    """The token embeddings serve as output where they are: they are never held twice."""
    ropes_not_every: int = 0
    """Each such block does not rotate."""
    clamps: bool = False
    """Queries, keys and values are limited."""
    rests_every: int = 0
    """Each such block scales its queries instead of rotating them; the others norm after the rotation (llama4)."""
    routing: Routing | None = None


PLAIN: Final = Style()
"""Nothing but what the tensors tell."""
_RESIDUAL_SECOND: Final = ("feed-forward", "residual", "attention")
STYLES: Final[Mapping[str, Style]] = {
    "cohere2": Style(layer_norm=True, parallel=_RESIDUAL_SECOND, ropes_full=False),
    "cohere2moe": Style(
        ropes_full=False,
        ropes_dense=True,
        parallel=_RESIDUAL_SECOND,
        picks_at_end=True,
        picks_after_norm=True,
        scales_experts=True,
    ),
    "hy_v3": Style(picks_at_end=True, picks_after_norm=True),
    "command-r": Style(layer_norm=True, parallel=_RESIDUAL_SECOND),
    "cogvlm": Style(picks_at_end=True, puts_out_all=True),
    "dbrx": Style(layer_norm=True),
    "mpt": Style(layer_norm=True, ropes=False),
    "falcon": Style(layer_norm=True, parallel=("feed-forward", "attention", "residual")),
    "gptneox": Style(layer_norm=True, parallel=_RESIDUAL_SECOND),
    "olmo": Style(layer_norm=True, bare_norms=True),
    "phi2": Style(layer_norm=True, parallel=("attention", "feed-forward", "residual"), scales_q=True),
    "grok": Style(output_norms=("attn_output_norm", "layer_output_norm"), dense_beside_experts=True),
    "plamo": Style(parallel=("feed-forward", "attention", "residual")),
    "muse-glimmer": Style(scales_embedding=True, ropes_full=False),
    "starcoder": Style(layer_norm=True, ropes=False),
    "jais": Style(layer_norm=True, ropes=False),
    "refact": Style(ropes=False),
    "smollm3": Style(ropes_not_every=4),
    "smallthinker": Style(ropes_full=False, routes_early=True),
    "stablelm": Style(reuses_norm=True),
    "bitnet": Style(output_on_host=True),
    "afmoe": Style(ropes_not_every=4),
    "bloom": Style(ropes=False),
    "exaone-moe": Style(ropes_full=False),
    "exaone4": Style(ropes_full=False),
    "gpt2": Style(ropes=False),
    "minicpm3": Style(scales_embedding=True),
    "jamba": Style(residual_first=True),
    "lfm2": Style(residual_first=True),
    "lfm2moe": Style(residual_first=True),
    "nemotron_h": Style(picks_at_end=True, picks_after_norm=True),
    "nemotron_h_moe": Style(picks_at_end=True, picks_after_norm=True),
    "phi3": Style(scales_q=True, residual_first=True),
    "step35": Style(picks_at_end=True, drafts=True),
    "phimoe": Style(scales_q=True, residual_first=True),
    "gemma": Style(scales_embedding=True, scales_q=True),
    "gemma2": Style(scales_embedding=True, scales_q=True, caps_scores=True),
    "gemma3": Style(scales_rows=True, scales_q=True),
    "llada-moe": Style(routing=Routing(normalizes=False)),
    "llama4": Style(rests_every=4, routing=Routing(SIGMOID, normalizes=False, weighs_first=True)),
    "gpt-oss": Style(picks_at_end=True, drafts=True, routing=Routing(SOFTMAX_WEIGHT, normalizes=False)),
}


def counts_blocks(name: str, numbers: Iterable[tuple[str, float]]) -> bool:
    """Tell whether the number of a block shapes its graph beyond what its tensors and caches tell."""
    style = STYLES.get(name, PLAIN)
    counted = style.rests_every or style.ropes_not_every or name == "gemma3n"
    told = dict(numbers)
    return bool(counted) or any(told.get(key, 0.0) > 0 for key in ("n_deepstack_layers", "attn_res.block_size"))


def read_routing(model: Model, style: Style) -> Routing:
    """What the keys say of the router; the rest is the style's."""
    if style.routing is not None:
        return style.routing
    numbers = model.numbers
    scale = numbers.get("expert_weights_scale", 0.0)
    gating = int(numbers.get("expert_gating_func", 0)) or SOFTMAX
    return Routing(
        gating=gating,
        normalizes=bool(numbers.get("expert_weights_norm", 1)),
        scales=scale not in {0.0, 1.0},
        n_group=int(numbers.get("expert_group_count", 0)),
        n_group_used=int(numbers.get("expert_group_used_count", 0)),
    )


def size_of(model: Model, key: str) -> int:
    """A dimension that the file must have; 1 where it has not."""
    return max(1, int(model.numbers.get(key, 1)))


_UNMIXED: Final = frozenset({"cogvlm", "deepseek4"})
"""No batch of theirs has both tokens and embeddings (``llm_arch_supports_mixed_batch``)."""
_SCALING_RESIDUAL: Final = frozenset({"minicpm", "minicpm3"})
"""Without a word in the file."""


def scale_residual(x: Tensor, model: Model) -> Tensor:
    """Scale what a part adds to the stream, where the file says so (granite, minicpm)."""
    scaled = model.name in _SCALING_RESIDUAL or model.numbers.get("residual_scale", 0.0)
    return in_place(x) if scaled else x


_TEMPERING: Final = frozenset({"deepseek2", "mistral3", "mistral4"})
"""Where the file says so, their queries are scaled by position (Ministral 3, Mistral Large 3)."""


def temper(b: Blocks, q: Tensor, model: Model) -> Tensor:
    """Scale queries by how far into the context they are (``build_inp_attn_scale``)."""
    tempered = model.name in _TEMPERING and model.numbers.get("attention.temperature_scale", 0.0)
    return in_place(q, b.query_scale) if tempered else q


def norm_heads(b: Blocks, x: Tensor, layer: Layer, kind: str, *, layer_norm: bool = False) -> Tensor:
    """``attn_q_norm``/``attn_k_norm``: per head, or over all heads before they are cut apart (olmo2)."""
    weight = b.weight(layer, f"attn_{kind}_norm.weight")
    if weight is None:
        return x
    if weight.ne[0] != x.ne[0] and x.root is not None and weight.ne[1] == 1:
        flat = b.norm_by(x.src[0], weight, b.weight(layer, f"attn_{kind}_norm.bias"), layer_norm=layer_norm)
        return reshape(flat, *x.ne)
    return b.norm_by(x, weight, b.weight(layer, f"attn_{kind}_norm.bias"), layer_norm=layer_norm)


def open_gate(x: Tensor, gate: Tensor, normed: Tensor) -> Tensor:
    """Return ``x`` times a gate that reads ``normed``: for each channel, or for each head, ``(head, n_head, n_tokens)``."""
    opening, ne = in_place(mul_mat(gate, normed)), x.ne
    if opening.ne == ne:
        return in_place(x, opening)
    n_head = opening.ne[0]
    return in_place(reshape(x, ne[0] // n_head, n_head, ne[1]), reshape(opening, 1, n_head, ne[1]))


def feed_forward(
    b: Blocks, x: Tensor, layer: Layer, model: Model, style: Style, *, scores: Tensor | None = None
) -> Tensor:
    """The dense feed-forward part, or the experts with their shared one."""
    if "ffn_gate_inp.weight" not in layer.weights:
        return b.ffn(x, layer)
    down, up = (b.weight(layer, f"ffn_latent_{part}.weight") for part in ("down", "up"))
    narrow = x if down is None else mul_mat(down, x)
    out = b.moe(narrow, layer, read_routing(model, style), scores_from=x, scores=scores)
    out = out if up is None else mul_mat(up, out)
    if style.dense_beside_experts and "ffn_up.weight" in layer.weights:
        return in_place(in_place(b.ffn(x, layer), out))
    if "ffn_up_shexp.weight" not in layer.weights:
        return out
    shared = b.ffn(x, layer, "_shexp")
    gate = b.weight(layer, "ffn_gate_inp_shexp.weight")
    if gate is not None:
        shared = in_place(shared, in_place(mul_mat(gate, x)))
    out = in_place(out, shared)
    return in_place(out) if style.scales_experts else out


def has_window(model: Model) -> bool:
    """Whether some layer slides: then the engine keeps two caches."""
    return any(layer.heads.slides for layer in model.layers)


_SomeBlocks = TypeVar("_SomeBlocks", bound=Blocks)


@overload
def begin(model: Model, style: Style) -> tuple[Blocks, Tensor]: ...
@overload
def begin(model: Model, style: Style, kind: type[_SomeBlocks]) -> tuple[_SomeBlocks, Tensor]: ...
def begin(model: Model, style: Style, kind: type[Blocks] = Blocks) -> tuple[Blocks, Tensor]:
    """Open a graph with the embedded tokens."""
    b = kind(model.batch, model.table, model.n_embd, model.cpu, model.output_home)
    n_extra = int(model.numbers.get("n_deepstack_layers", 0))
    scaled = model.numbers.get("embedding_scale", 0.0) != 0.0
    mixes = model.name not in _UNMIXED
    x = b.embed(scaled=scaled and not n_extra, scale_rows=style.scales_rows, n_extra=n_extra, mixes=mixes)
    return b, in_place(x) if style.scales_embedding else x


def end(b: Blocks, x: Tensor, style: Style) -> Graph:
    """Close a graph with the logits."""
    if style.picks_at_end and not (style.picks_after_norm or style.puts_out_all):
        x.is_output = style.drafts
        x = b.pick_outputs(x)
    b.head(
        x,
        layer_norm=style.layer_norm,
        picks=style.picks_after_norm,
        on_host=style.output_on_host,
    )
    return b.graph
