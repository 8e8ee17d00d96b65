"""Which graph each architecture has, and that of the transformers.

Restates the graphs of ``src/models/*.cpp`` (llama.cpp build 11434) as far as they shape memory. It does not know
devices, bytes of weights or how memory is allocated.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final

from launcher.planner.architecture import ENCODER_DECODERS, ENCODERS
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
    open_gate,
    scale_residual,
    temper,
)
from launcher.planner.footprint.graph import (
    Graph,
    Tensor,
    get_rows,
    in_place,
    reshape,
    rope,
    shape,
    view,
)

_BAICHUAN_ROTATES: Final = 32
"""Only Baichuan of this depth (7B) rotates: the other has biases by distance."""
_FACTORS_IN_FULL: Final = frozenset({"step35"})
"""Only layers that see everything use the file's frequency factors."""
_WITHOUT_FACTORS: Final = frozenset({"cogvlm"})
"""Frequency factors are loaded and never used."""
_NORMS_BEFORE: Final = frozenset({"eurobert", "gemma-embedding", "modern-bert", "neo-bert"})
"""Encoders that norm what a part reads, as transformers do; the others norm what it puts out."""
_NORMS_LATE: Final = frozenset({"hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "maincoder"})
"""Queries and keys are normed after they were rotated."""
_RMS_WITH_BIAS: Final = frozenset({"phi3", "phimoe"})
"""Elsewhere a bias on the norm means that it subtracts the mean."""


# --- Transformers -----------------------------------------------------------------------------------------------


def _project_heads(b: Blocks, x: Tensor, layer: Layer, model: Model, style: Style) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K and V with their norms and their rotation."""
    q, k, v = b.qkv(x, layer, clamps=style.clamps)
    if style.rests_every:
        if (layer.number + 1) % style.rests_every == 0:
            return in_place(q, b.query_scale), k, v
        q, k = b.rope(q, layer), b.rope(k, layer)
        return in_place(q), in_place(k), v
    ropes = style.ropes and (style.ropes_full or layer.heads.slides or not has_window(model))
    ropes = ropes or (style.ropes_dense and layer.number < model.numbers.get("leading_dense_block_count", 0))
    ropes = ropes and (style.ropes_not_every == 0 or (layer.number + 1) % style.ropes_not_every != 0)
    plain = model.name in _WITHOUT_FACTORS or (model.name in _FACTORS_IN_FULL and layer.heads.slides)
    late = model.name in _NORMS_LATE

    def prepare(x: Tensor, kind: str) -> Tensor:
        x = x if late else norm_heads(b, x, layer, kind, layer_norm=style.layer_norm)
        if ropes:
            x = rope(x, b.positions) if plain else b.rope(x, layer)
        return norm_heads(b, x, layer, kind, layer_norm=style.layer_norm) if late else x

    q, k = prepare(q, "q"), prepare(k, "k")
    return (in_place(q) if style.scales_q else temper(b, q, model)), k, v


def _attend(b: Blocks, x: Tensor, layer: Layer, model: Model, style: Style) -> Tensor:
    """Attention and its output product, with a gate or a norm between the two where there is one."""
    q, k, v = _project_heads(b, x, layer, model, style)
    gate, norm = b.weight(layer, "attn_gate.weight"), b.weight(layer, "attn_sub_norm.weight")
    output = "attn_output" if gate is None and norm is None else None
    cur = b.attend(layer, q, k, v, output=output, capped=style.caps_scores, iswa=has_window(model))
    if norm is not None:
        return b.project(layer, "attn_output", b.norm_by(cur, norm, None))
    if gate is None:
        return cur
    return b.project(layer, "attn_output", reshape(open_gate(cur, gate, x), *cur.ne[:2]))


def _embed_positions(b: Blocks, x: Tensor, model: Model) -> Tensor:
    """What some old architectures add to the token embeddings, or norm them with."""
    table = b.global_weight("position_embd.weight", model.cpu)
    if table is not None:
        x = in_place(x, get_rows(table, b.positions))
    if "token_embd_norm.weight" not in model.table:
        return x
    return b.norm_outside(x, "token_embd_norm", model.layers[0].home, layer_norm=True)


def _parallel_part(
    b: Blocks, streams: tuple[Tensor, Tensor, Tensor], layer: Layer, model: Model, style: Style
) -> Tensor:
    """What follows attention where the feed-forward part does not wait for it; ``streams``: it, residual, normed."""
    attention, residual, normed = streams
    if "ffn_norm.weight" in layer.weights:
        normed = b.norm(residual, layer, "ffn_norm", layer_norm=style.layer_norm)
    elif layer.last and not style.picks_at_end:
        normed = b.pick_outputs(normed)
    out = feed_forward(b, normed, layer, model, style)
    parts = {"attention": attention, "feed-forward": out, "residual": residual}
    first, second, third = (parts[name] for name in style.parallel)
    return in_place(in_place(first, second), third)


def _second_norm(layer: Layer, *, norms_output: bool) -> str:
    """What the norm before the feed-forward part is called."""
    if "ffn_norm.weight" in layer.weights or norms_output:
        return "ffn_norm"
    return "attn_output_norm" if "attn_output_norm.weight" in layer.weights else "post_attention_norm"


def _transformer_block(b: Blocks, x: Tensor, layer: Layer, model: Model, style: Style) -> Tensor:
    has = layer.weights.__contains__
    residual = x
    normed = x
    if has("attn_norm.weight") or style.bare_norms:
        normed = b.norm(x, layer, "attn_norm", layer_norm=style.layer_norm)
    scores = b.project(layer, "ffn_gate_inp", x) if style.routes_early else None
    attended = normed
    if style.parallel and has("attn_norm_2.weight"):
        attended = b.norm(x, layer, "attn_norm_2", layer_norm=style.layer_norm)
    cur = _attend(b, attended, layer, model, style)
    if layer.last and not style.picks_at_end:
        cur, residual = b.pick_outputs(cur), b.pick_outputs(residual)
        scores = None if scores is None else b.pick_outputs(scores)
    if style.parallel:
        return _parallel_part(b, (cur, residual, normed), layer, model, style)
    after_attention, after_feed_forward = style.output_norms
    if not has(f"{after_feed_forward}.weight"):
        after_feed_forward = "post_ffw_norm"
    norms_output = has(f"{after_attention}.weight") and (has("ffn_norm.weight") or has("post_ffw_norm.weight"))
    if norms_output:
        cur = b.norm(cur, layer, after_attention, layer_norm=style.layer_norm)
    ffn_input = in_place(scale_residual(cur, model), residual)
    name = _second_norm(layer, norms_output=norms_output)
    cur = ffn_input
    if has(f"{name}.weight") or style.bare_norms:
        cur = b.norm(cur, layer, name, layer_norm=style.layer_norm)
    elif style.reuses_norm:
        cur = b.pick_outputs(normed) if layer.last else normed
    cur = feed_forward(b, cur, layer, model, style, scores=scores)
    if has(f"{after_feed_forward}.weight"):
        cur = b.norm(cur, layer, after_feed_forward, layer_norm=style.layer_norm)
    cur = scale_residual(cur, model)
    return in_place(ffn_input, cur) if style.residual_first else in_place(cur, ffn_input)


def _loop_ends(model: Model) -> frozenset[int]:
    """The layers after which all blocks are computed once more, with the output's norm between (Nanbeige)."""
    if model.numbers.get("skip_loop_final_norm", 0.0):
        return frozenset()
    return frozenset(layer.number for layer, after in pairwise(model.layers) if after.origin <= layer.origin)


def transformer(model: Model) -> Graph:
    """Attention, then feed-forward or experts, in every block."""
    style = STYLES.get(model.name, PLAIN)._replace(clamps=model.numbers.get("attention.clamp_kqv", 0.0) > 0)
    if model.name not in _RMS_WITH_BIAS and "attn_norm.bias" in model.layers[0].weights:
        style = style._replace(layer_norm=True)
    if model.name == "cohere2moe" and not model.numbers.get("attention.layer_norm_rms_epsilon", 0.0):
        style = style._replace(layer_norm=True)
    if model.name == "baichuan" and model.numbers.get("block_count") != _BAICHUAN_ROTATES:
        style = style._replace(ropes=False)
    if model.name == "gptneox" and not model.numbers.get("use_parallel_residual", 1):
        style = style._replace(parallel=())
    b, x = begin(model, style)
    x = _embed_positions(b, x, model)
    n_extra = int(model.numbers.get("n_deepstack_layers", 0))
    embedded, loop_ends = x, _loop_ends(model)
    for layer in model.layers:
        x = _transformer_block(b, x, layer, model, style)
        if layer.number in loop_ends:
            x = b.norm_by(x, b.global_weight("output_norm.weight", model.output_home), None)
        if layer.number < n_extra:
            x = in_place(x, view(embedded, shape(model.n_embd, model.batch.n_tokens), embedded.nb))
    return end(b, x, style)


# --- Blocks that lack parts -------------------------------------------------------------------------------------


def thinned(model: Model) -> Graph:
    """``llama_model_deci::graph``: attention replaced by one product or by nothing, some feed-forward parts missing."""
    b, x = begin(model, PLAIN)
    for layer in model.layers:
        heads, cur, residual = layer.heads, x, x
        if heads.n_head:
            cur = b.norm(x, layer, "attn_norm")
            if heads.n_head_kv:
                q, k, v = _project_heads(b, cur, layer, model, PLAIN)
                cur = b.attend(layer, q, k, v)
            else:
                cur = b.project(layer, "attn_output", cur)
        if layer.last:
            cur, residual = b.pick_outputs(cur), b.pick_outputs(residual)
        if "ffn_up.weight" not in layer.weights:
            continue
        ffn_input = in_place(cur, residual) if heads.n_head else cur
        x = in_place(b.ffn(b.norm(ffn_input, layer, "ffn_norm"), layer), ffn_input)
    return end(b, x, PLAIN)


def _gemma(model: Model) -> Graph:
    from launcher.planner.footprint.gemma import gemma3n, gemma4  # noqa: PLC0415 - FAMILIES says why

    return (gemma3n if model.name == "gemma3n" else gemma4)(model)


def _latent(model: Model) -> Graph:
    from launcher.planner.footprint.latent import latent_transformer  # noqa: PLC0415 - FAMILIES says why

    return latent_transformer(model)


def _delta_latent(model: Model) -> Graph:
    from launcher.planner.footprint.delta_latent import delta_latent, kimi_k3  # noqa: PLC0415 - FAMILIES says why

    return (kimi_k3 if model.name == "kimi-k3" else delta_latent)(model)


def _hyper(model: Model) -> Graph:
    from launcher.planner.footprint.hyper import hyper_connected  # noqa: PLC0415 - FAMILIES says why

    return hyper_connected(model)


def _compressed(model: Model) -> Graph:
    from launcher.planner.footprint.compressed import compressed_attention  # noqa: PLC0415 - FAMILIES says why

    return compressed_attention(model)


def _pooled(model: Model) -> Graph:
    from launcher.planner.footprint.pooled import pooled_attention  # noqa: PLC0415 - FAMILIES says why

    return pooled_attention(model)


def _encoder_decoder(model: Model) -> Graph:
    from launcher.planner.footprint.encoder_decoder import decoder  # noqa: PLC0415 - FAMILIES says why

    return decoder(model)


def _recurrent(model: Model) -> Graph:
    from launcher.planner.footprint.recurrent import delta_hybrid, hybrid  # noqa: PLC0415 - as above

    return (delta_hybrid if model.name in {"qwen35", "qwen35moe", "qwen3next"} else hybrid)(model)


def _encoder(model: Model) -> Graph:
    from launcher.planner.footprint.encoder import norms_after, norms_before  # noqa: PLC0415 - FAMILIES says why

    return (norms_before if model.name in _NORMS_BEFORE else norms_after)(model)


def _lightning(model: Model) -> Graph:
    from launcher.planner.footprint.lightning import lightning  # noqa: PLC0415 - FAMILIES says why

    return lightning(model)


def _sparse(model: Model) -> Graph:
    from launcher.planner.footprint.sparse import chosen_blocks  # noqa: PLC0415 - FAMILIES says why

    return chosen_blocks(model)


def _rwkv(model: Model) -> Graph:
    from launcher.planner.footprint.rwkv import rwkv  # noqa: PLC0415 - FAMILIES says why

    return rwkv(model)


FAMILIES: Final[Mapping[str, Callable[[Model], Graph]]] = {
    "deci": thinned,
    **dict.fromkeys(("gemma3n", "gemma4"), _gemma),
    **dict.fromkeys(("deepseek2", "deepseek32", "dots3note", "glm-dsa", "minicpm3", "mistral4"), _latent),
    **dict.fromkeys(("bailingmoe3", "kimi-k3", "kimi-linear"), _delta_latent),
    **dict.fromkeys(("falcon-h1", "granitehybrid", "jamba", "lfm2", "lfm2moe", "nemotron_h"), _recurrent),
    **dict.fromkeys(("nemotron_h_moe", "plamo2", "mamba", "mamba2", "qwen35", "qwen35moe", "qwen3next"), _recurrent),
    "deepseek4": _compressed,
    "glm5-next": _pooled,
    "hy_v4": _hyper,
    "minimax-01": _lightning,
    "minimax-m3": _sparse,
    **dict.fromkeys(ENCODERS, _encoder),
    **dict.fromkeys(ENCODER_DECODERS, _encoder_decoder),
    **dict.fromkeys(("rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"), _rwkv),
}
"""Graphs that are not a transformer's. Their files are loaded by the model that needs one: a plan seldom does, and each
takes a hundredth of its start-up."""


def build_graph(model: Model) -> Graph:
    """Return the graph that llama.cpp reserves memory for."""
    return FAMILIES.get(model.name, transformer)(model)
