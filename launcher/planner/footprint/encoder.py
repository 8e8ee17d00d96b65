"""Graphs of models that embed texts: they put out no logits.

Restates ``src/models/bert.cpp``, ``modern-bert.cpp``, ``neo-bert.cpp``, ``eurobert.cpp`` and ``gemma-embedding.cpp``
(llama.cpp build 11434) as far as they shape memory. It does not know devices, bytes of weights or how memory is
allocated.
"""

from typing import Final

from launcher.planner.footprint.blocks import Blocks, Layer, Routing
from launcher.planner.footprint.family import Model, Style, begin, feed_forward, norm_heads
from launcher.planner.footprint.graph import Graph, Tensor, get_rows, in_place, reshape, rope, shape, view

_ROTATING: Final = frozenset({"nomic-bert", "nomic-bert-moe", "jina-bert-v3"})
"""Of those that norm what a part puts out."""


def _close(b: Blocks, x: Tensor) -> Graph:
    x.is_output = True
    b.graph.expand(x)
    return b.graph


def _embed_types(b: Blocks, x: Tensor, model: Model) -> Tensor:
    """Every token is of the first type (``type_embd``); BERT itself adds embedded positions."""
    types = b.global_weight("token_types.weight", model.cpu)
    if types is not None:
        x = in_place(x, view(types, shape(model.n_embd), types.nb))
    table = b.global_weight("position_embd.weight", model.cpu) if model.name == "bert" else None
    return x if table is None else in_place(get_rows(table, b.positions), x)


def _norm_embedded(b: Blocks, x: Tensor, model: Model) -> Tensor:
    return b.norm_outside(x, "token_embd_norm", model.layers[0].home, layer_norm=True)


def _attend_after_norm(b: Blocks, x: Tensor, layer: Layer, *, rotates: bool) -> Tensor:
    """Queries and keys are normed over all heads where there is such a norm."""
    q, k, v = b.qkv(x, layer)
    q, k = (_norm_flat(b, part, layer, kind) for part, kind in ((q, "q"), (k, "k")))
    if rotates:
        q, k = rope(q, b.positions), rope(k, b.positions)
    return b.attend(layer, q, k, v)


def _norm_flat(b: Blocks, x: Tensor, layer: Layer, kind: str) -> Tensor:
    if b.weight(layer, f"attn_{kind}_norm.weight") is None:
        return x
    flat = b.norm(reshape(x, x.ne[0] * x.ne[1], x.ne[2]), layer, f"attn_{kind}_norm", layer_norm=True)
    return reshape(flat, *x.ne)


def norms_after(model: Model) -> Graph:
    """BERT and its kin: what attention and feed-forward part put out is added to the stream, then normed."""
    style = Style(routing=Routing(normalizes=False))
    b, x = begin(model, style)
    x = _norm_embedded(b, _embed_types(b, x, model), model)
    for layer in model.layers:
        cur = _attend_after_norm(b, x, layer, rotates=model.name in _ROTATING)
        if layer.last:
            cur, x = b.pick_outputs(cur), b.pick_outputs(x)
        cur = b.norm(in_place(cur, x), layer, "attn_output_norm", layer_norm=True)
        if "attn_norm_2.weight" in layer.weights:
            cur = b.norm(in_place(cur, x), layer, "attn_norm_2", layer_norm=True)
        out = in_place(feed_forward(b, cur, layer, model, style), cur)
        x = b.norm(out, layer, "layer_output_norm", layer_norm=True)
    return _close(b, x)


def norms_before(model: Model) -> Graph:
    """Blocks like a transformer's: ModernBERT, NeoBERT, EuroBERT, EmbeddingGemma."""
    gemma, modern = model.name == "gemma-embedding", model.name == "modern-bert"
    b, x = begin(model, Style(scales_rows=gemma))
    x = _norm_embedded(b, x, model) if modern else x
    for layer in model.layers:
        has = layer.weights.__contains__
        cur = b.norm(x, layer, "attn_norm", layer_norm=modern) if has("attn_norm.weight") else x
        q, k, v = b.qkv(cur, layer)
        q, k = (rope(norm_heads(b, part, layer, kind), b.positions) for part, kind in ((q, "q"), (k, "k")))
        cur = b.attend(layer, in_place(q) if gemma else q, k, v)
        if layer.last:
            cur, x = b.pick_outputs(cur), b.pick_outputs(x)
        if has("post_attention_norm.weight"):
            cur = b.norm(cur, layer, "post_attention_norm")
        residual = in_place(cur, x)
        cur = b.ffn(b.norm(residual, layer, "ffn_norm", layer_norm=modern), layer)
        if has("post_ffw_norm.weight"):
            cur = b.norm(cur, layer, "post_ffw_norm")
        x = in_place(cur, residual)
    name = "enc.output_norm.weight" if model.name == "neo-bert" else "output_norm.weight"
    return _close(b, b.norm_by(x, b.global_weight(name, model.output_home), None, layer_norm=modern))
