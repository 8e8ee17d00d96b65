"""The graph of MiniMax M3: an indexer chooses the blocks of tokens that each group of heads sees.

Restates ``src/models/minimax-m3.cpp`` (llama.cpp build 11434) as far as it shapes memory. It does not know devices,
bytes of weights or how memory is allocated.
"""

from typing import Final

from launcher.planner.footprint.blocks import Batch, Blocks, Layer, rotate_heads
from launcher.planner.footprint.family import PLAIN, Model, begin, end, feed_forward, norm_heads, size_of
from launcher.planner.footprint.graph import (
    F16,
    F32,
    I32,
    I64,
    STORE,
    Graph,
    Tensor,
    concat,
    cont,
    flash_attn,
    fresh,
    get_rows,
    in_place,
    mul_mat,
    new_input,
    permute,
    reshape,
    rope,
    shape,
    store,
    transpose,
    view,
)
from launcher.units import pad

_RESERVED_POSITIONS: Final = 256
"""While graphs are reserved no slot holds anything: positions are counted up to the least padding (``get_n_pos``)."""


def _add_inplace(x: Tensor, y: Tensor) -> Tensor:
    """``ggml_add_inplace``: the sum is a view of the first operand."""
    return Tensor(STORE, x.element, x.ne, (x, y), x.nb, x.root or x)


class _Chosen:
    """The inputs that all layers share (``llm_graph_input_msa``)."""

    def __init__(self, batch: Batch, mask: Tensor, n_block: int) -> None:
        n_positions = pad(_RESERVED_POSITIONS, n_block)
        self.n_positions, self.n_blocks = n_positions, n_positions // n_block
        self.index_ids = new_input(I64, batch.n_tokens)
        self.bias = new_input(F32, self.n_blocks, batch.n_tokens)
        self.visible = new_input(F32, n_positions, batch.n_tokens)
        self.cells = new_input(I32, n_positions, batch.n_stream)
        self.blocks_of_cells = new_input(I32, mask.ne[0], batch.n_stream)
        self.mask = fresh(mask.ne, mask)


class _SparseBlocks(Blocks):
    """With attention to chosen blocks."""

    chosen: _Chosen | None = None

    def attend_chosen(self, layer: Layer, model: Model, x: Tensor, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The sparse branch of ``llama_model_minimax_m3::graph``, for more than one token a stream."""
        batch = self.batch
        n_index = size_of(model, "attention.indexer.head_count")
        iq = reshape(self.project(layer, "indexer.q_proj", x), layer.n_index, n_index, batch.n_tokens)
        ik = reshape(self.project(layer, "indexer.k_proj", x), layer.n_index, 1, batch.n_tokens)
        iq, ik = self.norm(iq, layer, "indexer.q_norm"), self.norm(ik, layer, "indexer.k_norm")
        iq, ik = rope(iq, self.positions), rope(ik, self.positions)
        inp = self._attention_input(layer.heads)
        shared = self.chosen
        if shared is None:
            shared = self.chosen = _Chosen(batch, inp.mask, size_of(model, "attention.indexer.block_size"))
        keys = self._cache(layer, "index", batch.element_k, layer.n_index)
        self.graph.expand(self._store_rows(ik, keys, shared.index_ids))
        q, k_view, v_view = self._cache_batch(layer, inp, qkv, iswa=True)
        n_top = min(size_of(model, "attention.indexer.top_k"), shared.n_blocks)
        masks = [self._mask_chosen(shared, iq, keys, n_index, n_top) for _ in range(batch.n_stream)]
        out, *others = (self._attend_stream(q, k_view, v_view, mask) for mask in masks)
        for other in others:
            out = concat(out, other, 1)
        if inp.v_rot is not None:
            out = rotate_heads(out, inp.v_rot)
        return self.project(layer, "attn_output", out)

    def _mask_chosen(self, shared: _Chosen, iq: Tensor, keys: Tensor, n_index: int, n_top: int) -> Tensor:
        """One stream's mask, per group of heads, that shows only the chosen blocks."""
        n_tokens, n_cells, n_blocks = self.batch.n_per_stream, keys.ne[1], shared.n_blocks
        dim = iq.ne[0]
        queries = view(iq, shape(dim, n_index, n_tokens), iq.nb)
        own_keys = view(keys, shape(dim, n_cells), (keys.nb[0], keys.nb[1], keys.nb[2], keys.nb[2]))
        by_position = get_rows(own_keys, reshape(shared.cells, shared.n_positions, 1))
        scores = mul_mat(by_position, reshape(queries, dim, n_index * n_tokens))
        scores = reshape(scores, shared.n_positions, n_index, n_tokens)
        scores = _add_inplace(scores, reshape(shared.visible, shared.n_positions, 1, n_tokens))
        best = fresh(shape(n_blocks, n_index, n_tokens), scores)
        bias = reshape(shared.bias, n_blocks, 1, n_tokens)
        top = fresh(shape(n_top, n_index, n_tokens), in_place(best, bias), element=I32)
        hidden = in_place(bias)
        hidden = fresh(hidden.ne, hidden, element=F16)
        hidden = fresh(shape(n_blocks, n_index, n_tokens), hidden, element=F16)
        zero = in_place(fresh(top.ne, top))
        n_rows = n_index * n_tokens
        shown = store(
            reshape(zero, 1, n_top, n_rows), reshape(hidden, 1, n_blocks, n_rows), reshape(top, n_top, n_rows)
        )
        shown = cont(permute(reshape(shown, n_blocks, n_index, n_tokens), 0, 2, 1, 3))
        by_block = cont(transpose(reshape(shown, n_blocks, n_rows)))
        by_cell = get_rows(by_block, reshape(shared.blocks_of_cells, n_cells, 1))
        wide = reshape(cont(transpose(by_cell)), n_cells, n_tokens, n_index)
        wide = _add_inplace(wide, reshape(shared.mask, n_cells, n_tokens, 1))
        wide = reshape(wide, n_cells, n_tokens, 1, n_index)
        return fresh(wide.ne, wide, element=F16)

    def _attend_stream(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """``build_attn_msa_fa`` of one stream: each group of heads as a sequence of its own."""
        head, n_head, n_tokens, n_group = q.ne[0], q.ne[1], self.batch.n_per_stream, k.ne[1]
        own = view(q, shape(head, n_head, n_tokens), q.nb)
        grouped = permute(reshape(own, head, n_head // n_group, n_group, n_tokens), 0, 2, 3, 1)
        k, v = (permute(view(x, (*x.ne[:3], 1), x.nb), 0, 3, 1, 2) for x in (k, v))
        out = cont(permute(flash_attn(grouped, k, v, mask, None), 0, 1, 3, 2))
        return reshape(out, head * n_head, n_tokens)


def chosen_blocks(model: Model) -> Graph:
    """MiniMax M3; without flash attention, or with one cache for several slots, all blocks attend in full.

    As is assumed of steps of one token a slot, where the engine gathers what is chosen: a MiB or two.
    """
    batch = model.batch
    is_sparse = batch.flash_attn and batch.n_stream == batch.n_seq and batch.n_per_stream > 1
    b, x = begin(model, PLAIN, _SparseBlocks)
    for layer in model.layers:
        cur = b.norm(x, layer, "attn_norm")
        q, k, v = b.qkv(cur, layer)
        q, k = (rope(norm_heads(b, part, layer, kind), b.positions) for part, kind in ((q, "q"), (k, "k")))
        chooses = is_sparse and layer.n_index > 0
        cur = b.attend_chosen(layer, model, cur, (q, k, v)) if chooses else b.attend(layer, q, k, v)
        if layer.last:
            cur, x = b.pick_outputs(cur), b.pick_outputs(x)
        residual = in_place(cur, x)
        x = in_place(feed_forward(b, b.norm(residual, layer, "ffn_norm"), layer, model, PLAIN), residual)
    return end(b, x, PLAIN)
