"""Graphs with state beside or instead of attention: state spaces, gated delta nets, short convolutions.

Restates ``src/models/mamba-base.cpp``, ``delta-net-base.cpp`` and the hybrids built on them (llama.cpp build 11434) as
far as they shape memory. It does not know devices, bytes of weights or how memory is allocated.
"""

from typing import Final

from launcher.planner.footprint.blocks import Blocks, Layer, Routing
from launcher.planner.footprint.family import (
    PLAIN,
    STYLES,
    Model,
    Style,
    begin,
    end,
    feed_forward,
    norm_heads,
    read_routing,
    scale_residual,
    size_of,
)
from launcher.planner.footprint.graph import (
    Graph,
    Tensor,
    concat,
    cont,
    fresh,
    in_place,
    like,
    mul_mat,
    permute,
    reshape,
    shape,
    transpose,
    view,
)


def _convolve(b: Blocks, x: Tensor, layer: Layer, n_tail: int, name: str = "ssm_conv1d") -> Tensor:
    """Convolve channels over the cached tail of each sequence and its tokens, whose own tail is cached in turn.

    ``x`` is ``(n_channels, n_per_seq, n_seq)``, as is the result.
    """
    n_channels, n_per_seq, n_seq = x.ne[:3]
    cache = b.states(layer, "r", layer.recurrent[0])
    tail = reshape(b.load_states(cache), n_tail, n_channels, n_seq)
    joined = concat(tail, transpose(x), 0)
    b.save_states(view(joined, shape(n_tail, n_channels, n_seq), joined.nb), cache)
    return fresh(shape(n_channels, n_per_seq, n_seq), joined, b.need(layer, f"{name}.weight"))


# --- State spaces -----------------------------------------------------------------------------------------------


def _mamba(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    """``build_mamba_layer``."""
    numbers, batch = model.numbers, model.batch
    d_conv, d_inner = size_of(model, "ssm.conv_kernel"), size_of(model, "ssm.inner_size")
    d_state, dt_rank = size_of(model, "ssm.state_size"), int(numbers.get("ssm.time_step_rank", 0))
    n_seq, n_per_seq = batch.n_seq, batch.n_per_seq
    xz = b.project(layer, "ssm_in", reshape(x, x.ne[0], n_per_seq, n_seq))
    half = shape(d_inner, n_per_seq, n_seq)
    x, z = view(xz, half, xz.nb), view(xz, half, xz.nb)
    x = _convolve(b, x, layer, d_conv - 1)
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
    y = reshape(y, *half)
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
    d_conv, d_inner = size_of(model, "ssm.conv_kernel"), size_of(model, "ssm.inner_size")
    d_state, n_group = size_of(model, "ssm.state_size"), int(numbers.get("ssm.group_count", 1))
    n_head = size_of(model, "ssm.time_step_rank")
    head, n_conv = d_inner // n_head, d_inner + 2 * n_group * d_state
    n_seq, n_per_seq = batch.n_seq, batch.n_per_seq
    zx = b.project(layer, "ssm_in", x)
    zx = reshape(zx, zx.ne[0], n_per_seq, n_seq)
    heads = (head, n_head, n_per_seq, n_seq)
    z = view(zx, heads, (4, 4 * head, zx.nb[1], zx.nb[2]))
    x_bc = view(zx, shape(n_conv, n_per_seq, n_seq), zx.nb)
    dt = view(zx, shape(n_head, n_per_seq, n_seq), zx.nb)
    x_bc = _convolve(b, x_bc, layer, d_conv - 1)
    bias = b.weight(layer, "ssm_conv1d.bias")
    x_bc = in_place(x_bc if bias is None else in_place(x_bc, bias))
    x = view(x_bc, heads, (4, 4 * head, x_bc.nb[1], x_bc.nb[2]))
    group = ((d_state, n_group, n_per_seq, n_seq), (4, 4 * d_state, x_bc.nb[1], x_bc.nb[2]))
    b_part, c_part = view(x_bc, *group), view(x_bc, *group)
    dt = in_place(cont(dt), b.need(layer, "ssm_dt.bias"))
    y = _scan(b, layer, (x, dt, b.need(layer, "ssm_a"), b_part, c_part), d_inner, model)
    y = reshape(y, *heads)
    y = in_place(y, in_place(x, b.need(layer, "ssm_d")))
    y = like(cont(z), y)
    if b.weight(layer, "ssm_norm.weight") is not None:
        y = b.norm(reshape(y, d_inner // n_group, n_group, n_per_seq, n_seq), layer, "ssm_norm")
    return b.project(layer, "ssm_out", reshape(y, d_inner, batch.n_tokens))


def _plamo2_mamba(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    """``build_plamo2_mamba_layer``: one group, gate and input interleaved by head."""
    batch = model.batch
    d_conv, d_inner = size_of(model, "ssm.conv_kernel"), size_of(model, "ssm.inner_size")
    d_state, n_head = size_of(model, "ssm.state_size"), size_of(model, "ssm.time_step_rank")
    head, n_seq = d_inner // n_head, batch.n_seq
    n_per_seq = batch.n_per_seq
    zx = b.project(layer, "ssm_in", reshape(x, x.ne[0], n_per_seq, n_seq))
    zx = fresh((head * 2, n_head, n_per_seq, n_seq), permute(zx, 0, 2, 1, 3))
    heads = (head, n_head, n_per_seq, n_seq)
    x, z = fresh(shape(d_inner, n_per_seq, n_seq), view(zx, heads, zx.nb)), view(zx, heads, zx.nb)
    x = in_place(_convolve(b, x, layer, d_conv - 1))
    mixed = mul_mat(b.need(layer, "ssm_x.weight"), x)
    n_dt = max(0, mixed.ne[0] - 2 * d_state)
    parts = [view(mixed, shape(n, n_per_seq, n_seq), mixed.nb) for n in (d_state, d_state, n_dt)]
    names = ("ssm_b_norm", "ssm_c_norm", "ssm_dt_norm")
    b_part, c_part, dt = (b.norm(part, layer, name) for part, name in zip(parts, names, strict=True))
    dt = in_place(mul_mat(b.need(layer, "ssm_dt.weight"), dt), b.need(layer, "ssm_dt.bias"))
    x = reshape(x, *heads)
    group = (d_state, 1, n_per_seq, n_seq)
    decay = reshape(b.need(layer, "ssm_a"), 1, n_head)
    operands = (x, dt, decay, reshape(b_part, *group), reshape(c_part, *group))
    y = reshape(_scan(b, layer, operands, d_inner, model), *heads)
    y = in_place(y, in_place(x, reshape(b.need(layer, "ssm_d"), 1, n_head)))
    y = like(cont(z), y)
    out = b.project(layer, "ssm_out", view(y, shape(d_inner, n_per_seq, n_seq), (4, y.nb[2], y.nb[3], y.nb[3])))
    return reshape(out, out.ne[0], batch.n_tokens)


# --- Gated delta nets -------------------------------------------------------------------------------------------


def _delta_net(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    """``build_layer_attn_linear`` of qwen35 and qwen3next: a gated delta rule over a convolution."""
    numbers, batch = model.numbers, model.batch
    n_seq, n_per_seq = batch.n_seq, batch.n_per_seq
    d_inner, head_k = size_of(model, "ssm.inner_size"), size_of(model, "ssm.state_size")
    n_k, n_v = int(numbers.get("ssm.group_count", 1)), size_of(model, "ssm.time_step_rank")
    head_v, d_conv = d_inner // n_v, size_of(model, "ssm.conv_kernel")
    n_channels = d_inner + 2 * n_k * head_k
    mixed, z = _delta_inputs(b, x, layer, n_channels, d_inner)
    mixed = reshape(mixed, n_channels, n_per_seq, n_seq)
    beta, alpha = _delta_gates(b, x, layer, n_v)
    beta = in_place(reshape(beta, 1, n_v, n_per_seq, n_seq))
    alpha = reshape(alpha, n_v, n_per_seq, n_seq)
    gate = in_place(in_place(in_place(alpha, b.need(layer, "ssm_dt.bias"))), b.need(layer, "ssm_a"))
    gate = reshape(gate, 1, n_v, n_per_seq, n_seq)
    conv_out = in_place(_convolve(b, mixed, layer, d_conv - 1))
    cache = b.states(layer, "s", layer.recurrent[1])
    state = reshape(b.load_states(cache), head_v, head_v, n_v, n_seq)

    def part(head: int, n_head: int) -> Tensor:
        row = 4 * n_channels
        return view(conv_out, (head, n_head, n_per_seq, n_seq), (4, 4 * head, row, row * n_per_seq))

    q, k, v = part(head_k, n_k), part(head_k, n_k), part(head_v, n_v)
    q, k = in_place(in_place(q)), in_place(in_place(k))
    if model.name == "qwen3next" and n_k != n_v:
        q, k = (_spread_heads(part, n_v) for part in (q, k))
    result = fresh(shape(d_inner, batch.n_tokens + head_v * n_seq), q, k, v, gate, beta, state)
    out = reshape(result, head_v, n_v, n_per_seq, n_seq)
    b.save_states(reshape(result, head_v, head_v, n_v, n_seq), cache)
    z = reshape(z, head_v, n_v, n_per_seq, n_seq)
    out = in_place(b.norm(out, layer, "ssm_norm"), in_place(z))
    out = b.project(layer, "ssm_out", reshape(out, d_inner, n_per_seq, n_seq))
    return reshape(out, out.ne[0], batch.n_tokens)


def _spread_heads(x: Tensor, n_head: int) -> Tensor:
    """Repeat each head until there are ``n_head``."""
    head, n_own, n_per_seq, n_seq = x.ne
    narrow = reshape(x, head, 1, n_own, n_per_seq * n_seq)
    return reshape(fresh((head, n_head // n_own, n_own, n_per_seq * n_seq), narrow), head, n_head, n_per_seq, n_seq)


def _delta_inputs(b: Blocks, x: Tensor, layer: Layer, n_channels: int, d_inner: int) -> tuple[Tensor, Tensor]:
    if b.weight(layer, "attn_qkv.weight") is not None:
        return b.project(layer, "attn_qkv", x), b.project(layer, "attn_gate", x)
    # one product, interleaved by key head: cut apart, and queries, keys and values put side by side
    both = b.project(layer, "ssm_in", x)
    n_tokens, n_keys = x.ne[1], (n_channels - d_inner) // 2
    cut = view(both, shape(both.ne[0], n_tokens), both.nb)
    q, k, v, z = (fresh(shape(n, n_tokens), cut) for n in (n_keys, n_keys, d_inner, d_inner))
    return concat(concat(q, k, 0), v, 0), z


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
    q, k = b.rope(q, layer), b.rope(k, layer)
    cur = b.attend(layer, q, k, v, output=None)
    return b.project(layer, "attn_output", in_place(cur, in_place(gate)))


def delta_hybrid(model: Model) -> Graph:
    """Qwen 3.5 and Qwen3-Next: three delta-net blocks to one of attention."""
    style = Style(picks_at_end=True, picks_after_norm=True)
    b, x = begin(model, style)
    for layer in model.layers:
        residual = x
        cur = b.norm(x, layer, "attn_norm")
        b.graph.expand(cur)
        cur = (_delta_net if layer.recurrent[1] else _gated_attention)(b, cur, layer, model)
        residual = in_place(cur, residual)
        cur = feed_forward(b, b.norm(residual, layer, "post_attention_norm"), layer, model, style)
        x = in_place(cur, residual)
    return end(b, x, style)


# --- Hybrids ----------------------------------------------------------------------------------------------------


def _short_conv(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    """``build_shortconv_block`` of lfm2: a gated convolution over a few tokens."""
    batch = model.batch
    n_seq, n_per_seq = batch.n_seq, batch.n_per_seq
    n_tail = max(1, int(model.numbers.get("shortconv.l_cache", 2)) - 1)
    bcx = b.project(layer, "shortconv.in_proj", reshape(x, x.ne[0], n_per_seq, n_seq))
    third = shape(bcx.ne[0] // 3, n_per_seq, n_seq)
    gate, out_gate, value = (view(bcx, third, bcx.nb) for _ in range(3))
    mixed = _convolve(b, fresh(third, gate, value), layer, n_tail, "shortconv.conv")
    out = b.project(layer, "shortconv.out_proj", in_place(out_gate, mixed))
    return reshape(out, out.ne[0], batch.n_tokens)


_ROTATING: Final = frozenset({"falcon-h1", "granitehybrid", "lfm2", "lfm2moe", "plamo2"})
"""Their attention rotates, unless the file says that it does not (Granite 4)."""


def _hybrid_attention(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    q, k, v = b.qkv(x, layer)
    rotates = model.name in _ROTATING and bool(model.numbers.get("rope.scaling.finetuned", 1))
    q, k = norm_heads(b, q, layer, "q"), norm_heads(b, k, layer, "k")
    if rotates:
        q, k = b.rope(q, layer), b.rope(k, layer)
    return b.attend(layer, q, k, v)


def _hybrid_mixer(b: Blocks, x: Tensor, layer: Layer, model: Model, style: Style) -> Tensor:
    """Whatever stands where a transformer has attention."""
    if layer.recurrent != (0, 0):
        if "shortconv.in_proj.weight" in layer.weights:
            return _short_conv(b, x, layer, model)
        if model.name == "plamo2":
            return _plamo2_mamba(b, x, layer, model)
        return (_mamba if "ssm_x.weight" in layer.weights else _mamba2)(b, x, layer, model)
    if layer.heads.n_head_kv and "attn_output.weight" in layer.weights:
        return _hybrid_attention(b, x, layer, model)
    return feed_forward(b, x, layer, model, style)


def _norm_output(b: Blocks, x: Tensor, layer: Layer, model: Model, name: str) -> Tensor:
    """What a part adds to the stream: normed where the block has that norm, scaled where the file says so."""
    return scale_residual(b.norm(x, layer, name) if f"{name}.weight" in layer.weights else x, model)


def hybrid(model: Model) -> Graph:
    """State-space or convolution blocks, alone or among attention blocks, with a feed-forward part where one has it."""
    style = STYLES.get(model.name, PLAIN)._replace(routing=_hybrid_routing(model))
    b, x = begin(model, style)
    for layer in model.layers:
        residual = x
        if model.name == "falcon-h1":
            attended = _hybrid_attention(b, b.norm(x, layer, "attn_norm"), layer, model)
            scanned = _mamba2(b, b.norm(x, layer, "attn_norm"), layer, model)
            x = in_place(in_place(attended, scanned), residual)
            x = b.pick_outputs(x) if layer.last else x
        else:
            cur = _hybrid_mixer(b, b.norm(x, layer, "attn_norm"), layer, model, style)
            if layer.last and not style.picks_at_end:
                cur, residual = b.pick_outputs(cur), b.pick_outputs(residual)
            cur = _norm_output(b, cur, layer, model, "post_attention_norm")
            x = in_place(residual, cur) if style.residual_first else in_place(cur, residual)
        if "ffn_norm.weight" in layer.weights:
            cur = feed_forward(b, b.norm(x, layer, "ffn_norm"), layer, model, style)
            cur = _norm_output(b, cur, layer, model, "post_ffw_norm")
            x = in_place(x, cur) if style.residual_first else in_place(cur, x)
    return end(b, x, style)


def _hybrid_routing(model: Model) -> Routing:
    routing = read_routing(model, PLAIN)
    return routing._replace(normalizes=False) if model.name == "jamba" else routing
