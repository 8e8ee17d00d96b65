"""Graphs of the RWKV models: a token's neighbour mixed in, a recurrent state instead of attention.

Restates ``src/models/rwkv6-base.cpp``, ``rwkv7-base.cpp``, ``rwkv6.cpp``, ``rwkv7.cpp``, ``rwkv6qwen2.cpp`` and
``arwkv7.cpp`` (llama.cpp build 11434) as far as they shape memory. It does not know devices, bytes of weights or how
memory is allocated.
"""

from typing import Final

from launcher.planner.footprint.blocks import Blocks, Layer
from launcher.planner.footprint.family import Model, Style, begin, end, size_of
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
    sum_rows,
    view,
)

_SIXTH: Final = frozenset({"rwkv6", "rwkv6qwen2"})
_OVER_QWEN: Final = frozenset({"rwkv6qwen2", "arwkv7"})
"""Transformers whose attention became a state: RMS norms, their old feed-forward part, one shifted token."""


def _shifted(x: Tensor, before: Tensor) -> Tensor:
    """Each token's predecessor: the last one of the batch before, then all tokens but the last."""
    n_embd, n_per_seq, n_seq = x.ne[:3]
    return concat(before, view(x, shape(n_embd, n_per_seq - 1, n_seq), x.nb), 1)


def _last_token(x: Tensor) -> Tensor:
    return view(x, shape(x.ne[0], 1, x.ne[2]), x.nb)


def _slice(x: Tensor, n_tokens: int) -> Tensor:
    return view(x, shape(x.ne[0], n_tokens), x.nb)


def _lerp(b: Blocks, layer: Layer, name: str, difference: Tensor, x: Tensor) -> Tensor:
    return in_place(in_place(difference, b.need(layer, f"{name}.weight")), x)


def _low_rank(b: Blocks, layer: Layer, name: str, x: Tensor, *, squashed: bool = False) -> Tensor:
    """Two thin products, with an activation between them or not."""
    inner = mul_mat(b.need(layer, f"time_mix_{name}1.weight"), x)
    return mul_mat(b.need(layer, f"time_mix_{name}2.weight"), in_place(inner) if squashed else inner)


def _finish(b: Blocks, layer: Layer, model: Model, scanned: Tensor) -> Tensor:
    """Save the new state, then norm the outputs by head where the model does."""
    n_embd, batch, head = model.n_embd, model.batch, size_of(model, "wkv.head_size")
    out = view(scanned, shape(n_embd * batch.n_tokens), scanned.nb)
    cache = b.states(layer, "s", layer.recurrent[1])
    b.save_states(view(scanned, shape(cache.ne[0] * batch.n_seq), scanned.nb), cache)
    weight, bias = b.weight(layer, "time_mix_ln.weight"), b.weight(layer, "time_mix_ln.bias")
    if weight is None or bias is None:
        return reshape(out, n_embd, batch.n_tokens)
    normed = like(reshape(out, head, n_embd // head, batch.n_tokens))
    return in_place(in_place(reshape(normed, n_embd, batch.n_tokens), weight), bias)


def _scan(b: Blocks, layer: Layer, model: Model, *operands: Tensor) -> Tensor:
    """``rwkv_wkv6``, ``rwkv_wkv7`` or ``gated_linear_attn``: outputs, then new states."""
    head, batch = size_of(model, "wkv.head_size"), model.batch
    state = b.load_states(b.states(layer, "s", layer.recurrent[1]))
    return fresh(shape(model.n_embd, batch.n_tokens + head * batch.n_seq), *operands, state)


def _time_mix7(
    b: Blocks, tokens: tuple[Tensor, Tensor], layer: Layer, model: Model, first: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``build_rwkv7_time_mix`` of tokens and their predecessors; the value of the first block goes in and out."""
    x, before = tokens
    head, n_embd, n_tokens = size_of(model, "wkv.head_size"), model.n_embd, model.batch.n_tokens
    n_head = n_embd // head
    gates = "time_mix_g1.weight" in layer.weights and "time_mix_g2.weight" in layer.weights
    difference = fresh((*x.ne[:3], 6 if gates else 5), in_place(before, x))
    mixed = _lerp(b, layer, "time_mix_lerp_fused", difference, x)
    xr, xw, xk, xv, xa, xg = (_slice(mixed, n_tokens) for _ in range(6))
    r = b.project(layer, "time_mix_receptance", xr)
    w = in_place(_low_rank(b, layer, "w", xw, squashed=True), b.need(layer, "time_mix_w0.weight"))
    w = in_place(in_place(in_place(w)))
    k, v = b.project(layer, "time_mix_key", xk), b.project(layer, "time_mix_value", xv)
    if first is None:
        first = v
    else:
        gate = in_place(in_place(_low_rank(b, layer, "v", xv), b.need(layer, "time_mix_v0.weight")))
        v = in_place(v, in_place(in_place(first, v), gate))
    a = in_place(in_place(_low_rank(b, layer, "a", xa), b.need(layer, "time_mix_a0.weight")))
    kk = like(reshape(in_place(k, b.need(layer, "time_mix_k_k.weight")), head, n_head, n_tokens))
    ka = in_place(k, b.need(layer, "time_mix_k_a.weight"))
    k = in_place(k, in_place(in_place(a, ka), ka))
    r, w, k, v, a = (reshape(part, head, n_head, n_tokens) for part in (r, w, k, v, a))
    out = _finish(b, layer, model, _scan(b, layer, model, r, w, k, v, in_place(kk), in_place(kk, a)))
    rk = sum_rows(in_place(in_place(k, r), reshape(b.need(layer, "time_mix_r_k.weight"), head, n_head)))
    out = in_place(out, reshape(in_place(v, rk), n_embd, n_tokens))
    if gates:
        inner = in_place(mul_mat(b.need(layer, "time_mix_g1.weight"), xg))
        out = in_place(out, mul_mat(b.need(layer, "time_mix_g2.weight"), inner))
    return reshape(b.project(layer, "time_mix_output", out), *x.ne), first


def _five_mixes(b: Blocks, x: Tensor, difference: Tensor, layer: Layer, model: Model) -> tuple[Tensor, ...]:
    """What the decay, key, value, receptance and gate products of RWKV 6 read."""
    n_embd, n_tokens = model.n_embd, model.batch.n_tokens
    down, up = b.need(layer, "time_mix_w1.weight"), b.need(layer, "time_mix_w2.weight")
    mixed = _lerp(b, layer, "time_mix_lerp_x", difference, x)
    mixed = reshape(in_place(mul_mat(down, mixed)), down.ne[1] // 5, 1, 5, n_tokens)
    mixed = cont(permute(mixed, 0, 1, 3, 2))
    mixed = mul_mat(reshape(up, up.ne[0], up.ne[1], 1, 5), mixed)
    fused = b.weight(layer, "time_mix_lerp_fused.weight")
    if fused is not None:
        difference, x = (reshape(part, n_embd, 1, n_tokens) for part in (difference, x))
        mixed = in_place(in_place(in_place(mixed, fused), difference), x)
        return tuple(_slice_rows(mixed, n_tokens) for _ in range(5))
    return tuple(
        in_place(
            in_place(in_place(_slice_rows(mixed, n_tokens), b.need(layer, f"time_mix_lerp_{name}.weight")), difference),
            x,
        )
        for name in "wkvrg"
    )


def _slice_rows(x: Tensor, n_tokens: int) -> Tensor:
    """One of five: here the tokens are in the third dimension."""
    row = x.nb[1]
    return view(x, shape(x.ne[0], n_tokens), (x.nb[0], row, row * n_tokens, row * n_tokens))


def _time_mix6(b: Blocks, x: Tensor, before: Tensor, layer: Layer, model: Model) -> Tensor:
    """``build_rwkv6_time_mix``; without ``time_mix_first`` it is that of a converted transformer."""
    head, n_embd, n_tokens = size_of(model, "wkv.head_size"), model.n_embd, model.batch.n_tokens
    n_head, n_head_kv = n_embd // head, layer.heads.n_head_kv
    difference = reshape(in_place(before, x), n_embd, n_tokens)
    flat = reshape(x, n_embd, n_tokens)
    xw, xk, xv, xr, xg = _five_mixes(b, flat, difference, layer, model)
    r, k, v = (
        b.project(layer, f"time_mix_{name}", part) for name, part in (("receptance", xr), ("key", xk), ("value", xv))
    )
    gate = in_place(b.project(layer, "time_mix_gate", xg))
    if n_head_kv not in {0, n_head}:
        k, v = (
            fresh((head, n_head // n_head_kv, n_head_kv, n_tokens), reshape(part, head, 1, n_head_kv, n_tokens))
            for part in (k, v)
        )
    k, v, r = (reshape(part, head, n_head, n_tokens) for part in (k, v, r))
    w = _low_rank(b, layer, "decay_w", xw, squashed=True)
    w = in_place(in_place(in_place(in_place(w, b.need(layer, "time_mix_decay.weight")))))
    w = reshape(w, head, n_head, n_tokens)
    bonus = b.weight(layer, "time_mix_first.weight")
    if bonus is None:
        scanned = _scan(b, layer, model, in_place(k, in_place(k, w)), v, r, w)
    else:
        scanned = _scan(b, layer, model, k, v, r, bonus, w)
    out = in_place(_finish(b, layer, model, scanned), gate)
    return reshape(b.project(layer, "time_mix_output", out), *x.ne)


def _channel_mix(b: Blocks, x: Tensor, before: Tensor, layer: Layer) -> Tensor:
    """``build_rwkv6_channel_mix`` and ``build_rwkv7_channel_mix``: a squared feed-forward part."""
    difference = in_place(before, x)
    key = _lerp(b, layer, "channel_mix_lerp_k", difference, x)
    if b.weight(layer, "channel_mix_receptance.weight") is None:
        return b.project(layer, "channel_mix_value", in_place(in_place(b.project(layer, "channel_mix_key", key))))
    gate = in_place(b.project(layer, "channel_mix_receptance", _lerp(b, layer, "channel_mix_lerp_r", difference, x)))
    hidden = in_place(in_place(b.project(layer, "channel_mix_key", key)))
    return in_place(gate, b.project(layer, "channel_mix_value", hidden))


def rwkv(model: Model) -> Graph:
    """RWKV 6 and 7, and the transformers that were converted to them."""
    batch, n_embd = model.batch, model.n_embd
    over_qwen, sixth = model.name in _OVER_QWEN, model.name in _SIXTH
    style = Style(layer_norm=not over_qwen)
    n_per_seq, n_shift = batch.n_per_seq, 1 if over_qwen else 2
    b, x = begin(model, style)
    if not over_qwen:
        x = b.norm_outside(x, "token_embd_norm", model.layers[0].home, layer_norm=True)
    first: Tensor | None = None
    for layer in model.layers:
        x = reshape(x, n_embd, n_per_seq, batch.n_seq)
        cache = b.states(layer, "r", layer.recurrent[0])
        shifts = reshape(b.load_states(cache), n_embd, n_shift, batch.n_seq)
        slot = shape(n_embd, 1, batch.n_seq)
        normed = b.norm(x, layer, "attn_norm", layer_norm=style.layer_norm)
        before = _shifted(normed, shifts if over_qwen else view(shifts, slot, shifts.nb))
        if sixth:
            cur = _time_mix6(b, normed, before, layer, model)
        else:
            cur, first = _time_mix7(b, (normed, before), layer, model, first)
        if over_qwen:
            b.save_states(view(_last_token(normed), shape(n_embd * batch.n_seq), normed.nb), cache)
            residual = reshape(in_place(cur, x), n_embd, batch.n_tokens)
            residual = b.pick_outputs(residual) if layer.last else residual
            cur = b.ffn(b.norm(residual, layer, "ffn_norm"), layer)
        else:
            residual = in_place(cur, x)
            second = b.norm(residual, layer, "attn_norm_2", layer_norm=True)
            before = _shifted(second, view(shifts, slot, shifts.nb))
            kept = concat(_last_token(normed), _last_token(second), 1)
            b.save_states(view(kept, shape(n_embd * n_shift * batch.n_seq), kept.nb), cache)
            residual, second, before = (reshape(part, n_embd, batch.n_tokens) for part in (residual, second, before))
            if layer.last:
                residual, second, before = (b.pick_outputs(part) for part in (residual, second, before))
            cur = _channel_mix(b, second, before, layer)
        x = in_place(cur, residual)
    return end(b, x, style)
