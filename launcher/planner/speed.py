"""Predicted speed: what one token makes each memory read and compute, over what that memory delivers.

Generation reads every active weight and the request's cache once per token, so it is bound by bandwidth; each layer
adds a fixed time for launching its kernels, without which small models would come out several times too fast. Prompts
are bound by arithmetic, and by the link for weights that are copied to a device step by step. The constants are fitted
to published measurements (``benchmarks/speed_error.py``, which prints how far they are off); what was measured on this
machine replaces them. It must not know where measurements come from.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final

from msgspec import Struct

from launcher.domain import HOST_MEMORY, Calibration, Device, DeviceKind, Footprint, Host, Provenance, Speed
from launcher.planner.architecture import Architecture, FullAttention, SlidingAttention
from launcher.planner.footprint.llama_cpp import Backend, LlamaCppConfig, Placement
from launcher.planner.footprint.weights import ModelWeights


class Rates(Struct, frozen=True, kw_only=True):
    """What a kind of memory delivers.

    ``efficiency`` is the share of its bandwidth that generation reaches, ``layer_s`` the fixed seconds per layer and
    token, ``prompt_efficiency`` the share of its dense FP16 arithmetic that prompts reach, where it is known.
    """

    efficiency: float
    layer_s: float
    prompt_efficiency: float | None = None


GENERATIONS: Final[Mapping[str, Rates]] = {
    "ada": Rates(efficiency=0.86, layer_s=26e-6, prompt_efficiency=0.31),
    "ampere": Rates(efficiency=0.84, layer_s=62e-6, prompt_efficiency=0.41),
    "ampere-hbm": Rates(efficiency=0.55, layer_s=88e-6, prompt_efficiency=0.33),
    "apple-m1": Rates(efficiency=0.47, layer_s=67e-6),
    "apple-m2": Rates(efficiency=0.67, layer_s=81e-6),
    "apple-m3": Rates(efficiency=0.71, layer_s=104e-6),
    "apple-m4": Rates(efficiency=0.91, layer_s=84e-6),
    "blackwell": Rates(efficiency=0.84, layer_s=43e-6),
    "gb10": Rates(efficiency=0.81, layer_s=38e-6),
    "hopper": Rates(efficiency=0.63, layer_s=94e-6, prompt_efficiency=0.18),
    "pascal": Rates(efficiency=0.39, layer_s=68e-6),
    "rdna3": Rates(efficiency=0.84, layer_s=59e-6, prompt_efficiency=0.36),
    "rdna4": Rates(efficiency=1.0, layer_s=55e-6),
    "turing": Rates(efficiency=0.84, layer_s=56e-6),
}
"""Fitted by ``benchmarks/speed_error.py`` to ``benchmarks/data/speed.toml``, which names every source."""

UNKNOWN_GPU: Final = Rates(efficiency=0.6, layer_s=60e-6)
"""Assumed for a GPU of no generation that was measured: the low end of those that were."""
HOST: Final = Rates(efficiency=0.6, layer_s=20e-6)
"""Assumed: nothing published states both a CPU's speed and its memory's bandwidth in use."""
MOE_LAYER_FACTOR: Final = 1.5
"""A layer of experts takes this much of ``layer_s``: routing launches more kernels. Chosen on the same measurements."""
PLAIN_ATTENTION_FACTOR: Final = 3.0
"""Without flash attention a byte of cache takes as long as this many of weights. Chosen on the same measurements."""
DEFAULT_GPU_BYTES_PER_S: Final = 300e9
"""Assumed where the driver tells neither clock nor bus width."""
DEFAULT_HOST_BYTES_PER_S: Final = 25e9
"""Assumed where nothing was measured: one channel of DDR5."""
DEFAULT_LINK_BYTES_PER_S: Final = 12e9
"""Assumed where the driver tells no link: PCI Express 3.0 x16 in use."""
NETWORK_BYTES_PER_S: Final = 118e6
"""Assumed between this machine and a worker: what gigabit Ethernet carries."""
NETWORK_ROUND_TRIP_S: Final = 0.5e-3
"""Assumed: one question and its answer over a wired local network, the engine's part included."""
_F32_BYTES: Final = 4
_OP_OFFLOAD_MIN_BATCH: Final = 32
"""Batches below this stay on the CPU (``ggml_backend_cuda_device_offload_op``: ``min_batch_size``)."""
_MOST_EFFICIENT: Final = 1.0
_LEAST_EFFICIENT: Final = 0.01
_STRENGTH: Final = tuple(Provenance)

_BY_CAPABILITY: Final[Mapping[tuple[int, int], str]] = {
    (6, 0): "pascal", (6, 1): "pascal", (7, 5): "turing", (8, 0): "ampere-hbm", (8, 6): "ampere", (8, 9): "ada",
    (9, 0): "hopper", (10, 0): "blackwell", (12, 0): "blackwell", (12, 1): "gb10",
}  # fmt: skip
"""Generations by CUDA's compute capability."""
_BY_NAME: Final = (
    ("radeon rx 7", "rdna3"), ("radeon pro w7", "rdna3"), ("radeon rx 9", "rdna4"), ("r9700", "rdna4"),
    ("apple m1", "apple-m1"), ("apple m2", "apple-m2"), ("apple m3", "apple-m3"), ("apple m4", "apple-m4"),
)  # fmt: skip
"""Generations by a part of the device's name in lower case."""

F16_FLOPS: Final[Mapping[str, float]] = {
    "rtx 3060": 51e12, "rtx 3070": 81.3e12, "rtx 3080": 119e12, "rtx 3080 ti": 136e12, "rtx 3090": 142e12,
    "rtx a4000": 76.7e12, "rtx a6000": 154.8e12, "a40": 149.7e12, "a100": 312e12, "rtx 4060 ti": 88e12,
    "rtx 4070 ti": 160e12, "rtx 4080": 195e12, "rtx 4090": 330e12, "rtx 4000 ada": 107e12, "rtx 5000 ada": 261e12,
    "rtx 6000 ada": 364e12, "l4": 121e12, "l40s": 362e12, "h100 pcie": 756e12, "h100": 989e12, "h200": 989e12,
    "rtx 5070": 123.5e12, "rtx 5090": 419e12, "rx 7900 xt": 103e12, "rx 7900 xtx": 122.8e12,
}  # fmt: skip
"""Dense FP16 operations per second with FP16 accumulation, as the vendors state them, by the words of a name."""


class Leg(Struct, frozen=True, kw_only=True):
    """What one memory does for one token, and how well: one device, or the host."""

    name: str
    n_bytes: float
    n_layer: float
    bandwidth_bytes_per_s: float
    rates: Rates
    basis: Provenance
    link_s: float = 0.0
    """What a network between takes."""

    @property
    def seconds(self) -> float:
        """Seconds per generated token; the legs run one after another."""
        reading_s = self.n_bytes / (self.bandwidth_bytes_per_s * self.rates.efficiency)
        return reading_s + self.n_layer * self.rates.layer_s + self.link_s


class Work(Struct, frozen=True, kw_only=True):
    """What one token reads and passes through: bytes and layers per device, and on the host.

    ``passed_bytes`` go into a device and come out of it: activations, from the last one the logits.
    ``host_prompt_bytes`` are the weights on the host that a batch of many tokens reads: every expert.
    """

    device_bytes: tuple[float, ...]
    device_layers: tuple[float, ...]
    passed_bytes: tuple[int, ...]
    host_bytes: float
    host_layers: float
    host_prompt_bytes: float


def device_generation(device: Device) -> str | None:
    """Return which of the fitted generations a device belongs to."""
    if device.compute_capability is not None:
        return _BY_CAPABILITY.get(device.compute_capability)
    name = device.description.lower()
    return next((generation for part, generation in _BY_NAME if part in name), None)


def device_flops(device: Device) -> float | None:
    """Return the dense FP16 operations per second of a device, by the most specific name that it bears."""
    words = f" {device.description.lower().replace('-', ' ')} "
    known = [name for name in F16_FLOPS if f" {name} " in words]
    return F16_FLOPS[max(known, key=len)] if known else None


@lru_cache(maxsize=256)
def prompt_parameters(architecture: Architecture) -> float:
    """Return about how many parameters each token of a prompt is multiplied with: gated feed-forward is assumed.

    The output layer is left out: it is computed for a prompt's last token only.
    """
    per_layer = 2.0 * architecture.n_embd**2 + 3.0 * architecture.n_embd * architecture.n_ff_active
    caches = (x for x in architecture.layers if isinstance(x, FullAttention | SlidingAttention))
    keys_and_values = sum(architecture.n_embd * (x.n_embd_k + x.n_embd_v) for x in caches)
    return architecture.n_layer * per_layer + keys_and_values


def count_work(
    architecture: Architecture,
    weights: ModelWeights,
    placement: Placement,
    config: LlamaCppConfig,
    footprint: Footprint,
    *,
    depth: float,
) -> Work:
    """Add up what one token makes each memory do, with ``depth`` as the share of the whole cache that is read."""
    active = architecture.n_expert_used / architecture.n_expert if architecture.n_expert else 1.0
    layer = MOE_LAYER_FACTOR if architecture.is_moe else 1.0
    n_bytes = [0.0] * len(footprint.devices)
    layers = [0.0] * len(footprint.devices)
    host_bytes = host_layers = host_prompt = 0.0
    dense, experts = weights.dense_sums, weights.expert_sums
    for target, start, end in placement.runs:
        dense_bytes, expert_bytes = dense[end] - dense[start], experts[end] - experts[start]
        if target is None:
            host_bytes += dense_bytes + expert_bytes * active
            host_prompt += dense_bytes + expert_bytes
            host_layers += layer * (end - start)
            continue
        on_host = min(max(config.n_cpu_moe, start), end)
        moved = experts[on_host] - experts[start]
        n_bytes[target] += dense_bytes + (expert_bytes - moved) * active
        layers[target] += layer * (end - start)
        host_bytes += moved * active
        host_prompt += moved
        host_layers += sum(block.expert_bytes > 0 for block in weights.blocks[start:on_host])
    n_embd = architecture.n_embd
    output_bytes = max(weights.output_bytes, weights.largest_output_bytes)
    if placement.output is None:
        host_bytes += output_bytes
    else:
        n_bytes[placement.output] += output_bytes
    cache = depth * (1.0 if config.flash_attn else PLAIN_ATTENTION_FACTOR)
    return Work(
        device_bytes=tuple(n + use.kv_cache_bytes * cache for n, use in zip(n_bytes, footprint.devices, strict=True)),
        device_layers=tuple(layers),
        passed_bytes=tuple(
            _F32_BYTES * (n_embd + (architecture.n_vocab if idx == placement.output else n_embd))
            for idx in range(len(layers))
        ),
        host_bytes=host_bytes + footprint.host.kv_cache_bytes * cache,
        host_layers=host_layers,
        host_prompt_bytes=host_prompt,
    )


def device_rates(device: Device, calibration: Calibration | None) -> tuple[float, Rates, Provenance]:
    """Return a device's bandwidth, what of it is reached, and what that rests on."""
    generation = device_generation(device)
    fitted = GENERATIONS.get(generation or "")
    rates = fitted or UNKNOWN_GPU
    measured = calibration.rates_of(device.name) if calibration else None
    if measured is not None:
        learned = Rates(efficiency=measured.efficiency, layer_s=rates.layer_s)
        return measured.bandwidth_bytes_per_s, learned, Provenance.MEASURED
    if device.bandwidth_bytes_per_s is None or fitted is None:
        return device.bandwidth_bytes_per_s or DEFAULT_GPU_BYTES_PER_S, rates, Provenance.ASSUMED
    return device.bandwidth_bytes_per_s, rates, Provenance.PUBLISHED


def host_rates(host: Host, calibration: Calibration | None) -> tuple[float, Rates, Provenance]:
    """Return the host memory's bandwidth, what of it is reached, and what that rests on."""
    measured = calibration.rates_of(HOST_MEMORY) if calibration else None
    if measured is not None:
        learned = Rates(efficiency=measured.efficiency, layer_s=HOST.layer_s)
        return measured.bandwidth_bytes_per_s, learned, Provenance.MEASURED
    return host.bandwidth_bytes_per_s or DEFAULT_HOST_BYTES_PER_S, HOST, Provenance.ASSUMED


def split_legs(
    work: Work, devices: Sequence[Device], host: Host, calibration: Calibration | None = None
) -> Iterator[Leg]:
    """Yield one leg per memory that has a part in generating a token."""
    each = zip(devices, work.device_bytes, work.device_layers, work.passed_bytes, strict=True)
    for device, n_bytes, n_layer, passed_bytes in each:
        if n_bytes:
            bandwidth, rates, basis = device_rates(device, calibration)
            yield Leg(
                name=device.name,
                n_bytes=n_bytes,
                n_layer=n_layer,
                bandwidth_bytes_per_s=bandwidth,
                rates=rates,
                basis=basis,
                link_s=_network_s(device, passed_bytes),
            )
    if work.host_bytes:
        bandwidth, rates, basis = host_rates(host, calibration)
        yield Leg(
            name=HOST_MEMORY,
            n_bytes=work.host_bytes,
            n_layer=work.host_layers,
            bandwidth_bytes_per_s=bandwidth,
            rates=rates,
            basis=basis,
        )


def _network_s(device: Device, passed_bytes: int) -> float:
    """Return the seconds per token that go into the network before a worker: its leg is one question and one answer."""
    return NETWORK_ROUND_TRIP_S + passed_bytes / NETWORK_BYTES_PER_S if device.kind is DeviceKind.RPC else 0.0


def learn_efficiency(leg: Leg, generation_tps: float) -> float:
    """Return the efficiency with which the only leg of a run would have given the measured rate."""
    seconds = max(1.0 / generation_tps - leg.n_layer * leg.rates.layer_s, 1e-9)
    return min(_MOST_EFFICIENT, max(_LEAST_EFFICIENT, leg.n_bytes / (leg.bandwidth_bytes_per_s * seconds)))


def learn_prompt_flops(architecture: Architecture, prompt_tps: float) -> float:
    """Return the operations per second that a measured prompt rate comes to: two per parameter and token."""
    return 2.0 * prompt_parameters(architecture) * prompt_tps


def prompt_flops(device: Device, calibration: Calibration | None) -> float | None:
    """Return the operations per second that prompts reach on a device: measured, else fitted; ``None`` if unknown."""
    measured = calibration.rates_of(device.name) if calibration else None
    if measured is not None and measured.prompt_flops is not None:
        return measured.prompt_flops
    fitted = GENERATIONS.get(device_generation(device) or "")
    flops = device_flops(device)
    if fitted is None or fitted.prompt_efficiency is None or flops is None:
        return None
    return flops * fitted.prompt_efficiency


def _prompt_tps(
    architecture: Architecture,
    work: Work,
    config: LlamaCppConfig,
    devices: Sequence[Device],
    calibration: Calibration | None,
) -> float | None:
    """Predict prompt tokens per second; ``None`` where the arithmetic of a memory that takes part is unknown.

    With weights left on the host their operations run on the first device, which reads them over its link once per
    step of ``n_ubatch`` tokens; where the engine does not do that, the host's own arithmetic must have been measured.
    """
    operations = 2.0 * prompt_parameters(architecture)
    on_devices = sum(work.device_layers)
    all_layers = on_devices + work.host_layers
    if not all_layers:
        return None
    copies = config.backend is Backend.GPU and config.op_offload and config.n_ubatch >= _OP_OFFLOAD_MIN_BATCH
    seconds = 0.0
    for idx, (device, n_layer) in enumerate(zip(devices, work.device_layers, strict=True)):
        copied = work.host_layers if copies and idx == 0 else 0.0
        share = (n_layer + copied) / all_layers
        flops = prompt_flops(device, calibration)
        if share and flops is None:
            return None
        seconds += share * operations / flops if flops else 0.0
        if copied:
            link = device.pcie_bytes_per_s or DEFAULT_LINK_BYTES_PER_S
            seconds += work.host_prompt_bytes / (link * config.n_ubatch)
    if work.host_layers and not (copies and devices):
        measured = calibration.rates_of(HOST_MEMORY) if calibration else None
        if measured is None or measured.prompt_flops is None:
            return None
        seconds += work.host_layers / all_layers * operations / measured.prompt_flops
    return 1.0 / seconds if seconds else None


def estimate_speed(
    *,
    architecture: Architecture,
    weights: ModelWeights,
    placement: Placement,
    config: LlamaCppConfig,
    footprint: Footprint,
    devices: tuple[Device, ...],
    host: Host,
    calibration: Calibration | None = None,
) -> Speed:
    """Predict the tokens per second of one request whose context is half full, from the weakest basis of its legs."""
    work = count_work(architecture, weights, placement, config, footprint, depth=0.5 / config.n_parallel)
    legs = tuple(split_legs(work, devices, host, calibration))
    seconds = sum(leg.seconds for leg in legs)
    return Speed(
        generation_tps=1.0 / seconds if seconds else 0.0,
        prompt_tps=_prompt_tps(architecture, work, config, devices, calibration),
        basis=max((leg.basis for leg in legs), key=_STRENGTH.index, default=Provenance.ASSUMED),
    )
