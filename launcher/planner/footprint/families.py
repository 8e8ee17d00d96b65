"""Which graph each architecture has, and that of the transformers.

Restates the graphs of ``src/models/*.cpp`` (llama.cpp build 11434) as far as they shape memory. It does not know
devices, bytes of weights or how memory is allocated.
"""

from collections.abc import Callable, Mapping
from typing import Final

from launcher.planner.footprint.blocks import Blocks, Layer
from launcher.planner.footprint.family import (
    PLAIN,
    STYLES,
    Model,
    Style,
    begin,
    end,
    feed_forward,
    has_window,
    norm_heads,
)
from launcher.planner.footprint.gemma import gemma3n, gemma4
from launcher.planner.footprint.graph import (
    Graph,
    Tensor,
    in_place,
    rope,
    shape,
    view,
)
from launcher.planner.footprint.latent import kimi_linear, latent_transformer
from launcher.planner.footprint.recurrent import delta_hybrid, hybrid, state_space
from launcher.planner.footprint.rwkv import rwkv

_RMS_WITH_BIAS: Final = frozenset({"phi3", "phimoe"})
"""Elsewhere a bias on the norm means that it subtracts the mean."""


# --- Transformers -----------------------------------------------------------------------------------------------


def _project_heads(b: Blocks, x: Tensor, layer: Layer, style: Style) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K and V with their norms and their rotation."""
    q, k, v = b.qkv(x, layer)
    if style.rests_every:
        if (layer.number + 1) % style.rests_every == 0:
            return in_place(q, b.query_scale), k, v
        q, k = rope(q, b.positions), rope(k, b.positions)
        return in_place(q), in_place(k), v
    ropes = style.ropes_full or layer.heads.slides
    q = norm_heads(b, q, layer, "q")
    q = rope(q, b.positions) if ropes else q
    k = norm_heads(b, k, layer, "k")
    k = rope(k, b.positions) if ropes else k
    return (in_place(q) if style.scales_q else q), k, v


def _transformer_block(b: Blocks, x: Tensor, layer: Layer, model: Model, style: Style) -> Tensor:
    has = layer.weights.__contains__
    residual = x
    normed = x
    if has("attn_norm.weight") or style.bare_norms:
        normed = b.norm(x, layer, "attn_norm", layer_norm=style.layer_norm)
    q, k, v = _project_heads(b, normed, layer, style)
    cur = b.attend(layer, q, k, v, capped=style.caps_scores, iswa=has_window(model))
    if layer.last and not style.picks_at_end:
        cur, residual = b.pick_outputs(cur), b.pick_outputs(residual)
    if style.parallel:
        if has("ffn_norm.weight"):
            normed = b.norm(residual, layer, "ffn_norm", layer_norm=style.layer_norm)
        elif layer.last:
            normed = b.pick_outputs(normed)
        out = feed_forward(b, normed, layer, model, style)
        return in_place(in_place(out, residual), cur)
    norms_output = has("post_attention_norm.weight") and (has("ffn_norm.weight") or has("post_ffw_norm.weight"))
    if norms_output:
        cur = b.norm(cur, layer, "post_attention_norm", layer_norm=style.layer_norm)
    cur = in_place(cur) if style.scales_residual else cur
    ffn_input = in_place(cur, residual)
    name = "ffn_norm" if has("ffn_norm.weight") or norms_output else "post_attention_norm"
    cur = ffn_input
    if has(f"{name}.weight") or style.bare_norms:
        cur = b.norm(cur, layer, name, layer_norm=style.layer_norm)
    cur = feed_forward(b, cur, layer, model, style)
    if has("post_ffw_norm.weight"):
        cur = b.norm(cur, layer, "post_ffw_norm", layer_norm=style.layer_norm)
    cur = in_place(cur) if style.scales_residual else cur
    return in_place(cur, ffn_input)


def transformer(model: Model) -> Graph:
    """Attention, then feed-forward or experts, in every block."""
    style = STYLES.get(model.name, PLAIN)
    if model.name not in _RMS_WITH_BIAS and "attn_norm.bias" in model.layers[0].weights:
        style = style._replace(layer_norm=True)
    if model.name == "gptneox" and not model.numbers.get("use_parallel_residual", 1):
        style = style._replace(parallel=False)
    b, x = begin(model, style)
    n_extra = int(model.numbers.get("n_deepstack_layers", 0))
    embedded = x
    for layer in model.layers:
        x = _transformer_block(b, x, layer, model, style)
        if layer.number < n_extra:
            x = in_place(x, view(embedded, shape(model.n_embd, model.batch.n_tokens), embedded.nb))
    return end(b, x, model, style)


FAMILIES: Final[Mapping[str, Callable[[Model], Graph]]] = {
    "deepseek2": latent_transformer,
    "falcon-h1": hybrid,
    "gemma3n": gemma3n,
    "gemma4": gemma4,
    "granitehybrid": hybrid,
    "jamba": hybrid,
    "kimi-linear": kimi_linear,
    "lfm2": hybrid,
    "lfm2moe": hybrid,
    "nemotron_h": hybrid,
    "nemotron_h_moe": hybrid,
    "plamo2": hybrid,
    "rwkv6": rwkv,
    "rwkv6qwen2": rwkv,
    "rwkv7": rwkv,
    "arwkv7": rwkv,
    "mamba": state_space,
    "mamba2": state_space,
    "qwen35": delta_hybrid,
    "qwen35moe": delta_hybrid,
    "qwen3next": delta_hybrid,
}


def build_graph(model: Model) -> Graph:
    """Return the graph that llama.cpp reserves memory for."""
    return FAMILIES.get(model.name, transformer)(model)
