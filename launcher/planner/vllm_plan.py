"""A trial of vLLM's as the plan that is handed on: every value explicit, memories by host, figures with what they rest on.

It must not choose between trials, nor look for one.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import (
    HOST_MEMORY,
    Basis,
    Budget,
    CacheType,
    Cluster,
    Device,
    Engine,
    Footprint,
    HostUse,
    Inventory,
    Machines,
    MemoryUse,
    Plan,
    Provenance,
    Speed,
    VllmTerms,
)
from launcher.planner.abilities import list_passed_over
from launcher.planner.ask import Ask
from launcher.planner.basis import basis_of_free
from launcher.planner.copies import host_bytes
from launcher.planner.footprint.vllm import (
    HOST_BYTES,
    VllmChoice,
    context_bytes,
    weakest_capability,
)
from launcher.planner.footprint.vllm_support import activation_dtype
from launcher.planner.forms import Form
from launcher.planner.hosts import hosts_of
from launcher.planner.losses import forced_speed
from launcher.planner.rivals import find_vllm
from launcher.planner.target import device_budget, host_budget
from launcher.units import format_bytes


class VllmTrial(Struct, frozen=True, kw_only=True):
    """One form of a model under one configuration that fits, with what it would give."""

    form: Form
    choice: VllmChoice
    speed: Speed
    why: str = ""
    """Why this engine was chosen, where another one was in question."""

    @property
    def quantization(self) -> str:
        """The written name of the weights' quantization."""
        return self.form.artifact.quantization

    @property
    def engine(self) -> Engine:
        """Which engine it is for."""
        return Engine.VLLM

    @property
    def kl(self) -> float:
        """Loss of quality of the weights, in nats; a plan that was chosen among others has its cache in 16 bits."""
        return self.form.kl

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the model runs on the host: there is no other way with vLLM."""
        return True

    @property
    def weights_bytes(self) -> int:
        """Size of the weights."""
        return self.form.weights_bytes


def host_use_on_cpu(choice: VllmChoice, weights_bytes: int) -> HostUse:
    """Return what is held in host memory by an engine that computes there."""
    rank = choice.estimate.ranks[0]
    return HostUse(
        weights_bytes=rank.weights_bytes,
        kv_cache_bytes=rank.kv_cache_bytes,
        compute_bytes=HOST_BYTES + rank.activation_bytes,
        resident_mmap_bytes=weights_bytes,
    )


def assemble_vllm_plan(
    trial: VllmTrial, ask: Ask, machines: Machines, lowered: tuple[str, ...] = (), *, replicas: int = 1
) -> Plan:
    """Return the plan of a trial in llama.cpp's words; what has none there stands in ``vllm`` and in fields of its own."""
    choice, artifact = trial.choice, trial.form.artifact
    config, on_gpus = choice.config, bool(choice.devices)
    hosts = hosts_of(machines)
    n_cpu = hosts[choice.ranks.hosts[0] if on_gpus else 0].host.n_cpu
    footprint, budgets = _memories(trial, hosts, is_cluster=isinstance(machines, Cluster))
    n_ctx = ask.settings.n_ctx or ask.n_ctx_per_request * ask.n_parallel
    return Plan(
        model=ask.model,
        engine=Engine.VLLM,
        install=find_vllm(machines),
        format=artifact.format,
        quantization=artifact.quantization,
        n_ctx=n_ctx,
        n_ctx_per_request=ask.n_ctx_per_request,
        n_parallel=ask.n_parallel,
        kv_unified=True,
        n_batch=config.max_num_batched_tokens,
        n_ubatch=config.max_num_batched_tokens,
        n_layer=choice.model.n_layer,
        n_gpu_layers=choice.model.n_layer + 1 if on_gpus else 0,
        n_cpu_moe=0,
        cache_type_k=CacheType.BF16,
        cache_type_v=CacheType.BF16,
        flash_attn=True,
        n_threads=n_cpu,
        n_threads_batch=n_cpu,
        address=ask.address,
        footprint=footprint,
        budgets=budgets,
        tensor_parallel=config.tensor_parallel_size,
        pipeline_parallel=config.pipeline_parallel_size,
        replicas=replicas,
        memory_utilization=config.gpu_memory_utilization if on_gpus else None,
        cuda_graphs=not config.enforce_eager,
        artifact=replace(artifact, spec=None),
        engine_devices=tuple(f"cuda:{idx}" for idx in range(len(choice.devices))),
        vllm=_terms(trial, hosts),
        speed=trial.speed,
        given_up=(*lowered, *choice.given_up, *forced_speed(trial.speed, ask)),
        notes=tuple(_notes(trial, machines)),
        basis=tuple(_bases(trial, machines)),
    )


def _memories(
    trial: VllmTrial, hosts: Sequence[Inventory], *, is_cluster: bool
) -> tuple[Footprint, tuple[Budget, ...]]:
    """Return what is held in each memory and what each can give: devices by rank, then the hosts of the stages in turn."""
    choice = trial.choice
    if not choice.devices:
        use = host_use_on_cpu(choice, trial.weights_bytes)
        return Footprint(devices=(), host=use), (host_budget(hosts[0].host),)
    taken_bytes = context_bytes(choice.config.n_rank)
    of_rank = [slot.host_idx for slot in choice.ranks.slots for _ in slot.devices]
    names = [host.name if is_cluster else None for host in hosts]
    ranks = list(zip(choice.estimate.ranks, choice.ranks.devices, of_rank, strict=True))
    uses = [
        MemoryUse(
            name=rank.name,
            weights_bytes=rank.weights_bytes,
            kv_cache_bytes=rank.kv_cache_bytes,
            compute_bytes=rank.activation_bytes + rank.graph_bytes + rank.non_torch_bytes,
            host=names[idx],
        )
        for rank, _, idx in ranks
    ]
    budgets = [replace(device_budget(device, taken_bytes), host=names[idx]) for _, device, idx in ranks]
    on_host = []
    for idx, n_bytes in host_bytes(choice.ranks).items():
        here = sum(rank.weights_bytes for rank, _, at in ranks if at == idx)
        resident = here if is_cluster else trial.weights_bytes
        on_host.append(HostUse(compute_bytes=n_bytes, resident_mmap_bytes=resident, host=names[idx]))
        name = f"{names[idx]}/{HOST_MEMORY}" if is_cluster else HOST_MEMORY
        budgets.append(replace(host_budget(hosts[idx].host), name=name, host=names[idx]))
    return Footprint(devices=tuple(uses), host=on_host[0], further_hosts=tuple(on_host[1:])), tuple(budgets)


def _terms(trial: VllmTrial, hosts: Sequence[Inventory]) -> VllmTerms:
    """Return a trial's configuration in vLLM's words."""
    choice = trial.choice
    devices = [(device, hosts[slot.host_idx]) for slot in choice.ranks.slots for device in slot.devices]
    return VllmTerms(
        dtype=activation_dtype(trial.form.spec, weakest_capability(choice.ranks.devices)),
        kv_cache_dtype=choice.config.kv_cache_dtype,
        kv_cache_tokens=choice.estimate.kv_tokens,
        kv_cache_memory_bytes=choice.config.kv_cache_memory_bytes,
        learnt_bytes=choice.learnt_bytes,
        visible_devices=tuple(_number(device, host) for device, host in devices),
    )


def _number(device: Device, host: Inventory) -> str:
    """Return CUDA's word for a GPU: its place in the order of bus addresses, which the driver's list has; a slice's name."""
    if device.uuid is not None and device.uuid.startswith("MIG-"):
        return device.uuid
    alike = [other.name for other in host.devices if other.kind is device.kind]
    return str(alike.index(device.name))


def _notes(trial: VllmTrial, machines: Machines) -> Iterable[str]:
    if trial.why:
        yield trial.why
    if not trial.choice.devices:
        yield "on the CPU, without compiling the model first: a start of half a minute instead of minutes"
    yield f"room for {trial.choice.estimate.max_concurrency:.1f} requests of full length at once"
    if isinstance(machines, Cluster):
        yield from machines.notes
        yield "a Ray cluster of these machines serves it: `launch serve` with `--cluster`"
    if any(host.engines is None for host in hosts_of(machines)):
        whose = "machine's" if isinstance(machines, Inventory) else "machines'"
        yield f"the {whose} engines are unknown: vllm is assumed to be there"
    for host in hosts_of(machines):
        yield from list_passed_over(host.engines or ())


def _bases(trial: VllmTrial, machines: Machines) -> Iterable[Basis]:
    """Yield the figures of the plan's text, each with what it rests on."""
    choice = trial.choice
    yield Basis(figure="weights", provenance=trial.form.spec.provenance, text="tensors and config.json, per rank")
    for note in choice.estimate.notes:
        yield Basis(figure="compute", provenance=note.provenance, text=note.text)
    processes = sum(host_bytes(choice.ranks).values()) if choice.devices else host_use_on_cpu(choice, 0).compute_bytes
    host = f"{format_bytes(processes)} of host memory for its processes"
    yield Basis(figure="compute", provenance=Provenance.ASSUMED, text=host)
    yield basis_of_free(machines)
    where = "one such GPU are taken over, and what GPUs cost each other" if choice.devices else "a CPU are taken over"
    speed = f"rates of llama.cpp on {where}"
    yield Basis(figure="speed", provenance=Provenance.ASSUMED, text=speed)
    if trial.speed.prompt_tps is not None:
        yield Basis(figure="prompts", provenance=Provenance.ASSUMED, text="the same")
    if isinstance(machines, Cluster) and len(set(choice.ranks.hosts)) > 1:
        network = machines.network
        gbit_per_s, wait_us = network.bandwidth_bytes_per_s * 8 / 1e9, network.latency_s * 1e6
        text = f"{gbit_per_s:.3g} Gbit/s and {wait_us:.3g} us between two machines"
        yield Basis(figure="network", provenance=network.provenance, text=text)
