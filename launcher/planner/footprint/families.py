"""How each family of architectures strings its pieces together.

Restates the graphs of ``src/models/*.cpp`` (llama.cpp build 11434) as far as they shape memory. What a block holds is
read from its tensors; only what the tensors cannot tell is looked up by architecture name. It does not know devices,
bytes of weights or how memory is allocated.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from launcher.planner.footprint.blocks import SIGMOID, SOFTMAX, SOFTMAX_WEIGHT, Batch, Blocks, Layer, Routing, Weight
from launcher.planner.footprint.graph import (
    I32,
    Graph,
    Tensor,
    concat,
    cont,
    fresh,
    get_rows,
    in_place,
    like,
    mul_mat,
    new_input,
    permute,
    reshape,
    rope,
    shape,
    transpose,
    view,
)

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
    parallel: bool = False
    """Attention and feed-forward read the same normed input."""
    picks_at_end: bool = False
    """Output rows are picked after the last block, not inside it."""
    picks_after_norm: bool = False
    scales_q: bool = False
    caps_scores: bool = False
    caps_logits: bool = False
    scales_logits: bool = False
    scales_residual: bool = False
    squared: bool = False
    ropes_full: bool = True
    """Layers that see everything rotate too, not only sliding ones."""
    rests_every: int = 0
    """Each such block scales its queries instead of rotating them; the others norm after the rotation (llama4)."""
    routing: Routing | None = None


_PLAIN: Final = Style()
_RMS_WITH_BIAS: Final = frozenset({"phi3", "phimoe"})
"""Elsewhere a bias on the norm means that it subtracts the mean."""
STYLES: Final[Mapping[str, Style]] = {
    "cohere2": Style(layer_norm=True, parallel=True, scales_logits=True, ropes_full=False),
    "command-r": Style(layer_norm=True, parallel=True, scales_logits=True),
    "dbrx": Style(layer_norm=True),
    "mpt": Style(layer_norm=True, ropes_full=False),
    "falcon": Style(layer_norm=True, parallel=True),
    "gptneox": Style(layer_norm=True, parallel=True),
    "olmo": Style(layer_norm=True, bare_norms=True),
    "phi2": Style(layer_norm=True, parallel=True, scales_q=True),
    "bloom": Style(ropes_full=False),
    "phimoe": Style(scales_q=True),
    "gemma": Style(scales_embedding=True, scales_q=True),
    "gemma2": Style(scales_embedding=True, scales_q=True, caps_scores=True, caps_logits=True),
    "gemma3": Style(scales_rows=True, scales_q=True),
    "llama4": Style(rests_every=4, routing=Routing(SIGMOID, normalizes=False, weighs_first=True)),
    "gpt-oss": Style(picks_at_end=True, routing=Routing(SOFTMAX_WEIGHT, normalizes=False)),
}


def _routing(model: Model, style: Style) -> Routing:
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


def _size(model: Model, key: str) -> int:
    """A dimension that the file must have; 1 where it has not."""
    return max(1, int(model.numbers.get(key, 1)))


# --- Transformers -----------------------------------------------------------------------------------------------


def _project_heads(b: Blocks, x: Tensor, layer: Layer, style: Style) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K and V with their norms and their rotation."""
    q, k, v = b.qkv(x, layer)
    if style.rests_every:
        if (layer.number + 1) % style.rests_every == 0:
            return in_place(q, b.query_scale), k, v
        q, k = rope(q, b.positions), rope(k, b.positions)
        return in_place(q), in_place(k), v
    ropes = style.ropes_full or layer.heads.slides
    q = _norm_heads(b, q, layer, "q")
    q = rope(q, b.positions) if ropes else q
    k = _norm_heads(b, k, layer, "k")
    k = rope(k, b.positions) if ropes else k
    return (in_place(q) if style.scales_q else q), k, v


def _norm_heads(b: Blocks, x: Tensor, layer: Layer, kind: str) -> Tensor:
    """``attn_q_norm``/``attn_k_norm``: per head, or over all heads before they are cut apart (olmo2)."""
    weight = b.weight(layer, f"attn_{kind}_norm.weight")
    if weight is None:
        return x
    if weight.ne[0] != x.ne[0] and x.root is not None and weight.ne[1] == 1:
        flat = b.norm_by(x.src[0], weight, b.weight(layer, f"attn_{kind}_norm.bias"))
        return reshape(flat, *x.ne)
    return b.norm_by(x, weight, b.weight(layer, f"attn_{kind}_norm.bias"))


def _feed_forward(b: Blocks, x: Tensor, layer: Layer, model: Model, style: Style) -> Tensor:
    if "ffn_gate_inp.weight" not in layer.weights:
        return b.ffn(x, layer, squared=style.squared)
    out = b.moe(x, layer, _routing(model, style))
    if "ffn_up_shexp.weight" not in layer.weights:
        return out
    shared = b.ffn(x, layer, "_shexp")
    gate = b.weight(layer, "ffn_gate_inp_shexp.weight")
    if gate is not None:
        shared = in_place(shared, in_place(mul_mat(gate, x)))
    return in_place(out, shared)


def _transformer_block(b: Blocks, x: Tensor, layer: Layer, model: Model, style: Style) -> Tensor:
    has = layer.weights.__contains__
    residual = x
    normed = x
    if has("attn_norm.weight") or style.bare_norms:
        normed = b.norm(x, layer, "attn_norm", layer_norm=style.layer_norm)
    q, k, v = _project_heads(b, normed, layer, style)
    cur = b.attend(layer, q, k, v, capped=style.caps_scores, iswa=_has_window(model))
    if layer.last and not style.picks_at_end:
        cur, residual = b.pick_outputs(cur), b.pick_outputs(residual)
    if style.parallel:
        if has("ffn_norm.weight"):
            normed = b.norm(residual, layer, "ffn_norm", layer_norm=style.layer_norm)
        elif layer.last:
            normed = b.pick_outputs(normed)
        out = _feed_forward(b, normed, layer, model, style)
        return in_place(in_place(out, residual), cur)
    norms_output = has("post_attention_norm.weight") and (has("ffn_norm.weight") or has("post_ffw_norm.weight"))
    if norms_output:
        cur = b.norm(cur, layer, "post_attention_norm", layer_norm=style.layer_norm)
    cur = in_place(cur) if style.scales_residual else cur
    ffn_input = in_place(cur, residual)
    name = "ffn_norm" if has("ffn_norm.weight") or norms_output else "post_attention_norm"
    cur = ffn_input
    if has(f"{name}.weight") or style.bare_norms:
        cur = b.norm(cur, layer, name, layer_norm=style.layer_norm)
    cur = _feed_forward(b, cur, layer, model, style)
    if has("post_ffw_norm.weight"):
        cur = b.norm(cur, layer, "post_ffw_norm", layer_norm=style.layer_norm)
    cur = in_place(cur) if style.scales_residual else cur
    return in_place(cur, ffn_input)


def _has_window(model: Model) -> bool:
    return any(layer.heads.slides for layer in model.layers)


def _begin(model: Model, style: Style) -> tuple[Blocks, Tensor]:
    b = Blocks(model.batch, model.table, model.n_embd, model.cpu, model.output_home)
    n_extra = int(model.numbers.get("n_deepstack_layers", 0))
    scaled = model.numbers.get("embedding_scale", 0.0) != 0.0
    x = b.embed(scaled=scaled and not n_extra, scale_rows=style.scales_rows, n_extra=n_extra)
    return b, in_place(x) if style.scales_embedding else x


def _end(b: Blocks, x: Tensor, model: Model, style: Style) -> Graph:
    if style.picks_at_end and not style.picks_after_norm:
        x = b.pick_outputs(x)
    capped = style.caps_logits or model.numbers.get("final_logit_softcapping", 0.0) != 0.0
    b.head(x, layer_norm=style.layer_norm, capped=capped, scaled=style.scales_logits, picks=style.picks_after_norm)
    return b.graph


def transformer(model: Model) -> Graph:
    """Attention, then feed-forward or experts, in every block."""
    style = STYLES.get(model.name, _PLAIN)
    if model.name not in _RMS_WITH_BIAS and "attn_norm.bias" in model.layers[0].weights:
        style = style._replace(layer_norm=True)
    if model.name == "gptneox" and not model.numbers.get("use_parallel_residual", 1):
        style = style._replace(parallel=False)
    b, x = _begin(model, style)
    n_extra = int(model.numbers.get("n_deepstack_layers", 0))
    embedded = x
    for layer in model.layers:
        x = _transformer_block(b, x, layer, model, style)
        if layer.number < n_extra:
            x = in_place(x, view(embedded, shape(model.n_embd, model.batch.n_tokens), embedded.nb))
    return _end(b, x, model, style)


# --- Multi-head latent attention --------------------------------------------------------------------------------


def _latent_attention(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    """``llama_model_deepseek2::graph``: compressed keys and values."""
    numbers, n_tokens = model.numbers, model.batch.n_tokens
    n_head = layer.heads.n_head
    n_lora = int(numbers.get("attention.kv_lora_rank", 0))
    n_rope = int(numbers.get("rope.dimension_count", 0))
    head_k = int(numbers.get("attention.key_length_mla", 0)) or layer.heads.head_k
    head_v = int(numbers.get("attention.value_length_mla", 0)) or layer.heads.head_v
    if b.weight(layer, "attn_q_a.weight") is not None:
        q = b.project(layer, "attn_q_b", b.norm(b.project(layer, "attn_q_a", x), layer, "attn_q_a_norm"))
    else:
        q = b.project(layer, "attn_q", x)
    q = reshape(q, head_k, n_head, n_tokens)
    both = b.project(layer, "attn_kv_a_mqa", x)
    compressed = view(both, shape(n_lora, n_tokens), both.nb)
    row = both.nb[1]
    k_pe = rope(view(both, shape(n_rope, 1, n_tokens), (4, row, row, row * n_tokens)), b.positions)
    compressed = b.norm(compressed, layer, "attn_kv_a_norm")
    n_nope = head_k - n_rope
    if b.weight(layer, "attn_k_b.weight") is not None:
        q_nope = view(q, shape(n_nope, n_head, n_tokens), q.nb)
        q_pe = rope(view(q, shape(n_rope, n_head, n_tokens), q.nb), b.positions)
        absorbed = mul_mat(b.need(layer, "attn_k_b.weight"), permute(q_nope, 0, 2, 1, 3))
        query = concat(permute(absorbed, 0, 2, 1, 3), q_pe, 0)
        key = concat(reshape(compressed, n_lora, 1, n_tokens), k_pe, 0)
        return b.attend_latent(layer, query, key, n_lora)
    kv = b.project(layer, "attn_kv_b", compressed)
    width = 4 * (n_nope + head_v)
    nb = (4, width, width * n_head, width * n_head * n_tokens)
    k_nope = view(kv, shape(n_nope, n_head, n_tokens), nb)
    v = cont(view(kv, shape(head_v, n_head, n_tokens), nb))
    q = rope(q, b.positions)
    key = concat(k_nope, fresh(shape(n_rope, n_head, n_tokens), k_pe), 0)
    return b.attend(layer, q, key, v)


def latent_transformer(model: Model) -> Graph:
    """DeepSeek V2, V3 and their kin."""
    style = STYLES.get(model.name, Style(routing=_latent_routing(model)))
    b, x = _begin(model, style)
    for layer in model.layers:
        cur = _latent_attention(b, b.norm(x, layer, "attn_norm"), layer, model)
        residual = x
        if layer.last:
            cur, residual = b.pick_outputs(cur), b.pick_outputs(residual)
        ffn_input = in_place(cur, residual)
        cur = _feed_forward(b, b.norm(ffn_input, layer, "ffn_norm"), layer, model, style)
        x = in_place(cur, ffn_input)
    return _end(b, x, model, style)


def _latent_routing(model: Model) -> Routing:
    numbers = model.numbers
    return _routing(model, _PLAIN)._replace(normalizes=bool(numbers.get("expert_weights_norm", 0)))


# --- State spaces -----------------------------------------------------------------------------------------------


def _mamba(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    """``build_mamba_layer``."""
    numbers, batch = model.numbers, model.batch
    d_conv, d_inner = _size(model, "ssm.conv_kernel"), _size(model, "ssm.inner_size")
    d_state, dt_rank = _size(model, "ssm.state_size"), int(numbers.get("ssm.time_step_rank", 0))
    n_seq, n_per_seq = batch.n_seq, batch.n_tokens // batch.n_seq
    conv_cache = b.states(layer, "r", layer.recurrent[0])
    conv = reshape(b.load_states(conv_cache), d_conv - 1, d_inner, n_seq)
    xz = b.project(layer, "ssm_in", reshape(x, x.ne[0], n_per_seq, n_seq))
    half = shape(d_inner, n_per_seq, n_seq)
    x, z = view(xz, half, xz.nb), view(xz, half, xz.nb)
    conv_x = concat(conv, transpose(x), 0)
    b.save_states(view(conv_x, shape(d_conv - 1, d_inner, n_seq), conv_x.nb), conv_cache)
    x = fresh(half, conv_x, b.need(layer, "ssm_conv1d.weight"))
    x = in_place(in_place(x, b.need(layer, "ssm_conv1d.bias")))
    x_db = mul_mat(b.need(layer, "ssm_x.weight"), x)
    dt = view(x_db, shape(dt_rank, n_per_seq, n_seq), x_db.nb)
    group = (4, 4 * d_state, x_db.nb[1], x_db.nb[2])
    b_part = view(x_db, (d_state, 1, n_per_seq, n_seq), group)
    c_part = view(x_db, (d_state, 1, n_per_seq, n_seq), group)
    if b.weight(layer, "ssm_dt_norm.weight") is not None:
        dt = b.norm(dt, layer, "ssm_dt_norm")
        b_part, c_part = b.norm(b_part, layer, "ssm_b_norm"), b.norm(c_part, layer, "ssm_c_norm")
    else:
        dt = cont(dt)
    dt = in_place(mul_mat(b.need(layer, "ssm_dt.weight"), dt), b.need(layer, "ssm_dt.bias"))
    wide = reshape(x, 1, d_inner, n_per_seq, n_seq)
    y = _scan(b, layer, (wide, dt, b.need(layer, "ssm_a"), b_part, c_part), d_inner, model)
    y = view(y, half, (4, 4 * d_inner, 4 * d_inner * n_per_seq, 4 * d_inner * n_per_seq * n_seq))
    y = in_place(y, in_place(x, b.need(layer, "ssm_d")))
    y = like(cont(z), y)
    out = b.project(layer, "ssm_out", y)
    return reshape(out, out.ne[0], batch.n_tokens)


def _scan(b: Blocks, layer: Layer, operands: tuple[Tensor, ...], d_inner: int, model: Model) -> Tensor:
    """``ssm_scan`` over cached states: outputs and new states in one tensor."""
    batch = model.batch
    cache = b.states(layer, "s", layer.recurrent[1])
    states = reshape(reshape(cache, cache.ne[0], batch.n_seq), *cache.ne)
    n_out = d_inner * batch.n_tokens
    scanned = fresh(shape(n_out + cache.ne[0] * batch.n_seq), states, *operands, b.own_state_ids)
    b.scan_states(cache, scanned)
    b.save_states(view(scanned, shape(cache.ne[0] * batch.n_seq), scanned.nb), cache)
    return scanned


def _mamba2(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    """``build_mamba2_layer``."""
    numbers, batch = model.numbers, model.batch
    d_conv, d_inner = _size(model, "ssm.conv_kernel"), _size(model, "ssm.inner_size")
    d_state, n_group = _size(model, "ssm.state_size"), int(numbers.get("ssm.group_count", 1))
    n_head = int(numbers.get("ssm.time_step_rank", 1)) or 1
    head, n_conv = d_inner // n_head, d_inner + 2 * n_group * d_state
    n_seq, n_per_seq = batch.n_seq, batch.n_tokens // batch.n_seq
    conv_cache = b.states(layer, "r", layer.recurrent[0])
    conv = reshape(b.load_states(conv_cache), d_conv - 1, n_conv, n_seq)
    zx = b.project(layer, "ssm_in", x)
    zx = reshape(zx, zx.ne[0], n_per_seq, n_seq)
    heads = (head, n_head, n_per_seq, n_seq)
    z = view(zx, heads, (4, 4 * head, zx.nb[1], zx.nb[2]))
    x_bc = view(zx, shape(n_conv, n_per_seq, n_seq), zx.nb)
    dt = view(zx, shape(n_head, n_per_seq, n_seq), zx.nb)
    conv_x = concat(conv, transpose(x_bc), 0)
    b.save_states(view(conv_x, shape(d_conv - 1, n_conv, n_seq), conv_x.nb), conv_cache)
    x_bc = fresh(shape(n_conv, n_per_seq, n_seq), conv_x, b.need(layer, "ssm_conv1d.weight"))
    bias = b.weight(layer, "ssm_conv1d.bias")
    x_bc = in_place(x_bc if bias is None else in_place(x_bc, bias))
    x = view(x_bc, heads, (4, 4 * head, x_bc.nb[1], x_bc.nb[2]))
    group = ((d_state, n_group, n_per_seq, n_seq), (4, 4 * d_state, x_bc.nb[1], x_bc.nb[2]))
    b_part, c_part = view(x_bc, *group), view(x_bc, *group)
    dt = in_place(cont(dt), b.need(layer, "ssm_dt.bias"))
    y = _scan(b, layer, (x, dt, b.need(layer, "ssm_a"), b_part, c_part), d_inner, model)
    y = view(y, heads, (4, x.nb[1], n_head * x.nb[1], n_per_seq * n_head * x.nb[1]))
    y = in_place(y, in_place(x, b.need(layer, "ssm_d")))
    y = like(cont(z), y)
    if b.weight(layer, "ssm_norm.weight") is not None:
        y = b.norm(reshape(y, d_inner // n_group, n_group, n_per_seq, n_seq), layer, "ssm_norm")
    return b.project(layer, "ssm_out", reshape(y, d_inner, batch.n_tokens))


def state_space(model: Model) -> Graph:
    """Mamba and Mamba 2: one recurrent block after another."""
    b, x = _begin(model, _PLAIN)
    mix = _mamba2 if model.name == "mamba2" else _mamba
    for layer in model.layers:
        cur = mix(b, b.norm(x, layer, "attn_norm"), layer, model)
        if layer.last:
            cur, x = b.pick_outputs(cur), b.pick_outputs(x)
        x = in_place(cur, x)
    return _end(b, x, model, _PLAIN)


# --- Gated delta nets -------------------------------------------------------------------------------------------


def _delta_net(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    """``build_layer_attn_linear`` of qwen35 and qwen3next: a gated delta rule over a convolution."""
    numbers, batch = model.numbers, model.batch
    n_seq, n_per_seq = batch.n_seq, batch.n_tokens // batch.n_seq
    d_inner, head_k = _size(model, "ssm.inner_size"), _size(model, "ssm.state_size")
    n_k, n_v = int(numbers.get("ssm.group_count", 1)), int(numbers.get("ssm.time_step_rank", 1)) or 1
    head_v, d_conv = d_inner // n_v, _size(model, "ssm.conv_kernel")
    n_channels = d_inner + 2 * n_k * head_k
    mixed, z = _delta_inputs(b, x, layer, n_channels, d_inner)
    mixed = reshape(mixed, n_channels, n_per_seq, n_seq)
    beta, alpha = _delta_gates(b, x, layer, n_v)
    beta = in_place(reshape(beta, 1, n_v, n_per_seq, n_seq))
    alpha = reshape(alpha, n_v, n_per_seq, n_seq)
    gate = in_place(in_place(in_place(alpha, b.need(layer, "ssm_dt.bias"))), b.need(layer, "ssm_a"))
    gate = reshape(gate, 1, n_v, n_per_seq, n_seq)
    conv_cache = b.states(layer, "r", layer.recurrent[0])
    conv = reshape(b.load_states(conv_cache), d_conv - 1, n_channels, n_seq)
    conv_input = concat(conv, transpose(mixed), 0)
    b.save_states(view(conv_input, shape(d_conv - 1, n_channels, n_seq), conv_input.nb), conv_cache)
    cache = b.states(layer, "s", layer.recurrent[1])
    state = reshape(b.load_states(cache), head_v, head_v, n_v, n_seq)
    conv_out = fresh(shape(n_channels, n_per_seq, n_seq), conv_input, b.need(layer, "ssm_conv1d.weight"))
    conv_out = in_place(conv_out)

    def part(head: int, n_head: int) -> Tensor:
        row = 4 * n_channels
        return view(conv_out, (head, n_head, n_per_seq, n_seq), (4, 4 * head, row, row * n_per_seq))

    q, k, v = part(head_k, n_k), part(head_k, n_k), part(head_v, n_v)
    q, k = in_place(in_place(q)), in_place(in_place(k))
    result = fresh(shape(d_inner, batch.n_tokens + head_v * n_seq), q, k, v, gate, beta, state)
    out = view(result, (head_v, n_v, n_per_seq, n_seq), _packed(head_v, n_v, n_per_seq, n_seq))
    new_state = view(result, (head_v, head_v, n_v, n_seq), _packed(head_v, head_v, n_v, n_seq))
    b.save_states(new_state, cache)
    z = reshape(z, head_v, n_v, n_per_seq, n_seq)
    out = in_place(b.norm(out, layer, "ssm_norm"), in_place(z))
    out = b.project(layer, "ssm_out", reshape(out, d_inner, n_per_seq, n_seq))
    return reshape(out, out.ne[0], batch.n_tokens)


def _packed(*ne: int) -> tuple[int, int, int, int]:
    return 4, 4 * ne[0], 4 * ne[0] * ne[1], 4 * ne[0] * ne[1] * ne[2]


def _delta_inputs(b: Blocks, x: Tensor, layer: Layer, n_channels: int, d_inner: int) -> tuple[Tensor, Tensor]:
    if b.weight(layer, "attn_qkv.weight") is not None:
        return b.project(layer, "attn_qkv", x), b.project(layer, "attn_gate", x)
    both = b.project(layer, "ssm_in", x)
    return fresh(shape(n_channels, x.ne[1]), both), fresh(shape(d_inner, x.ne[1]), both)


def _delta_gates(b: Blocks, x: Tensor, layer: Layer, n_v: int) -> tuple[Tensor, Tensor]:
    if b.weight(layer, "ssm_beta.weight") is not None:
        return b.project(layer, "ssm_beta", x), b.project(layer, "ssm_alpha", x)
    both = b.project(layer, "ssm_ba", x)
    return fresh(shape(n_v, x.ne[1]), both), fresh(shape(n_v, x.ne[1]), both)


def _gated_attention(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    """``build_layer_attn`` of qwen35 and qwen3next: the query product carries an output gate."""
    heads, n_tokens = layer.heads, model.batch.n_tokens
    d, n = heads.head_k, heads.n_head
    full, k, v = (b.project(layer, name, x) for name in ("attn_q", "attn_k", "attn_v"))
    stride = (4, 8 * d, 8 * d * n, 8 * d * n * n_tokens)
    q = b.norm(view(full, shape(d, n, n_tokens), stride), layer, "attn_q_norm")
    k = b.norm(reshape(k, d, heads.n_head_kv, n_tokens), layer, "attn_k_norm")
    gate = fresh(shape(d * n, n_tokens), view(full, shape(d, n, n_tokens), stride))
    v = reshape(v, heads.head_v, heads.n_head_kv, n_tokens)
    q, k = rope(q, b.positions), rope(k, b.positions)
    cur = b.attend(layer, q, k, v, output=None)
    return b.project(layer, "attn_output", in_place(cur, in_place(gate)))


def delta_hybrid(model: Model) -> Graph:
    """Qwen 3.5 and Qwen3-Next: three delta-net blocks to one of attention."""
    picks_at_end = model.name != "qwen3next"
    style = Style(picks_at_end=picks_at_end, picks_after_norm=picks_at_end)
    b, x = _begin(model, style)
    for layer in model.layers:
        residual = x
        cur = b.norm(x, layer, "attn_norm")
        b.graph.expand(cur)
        cur = (_delta_net if layer.recurrent[1] else _gated_attention)(b, cur, layer, model)
        if layer.last and not picks_at_end:
            cur, residual = b.pick_outputs(cur), b.pick_outputs(residual)
        residual = in_place(cur, residual)
        cur = _feed_forward(b, b.norm(residual, layer, "post_attention_norm"), layer, model, style)
        x = in_place(cur, residual)
    return _end(b, x, model, style)


# --- Hybrids ----------------------------------------------------------------------------------------------------


def _short_conv(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    """``build_shortconv_block`` of lfm2: a gated convolution over a few tokens."""
    batch = model.batch
    n_seq, n_per_seq = batch.n_seq, batch.n_tokens // batch.n_seq
    d_conv = max(1, int(model.numbers.get("shortconv.l_cache", 2)) - 1)
    bcx = b.project(layer, "shortconv.in_proj", reshape(x, x.ne[0], n_per_seq, n_seq))
    third = shape(bcx.ne[0] // 3, n_per_seq, n_seq)
    gate, out_gate, value = (view(bcx, third, bcx.nb) for _ in range(3))
    gated = transpose(fresh(third, gate, value))
    cache = b.states(layer, "r", layer.recurrent[0])
    conv = reshape(b.load_states(cache), d_conv, model.n_embd, n_seq)
    joined = concat(conv, gated, 0)
    b.save_states(view(joined, shape(d_conv, model.n_embd, n_seq), joined.nb), cache)
    mixed = fresh(third, joined, b.need(layer, "shortconv.conv.weight"))
    out = b.project(layer, "shortconv.out_proj", in_place(out_gate, mixed))
    return reshape(out, out.ne[0], batch.n_tokens)


def _hybrid_attention(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    q, k, v = b.qkv(x, layer)
    rotates = model.name in {"falcon-h1", "lfm2", "lfm2moe"} or model.numbers.get("rope.scaling.finetuned", 0) > 0
    q, k = _norm_heads(b, q, layer, "q"), _norm_heads(b, k, layer, "k")
    if rotates:
        q, k = rope(q, b.positions), rope(k, b.positions)
    return b.attend(layer, q, k, v)


def _hybrid_mixer(b: Blocks, x: Tensor, layer: Layer, model: Model, style: Style) -> Tensor:
    """Whatever stands where a transformer has attention."""
    if layer.recurrent != (0, 0):
        if "shortconv.in_proj.weight" in layer.weights:
            return _short_conv(b, x, layer, model)
        return (_mamba if "ssm_x.weight" in layer.weights else _mamba2)(b, x, layer, model)
    if layer.heads.n_head_kv and "attn_output.weight" in layer.weights:
        return _hybrid_attention(b, x, layer, model)
    return _feed_forward(b, x, layer, model, style)


def hybrid(model: Model) -> Graph:
    """State-space or convolution blocks among attention blocks, each with its feed-forward part where it has one."""
    single = model.name.startswith("nemotron")
    style = Style(picks_at_end=single, picks_after_norm=single, squared=single, routing=_hybrid_routing(model))
    residual_first = model.name in {"jamba", "lfm2", "lfm2moe"}
    b, x = _begin(model, style)
    for layer in model.layers:
        residual = x
        if model.name == "falcon-h1":
            attended = _hybrid_attention(b, b.norm(x, layer, "attn_norm"), layer, model)
            scanned = _mamba2(b, b.norm(x, layer, "attn_norm"), layer, model)
            x = in_place(in_place(attended, scanned), residual)
            x = b.pick_outputs(x) if layer.last else x
        else:
            cur = _hybrid_mixer(b, b.norm(x, layer, "attn_norm"), layer, model, style)
            if layer.last and not single:
                cur, residual = b.pick_outputs(cur), b.pick_outputs(residual)
            x = in_place(residual, cur) if residual_first else in_place(cur, residual)
        if "ffn_norm.weight" in layer.weights:
            cur = _feed_forward(b, b.norm(x, layer, "ffn_norm"), layer, model, style)
            x = in_place(x, cur) if residual_first else in_place(cur, x)
    return _end(b, x, model, style)


def _hybrid_routing(model: Model) -> Routing:
    routing = _routing(model, _PLAIN)
    return routing._replace(normalizes=False) if model.name == "jamba" else routing


# --- Per-layer embeddings ---------------------------------------------------------------------------------------


def _per_layer_inputs(b: Blocks, x: Tensor, model: Model) -> Tensor | None:
    """``build_inp_per_layer`` and ``project_per_layer_inputs`` of gemma4: a small embedding for every block."""
    table = b.global_weight("per_layer_token_embd.weight", model.cpu)
    if table is None:
        return None
    n_tokens, n_layer = model.batch.n_tokens, max(1, int(model.numbers.get("block_count", 1)))
    n_small = table.ne[0] // n_layer
    rows = in_place(reshape(get_rows(table, new_input(I32, n_tokens)), n_small, n_layer, n_tokens))
    b.graph.expand(rows)
    home = model.layers[0].home
    projection = b.global_weight("per_layer_model_proj.weight", home)
    if projection is None:
        return rows
    projected = reshape(in_place(mul_mat(projection, x)), n_small, n_layer, n_tokens)
    projected = b.norm_by(projected, b.global_weight("per_layer_proj_norm.weight", home), None)
    return cont(permute(in_place(in_place(projected, rows)), 0, 2, 1, 3))


def _gemma4_attention(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    heads, n_tokens = layer.heads, model.batch.n_tokens
    q = _norm_heads(b, reshape(b.project(layer, "attn_q", x), heads.head_k, heads.n_head, n_tokens), layer, "q")
    q = rope(q, b.positions)
    if layer.owner != layer.number:
        return b.attend(layer, q, None, None, owner=layer.owner, iswa=True)
    flat_k = b.project(layer, "attn_k", x)
    flat_v = b.project(layer, "attn_v", x) if "attn_v.weight" in layer.weights else flat_k
    k = reshape(flat_k, heads.head_k, heads.n_head_kv, n_tokens)
    v = in_place(reshape(flat_v, heads.head_v, heads.n_head_kv, n_tokens))
    k = rope(_norm_heads(b, k, layer, "k"), b.positions)
    return b.attend(layer, q, k, v, iswa=True)


def _gemma4_feed_forward(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    out = b.ffn(b.norm(x, layer, "ffn_norm"), layer)
    if "ffn_gate_inp.weight" not in layer.weights:
        return out
    out = b.norm(out, layer, "post_ffw_norm_1")
    routed = b.moe(b.norm(x, layer, "pre_ffw_norm_2"), layer, _routing(model, _PLAIN), scores_from=in_place(x))
    return in_place(out, b.norm(routed, layer, "post_ffw_norm_2"))


def gemma4(model: Model) -> Graph:
    """Sliding blocks among full ones with other heads, late blocks that reuse caches, per-layer embeddings."""
    style = Style(scales_rows=True, picks_at_end=True, picks_after_norm=True)
    b, x = _begin(model, style)
    small = _per_layer_inputs(b, x, model)
    for layer in model.layers:
        cur = _gemma4_attention(b, b.norm(x, layer, "attn_norm"), layer, model)
        residual = in_place(b.norm(cur, layer, "post_attention_norm"), x)
        x = in_place(b.norm(_gemma4_feed_forward(b, residual, layer, model), layer, "post_ffw_norm"), residual)
        if small is not None:
            gate = in_place(b.project(layer, "inp_gate", x))
            gate = in_place(gate, view(small, shape(small.ne[0], small.ne[1]), small.nb))
            x = in_place(x, b.norm(b.project(layer, "proj", gate), layer, "post_norm"))
        scale = b.weight(layer, "layer_output_scale.weight")
        x = x if scale is None else in_place(x, scale)
    return _end(b, x, model, style)


FAMILIES: Final[Mapping[str, Callable[[Model], Graph]]] = {
    "deepseek2": latent_transformer,
    "falcon-h1": hybrid,
    "gemma4": gemma4,
    "granitehybrid": hybrid,
    "jamba": hybrid,
    "lfm2": hybrid,
    "lfm2moe": hybrid,
    "nemotron_h": hybrid,
    "nemotron_h_moe": hybrid,
    "mamba": state_space,
    "mamba2": state_space,
    "qwen35": delta_hybrid,
    "qwen35moe": delta_hybrid,
    "qwen3next": delta_hybrid,
}


def build_graph(model: Model) -> Graph:
    """Return the graph that llama.cpp reserves memory for."""
    return FAMILIES.get(model.name, transformer)(model)
