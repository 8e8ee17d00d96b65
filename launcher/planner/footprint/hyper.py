"""The graph of Hunyuan V4: hyper-connections, which are several residual streams that each part reads a mix of.

Restates ``src/models/hy-v4.cpp`` (llama.cpp build 11434) as far as it shapes memory. It does not know devices, bytes of
weights or how memory is allocated.
"""

from typing import NamedTuple

from launcher.planner.footprint.blocks import Blocks, Layer
from launcher.planner.footprint.family import PLAIN, Model, begin, end, feed_forward, size_of
from launcher.planner.footprint.graph import Graph, Tensor, concat, fresh, in_place, like, mul_mat, reshape, shape, view
from launcher.planner.footprint.latent import Chooser, latent_attention, latent_routing


class Gate(NamedTuple):
    """The weights by which a part reads the streams: a product, then scales and offsets of what comes of it."""

    product: Tensor
    scale: Tensor
    base: Tensor


def read_gate(b: Blocks, layer: Layer, part: str) -> Gate:
    """Return the weights of one of a block's two parts."""
    return Gate(*(b.need(layer, f"hc_{part}_{name}.weight") for name in ("fn", "scale", "base")))


def columns(mixes: Tensor, n: int) -> Tensor:
    """``n`` of the numbers that each token has, ``(n, n_tokens)``."""
    return view(mixes, shape(n, mixes.ne[1]), mixes.nb)


def _reduce(streams: Tensor, weights: Tensor) -> Tensor:
    """``hy_v4_hc_reduce``: the sum of ``(n_embd, n_stream, n_tokens)`` by ``(n_stream, n_tokens)`` weights."""
    n_embd, n_stream, n_tokens, _ = streams.ne
    cast, total = like(streams), None
    for _ in range(n_stream):
        one = view(cast, shape(n_embd, n_tokens), (4, cast.nb[2], cast.nb[3], cast.nb[3]))
        weighed = in_place(one, columns(weights, 1))
        total = weighed if total is None else in_place(total, weighed)
    assert total is not None  # noqa: S101 - there is at least one stream
    return like(total)


def _read(streams: Tensor, gate: Gate) -> tuple[Tensor, Tensor]:
    """``build_hc_pre``: what a part reads of the streams, and the weights by which they take in what it puts out."""
    n_embd, n_stream, n_tokens, _ = streams.ne
    mixes = mul_mat(gate.product, in_place(reshape(streams, n_embd * n_stream, n_tokens)))

    def weigh() -> Tensor:
        scale, base = view(gate.scale, shape(1), gate.scale.nb), view(gate.base, shape(n_stream), gate.base.nb)
        return in_place(in_place(in_place(in_place(columns(mixes, n_stream), scale), base)))

    before, after = weigh(), in_place(weigh())
    return _reduce(streams, before), after


def _take_in(x: Tensor, streams: Tensor, weights: Tensor) -> Tensor:
    """``build_hc_post``: each stream with its share of what a part put out."""
    n_embd, n_stream, n_tokens, _ = streams.ne
    cast, weights, before = like(x), like(weights), like(streams)
    out = None
    for _ in range(n_stream):
        one = view(before, shape(n_embd, n_tokens), (4, before.nb[2], before.nb[3], before.nb[3]))
        grown = in_place(one, in_place(cast, columns(weights, 1)))
        grown = reshape(grown, n_embd, 1, n_tokens)
        out = grown if out is None else concat(out, grown, 1)
    assert out is not None  # noqa: S101 - there is at least one stream
    return like(out)


def _head(b: Blocks, streams: Tensor, home: int) -> Tensor:
    """``build_hc_head``: the streams as one."""
    n_embd, n_stream, n_tokens, _ = streams.ne
    product, scale, base = (b.global_weight(f"output_hc_{name}.weight", home) for name in ("fn", "scale", "base"))
    if product is None or scale is None or base is None:
        message = "hyper-connections without a head"
        raise LookupError(message)
    mixes = mul_mat(product, in_place(reshape(streams, n_embd * n_stream, n_tokens)))
    return _reduce(streams, in_place(in_place(in_place(in_place(mixes, scale), base))))


def hyper_connected(model: Model) -> Graph:
    """Hunyuan V4: latent attention with a gate, and an indexer in some of its files."""
    style = PLAIN._replace(routing=latent_routing(model))
    b, x = begin(model, style)
    chooser = Chooser(spreads=False) if any(layer.n_index for layer in model.layers) else None
    n_stream, n_tokens = size_of(model, "hyper_connection.count"), model.batch.n_tokens
    streams = fresh(shape(model.n_embd, n_stream, n_tokens), reshape(x, model.n_embd, 1, n_tokens))
    for layer in model.layers:
        cur, weights = _read(streams, read_gate(b, layer, "attn"))
        cur = latent_attention(b, b.norm(cur, layer, "attn_norm"), layer, model, chooser=chooser)
        streams = _take_in(cur, streams, weights)
        cur, weights = _read(streams, read_gate(b, layer, "ffn"))
        cur = feed_forward(b, b.norm(cur, layer, "ffn_norm"), layer, model, style)
        streams = _take_in(cur, streams, weights)
    picked = b.pick_outputs(reshape(streams, model.n_embd * n_stream, n_tokens))
    streams = reshape(picked, model.n_embd, n_stream, model.batch.n_outputs)
    return end(b, _head(b, streams, model.output_home), style)
