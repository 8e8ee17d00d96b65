"""How much a candidate needs, and how fast it would be, under each way of placing it.

A trial is one candidate under one configuration. The searches here find the placements that keep what was asked for on
the devices, on the fewest of them; ``partial.py`` finds those with a part on the host. Which trial is best is
``fit.py``'s to say.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import (
    Artifact,
    Budget,
    CacheType,
    Engine,
    Footprint,
    Profile,
    Speed,
    Tuning,
    WeightsFormat,
)
from launcher.planner.architecture import Architecture, read_architecture
from launcher.planner.ask import Ask
from launcher.planner.corrections import Heeded, configuration_class, correct_budget, heed, limit_of
from launcher.planner.footprint.limits import can_flash, can_pack_heads
from launcher.planner.footprint.llama_cpp import (
    DEFAULT_N_BATCH,
    DEFAULT_N_UBATCH,
    Backend,
    LlamaCppConfig,
    block_caches,
    estimate_footprint,
    held_bytes,
    place_layers,
)
from launcher.planner.footprint.weights import Described, ModelWeights, sum_weights
from launcher.planner.packing import fill_in_order, fill_with, pack
from launcher.planner.parameters import count_active
from launcher.planner.quality import cache_kl, cache_types_worth_trying, kl_divergence
from launcher.planner.speed import estimate_speed
from launcher.planner.target import Target
from launcher.tensor_types import TRAITS, TensorType

_SMALLER_UBATCHES: Final = (256, 128)

_X86_REPACK: Final = (
    (TensorType.Q4_0, "avx2"),
    (TensorType.Q4_K, "avx2"),
    (TensorType.IQ4_NL, "avx2"),
    (TensorType.MXFP4, "avx2"),
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
    flash_attn: bool = True


class Trial(Struct, frozen=True, kw_only=True):
    """One candidate under one configuration on one target, sized and timed."""

    candidate: Candidate
    target: Target
    shape: Shape
    config: LlamaCppConfig
    footprint: Footprint
    speed: Speed
    tuning: Tuning | None = None
    """The measured settings that are in effect."""
    why: str = ""
    """Why its engine was chosen, where another one was in question."""

    @property
    def quantization(self) -> str:
        """The written name of the weights' quantization."""
        return self.candidate.artifact.quantization

    @property
    def exceeded(self) -> list[tuple[int, Budget]]:
        """The memories of which it needs more bytes than they can give, with how many it needs, devices first."""
        uses = [*(use.total_bytes for use in self.footprint.devices), self.footprint.host.total_bytes]
        pairs = zip(uses, self.target.known_budgets, strict=True)
        return [(n_bytes, budget) for n_bytes, budget in pairs if n_bytes > budget.budget_bytes]

    @property
    def fits(self) -> bool:
        """Whether every memory can give what it needs."""
        return not self.exceeded

    @property
    def fits_devices(self) -> bool:
        """Whether every device can give what it needs; the host may not."""
        pairs = zip(self.footprint.devices, self.target.budgets, strict=True)
        return all(use.total_bytes <= budget.budget_bytes for use, budget in pairs)

    @property
    def offloaded_bytes(self) -> int:
        """Weights that stay on the host beyond those that always do."""
        return self.footprint.host.weights_bytes - self.candidate.weights.input_bytes

    @property
    def layers_on_host(self) -> int:
        """Layers that run on the host, or whose experts do."""
        left = self.candidate.architecture.n_layer + 1 - self.config.n_gpu_layers
        return max(0, left, self.config.n_cpu_moe)

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the model that could be on a device runs on the host."""
        n_all = all_layers(self.candidate, self.target)
        return self.config.n_gpu_layers >= n_all and not self.config.n_cpu_moe

    @property
    def kl(self) -> float:
        """Loss of quality: of the weights' quantization and of the cache's."""
        return loss_of(self.candidate, self.config.cache_type_k, self.config.cache_type_v)

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


def loss_of(candidate: Candidate, cache_type_k: CacheType, cache_type_v: CacheType) -> float:
    """Return the loss of a candidate's quantization and of the cache's types together, in nats."""
    cache = cache_kl(candidate.architecture.name, cache_type_k, cache_type_v)
    return kl_divergence(candidate.artifact.quantization, candidate.n_active) + cache


def prepare(profile: Profile) -> tuple[Candidate, ...]:
    """Return a profile's artifacts that llama.cpp can load and whose metadata is known, best quality first.

    This is the costly part of planning, and depends on the profile alone: do it once for many questions.
    """
    candidates = []
    shared: dict[int, tuple[Architecture, float]] = {}
    described = Described()
    for artifact in profile.artifacts:
        if artifact.format is not WeightsFormat.GGUF or artifact.spec is None:
            continue
        # The quantizations of one description share its metadata, and differ in the tensors' types alone.
        key = id(artifact.spec.metadata)
        architecture, n_active = shared.get(key) or (read_architecture(artifact.spec), count_active(artifact.spec))
        shared[key] = architecture, n_active
        weights = sum_weights(artifact.spec, architecture.n_layer, described)
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
    type_k, type_v = settings.cache_type_k, settings.cache_type_v
    if (type_k or type_v) and candidate.architecture.is_latent:  # one cache serves as both
        type_k, type_v = type_k or type_v, type_v or type_k
    return Shape(
        n_gpu_layers=n_all if settings.n_gpu_layers is None else min(settings.n_gpu_layers, n_all),
        n_ubatch=min(settings.n_ubatch or DEFAULT_N_UBATCH, n_batch),
        n_cpu_moe=min(settings.n_cpu_moe or 0, candidate.architecture.n_layer if candidate.architecture.is_moe else 0),
        cache_type_k=type_k or CacheType.F16,
        cache_type_v=type_v or CacheType.F16,
        flash_attn=_flash_attn(candidate, ask, target),
    )


def first_shapes(candidate: Candidate, ask: Ask, target: Target) -> tuple[Shape, ...]:
    """Return ``first_shape``, then the same with each smaller cache that is worth trying, best quality first."""
    start = first_shape(candidate, ask, target)
    kinds = harmless_caches(candidate, ask, start)
    return (start, *(replace(start, cache_type_k=kind, cache_type_v=kind) for kind in kinds))


def harmless_caches(candidate: Candidate, ask: Ask, shape: Shape) -> tuple[CacheType, ...]:
    """Return the cache types that may replace f16 in a shape unasked: none where the user fixed one."""
    settings = ask.settings
    if settings.cache_type_k or settings.cache_type_v or not shape.flash_attn:
        return ()
    kinds = cache_types_worth_trying(candidate.architecture.name)
    return tuple(kind for kind in kinds if can_pack_heads(candidate.architecture, kind))


def _flash_attn(candidate: Candidate, ask: Ask, target: Target) -> bool:
    """What the user fixed; else on, unless devices would leave it to the CPU."""
    if ask.settings.flash_attn is not None:
        return ask.settings.flash_attn
    wanted = ask.settings.cache_type_v
    needed = wanted is not None and TRAITS[wanted.tensor_type].block_size > 1
    return needed or not target.devices or can_flash(candidate.architecture)


@lru_cache(maxsize=64)
def _repacked_types(isa: tuple[str, ...], backend: Backend) -> frozenset[TensorType]:
    if backend is Backend.GPU:
        return frozenset()
    # An unknown CPU is taken for a current x86 one: that counts tied embeddings twice, which errs high.
    return frozenset(kind for kind, needed in _X86_REPACK if not isa or needed in isa)


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
        flash_attn=shape.flash_attn,
        n_cpu_moe=shape.n_cpu_moe,
        repacked=_repacked_types(target.host.isa, target.backend),
        swa_full=bare,
        n_outputs=n_ubatch if bare else None,
    )


def try_shape(candidate: Candidate, ask: Ask, target: Target, shape: Shape) -> Trial:
    """Size and time one candidate under one configuration."""
    config = build_config(ask, target, shape)
    target = corrected(target, candidate, config)
    names = tuple(device.name for device in target.devices)
    footprint = estimate_footprint(candidate.architecture, candidate.weights, config, names)
    resident = max(0, candidate.weights.total_bytes - footprint.host.weights_bytes)
    footprint = replace(footprint, host=replace(footprint.host, resident_mmap_bytes=resident))
    speed = speed_of(candidate, target, config, footprint)
    return Trial(
        candidate=candidate,
        target=target,
        shape=shape,
        config=config,
        footprint=footprint,
        speed=speed,
    )


def correct_target(candidate: Candidate, ask: Ask, target: Target, shape: Shape) -> Target:
    """Return the target with the budgets that a trial of this candidate and shape is held to."""
    return corrected(target, candidate, build_config(ask, target, shape))


def corrected(target: Target, candidate: Candidate, config: LlamaCppConfig) -> Target:
    """Return the target with what was learnt of this model's use of its memories."""
    lessons = _heeded(target, candidate, config)
    if not lessons:
        return target
    *budgets, host_budget = (correct_budget(budget, heeded) for budget, heeded in lessons)
    return replace(target, budgets=tuple(budgets), host_budget=host_budget)


def _heeded(target: Target, candidate: Candidate, config: LlamaCppConfig) -> tuple[tuple[Budget, Heeded], ...]:
    corrections = target.calibration.corrections if target.calibration else ()
    if not corrections:
        return ()
    configuration = configuration_class(n_devices=len(target.devices), flash_attn=config.flash_attn)

    def heed_for(budget: Budget) -> Heeded:
        return heed(
            budget,
            corrections,
            install=target.install,
            architecture=candidate.architecture,
            configuration=configuration,
            limit_bytes=limit_of(budget.name, budget.total_bytes, target.host),
        )

    return tuple((budget, heed_for(budget)) for budget in target.known_budgets)


def lessons_of(trial: Trial) -> tuple[tuple[Budget, Heeded], ...]:
    """Return what was learnt of each memory for this trial's model; empty where nothing was learnt at all."""
    return _heeded(trial.target, trial.candidate, trial.config)


def speed_of(candidate: Candidate, target: Target, config: LlamaCppConfig, footprint: Footprint) -> Speed:
    """Return the predicted speed of a candidate that is placed by ``config`` and takes ``footprint``."""
    return estimate_speed(
        architecture=candidate.architecture,
        weights=candidate.weights,
        placement=place_layers(
            candidate.architecture.n_layer, config.n_gpu_layers, config.shares if target.devices else ()
        ),
        config=config,
        footprint=footprint,
        devices=target.devices,
        host=target.host,
        calibration=target.calibration,
    )


# --- Searches ---------------------------------------------------------------------------------------------------


def whole_trials(candidate: Candidate, ask: Ask, target: Target) -> Iterator[Trial]:
    """Yield the placements without offload that fit: at most one for each cache type worth trying.

    The fewest devices are taken, the fastest first; where the usual step of 512 tokens does not fit, a smaller one.
    """
    if candidate.weights.total_bytes > target.budget_bytes:
        return
    for idx, shape in enumerate(first_shapes(candidate, ask, target)):
        trial = _first_fitting(candidate, ask, target, shape)
        if trial is not None:
            yield trial
            if idx == 0:
                return  # a smaller cache could only cost quality


def _first_fitting(candidate: Candidate, ask: Ask, target: Target, shape: Shape) -> Trial | None:
    least = candidate.weights.total_bytes - candidate.weights.input_bytes
    is_whole = shape.n_gpu_layers >= all_layers(candidate, target) and not shape.n_cpu_moe
    for n_ubatch in _ubatches(ask, shape):
        for n_devices in range(min(1, len(target.devices)), len(target.devices) + 1):
            if is_whole and n_devices and least > sum(b.budget_bytes for b in target.budgets[:n_devices]):
                continue  # not worth sizing: the weights alone exceed these devices
            trial = _try_split(candidate, ask, target.first(n_devices), replace(shape, n_ubatch=n_ubatch))
            if trial is not None and trial.fits:
                return trial
    return None


def _ubatches(ask: Ask, shape: Shape) -> tuple[int, ...]:
    if ask.settings.n_ubatch is not None:
        return (shape.n_ubatch,)
    return (shape.n_ubatch, *(n for n in _SMALLER_UBATCHES if n < shape.n_ubatch))


def _try_split(candidate: Candidate, ask: Ask, target: Target, shape: Shape) -> Trial | None:
    """Try shares by budget; where one device overflows, give each whole layers as it can hold them.

    ``None`` where weights and cache alone find no room, whatever the compute buffers take.
    """
    config = build_config(ask, target, shape)
    held = held_bytes(candidate.architecture, candidate.weights, config)
    budgets = corrected(target, candidate, config).known_budgets
    overflows = any(sum(one) > budget.budget_bytes for one, budget in zip(held, budgets, strict=True))
    can_refill = len(target.devices) > 1 and shape.n_gpu_layers > 0 and not shape.n_cpu_moe
    caches = block_caches(candidate.architecture, config)
    n_left = all_layers(candidate, target) - shape.n_gpu_layers

    def refill(rooms: Sequence[int]) -> tuple[float, ...]:
        in_order = () if n_left > 0 else fill_in_order(candidate.weights, caches, rooms)
        if in_order or ask.settings.n_gpu_layers is None:
            return in_order
        return fill_with(shape.n_gpu_layers, pack(candidate.weights, caches, rooms))

    rooms = [budget.budget_bytes for budget in budgets[:-1]]
    if overflows and not (can_refill and refill(rooms)):
        return None
    trial = try_shape(candidate, ask, target, shape)
    if trial.fits or not can_refill:
        return trial
    if ask.settings.n_gpu_layers is None:
        rooms = [room - use.compute_bytes for room, use in zip(rooms, trial.footprint.devices, strict=True)]
        shares = refill(rooms)
        return try_shape(candidate, ask, target, replace(shape, shares=shares)) if shares else trial
    return deal_out(candidate, ask, target, shape, refill) or trial


def deal_out(
    candidate: Candidate, ask: Ask, target: Target, shape: Shape, refill: Callable[[Sequence[int]], tuple[float, ...]]
) -> Trial | None:
    """Return a placement that the devices hold with shares that ``refill`` finds for what buffers leave of them."""
    rooms = [budget.budget_bytes for budget in target.budgets]
    before: tuple[float, ...] = ()
    while (shares := refill(rooms)) and shares != before:
        before, trial = shares, try_shape(candidate, ask, target, replace(shape, shares=shares))
        if trial.fits_devices:
            return trial
        rooms = [
            min(room, budget.budget_bytes - use.compute_bytes) if use.total_bytes > budget.budget_bytes else room
            for room, use, budget in zip(rooms, trial.footprint.devices, trial.target.budgets, strict=True)
        ]
    return None
