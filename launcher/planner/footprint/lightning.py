"""The graph of MiniMax-Text-01: lightning attention, a linear one with fixed decays, among blocks of attention.

Restates ``src/models/minimax-01.cpp`` (llama.cpp build 11434) as far as it shapes memory. It does not know devices,
bytes of weights or how memory is allocated.
"""

from typing import NamedTuple

from launcher.planner.footprint.blocks import SOFTMAX, Blocks, Layer, Routing
from launcher.planner.footprint.family import PLAIN, Model, begin, end, feed_forward, read_routing
from launcher.planner.footprint.graph import (
    F32,
    Graph,
    Tensor,
    cont,
    in_place,
    mul_mat,
    new_input,
    permute,
    reshape,
    rope,
    view,
)


class _Decays(NamedTuple):
    """How much each head forgets (``llm_graph_input_la``): per head, per query, per key, and from token to token."""

    slopes: Tensor
    of_queries: Tensor
    of_keys: Tensor
    between: Tensor


def _decays(model: Model) -> _Decays:
    n_head, n_seq, n_per_seq = model.layers[0].heads.n_head, model.batch.n_seq, model.batch.n_per_seq
    return _Decays(
        new_input(F32, n_head),
        new_input(F32, 1, n_head, n_per_seq, n_seq),
        new_input(F32, 1, n_head, n_per_seq, n_seq),
        new_input(F32, n_per_seq, n_per_seq, n_head, n_seq),
    )


def _decayed(x: Tensor) -> Tensor:
    return in_place(in_place(x))


def _lightning(b: Blocks, x: Tensor, layer: Layer, model: Model, decays: _Decays) -> Tensor:
    """The recurrent branch of ``llama_model_minimax_01::graph``."""
    batch, n_head, head = model.batch, layer.heads.n_head, layer.heads.head_v
    n_seq, n_per_seq = batch.n_seq, batch.n_per_seq
    b.load_states(b.states(layer, "r", layer.recurrent[0]))
    slope = in_place(decays.slopes)
    x = reshape(x, x.ne[0], n_per_seq, 1, n_seq)
    fused = reshape(in_place(b.project(layer, "attn_qkv", x)), 3 * head, n_head, n_per_seq, n_seq)
    q, k, v = (view(fused, (head, n_head, n_per_seq, n_seq), fused.nb) for _ in range(3))
    cache = b.states(layer, "s", layer.recurrent[1])
    before = reshape(b.load_states(cache), head, head, n_head, n_seq)
    from_before = mul_mat(before, permute(in_place(q, _decayed(decays.of_queries)), 0, 2, 1, 3))
    scores = mul_mat(permute(k, 0, 2, 1, 3), permute(q, 0, 2, 1, 3))
    values = cont(permute(v, 1, 2, 0, 3))
    from_batch = mul_mat(values, in_place(scores, _decayed(decays.between)))
    out = in_place(from_before, from_batch)
    b.graph.expand(out)
    kept = in_place(before, reshape(_decayed(slope), 1, 1, n_head))
    keys = cont(permute(in_place(k, _decayed(decays.of_keys)), 1, 2, 0, 3))
    b.save_states(in_place(kept, mul_mat(keys, values)), cache)
    out = reshape(cont(permute(out, 0, 2, 1, 3)), head * n_head, n_per_seq, 1, n_seq)
    normed = b.norm(out, layer, "attn_norm_2")
    out = b.project(layer, "attn_output", in_place(in_place(b.project(layer, "attn_gate", x)), normed))
    return reshape(out, out.ne[0], batch.n_tokens)


def _attention(b: Blocks, x: Tensor, layer: Layer) -> Tensor:
    q, k, v = b.qkv(x, layer)
    return b.attend(layer, rope(q, b.positions), rope(k, b.positions), v)


def lightning(model: Model) -> Graph:
    """Seven blocks of lightning attention to one of attention, experts in all; what is normed is the residual."""
    style = PLAIN._replace(routing=_routing(model))
    b, x = begin(model, style)
    decays = _decays(model)
    for layer in model.layers:
        residual = b.norm(x, layer, "attn_norm")
        cur = _lightning(b, residual, layer, model, decays) if layer.recurrent[1] else _attention(b, residual, layer)
        if layer.last:
            cur, residual = b.pick_outputs(cur), b.pick_outputs(residual)
        residual = b.norm(in_place(cur, in_place(residual)), layer, "ffn_norm")
        x = in_place(feed_forward(b, residual, layer, model, style), in_place(residual))
    return end(b, x, style)


def _routing(model: Model) -> Routing:
    return read_routing(model, PLAIN)._replace(gating=SOFTMAX, normalizes=True)
