"""The pieces that language model graphs are built from, as llama.cpp lays them out.

Restates ``llm_graph_context`` (``src/llama-graph.cpp``) and the cache views of ``src/llama-kv-cache.cpp``, build
11434: the same tensors in the same order, without their values. It does not know which architecture uses which.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from launcher.planner.footprint.graph import (
    F16,
    F32,
    I32,
    I64,
    LEAF,
    STORE,
    Element,
    Graph,
    Shape,
    Tensor,
    argsort_top_k,
    cont,
    flash_attn,
    fresh,
    get_rows,
    in_place,
    like,
    mul_mat,
    mul_mat_id,
    new_external,
    new_input,
    new_weight,
    permute,
    reshape,
    rope,
    shape,
    span,
    store,
    sum_rows,
    transpose,
    view,
)
from launcher.planner.footprint.replay import OUTSIDE
from launcher.units import pad


class Weight(NamedTuple):
    """A weight tensor's dimensions, and its bytes where they are asked for: a graph needs none."""

    ne: Shape
    n_bytes: int


class Heads(NamedTuple):
    """The attention of one layer."""

    n_head: int
    n_head_kv: int
    head_k: int
    head_v: int
    n_cells: int
    slides: bool


class Layer(NamedTuple):
    """One block: its weights by suffix, the backend that holds it, and the backend of its routed experts."""

    weights: Mapping[str, Weight]
    home: int
    experts_home: int
    heads: Heads
    recurrent: tuple[int, int]
    n_index: int
    """Elements that an indexer caches per token: 0 without one."""
    n_expert_used: int
    last: bool
    place: int
    """Among the blocks of the graph."""
    number: int
    """Of the block in the model; of the first one like it, where blocks that are alike have the same graph."""
    origin: int
    """The place of the block whose weights these are: one before it where a model loops."""
    borrows: bool
    """Whether it reads the cache of a block before it."""
    owner_home: int
    """The backend of the block whose cache it reads."""


class Batch(NamedTuple):
    """What the graph is reserved for."""

    n_tokens: int
    n_seq: int
    n_stream: int
    n_outputs: int
    flash_attn: bool
    element_k: Element
    element_v: Element
    cacheless: bool = False
    """Nothing is cached: tokens attend to those of their batch."""
    n_embd_v_padded: int = 0
    """Without flash attention all V caches have rows of the longest."""
    n_position: int = 1
    """Positions per token: 4 with multi-section rotation."""
    n_ctx: int = 0
    """Tokens that one sequence may hold."""
    n_ctx_short: int = 0
    """Up to so many, the short factors of a rotation apply."""

    @property
    def n_per_seq(self) -> int:
        """Tokens of each sequence."""
        return self.n_tokens // self.n_seq

    @property
    def n_per_stream(self) -> int:
        """Tokens of each stream of caches."""
        return self.n_tokens // self.n_stream


SOFTMAX: Final = 1
SIGMOID: Final = 2
SOFTMAX_WEIGHT: Final = 3
SQRT_SOFTPLUS: Final = 4


class Routing(NamedTuple):
    """How a mixture of experts picks and weighs them (``build_moe_ffn``)."""

    gating: int = SOFTMAX
    normalizes: bool = True
    scales: bool = False
    n_group: int = 0
    n_group_used: int = 0
    weighs_first: bool = False


_COMPRESSED_PADDING: Final = 256
"""Rows that stand for several tokens are allocated in multiples of this."""


class _AttentionInput(NamedTuple):
    k_idxs: Tensor
    v_idxs: Tensor
    mask: Tensor
    k_rot: Tensor | None
    v_rot: Tensor | None


class _IndexInput(NamedTuple):
    k_idxs: Tensor
    mask: Tensor
    rotation: Tensor


def count_compressed(n_cells: int, ratio: int) -> int:
    """Return the rows that are cached for a context where each stands for ``ratio`` tokens (``llama_kv_cache_dsv4``)."""
    return pad(max(1, -(-n_cells // ratio)), _COMPRESSED_PADDING) if ratio else 0


class Blocks:
    """A graph under construction: the inputs that all layers share, and one method per piece."""

    def __init__(self, batch: Batch, table: Mapping[str, Weight], n_embd: int, cpu: int, output_home: int) -> None:
        """Create the inputs; ``cpu`` is the host's index among the backends."""
        self.graph = Graph()
        self.batch = batch
        self.n_embd = n_embd
        self._cpu = cpu
        self._output_home = output_home
        self._table = table
        self._weights: dict[tuple[int, str], Tensor] = {}
        self._inputs: dict[tuple[bool, int], _AttentionInput] = {}
        self._batch_masks: dict[bool, Tensor] = {}
        self._caches: dict[tuple[int, str], Tensor] = {}
        self.positions = new_input(I32, batch.n_tokens * batch.n_position)
        self.query_scale = new_input(F32, 1, 1, batch.n_tokens)
        self.out_ids = new_input(I32, batch.n_outputs)
        self.state_ids = new_input(I32, batch.n_seq)
        self.own_state_ids = view(self.state_ids, shape(batch.n_seq), self.state_ids.nb)
        self._other_state_ids = view(self.state_ids, shape(batch.n_seq - 1), self.state_ids.nb)
        self._index_input: _IndexInput | None = None

    # --- Weights ------------------------------------------------------------------------------------------------

    def weight(self, layer: Layer, name: str) -> Tensor | None:
        """Return a block's tensor by its suffix, or ``None`` where the file has none."""
        key = (layer.origin, name)
        found = self._weights.get(key)
        if found is not None:
            return found
        entry = layer.weights.get(name)
        if entry is None:
            return None
        home = layer.experts_home if "_exps" in name or "_chexps" in name else layer.home
        found = self._weights[key] = new_weight(entry.ne, home, key)
        return found

    def need(self, layer: Layer, name: str) -> Tensor:
        """Return a block's tensor; one that the file lacks stands in as a square matrix."""
        found = self.weight(layer, name)
        if found is None:
            found = self._weights[layer.origin, name] = new_weight(shape(self.n_embd, self.n_embd), layer.home)
        return found

    def global_weight(self, name: str, home: int) -> Tensor | None:
        """Return a tensor outside the blocks."""
        key = (-1 - home, name)
        if key not in self._weights and name in self._table:
            self._weights[key] = new_weight(self._table[name].ne, home, (OUTSIDE, name))
        return self._weights.get(key)

    # --- Beginning and end --------------------------------------------------------------------------------------

    def embed(self, *, scaled: bool = False, scale_rows: bool = False, n_extra: int = 0, mixes: bool = True) -> Tensor:
        """``build_inp_embd``: token embeddings, and the branches for embedding and, where a model ``mixes``, mixed batches."""
        n_tokens = self.batch.n_tokens
        n_embd = self.n_embd * (1 + n_extra)
        table = self.global_weight("token_embd.weight", self._cpu) or new_weight(shape(self.n_embd, 1), self._cpu)

        def rows(ids: Tensor) -> Tensor:
            embedded = get_rows(table, ids)
            return fresh(shape(n_embd, n_tokens), embedded) if n_extra else embedded

        x = rows(new_input(I32, n_tokens))
        self.graph.expand(x)
        self.graph.expand(new_input(F32, n_embd, n_tokens))
        if mixes:
            ids, slots = new_input(I32, n_tokens), new_input(I64, n_tokens)
            self.graph.expand(store(rows(ids), like(new_input(F32, n_embd, n_tokens)), slots))
        if n_extra:
            x = view(x, shape(self.n_embd, n_tokens), x.nb)
        if scaled:
            x = in_place(x)
        if scale_rows:
            x = in_place(cont(x) if n_extra else x, new_input(F32, 1, n_tokens))
        self.graph.expand(x)
        return x

    def head(
        self,
        x: Tensor,
        *,
        layer_norm: bool = False,
        picks: bool = False,
        on_host: bool = False,
        normed: bool = False,
    ) -> None:
        """The output norm, unless ``x`` is ``normed``, then the logits; ``picks`` output rows between the two.

        Without an output tensor the token embeddings serve, ``on_host`` where they are. Logits are scaled and capped
        where they are, which takes no memory.
        """
        home = self._output_home
        x = x if normed else self.norm_outside(x, "output_norm", home, layer_norm=layer_norm)
        x.is_output = True  # embeddings can be asked for, and drafts start from them
        if picks:
            x = self.pick_outputs(x)
            x.is_output = True
        table = self.global_weight("output.weight", home)
        if table is None:
            tied = "token_embd.weight"
            ne = self._table[tied].ne if tied in self._table else shape(self.n_embd, 1)
            table = new_weight(ne, self._cpu if on_host else home, (OUTSIDE, tied))
        logits = mul_mat(table, x)
        bias = self.global_weight("output.bias", home)
        if bias is not None:
            logits = in_place(logits, bias)
        logits.is_output = True
        self.graph.expand(logits)

    def pick_outputs(self, x: Tensor) -> Tensor:
        """Keep only the rows whose logits are asked for."""
        return get_rows(x, self.out_ids)

    # --- Norms and feed-forward ---------------------------------------------------------------------------------

    def norm(self, x: Tensor, layer: Layer, name: str, *, layer_norm: bool = False) -> Tensor:
        """``build_norm`` with a block's weights."""
        weight, bias = self.weight(layer, f"{name}.weight"), self.weight(layer, f"{name}.bias")
        return self.norm_by(x, weight, bias, layer_norm=layer_norm)

    def norm_outside(self, x: Tensor, name: str, home: int, *, layer_norm: bool = False) -> Tensor:
        """``build_norm`` with weights outside the blocks."""
        weight, bias = self.global_weight(f"{name}.weight", home), self.global_weight(f"{name}.bias", home)
        return self.norm_by(x, weight, bias, layer_norm=layer_norm)

    @staticmethod
    def norm_by(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, layer_norm: bool = False) -> Tensor:
        """``build_norm``: RMS norm works in place, layer norm does not."""
        x = like(x) if layer_norm else in_place(x)
        if weight is not None:
            x = in_place(x, weight)
        return x if bias is None else in_place(x, bias)

    def project(self, layer: Layer, name: str, x: Tensor) -> Tensor:
        """A matrix product with a block's weight, then its bias."""
        out = mul_mat(self.need(layer, f"{name}.weight"), x)
        bias = self.weight(layer, f"{name}.bias")
        return out if bias is None else in_place(out, bias)

    def ffn(self, x: Tensor, layer: Layer, suffix: str = "") -> Tensor:
        """``build_ffn``: up, gate in parallel where there is one, activation, down."""
        up = self.project(layer, f"ffn_up{suffix}", x)
        if self.weight(layer, f"ffn_gate{suffix}.weight") is not None:
            hidden = like(self.project(layer, f"ffn_gate{suffix}", x), up)
        elif self.need(layer, f"ffn_down{suffix}.weight").ne[0] * 2 == up.ne[0]:
            # gate and up in one matrix (phi3, glm4, chatglm): the activation halves the columns
            hidden = fresh(shape(up.ne[0] // 2, up.ne[1]), up)
        else:
            hidden = in_place(up)
        norm = self.weight(layer, f"ffn_sub_norm{suffix}.weight")
        return self.project(layer, f"ffn_down{suffix}", hidden if norm is None else self.norm_by(hidden, norm, None))

    def moe(
        self,
        x: Tensor,
        layer: Layer,
        routing: Routing,
        *,
        scores_from: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> Tensor:
        """``build_moe_ffn``: route, compute the used experts side by side, then add them up.

        The router reads ``x`` or ``scores_from``, unless its ``scores`` are there already.
        """
        n_embd, n_tokens, n_used = x.ne[0], x.ne[1], layer.n_expert_used
        if scores is None:
            scores = self.project(layer, "ffn_gate_inp", x if scores_from is None else scores_from)
        chosen, weights = self._route(scores, layer, routing)
        x = reshape(x, n_embd, 1, n_tokens)
        if routing.weighs_first:
            x = in_place(fresh(shape(n_embd, n_used, n_tokens), x), weights)
        experts = self._expert(layer, "ffn_down_exps", self._expert_hidden(x, layer, chosen), chosen)
        if not routing.weighs_first:
            experts = in_place(experts, weights)
        self.graph.expand(experts)
        parts = [view(experts, shape(n_embd, n_tokens), _rows(experts, 2)) for _ in range(n_used)]
        for part in parts:
            self.graph.expand(part)
        total = parts[0]
        for part in parts[1:]:
            total = in_place(total, part)
            self.graph.expand(total)
        return cont(total) if n_used == 1 else total

    def _route(self, scores: Tensor, layer: Layer, routing: Routing) -> tuple[Tensor, Tensor]:
        """Return the experts that each token uses, and what each of them counts."""
        n_expert, n_tokens, n_used = scores.ne[0], scores.ne[1], layer.n_expert_used
        probs = scores if routing.gating == SOFTMAX_WEIGHT else in_place(scores)
        if routing.gating == SQRT_SOFTPLUS:
            probs = in_place(probs)
        chosen = self._choose(probs, scores, layer, routing)
        weights = get_rows(reshape(probs, 1, n_expert, n_tokens), chosen)
        if routing.gating == SOFTMAX_WEIGHT:
            weights = reshape(in_place(reshape(weights, n_used, n_tokens)), 1, n_used, n_tokens)
        if routing.normalizes:
            weights = reshape(weights, n_used, n_tokens)
            weights = reshape(in_place(weights, in_place(sum_rows(weights))), 1, n_used, n_tokens)
        if routing.scales:
            weights = in_place(weights)
        self.graph.expand(weights)
        return chosen, weights

    def _choose(self, probs: Tensor, scores: Tensor, layer: Layer, routing: Routing) -> Tensor:
        """Return the experts that each token uses."""
        n_expert, n_tokens = scores.ne[:2]
        selection = probs
        bias = self.weight(layer, "exp_probs_b.bias")
        if bias is not None:
            selection = in_place(probs, bias)
        if routing.weighs_first:
            selection = scores
        if routing.n_group > 1:
            selection = self._mask_groups(selection, routing, n_expert, n_tokens)
        return argsort_top_k(selection, layer.n_expert_used)

    @staticmethod
    def _mask_groups(selection: Tensor, routing: Routing, n_expert: int, n_tokens: int) -> Tensor:
        """Experts outside the best groups are masked out before the choice."""
        n_group, per_group = routing.n_group, n_expert // routing.n_group
        groups = reshape(selection, per_group, n_group, n_tokens)
        best = argsort_top_k(groups, 2)
        scores = get_rows(reshape(groups, 1, per_group, n_group, n_tokens), best)
        scores = sum_rows(reshape(scores, 2, n_group, n_tokens))
        chosen = argsort_top_k(reshape(scores, n_group, n_tokens), routing.n_group_used)
        kept = get_rows(groups, chosen)
        return reshape(store(kept, in_place(groups), chosen), n_expert, n_tokens)

    def _expert_hidden(self, x: Tensor, layer: Layer, chosen: Tensor) -> Tensor:
        if self.weight(layer, "ffn_gate_up_exps.weight") is not None:
            both = self._expert(layer, "ffn_gate_up_exps", x, chosen)
            half = shape(both.ne[0] // 2, both.ne[1], both.ne[2])
            return fresh(half, view(both, half, both.nb), view(both, half, both.nb))
        up = self._expert(layer, "ffn_up_exps", x, chosen)
        if self.weight(layer, "ffn_gate_exps.weight") is None:
            return in_place(up)
        return like(self._expert(layer, "ffn_gate_exps", x, chosen), up)

    def _expert(self, layer: Layer, name: str, x: Tensor, chosen: Tensor) -> Tensor:
        out = mul_mat_id(self.need(layer, f"{name}.weight"), x, chosen)
        bias = self.weight(layer, f"{name}.bias")
        return out if bias is None else in_place(out, bias, chosen)

    # --- Attention ----------------------------------------------------------------------------------------------

    def rope(self, x: Tensor, layer: Layer) -> Tensor:
        """Rotate by position, with the factors that some files bring (``llama_model::get_rope_factors``)."""
        factors = self.global_weight("rope_freqs.weight", layer.home)
        if factors is None:
            reach = "long" if self.batch.n_ctx > self.batch.n_ctx_short else "short"
            factors = self.global_weight(f"rope_factors_{reach}.weight", layer.home)
        return rope(x, self.positions) if factors is None else rope(x, self.positions, factors)

    def qkv(self, x: Tensor, layer: Layer, *, clamps: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """``build_qkv``: three products, or one that is then cut into views."""
        heads, n_tokens = layer.heads, self.batch.n_tokens
        sizes = (
            (heads.head_k, heads.n_head),
            (heads.head_k, heads.n_head_kv),
            (heads.head_v, heads.n_head_kv),
        )
        if self.weight(layer, "attn_qkv.weight") is not None:
            fused = self.project(layer, "attn_qkv", x)
            if clamps:
                fused = in_place(fused)
            nb = fused.nb
            q, k, v = (view(fused, shape(d, n, n_tokens), (4, 4 * d, nb[1], nb[2])) for d, n in sizes)
            return q, k, v
        parts = [self.project(layer, name, x) for name in ("attn_q", "attn_k", "attn_v")]
        if clamps:
            parts = [in_place(part) for part in parts]
        q, k, v = (reshape(part, d, n, n_tokens) for part, (d, n) in zip(parts, sizes, strict=True))
        return q, k, v

    def _attention_input(self, heads: Heads) -> _AttentionInput:
        """Indices, mask and rotation of one kind of cache (``build_attn_inp_kv``, ``..._iswa``)."""
        key = (heads.slides, heads.n_cells)
        found = self._inputs.get(key)
        if found is None:
            batch = self.batch
            n_v = 1 if batch.flash_attn else max(heads.head_v * heads.n_head_kv, batch.n_embd_v_padded)
            found = self._inputs[key] = _AttentionInput(
                new_input(I64, batch.n_tokens),
                new_input(I64, batch.n_tokens * n_v),
                new_input(F16 if batch.flash_attn else F32, heads.n_cells, batch.n_per_stream, 1, batch.n_stream),
                new_rotation(batch.element_k, heads.head_k, grows=True),
                new_rotation(batch.element_v, heads.head_v, grows=False),
            )
        return found

    def _cache(self, layer: Layer, kind: str, element: Element, n_embd: int) -> Tensor:
        key = (layer.place, kind)
        found = self._caches.get(key)
        if found is None:
            ne = shape(n_embd, layer.heads.n_cells, self.batch.n_stream)
            found = self._caches[key] = new_external(element, ne, layer.owner_home)
        return found

    def attend(
        self,
        layer: Layer,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        *,
        output: str | None = "attn_output",
        capped: bool = False,
        iswa: bool = False,
    ) -> Tensor:
        """``build_attn`` with a K and a V cache; without ``k`` its owner's cache is read as it is."""
        heads = layer.heads
        if self.batch.cacheless and k is not None and v is not None:
            x = self._attend_batch(heads, q, k, v)
            return x if output is None else self.project(layer, output, x)
        inp = self._attention_input(heads)
        q, k_view, v_view = self._cache_batch(layer, inp, (q, k, v), iswa=iswa)
        sinks = self.weight(layer, "attn_sinks.weight")
        x = self._mha(q, k_view, v_view, inp.mask, sinks, capped=capped)
        if inp.v_rot is not None:
            x = rotate_heads(x, inp.v_rot)
        return x if output is None else self.project(layer, output, x)

    def _cache_batch(
        self, layer: Layer, inp: _AttentionInput, qkv: tuple[Tensor, Tensor | None, Tensor | None], *, iswa: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Store keys and values, where there are any; return the queries and what is cached, as attention reads them."""
        heads, batch = layer.heads, self.batch
        q, k, v = qkv
        if inp.k_rot is not None:
            q = rotate_heads(q, inp.k_rot)
            k = None if k is None else rotate_heads(k, inp.k_rot)
        if inp.v_rot is not None and v is not None:
            v = rotate_heads(v, inp.v_rot)
        for tensor in (q, k, v) if iswa else (q, v, k):
            self.graph.expand(tensor)
        n_k, n_v = heads.head_k * heads.n_head_kv, max(heads.head_v * heads.n_head_kv, batch.n_embd_v_padded)
        cache_k = self._cache(layer, "k", batch.element_k, n_k)
        cache_v = self._cache(layer, "v", batch.element_v, n_v)
        if k is not None:
            self.graph.expand(self._store_rows(k, cache_k, inp.k_idxs))
        if v is not None:
            self.graph.expand(self._store_v(v, cache_v, inp.v_idxs))
        return q, self._cache_view(cache_k, heads.head_k, heads.n_head_kv), self._v_view(cache_v, heads)

    def _attend_batch(self, heads: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``build_attn`` without a cache."""
        for tensor in (q, k, v):
            self.graph.expand(tensor)
        n_tokens, flash_attn = self.batch.n_tokens, self.batch.flash_attn
        mask = self._batch_masks.get(heads.slides)
        if mask is None:
            mask = self._batch_masks[heads.slides] = new_input(F16 if flash_attn else F32, n_tokens, n_tokens)
        return self._mha(q, k, v, mask, None)

    def choose_tokens(
        self, layer: Layer, q: Tensor, k: Tensor, weights: Tensor, n_top: int, *, spreads: bool = True
    ) -> Tensor:
        """The lightning indexer: store this batch's keys, then return the tokens that each query may see.

        ``q``, ``k`` are not yet spread by the Hadamard matrix, where it ``spreads`` them; ``weights`` say what each
        head counts.
        """
        heads, batch = layer.heads, self.batch
        n_per_stream = batch.n_per_stream
        inp = self._index_input
        if inp is None:
            inp = self._index_input = _IndexInput(
                new_input(I64, batch.n_tokens),
                new_input(F16, heads.n_cells, n_per_stream, 1, batch.n_stream),
                new_input(F32, layer.n_index, layer.n_index),
            )
        if spreads:
            q, k = mul_mat(inp.rotation, q), mul_mat(inp.rotation, k)
        cache = self._cache(layer, "index", batch.element_k, layer.n_index)
        self.graph.expand(self._store_rows(k, cache, inp.k_idxs))
        n_head = q.ne[1]
        q = view(q, (q.ne[0], n_head, n_per_stream, batch.n_stream), (*q.nb[:3], q.nb[2] * n_per_stream))
        row = weights.nb[1]
        weights = in_place(
            view(weights, (n_head, n_per_stream, 1, batch.n_stream), (4, row, row * n_per_stream, row * n_per_stream))
        )
        keys = self._cache_view(cache, layer.n_index, 1)
        scores = fresh((heads.n_cells, n_per_stream, 1, batch.n_stream), q, keys, weights, inp.mask)
        top = fresh((min(n_top, heads.n_cells), n_per_stream, 1, batch.n_stream), scores, element=I32)
        return cont(top)

    @staticmethod
    def _unmask(mask: Tensor, chosen: Tensor, zero: Element = F32) -> Tensor:
        """A mask that leaves only the chosen tokens visible."""
        n_cells, n_rows, _, n_stream = mask.ne
        hidden = in_place(mask)
        hidden = view(hidden, (1, n_cells, n_rows, n_stream), (mask.nb[0], mask.nb[0], mask.nb[1], mask.nb[3]))
        ids = view(chosen, (chosen.ne[0], n_rows, n_stream, 1), (4, chosen.nb[1], chosen.nb[3], chosen.nb[3]))
        # a leaf of its own in each block: all of them are allocated before the first node
        zeros = in_place(Tensor(LEAF, zero, (1, chosen.ne[0], n_rows, n_stream)))
        shown = store(zeros, hidden, ids)
        return in_place(view(shown, mask.ne, mask.nb), mask)

    def attend_latent(self, layer: Layer, q: Tensor, k: Tensor, n_v: int, chosen: Tensor | None = None) -> Tensor:
        """``build_attn`` of MLA without its output: one compressed row per token serves as K and, in part, as V.

        ``chosen`` are the tokens that an indexer lets through.
        """
        heads, batch = layer.heads, self.batch
        inp = self._attention_input(heads)
        for tensor in (q, k):
            self.graph.expand(tensor)
        cache = self._cache(layer, "k", batch.element_k, heads.head_k * heads.n_head_kv)
        self.graph.expand(self._store_rows(k, cache, inp.k_idxs))
        mask = inp.mask if chosen is None else self._unmask(inp.mask, chosen)
        k_view = self._cache_view(cache, heads.head_k, heads.n_head_kv)
        v_view = view(k_view, (n_v, *k_view.ne[1:]), k_view.nb)
        sinks = self.weight(layer, "attn_sinks.weight")
        return self._mha(q, k_view, v_view, mask, sinks, v_mla=self.weight(layer, "attn_v_b.weight"))

    def _store_rows(self, value: Tensor, cache: Tensor, ids: Tensor) -> Tensor:
        rows = view(value, shape(value.ne[0] * value.ne[1], value.ne[2]), _rows(value, 2))
        if self.batch.n_stream > 1:
            cache = reshape(cache, cache.ne[0], cache.ne[1] * cache.ne[2])
        return store(rows, cache, ids)

    def _store_v(self, value: Tensor, cache: Tensor, ids: Tensor) -> Tensor:
        if self.batch.flash_attn:
            return self._store_rows(value, cache, ids)
        n_row = value.ne[0] * value.ne[1]
        if value.nb[2] == 4 * n_row:
            flat = reshape(value, n_row, value.ne[2])
        else:
            flat = fresh(shape(n_row, value.ne[2]), value)
        if n_row < cache.ne[0]:
            n_row = cache.ne[0]
            flat = fresh(shape(n_row, value.ne[2]), flat)
        column = reshape(cache, 1, cache.ne[0] * cache.ne[1] * cache.ne[2])
        return store(reshape(flat, 1, n_row * value.ne[2]), column, ids)

    @staticmethod
    def _cache_view(cache: Tensor, head: int, n_head: int) -> Tensor:
        nb0 = cache.element.size
        nb1 = nb0 * (head // cache.element.block)
        return view(cache, (head, n_head, cache.ne[1], cache.ne[2]), (nb0, nb1, cache.nb[1], cache.nb[2]))

    def _v_view(self, cache: Tensor, heads: Heads) -> Tensor:
        if self.batch.flash_attn:
            return self._cache_view(cache, heads.head_v, heads.n_head_kv)
        n_cells, size = cache.ne[1], cache.element.size
        nb2 = size * n_cells
        ne = (n_cells, heads.n_head_kv, heads.head_v, cache.ne[2])
        return view(cache, ne, (size, nb2 * heads.head_v, nb2, nb2 * cache.ne[0]))

    def _mha(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        sinks: Tensor | None,
        *,
        capped: bool = False,
        v_mla: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """``build_attn_mha``."""
        n_stream = k.ne[3]
        per_stream = q.ne[2] // n_stream
        q = view(q, (q.ne[0], q.ne[1], per_stream, n_stream), (q.nb[0], q.nb[1], q.nb[2], q.nb[2] * per_stream))
        q, k = permute(q, 0, 2, 1, 3), permute(k, 0, 2, 1, 3)
        v_is_transposed = v.nb[1] > v.nb[2]
        v = permute(v, 0, 2, 1, 3)
        if self.batch.flash_attn and bias is None:
            k, v = (fresh(x.ne, x, element=F16) if x.element is F32 else x for x in (k, v))
            x = flash_attn(q, k, v, mask, sinks)
            if v_mla is not None:
                x = cont(permute(mul_mat(v_mla, permute(x, 0, 2, 1, 3)), 0, 2, 1, 3))
            x = reshape(x, x.ne[0] * x.ne[1], x.ne[2] * x.ne[3])
        else:
            kq = mul_mat(k, q)
            for _ in range(3 if capped else 0):
                kq = in_place(kq)
            kq = kq if bias is None else in_place(kq, bias)
            kq = in_place(kq, mask) if sinks is None else in_place(kq, mask, sinks)
            if not v_is_transposed:
                v = cont(transpose(v))
            x = mul_mat(v, kq)
            if v_mla is not None:
                x = mul_mat(v_mla, x)
            x = permute(x, 0, 2, 1, 3)
            x = fresh(shape(x.ne[0] * x.ne[1], x.ne[2] * x.ne[3]), x)
        self.graph.expand(x)
        return x

    # --- Recurrent state ----------------------------------------------------------------------------------------

    def states(self, layer: Layer, kind: str, n_elements: int) -> Tensor:
        """The cache of one kind of recurrent state (``llama_memory_recurrent``): a row per sequence."""
        key = (layer.place, kind)
        found = self._caches.get(key)
        if found is None:
            found = self._caches[key] = new_external(F32, shape(n_elements, self.batch.n_seq), layer.home)
        return found

    def load_states(self, cache: Tensor) -> Tensor:
        """``build_rs``: the states of all sequences, gathered; one of them is cleared first."""
        n_elements, n_seq = cache.ne[0], self.batch.n_seq
        rows = reshape(cache, n_elements, n_seq)
        self._clear_state(rows)
        gathered = get_rows(rows, self.state_ids)
        states = view(gathered, shape(n_elements, n_seq), gathered.nb)
        self.graph.expand(states)
        self._keep_others(cache, gathered)
        return states

    def scan_states(self, cache: Tensor, scanned: Tensor) -> None:
        """``build_rs`` with a getter that reads the cache itself (``ssm_scan``)."""
        rows = reshape(cache, cache.ne[0], self.batch.n_seq)
        self._clear_state(rows)
        gathered = get_rows(rows, self._other_state_ids)
        self.graph.expand(scanned)
        self._keep_others(cache, gathered)

    def _clear_state(self, rows: Tensor) -> None:
        zero = view(rows, shape(rows.ne[0]), rows.nb)
        self.graph.expand(Tensor(STORE, F32, zero.ne, (zero,), zero.nb, zero.root))

    def _keep_others(self, cache: Tensor, gathered: Tensor) -> None:
        """Copy the states of sequences that the batch leaves alone: none when the graph is reserved."""
        none = view(gathered, shape(cache.ne[0], 0), gathered.nb)
        self.graph.expand(store(none, view(cache, shape(cache.ne[0], 0), cache.nb)))

    def save_states(self, value: Tensor, cache: Tensor) -> None:
        """Write new states into the cache."""
        self.graph.expand(store(value, view(cache, shape(cache.ne[0], self.batch.n_seq), cache.nb)))

    def save_part(self, value: Tensor, cache: Tensor, part: tuple[int, int]) -> None:
        """Write new states of ``part[0] * part[1]`` elements per sequence among others of the same rows."""
        nb = (4, 4 * part[0], cache.nb[1], cache.nb[1] * self.batch.n_seq)
        self.graph.expand(store(value, view(cache, shape(*part, self.batch.n_seq), nb)))


def _rows(x: Tensor, axis: int) -> Shape:
    """Strides of a matrix whose rows are ``axis`` of ``x``."""
    return (x.nb[0], x.nb[axis], x.nb[3], x.nb[3])


def new_rotation(element: Element, head: int, *, grows: bool) -> Tensor | None:
    """A Hadamard matrix that spreads outliers before a cache is quantized (``llama_kv_cache``: ``n_rot_k``)."""
    if element.block == 1 or head == 0 or head % 64:
        return None
    n_rot = 64
    while grows and head % (2 * n_rot) == 0:
        n_rot *= 2
    return new_input(F32, n_rot, n_rot)


def rotate_heads(x: Tensor, matrix: Tensor) -> Tensor:
    """``llama_mul_mat_hadamard``."""
    n_rot = matrix.ne[0]
    n_elements = x.ne[0] * x.ne[1] * x.ne[2] * x.ne[3]
    if span(x) != 4 * n_elements:
        x = cont(x)
    return reshape(mul_mat(matrix, reshape(x, n_rot, n_elements // n_rot)), *x.ne)
