"""What vLLM could serve: its plans for a request on a machine, or why there is none.

What vLLM would do with its memory is ``footprint/vllm.py``'s; its words become llama.cpp's in the plan (GLOSSARY.md).
Weighing its plans against llama.cpp's is ``fit.py``'s.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import (
    Basis,
    CacheType,
    Device,
    DeviceKind,
    Engine,
    Footprint,
    HostUse,
    Inventory,
    MemoryUse,
    Outcome,
    Plan,
    Provenance,
    Refusal,
    RefusalCode,
    Request,
    Speed,
    VllmTerms,
)
from launcher.planner.abilities import describe_lack, is_cpu_build, is_usable
from launcher.planner.ask import Ask, hold_context, note_lowered, resolve_ask, with_less_context, with_more_context
from launcher.planner.basis import basis_of_free
from launcher.planner.choice import pick
from launcher.planner.footprint.vllm import (
    CONTEXT_BYTES,
    CONTEXT_PARALLEL_BYTES,
    HOST_BYTES,
    HOST_RANK_BYTES,
    VllmChoice,
    plan_vllm,
)
from launcher.planner.footprint.vllm_support import activation_dtype
from launcher.planner.forms import Form, prepare_forms
from launcher.planner.losses import forced_speed
from launcher.planner.refusal import refuse_context
from launcher.planner.rivals import disk_room_bytes, find_vllm, foreign_settings, free_bytes
from launcher.planner.target import device_budget, host_budget
from launcher.planner.vllm_cpu import estimate_cpu_speed, plan_vllm_cpu
from launcher.planner.vllm_speed import estimate_vllm_speed
from launcher.units import format_bytes

_KINDS: Final = frozenset((DeviceKind.CUDA, DeviceKind.ROCM))
"""Of devices that a published build of vLLM reaches beside CPUs."""


class VllmTrial(Struct, frozen=True, kw_only=True):
    """One form of a model under one configuration that fits, with what it would give."""

    form: Form
    choice: VllmChoice
    devices: tuple[Device, ...]
    speed: Speed

    @property
    def engine(self) -> Engine:
        """Which engine it is for."""
        return Engine.VLLM

    @property
    def kl(self) -> float:
        """Loss of quality, in nats; the cache is never quantized."""
        return self.form.kl

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the model runs on the host: there is no other way with vLLM."""
        return True

    @property
    def weights_bytes(self) -> int:
        """Size of the weights."""
        return self.form.weights_bytes


class Shortfall(Struct, frozen=True, kw_only=True):
    """Why a form cannot be served: the code that a refusal for this alone would have, and the words."""

    code: RefusalCode
    text: str


def decide_vllm(request: Request, inventory: Inventory, forms: tuple[Form, ...] | None = None) -> Outcome:
    """Plan or refuse for vLLM alone, by the profile's objective."""
    ask = resolve_ask(request)
    not_its_own = foreign_settings(ask.settings)
    if not_its_own:
        return _refuse_settings(ask, not_its_own)
    forms = prepare_forms(request.profile) if forms is None else forms
    named = tuple(form for form in forms if ask.settings.quantization in {None, form.artifact.quantization})
    if not named:
        return _refuse_no_form(ask, forms)
    if (refusal := _refuse_engine(ask, inventory)) is not None:
        return refusal
    held = _trained_context(ask, named)
    if isinstance(held, Refusal):
        return held
    lowered = _lowering(ask, held)
    held = _grown_context(held, named, inventory)
    trials, shortfalls = find_trials(named, held, inventory)
    if not trials and (shorter := _with_less_context(named, held, inventory)) is not None:
        wished, (held, trials) = held, shorter
        lowered = (*lowered, *note_lowered(wished, held, "nothing fits with more"))
    if not trials:
        return _refuse_no_fit(held, shortfalls)
    return build_vllm_plan(pick(trials, held.objective), held, inventory, lowered)


def list_vllm(
    request: Request, inventory: Inventory, forms: tuple[Form, ...]
) -> tuple[Ask, list[VllmTrial], tuple[str, ...]]:
    """Return the ask, every form that fits it with floors aside, and the wishes that were lowered."""
    ask = resolve_ask(request)
    named = tuple(form for form in forms if ask.settings.quantization in {None, form.artifact.quantization})
    held = _trained_context(ask, named)
    if foreign_settings(ask.settings) or not named or isinstance(held, Refusal):
        return ask, [], ()
    loose, free = replace(held, force=True), free_bytes(inventory)
    could_fit = (form for form in named if form.weights_bytes < free)
    shown = [trial for form in could_fit if isinstance(trial := _try_form(form, loose, inventory), VllmTrial)]
    return held, shown, _lowering(ask, held)


def find_trials(forms: Iterable[Form], ask: Ask, inventory: Inventory) -> tuple[list[VllmTrial], list[Shortfall]]:
    """Return the forms that fit above the floors, best quality first, and why the others do not."""
    trials: list[VllmTrial] = []
    shortfalls: list[Shortfall] = []
    for form in sorted(forms, key=lambda form: (form.kl, form.artifact.quantization)):
        name = form.artifact.quantization
        if not ask.admits(name, form.n_active):
            shortfalls.append(Shortfall(code=RefusalCode.BELOW_QUALITY_FLOOR, text=f"{name}: below the quality floor"))
            continue
        found = _try_form(form, ask, inventory)
        if isinstance(found, VllmTrial):
            trials.append(found)
        else:
            shortfalls.append(replace(found, text=f"{name}: {found.text}"))
    return trials, shortfalls


def _try_form(form: Form, ask: Ask, inventory: Inventory) -> VllmTrial | Shortfall:
    """Size one form on the fewest GPUs that hold it; on more where these would be too slow."""
    room = disk_room_bytes(inventory)
    if room is not None and not form.artifact.local_path and form.weights_bytes > room:
        text = f"{format_bytes(form.weights_bytes)} find no room on the disk"
        return Shortfall(code=RefusalCode.EXCEEDS_DISK, text=text)
    if is_cpu_build(find_vllm(inventory)):
        return _try_on_cpu(form, ask, inventory)
    devices = tuple(device for device in inventory.devices if device.kind in _KINDS)
    first: Shortfall | None = None
    for n_tensor in (None, *range(2, len(devices) + 1)):
        choice = plan_vllm(
            form.spec,
            devices,
            n_ctx_per_request=ask.n_ctx_per_request,
            n_parallel=ask.n_parallel,
            tensor_parallel_size=n_tensor,
            models=form.models,
        )
        found = _judge(form, choice, ask, inventory)
        if isinstance(found, VllmTrial):
            return found
        first = first or found
        if first.code is not RefusalCode.BELOW_SPEED_FLOOR:
            break
    return first or Shortfall(code=RefusalCode.EXCEEDS_DEVICE_MEMORY, text="no GPU")


def _try_on_cpu(form: Form, ask: Ask, inventory: Inventory) -> VllmTrial | Shortfall:
    """Size one form for a vLLM that is built for CPUs."""
    choice = plan_vllm_cpu(
        form.spec, n_ctx_per_request=ask.n_ctx_per_request, n_parallel=ask.n_parallel, models=form.models
    )
    if isinstance(choice, str):
        return Shortfall(code=RefusalCode.UNSUPPORTED, text=choice)
    use = _host_use(choice, form.weights_bytes)
    budget = host_budget(inventory.host).budget_bytes
    if use.total_bytes > budget:
        text = f"it takes {format_bytes(use.total_bytes)} of host memory; {format_bytes(budget)} can be given"
        return Shortfall(code=RefusalCode.EXCEEDS_HOST_MEMORY, text=text)
    return _above_floor(form, choice, (), estimate_cpu_speed(choice.model, choice.config, inventory.host), ask)


def _judge(form: Form, choice: VllmChoice | str, ask: Ask, inventory: Inventory) -> VllmTrial | Shortfall:
    if isinstance(choice, str):
        return Shortfall(code=RefusalCode.EXCEEDS_DEVICE_MEMORY, text=choice)
    needed, budget = _host_use(choice, form.weights_bytes).total_bytes, host_budget(inventory.host).budget_bytes
    if needed > budget:
        text = f"its processes take about {format_bytes(needed)} of host memory; {format_bytes(budget)} can be given"
        return Shortfall(code=RefusalCode.EXCEEDS_HOST_MEMORY, text=text)
    by_name = {device.name: device for device in inventory.devices}
    used = tuple(by_name[name] for name in choice.devices)
    return _above_floor(form, choice, used, estimate_vllm_speed(choice.model, choice.config, used), ask)


def _above_floor(
    form: Form, choice: VllmChoice, used: tuple[Device, ...], speed: Speed, ask: Ask
) -> VllmTrial | Shortfall:
    if speed.generation_tps < ask.min_tps:
        text = f"about {speed.generation_tps:.1f} tokens/s; the floor is {ask.min_tps:g}"
        return Shortfall(code=RefusalCode.BELOW_SPEED_FLOOR, text=text)
    return VllmTrial(form=form, choice=choice, devices=used, speed=speed)


# --- The context ------------------------------------------------------------------------------------------------


def _trained_context(ask: Ask, forms: Sequence[Form]) -> Ask | Refusal:
    """Hold the context to what the model was trained for: a wish is lowered, an order is refused.

    ``--force`` does not help, for the engine itself refuses to start with more.
    """
    n_train = max((form.n_ctx_train for form in forms), default=0)
    held = hold_context(ask, n_train)
    if held is not None:
        return held
    refusal = refuse_context(ask, n_train)
    return replace(refusal, derivation=("vllm does not start with more",), certain=True)


def _lowering(asked: Ask, held: Ask) -> tuple[str, ...]:
    return note_lowered(asked, held, "the model was trained for no more")


def _with_less_context(forms: Sequence[Form], ask: Ask, inventory: Inventory) -> tuple[Ask, list[VllmTrial]] | None:
    """Give less context than was wished for, in powers of two down to the profile's limit, until something fits."""
    for shorter in with_less_context(ask):
        trials, _ = find_trials(forms, shorter, inventory)
        if trials:
            return shorter, trials
    return None


def _grown_context(ask: Ask, forms: Sequence[Form], inventory: Inventory) -> Ask:
    """For the objective ``context``: the longest context, in powers of two, at which some form still fits."""
    n_train = max((form.n_ctx_train for form in forms), default=0)
    best = ask
    for longer in with_more_context(ask, n_train):
        if not find_trials(forms, longer, inventory)[0]:
            break
        best = longer
    return best


# --- Refusals ---------------------------------------------------------------------------------------------------


def _refuse_settings(ask: Ask, names: Sequence[str]) -> Refusal:
    """Say that what the user fixed has no meaning for vLLM: it is never dropped in silence."""
    return Refusal(
        code=RefusalCode.UNSUPPORTED,
        model=ask.model,
        fact=f"`{ask.model}`: vllm has no {', '.join(names)}",
        derivation=("leave them out, or ask for llama-server",),
    )


def _refuse_no_form(ask: Ask, forms: tuple[Form, ...]) -> Refusal:
    known = ", ".join(form.artifact.quantization for form in forms) or "none"
    return Refusal(
        code=RefusalCode.NO_SUCH_QUANTIZATION,
        model=ask.model,
        fact=f"`{ask.model}` has no safetensors artifact at {ask.settings.quantization or 'any quantization'} "
        "whose metadata is known: vllm loads nothing else",
        derivation=(f"known for vllm: {known}",),
    )


def _refuse_engine(ask: Ask, inventory: Inventory) -> Refusal | None:
    """Say that vLLM is not there, or only in a version that may not be started."""
    install = find_vllm(inventory)
    if inventory.engines is None or (install is not None and is_usable(install)):
        return None
    if install is not None:
        return Refusal(
            code=RefusalCode.ENGINE_TOO_OLD,
            model=ask.model,
            fact=f"the vllm on this machine is not used for `{ask.model}`",
            derivation=(describe_lack(install),),
        )
    have = ", ".join(sorted({install.engine for install in inventory.engines})) or "none"
    return Refusal(
        code=RefusalCode.NO_ENGINE,
        model=ask.model,
        fact="vllm is not installed on this machine",
        derivation=(f"found {have}",),
    )


_NEAREST: Final = (
    RefusalCode.BELOW_SPEED_FLOOR,
    RefusalCode.EXCEEDS_HOST_MEMORY,
    RefusalCode.EXCEEDS_DEVICE_MEMORY,
    RefusalCode.EXCEEDS_DISK,
    RefusalCode.UNSUPPORTED,
    RefusalCode.BELOW_QUALITY_FLOOR,
)
"""What stands in the way of the form that came nearest to being served names the refusal."""


def _refuse_no_fit(ask: Ask, shortfalls: Sequence[Shortfall]) -> Refusal:
    codes = {shortfall.code for shortfall in shortfalls}
    code = next(code for code in _NEAREST if code in codes)
    return Refusal(
        code=code,
        model=ask.model,
        fact=f"`{ask.model}` cannot be served by vllm on this machine at {ask.n_ctx_per_request} tokens per request",
        derivation=tuple(shortfall.text for shortfall in shortfalls),
        certain=code is not RefusalCode.BELOW_SPEED_FLOOR,
    )


# --- The plan ---------------------------------------------------------------------------------------------------


def _host_use(choice: VllmChoice, weights_bytes: int) -> HostUse:
    """Return what is held in host memory: by processes that drive GPUs, or by the one that computes there."""
    if choice.devices:
        return HostUse(
            compute_bytes=HOST_BYTES + HOST_RANK_BYTES * choice.config.n_rank, resident_mmap_bytes=weights_bytes
        )
    rank = choice.estimate.ranks[0]
    return HostUse(
        weights_bytes=rank.weights_bytes,
        kv_cache_bytes=rank.kv_cache_bytes,
        compute_bytes=HOST_BYTES + rank.activation_bytes,
        resident_mmap_bytes=weights_bytes,
    )


def _device_uses(choice: VllmChoice) -> tuple[MemoryUse, ...]:
    if not choice.devices:
        return ()
    return tuple(
        MemoryUse(
            name=rank.name,
            weights_bytes=rank.weights_bytes,
            kv_cache_bytes=rank.kv_cache_bytes,
            compute_bytes=rank.activation_bytes + rank.graph_bytes + rank.non_torch_bytes,
        )
        for rank in choice.estimate.ranks
    )


def _terms(trial: VllmTrial, inventory: Inventory) -> VllmTerms:
    """Return a trial's configuration in vLLM's words."""
    config = trial.choice.config
    known = [device.compute_capability for device in trial.devices if device.compute_capability is not None]
    return VllmTerms(
        dtype=activation_dtype(trial.form.spec, min(known, default=None)),
        kv_cache_dtype=config.kv_cache_dtype,
        kv_cache_memory_bytes=config.kv_cache_memory_bytes,
        visible_devices=tuple(_number(device, inventory) for device in trial.devices),
    )


def _number(device: Device, inventory: Inventory) -> str:
    """Return CUDA's word for a GPU: its place in the order of bus addresses, which the driver's list has; a slice's name."""
    if device.uuid is not None and device.uuid.startswith("MIG-"):
        return device.uuid
    alike = [other.name for other in inventory.devices if other.kind is device.kind]
    return str(alike.index(device.name))


def build_vllm_plan(trial: VllmTrial, ask: Ask, inventory: Inventory, lowered: tuple[str, ...] = ()) -> Plan:
    """Return the plan of a trial in llama.cpp's words; what has none there stands in ``vllm`` and in the notes."""
    choice, artifact = trial.choice, trial.form.artifact
    config = choice.config
    host = inventory.host
    context_bytes = CONTEXT_BYTES if config.n_rank == 1 else CONTEXT_PARALLEL_BYTES
    n_ctx = ask.settings.n_ctx or ask.n_ctx_per_request * ask.n_parallel
    return Plan(
        model=ask.model,
        engine=Engine.VLLM,
        install=find_vllm(inventory),
        format=artifact.format,
        quantization=artifact.quantization,
        n_ctx=n_ctx,
        n_ctx_per_request=ask.n_ctx_per_request,
        n_parallel=ask.n_parallel,
        kv_unified=True,
        n_batch=config.max_num_batched_tokens,
        n_ubatch=config.max_num_batched_tokens,
        n_layer=choice.model.n_layer,
        n_gpu_layers=choice.model.n_layer + 1 if choice.devices else 0,
        n_cpu_moe=0,
        cache_type_k=CacheType.BF16,
        cache_type_v=CacheType.BF16,
        flash_attn=True,
        n_threads=host.n_cpu,
        n_threads_batch=host.n_cpu,
        address=ask.address,
        footprint=Footprint(devices=_device_uses(choice), host=_host_use(choice, trial.weights_bytes)),
        budgets=(*(device_budget(device, context_bytes) for device in trial.devices), host_budget(host)),
        tensor_parallel=config.tensor_parallel_size,
        pipeline_parallel=config.pipeline_parallel_size,
        memory_utilization=config.gpu_memory_utilization if trial.devices else None,
        cuda_graphs=not config.enforce_eager,
        artifact=replace(artifact, spec=None),
        engine_devices=tuple(f"cuda:{idx}" for idx in range(len(trial.devices))),
        vllm=_terms(trial, inventory),
        speed=trial.speed,
        given_up=(*lowered, *choice.given_up, *forced_speed(trial.speed, ask)),
        notes=tuple(_notes(trial, inventory)),
        basis=tuple(_bases(trial, inventory)),
    )


def _notes(trial: VllmTrial, inventory: Inventory) -> Iterable[str]:
    if not trial.devices:
        yield "on the CPU, without compiling the model first: a start of half a minute instead of minutes"
    yield f"room for {trial.choice.estimate.max_concurrency:.1f} requests of full length at once"
    if inventory.engines is None:
        yield "the machine's engines are unknown: vllm is assumed to be there"


def _bases(trial: VllmTrial, inventory: Inventory) -> Iterable[Basis]:
    """Yield the figures of the plan's text, each with what it rests on."""
    yield Basis(figure="weights", provenance=trial.form.spec.provenance, text="tensors and config.json, per rank")
    for note in trial.choice.estimate.notes:
        yield Basis(figure="compute", provenance=note.provenance, text=note.text)
    processes = _host_use(trial.choice, 0).compute_bytes
    host = f"{format_bytes(processes)} of host memory for its processes"
    yield Basis(figure="compute", provenance=Provenance.ASSUMED, text=host)
    yield basis_of_free(inventory)
    where = "one such GPU are taken over, and what GPUs cost each other" if trial.devices else "a CPU are taken over"
    speed = f"rates of llama.cpp on {where}"
    yield Basis(figure="speed", provenance=Provenance.ASSUMED, text=speed)
    if trial.speed.prompt_tps is not None:
        yield Basis(figure="prompts", provenance=Provenance.ASSUMED, text="the same")
