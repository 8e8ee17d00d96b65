"""How much a candidate needs, and how fast it would be, under each way of placing it.

A trial is one candidate under one configuration. The searches here find the placements worth comparing: whole on the
fewest devices, with experts on the host, with layers on the host. Which trial is best is ``fit.py``'s to say.
"""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import Artifact, CacheType, Engine, Footprint, Host, Profile, Speed, Tuning, WeightsFormat
from launcher.planner.architecture import Architecture, read_architecture
from launcher.planner.ask import Ask
from launcher.planner.corrections import configuration_class, correct_budgets
from launcher.planner.footprint.llama_cpp import (
    DEFAULT_N_BATCH,
    DEFAULT_N_UBATCH,
    Backend,
    LlamaCppConfig,
    ModelWeights,
    estimate_footprint,
    place_layers,
    sum_weights,
)
from launcher.planner.parameters import count_active
from launcher.planner.quality import cache_kl, cache_types_worth_trying, kl_divergence
from launcher.planner.speed import estimate_speed
from launcher.planner.target import Target
from launcher.tensor_types import TensorType

_BOUNDARY: Final = 3
"""Layer counts tried on either side of the boundary that bisection found."""
_SMALLER_UBATCHES: Final = (256, 128)
_LARGER_UBATCHES: Final = (4096, 2048, 1024)

_X86_REPACK: Final = (
    (TensorType.Q4_0, "avx2"),
    (TensorType.Q4_K, "avx2"),
    (TensorType.IQ4_NL, "avx2"),
    (TensorType.Q2_K, "avx512f"),
    *((kind, "amx_int8") for kind in (TensorType.Q4_1, TensorType.Q8_0, TensorType.Q5_K, TensorType.Q6_K)),
    (TensorType.IQ4_XS, "amx_int8"),
)
"""Types that llama.cpp repacks for x86 CPUs, and the instructions that make it (``ggml/src/ggml-cpu/repack.cpp`` and
``amx/common.h``, build 11434). A build without AMX repacks less than this says, so the figure errs high."""


class Candidate(Struct, frozen=True, kw_only=True):
    """One artifact with what its metadata says, ready to be sized under many configurations."""

    artifact: Artifact
    architecture: Architecture
    weights: ModelWeights
    n_active: float
    """Parameters that a token passes through."""


class Shape(Struct, frozen=True, kw_only=True):
    """What may vary between two trials of one candidate; ``shares`` is empty where devices share by their budgets."""

    n_gpu_layers: int
    n_ubatch: int
    n_cpu_moe: int = 0
    cache_type_k: CacheType = CacheType.F16
    cache_type_v: CacheType = CacheType.F16
    shares: tuple[float, ...] = ()


class Trial(Struct, frozen=True, kw_only=True):
    """One candidate under one configuration on one target, sized and timed."""

    candidate: Candidate
    target: Target
    shape: Shape
    config: LlamaCppConfig
    footprint: Footprint
    speed: Speed
    fits: bool
    tuning: Tuning | None = None
    """The measured settings that are in effect."""

    @property
    def offloaded_bytes(self) -> int:
        """Weights that stay on the host beyond those that always do."""
        return self.footprint.host.weights_bytes - self.candidate.weights.input_bytes

    @property
    def layers_on_host(self) -> int:
        """Layers that run on the host, or whose experts do."""
        left = self.candidate.architecture.n_layer + 1 - self.config.n_gpu_layers
        return max(0, left) or self.config.n_cpu_moe

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the model that could be on a device runs on the host."""
        n_all = all_layers(self.candidate, self.target)
        return self.config.n_gpu_layers >= n_all and not self.config.n_cpu_moe

    @property
    def kl(self) -> float:
        """Loss of quality: of the weights' quantization and of the cache's."""
        name = self.candidate.architecture.name
        cache = cache_kl(name, self.config.cache_type_k, self.config.cache_type_v)
        return kl_divergence(self.candidate.artifact.quantization, self.candidate.n_active) + cache

    @property
    def engine(self) -> Engine:
        """Which engine it is for."""
        return self.target.engine

    @property
    def weights_bytes(self) -> int:
        """Size of the weights."""
        return self.candidate.weights.total_bytes

    @property
    def needed_bytes(self) -> int:
        """Sum over devices and host of what the engine itself reports."""
        return self.footprint.host.engine_bytes + sum(use.total_bytes for use in self.footprint.devices)


def prepare(profile: Profile) -> tuple[Candidate, ...]:
    """Return a profile's artifacts that llama.cpp can load and whose metadata is known, best quality first.

    This is the costly part of planning, and depends on the profile alone: do it once for many questions.
    """
    candidates = []
    shared: dict[int, tuple[Architecture, float]] = {}
    for artifact in profile.artifacts:
        if artifact.format is not WeightsFormat.GGUF or artifact.spec is None:
            continue
        # The quantizations of one description share its metadata, and differ in the tensors' types alone.
        key = id(artifact.spec.metadata)
        architecture, n_active = shared.get(key) or (read_architecture(artifact.spec), count_active(artifact.spec))
        shared[key] = architecture, n_active
        weights = sum_weights(artifact.spec, architecture.n_layer)
        candidates.append(Candidate(artifact=artifact, architecture=architecture, weights=weights, n_active=n_active))
    return tuple(sorted(candidates, key=lambda c: (kl_divergence(c.artifact.quantization), -c.weights.total_bytes)))


def all_layers(candidate: Candidate, target: Target) -> int:
    """Return the layer count that means full offload: every block and the output; 0 without a device."""
    return candidate.architecture.n_layer + 1 if target.devices else 0


def first_shape(candidate: Candidate, ask: Ask, target: Target) -> Shape:
    """Return the shape to begin with: what the user fixed, everything on the devices, llama-server's batch."""
    settings = ask.settings
    n_all = all_layers(candidate, target)
    n_batch = min(settings.n_batch or DEFAULT_N_BATCH, ask.n_ctx)
    return Shape(
        n_gpu_layers=n_all if settings.n_gpu_layers is None else min(settings.n_gpu_layers, n_all),
        n_ubatch=min(settings.n_ubatch or DEFAULT_N_UBATCH, n_batch),
        n_cpu_moe=min(settings.n_cpu_moe or 0, candidate.architecture.n_layer if candidate.architecture.is_moe else 0),
        cache_type_k=settings.cache_type_k or CacheType.F16,
        cache_type_v=settings.cache_type_v or CacheType.F16,
    )


def _repacked_types(host: Host, backend: Backend) -> frozenset[TensorType]:
    if backend is Backend.GPU:
        return frozenset()
    # An unknown CPU is taken for a current x86 one: that counts tied embeddings twice, which errs high.
    return frozenset(kind for kind, isa in _X86_REPACK if not host.isa or isa in host.isa)


def build_config(ask: Ask, target: Target, shape: Shape) -> LlamaCppConfig:
    """Return the configuration of one trial."""
    settings = ask.settings
    # llama-cpp-python keeps llama.cpp's own defaults: a whole window for sliding layers, a logits row per token.
    bare = target.engine is Engine.LLAMA_CPP_PYTHON
    n_batch = min(settings.n_batch or max(DEFAULT_N_BATCH, shape.n_ubatch), ask.n_ctx)
    n_ubatch = min(shape.n_ubatch, n_batch)
    return LlamaCppConfig(
        n_ctx=ask.n_ctx,
        n_gpu_layers=shape.n_gpu_layers,
        backend=target.backend,
        shares=shape.shares or tuple(float(max(1, budget.budget_bytes)) for budget in target.budgets),
        n_parallel=ask.n_parallel,
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        cache_type_k=shape.cache_type_k,
        cache_type_v=shape.cache_type_v,
        flash_attn=True if settings.flash_attn is None else settings.flash_attn,
        n_cpu_moe=shape.n_cpu_moe,
        repacked=_repacked_types(target.host, target.backend),
        swa_full=bare,
        n_outputs=n_ubatch if bare else None,
    )


def try_shape(candidate: Candidate, ask: Ask, target: Target, shape: Shape) -> Trial:
    """Size and time one candidate under one configuration."""
    config = build_config(ask, target, shape)
    target = _corrected(target, candidate, config)
    names = tuple(device.name for device in target.devices)
    footprint = estimate_footprint(candidate.architecture, candidate.weights, config, names)
    resident = max(0, candidate.weights.total_bytes - footprint.host.weights_bytes)
    footprint = replace(footprint, host=replace(footprint.host, resident_mmap_bytes=resident))
    uses = [use.total_bytes for use in footprint.devices] + [footprint.host.total_bytes]
    fits = all(use <= budget.budget_bytes for use, budget in zip(uses, target.known_budgets, strict=True))
    speed = estimate_speed(
        architecture=candidate.architecture,
        weights=candidate.weights,
        placement=place_layers(
            candidate.architecture.n_layer, shape.n_gpu_layers, config.shares if target.devices else ()
        ),
        config=config,
        footprint=footprint,
        devices=target.devices,
        host=target.host,
        calibration=target.calibration,
    )
    return Trial(
        candidate=candidate,
        target=target,
        shape=shape,
        config=config,
        footprint=footprint,
        speed=speed,
        fits=fits,
    )


def _corrected(target: Target, candidate: Candidate, config: LlamaCppConfig) -> Target:
    """Return the target with what was learnt of this model's use of its memories."""
    corrections = target.calibration.corrections if target.calibration else ()
    if not corrections:
        return target
    *budgets, host_budget = correct_budgets(
        target.known_budgets,
        corrections,
        install=target.install,
        architecture=candidate.architecture,
        configuration=configuration_class(n_devices=len(target.devices), flash_attn=config.flash_attn),
    )
    return replace(target, budgets=tuple(budgets), host_budget=host_budget)


# --- Searches ---------------------------------------------------------------------------------------------------


def whole_trials(candidate: Candidate, ask: Ask, target: Target) -> Iterator[Trial]:
    """Yield the placements without offload that fit: at most one for each cache type worth trying.

    The fewest devices are taken, the fastest first; where the usual step of 512 tokens does not fit, a smaller one.
    """
    start = first_shape(candidate, ask, target)
    if candidate.weights.total_bytes > target.budget_bytes:
        return
    for cache_type in _cache_types(candidate, ask):
        shape = start if cache_type is None else replace(start, cache_type_k=cache_type, cache_type_v=cache_type)
        trial = _first_fitting(candidate, ask, target, shape)
        if trial is not None:
            yield trial
            if cache_type is None:
                return  # a smaller cache could only cost quality


def _cache_types(candidate: Candidate, ask: Ask) -> tuple[CacheType | None, ...]:
    """Return the cache types to try in turn; ``None`` stands for what the first shape has."""
    settings = ask.settings
    if settings.cache_type_k or settings.cache_type_v or settings.flash_attn is False:
        return (None,)
    return (None, *cache_types_worth_trying(candidate.architecture.name))


def _first_fitting(candidate: Candidate, ask: Ask, target: Target, shape: Shape) -> Trial | None:
    least = candidate.weights.total_bytes - candidate.weights.input_bytes
    is_whole = shape.n_gpu_layers >= all_layers(candidate, target) and not shape.n_cpu_moe
    for n_ubatch in _ubatches(ask, shape):
        for n_devices in range(min(1, len(target.devices)), len(target.devices) + 1):
            if is_whole and n_devices and least > sum(b.budget_bytes for b in target.budgets[:n_devices]):
                continue  # not worth sizing: the weights alone exceed these devices
            trial = _try_split(candidate, ask, target.first(n_devices), replace(shape, n_ubatch=n_ubatch))
            if trial.fits:
                return trial
    return None


def _ubatches(ask: Ask, shape: Shape) -> tuple[int, ...]:
    if ask.settings.n_ubatch is not None:
        return (shape.n_ubatch,)
    return (shape.n_ubatch, *(n for n in _SMALLER_UBATCHES if n < shape.n_ubatch))


def _try_split(candidate: Candidate, ask: Ask, target: Target, shape: Shape) -> Trial:
    """Try shares by budget; where one device overflows, give each as many whole layers as it can hold, in order."""
    trial = try_shape(candidate, ask, target, shape)
    if trial.fits or len(target.devices) < 2 or not trial.is_whole:  # noqa: PLR2004 - one device has nothing to split
        return trial
    shares = _fill_in_order(trial)
    return try_shape(candidate, ask, target, replace(shape, shares=shares)) if shares else trial


def _fill_in_order(trial: Trial) -> tuple[float, ...]:
    """Return whole layers per device, each filled before the next; empty where they do not all find a place."""
    weights, layers = trial.candidate.weights, trial.candidate.architecture.n_layer
    total_cache = sum(use.kv_cache_bytes for use in trial.footprint.devices)
    items = [block.dense_bytes + block.expert_bytes + total_cache // max(1, layers) for block in weights.blocks]
    items.append(max(weights.output_bytes, weights.largest_output_bytes))
    counts, position = [], 0
    for use, budget in zip(trial.footprint.devices, trial.target.budgets, strict=True):
        room, taken = budget.budget_bytes - use.compute_bytes, 0
        while position < len(items) and items[position] <= room:
            room -= items[position]
            position += 1
            taken += 1
        counts.append(float(taken))
    return tuple(counts) if position == len(items) and all(counts) else ()


def partial_trials(candidate: Candidate, ask: Ask, target: Target) -> Iterator[Trial]:
    """Yield the placements with the least on the host that fit: experts first where there are any, then layers."""
    if candidate.weights.total_bytes > target.budget_bytes:
        return
    shape = first_shape(candidate, ask, target)
    if candidate.architecture.is_moe and ask.settings.n_cpu_moe is None and target.has_option("--n-cpu-moe"):
        trial = _fewest_experts_on_host(candidate, ask, target, shape)
        if trial is not None:
            yield _with_larger_step(trial, ask)
    trial = _most_layers(candidate, ask, target, shape)
    if trial is not None:
        yield _with_larger_step(trial, ask)


def _fewest_experts_on_host(candidate: Candidate, ask: Ask, target: Target, shape: Shape) -> Trial | None:
    """All layers on the devices, the experts of as few of them as possible on the host."""
    low, high = 0, candidate.architecture.n_layer
    if not _devices_hold(try_shape(candidate, ask, target, replace(shape, n_cpu_moe=high))):
        return None
    while low < high:
        middle = (low + high) // 2
        if _devices_hold(try_shape(candidate, ask, target, replace(shape, n_cpu_moe=middle))):
            high = middle
        else:
            low = middle + 1
    trial = try_shape(candidate, ask, target, replace(shape, n_cpu_moe=high))
    return trial if trial.fits else None


def _most_layers(candidate: Candidate, ask: Ask, target: Target, shape: Shape) -> Trial | None:
    """Find the most layers that the devices hold.

    Device memory grows with the layers given to it, but not strictly (a large output layer, copies for operation
    offload): the boundary is found by bisection, and the counts just above it are tried as well.
    """
    n_all = all_layers(candidate, target)
    fitting, failing = -1, n_all + 1
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        if _devices_hold(try_shape(candidate, ask, target, replace(shape, n_gpu_layers=middle))):
            fitting = middle
        else:
            failing = middle
    for n_gpu_layers in range(min(n_all, fitting + _BOUNDARY), max(-1, fitting - _BOUNDARY), -1):
        trial = try_shape(candidate, ask, target, replace(shape, n_gpu_layers=n_gpu_layers))
        if trial.fits:
            return trial
    return None


def _devices_hold(trial: Trial) -> bool:
    pairs = zip(trial.footprint.devices, trial.target.budgets, strict=True)
    return all(use.total_bytes <= budget.budget_bytes for use, budget in pairs)


def _with_larger_step(trial: Trial, ask: Ask) -> Trial:
    """Raise the step of a trial that keeps weights on the host, if the same placement still fits.

    For prompts those weights are copied to the device once per step, so a larger step reads them less often
    (published: gpt-oss-120b on an RTX 3090, 512 to 4096: 380 to 1,682 prompt tokens/s).
    """
    if ask.settings.n_ubatch is not None or not trial.target.devices or trial.target.backend is not Backend.GPU:
        return trial
    limit = min(ask.n_ctx, ask.settings.n_batch or ask.n_ctx)
    for n_ubatch in _LARGER_UBATCHES:
        if trial.shape.n_ubatch < n_ubatch <= limit:
            larger = try_shape(trial.candidate, ask, trial.target, replace(trial.shape, n_ubatch=n_ubatch))
            if larger.fits:
                return larger
    return trial
