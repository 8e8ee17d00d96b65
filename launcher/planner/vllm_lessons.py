"""What runs of vLLM teach: from what was lacking to a correction on record, and from those to what the next plan heeds.

A correction counts for the same shape of a model, in the same build, on one GPU or on several: tensor parallelism brings its
own libraries and buffers. *Measured* is what an engine told of its cache while it loaded, *out of memory* what has to stay
free. It must not know how anything was measured or where it is kept.
"""

from collections.abc import Mapping
from typing import Final

from launcher.domain import HOST_MEMORY, Calibration, Correction, Inventory, Lesson, Machines, Plan
from launcher.planner.calibration import build_of
from launcher.planner.corrections import limit_of, planned_bytes
from launcher.planner.footprint.vllm_learnt import NOTHING, GpuLearnt, Learnt
from launcher.planner.forms import Form
from launcher.planner.parameters import find_number
from launcher.planner.rivals import find_vllm

_CLASSES: Final = ("vllm, on the host alone", "vllm, one GPU", "vllm, several GPUs")


def model_name(form: Form) -> str:
    """Return what names a model's shape, whatever its quantization."""
    metadata = form.spec.metadata
    n_layer = find_number(metadata, ("num_hidden_layers", "n_layer"))
    return f"{form.spec.architecture}-{n_layer}x{find_number(metadata, ('hidden_size', 'n_embd'))}"


def learn_vllm(
    plan: Plan,
    form: Form,
    *,
    memory: str,
    unaccounted_bytes: int,
    lesson: Lesson,
    at: float,
    limit_bytes: int | None = None,
    missing_bytes: int = 0,
) -> Correction:
    """Return what a start of ``plan`` taught of one memory, ``at`` seconds since 1970; the last two as in `Correction`."""
    return Correction(
        memory=memory,
        build=build_of(plan.install) if plan.install is not None else "",
        model=model_name(form),
        configuration=_CLASSES[min(len(plan.footprint.devices), 2)],
        lesson=lesson,
        planned_bytes=planned_bytes(plan, memory),
        unaccounted_bytes=unaccounted_bytes,
        learnt_at=at,
        limit_bytes=limit_bytes,
        missing_bytes=missing_bytes,
    )


def lacking_bytes(plan: Plan, kv_cache_tokens: int) -> Mapping[str, int]:
    """Return by how much less than predicted each GPU's share left for the cache, from the tokens that the engine told.

    Blocks are of one size, so bytes go with tokens; what the plan counted in already is part of the answer. Where the cache
    was ordered in bytes nothing is left to be measured, and a cache that came out larger teaches nothing: a plan does well
    not to count on that.
    """
    if plan.vllm is None or plan.vllm.kv_cache_memory_bytes is not None or plan.vllm.kv_cache_tokens <= 0:
        return {}
    missing = 1.0 - kv_cache_tokens / plan.vllm.kv_cache_tokens
    if missing <= 0.0:
        return {}
    return {use.name: int(use.kv_cache_bytes * missing) + plan.vllm.learnt_bytes for use in plan.footprint.devices}


def heed_vllm(form: Form, machines: Machines, calibration: Calibration | None) -> Learnt:
    """Return what was learnt of this machine for one model, in the build that is there.

    Of running out only what counts under today's limits: once more can be had than was missing, the limit was the cause.
    """
    if calibration is None or not calibration.corrections or not isinstance(machines, Inventory):
        return NOTHING
    install = find_vllm(machines)
    where = (build_of(install) if install is not None else "", model_name(form))
    totals = {device.name: device.total_bytes for device in machines.devices} | {HOST_MEMORY: machines.host.total_bytes}
    here = [
        item
        for item in calibration.corrections
        if (item.build, item.model) == where
        and item.configuration in _CLASSES
        and item.memory in totals
        and limit_of(item.memory, totals[item.memory], machines.host) <= item.holds_upto_bytes
    ]
    return Learnt(
        gpus=tuple(
            GpuLearnt(
                name=item.memory,
                is_shared=item.configuration == _CLASSES[2],
                within_bytes=item.unaccounted_bytes if item.lesson is Lesson.MEASURED else 0,
                beside_bytes=item.unaccounted_bytes if item.lesson is Lesson.OUT_OF_MEMORY else 0,
            )
            for item in here
            if item.memory != HOST_MEMORY
        ),
        host_bytes=max((item.unaccounted_bytes for item in here if item.memory == HOST_MEMORY), default=0),
    )
