"""How fast vLLM would be: bytes that one token moves on each GPU over what that GPU delivers.

The rates are ``speed.py``'s, which are fitted to llama.cpp on one GPU: for vLLM they are assumed, as is what several
GPUs cost in talking to each other; what a network between hosts costs follows from its bandwidth and latency. It must not
know how a configuration was chosen.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from launcher.domain import Device, Network, Provenance, Speed
from launcher.planner.footprint.vllm import VllmConfig, stage_layers
from launcher.planner.footprint.vllm_model import FullKv, SlidingKv, StateKv, VllmModel
from launcher.planner.speed import MOE_LAYER_FACTOR, device_rates, prompt_flops

_REDUCTIONS: Final = 2
"""All-reduces per layer: after attention, after the feed-forward block (``layers/linear.py``: ``RowParallelLinear``)."""
_LINKED_S: Final = 10e-6
"""Of one all-reduce of a single token over NVLink; assumed."""
_UNLINKED_S: Final = 30e-6
"""The same through the host's PCI Express; assumed."""
_LINKED: Final = frozenset(((7, 0), (8, 0), (9, 0), (10, 0), (10, 3)))
"""Compute capabilities of GPUs that come with NVLink in servers of several."""
_EAGER_FACTOR: Final = 2.0
"""Without CUDA graphs every kernel is launched from the host: a layer's fixed time is taken to double; assumed."""
_DEPTH: Final = 0.5
"""Share of the context that is full, as in ``speed.py``."""


_STREAMS: Final = 2
"""Tensors of the hidden size that a stage hands on for each token: the hidden states and the residual (``models/llama.py``:
``make_empty_intermediate_tensors``). The tensor ranks of a stage send a share each (``parallel_state.py``:
``send_tensor_dict``), so they cross the network once."""


def estimate_vllm_speed(
    model: VllmModel,
    config: VllmConfig,
    devices: Sequence[Device],
    *,
    hosts: Sequence[int] = (),
    network: Network | None = None,
) -> Speed:
    """Predict the tokens per second of one request whose context is half full.

    The ranks of a stage work at once, so its slowest counts; the stages follow each other. ``devices`` has one entry per
    rank, a stage's together; ``hosts`` names the host of each stage, where there are several with a ``network`` between
    them. The prompt's rate is ``None`` where a GPU's arithmetic is unknown.
    """
    tp = config.tensor_parallel_size
    stages = stage_layers(model.n_layer, config.pipeline_parallel_size)
    generation_s = prompt_s = 0.0
    prompt_known = True
    operations = 2.0 * _prompt_parameters(model)
    for idx, layers in enumerate(stages):
        ranks = devices[idx * tp : (idx + 1) * tp]
        n_bytes = model.read_bytes(layers, tp, last=idx == len(stages) - 1) + cache_bytes(model, config, layers)
        generation_s += max(_rank_s(model, config, device, len(layers), n_bytes) for device in ranks)
        flops = [prompt_flops(device, None) for device in ranks]
        slowest = min((rate for rate in flops if rate), default=0.0)
        prompt_known = prompt_known and all(flops)
        prompt_s += operations * len(layers) / max(1, model.n_layer) / (slowest * tp) if slowest else 0.0
    if network is not None:
        on_the_way_s = _network_s(model, config, hosts, network)
        generation_s += on_the_way_s[0]
        prompt_s += on_the_way_s[1] if prompt_s else 0.0
    return Speed(
        generation_tps=1.0 / generation_s if generation_s else 0.0,
        prompt_tps=1.0 / prompt_s if prompt_known and prompt_s else None,
        basis=Provenance.ASSUMED,
    )


def _network_s(model: VllmModel, config: VllmConfig, hosts: Sequence[int], network: Network) -> tuple[float, float]:
    """Return the seconds that a generated token and a token of a prompt are on the way between hosts.

    A generated token goes on alone, and back to the first stage once it is known; those of a prompt in whole batches.
    """
    n_hop = sum(here != there for here, there in pairwise(hosts))
    is_back = bool(hosts) and hosts[0] != hosts[-1]
    token_s = _STREAMS * model.n_embd * model.dtype_bytes / network.bandwidth_bytes_per_s
    generated_s = n_hop * (network.latency_s + token_s) + is_back * network.latency_s
    return generated_s, n_hop * (network.latency_s / config.max_num_batched_tokens + token_s)


def _rank_s(model: VllmModel, config: VllmConfig, device: Device, n_layer: int, n_bytes: float) -> float:
    bandwidth, rates, _ = device_rates(device, None)
    layer_s = (
        rates.layer_s * (MOE_LAYER_FACTOR if model.is_moe else 1.0) * (_EAGER_FACTOR if config.enforce_eager else 1)
    )
    if config.tensor_parallel_size > 1:
        layer_s += _REDUCTIONS * (_LINKED_S if device.compute_capability in _LINKED else _UNLINKED_S)
    return n_bytes / (bandwidth * rates.efficiency) + n_layer * layer_s


def cache_bytes(model: VllmModel, config: VllmConfig, layers: range) -> float:
    """Return the cache that one token of a request with a half-full context reads on each rank."""
    tp = config.tensor_parallel_size
    element = 1 if config.kv_cache_dtype.startswith("fp8") else model.dtype_bytes
    n_tokens = config.max_model_len * _DEPTH
    total = 0.0
    for layer in model.layers[layers.start : layers.stop]:
        match layer:
            case FullKv():
                total += layer.bytes_per_token(tp, element) * n_tokens
            case SlidingKv():
                total += layer.bytes_per_token(tp, element) * min(n_tokens, layer.window)
            case StateKv():
                total += layer.state_bytes(tp, model.dtype_bytes)
            case None:
                pass
    return total


def _prompt_parameters(model: VllmModel) -> float:
    """Return about how many parameters each token of a prompt is multiplied with, as ``speed.prompt_parameters`` counts."""
    n_ff = model.n_ff_expert * model.n_expert_used if model.is_moe else model.n_ff
    per_layer = 2.0 * model.n_embd**2 + 3.0 * model.n_embd * n_ff
    caches = (layer for layer in model.layers if isinstance(layer, FullKv | SlidingKv))
    return model.n_layer * per_layer + sum(model.n_embd * layer.n_head_kv * layer.n_per_head for layer in caches)
