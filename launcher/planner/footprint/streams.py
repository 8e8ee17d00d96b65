"""Hyper-connections: several residual streams, of which each part of a block reads a mix.

Restates what ``src/models/hy-v4.cpp``, ``deepseek4.cpp`` and ``glm5-next.cpp`` (llama.cpp build 11434) have in common, as
far as it shapes memory. It does not know what the parts do or how the streams take in what they put out.
"""

from typing import NamedTuple

from launcher.planner.footprint.blocks import Blocks, Layer
from launcher.planner.footprint.graph import Tensor, fresh, in_place, mul_mat, reshape, shape, view


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


def one_stream(streams: Tensor) -> Tensor:
    """One of ``(n_embd, n_stream, n)``."""
    return view(streams, shape(streams.ne[0], streams.ne[2]), (4, streams.nb[2], streams.nb[3], streams.nb[3]))


def reduce_streams(streams: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of ``(n_embd, n_stream, n)`` by ``(n_stream, n)`` weights, in single operations."""
    total = None
    for _ in range(streams.ne[1]):
        weighed = in_place(one_stream(streams), columns(weights, 1))
        total = weighed if total is None else in_place(total, weighed)
    assert total is not None  # noqa: S101 - there is at least one stream
    return total


def weigh_streams(mixes: Tensor, gate: Gate, n_stream: int) -> Tensor:
    """Return what each stream counts, ``(n_stream, n_tokens)``: scaled and offset by the gate."""
    scale, base = view(gate.scale, shape(1), gate.scale.nb), view(gate.base, shape(n_stream), gate.base.nb)
    return in_place(in_place(in_place(in_place(columns(mixes, n_stream), scale), base)))


def begin_streams(x: Tensor, n_stream: int) -> Tensor:
    """Return the embedded tokens as ``(n_embd, n_stream, n_tokens)``."""
    n_embd, n_tokens = x.ne[:2]
    return fresh(shape(n_embd, n_stream, n_tokens), reshape(x, n_embd, 1, n_tokens))


def pick_streams(b: Blocks, streams: Tensor) -> Tensor:
    """Return the streams of those tokens that are put out."""
    n_embd, n_stream, n_tokens, _ = streams.ne
    picked = b.pick_outputs(reshape(streams, n_embd * n_stream, n_tokens))
    return reshape(picked, n_embd, n_stream, b.batch.n_outputs)


def weigh_head(b: Blocks, streams: Tensor, home: int) -> Tensor:
    """``build_hc_head``: what each stream counts in the one that they become."""
    n_embd, n_stream, n_tokens, _ = streams.ne
    product, scale, base = (b.global_weight(f"output_hc_{name}.weight", home) for name in ("fn", "scale", "base"))
    if product is None or scale is None or base is None:
        message = "hyper-connections without a head"
        raise LookupError(message)
    mixes = mul_mat(product, in_place(reshape(streams, n_embd * n_stream, n_tokens)))
    return in_place(in_place(in_place(in_place(mixes, scale), base)))
