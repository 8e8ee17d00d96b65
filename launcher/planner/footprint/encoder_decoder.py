"""The graph of T5's decoder, the only one that is reserved: each block also attends to what the encoder put out.

Restates ``src/models/t5.cpp`` (llama.cpp build 11434) as far as it shapes memory. It does not know devices, bytes of
weights or how memory is allocated.
"""

from launcher.planner.footprint.blocks import Blocks, Layer, rotate_heads
from launcher.planner.footprint.family import PLAIN, Model, begin, size_of
from launcher.planner.footprint.graph import (
    F16,
    F32,
    I32,
    Graph,
    Tensor,
    cont,
    get_rows,
    in_place,
    new_input,
    permute,
    reshape,
)


class _DecoderBlocks(Blocks):
    """With biases by distance, and attention to the encoder's output."""

    def bias(self, buckets: Tensor, table: Tensor) -> Tensor:
        """``build_pos_bias``: ``(n_cells, n_tokens, n_head)``."""
        n_cells, n_tokens = buckets.ne[:2]
        rows = get_rows(table, reshape(buckets, n_cells * n_tokens))
        return cont(permute(reshape(rows, rows.ne[0], n_cells, n_tokens), 2, 0, 1, 3))

    def attend_biased(self, x: Tensor, layer: Layer, bias: Tensor) -> Tensor:
        """``build_attn`` with a bias, which flash attention does not know."""
        inp = self._attention_input(layer.heads)
        q, k, v = self._cache_batch(layer, inp, self.qkv(x, layer), iswa=False)
        out = self._mha(q, k, v, inp.mask, None, bias=bias)
        return self.project(layer, "attn_o", out if inp.v_rot is None else rotate_heads(out, inp.v_rot))

    def attend_across(self, x: Tensor, layer: Layer, encoded: Tensor, mask: Tensor) -> Tensor:
        """``build_attn`` with the encoder's output as keys and values."""
        heads, n_encoded = layer.heads, encoded.ne[1]
        q = reshape(self.project(layer, "cross_attn_q", x), heads.head_k, heads.n_head, self.batch.n_tokens)
        k = reshape(self.project(layer, "cross_attn_k", encoded), heads.head_k, heads.n_head_kv, n_encoded)
        v = reshape(self.project(layer, "cross_attn_v", encoded), heads.head_v, heads.n_head_kv, n_encoded)
        for tensor in (q, k, v):
            self.graph.expand(tensor)
        return self.project(layer, "cross_attn_o", self._mha(q, k, v, mask, None))


def decoder(model: Model) -> Graph:
    """T5, reserved for an encoder's output as long as the training context."""
    batch, n_encoded = model.batch, size_of(model, "context_length")
    b, x = begin(model, PLAIN, _DecoderBlocks)
    encoded = new_input(F32, model.n_embd, n_encoded)
    mask = new_input(F16 if batch.flash_attn else F32, n_encoded, batch.n_tokens)
    first = model.layers[0]
    buckets = new_input(I32, first.heads.n_cells, batch.n_tokens)
    for layer in model.layers:
        table = b.weight(layer, "attn_rel_b.weight")
        bias = b.bias(buckets, b.need(first, "attn_rel_b.weight") if table is None else table)
        x = in_place(b.attend_biased(b.norm(x, layer, "attn_norm"), layer, bias), x)
        cur = b.attend_across(b.norm(x, layer, "cross_attn_norm"), layer, encoded, mask)
        if layer.last:
            cur, x = b.pick_outputs(cur), b.pick_outputs(x)
        residual = in_place(cur, x)
        x = in_place(b.ffn(b.norm(residual, layer, "ffn_norm"), layer), residual)
    home = model.output_home
    x = b.norm_outside(x, "dec.output_norm", home)
    b.head(x, normed=True)
    return b.graph
