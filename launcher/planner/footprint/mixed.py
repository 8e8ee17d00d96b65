"""Hyper-connections whose streams are mixed: what each part of a block reads of them, and how they take in what it puts out.

Restates ``build_hc_pre`` and ``build_hc_post`` of ``src/models/deepseek4.cpp`` and ``glm5-next.cpp`` (llama.cpp build
11434) as far as they shape memory. It does not know what the parts do.
"""

from itertools import pairwise
from typing import Final, NamedTuple

from launcher.planner.footprint.blocks import Blocks, Layer
from launcher.planner.footprint.family import Model, size_of
from launcher.planner.footprint.graph import Tensor, concat, fresh, in_place, mul_mat, reshape, shape, view
from launcher.planner.footprint.streams import columns, one_stream, read_gate, reduce_streams, weigh_streams


class Fused(NamedTuple):
    """Which parts of hyper-connections are one operation each."""

    read: bool
    take_in: bool


_ROWS_TO_OFFLOAD: Final = 32
"""Operations of so many rows are taken over by a device, though their weights are on the host."""


def find_fused(model: Model, *, pins_last: bool) -> Fused:
    """``resolve_fused_ops``: a graph of one token per slot is placed; what leaves its block's device is given up.

    A device takes over products of as many rows as it has tokens, and the mix of streams, which has a row for each. Behind
    the last block on the host, streams are taken in where the next weights are, unless the engine ``pins_last`` of all
    operations to its block (those that it calls ``l_last``).
    """
    n_rows = model.batch.n_seq
    homes = [layer.home for layer in model.layers] + [model.output_home]
    leaves = any(before == model.cpu != after for before, after in pairwise(homes))
    stays = model.cpu == 0 or all(layer.home != model.cpu for layer in model.layers)
    n_stream = size_of(model, "hyper_connection.count")
    return Fused(
        read=stays or n_rows * n_stream < _ROWS_TO_OFFLOAD,
        take_in=(pins_last or not leaves) and (stays or n_rows < _ROWS_TO_OFFLOAD),
    )


class Taking(NamedTuple):
    """By what the streams take in what a part puts out."""

    after: Tensor
    mix: Tensor


def read_streams(b: Blocks, streams: Tensor, layer: Layer, part: str, *, fused: bool) -> tuple[Tensor, Taking]:
    """``build_hc_pre``: what a part reads of the streams."""
    n_embd, n_stream, n_tokens, _ = streams.ne
    gate = read_gate(b, layer, part)
    mixes = mul_mat(gate.product, in_place(reshape(streams, n_embd * n_stream, n_tokens)))
    before, after = (weigh_streams(mixes, gate, n_stream) for _ in range(2))
    ne = shape(n_stream, n_stream, n_tokens)
    if not fused:  # a chain of small operations, which together hold no more than the last
        return reduce_streams(streams, before), Taking(after, fresh(ne, mixes))
    return fresh(shape(n_embd, n_tokens), streams, before), Taking(after, fresh(ne, mixes, gate.scale, gate.base))


def take_in(x: Tensor, streams: Tensor, taking: Taking, *, fused: bool) -> Tensor:
    """``build_hc_post``."""
    if fused:
        return fresh(streams.ne, x, streams, *taking)
    n_embd, n_stream, n_tokens, _ = streams.ne
    mix, out = taking.mix, None
    for _ in range(n_stream):
        cur = in_place(x, columns(taking.after, 1))
        for _ in range(n_stream):
            share = view(mix, shape(1, n_tokens), (4, mix.nb[2], mix.nb[3], mix.nb[3]))
            cur = in_place(cur, in_place(one_stream(streams), share))
        cur = reshape(cur, n_embd, 1, n_tokens)
        out = cur if out is None else concat(out, cur, 1)
    assert out is not None  # noqa: S101 - there is at least one stream
    return out
