"""Graphs of the Gemma models with a small embedding for every block.

Restates ``src/models/gemma4.cpp`` and ``gemma3n.cpp`` (llama.cpp build 11434) as far as they shape memory. It does not
know devices, bytes of weights or how memory is allocated.
"""

from typing import Final

from launcher.planner.footprint.blocks import Blocks, Layer
from launcher.planner.footprint.family import (
    PLAIN,
    Model,
    Style,
    begin,
    end,
    norm_heads,
    read_routing,
    size_of,
)
from launcher.planner.footprint.graph import (
    I32,
    Graph,
    Tensor,
    concat,
    cont,
    fresh,
    get_rows,
    in_place,
    mul_mat,
    new_input,
    new_weight,
    permute,
    reshape,
    rope,
    shape,
    sum_rows,
    transpose,
    view,
)


def _per_layer_inputs(b: Blocks, x: Tensor, model: Model) -> Tensor | None:
    """``build_inp_per_layer`` and ``project_per_layer_inputs`` of gemma4: a small embedding for every block."""
    table = b.global_weight("per_layer_token_embd.weight", model.cpu)
    if table is None:
        return None
    n_tokens, n_layer = model.batch.n_tokens, size_of(model, "block_count")
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


def _rotate(b: Blocks, x: Tensor, layer: Layer) -> Tensor:
    """Factors apply to the layers that see everything."""
    return rope(x, b.positions) if layer.heads.slides else b.rope(x, layer)


def _gemma4_attention(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    heads, n_tokens = layer.heads, model.batch.n_tokens
    q = norm_heads(b, reshape(b.project(layer, "attn_q", x), heads.head_k, heads.n_head, n_tokens), layer, "q")
    q = _rotate(b, q, layer)
    if layer.borrows:
        return b.attend(layer, q, None, None, iswa=True)
    flat_k = b.project(layer, "attn_k", x)
    flat_v = b.project(layer, "attn_v", x) if "attn_v.weight" in layer.weights else flat_k
    k = reshape(flat_k, heads.head_k, heads.n_head_kv, n_tokens)
    v = in_place(reshape(flat_v, heads.head_v, heads.n_head_kv, n_tokens))
    k = _rotate(b, norm_heads(b, k, layer, "k"), layer)
    return b.attend(layer, q, k, v, iswa=True)


def _gemma4_feed_forward(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    out = b.ffn(b.norm(x, layer, "ffn_norm"), layer)
    if "ffn_gate_inp.weight" not in layer.weights:
        return out
    out = b.norm(out, layer, "post_ffw_norm_1")
    routed = b.moe(b.norm(x, layer, "pre_ffw_norm_2"), layer, read_routing(model, PLAIN), scores_from=in_place(x))
    return in_place(out, b.norm(routed, layer, "post_ffw_norm_2"))


def gemma4(model: Model) -> Graph:
    """Sliding blocks among full ones with other heads, late blocks that reuse caches, per-layer embeddings."""
    style = Style(scales_rows=True, picks_at_end=True, picks_after_norm=True)
    b, x = begin(model, style)
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
    return end(b, x, style)


# --- Gemma 3n ---------------------------------------------------------------------------------------------------


_SPARSE_LAYERS: Final = 10
"""The first blocks keep only their largest activations (``n_layer_sparsity``)."""


def _magnitude(x: Tensor) -> Tensor:
    return in_place(sum_rows(in_place(x)))


def _plane(x: Tensor) -> Tensor:
    """One of the parallel residual streams."""
    return _planes(x, 1)


def _other_planes(x: Tensor) -> Tensor:
    return _planes(x, x.ne[2] - 1)


def _planes(x: Tensor, n: int) -> Tensor:
    # a copy on another backend can only be computed in place if all its strides are those of contiguous memory
    return view(x, shape(x.ne[0], x.ne[1], n), (*x.nb[:3], n * x.nb[2]))


def _project_planes(b: Blocks, name: str, x: Tensor, target: Tensor, model: Model) -> Tensor:
    """Project streams, then give them the length of the active one."""
    weight = b.global_weight(name, model.output_home) or new_weight(shape(model.n_embd, model.n_embd), model.cpu)
    projected = mul_mat(weight, x)
    return in_place(in_place(projected, target), _magnitude(projected))


def _router(b: Blocks, x: Tensor, layer: Layer) -> Tensor:
    """``altup_compute_router_modalities``."""
    routed = in_place(b.norm(x, layer, "altup_router_norm"))
    return in_place(b.project(layer, "altup_router", routed))


def _predict(b: Blocks, x: Tensor, layer: Layer) -> Tensor:
    """``altup_predict``: every stream from all of them."""
    n_planes = x.ne[2]
    coefficients = b.project(layer, "altup_predict_coef", _router(b, _plane(x), layer))
    coefficients = reshape(coefficients, n_planes, n_planes, x.ne[1])
    # streams first, then embeddings, then tokens
    predictions = mul_mat(cont(permute(x, 1, 2, 0, 3)), coefficients)
    return in_place(cont(permute(predictions, 0, 2, 1, 3)), x)


def _correct(b: Blocks, predictions: Tensor, activated: Tensor, layer: Layer) -> Tensor:
    """``altup_correct``: every stream by what the active one learnt."""
    n_tokens, n_planes = predictions.ne[1], predictions.ne[2]
    innovation = in_place(activated, _plane(predictions))
    coefficients = in_place(b.project(layer, "altup_correct_coef", _router(b, activated, layer)))
    coefficients = fresh(shape(1, n_tokens, n_planes), transpose(coefficients))
    return in_place(in_place(fresh(predictions.ne, innovation), coefficients), predictions)


def _sparse(x: Tensor) -> Tensor:
    """``gaussian_topk``."""
    mean = fresh(shape(1, x.ne[1], x.ne[2]), x)
    deviation = in_place(in_place(sum_rows(in_place(in_place(x, mean)))))
    return in_place(in_place(x, in_place(mean, in_place(deviation))))


def _gemma3n_attention(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    heads = layer.heads
    if layer.borrows:
        q = reshape(b.project(layer, "attn_q", x), heads.head_k, heads.n_head, model.batch.n_tokens)
        q = rope(norm_heads(b, q, layer, "q"), b.positions)
        return b.attend(layer, q, None, None, iswa=True)
    q, k, v = b.qkv(x, layer)
    q, k, v = norm_heads(b, q, layer, "q"), norm_heads(b, k, layer, "k"), in_place(v)
    return b.attend(layer, rope(q, b.positions), rope(k, b.positions), v, iswa=True)


def _gemma3n_block(b: Blocks, planes: Tensor, layer: Layer, model: Model, small: Tensor | None) -> Tensor:
    predictions = _predict(b, planes, layer)
    active = _plane(predictions)
    normed = b.norm(active, layer, "attn_norm")
    laurel = b.project(layer, "laurel_r", b.project(layer, "laurel_l", normed))
    laurel = in_place(b.norm(laurel, layer, "laurel_post_norm"), normed)
    cur = b.norm(_gemma3n_attention(b, normed, layer, model), layer, "post_attention_norm")
    residual = in_place(in_place(in_place(cur, active), laurel))
    cur = b.norm(residual, layer, "ffn_norm")
    up, gate = b.project(layer, "ffn_up", cur), b.project(layer, "ffn_gate", cur)
    gate = in_place(_sparse(gate) if layer.number < _SPARSE_LAYERS else gate)
    cur = b.norm(b.project(layer, "ffn_down", in_place(up, gate)), layer, "post_ffw_norm")
    corrected = _correct(b, predictions, in_place(cur, residual), layer)
    first = in_place(_plane(corrected), b.need(layer, "altup_correct_scale.weight"))
    first = in_place(b.project(layer, "inp_gate", first))
    if small is not None:
        first = in_place(first, view(small, shape(small.ne[0], small.ne[1]), small.nb))
    first = b.norm(b.project(layer, "proj", first), layer, "post_norm")
    return concat(_plane(corrected), in_place(_other_planes(corrected), first), 2)


def gemma3n(model: Model) -> Graph:
    """Several residual streams, of which one is computed and the others are predicted (AltUp)."""
    style = Style(scales_rows=True, picks_at_end=True)
    b, x = begin(model, style)
    small = _per_layer_inputs(b, x, model)
    entry = model.table.get("altup_proj.weight")
    n_others = 1 if entry is None else entry.ne[2]
    target = _magnitude(x)
    repeated = fresh(shape(model.n_embd, model.batch.n_tokens, n_others), x)
    planes = concat(x, _project_planes(b, "altup_proj.weight", repeated, target, model), 2)
    for layer in model.layers:
        planes = _gemma3n_block(b, planes, layer, model, small)
    target = _magnitude(_plane(planes))
    merged = _project_planes(b, "altup_unembd_proj.weight", _other_planes(planes), target, model)
    x = _plane(planes)
    for _ in range(n_others):
        x = in_place(x, _plane(merged))
    return end(b, in_place(x), style)
