"""The graph of Hunyuan V4: latent attention between hyper-connections, whose streams are not mixed with each other.

Restates ``src/models/hy-v4.cpp`` (llama.cpp build 11434) as far as it shapes memory. It does not know devices, bytes of
weights or how memory is allocated.
"""

from launcher.planner.footprint.family import PLAIN, Model, begin, end, feed_forward, size_of
from launcher.planner.footprint.graph import Graph, Tensor, concat, in_place, like, mul_mat, reshape
from launcher.planner.footprint.latent import Chooser, latent_attention, latent_routing
from launcher.planner.footprint.streams import (
    Gate,
    begin_streams,
    columns,
    one_stream,
    pick_streams,
    read_gate,
    reduce_streams,
    weigh_head,
    weigh_streams,
)


def _reduce(streams: Tensor, weights: Tensor) -> Tensor:
    """``hy_v4_hc_reduce``: of a copy of the streams, into another tensor."""
    return like(reduce_streams(like(streams), weights))


def _read(streams: Tensor, gate: Gate) -> tuple[Tensor, Tensor]:
    """``build_hc_pre``: what a part reads of the streams, and the weights by which they take in what it puts out."""
    n_embd, n_stream, n_tokens, _ = streams.ne
    mixes = mul_mat(gate.product, in_place(reshape(streams, n_embd * n_stream, n_tokens)))
    before, after = weigh_streams(mixes, gate, n_stream), in_place(weigh_streams(mixes, gate, n_stream))
    return _reduce(streams, before), after


def _take_in(x: Tensor, streams: Tensor, weights: Tensor) -> Tensor:
    """``build_hc_post``: each stream with its share of what a part put out."""
    n_embd, n_stream, n_tokens, _ = streams.ne
    cast, weights, before = like(x), like(weights), like(streams)
    out = None
    for _ in range(n_stream):
        grown = in_place(one_stream(before), in_place(cast, columns(weights, 1)))
        grown = reshape(grown, n_embd, 1, n_tokens)
        out = grown if out is None else concat(out, grown, 1)
    assert out is not None  # noqa: S101 - there is at least one stream
    return like(out)


def hyper_connected(model: Model) -> Graph:
    """Hunyuan V4: latent attention with a gate, and an indexer in some of its files."""
    style = PLAIN._replace(routing=latent_routing(model))
    b, x = begin(model, style)
    chooser = Chooser(spreads=False) if any(layer.n_index for layer in model.layers) else None
    streams = begin_streams(x, size_of(model, "hyper_connection.count"))
    for layer in model.layers:
        cur, weights = _read(streams, read_gate(b, layer, "attn"))
        cur = latent_attention(b, b.norm(cur, layer, "attn_norm"), layer, model, chooser=chooser)
        streams = _take_in(cur, streams, weights)
        cur, weights = _read(streams, read_gate(b, layer, "ffn"))
        cur = feed_forward(b, b.norm(cur, layer, "ffn_norm"), layer, model, style)
        streams = _take_in(cur, streams, weights)
    streams = pick_streams(b, streams)
    return end(b, _reduce(streams, weigh_head(b, streams, model.output_home)), style)
