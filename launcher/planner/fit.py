"""The choice: which artifact, engine and placement serve a request on a machine, or why none does.

Every artifact of the profile is sized against the memory that is really free, and the objective picks among those
that fit. What the user fixed is honoured or refused, never changed. Advice on a refusal is ``advice.py``'s.
"""

from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import (
    Address,
    Artifact,
    Budget,
    CacheType,
    Device,
    DeviceKind,
    Engine,
    EngineInstall,
    Footprint,
    Host,
    Inventory,
    Objective,
    Outcome,
    Plan,
    Profile,
    Provenance,
    Refusal,
    RefusalCode,
    Request,
    Settings,
    Speed,
    WeightsFormat,
)
from launcher.planner.architecture import (
    Architecture,
    RecurrentState,
    SlidingAttention,
    read_architecture,
)
from launcher.planner.footprint.llama_cpp import (
    CELL_PADDING,
    DEFAULT_N_BATCH,
    DEFAULT_N_UBATCH,
    Backend,
    LlamaCppConfig,
    ModelWeights,
    count_cells,
    estimate_footprint,
    layer_cache_bytes,
    place_layers,
    sum_weights,
)
from launcher.planner.quality import kl_divergence, meets_floor
from launcher.planner.speed import estimate_speed
from launcher.tensor_types import TensorType
from launcher.units import GIB, MIB, format_bytes, pad

DEVICE_MARGIN_BYTES: Final = 512 * MIB
DEVICE_RESIDUAL_BYTES: Final = 450 * MIB
"""What a driver's context and pools take beside the engine's own account (published: llama.cpp PR 15860)."""
HOST_MARGIN_BYTES: Final = 1 * GIB
HOST_RESIDUAL_BYTES: Final = 256 * MIB
"""Assumed: the engine's code, its tokenizer and its HTTP threads."""
DEFAULT_MIN_TPS: Final = 2.0
MAX_CACHE_RAM_BYTES: Final = 8 * GIB
MAX_CHECKPOINTS: Final = 8
_BOUNDARY: Final = 3
"""Layer counts tried on either side of the boundary that bisection found."""

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


class Ask(Struct, frozen=True, kw_only=True):
    """A request with its wishes resolved: what to plan for, and which of it the user fixed."""

    model: str
    settings: Settings
    n_parallel: int
    n_ctx: int
    n_ctx_per_request: int
    objective: Objective
    min_quantization: str | None
    min_tps: float
    force: bool
    address: Address


class Candidate(Struct, frozen=True, kw_only=True):
    """One artifact with what its metadata says, ready to be sized under many configurations."""

    artifact: Artifact
    architecture: Architecture
    weights: ModelWeights


class Target(Struct, frozen=True, kw_only=True):
    """Where to run: an engine, the devices it reaches, and what each memory can give."""

    engine: Engine
    install: EngineInstall | None
    devices: tuple[Device, ...]
    engine_devices: tuple[str, ...]
    budgets: tuple[Budget, ...]
    host_budget: Budget
    host: Host

    @property
    def backend(self) -> Backend:
        """Which allocation rules apply."""
        if not self.devices:
            return Backend.CPU
        return Backend.RPC if self.devices[0].kind is DeviceKind.RPC else Backend.GPU

    @property
    def budget_bytes(self) -> int:
        """What all memories together can give."""
        return self.host_budget.budget_bytes + sum(budget.budget_bytes for budget in self.budgets)


class Trial(Struct, frozen=True, kw_only=True):
    """One candidate under one configuration, sized and timed."""

    candidate: Candidate
    config: LlamaCppConfig
    footprint: Footprint
    speed: Speed
    fits: bool

    @property
    def offloaded_bytes(self) -> int:
        """Weights that stay on the host beyond those that always do."""
        return self.footprint.host.weights_bytes - self.candidate.weights.input_bytes

    @property
    def kl(self) -> float:
        """Loss of the artifact's quantization."""
        return kl_divergence(self.candidate.artifact.quantization)


def merge_settings(pins: Settings, settings: Settings) -> Settings:
    """Lay what the command line fixes over what the profile pins."""
    fixed = {name: value for name in settings.__struct_fields__ if (value := getattr(settings, name)) is not None}
    if "n_ctx" in fixed or "n_ctx_per_request" in fixed:
        pins = replace(pins, n_ctx=None, n_ctx_per_request=None)
    return replace(pins, **fixed)


def resolve_ask(request: Request) -> Ask:
    """Turn a request into exact figures: a context total over all slots, and the floors that hold."""
    profile = request.profile
    settings = merge_settings(profile.pins, request.settings)
    n_parallel = settings.n_parallel or profile.wishes.n_parallel
    if settings.n_ctx is not None:
        n_ctx, n_ctx_per_request = settings.n_ctx, settings.n_ctx // n_parallel
    else:
        n_ctx_per_request = settings.n_ctx_per_request or profile.wishes.n_ctx_per_request
        n_ctx = pad(n_ctx_per_request, CELL_PADDING) * n_parallel
    return Ask(
        model=profile.name,
        settings=settings,
        n_parallel=n_parallel,
        n_ctx=n_ctx,
        n_ctx_per_request=n_ctx_per_request,
        objective=profile.wishes.objective,
        min_quantization=profile.limits.min_quantization,
        min_tps=0.0 if request.force else profile.limits.min_generation_tps or DEFAULT_MIN_TPS,
        force=request.force,
        address=profile.address,
    )


def prepare(profile: Profile) -> tuple[Candidate, ...]:
    """Return a profile's artifacts that llama.cpp can load and whose metadata is known, best quality first.

    This is the costly part of planning, and depends on the profile alone: do it once for many questions.
    """
    candidates = []
    for artifact in profile.artifacts:
        if artifact.format is not WeightsFormat.GGUF or artifact.spec is None:
            continue
        architecture = read_architecture(artifact.spec)
        weights = sum_weights(artifact.spec, architecture.n_layer)
        candidates.append(Candidate(artifact=artifact, architecture=architecture, weights=weights))
    return tuple(sorted(candidates, key=lambda c: (kl_divergence(c.artifact.quantization), -c.weights.total_bytes)))


# --- Where to run -----------------------------------------------------------------------------------------------


def _device_budget(device: Device) -> Budget:
    residual = 0 if device.kind is DeviceKind.RPC else DEVICE_RESIDUAL_BYTES
    return Budget(
        name=device.name,
        total_bytes=device.total_bytes,
        free_bytes=device.total_bytes if device.free_bytes is None else device.free_bytes,
        margin_bytes=DEVICE_MARGIN_BYTES,
        residual_bytes=residual,
    )


def _build_target(engine: Engine, install: EngineInstall | None, inventory: Inventory) -> Target:
    names: tuple[str, ...] = ()
    devices = inventory.devices
    if install is not None:
        by_name = {device.name: device for device in inventory.devices}
        reached = [(item.name, by_name[item.device]) for item in install.devices if item.device in by_name]
        names = tuple(name for name, _ in reached)
        devices = tuple(device for _, device in reached)
    host = inventory.host
    return Target(
        engine=engine,
        install=install,
        devices=devices,
        engine_devices=names,
        budgets=tuple(_device_budget(device) for device in devices),
        host_budget=Budget(
            name="host",
            total_bytes=host.total_bytes,
            free_bytes=host.free_bytes,
            margin_bytes=HOST_MARGIN_BYTES,
            residual_bytes=HOST_RESIDUAL_BYTES,
        ),
        host=host,
    )


_LLAMA_CPP: Final = (Engine.LLAMA_SERVER, Engine.LLAMA_CPP_PYTHON)


def choose_target(request: Request, ask: Ask, inventory: Inventory) -> Target | Refusal:
    """Choose the engine: the one that was asked for, else the profile's first that reaches the GPU, else its first.

    On a machine whose engines are unknown (a reference machine) the profile's first engine is assumed to be there.
    """
    wanted = (ask.settings.engine,) if ask.settings.engine else request.profile.engines
    engines = [engine for engine in wanted if engine in _LLAMA_CPP]
    if ask.n_parallel > 1:
        engines = [engine for engine in engines if engine is not Engine.LLAMA_CPP_PYTHON]
    if not engines:
        named = ", ".join(wanted) or "none"
        return Refusal(
            code=RefusalCode.UNSUPPORTED,
            model=ask.model,
            fact=f"no engine that was asked for ({named}) can serve `{ask.model}` with {ask.n_parallel} parallel "
            f"request{'s' if ask.n_parallel > 1 else ''}",
            derivation=(
                "this release plans for llama-server and llama-cpp-python; the latter serves one request at a time",
            ),
        )
    if inventory.engines is None:
        return _build_target(engines[0], None, inventory)
    found = [install for engine in engines for install in inventory.engines if install.engine is engine]
    if not found:
        have = ", ".join(sorted({install.engine for install in inventory.engines})) or "none"
        return Refusal(
            code=RefusalCode.NO_ENGINE,
            model=ask.model,
            fact=f"none of the engines that can serve `{ask.model}` is installed",
            derivation=(f"wanted {', '.join(engines)}; found {have}",),
        )
    with_gpu = [install for install in found if any(device.device for device in install.devices)]
    install = (with_gpu or found)[0] if inventory.devices else found[0]
    return _build_target(install.engine, install, inventory)


# --- Sizing -----------------------------------------------------------------------------------------------------


def _repacked_types(host: Host, backend: Backend) -> frozenset[TensorType]:
    if backend is Backend.GPU:
        return frozenset()
    # An unknown CPU is taken for a current x86 one: that counts tied embeddings twice, which errs high.
    return frozenset(kind for kind, isa in _X86_REPACK if not host.isa or isa in host.isa)


def build_config(ask: Ask, target: Target, n_gpu_layers: int) -> LlamaCppConfig:
    """Return the configuration of one trial: what the user fixed, llama-server's defaults elsewhere."""
    settings = ask.settings
    # llama-cpp-python keeps llama.cpp's own defaults: a whole window for sliding layers, a logits row per token.
    bare = target.engine is Engine.LLAMA_CPP_PYTHON
    n_batch = min(settings.n_batch or DEFAULT_N_BATCH, ask.n_ctx)
    return LlamaCppConfig(
        n_ctx=ask.n_ctx,
        n_gpu_layers=n_gpu_layers,
        backend=target.backend,
        shares=tuple(float(max(1, budget.budget_bytes)) for budget in target.budgets),
        n_parallel=ask.n_parallel,
        n_batch=n_batch,
        n_ubatch=min(settings.n_ubatch or DEFAULT_N_UBATCH, n_batch),
        cache_type_k=settings.cache_type_k or CacheType.F16,
        cache_type_v=settings.cache_type_v or CacheType.F16,
        flash_attn=True if settings.flash_attn is None else settings.flash_attn,
        n_cpu_moe=settings.n_cpu_moe or 0,
        repacked=_repacked_types(target.host, target.backend),
        swa_full=bare,
        n_outputs=min(settings.n_ubatch or DEFAULT_N_UBATCH, n_batch) if bare else None,
    )


def try_placement(candidate: Candidate, ask: Ask, target: Target, n_gpu_layers: int) -> Trial:
    """Size and time one candidate with ``n_gpu_layers`` of its layers on the devices."""
    config = build_config(ask, target, n_gpu_layers)
    names = tuple(device.name for device in target.devices)
    footprint = estimate_footprint(candidate.architecture, candidate.weights, config, names)
    weights_file = candidate.weights.total_bytes
    footprint = replace(
        footprint,
        host=replace(footprint.host, resident_mmap_bytes=max(0, weights_file - footprint.host.weights_bytes)),
    )
    uses = [use.total_bytes for use in footprint.devices] + [footprint.host.total_bytes]
    budgets = [budget.budget_bytes for budget in (*target.budgets, target.host_budget)]
    fits = all(use <= budget for use, budget in zip(uses, budgets, strict=True))
    shares = config.shares if target.devices else ()
    speed = estimate_speed(
        architecture=candidate.architecture,
        weights=candidate.weights,
        placement=place_layers(candidate.architecture.n_layer, n_gpu_layers, shares),
        config=config,
        footprint=footprint,
        devices=target.devices,
        host=target.host,
    )
    return Trial(candidate=candidate, config=config, footprint=footprint, speed=speed, fits=fits)


def all_layers(candidate: Candidate, target: Target) -> int:
    """Return the layer count that means full offload: every block and the output; 0 without a device."""
    return candidate.architecture.n_layer + 1 if target.devices else 0


def most_layers(candidate: Candidate, ask: Ask, target: Target) -> Trial | None:
    """Return the placement with the most layers on the devices that fits, or ``None``.

    Device memory grows with the layers given to it, but not strictly (a large output layer, copies for operation
    offload): the boundary is found by bisection, and the counts just above it are tried as well.
    """
    if candidate.weights.total_bytes > target.budget_bytes:
        return None
    n_all = all_layers(candidate, target)
    fitting, failing = -1, n_all + 1
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        if _devices_hold(try_placement(candidate, ask, target, middle), target):
            fitting = middle
        else:
            failing = middle
    for n_gpu_layers in range(min(n_all, fitting + _BOUNDARY), max(-1, fitting - _BOUNDARY), -1):
        trial = try_placement(candidate, ask, target, n_gpu_layers)
        if trial.fits:
            return trial
    return None


def _devices_hold(trial: Trial, target: Target) -> bool:
    pairs = zip(trial.footprint.devices, target.budgets, strict=True)
    return all(use.total_bytes <= budget.budget_bytes for use, budget in pairs)


# --- Choosing ---------------------------------------------------------------------------------------------------


def _allowed(candidate: Candidate, ask: Ask) -> bool:
    """Apply the quality floor, which does not bind a quantization that the user asked for by name."""
    if ask.settings.quantization is not None:
        return True
    return meets_floor(candidate.artifact.quantization, ask.min_quantization)


def _pick(trials: list[Trial], objective: Objective) -> Trial:
    """Pick by objective: the best quality that is at least half as fast as the fastest, or the fastest."""
    fastest = max(trial.speed.generation_tps for trial in trials)
    if objective is Objective.SPEED:
        return max(trials, key=lambda trial: (trial.speed.generation_tps, -trial.kl))
    quick = [trial for trial in trials if trial.speed.generation_tps >= fastest / 2]
    return min(quick, key=lambda trial: (trial.kl, -trial.candidate.weights.total_bytes))


def _choose(candidates: tuple[Candidate, ...], ask: Ask, target: Target) -> Trial | None:
    """Return the best trial above the floors: without offload if any fits so, else with the least offload."""
    fixed = ask.settings.n_gpu_layers
    if fixed is not None and target.devices:
        trials = [try_placement(c, ask, target, min(fixed, c.architecture.n_layer + 1)) for c in candidates]
    else:
        trials = [try_placement(c, ask, target, all_layers(c, target)) for c in candidates]
    fitting = [trial for trial in trials if trial.fits]
    quick = [trial for trial in fitting if trial.speed.generation_tps >= ask.min_tps]
    if quick:
        return _pick(quick, ask.objective)
    if fixed is not None or not target.devices:
        return None
    partial = [trial for c in candidates if (trial := most_layers(c, ask, target)) is not None]
    partial = [trial for trial in partial if trial.speed.generation_tps >= ask.min_tps]
    return min(partial, key=lambda trial: (trial.offloaded_bytes, trial.kl), default=None)


def _grown_context(ask: Ask, candidates: tuple[Candidate, ...], target: Target) -> Ask:
    """For the objective ``context``: the longest context, in powers of two, at which something still fits."""
    settings = ask.settings
    if ask.objective is not Objective.CONTEXT or settings.n_ctx or settings.n_ctx_per_request:
        return ask
    n_train = max((c.architecture.n_ctx_train for c in candidates), default=0)
    best = ask
    n_ctx = ask.n_ctx_per_request * 2
    while n_ctx <= n_train:
        longer = replace(ask, n_ctx_per_request=n_ctx, n_ctx=pad(n_ctx, CELL_PADDING) * ask.n_parallel)
        if _choose(candidates, longer, target) is None:
            break
        best, n_ctx = longer, n_ctx * 2
    return best


def decide(request: Request, inventory: Inventory, prepared: tuple[Candidate, ...] | None = None) -> Outcome:
    """Plan or refuse, without advice. Deterministic: equal arguments give equal results.

    ``prepared`` is what ``prepare`` returned for the request's profile, where the caller asks more than once.
    """
    ask = resolve_ask(request)
    quantization = ask.settings.quantization
    candidates = prepare(request.profile) if prepared is None else prepared
    candidates = tuple(c for c in candidates if quantization in {None, c.artifact.quantization})
    if not candidates:
        return _refuse_no_artifact(request, ask)
    trained, lowered = _trained_context(ask, candidates)
    if isinstance(trained, Refusal):
        return trained
    ask = trained
    target = choose_target(request, ask, inventory)
    if isinstance(target, Refusal):
        return target
    allowed = tuple(candidate for candidate in candidates if _allowed(candidate, ask))
    ask = _grown_context(ask, allowed, target)
    trial = _choose(allowed, ask, target)
    if trial is None:
        return _refuse_no_fit(candidates, allowed, ask, target)
    return _build_plan(trial, ask, target, inventory, lowered)


def _trained_context(ask: Ask, candidates: tuple[Candidate, ...]) -> tuple[Ask | Refusal, tuple[str, ...]]:
    """Hold the context to what the model was trained for: a wish is lowered, an order is refused."""
    n_train = max(candidate.architecture.n_ctx_train for candidate in candidates)
    if not n_train or ask.n_ctx_per_request <= n_train:
        return ask, ()
    if ask.settings.n_ctx is None and ask.settings.n_ctx_per_request is None:
        lowered = replace(ask, n_ctx_per_request=n_train, n_ctx=pad(n_train, CELL_PADDING) * ask.n_parallel)
        return lowered, (
            f"context lowered from {ask.n_ctx_per_request} to {n_train}: the model was trained for no more",
        )
    if ask.force:
        return ask, ()
    refusal = Refusal(
        code=RefusalCode.EXCEEDS_CONTEXT,
        model=ask.model,
        fact=f"`{ask.model}` was trained for {n_train} tokens; {ask.n_ctx_per_request} per request were asked for",
        derivation=("beyond its training a model's answers degrade; --force serves it all the same",),
        certain=False,
    )
    return refusal, ()


# --- Plans ------------------------------------------------------------------------------------------------------


def _checkpoint_bytes(trial: Trial) -> int:
    """Bytes of one context checkpoint: what sliding and recurrent layers hold for one sequence."""
    config = trial.config
    cells = count_cells(config)
    n_bytes = 0
    for layer in trial.candidate.architecture.layers:
        if isinstance(layer, SlidingAttention | RecurrentState):
            n_bytes += layer_cache_bytes(layer, cells, config.cache_type_k, config.cache_type_v)
    return n_bytes // config.n_parallel


def _serving_extras(trial: Trial, target: Target) -> tuple[int, int, int]:
    """Share out spare host memory: bytes of prompt cache, checkpoints per slot, and the bytes these may take.

    A quarter of what is left goes to each, under llama-server's own defaults: both only save recomputation, and
    both grow while serving, so what is not planned is switched off.
    """
    if target.engine is not Engine.LLAMA_SERVER:
        return 0, 0, 0
    spare = target.host_budget.budget_bytes - trial.footprint.host.total_bytes
    per_checkpoint = _checkpoint_bytes(trial) * trial.config.n_parallel
    n_checkpoints = min(MAX_CHECKPOINTS, spare // 4 // per_checkpoint) if per_checkpoint else 0
    cache_ram = min(MAX_CACHE_RAM_BYTES, spare // 4) // MIB * MIB
    return cache_ram, n_checkpoints, n_checkpoints * per_checkpoint


def _notes(trial: Trial, target: Target, inventory: Inventory) -> tuple[str, ...]:
    notes = []
    if not trial.candidate.architecture.known:
        notes.append("the architecture is not fully understood: figures err high")
    spec = trial.candidate.artifact.spec
    if spec is not None and spec.provenance is Provenance.DERIVED:
        notes.append("tensor types were derived from llama.cpp's quantization rules, not read from the file")
    if inventory.engines is None:
        notes.append(f"the machine's engines are unknown: {target.engine} is assumed to be there")
    elif inventory.devices and not target.devices:
        notes.append(f"the engine found ({target.engine}) reaches no GPU of this machine: everything runs on the CPU")
    if trial.speed.basis is Provenance.ASSUMED:
        notes.append("speed is predicted from bandwidth with an assumed efficiency; it was not measured here")
    return tuple(notes)


def _given_up(trial: Trial, target: Target, granted: tuple[str, ...]) -> tuple[str, ...]:
    lost = list(granted)
    n_layer = trial.candidate.architecture.n_layer
    if target.devices and trial.config.n_gpu_layers <= n_layer:
        lost.append(
            f"{n_layer + 1 - trial.config.n_gpu_layers} of {n_layer + 1} layers run on the CPU: "
            f"{format_bytes(trial.offloaded_bytes)} of weights do not fit on the GPU"
        )
    return tuple(lost)


def _build_plan(trial: Trial, ask: Ask, target: Target, inventory: Inventory, granted: tuple[str, ...]) -> Plan:
    config = trial.config
    cache_ram, n_checkpoints, checkpoints_bytes = _serving_extras(trial, target)
    footprint = replace(
        trial.footprint,
        host=replace(trial.footprint.host, prompt_cache_bytes=cache_ram, checkpoints_bytes=checkpoints_bytes),
    )
    n_threads = ask.settings.n_threads or min(target.host.n_cpu, target.host.n_cpu_physical or target.host.n_cpu)
    total_share = sum(config.shares)
    artifact = trial.candidate.artifact
    return Plan(
        model=ask.model,
        engine=target.engine,
        install=target.install,
        format=artifact.format,
        quantization=artifact.quantization,
        n_ctx=config.n_ctx,
        n_ctx_per_request=ask.n_ctx_per_request,
        n_parallel=config.n_parallel,
        kv_unified=config.kv_unified,
        n_batch=config.n_batch,
        n_ubatch=config.n_ubatch,
        n_layer=trial.candidate.architecture.n_layer,
        n_gpu_layers=config.n_gpu_layers,
        n_cpu_moe=config.n_cpu_moe,
        cache_type_k=config.cache_type_k,
        cache_type_v=config.cache_type_v,
        flash_attn=config.flash_attn,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        address=ask.address,
        footprint=footprint,
        budgets=(*target.budgets, target.host_budget),
        artifact=replace(artifact, spec=None),
        engine_devices=target.engine_devices,
        tensor_split=tuple(share / total_share for share in config.shares) if len(config.shares) > 1 else (),
        op_offload=config.op_offload,
        swa_full=config.swa_full,
        cache_ram_bytes=cache_ram,
        n_ctx_checkpoints=n_checkpoints,
        speed=trial.speed,
        given_up=_given_up(trial, target, granted),
        notes=_notes(trial, target, inventory),
    )


# --- Refusals ---------------------------------------------------------------------------------------------------


def _refuse_no_artifact(request: Request, ask: Ask) -> Refusal:
    known = [a.quantization for a in request.profile.artifacts if a.format is WeightsFormat.GGUF and a.spec]
    return Refusal(
        code=RefusalCode.NO_SUCH_QUANTIZATION,
        model=ask.model,
        fact=f"`{ask.model}` has no artifact at {ask.settings.quantization or 'any quantization'} that can be planned",
        derivation=(f"known quantizations: {', '.join(known) or 'none'}",),
    )


def _format_need(trial: Trial) -> str:
    devices, host = trial.footprint.devices, trial.footprint.host
    weights = host.weights_bytes + sum(use.weights_bytes for use in devices)
    cache = host.kv_cache_bytes + sum(use.kv_cache_bytes for use in devices)
    compute = host.compute_bytes + sum(use.compute_bytes for use in devices)
    config = trial.config
    return (
        f"weights {weights / GIB:.1f} + kv cache {cache / GIB:.1f} ({config.n_ctx} tokens, {config.cache_type_k}) "
        f"+ compute {compute / GIB:.1f} = {(weights + cache + compute) / GIB:.1f} GiB"
    )


def _needed_bytes(trial: Trial) -> int:
    return trial.footprint.host.engine_bytes + sum(use.total_bytes for use in trial.footprint.devices)


def _format_budgets(target: Target) -> str:
    parts = [*target.budgets, target.host_budget]
    return " + ".join(f"{budget.name} {budget.budget_bytes / GIB:.1f}" for budget in parts)


def _refuse_no_fit(
    candidates: tuple[Candidate, ...], allowed: tuple[Candidate, ...], ask: Ask, target: Target
) -> Refusal:
    """Say why nothing fits, from the artifact that came closest: the smallest above the quality floor."""
    headline = min(allowed or candidates, key=lambda c: c.weights.total_bytes)
    smallest = min(candidates, key=lambda c: c.weights.total_bytes)
    quantization = headline.artifact.quantization
    fixed = ask.settings.n_gpu_layers
    n_all = all_layers(headline, target)
    whole = try_placement(headline, ask, target, n_all if fixed is None else min(fixed, n_all))
    needed, available = _needed_bytes(whole), target.budget_bytes
    slow = _slow_trial(headline, ask, target, whole)
    if slow is not None:
        return Refusal(
            code=RefusalCode.BELOW_SPEED_FLOOR,
            model=ask.model,
            fact=f"`{ask.model}` at {quantization} would generate about {slow.speed.generation_tps:.1f} tokens/s here; "
            f"the floor is {ask.min_tps:g}",
            derivation=(
                _format_need(slow),
                f"{slow.config.n_gpu_layers} of {n_all or headline.architecture.n_layer + 1} layers on the GPU, the rest on the CPU",
            ),
            needed_bytes=needed,
            available_bytes=available,
            footprint=slow.footprint,
            budgets=(*target.budgets, target.host_budget),
            certain=False,
        )
    derivation = [_format_need(whole)]
    code = RefusalCode.EXCEEDS_MEMORY
    least = _needed_bytes(try_placement(smallest, ask, target, all_layers(smallest, target)))
    if needed <= available:
        code = RefusalCode.EXCEEDS_DEVICE_MEMORY if fixed else RefusalCode.EXCEEDS_HOST_MEMORY
        derivation.append("the sum would fit, but not divided as the engine divides it: " + _shortfalls(whole, target))
    elif smallest is not headline and least > available:
        derivation.append(
            f"because even the smallest known quantization ({smallest.artifact.quantization}, "
            f"{format_bytes(least)}) exceeds the sum, no offload would help"
        )
    return Refusal(
        code=code,
        model=ask.model,
        fact=f"`{ask.model}` at {quantization} needs {format_bytes(needed)}; "
        f"this machine can give {format_bytes(available)} ({_format_budgets(target)})",
        derivation=tuple(derivation),
        needed_bytes=needed,
        available_bytes=available,
        footprint=whole.footprint,
        budgets=(*target.budgets, target.host_budget),
    )


def _shortfalls(trial: Trial, target: Target) -> str:
    host = trial.footprint.host
    uses = [*((use.name, use.total_bytes) for use in trial.footprint.devices), ("host", host.total_bytes)]
    budgets = (*target.budgets, target.host_budget)
    short = [
        f"{name} needs {format_bytes(n_bytes)} of {format_bytes(budget.budget_bytes)}"
        for (name, n_bytes), budget in zip(uses, budgets, strict=True)
        if n_bytes > budget.budget_bytes
    ]
    return ", ".join(short) or "no placement of whole layers fits"


def _slow_trial(candidate: Candidate, ask: Ask, target: Target, whole: Trial) -> Trial | None:
    """Return a placement that fits in memory but is too slow, if that is what refuses the request."""
    if whole.fits:
        return whole
    if ask.settings.n_gpu_layers is not None or not target.devices:
        return None
    return most_layers(candidate, ask, target)
