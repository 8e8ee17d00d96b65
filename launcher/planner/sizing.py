"""How much a candidate needs, and how fast it would be, under each way of placing it.

A trial is one candidate under one configuration. The searches here find the placements worth comparing: whole on the
fewest devices, with experts on the host, with layers on the host. Which trial is best is ``fit.py``'s to say.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import (
    Artifact,
    Budget,
    CacheType,
    Engine,
    Footprint,
    HostUse,
    MemoryUse,
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
    hold_like,
    place_layers,
)
from launcher.planner.footprint.weights import Described, ModelWeights, sum_weights
from launcher.planner.parameters import count_active
from launcher.planner.quality import cache_kl, cache_types_worth_trying, kl_divergence
from launcher.planner.speed import estimate_speed
from launcher.planner.target import Target
from launcher.tensor_types import TRAITS, TensorType

_BOUNDARY: Final = 3
"""Layer counts looked at above the boundary that bisection found."""
_SURELY_OVER: Final = 4
"""A placement is not sized where it would exceed a device by more than the like placement's compute divided by this."""
_ROTATIONS: Final = 16
_COPIED_CACHES: Final = 4
"""Buffers may be smaller with a smaller cache, as they hold copies of a few layers' caches: two of each before and after."""
_SMALLER_UBATCHES: Final = (256, 128)
_LARGER_UBATCHES: Final = (1024, 2048, 4096)

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
    target = _corrected(target, candidate, config)
    names = tuple(device.name for device in target.devices)
    footprint = estimate_footprint(candidate.architecture, candidate.weights, config, names)
    resident = max(0, candidate.weights.total_bytes - footprint.host.weights_bytes)
    footprint = replace(footprint, host=replace(footprint.host, resident_mmap_bytes=resident))
    speed = _speed(candidate, target, config, footprint)
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
    return _corrected(target, candidate, build_config(ask, target, shape))


def _corrected(target: Target, candidate: Candidate, config: LlamaCppConfig) -> Target:
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


def _speed(candidate: Candidate, target: Target, config: LlamaCppConfig, footprint: Footprint) -> Speed:
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
    budgets = _corrected(target, candidate, config).known_budgets
    overflows = any(sum(one) > budget.budget_bytes for one, budget in zip(held, budgets, strict=True))
    can_refill = len(target.devices) > 1 and shape.n_gpu_layers > 0 and not shape.n_cpu_moe
    caches = block_caches(candidate.architecture, config)
    n_left = all_layers(candidate, target) - shape.n_gpu_layers

    def refill(rooms: Sequence[int]) -> tuple[float, ...]:
        in_order = () if n_left > 0 else _fill_in_order(candidate, caches, rooms)
        if in_order or ask.settings.n_gpu_layers is None:
            return in_order
        return _fill_with(shape.n_gpu_layers, _pack(candidate, caches, rooms))

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
    return _dealt_out(candidate, ask, target, shape, refill) or trial


def _dealt_out(
    candidate: Candidate, ask: Ask, target: Target, shape: Shape, refill: Callable[[Sequence[int]], tuple[float, ...]]
) -> Trial | None:
    """Return a placement that the devices hold with shares that ``refill`` finds for what buffers leave of them."""
    rooms = [budget.budget_bytes for budget in target.budgets]
    before: tuple[float, ...] = ()
    while (shares := refill(rooms)) and shares != before:
        before, trial = shares, try_shape(candidate, ask, target, replace(shape, shares=shares))
        if _devices_hold(trial):
            return trial
        rooms = [
            min(room, budget.budget_bytes - use.compute_bytes) if use.total_bytes > budget.budget_bytes else room
            for room, use, budget in zip(rooms, trial.footprint.devices, trial.target.budgets, strict=True)
        ]
    return None


def _fill_with(n_layer: int, counts: Sequence[int]) -> tuple[float, ...]:
    """Return ``n_layer`` layers per device where each could hold ``counts``; empty where they are too few.

    The first ones give way: they hold what comes next after the layers on the host.
    """
    surplus = sum(counts) - n_layer
    kept = []
    for count in counts:
        taken = max(0, min(count, surplus))
        surplus -= taken
        kept.append(float(count - taken))
    return tuple(kept) if surplus == 0 else ()


def _items(candidate: Candidate, caches: Sequence[int]) -> list[int]:
    """Return the bytes of each layer with its cache, the output last."""
    weights = candidate.weights
    blocks = zip(weights.blocks, caches, strict=False)
    items = [block.dense_bytes + block.expert_bytes + cache_bytes for block, cache_bytes in blocks]
    return [*items, max(weights.output_bytes, weights.largest_output_bytes)]


def _fill_in_order(candidate: Candidate, caches: Sequence[int], rooms: Sequence[int]) -> tuple[float, ...]:
    """Return whole layers per device, each filled before the next; empty where they do not all find a place."""
    items = _items(candidate, caches)
    counts = _fill(items, rooms)
    return tuple(map(float, counts)) if sum(counts) == len(items) and all(counts) else ()


def _fill(items: Sequence[int], rooms: Iterable[int]) -> list[int]:
    """Return how many items of so many bytes each room takes, filled before the next one is begun."""
    counts, position = [], 0
    for room_bytes in rooms:
        room, first = room_bytes, position
        while position < len(items) and items[position] <= room:
            room -= items[position]
            position += 1
        counts.append(position - first)
    return counts


class Experience:
    """Compute buffers of placements that were sized, by kind of placement and step, for one ask on one target.

    The quantizations of a model need about the same, so these tell which placement of the next one to size first.
    What is planned is always sized itself.
    """

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._compute: dict[tuple[bool, int], tuple[int, ...]] = {}

    def add(self, trial: Trial) -> None:
        """Remember a trial."""
        compute = tuple(use.compute_bytes for use in trial.footprint.devices)
        self._compute[trial.config.n_cpu_moe > 0, trial.shape.n_ubatch] = compute

    def guess(self, shape: Shape, n_ubatch: int | None = None) -> tuple[int, ...] | None:
        """Return what a like placement needed on each device, at the shape's step or another one.

        At a step that none was sized at, what it would need if buffers went on growing as they did between the two
        largest that were; ``None`` where there are no two.
        """
        kind, wanted = shape.n_cpu_moe > 0, n_ubatch or shape.n_ubatch
        found = self._compute.get((kind, wanted))
        steps = sorted(n for by_experts, n in self._compute if by_experts is kind and n < wanted)[-2:]
        if found is not None or len(steps) < 2:  # noqa: PLR2004 - a line has two points
            return found
        smaller, larger = (self._compute[kind, n] for n in steps)
        ratio = (wanted - steps[1]) / (steps[1] - steps[0])
        return tuple(int(b + (b - a) * ratio) for a, b in zip(smaller, larger, strict=True))


def partial_trials(
    candidate: Candidate, ask: Ask, target: Target, start: Shape | None = None, experience: Experience | None = None
) -> Iterator[Trial]:
    """Yield the placements with the least on the host that fit: experts first where there are any, then layers.

    Layers are left out where they could not be faster than the experts were. ``start`` is one of ``first_shapes``, without
    it the first; ``experience`` is what the same ask on the same target taught about other candidates.
    """
    known = Experience() if experience is None else experience
    start = first_shape(candidate, ask, target) if start is None else start
    if candidate.weights.total_bytes > target.budget_bytes:
        return
    by_experts = _largest(candidate, ask, target, _shapes_by_experts(candidate, ask, target, start), known)
    if by_experts is not None:
        yield by_experts
    shapes = _shapes_by_layers(candidate, target, start)
    upper = -1 if by_experts is None else _last_with_room(candidate, ask, target, shapes)
    if by_experts is None or by_experts.speed.generation_tps < _fastest_tps(candidate, ask, target, shapes, upper):
        trial = _largest(candidate, ask, target, shapes, known)
        if trial is not None:
            yield _packed(trial, ask)


def least_on_host(candidate: Candidate, ask: Ask, target: Target, starts: Sequence[Shape]) -> int:
    """Return a bound from below on the layers of any partial placement that are on the host, or whose experts are.

    ``starts`` are of one candidate, each with a smaller cache than the one before. No compute buffer is sized for it,
    nor for ``most_tps``.
    """
    bounds = [all_layers(candidate, target)]
    for ways in zip(*(_ways(candidate, ask, target, start) for start in starts), strict=True):
        upper = -1
        for shapes in ways:
            upper = _last_with_room(candidate, ask, target, shapes, at=upper)
        bounds += [len(ways[0]) - 1 - upper] if upper >= 0 else []
    if len(target.devices) > 1:
        bounds.append(all_layers(candidate, target) - _most_packed(candidate, ask, target, starts[-1]))
    return min(bounds)


def most_tps(candidate: Candidate, ask: Ask, target: Target, start: Shape) -> float:
    """Return a bound from above on the tokens/s of any partial placement."""
    by_layers, by_experts = _ways(candidate, ask, target, start)
    upper = _last_with_room(candidate, ask, target, by_layers)
    if len(target.devices) > 1:
        upper = max(upper, _most_packed(candidate, ask, target, start))
    fastest = _fastest_tps(candidate, ask, target, by_layers, upper)
    if not by_experts:
        return fastest
    upper = _last_with_room(candidate, ask, target, by_experts)
    return max(fastest, _fastest_tps(candidate, ask, target, by_experts, upper))


def _most_packed(candidate: Candidate, ask: Ask, target: Target, start: Shape) -> int:
    """Return how many layers several devices could hold between them if they needed no compute buffers."""
    config = build_config(ask, target, start)
    rooms = [budget.budget_bytes for budget in _corrected(target, candidate, config).budgets]
    return sum(_pack(candidate, block_caches(candidate.architecture, config), rooms))


def may_leave(trial: Trial, ask: Ask, start: Shape, n_layer: int) -> bool:
    """Whether a trial's candidate, begun with ``start``, could leave only ``n_layer`` layers on the host.

    ``False`` only where layers alone can be moved, and buffers like the trial's leave no room for so many of them. With but
    a few blocks on the host buffers may be far smaller: there weights and cache alone count.
    """
    candidate, target = trial.candidate, trial.target
    if _shapes_by_experts(candidate, ask, target, start):
        return True
    caches = block_caches(candidate.architecture, build_config(ask, target, start))
    copied = _COPIED_CACHES * (trial.footprint.kv_cache_bytes - sum(caches)) // max(1, candidate.architecture.n_layer)
    compute = [max(0, use.compute_bytes - copied) if n_layer >= _BOUNDARY else 0 for use in trial.footprint.devices]
    rooms = [budget.budget_bytes - n_bytes for budget, n_bytes in zip(target.budgets, compute, strict=True)]
    return sum(_pack(candidate, caches, rooms)) >= all_layers(candidate, target) - n_layer


def with_wide_cache(trial: Trial, ask: Ask) -> Trial:
    """Return a trial with the cache of ``first_shape`` where the same placement holds that as well."""
    first = first_shape(trial.candidate, ask, trial.target)
    shape = replace(trial.shape, cache_type_k=first.cache_type_k, cache_type_v=first.cache_type_v)
    if shape == trial.shape:
        return trial
    rooms = _rooms(trial.candidate, ask, trial.target, shape)(shape)
    # a wider cache needs larger buffers, but for the small matrices by which packed rows are rotated
    if _is_surely_over(rooms, [use.compute_bytes for use in trial.footprint.devices], part=_ROTATIONS):
        return trial
    wide = try_shape(trial.candidate, ask, trial.target, shape)
    return wide if wide.fits else trial


def _ways(candidate: Candidate, ask: Ask, target: Target, start: Shape) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    """Return the shapes by layers and those by experts, each with more on the devices than the one before."""
    return _shapes_by_layers(candidate, target, start), _shapes_by_experts(candidate, ask, target, start)


def _shapes_by_layers(candidate: Candidate, target: Target, start: Shape) -> tuple[Shape, ...]:
    """From nothing on the devices to all layers."""
    return _by_layers(start, all_layers(candidate, target))


@lru_cache(maxsize=64)  # the artifacts of a model begin with the same shape
def _by_layers(start: Shape, n_all: int) -> tuple[Shape, ...]:
    return tuple(replace(start, n_gpu_layers=n) for n in range(n_all + 1))


def _shapes_by_experts(candidate: Candidate, ask: Ask, target: Target, start: Shape) -> tuple[Shape, ...]:
    """All layers on the devices, from no block's experts to those of all; empty where that is not ours to choose."""
    if not candidate.architecture.is_moe or ask.settings.n_cpu_moe is not None or not target.has_option("--n-cpu-moe"):
        return ()
    return _by_experts(start, candidate.architecture.n_layer)


@lru_cache(maxsize=64)
def _by_experts(start: Shape, n_layer: int) -> tuple[Shape, ...]:
    return tuple(replace(start, n_cpu_moe=n_layer - n_kept) for n_kept in range(n_layer + 1))


def _rooms(candidate: Candidate, ask: Ask, target: Target, like: Shape) -> Callable[[Shape], list[int]]:
    """Return what tells how much weights and cache leave of each device's budget for compute buffers.

    It is asked of shapes that differ from ``like`` in what is on the host, and in nothing else.
    """
    config = build_config(ask, target, like)
    budgets = [budget.budget_bytes for budget in _corrected(target, candidate, config).budgets]
    held_at = hold_like(candidate.architecture, candidate.weights, config)

    def left_by(shape: Shape) -> list[int]:
        held = held_at(shape.n_gpu_layers, shape.n_cpu_moe)
        return [budget - weights - cache for budget, (weights, cache) in zip(budgets, held, strict=False)]

    return left_by


def _last_with_room(
    candidate: Candidate,
    ask: Ask,
    target: Target,
    shapes: Sequence[Shape],
    compute: tuple[int, ...] = (),
    *,
    at: int = -1,
) -> int:
    """Return the last of ``shapes``, each with more on the devices than the one before, that leaves room; or -1.

    Where one is known that does, it is looked for from there (``at``). Device memory grows with the layers given to it,
    but not strictly where several devices share them: beyond the boundary that bisection finds a few more are looked at.
    """
    if not shapes:
        return -1
    left_by = _rooms(candidate, ask, target, shapes[0])

    def leaves_room(idx: int) -> bool:
        rooms = left_by(shapes[idx])
        return all(room >= n_bytes for room, n_bytes in zip(rooms, compute or (0,) * len(rooms), strict=True))

    fitting, failing, step = at, len(shapes), 1
    while fitting >= 0 and fitting + step < failing:
        if not leaves_room(fitting + step):
            failing = fitting + step
            break
        fitting += step
        step *= 2
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        if leaves_room(middle):
            fitting = middle
        else:
            failing = middle
    above = range(min(len(shapes) - 1, fitting + _BOUNDARY), fitting, -1)
    return next((idx for idx in above if leaves_room(idx)), fitting)


def _largest(
    candidate: Candidate, ask: Ask, target: Target, shapes: Sequence[Shape], known: Experience
) -> Trial | None:
    """Return the last of ``shapes``, each with more on the devices than the one before, that fits.

    Weights and cache are exact and cheap, compute buffers exact and dear. So the first to be sized is the one that
    fits with the buffers of a like placement, then its neighbours until one fits and the next does not.
    """
    upper = _last_with_room(candidate, ask, target, shapes)
    best = None
    idx = upper
    guess = known.guess(shapes[upper]) if upper >= 0 else None
    # with but a few blocks on the host the buffers may be far smaller: no guess is made there
    if guess is not None and upper < len(shapes) - _BOUNDARY:
        idx = min(upper, _last_with_room(candidate, ask, target, shapes, guess))
    while idx >= 0:
        trial = try_shape(candidate, ask, target, shapes[idx])
        compute = tuple(use.compute_bytes for use in trial.footprint.devices)
        if _devices_hold(trial):
            best = trial
            known.add(trial)
            idx += 1
            if idx > upper or _is_surely_over(_rooms(candidate, ask, target, shapes[0])(shapes[idx]), compute):
                break
        else:
            upper = idx - 1
            if best is not None:
                break
            idx = min(upper, _last_with_room(candidate, ask, target, shapes[:idx], compute))
    return best if best is not None and best.fits else None


def _packed(trial: Trial, ask: Ask) -> Trial:
    """Give each of several devices as many whole layers as it holds, the last ones first, where that makes more of them.

    Shares by budget end where the first device is full, and unequal devices are not full at once. Buffers may be smaller
    with more layers: what a packing leaves free is packed again.
    """
    candidate, target = trial.candidate, trial.target
    caches = block_caches(candidate.architecture, trial.config)
    rooms = _left_by_buffers(trial)
    while len(rooms) > 1:
        counts = _pack(candidate, caches, rooms)
        if sum(counts) <= trial.config.n_gpu_layers:
            break
        shape = replace(trial.shape, n_gpu_layers=sum(counts), shares=tuple(map(float, counts)))
        packed = try_shape(candidate, ask, target, shape)
        if packed.fits:
            trial, rooms = packed, _left_by_buffers(packed)
            continue
        over = [
            max(0, use.total_bytes - budget.budget_bytes)
            for budget, use in zip(target.budgets, packed.footprint.devices, strict=True)
        ]
        if not any(over):
            break
        rooms = [room - n_bytes for room, n_bytes in zip(rooms, over, strict=True)]
    return trial


def _left_by_buffers(trial: Trial) -> list[int]:
    """Return what a trial's compute buffers leave of each device's budget for weights and cache."""
    pairs = zip(trial.target.budgets, trial.footprint.devices, strict=True)
    return [budget.budget_bytes - use.compute_bytes for budget, use in pairs]


def _pack(candidate: Candidate, caches: Sequence[int], rooms: Sequence[int]) -> list[int]:
    """Return how many layers each device holds, counted from the last layer and the last device."""
    return _fill(_items(candidate, caches)[::-1], reversed(rooms))[::-1]


def _is_surely_over(rooms: Sequence[int], compute: Sequence[int], *, part: int = _SURELY_OVER) -> bool:
    """Whether a device would be exceeded even with buffers that are smaller than its neighbour's by a ``part`` of them."""
    return any(room < n_bytes - n_bytes // part for room, n_bytes in zip(rooms, compute, strict=True))


def _devices_hold(trial: Trial) -> bool:
    pairs = zip(trial.footprint.devices, trial.target.budgets, strict=True)
    return all(use.total_bytes <= budget.budget_bytes for use, budget in pairs)


def _fastest_tps(candidate: Candidate, ask: Ask, target: Target, shapes: Sequence[Shape], upper: int) -> float:
    """Return a bound from above on the speed of any of ``shapes`` up to ``upper``, the last with room.

    Speed changes steadily from one end to the other.
    """
    return max(_tps(candidate, ask, target, shapes[idx]) for idx in (0, max(0, upper)))


def _tps(candidate: Candidate, ask: Ask, target: Target, shape: Shape) -> float:
    config = build_config(ask, target, shape)
    *devices, host = held_bytes(candidate.architecture, candidate.weights, config)
    footprint = Footprint(
        devices=tuple(
            MemoryUse(name=device.name, kv_cache_bytes=one.kv_cache_bytes)
            for device, one in zip(target.devices, devices, strict=True)
        ),
        host=HostUse(kv_cache_bytes=host.kv_cache_bytes),
    )
    return _speed(candidate, target, config, footprint).generation_tps


def with_larger_step(trial: Trial, ask: Ask, known: Experience) -> Trial:
    """Raise the step of a trial that keeps weights on the host, as far as the same placement still fits.

    For prompts those weights are copied to the device once per step, so a larger step reads them less often
    (published: gpt-oss-120b on an RTX 3090, 512 to 4096: 380 to 1,682 prompt tokens/s).
    """
    if ask.settings.n_ubatch is not None or not trial.target.devices or trial.target.backend is not Backend.GPU:
        return trial
    limit = min(ask.n_ctx, ask.settings.n_batch or ask.n_ctx)
    steps = [n for n in _LARGER_UBATCHES if trial.shape.n_ubatch < n <= limit]
    promising = list(takewhile(lambda n: _may_hold(trial, n, known, certainty=2), steps))
    while promising:
        # the largest that its like would fit with; where none would or nothing is known yet, the next one
        likely = [n for n in promising if known.guess(trial.shape, n) and _may_hold(trial, n, known)]
        n_ubatch = likely[-1] if likely else promising[0]
        larger = try_shape(trial.candidate, ask, trial.target, replace(trial.shape, n_ubatch=n_ubatch))
        known.add(larger)
        if larger.fits:
            trial = larger
            promising = [n for n in promising if n > n_ubatch]
        else:
            promising = [n for n in promising if n < n_ubatch]
    return trial


def _may_hold(trial: Trial, n_ubatch: int, known: Experience, *, certainty: int = 1) -> bool:
    """Whether the devices could hold a larger step, if it added but a part of what it did to a like placement's buffers.

    ``certainty`` is what that is divided by; nothing is known against a step whose like was never sized.
    """
    before, after = known.guess(trial.shape), known.guess(trial.shape, n_ubatch)
    if before is None or after is None:
        return True
    return all(
        use.total_bytes + max(0, more - less) // certainty <= budget.budget_bytes
        for use, budget, less, more in zip(trial.footprint.devices, trial.target.budgets, before, after, strict=True)
    )
