"""Graphs whose blocks keep a state by the delta rule, with one of latent attention among several.

Restates ``src/models/kimi-linear.cpp``, ``kimi-k3.cpp`` and ``bailingmoe3.cpp`` (llama.cpp build 11434) as far as they
shape memory. It does not know devices, bytes of weights or how memory is allocated.
"""

from collections.abc import Sequence
from typing import Final

from launcher.planner.footprint.blocks import Blocks, Layer
from launcher.planner.footprint.family import PLAIN, Model, Style, begin, end, feed_forward, size_of
from launcher.planner.footprint.graph import (
    Graph,
    Tensor,
    concat,
    cont,
    fresh,
    in_place,
    mul_mat,
    reshape,
    shape,
    sum_rows,
    transpose,
    view,
)
from launcher.planner.footprint.latent import latent_attention, latent_routing

_DRAFTING: Final = Style(picks_at_end=True, picks_after_norm=True)
"""Output rows are picked after the last norm: what leaves it, drafts start from."""


def _short_convolution(b: Blocks, x: Tensor, layer: Layer, model: Model, *, name: str, state: Tensor) -> Tensor:
    """``causal_conv1d``: a convolution over a few tokens of one of query, key and value."""
    batch, head = model.batch, size_of(model, "kda.head_dim")
    n_seq, n_per_seq, n_tail = batch.n_seq, batch.n_per_seq, size_of(model, "ssm.conv_kernel") - 1
    n_inner = head * layer.heads.n_head
    part = view(state, shape(n_tail, n_inner, n_seq), (4, 4 * n_tail, state.nb[1], state.nb[1] * n_seq))
    projected = reshape(b.project(layer, f"attn_{name}", x), n_inner, n_per_seq, n_seq)
    joined = concat(part, transpose(projected), 0)
    cache = b.states(layer, "r", layer.recurrent[0])
    kept = view(joined, shape(n_tail, n_inner, n_seq), joined.nb)
    b.save_part(kept, cache, (n_tail, n_inner))
    weight = reshape(b.need(layer, f"ssm_conv1d_{name}.weight"), n_tail + 1, n_inner)
    mixed = in_place(reshape(fresh(shape(n_inner, n_per_seq, n_seq), joined, weight), n_inner, batch.n_tokens))
    return reshape(mixed, head, layer.heads.n_head, n_per_seq, n_seq)


def _through(b: Blocks, x: Tensor, layer: Layer, names: Sequence[str]) -> Tensor:
    """Multiply by those of the named weights that the block has: a gate of full rank is one, of low rank two."""
    for name in names:
        weight = b.weight(layer, f"{name}.weight")
        x = x if weight is None else mul_mat(weight, x)
    return x


def delta_attention(b: Blocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    """The recurrent blocks of ``llama_model_kimi_linear::graph``: a delta rule with a gate per channel."""
    batch, head, n_head = model.batch, size_of(model, "kda.head_dim"), layer.heads.n_head
    n_seq, n_tokens = batch.n_seq, batch.n_tokens
    n_per_seq = batch.n_per_seq
    state = b.load_states(b.states(layer, "r", layer.recurrent[0]))
    q, k, v = (_short_convolution(b, x, layer, model, name=name, state=state) for name in "qkv")
    gate = _through(b, x, layer, ("ssm_f_a", "ssm_f_b"))
    gate = reshape(in_place(in_place(gate, b.need(layer, "ssm_dt.bias"))), head, n_head, n_tokens)
    gate = reshape(in_place(gate, reshape(b.need(layer, "ssm_a"), 1, n_head)), head, n_head, n_per_seq, n_seq)
    beta = in_place(reshape(mul_mat(b.need(layer, "ssm_beta.weight"), x), 1, n_head, n_per_seq, n_seq))
    cache = b.states(layer, "s", layer.recurrent[1])
    before = reshape(b.load_states(cache), head, head, n_head, n_seq)
    q, k = in_place(in_place(q)), in_place(in_place(k))
    result = fresh(shape(head * n_head, n_tokens + head * n_seq), q, k, v, gate, beta, before)
    out = cont(reshape(result, head, n_head, n_per_seq, n_seq))
    b.save_states(reshape(result, head, head, n_head, n_seq), cache)
    second = _through(b, x, layer, ("ssm_g", "ssm_g_a", "ssm_g_b"))
    normed = b.norm(reshape(out, head, n_head, n_tokens), layer, "ssm_norm")
    gated = in_place(normed, in_place(reshape(second, head, n_head, n_tokens)))
    return b.project(layer, "attn_output", fresh(shape(head * n_head, n_tokens), gated))


def delta_latent(model: Model) -> Graph:
    """Kimi Linear and Ling 3: delta-rule blocks among latent attention, which only the latter rotates."""
    rotates = model.name == "bailingmoe3"
    style = _DRAFTING._replace(routing=latent_routing(model)) if rotates else PLAIN
    b, x = begin(model, style)
    for layer in model.layers:
        residual = x
        cur = b.norm(x, layer, "attn_norm")
        if not rotates:  # there the states are loaded first
            b.graph.expand(cur)
        if layer.recurrent[1]:
            cur = delta_attention(b, cur, layer, model)
        else:
            cur = latent_attention(b, cur, layer, model, ropes=rotates)
        if layer.last and not style.picks_at_end:
            cur, residual = b.pick_outputs(cur), b.pick_outputs(residual)
        residual = in_place(cur, residual)
        x = in_place(feed_forward(b, b.norm(residual, layer, "ffn_norm"), layer, model, style), residual)
    return end(b, x, style)


# --- Kimi K3 ----------------------------------------------------------------------------------------------------


def _situ(gate: Tensor, up: Tensor, *, bounded: bool) -> Tensor:
    """``kimi_k3_situ``: tanh and sigmoid of the gate, times what may be bounded by a tanh as well."""
    opened = in_place(in_place(in_place(in_place(gate))), in_place(gate))
    return in_place(opened, in_place(in_place(in_place(up))) if bounded else up)


class _SituBlocks(Blocks):
    """Pieces whose experts have that activation."""

    bounds_up: bool = False

    def _expert_hidden(self, x: Tensor, layer: Layer, chosen: Tensor) -> Tensor:
        up, gate = (self._expert(layer, f"ffn_{name}_exps", x, chosen) for name in ("up", "gate"))
        return _situ(gate, up, bounded=self.bounds_up)

    def situ_ffn(self, x: Tensor, layer: Layer, suffix: str = "") -> Tensor:
        """A dense feed-forward part, or the shared expert."""
        gate, up = (self.project(layer, f"ffn_{name}{suffix}", x) for name in ("gate", "up"))
        return self.project(layer, f"ffn_down{suffix}", _situ(gate, up, bounded=self.bounds_up))


class _Bank:
    """The residual streams of earlier blocks, ``(n_embd, n_banked, n_tokens)``: each part reads a mix of them."""

    def __init__(self) -> None:
        self._stack: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """``res_push``."""
        one = reshape(x, x.ne[0], 1, x.ne[1])
        self._stack = one if self._stack is None else concat(self._stack, one, 1)

    def mix(self, x: Tensor, score: Tensor | None) -> Tensor:
        """``res_mix``: the stream and all that is banked, weighed by a softmax over their scores."""
        stack = self._stack
        if stack is None or score is None:
            return x
        _, n_banked, n_tokens, _ = stack.ne
        banked = reshape(sum_rows(in_place(in_place(stack), score)), n_banked, n_tokens)
        current = sum_rows(in_place(in_place(x), score))
        weights = in_place(concat(banked, current, 0))
        of_banked = cont(view(weights, shape(n_banked, n_tokens), weights.nb))
        of_current = cont(view(weights, shape(1, n_tokens), weights.nb))
        return in_place(fresh(x.ne, stack, of_banked), in_place(x, of_current))


def _latent_experts(b: _SituBlocks, x: Tensor, layer: Layer, model: Model) -> Tensor:
    """``build_latent_moe``: experts that work in fewer dimensions, beside one that does not."""
    narrow = _through(b, x, layer, ("ffn_routed_down",))
    scores = mul_mat(b.need(layer, "ffn_gate_inp.weight"), x)
    out = b.moe(narrow, layer, latent_routing(model), scores=scores)
    if b.weight(layer, "ffn_routed_norm.weight") is not None:
        out = b.norm(out, layer, "ffn_routed_norm")
    out = _through(b, out, layer, ("ffn_routed_up",))
    return in_place(out, b.situ_ffn(x, layer, "_shexp")) if "ffn_gate_shexp.weight" in layer.weights else out


def kimi_k3(model: Model) -> Graph:
    """Kimi K3: as Kimi Linear, with attention across layers to residual streams that were banked every few blocks."""
    b, x = begin(model, PLAIN, _SituBlocks)
    b.bounds_up = model.numbers.get("activation.situ_linear_beta", 0.0) > 0
    every, bank = int(model.numbers.get("attn_res.block_size", 0)), _Bank()
    for layer in model.layers:
        cur = bank.mix(x, b.weight(layer, "attn_res_score.weight"))
        restarts = every > 0 and layer.number % every == 0
        if restarts:
            bank.add(x)
        cur = b.norm(cur, layer, "attn_norm")
        b.graph.expand(cur)
        if layer.recurrent[1]:
            cur = delta_attention(b, cur, layer, model)
        else:
            cur = latent_attention(b, cur, layer, model, ropes=False)
        x = cur if restarts else in_place(x, cur)
        cur = b.norm(bank.mix(x, b.weight(layer, "ffn_res_score.weight")), layer, "ffn_norm")
        dense = "ffn_gate_inp.weight" not in layer.weights
        x = in_place(x, b.situ_ffn(cur, layer) if dense else _latent_experts(b, cur, layer, model))
    x = b.pick_outputs(bank.mix(x, b.global_weight("output_res_score.weight", model.output_home)))
    return end(b, x, PLAIN)
