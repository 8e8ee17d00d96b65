"""Graphs with multi-head latent attention: one compressed row per token instead of keys and values.

Restates ``src/models/deepseek2.cpp`` (llama.cpp build 11434) as far as it shapes memory. It does not know devices, bytes
of weights or how memory is allocated.
"""

from typing import Final

from launcher.planner.footprint.blocks import Blocks, Layer, Routing
from launcher.planner.footprint.family import (
    PLAIN,
    STYLES,
    Model,
    begin,
    end,
    feed_forward,
    open_gate,
    read_routing,
    scale_residual,
    size_of,
    temper,
)
from launcher.planner.footprint.graph import (
    Graph,
    Tensor,
    concat,
    cont,
    fresh,
    in_place,
    mul_mat,
    permute,
    reshape,
    rope,
    shape,
    view,
)

_COPIES_GATED: Final = frozenset({"bailingmoe3"})
"""What came through the gate of each head is copied before it is multiplied."""


class Chooser:
    """The tokens that the last indexer chose: blocks without one of their own reuse them."""

    def __init__(self, *, spreads: bool = True) -> None:
        """Nothing is chosen yet; ``spreads`` tells whether a Hadamard matrix spreads queries and keys first."""
        self._spreads = spreads
        self.chosen: Tensor | None = None

    def choose(self, b: Blocks, x: Tensor, compressed: Tensor, layer: Layer, model: Model) -> Tensor | None:
        """``compressed`` is the query before its heads are expanded."""
        if layer.n_index == 0:
            return None if layer.heads.slides else self.chosen
        n_tokens, n_head = model.batch.n_tokens, size_of(model, "attention.indexer.head_count")
        q = reshape(b.project(layer, "indexer.attn_q_b", compressed), layer.n_index, n_head, n_tokens)
        k = b.norm(b.project(layer, "indexer.attn_k", x), layer, "indexer.k_norm", layer_norm=True)
        k = rope(reshape(k, layer.n_index, 1, n_tokens), b.positions)
        weights = b.project(layer, "indexer.proj", x)
        n_top = size_of(model, "attention.indexer.top_k")
        self.chosen = b.choose_tokens(layer, rope(q, b.positions), k, weights, n_top, spreads=self._spreads)
        return self.chosen


def latent_attention(
    b: Blocks, x: Tensor, layer: Layer, model: Model, *, ropes: bool = True, chooser: Chooser | None = None
) -> Tensor:
    """``llama_model_deepseek2::graph``: compressed keys and values, then a gate before the output where there is one."""
    numbers, n_tokens = model.numbers, model.batch.n_tokens
    n_head = layer.heads.n_head
    reach = "_swa" if layer.heads.slides else ""
    n_lora = int(numbers.get(f"attention.kv_lora_rank{reach}", 0))
    n_rope = int(numbers.get("rope.dimension_count", 0))
    head_k = int(numbers.get(f"attention.key_length_mla{reach}", 0)) or layer.heads.head_k
    head_v = int(numbers.get(f"attention.value_length_mla{reach}", 0)) or layer.heads.head_v
    chosen = None
    if b.weight(layer, "attn_q_a.weight") is not None:
        q = b.norm(b.project(layer, "attn_q_a", x), layer, "attn_q_a_norm")
        chosen = None if chooser is None else chooser.choose(b, x, q, layer, model)
        q = b.project(layer, "attn_q_b", q)
    else:
        q = b.project(layer, "attn_q", x)
    q = reshape(q, head_k, n_head, n_tokens)
    both = b.project(layer, "attn_kv_a_mqa", x)
    compressed = view(both, shape(n_lora, n_tokens), both.nb)
    row = both.nb[1]
    k_pe = view(both, shape(n_rope, 1, n_tokens), (4, row, row, row * n_tokens))
    if b.weight(layer, "attn_k_norm.weight") is not None:
        k_pe = b.norm(k_pe, layer, "attn_k_norm")
    k_pe = b.rope(k_pe, layer) if ropes else k_pe
    compressed = b.norm(compressed, layer, "attn_kv_a_norm")
    n_nope = head_k - n_rope
    if b.weight(layer, "attn_k_b.weight") is not None:
        q_nope = view(q, shape(n_nope, n_head, n_tokens), q.nb)
        q_pe = view(q, shape(n_rope, n_head, n_tokens), q.nb)
        q_pe = b.rope(q_pe, layer) if ropes else q_pe
        absorbed = mul_mat(b.need(layer, "attn_k_b.weight"), permute(q_nope, 0, 2, 1, 3))
        query = temper(b, concat(permute(absorbed, 0, 2, 1, 3), q_pe, 0), model)
        key = concat(reshape(compressed, n_lora, 1, n_tokens), k_pe, 0)
        return _open(b, b.attend_latent(layer, query, key, n_lora, chosen), x, layer, model)
    kv = b.project(layer, "attn_kv_b", compressed)
    width = 4 * (n_nope + head_v)
    nb = (4, width, width * n_head, width * n_head * n_tokens)
    k_nope = view(kv, shape(n_nope, n_head, n_tokens), nb)
    v = cont(view(kv, shape(head_v, n_head, n_tokens), nb))
    q = b.rope(q, layer) if ropes else q
    key = concat(k_nope, fresh(shape(n_rope, n_head, n_tokens), k_pe), 0)
    return _open(b, b.attend(layer, temper(b, q, model), key, v, output=None), x, layer, model)


def _open(b: Blocks, cur: Tensor, x: Tensor, layer: Layer, model: Model) -> Tensor:
    """What attention puts out, through a gate where there is one."""
    gate = b.weight(layer, "attn_gate.weight")
    if gate is None:
        return b.project(layer, "attn_output", cur)
    gated = open_gate(cur, gate, x)
    copies = model.name in _COPIES_GATED and gated.ne != cur.ne
    return b.project(layer, "attn_output", fresh(cur.ne, gated) if copies else reshape(gated, *cur.ne))


def latent_transformer(model: Model) -> Graph:
    """DeepSeek V2, V3 and their kin."""
    style = STYLES.get(model.name, PLAIN)._replace(routing=latent_routing(model))
    b, x = begin(model, style)
    chooser = Chooser() if any(layer.n_index for layer in model.layers) else None
    for layer in model.layers:
        cur = latent_attention(b, b.norm(x, layer, "attn_norm"), layer, model, chooser=chooser)
        residual = x
        if layer.last:
            cur, residual = b.pick_outputs(cur), b.pick_outputs(residual)
        ffn_input = in_place(scale_residual(cur, model), residual)
        cur = feed_forward(b, b.norm(ffn_input, layer, "ffn_norm"), layer, model, style)
        x = in_place(scale_residual(cur, model), ffn_input)
    return end(b, x, style)


def latent_routing(model: Model) -> Routing:
    """Weights are normalized only where the file says so."""
    numbers = model.numbers
    return read_routing(model, PLAIN)._replace(normalizes=bool(numbers.get("expert_weights_norm", 0)))
