"""What vLLM could serve: its plans for a request on one machine or over several, or why there is none.

What vLLM would do with its memory is ``footprint/vllm.py``'s; its words become llama.cpp's in the plan (GLOSSARY.md).
Weighing its plans against llama.cpp's is ``fit.py``'s.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import (
    Budget,
    Calibration,
    Cluster,
    DeviceKind,
    Host,
    Inventory,
    Machines,
    Outcome,
    Plan,
    Refusal,
    RefusalCode,
    Request,
    Speed,
)
from launcher.planner.abilities import describe_lack, is_cpu_build
from launcher.planner.ask import Ask, hold_context, note_lowered, resolve_ask, with_less_context, with_more_context
from launcher.planner.choice import pick
from launcher.planner.copies import count_copies, host_bytes, within_memory
from launcher.planner.footprint.vllm import (
    VllmChoice,
    plan_vllm,
)
from launcher.planner.footprint.vllm_learnt import NOTHING, Learnt
from launcher.planner.footprint.vllm_place import Hosts, largest_group
from launcher.planner.forms import Form, prepare_forms
from launcher.planner.hosts import hosts_of
from launcher.planner.refusal import refuse_context
from launcher.planner.rivals import disk_room_bytes, find_vllm, foreign_settings, free_bytes, may_have_vllm
from launcher.planner.target import host_budget
from launcher.planner.vllm_cpu import estimate_cpu_speed, plan_vllm_cpu
from launcher.planner.vllm_lessons import heed_vllm
from launcher.planner.vllm_plan import VllmTrial, assemble_vllm_plan, host_use_on_cpu
from launcher.planner.vllm_speed import estimate_vllm_speed
from launcher.units import format_bytes

_KINDS: Final = frozenset((DeviceKind.CUDA, DeviceKind.ROCM))
"""Of devices that a published build of vLLM reaches beside CPUs."""


class Shortfall(Struct, frozen=True, kw_only=True):
    """Why a form cannot be served: the code that a refusal for this alone would have, and the words."""

    code: RefusalCode
    text: str


def decide_vllm(
    request: Request,
    machines: Machines,
    forms: tuple[Form, ...] | None = None,
    calibration: Calibration | None = None,
) -> Outcome:
    """Plan or refuse for vLLM alone, by the profile's objective; ``calibration`` holds what runs on this machine taught."""
    ask = resolve_ask(request)
    not_its_own = foreign_settings(ask.settings)
    if not_its_own:
        return _refuse_settings(ask, not_its_own)
    forms = prepare_forms(request.profile) if forms is None else forms
    named = tuple(form for form in forms if ask.settings.quantization in {None, form.artifact.quantization})
    if not named:
        return _refuse_no_form(ask, forms)
    if (refusal := _refuse_engine(ask, machines)) is not None:
        return refusal
    held = _trained_context(ask, named)
    if isinstance(held, Refusal):
        return held
    lowered = _lowering(ask, held)
    held = _grown_context(held, named, machines, calibration)
    trials, shortfalls = find_trials(named, held, machines, calibration)
    if not trials and (shorter := _with_less_context(named, held, machines, calibration)) is not None:
        wished, (held, trials) = held, shorter
        lowered = (*lowered, *note_lowered(wished, held, "nothing fits with more"))
    if not trials:
        return _refuse_no_fit(held, shortfalls, machines)
    return build_vllm_plan(pick(trials, held.objective, held.n_parallel), held, machines, lowered)


def list_vllm(
    request: Request, machines: Machines, forms: tuple[Form, ...], calibration: Calibration | None = None
) -> tuple[Ask, list[VllmTrial], tuple[str, ...]]:
    """Return the ask, every form that fits it with floors aside, and the wishes that were lowered."""
    ask = resolve_ask(request)
    named = tuple(form for form in forms if ask.settings.quantization in {None, form.artifact.quantization})
    held = _trained_context(ask, named)
    if foreign_settings(ask.settings) or not named or isinstance(held, Refusal):
        return ask, [], ()
    loose, free = replace(held, force=True), free_bytes(machines)
    could_fit = (form for form in named if form.weights_bytes < free)
    tried = (try_form(form, loose, machines, learnt=heed_vllm(form, machines, calibration)) for form in could_fit)
    shown = [trial for trial in tried if isinstance(trial, VllmTrial)]
    return held, shown, _lowering(ask, held)


def find_trials(
    forms: Iterable[Form], ask: Ask, machines: Machines, calibration: Calibration | None = None
) -> tuple[list[VllmTrial], list[Shortfall]]:
    """Return the forms that fit above the floors, best quality first, and why the others do not."""
    trials: list[VllmTrial] = []
    shortfalls: list[Shortfall] = []
    for form in sorted(forms, key=lambda form: (form.kl, form.artifact.quantization)):
        name = form.artifact.quantization
        if not ask.admits(name, form.n_active):
            shortfalls.append(Shortfall(code=RefusalCode.BELOW_QUALITY_FLOOR, text=f"{name}: below the quality floor"))
            continue
        found = try_form(form, ask, machines, learnt=heed_vllm(form, machines, calibration))
        if isinstance(found, VllmTrial):
            trials.append(found)
        else:
            shortfalls.append(replace(found, text=f"{name}: {found.text}"))
    return trials, shortfalls


def try_form(
    form: Form,
    ask: Ask,
    machines: Machines,
    *,
    n_least: int = 1,
    kv_cache_dtype: str = "auto",
    learnt: Learnt = NOTHING,
) -> VllmTrial | Shortfall:
    """Size one form on the fewest GPUs that hold it, at least ``n_least``; on more where these would be too slow."""
    if isinstance(machines, Inventory) and is_cpu_build(find_vllm(machines)) and _has_disk(form, machines):
        return _try_on_cpu(form, ask, machines, learnt)
    hosts = _usable_devices(form, machines)
    if isinstance(hosts, Shortfall):
        return hosts
    first: Shortfall | None = None
    fewest = None if n_least == 1 else n_least  # of its own choice it may take pipelines too
    for n_tensor in (fewest, *range(max(2, n_least + 1), largest_group(hosts) + 1)):
        choice = _choose(form, hosts, ask, n_tensor, kv_cache_dtype=kv_cache_dtype, learnt=learnt)
        found = _judge(form, choice, ask, machines, learnt)
        if isinstance(found, VllmTrial):
            return found
        first = first or found
        if first.code is not RefusalCode.BELOW_SPEED_FLOOR:
            break
    return first or Shortfall(code=RefusalCode.EXCEEDS_DEVICE_MEMORY, text="no GPU")


def _try_on_cpu(form: Form, ask: Ask, inventory: Inventory, learnt: Learnt) -> VllmTrial | Shortfall:
    """Size one form for a vLLM that is built for CPUs."""
    choice = plan_vllm_cpu(
        form.spec, n_ctx_per_request=ask.n_ctx_per_request, n_parallel=ask.n_parallel, models=form.models
    )
    if isinstance(choice, str):
        return Shortfall(code=RefusalCode.UNSUPPORTED, text=choice)
    use = host_use_on_cpu(choice, form.weights_bytes)
    budget = corrected_host_budget(inventory.host, learnt).budget_bytes
    if use.total_bytes > budget:
        text = f"it takes {format_bytes(use.total_bytes)} of host memory; {format_bytes(budget)} can be given"
        return Shortfall(code=RefusalCode.EXCEEDS_HOST_MEMORY, text=text)
    return _above_floor(form, choice, estimate_cpu_speed(choice.model, choice.config, inventory.host), ask)


def _usable_devices(form: Form, machines: Machines) -> Hosts | Shortfall:
    """Return the devices of each host that vLLM reaches; none of a host that has not the disk, or not vLLM.

    Of a cluster's host only as many as its memory allows: another may have room for the rest.
    """
    hosts = hosts_of(machines)
    devices = [
        tuple(device for device in host.devices if device.kind in _KINDS) if may_have_vllm(host) else ()
        for host in hosts
    ]
    roomy = [_has_disk(form, host) for host in hosts]
    if not any(roomy):
        text = f"{format_bytes(form.weights_bytes)} find no room on the disk"
        return Shortfall(code=RefusalCode.EXCEEDS_DISK, text=text)
    found = [part if has_room else () for part, has_room in zip(devices, roomy, strict=True)]
    if isinstance(machines, Inventory):
        return found
    kept = [within_memory(part, host_budget(host.host).budget_bytes) for part, host in zip(found, hosts, strict=True)]
    if any(found) and not any(kept):
        text = "no machine has the memory for its processes"
        return Shortfall(code=RefusalCode.EXCEEDS_HOST_MEMORY, text=text)
    return kept


def _has_disk(form: Form, host: Inventory) -> bool:
    room = disk_room_bytes(host)
    return room is None or bool(form.artifact.local_path) or form.weights_bytes <= room


def _choose(
    form: Form, hosts: Hosts, ask: Ask, n_tensor: int | None, *, kv_cache_dtype: str, learnt: Learnt
) -> VllmChoice | str:
    """Return how vLLM would serve a form; worked out once, for floors and other forms do not matter."""
    key = tuple(hosts), ask.n_ctx_per_request, ask.n_parallel, n_tensor, kv_cache_dtype, learnt
    if key not in form.choices:
        form.choices[key] = plan_vllm(
            form.spec,
            hosts,
            n_ctx_per_request=ask.n_ctx_per_request,
            n_parallel=ask.n_parallel,
            tensor_parallel_size=n_tensor,
            kv_cache_dtype=kv_cache_dtype,
            models=form.models,
            learnt=learnt,
        )
    return form.choices[key]


def _judge(form: Form, choice: VllmChoice | str, ask: Ask, machines: Machines, learnt: Learnt) -> VllmTrial | Shortfall:
    if isinstance(choice, str):
        return Shortfall(code=RefusalCode.EXCEEDS_DEVICE_MEMORY, text=choice)
    hosts = hosts_of(machines)
    for idx, needed in host_bytes(choice.ranks).items():
        budget = corrected_host_budget(hosts[idx].host, learnt).budget_bytes
        if needed > budget:
            what = f"its processes take about {format_bytes(needed)} of host memory"
            text = f"{what}; {format_bytes(budget)} can be given"
            return Shortfall(code=RefusalCode.EXCEEDS_HOST_MEMORY, text=text)
    network = machines.network if isinstance(machines, Cluster) else None
    ranks = choice.ranks
    speed = estimate_vllm_speed(choice.model, choice.config, ranks.devices, hosts=ranks.hosts, network=network)
    return _above_floor(form, choice, speed, ask)


def corrected_host_budget(host: Host, learnt: Learnt) -> Budget:
    """Return what a plan may use of host memory, by what was learnt of it."""
    budget = host_budget(host)
    return replace(budget, residual_bytes=max(budget.residual_bytes, learnt.host_bytes))


def _above_floor(form: Form, choice: VllmChoice, speed: Speed, ask: Ask) -> VllmTrial | Shortfall:
    if speed.generation_tps < ask.min_tps:
        text = f"about {speed.generation_tps:.1f} tokens/s; the floor is {ask.min_tps:g}"
        return Shortfall(code=RefusalCode.BELOW_SPEED_FLOOR, text=text)
    return VllmTrial(form=form, choice=choice, speed=speed)


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


def _with_less_context(
    forms: Sequence[Form], ask: Ask, machines: Machines, calibration: Calibration | None
) -> tuple[Ask, list[VllmTrial]] | None:
    """Give less context than was wished for, in powers of two down to the profile's limit, until something fits."""
    for shorter in with_less_context(ask):
        trials, _ = find_trials(forms, shorter, machines, calibration)
        if trials:
            return shorter, trials
    return None


def _grown_context(ask: Ask, forms: Sequence[Form], machines: Machines, calibration: Calibration | None) -> Ask:
    """For the objective ``context``: the longest context, in powers of two, at which some form still fits."""
    n_train = max((form.n_ctx_train for form in forms), default=0)
    best = ask
    for longer in with_more_context(ask, n_train):
        if not find_trials(forms, longer, machines, calibration)[0]:
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


def _refuse_engine(ask: Ask, machines: Machines) -> Refusal | None:
    """Say that vLLM is not there, or only in a version that may not be started."""
    if may_have_vllm(machines):
        return None
    where = "this machine" if isinstance(machines, Inventory) else f"any machine of `{machines.name}`"
    if (install := find_vllm(machines)) is not None:
        return Refusal(
            code=RefusalCode.ENGINE_TOO_OLD,
            model=ask.model,
            fact=f"the vllm on {where} is not used for `{ask.model}`",
            derivation=(describe_lack(install),),
        )
    installs = [install for host in hosts_of(machines) for install in host.engines or ()]
    have = ", ".join(sorted({install.engine for install in installs})) or "none"
    return Refusal(
        code=RefusalCode.NO_ENGINE,
        model=ask.model,
        fact=f"vllm is not installed on {where}",
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


def _refuse_no_fit(ask: Ask, shortfalls: Sequence[Shortfall], machines: Machines) -> Refusal:
    codes = {shortfall.code for shortfall in shortfalls}
    code = next(code for code in _NEAREST if code in codes)
    where = "this machine" if isinstance(machines, Inventory) else f"the machines of `{machines.name}`"
    return Refusal(
        code=code,
        model=ask.model,
        fact=f"`{ask.model}` cannot be served by vllm on {where} at {ask.n_ctx_per_request} tokens per request",
        derivation=tuple(shortfall.text for shortfall in shortfalls),
        certain=code is not RefusalCode.BELOW_SPEED_FLOOR,
    )


# --- The plan ---------------------------------------------------------------------------------------------------


def build_vllm_plan(trial: VllmTrial, ask: Ask, machines: Machines, lowered: tuple[str, ...] = ()) -> Plan:
    """Return the plan of a trial, with how many copies of it several machines hold; on one, one engine is started."""
    if isinstance(machines, Inventory):
        return assemble_vllm_plan(trial, ask, machines, lowered)
    usable = _usable_devices(trial.form, machines)
    assert not isinstance(usable, Shortfall)  # noqa: S101 - the trial runs on them
    budgets = [host_budget(host.host).budget_bytes for host in hosts_of(machines)]
    replicas = count_copies(trial.choice, usable, budgets)
    return assemble_vllm_plan(trial, ask, machines, lowered, replicas=replicas)
