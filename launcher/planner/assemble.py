"""A chosen trial as the plan that is handed on: every value explicit, spare host memory shared out, facts noted.

It must not choose between trials.
"""

from typing import Final

from msgspec.structs import replace

from launcher.domain import DeviceKind, Engine, Inventory, Plan
from launcher.planner.abilities import list_passed_over
from launcher.planner.ask import Ask
from launcher.planner.basis import bases_of
from launcher.planner.bounds import list_bounds
from launcher.planner.footprint.limits import can_flash
from launcher.planner.footprint.llama_cpp import Backend, place_layers
from launcher.planner.footprint.serving import checkpoint_bytes
from launcher.planner.losses import list_losses
from launcher.planner.sizing import Candidate, Trial, try_shape
from launcher.planner.tuning import describe_tuning
from launcher.units import GIB, MIB

MAX_CACHE_RAM_BYTES: Final = 8 * GIB
"""llama-server's own default for its prompt cache."""
MAX_CHECKPOINTS: Final = 8
"""Of llama-server's 32 per slot: each only saves recomputing a prompt's end."""
_PLANNED_AROUND: Final = ("--split-mode", "--tensor-split", "--n-cpu-moe", "--cache-ram", "--ctx-checkpoints")
"""Options that older builds lack and that a plan can do without."""


def _serving_extras(trial: Trial) -> tuple[int, int, int]:
    """Share out spare host memory: bytes of prompt cache, checkpoints per slot, and the bytes these may take.

    A quarter of what is left goes to each, under llama-server's own defaults: both only save recomputation, and
    both grow while serving, so what is not planned is switched off.
    """
    target = trial.target
    if target.engine is not Engine.LLAMA_SERVER:
        return 0, 0, 0
    spare = target.host_budget.budget_bytes - trial.footprint.host.total_bytes
    per_checkpoint = checkpoint_bytes(trial.candidate.architecture, trial.config)
    n_checkpoints = min(MAX_CHECKPOINTS, spare // 4 // per_checkpoint) if per_checkpoint else 0
    cache_ram = min(MAX_CACHE_RAM_BYTES, spare // 4) // MIB * MIB
    if not target.has_option("--ctx-checkpoints"):
        n_checkpoints = 0
    if not target.has_option("--cache-ram"):
        cache_ram = 0
    return cache_ram, n_checkpoints, n_checkpoints * per_checkpoint


def _notes(trial: Trial, inventory: Inventory) -> tuple[str, ...]:
    notes = [trial.why] if trial.why else []
    target = trial.target
    if inventory.engines is None:
        notes.append(f"the machine's engines are unknown: {target.engine} is assumed to be there")
    notes += list_passed_over(inventory.engines or ())
    if any(device.kind is DeviceKind.RPC for device in target.devices):
        notes.append("workers over llama.cpp's RPC are experimental: no authentication, and a lost one ends the engine")
    lacking = [word for word in _PLANNED_AROUND if not target.has_option(word)]
    if lacking:
        notes.append(f"this build has no {', '.join(lacking)}: the plan does without")
    notes += list_bounds(trial)
    if not trial.config.flash_attn and not can_flash(trial.candidate.architecture):
        notes.append("no GPU has flash attention for heads of this size: it is off, else the CPU would attend")
    if trial.tuning is not None:
        notes.append(describe_tuning(trial.tuning))
    return tuple(notes)


def _threads(trial: Trial, ask: Ask) -> tuple[int, int]:
    """Return the threads for generation and for prompts: fixed, measured, or one per core."""
    host = trial.target.host
    if ask.settings.n_threads:
        return ask.settings.n_threads, ask.settings.n_threads
    if trial.tuning is not None:
        return trial.tuning.n_threads, trial.tuning.n_threads_batch
    n_cores = min(host.n_cpu, host.n_cpu_physical or host.n_cpu)
    return n_cores, n_cores


def _layers_by_device(trial: Trial) -> tuple[float, ...]:
    """Return how many layers each of several devices has, the output layer counted.

    A device's share of the layers could be said as a fraction; but rounded in an argument it can move a layer across.
    """
    config, n_layer = trial.config, trial.candidate.architecture.n_layer
    if len(config.shares) < 2:  # noqa: PLR2004 - one device has nothing to split
        return ()
    placement = place_layers(n_layer, config.n_gpu_layers, config.shares)
    if placement.output is None:
        return (1.0,) * len(config.shares)  # nothing is on any device, and zeros would ask for the engine's default
    homes = (*placement.blocks, placement.output)
    return tuple(float(homes.count(idx)) for idx in range(len(config.shares)))


def _without_idle_workers(trial: Trial, ask: Ask) -> Trial:
    """Return the trial without workers that would hold no layer: a GPU still speeds up prompts then, they only add a risk."""
    if trial.target.backend is not Backend.RPC or trial.config.n_gpu_layers:
        return trial
    return try_shape(trial.candidate, ask, trial.target.first(0), replace(trial.shape, shares=()))


def build_plan(
    trial: Trial, ask: Ask, inventory: Inventory, lowered: tuple[str, ...] = (), candidates: tuple[Candidate, ...] = ()
) -> Plan:
    """Return the plan of a trial, spare host memory shared out; ``candidates`` are what it was chosen from."""
    trial = _without_idle_workers(trial, ask)
    config, target = trial.config, trial.target
    cache_ram, n_checkpoints, checkpoints_bytes = _serving_extras(trial)
    footprint = replace(
        trial.footprint,
        host=replace(trial.footprint.host, prompt_cache_bytes=cache_ram, checkpoints_bytes=checkpoints_bytes),
    )
    n_threads, n_threads_batch = _threads(trial, ask)
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
        n_threads_batch=n_threads_batch,
        address=ask.address,
        footprint=footprint,
        budgets=target.known_budgets,
        artifact=replace(artifact, spec=None),
        engine_devices=target.engine_devices,
        tensor_split=_layers_by_device(trial),
        op_offload=config.op_offload,
        swa_full=config.swa_full,
        cache_ram_bytes=cache_ram,
        n_ctx_checkpoints=n_checkpoints,
        speed=trial.speed,
        given_up=(*lowered, *list_losses(trial, ask, inventory, candidates)),
        notes=_notes(trial, inventory),
        basis=bases_of(trial, inventory),
    )
