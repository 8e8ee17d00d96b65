"""The graph of DeepSeek V4: attention to the last tokens, and to rows that each stand for several of those before.

Restates ``src/models/deepseek4.cpp`` and ``src/llama-kv-cache-dsv4.cpp`` (llama.cpp build 11434) as far as they shape
memory. It does not know devices, bytes of weights or how memory is allocated.
"""

from typing import NamedTuple

from launcher.planner.architecture import OVERLAPPING_RATIO
from launcher.planner.footprint.blocks import Blocks, Layer, Routing, count_compressed, new_rotation, rotate_heads
from launcher.planner.footprint.family import PLAIN, Model, begin, end, feed_forward, size_of
from launcher.planner.footprint.graph import (
    F16,
    F32,
    I32,
    I64,
    Element,
    Graph,
    Tensor,
    concat,
    cont,
    fresh,
    get_rows,
    in_place,
    mul_mat,
    new_external,
    new_input,
    new_weight,
    permute,
    reshape,
    rope,
    shape,
    store,
    sum_rows,
    view,
)
from launcher.planner.footprint.latent import latent_routing
from launcher.planner.footprint.mixed import find_fused, read_streams, take_in
from launcher.planner.footprint.streams import begin_streams, pick_streams, reduce_streams, weigh_head


class _RawInput(NamedTuple):
    """What attention to the last tokens reads (``llm_graph_input_dsv4_raw``)."""

    ids: Tensor
    mask: Tensor
    rotation: Tensor | None


class _RowInput(NamedTuple):
    """What one kind of row reads, as it is reserved (``dsv4_build_reserve_comp_plan``)."""

    n_rows: int
    positions: Tensor
    kept_from: Tensor
    kept_to: Tensor
    read_ids: Tensor
    row_ids: Tensor
    row_positions: Tensor
    mask: Tensor
    rotation: Tensor | None


class _Kind(NamedTuple):
    """One kind of row: what its caches and weights are called, and its dimensions."""

    name: str
    weights: str
    ratio: int
    head: int

    @property
    def overlaps(self) -> bool:
        return self.ratio == OVERLAPPING_RATIO

    @property
    def n_kept(self) -> int:
        """Tokens that are kept until they fill a row."""
        return self.ratio * (2 if self.overlaps else 1)


def _matrix(x: Tensor, n: int) -> Tensor:
    """``n`` columns of the matrix ``x``."""
    return view(x, shape(n, x.ne[1]), x.nb)


def _grow(x: Tensor) -> Tensor:
    """``dsv4_append_zero_row``."""
    row = in_place(view(x, shape(x.ne[0]), x.nb))
    return concat(x, reshape(row, x.ne[0], 1), 1)


class _CompressedBlocks(Blocks):
    """With rows that stand for several tokens."""

    tokens: Tensor
    """The ids of the tokens: in the first blocks they choose the experts. This and what follows ``begin_attention`` sets."""
    raw: _RawInput
    _rows: dict[str, _RowInput]

    def begin_attention(self, x: Tensor, layer: Layer) -> None:
        """``build_inp_dsv4``, as far as all blocks share it; ``x`` are the embedded tokens."""
        batch, heads = self.batch, layer.heads
        self.tokens = x.src[1]
        self._rows = {}
        self.raw = _RawInput(
            new_input(I64, batch.n_tokens),
            self._new_mask(heads.n_cells, F16 if batch.flash_attn else F32),
            new_rotation(batch.element_k, heads.head_k, grows=True),
        )
        self.graph.expand(self.raw.mask)

    def _new_mask(self, n_cells: int, element: Element) -> Tensor:
        return new_input(element, n_cells, self.batch.n_per_stream, 1, self.batch.n_stream)

    def rows(self, kind: _Kind) -> _RowInput:
        """The inputs of one kind of row."""
        found = self._rows.get(kind.name)
        if found is None:
            batch = self.batch
            n_rows = batch.n_tokens // kind.ratio + batch.n_seq
            n_kept = min(batch.n_tokens, kind.n_kept * batch.n_stream)
            indexes = kind.name == "index"
            found = self._rows[kind.name] = _RowInput(
                n_rows=n_rows,
                positions=new_input(I32, batch.n_tokens),
                kept_from=new_input(I32, n_kept),
                kept_to=new_input(I32, n_kept),
                read_ids=new_input(I32, kind.n_kept * n_rows),
                row_ids=new_input(I64, n_rows),
                row_positions=new_input(I32, n_rows),
                mask=self._new_mask(
                    count_compressed(batch.n_ctx, kind.ratio), F16 if batch.flash_attn or indexes else F32
                ),
                rotation=new_input(F32, kind.head, kind.head)
                if indexes
                else new_rotation(batch.element_k, kind.head, grows=True),
            )
        return found

    def row_cache(self, layer: Layer, kind: _Kind) -> Tensor:
        """The rows that are cached."""
        key = (layer.place, kind.name)
        found = self._caches.get(key)
        if found is None:
            batch = self.batch
            ne = shape(kind.head, count_compressed(batch.n_ctx, kind.ratio), batch.n_stream)
            found = self._caches[key] = new_external(batch.element_k, ne, layer.home)
        return found

    def _choose(self, probs: Tensor, scores: Tensor, layer: Layer, routing: Routing) -> Tensor:
        table = self.weight(layer, "ffn_gate_tid2eid.weight")
        if table is None:
            return super()._choose(probs, scores, layer, routing)
        return get_rows(table, self.tokens)

    def compress(self, x: Tensor, layer: Layer, kind: _Kind) -> None:
        """Cache the rows that this batch fills, and keep the tokens that do not fill one."""
        inp, batch = self.rows(kind), self.batch
        value = self.project(layer, f"{kind.weights}_kv", x)
        score = self.project(layer, f"{kind.weights}_gate", x)
        score = in_place(score, get_rows(self.need(layer, f"{kind.weights}_ape.weight"), inp.positions))
        n_state = value.ne[0]

        def kept(part: str) -> Tensor:
            whole = self.states(layer, f"{kind.name} {part}", n_state * kind.n_kept)
            return view(whole, shape(n_state, kind.n_kept * batch.n_stream), (4, 4 * n_state, 0, 0))

        values, scores = concat(kept("value"), value, 1), concat(kept("score"), score, 1)
        row = (_overlapping_row if kind.overlaps else _plain_row)(values, scores, inp, kind)
        row = rope(self.norm(row, layer, f"{kind.weights}_norm"), inp.row_positions)
        if inp.rotation is not None:
            row = rotate_heads(row, inp.rotation)
        self.graph.expand(self._store_rows(row, self.row_cache(layer, kind), inp.row_ids))
        value, score = get_rows(value, inp.kept_from), get_rows(score, inp.kept_from)
        for tensor, part in ((value, "value"), (score, "score")):
            self.graph.expand(store(tensor, kept(part), inp.kept_to))

    def choose_rows(self, x: Tensor, compressed: Tensor, layer: Layer, model: Model, kind: _Kind) -> Tensor:
        """``build_lid_top_k``: the rows that each query may see; ``compressed`` is the query before it is expanded."""
        batch, inp = self.batch, self.rows(kind)
        n_head = size_of(model, "attention.indexer.head_count")
        n_per_stream, n_stream = batch.n_per_stream, batch.n_stream
        assert inp.rotation is not None  # noqa: S101 - an indexer's rows are always spread
        q = reshape(self.project(layer, "indexer.attn_q_b", compressed), kind.head, n_head, batch.n_tokens)
        q = rotate_heads(rope(q, self.positions), inp.rotation)
        weights = in_place(self.project(layer, "indexer.proj", x))
        keys = self._cache_view(self.row_cache(layer, kind), kind.head, 1)
        q = view(q, (kind.head, n_head, n_per_stream, n_stream), (*q.nb[:3], q.nb[2] * n_per_stream))
        row = weights.nb[1]
        weights = view(weights, (n_head, n_per_stream, 1, n_stream), (4, row, row * n_per_stream, row * n_per_stream))
        n_rows = inp.mask.ne[0]
        scores = fresh((n_rows, n_per_stream, 1, n_stream), q, keys, weights, inp.mask)
        n_top = min(n_rows, size_of(model, "attention.indexer.top_k"))
        return cont(fresh((n_top, n_per_stream, 1, n_stream), scores, element=I32))

    def attend_rows(self, layer: Layer, q: Tensor, k: Tensor, kind: _Kind | None, chosen: Tensor | None) -> Tensor:
        """``build_csa_lid_attention``, ``build_hca_attention``, ``build_raw_attention``: tokens, then rows."""
        raw, heads, batch = self.raw, layer.heads, self.batch
        if raw.rotation is not None:
            q, k = rotate_heads(q, raw.rotation), rotate_heads(k, raw.rotation)
        for tensor in (q, k):
            self.graph.expand(tensor)
        cache = self._cache(layer, "k", batch.element_k, heads.head_k * heads.n_head_kv)
        self.graph.expand(self._store_rows(k, cache, raw.ids))
        keys, mask = self._cache_view(cache, heads.head_k, heads.n_head_kv), raw.mask
        if kind is not None:
            rows = self.rows(kind)
            keys = concat(keys, self._cache_view(self.row_cache(layer, kind), kind.head, 1), 2)
            shown = rows.mask
            if chosen is not None:
                shown = self._unmask(rows.mask, chosen, F16 if batch.flash_attn else F32)
            mask = concat(mask, shown, 0)
        out = self._mha(q, keys, keys, mask, self.weight(layer, "attn_sinks.weight"))
        return out if raw.rotation is None else rotate_heads(out, raw.rotation)

    def output_by_group(self, x: Tensor, layer: Layer, model: Model) -> Tensor:
        """The output product: first of each group of heads, then of all."""
        n_tokens, n_group = self.batch.n_tokens, size_of(model, "attention.output_group_count")
        n_lora, n_in = size_of(model, "attention.output_lora_rank"), x.ne[0] * x.ne[1] // n_group
        # the file has one matrix below the other
        by_group = new_weight(shape(n_in, n_lora, n_group), layer.home, (layer.origin, "attn_output_a.weight"))
        out = mul_mat(by_group, permute(reshape(x, n_in, n_group, n_tokens), 0, 2, 1, 3))
        out = fresh(shape(n_lora * n_group, n_tokens), permute(out, 0, 2, 1, 3))
        return self.project(layer, "attn_output_b", out)


def _weigh(values: Tensor, scores: Tensor) -> Tensor:
    """``(head, n, n_rows)`` of each as ``(head, 1, n_rows)``: the sum of the values by the softmax of their scores."""
    values, scores = cont(permute(values, 1, 0, 2, 3)), cont(permute(scores, 1, 0, 2, 3))
    return cont(permute(sum_rows(in_place(values, in_place(scores))), 1, 0, 2, 3))


def _plain_row(values: Tensor, scores: Tensor, inp: _RowInput, kind: _Kind) -> Tensor:
    """``build_hca_compressed_kv_from_state``."""
    read = [reshape(get_rows(x, inp.read_ids), kind.head, kind.ratio, inp.n_rows) for x in (values, scores)]
    return _weigh(*read)


def _overlapping_row(values: Tensor, scores: Tensor, inp: _RowInput, kind: _Kind) -> Tensor:
    """``build_overlap_compressed_kv_from_state``: half of each token's values goes into the row after its own."""
    n_read = kind.ratio * inp.n_rows

    def join(x: Tensor) -> Tensor:
        read = get_rows(_grow(x), inp.read_ids)
        before, own = (
            reshape(cont(view(read, shape(kind.head, n_read), read.nb)), kind.head, kind.ratio, inp.n_rows)
            for _ in range(2)
        )
        return concat(before, own, 1)

    return _weigh(join(values), join(scores))


# --- Blocks -----------------------------------------------------------------------------------------------------


def _attend(b: _CompressedBlocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    heads, n_tokens = layer.heads, model.batch.n_tokens
    compressed = b.norm(b.project(layer, "attn_q_a", x), layer, "attn_q_a_norm")
    q = reshape(b.project(layer, "attn_q_b", compressed), heads.head_k, heads.n_head, n_tokens)
    q = rope(in_place(q), b.positions)
    k = b.norm(b.project(layer, "attn_kv", x), layer, "attn_kv_a_norm")
    k = rope(reshape(k, heads.head_k, 1, n_tokens), b.positions)
    positions = b.weight(layer, "attn_compressor_ape.weight")
    kind = chosen = None
    if positions is not None:
        ratio = positions.ne[1]
        kind = _Kind("overlapping" if ratio == OVERLAPPING_RATIO else "plain", "attn_compressor", ratio, heads.head_k)
        b.compress(x, layer, kind)
        if kind.overlaps:
            index = _Kind("index", "indexer_compressor", ratio, layer.n_index)
            b.compress(x, layer, index)
            chosen = b.choose_rows(x, compressed, layer, model, index)
    out = b.attend_rows(layer, q, k, kind, chosen)
    out = in_place(reshape(out, heads.head_k, heads.n_head, n_tokens), b.positions)
    return b.output_by_group(out, layer, model)


def compressed_attention(model: Model) -> Graph:
    """DeepSeek V4."""
    style = PLAIN._replace(routing=latent_routing(model))
    b, x = begin(model, style, _CompressedBlocks)
    b.begin_attention(x, model.layers[0])
    fused = find_fused(model, pins_last=True)
    streams = begin_streams(x, size_of(model, "hyper_connection.count"))
    for layer in model.layers:
        cur, taking = read_streams(b, streams, layer, "attn", fused=fused.read)
        cur = _attend(b, b.norm(cur, layer, "attn_norm"), layer, model)
        streams = take_in(cur, streams, taking, fused=fused.take_in)
        cur, taking = read_streams(b, streams, layer, "ffn", fused=fused.read)
        for tensor in (streams, *taking):
            b.graph.expand(tensor)
        cur = feed_forward(b, b.norm(cur, layer, "ffn_norm"), layer, model, style)
        streams = take_in(cur, streams, taking, fused=fused.take_in)
    streams = pick_streams(b, streams)
    return end(b, reduce_streams(streams, weigh_head(b, streams, model.output_home)), style)
