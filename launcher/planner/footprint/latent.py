"""Graphs with multi-head latent attention: one compressed row per token instead of keys and values.

Restates ``src/models/deepseek2.cpp`` and ``kimi-linear.cpp`` (llama.cpp build 11434) as far as they shape memory. It
does not know devices, bytes of weights or how memory is allocated.
"""

from launcher.planner.footprint.blocks import Blocks, Layer, Routing
from launcher.planner.footprint.family import (
    PLAIN,
    STYLES,
    Model,
    begin,
    end,
    feed_forward,
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
    transpose,
    view,
)


class _Chooser:
    """The tokens that the last indexer chose: blocks without one of their own reuse them."""

    def __init__(self) -> None:
        self.chosen: Tensor | None = None

    def choose(self, b: Blocks, x: Tensor, compressed: Tensor, layer: Layer, model: Model) -> Tensor | None:
        """``compressed`` is the query before its heads are expanded."""
        if layer.n_index == 0:
            return self.chosen
        n_tokens, n_head = model.batch.n_tokens, size_of(model, "attention.indexer.head_count")
        q = reshape(b.project(layer, "indexer.attn_q_b", compressed), layer.n_index, n_head, n_tokens)
        k = b.norm(b.project(layer, "indexer.attn_k", x), layer, "indexer.k_norm", layer_norm=True)
        k = rope(reshape(k, layer.n_index, 1, n_tokens), b.positions)
        weights = b.project(layer, "indexer.proj", x)
        n_top = size_of(model, "attention.indexer.top_k")
        self.chosen = b.choose_tokens(layer, rope(q, b.positions), k, weights, n_top)
        return self.chosen


def _latent_attention(
    b: Blocks, x: Tensor, layer: Layer, model: Model, *, ropes: bool = True, chooser: _Chooser | None = None
) -> Tensor:
    """``llama_model_deepseek2::graph``: compressed keys and values."""
    numbers, n_tokens = model.numbers, model.batch.n_tokens
    n_head = layer.heads.n_head
    n_lora = int(numbers.get("attention.kv_lora_rank", 0))
    n_rope = int(numbers.get("rope.dimension_count", 0))
    head_k = int(numbers.get("attention.key_length_mla", 0)) or layer.heads.head_k
    head_v = int(numbers.get("attention.value_length_mla", 0)) or layer.heads.head_v
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
        return b.attend_latent(layer, query, key, n_lora, chosen)
    kv = b.project(layer, "attn_kv_b", compressed)
    width = 4 * (n_nope + head_v)
    nb = (4, width, width * n_head, width * n_head * n_tokens)
    k_nope = view(kv, shape(n_nope, n_head, n_tokens), nb)
    v = cont(view(kv, shape(head_v, n_head, n_tokens), nb))
    q = b.rope(q, layer)
    key = concat(k_nope, fresh(shape(n_rope, n_head, n_tokens), k_pe), 0)
    return b.attend(layer, temper(b, q, model), key, v)


def latent_transformer(model: Model) -> Graph:
    """DeepSeek V2, V3 and their kin."""
    style = STYLES.get(model.name, PLAIN)._replace(routing=_latent_routing(model))
    b, x = begin(model, style)
    chooser = _Chooser() if any(layer.n_index for layer in model.layers) else None
    for layer in model.layers:
        cur = _latent_attention(b, b.norm(x, layer, "attn_norm"), layer, model, chooser=chooser)
        residual = x
        if layer.last:
            cur, residual = b.pick_outputs(cur), b.pick_outputs(residual)
        ffn_input = in_place(scale_residual(cur, model), residual)
        cur = feed_forward(b, b.norm(ffn_input, layer, "ffn_norm"), layer, model, style)
        x = in_place(scale_residual(cur, model), ffn_input)
    return end(b, x, style)


def _latent_routing(model: Model) -> Routing:
    numbers = model.numbers
    return read_routing(model, PLAIN)._replace(normalizes=bool(numbers.get("expert_weights_norm", 0)))


# --- Kimi Linear ------------------------------------------------------------------------------------------------


def _short_convolution(b: Blocks, x: Tensor, layer: Layer, model: Model, *, name: str, state: Tensor) -> Tensor:
    """``causal_conv1d``: a convolution over a few tokens of one of query, key and value."""
    batch, head = model.batch, size_of(model, "kda.head_dim")
    n_seq, n_per_seq, n_tail = batch.n_seq, batch.n_per_seq, size_of(model, "ssm.conv_kernel") - 1
    n_inner = head * layer.heads.n_head
    part = view(state, shape(n_tail, n_inner, n_seq), (4, 4 * n_tail, state.nb[1], state.nb[1] * n_seq))
    projected = reshape(b.project(layer, f"attn_{name}", x), n_inner, n_per_seq, n_seq)
    joined = concat(part, transpose(projected), 0)
    cache = b.states(layer, "r", layer.recurrent[0])
    kept = view(joined, shape(n_tail, n_inner, n_seq), joined.nb)
    b.save_part(kept, cache, (n_tail, n_inner))
    weight = reshape(b.need(layer, f"ssm_conv1d_{name}.weight"), n_tail + 1, n_inner)
    mixed = in_place(reshape(fresh(shape(n_inner, n_per_seq, n_seq), joined, weight), n_inner, batch.n_tokens))
    return reshape(mixed, head, layer.heads.n_head, n_per_seq, n_seq)


def _delta_attention(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    """The recurrent blocks of ``llama_model_kimi_linear::graph``: a delta rule with a gate per channel."""
    batch, head, n_head = model.batch, size_of(model, "kda.head_dim"), layer.heads.n_head
    n_seq, n_tokens = batch.n_seq, batch.n_tokens
    n_per_seq = batch.n_per_seq
    state = b.load_states(b.states(layer, "r", layer.recurrent[0]))
    q, k, v = (_short_convolution(b, x, layer, model, name=name, state=state) for name in "qkv")
    gate = mul_mat(b.need(layer, "ssm_f_b.weight"), mul_mat(b.need(layer, "ssm_f_a.weight"), x))
    gate = reshape(in_place(in_place(gate, b.need(layer, "ssm_dt.bias"))), head, n_head, n_tokens)
    gate = reshape(in_place(gate, reshape(b.need(layer, "ssm_a"), 1, n_head)), head, n_head, n_per_seq, n_seq)
    beta = in_place(reshape(mul_mat(b.need(layer, "ssm_beta.weight"), x), 1, n_head, n_per_seq, n_seq))
    cache = b.states(layer, "s", layer.recurrent[1])
    before = reshape(b.load_states(cache), head, head, n_head, n_seq)
    q, k = in_place(in_place(q)), in_place(in_place(k))
    result = fresh(shape(head * n_head, n_tokens + head * n_seq), q, k, v, gate, beta, before)
    out = cont(reshape(result, head, n_head, n_per_seq, n_seq))
    b.save_states(reshape(result, head, head, n_head, n_seq), cache)
    flat = reshape(reshape(x, x.ne[0], n_per_seq, n_seq), x.ne[0], n_tokens)
    second = mul_mat(b.need(layer, "ssm_g_b.weight"), mul_mat(b.need(layer, "ssm_g_a.weight"), flat))
    normed = b.norm(reshape(out, head, n_head, n_tokens), layer, "ssm_norm")
    gated = in_place(normed, in_place(reshape(second, head, n_head, n_tokens)))
    return b.project(layer, "attn_output", fresh(shape(head * n_head, n_tokens), gated))


def kimi_linear(model: Model) -> Graph:
    """Kimi Linear: delta-rule blocks among latent attention without rotation."""
    b, x = begin(model, PLAIN)
    for layer in model.layers:
        residual = x
        cur = b.norm(x, layer, "attn_norm")
        b.graph.expand(cur)
        if layer.recurrent[1]:
            cur = _delta_attention(b, cur, layer, model)
        else:
            cur = _latent_attention(b, cur, layer, model, ropes=False)
        if layer.last:
            cur, residual = b.pick_outputs(cur), b.pick_outputs(residual)
        residual = in_place(cur, residual)
        x = in_place(feed_forward(b, b.norm(residual, layer, "ffn_norm"), layer, model, PLAIN), residual)
    return end(b, x, PLAIN)
