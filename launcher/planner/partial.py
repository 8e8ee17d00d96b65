"""The placements with the least on the host, where a part of a model has to stay there.

Experts on the host, layers on the host, several devices packed, larger steps. It must not know which of them is best:
``offload.py`` weighs them.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Final

from msgspec.structs import replace

from launcher.domain import Footprint, HostUse, MemoryUse
from launcher.planner.ask import Ask
from launcher.planner.footprint.llama_cpp import Backend, block_caches, held_bytes, hold_like
from launcher.planner.packing import fill_with, pack
from launcher.planner.sizing import (
    Candidate,
    Shape,
    Trial,
    all_layers,
    build_config,
    corrected,
    deal_out,
    first_shape,
    speed_of,
    try_shape,
)
from launcher.planner.target import Target

_BOUNDARY: Final = 3
"""Layer counts looked at above the boundary that bisection found."""
_SURELY_OVER: Final = 4
"""A placement is not sized where it would exceed a device by more than the like placement's compute divided by this."""
_ROTATIONS: Final = 16
_COPIED_CACHES: Final = 4
"""Buffers may be smaller with a smaller cache, as they hold copies of a few layers' caches: two of each before and after."""
_LARGER_UBATCHES: Final = (1024, 2048, 4096)


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
            yield _with_last_layers(_packed(trial, ask), ask)


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
    rooms = [budget.budget_bytes for budget in corrected(target, candidate, config).budgets]
    return sum(pack(candidate.weights, block_caches(candidate.architecture, config), rooms))


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
    return sum(pack(candidate.weights, caches, rooms)) >= all_layers(candidate, target) - n_layer


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
    budgets = [budget.budget_bytes for budget in corrected(target, candidate, config).budgets]
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
        if trial.fits_devices:
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
        counts = pack(candidate.weights, caches, rooms)
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


def _with_last_layers(trial: Trial, ask: Ask) -> Trial:
    """Give several devices one layer more for as long as they hold it, where but a few blocks are left on the host.

    Buffers may be far smaller there than those by which layers were packed.
    """
    candidate, target = trial.candidate, trial.target
    n_all = all_layers(candidate, target)
    caches = block_caches(candidate.architecture, trial.config)
    while len(target.devices) > 1 and n_all - _BOUNDARY <= trial.config.n_gpu_layers < n_all - 1:
        shape = replace(trial.shape, n_gpu_layers=trial.config.n_gpu_layers + 1, shares=())

        def refill(rooms: Sequence[int], n_layer: int = shape.n_gpu_layers) -> tuple[float, ...]:
            return fill_with(n_layer, pack(candidate.weights, caches, rooms))

        compute = [use.compute_bytes for use in trial.footprint.devices]
        least = [n_bytes - n_bytes // _SURELY_OVER for n_bytes in compute]
        if not refill([budget.budget_bytes - n_bytes for budget, n_bytes in zip(target.budgets, least, strict=True)]):
            break
        larger = deal_out(candidate, ask, target, shape, refill)
        if larger is None or not larger.fits:
            break
        trial = larger
    return trial


def _left_by_buffers(trial: Trial) -> list[int]:
    """Return what a trial's compute buffers leave of each device's budget for weights and cache."""
    pairs = zip(trial.target.budgets, trial.footprint.devices, strict=True)
    return [budget.budget_bytes - use.compute_bytes for budget, use in pairs]


def _is_surely_over(rooms: Sequence[int], compute: Sequence[int], *, part: int = _SURELY_OVER) -> bool:
    """Whether a device would be exceeded even with buffers that are smaller than its neighbour's by a ``part`` of them."""
    return any(room < n_bytes - n_bytes // part for room, n_bytes in zip(rooms, compute, strict=True))


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
    return speed_of(candidate, target, config, footprint).generation_tps


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
