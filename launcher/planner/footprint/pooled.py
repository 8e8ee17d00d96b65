"""The graph of GLM 5 Next: delta-rule blocks among latent attention to pools of tokens that an indexer chooses.

Restates ``src/models/glm5-next.cpp`` and ``src/llama-memory-hybrid-idx.cpp`` (llama.cpp build 11434) as far as they shape
memory. It does not know devices, bytes of weights or how memory is allocated.
"""

from typing import Final, NamedTuple

from launcher.planner.architecture import POOLED_PARTS
from launcher.planner.footprint.blocks import Blocks, Layer
from launcher.planner.footprint.delta_latent import delta_attention
from launcher.planner.footprint.family import PLAIN, Model, begin, end, feed_forward, size_of
from launcher.planner.footprint.graph import (
    F16,
    F32,
    I32,
    I64,
    LEAF,
    Graph,
    Tensor,
    concat,
    cont,
    fresh,
    get_rows,
    in_place,
    mul_mat,
    new_input,
    permute,
    reshape,
    shape,
    store,
    sum_rows,
    transpose,
    view,
)
from launcher.planner.footprint.latent import latent_routing
from launcher.planner.footprint.mixed import find_fused, read_streams, take_in
from launcher.planner.footprint.streams import begin_streams, one_stream, pick_streams
from launcher.units import pad

_POOL_PADDING: Final = 64
"""Pools are counted in multiples of this, of which the last is always unused (``kpool_pad``)."""
_GATHERS_UP_TO: Final = 16
"""Steps of at most so many tokens gather what was chosen, if the context is longer than that."""


class _Pools(NamedTuple):
    """The inputs that all indexers share (``build_inp_kpool``)."""

    size: int
    n_chosen: int
    gathers: bool
    ids: Tensor
    cells: Tensor
    members: Tensor
    mask: Tensor
    tail: Tensor
    live: Tensor
    new_members: Tensor
    new_cells: Tensor


class _PooledBlocks(Blocks):
    """With attention to chosen pools."""

    pools: _Pools
    """Set by ``begin_pools``."""
    chosen: Tensor | None = None
    """What the last indexer chose: cells where they are gathered, else a mask."""

    def begin_pools(self, model: Model) -> None:
        """Create the inputs, in the order in which the graph has them."""
        batch, size = self.batch, size_of(model, "attention.indexer.kpool")
        n_real = batch.n_ctx // size * batch.n_seq
        n_pool = pad(n_real + 1, _POOL_PADDING)
        n_top, tail = size_of(model, "attention.indexer.top_k"), size - 1
        n_chosen = size * min(n_pool, n_top // size)
        n_chosen += tail if model.numbers.get("attention.indexer.kpool_select_tail", 1) else 0
        n_new, n_total = max(n_real, 1), batch.n_ctx * batch.n_stream
        pools = self.pools = _Pools(
            size=size,
            n_chosen=n_chosen,
            gathers=batch.n_tokens <= _GATHERS_UP_TO and n_total > n_top + tail,
            ids=new_input(I64, batch.n_tokens),
            cells=new_input(I32, n_pool),
            members=new_input(I32, size, n_pool),
            mask=new_input(F16, n_pool, batch.n_tokens),
            tail=new_input(I32, tail, batch.n_tokens),
            live=new_input(F32, n_chosen, 1, 1, batch.n_tokens),
            new_members=new_input(I32, size, n_new),
            new_cells=new_input(I64, n_new),
        )
        for tensor in (pools.cells, pools.members, pools.mask, pools.tail, pools.live):
            self.graph.expand(tensor)

    def choose(self, x: Tensor, compressed: Tensor, layer: Layer, model: Model, mask: Tensor) -> Tensor:
        """``build_kpool_select``; ``compressed`` is the query before its heads are expanded."""
        pools = self.pools
        scores = self._score(x, compressed, layer, model, pools)
        n_pool, n_tokens = scores.ne[:2]
        n_top = min(n_pool, size_of(model, "attention.indexer.top_k") // pools.size)
        top = fresh(shape(n_top, n_tokens), scores, element=I32)
        best = get_rows(reshape(scores, 1, n_pool, n_tokens), top)
        order = fresh(shape(n_top, n_tokens), reshape(best, n_top, n_tokens), element=I32)
        top = get_rows(reshape(fresh(top.ne, top), 1, n_top, n_tokens), order)
        top = fresh(shape(n_top, n_tokens), cont(reshape(top, n_top, n_tokens)), element=I32)
        cells = reshape(get_rows(pools.members, reshape(top, n_top * n_tokens)), pools.size * n_top, n_tokens)
        if pools.n_chosen > pools.size * n_top:
            cells = concat(cells, pools.tail, 0)
        if pools.gathers:
            return cells
        self.graph.expand(cells)
        return self._show(cells, mask, pools)

    def _score(self, x: Tensor, compressed: Tensor, layer: Layer, model: Model, pools: _Pools) -> Tensor:
        """Cache what is new, then score all pools for each token."""
        dim, n_tokens, size = layer.n_index // POOLED_PARTS, self.batch.n_tokens, pools.size
        n_head = size_of(model, "attention.indexer.head_count")
        q = reshape(self.project(layer, "indexer.attn_q_b", compressed), dim, n_head, n_tokens)
        k = self.norm(self.project(layer, "indexer.attn_k", x), layer, "indexer.k_norm", layer_norm=True)
        gate = self.project(layer, "indexer_compressor_gate", x)
        zero = in_place(Tensor(LEAF, F32, shape(dim, n_tokens)))
        packed = reshape(concat(concat(k, gate, 0), zero, 0), POOLED_PARTS * dim, 1, n_tokens)
        cache = self._cache(layer, "index", self.batch.element_k, layer.n_index)
        self.graph.expand(self._store_rows(packed, cache, pools.ids))
        n_rows, n_new = cache.ne[1] * cache.ne[2], pools.new_cells.ne[0]
        rows = get_rows(view(cache, shape(2 * dim, n_rows), cache.nb), reshape(pools.new_members, size * n_new))
        rows = reshape(rows, 2 * dim, size, n_new)
        new_k, new_gate = (view(rows, shape(dim, size, n_new), rows.nb) for _ in range(2))
        weights = in_place(new_gate, self.need(layer, "indexer_compressor_ape.weight"))
        weights = in_place(reshape(cont(permute(weights, 1, 0, 2, 3)), size, dim * n_new))
        weighed = in_place(reshape(weights, size, dim, n_new), cont(permute(new_k, 1, 0, 2, 3)))
        pooled = view(cache, shape(dim, n_rows), cache.nb)
        self.graph.expand(store(reshape(sum_rows(weighed), dim, n_new), pooled, pools.new_cells))
        n_pool = pools.cells.ne[0]
        keys = reshape(get_rows(pooled, pools.cells), dim, 1, n_pool)
        weights = in_place(self.project(layer, "indexer.proj", x))
        return fresh(shape(n_pool, n_tokens), q, keys, weights, pools.mask)

    @staticmethod
    def _show(cells: Tensor, mask: Tensor, pools: _Pools) -> Tensor:
        """A mask that leaves only the chosen cells visible; what was chosen in vain goes to columns behind it."""
        n_cells, n_tokens, n_chosen = mask.ne[0], cells.ne[1], pools.n_chosen
        element = mask.element

        def spread(n: int) -> Tensor:
            row = in_place(Tensor(LEAF, element, shape(n)))
            return reshape(fresh(shape(n, n_tokens), row, element=element), 1, n, n_tokens)

        hidden, zeros = spread(n_cells + n_chosen), spread(n_chosen)
        live = in_place(reshape(pools.live, n_chosen, n_tokens))
        behind = fresh(shape(n_chosen))
        ids = in_place(in_place(in_place(fresh(cells.ne, cells), behind), live), behind)
        ids = fresh(cells.ne, ids, element=I32)
        shown = store(zeros, hidden, reshape(ids, n_chosen, n_tokens))
        shown = view(shown, shape(n_cells, n_tokens), (element.size, hidden.nb[2], hidden.nb[3], hidden.nb[3]))
        return in_place(shown, reshape(mask, n_cells, n_tokens))

    def attend_pools(self, x: Tensor, layer: Layer, model: Model) -> Tensor:
        """``build_dsa_layer``."""
        pools = self.pools
        heads, batch, n_tokens = layer.heads, self.batch, self.batch.n_tokens
        compressed = self.norm(self.project(layer, "attn_q_a", x), layer, "attn_q_a_norm")
        head_k = size_of(model, "attention.key_length_mla")
        q = reshape(self.project(layer, "attn_q_b", compressed), head_k, heads.n_head, n_tokens)
        k = self.norm(self.project(layer, "attn_kv_a_mqa", x), layer, "attn_kv_a_norm")
        k = reshape(k, heads.head_k, 1, n_tokens)
        q = permute(mul_mat(self.need(layer, "attn_k_b.weight"), permute(q, 0, 2, 1, 3)), 0, 2, 1, 3)
        inp = self._attention_input(heads)
        if layer.n_index or self.chosen is None:
            self.chosen = self.choose(x, compressed, layer, model, inp.mask)
        for tensor in (q, k):
            self.graph.expand(tensor)
        cache = self._cache(layer, "k", batch.element_k, heads.head_k)
        self.graph.expand(self._store_rows(k, cache, inp.k_idxs))
        if pools.gathers:
            self.graph.expand(inp.mask)
            out = self._attend_gathered(q, cache, layer, pools, self.chosen)
        else:
            keys = self._cache_view(cache, heads.head_k, 1)
            mask = reshape(self.chosen, *inp.mask.ne)
            out = self._mha(q, keys, keys, mask, None, v_mla=self.weight(layer, "attn_v_b.weight"))
        return self.project(layer, "attn_output", out)

    def _attend_gathered(self, q: Tensor, cache: Tensor, layer: Layer, pools: _Pools, chosen: Tensor) -> Tensor:
        """Attention of each token to rows of its own."""
        n_row, n_tokens, n_chosen = cache.ne[0], self.batch.n_tokens, pools.n_chosen
        rows = view(cache, shape(n_row, cache.ne[1] * cache.ne[2]), cache.nb)
        k = reshape(get_rows(rows, reshape(chosen, n_chosen * n_tokens)), n_row, n_chosen, 1, n_tokens)
        scores = in_place(mul_mat(k, permute(q, 0, 2, 3, 1)), pools.live)
        out = mul_mat(self.need(layer, "attn_v_b.weight"), mul_mat(cont(transpose(k)), scores))
        return reshape(cont(permute(out, 0, 2, 1, 3)), out.ne[0] * layer.heads.n_head, n_tokens)


def _mean(streams: Tensor) -> Tensor:
    """``build_hc_mean``."""
    total = one_stream(streams)
    for _ in range(streams.ne[1] - 1):
        total = in_place(total, one_stream(streams))
    return in_place(total)


def pooled_attention(model: Model) -> Graph:
    """GLM 5 Next."""
    style = PLAIN._replace(routing=latent_routing(model))
    b, x = begin(model, style, _PooledBlocks)
    b.begin_pools(model)
    fused = find_fused(model, pins_last=False)
    streams = begin_streams(x, size_of(model, "hyper_connection.count"))
    for layer in model.layers:
        cur, taking = read_streams(b, streams, layer, "attn", fused=fused.read)
        cur = b.norm(cur, layer, "attn_norm")
        b.graph.expand(cur)
        cur = delta_attention(b, cur, layer, model) if layer.recurrent[1] else b.attend_pools(cur, layer, model)
        streams = take_in(cur, streams, taking, fused=fused.take_in)
        cur, taking = read_streams(b, streams, layer, "ffn", fused=fused.read)
        cur = feed_forward(b, b.norm(cur, layer, "ffn_norm"), layer, model, style)
        streams = take_in(cur, streams, taking, fused=fused.take_in)
    return end(b, _mean(pick_streams(b, streams)), style)
