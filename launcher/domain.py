"""The nouns that every room shares: model, machine, wish, plan, refusal, command.

All are immutable values with keyword-only fields; they validate nothing (borders do) and do nothing (rooms do).
Words are llama.cpp's where it has one; GLOSSARY.md maps them to vLLM's and to Hugging Face's. Sizes are ``int`` bytes.
In a ``Request`` ``None`` means "you choose"; in an ``Inventory`` it means "unknown".
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, TypeAlias

from msgspec import Struct

from launcher.tensor_types import TensorType, tensor_bytes

SCHEMA_VERSION: Final = 2
"""Of every snapshot that is written to disk or printed as JSON; raised when a field goes, or changes its name or meaning
(``state_schema.py`` then says how older state is brought forward), and not for a new one that may be absent.

2: a plan may name memories of several machines (``node0/gpu0``), and its last budgets are then of several hosts.
"""

READABLE_VERSIONS: Final = frozenset({1, 2})
"""Of snapshots that are read back: what version 1 says is a part of what version 2 can say."""


class Noun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the nouns: immutable, slotted, keyword-only, and strict when read back from JSON."""


# --- Models -----------------------------------------------------------------------------------------------------


class WeightsFormat(StrEnum):
    """The container of the weights; it decides which engines can load them."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"


class Provenance(StrEnum):
    """Where a figure or a description comes from, from strongest to weakest."""

    MEASURED = "measured"
    READ = "read"
    PUBLISHED = "published"
    DERIVED = "derived"
    ASSUMED = "assumed"


MetadataValue: TypeAlias = bool | int | float | str | tuple[bool | int | float | str, ...]
"""A value of a header. Arrays hold one kind of element; as a type they are one, for JSON cannot tell them apart."""


class TensorInfo(Noun, frozen=True):
    """One tensor of the weights: its name, its extents in ggml's order (row first), and its element type."""

    name: str
    shape: tuple[int, ...]
    type: TensorType

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        n = 1
        for extent in self.shape:
            n *= extent
        return n

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor's data without alignment padding."""
        return tensor_bytes(self.type, self.shape)


class ModelSpec(Noun, frozen=True):
    """What the header of the weights says: architecture, metadata, tensors. Never a weight.

    ``metadata`` has the file's own keys (``gemma2.block_count``); arrays of the tokenizer are reduced to their
    length under ``<key>.length`` (``tokenizer.ggml.tokens.length`` is the size of the vocabulary).
    """

    architecture: str
    format: WeightsFormat
    metadata: Mapping[str, MetadataValue]
    tensors: tuple[TensorInfo, ...]
    provenance: Provenance = Provenance.READ

    @property
    def weights_bytes(self) -> int:
        """Sum of all tensors' bytes."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def n_parameters(self) -> int:
        """Sum of all tensors' elements."""
        return sum(tensor.n_elements for tensor in self.tensors)


class ArtifactFile(Noun, frozen=True):
    """One file of an artifact; ``size_bytes`` and ``sha256`` are ``None`` where nobody published them."""

    name: str
    size_bytes: int | None = None
    sha256: str | None = None


class Artifact(Noun, frozen=True):
    """One downloadable form of a model: a format at a quantization, with every shard.

    ``quantization`` is the written name in lower case (``q5_k_m``, ``awq-int4``, ``fp8``). ``local_path`` is the
    first shard or the folder on this machine, in another program's ``store`` where that is named ("Ollama's store");
    ``package`` an installed Python package that carries the weights.
    """

    format: WeightsFormat
    quantization: str
    repository: str | None = None
    files: tuple[ArtifactFile, ...] = ()
    local_path: str | None = None
    store: str | None = None
    package: str | None = None
    url: str | None = None
    """The address of the first file, without a query, where no hub has it; the others lie beside it."""
    spec: ModelSpec | None = None


# --- Wishes -----------------------------------------------------------------------------------------------------


class Engine(StrEnum):
    """The inference servers that can be planned for."""

    LLAMA_SERVER = "llama-server"
    LLAMA_CPP_PYTHON = "llama-cpp-python"
    VLLM = "vllm"


class Objective(StrEnum):
    """What is worth most when not everything fits."""

    QUALITY = "quality"
    SPEED = "speed"
    CONTEXT = "context"


class CacheType(StrEnum):
    """Element types of the KV cache that llama.cpp accepts."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"
    Q4_1 = "q4_1"
    IQ4_NL = "iq4_nl"
    Q5_0 = "q5_0"
    Q5_1 = "q5_1"

    @property
    def tensor_type(self) -> TensorType:
        """The element type whose packing this cache has."""
        return TensorType[self.name]


class Settings(Noun, frozen=True):
    """What a user may fix, from a profile's ``[pin]`` table or from the command line; ``None`` means "you choose".

    ``n_ctx`` is llama-server's total over all slots; ``n_ctx_per_request`` is what one request can use. At most one
    of the two is set.
    """

    quantization: str | None = None
    engine: Engine | None = None
    n_ctx: int | None = None
    n_ctx_per_request: int | None = None
    n_parallel: int | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    n_gpu_layers: int | None = None
    n_cpu_moe: int | None = None
    cache_type_k: CacheType | None = None
    cache_type_v: CacheType | None = None
    flash_attn: bool | None = None
    n_threads: int | None = None

    @property
    def fix_context(self) -> bool:
        """Whether the context is fixed, as a total or for each request."""
        return self.n_ctx is not None or self.n_ctx_per_request is not None


class Limits(Noun, frozen=True):
    """Floors below which a plan is refused rather than degraded."""

    min_quantization: str | None = None
    min_n_ctx_per_request: int | None = None
    min_generation_tps: float | None = None


class Wishes(Noun, frozen=True):
    """What a profile asks for; the planner may give less, down to the limits, and says so."""

    n_ctx_per_request: int = 8192
    n_parallel: int = 1
    objective: Objective = Objective.QUALITY


class Rung(StrEnum):
    """What a step down the ladder gives up; ``launcher.planner.ladder`` says how."""

    UBATCH = "ubatch"
    CACHE_TYPE = "cache-type"
    PARALLEL = "parallel"
    CONTEXT = "context"
    OFFLOAD = "offload"
    QUANTIZATION = "quantization"


class Fallback(Noun, frozen=True):
    """What happens when memory ran out although the plan said otherwise: the rungs, cheapest loss first.

    A rung that is left out is never taken. ``step_up`` lets the supervisor go back by itself once there is room again.
    """

    ladder: tuple[Rung, ...] = tuple(Rung)
    step_up: bool = False


class Address(Noun, frozen=True):
    """Where the endpoint listens. A ``port`` of ``None`` lets the launcher take a free one."""

    host: str = "127.0.0.1"
    port: int | None = 8080


class Profile(Noun, frozen=True):
    """A deployment profile: a model's artifacts and what its user wants of it.

    ``license`` and ``urls`` are of the model; ``source`` is the file that the profile was read from. ``asked`` is what a
    command has to call it where that is not its name: a path, an address, ``hf:OWNER/NAME``.
    """

    name: str
    artifacts: tuple[Artifact, ...]
    title: str = ""
    aliases: tuple[str, ...] = ()
    wishes: Wishes = Wishes()
    limits: Limits = Limits()
    pins: Settings = Settings()
    engines: tuple[Engine, ...] = (Engine.LLAMA_SERVER, Engine.LLAMA_CPP_PYTHON)
    address: Address = Address()
    fallback: Fallback = Fallback()
    license: str = ""
    urls: tuple[str, ...] = ()
    source: str = ""
    asked: str = ""


class Request(Noun, frozen=True):
    """One question to the planner: a profile, what the user fixed on top of it, and how firmly to ask."""

    profile: Profile
    settings: Settings = Settings()
    force: bool = False


# --- Machines ---------------------------------------------------------------------------------------------------


class DeviceKind(StrEnum):
    """The programming interface by which an engine reaches a device."""

    CUDA = "cuda"
    ROCM = "rocm"
    VULKAN = "vulkan"
    METAL = "metal"
    SYCL = "sycl"
    RPC = "rpc"
    OTHER = "other"


class DeviceProcess(Noun, frozen=True):
    """A process that holds memory of a device."""

    pid: int
    name: str | None = None
    used_bytes: int | None = None


POWER_CAP: Final = "power cap"
"""Why clocks are lower than they could be on most GPUs that work hard; every other reason is out of the ordinary."""


class DeviceLoad(Noun, frozen=True):
    """What a device does at one moment. Shares are 0 to 1; what its driver does not tell is ``None``."""

    name: str
    total_bytes: int
    free_bytes: int
    processes: tuple[DeviceProcess, ...] = ()
    utilization: float | None = None
    """Share of the last interval in which it computed anything."""
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: int | None = None
    throttled: tuple[str, ...] = ()
    """Why its clocks are lower than they could be, empty where they are not."""


class Device(Noun, frozen=True):
    """One GPU or other accelerator with memory of its own. ``name`` is ours (``gpu0``)."""

    name: str
    kind: DeviceKind
    description: str
    total_bytes: int
    free_bytes: int | None = None
    bandwidth_bytes_per_s: float | None = None
    pcie_bytes_per_s: float | None = None
    compute_capability: tuple[int, int] | None = None
    uuid: str | None = None
    bus_id: str | None = None
    processes: tuple[DeviceProcess, ...] = ()

    @property
    def known_free_bytes(self) -> int:
        """What is free; all of it where nobody said."""
        return self.total_bytes if self.free_bytes is None else self.free_bytes


class Host(Noun, frozen=True):
    """The machine around the devices. ``n_cpu`` is what this process may use: affinity and cgroup quota counted."""

    total_bytes: int
    available_bytes: int
    swap_total_bytes: int = 0
    swap_free_bytes: int = 0
    cgroup_limit_bytes: int | None = None
    cgroup_used_bytes: int | None = None
    n_cpu: int = 1
    n_cpu_physical: int | None = None
    cpu_quota: float | None = None
    cpu_name: str | None = None
    isa: tuple[str, ...] = ()
    bandwidth_bytes_per_s: float | None = None
    free_disk_bytes: int | None = None
    address_space_bytes: int | None = None
    """What one process may map (``RLIMIT_AS``), where that is limited: an engine inherits it."""

    @property
    def free_bytes(self) -> int:
        """What a new process can take: available memory, under the limits of cgroup and address space."""
        left = [self.available_bytes]
        if self.cgroup_limit_bytes is not None:
            left.append(self.cgroup_limit_bytes - (self.cgroup_used_bytes or 0))
        if self.address_space_bytes is not None:
            left.append(self.address_space_bytes)
        return max(0, min(left))

    @property
    def limit_bytes(self) -> int:
        """What a process could ever have here: the machine's memory, or the least limit below it."""
        limits = (self.cgroup_limit_bytes, self.address_space_bytes)
        return min([self.total_bytes, *(limit for limit in limits if limit is not None)])


class EngineDevice(Noun, frozen=True):
    """A device as one engine lists it: its own name for it (``CUDA0``, ``Vulkan0``) and the memory it sees."""

    name: str
    description: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    device: str | None = None
    """Our name of the same physical device (``gpu0``), where it was recognised."""


class EngineInstall(Noun, frozen=True):
    """One engine found on this machine: how it is started, its version, and what this build can do.

    ``argv`` is the start of its command line. ``build`` identifies the binary for whatever is remembered about it.
    ``flags`` are the long options its ``--help`` lists; ``devices`` those it lists itself. ``holes`` are the published
    faults of this version that whoever writes a model or a request could use, each with its id and the version without it.
    """

    engine: Engine
    argv: tuple[str, ...]
    version: str | None = None
    build: str | None = None
    flags: frozenset[str] = frozenset()
    devices: tuple[EngineDevice, ...] = ()
    env: Mapping[str, str] = {}
    holes: tuple[str, ...] = ()
    workers: tuple[str, ...] = ()
    """Addresses of the RPC workers that it is to be started with, in the order that numbers their devices."""

    @property
    def has_gpu(self) -> bool:
        """Whether this build reaches any device."""
        return bool(self.devices)


class Inventory(Noun, frozen=True):
    """A machine as the planner sees it: measured here, or read from a file."""

    name: str
    host: Host
    devices: tuple[Device, ...] = ()
    engines: tuple[EngineInstall, ...] | None = None
    """``None`` where the machine's engines are unknown (a reference machine); empty where none was found."""
    provenance: Provenance = Provenance.MEASURED
    is_cloud: bool = False
    """Whether a machine like it is offered by the hour: what one who does not own it can still have."""
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION


class Network(Noun, frozen=True):
    """What carries data from one machine to another: bytes per second one way, and seconds until a message arrives."""

    bandwidth_bytes_per_s: float = 1_250_000_000.0
    """Assumed where nobody measured: 10 Gbit/s, which most networks between servers give."""
    latency_s: float = 50e-6
    """Assumed where nobody measured: of TCP between two machines on one switch."""
    provenance: Provenance = Provenance.ASSUMED


class Cluster(Noun, frozen=True):
    """Several machines, each with its own memory, and the network between them.

    It is no ``Inventory``, so that whatever knows one host only has to say which it takes. ``nodes`` have different names.
    """

    name: str
    nodes: tuple[Inventory, ...]
    network: Network = Network()
    provenance: Provenance = Provenance.MEASURED
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def is_cloud(self) -> bool:
        """Whether all of its machines are offered by the hour."""
        return all(node.is_cloud for node in self.nodes)


Machines: TypeAlias = Inventory | Cluster
"""Where a plan is made for: one machine or several."""


# --- Measurements -----------------------------------------------------------------------------------------------


class MeasuredRates(Noun, frozen=True):
    """What one memory of this machine delivered to a real engine: ``name`` is a device's (``gpu0``) or ``host``.

    ``efficiency`` is the share of ``bandwidth_bytes_per_s`` that generation reached; ``prompt_flops`` the operations
    per second that prompt processing reached, ``None`` where several memories shared the work.
    """

    name: str
    bandwidth_bytes_per_s: float
    efficiency: float
    prompt_flops: float | None = None


class Tuning(Noun, frozen=True):
    """The fastest settings that were found for one model in one engine's build, and the rates they gave.

    The weights are recognised by architecture and bytes, the engine by its ``build``; both rates are medians of a
    request of ``n_prompt`` and ``n_generated`` tokens.
    """

    engine: Engine
    build: str
    architecture: str
    weights_bytes: int
    n_gpu_layers: int
    n_cpu_moe: int
    n_threads: int
    n_threads_batch: int
    n_batch: int
    n_ubatch: int
    flash_attn: bool
    prompt_tps: float
    generation_tps: float
    n_prompt: int
    n_generated: int
    measured_at: float

    @property
    def request_s(self) -> float:
        """Seconds of a request of the measured size: what tunings of one model are compared by."""
        return self.n_prompt / self.prompt_tps + self.n_generated / self.generation_tps


class Lesson(StrEnum):
    """How a correction was learnt."""

    MEASURED = "measured"
    """The engine ran, and this is what it held beyond the plan."""
    OUT_OF_MEMORY = "out-of-memory"
    """It ran out of memory, or would have: what must be kept beside plan and margin is at least this."""


class Correction(Noun, frozen=True):
    """What one engine's build took of one memory beyond what was planned for one model.

    ``memory`` is a device's name (``gpu0``) or ``host``; ``model`` the shape of the model whatever its quantization;
    ``configuration`` the class of settings that what is not
    accounted for depends on (``launcher.planner.corrections``). ``unaccounted_bytes`` is measured minus planned and may
    be negative.
    """

    memory: str
    build: str
    model: str
    configuration: str
    lesson: Lesson
    planned_bytes: int
    unaccounted_bytes: int
    learnt_at: float
    limit_bytes: int | None = None
    """Of running out: what could be had of this memory at most, all limits counted; ``None`` where it does not matter."""
    missing_bytes: int = 0
    """Of running out: by so much more the limit has to be before it may be tried again."""

    @property
    def holds_upto_bytes(self) -> float:
        """The limit up to which it counts; infinite where it always does."""
        return float("inf") if self.limit_bytes is None else self.limit_bytes + self.missing_bytes


class Calibration(Noun, frozen=True):
    """What was measured on one machine. ``machine`` identifies it: figures of another one are not used."""

    machine: str
    rates: tuple[MeasuredRates, ...] = ()
    tunings: tuple[Tuning, ...] = ()
    corrections: tuple[Correction, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def rates_of(self, name: str) -> MeasuredRates | None:
        """Return what was measured of one memory."""
        return next((rates for rates in self.rates if rates.name == name), None)


# --- Plans ------------------------------------------------------------------------------------------------------


HOST_MEMORY: Final = "host"
"""The name of the host's memory, where memories go by name; a device's is its own."""


class MemoryUse(Noun, frozen=True):
    """What the engine holds on one device, as llama-server's own breakdown divides it. Recurrent state is KV cache."""

    name: str
    weights_bytes: int = 0
    kv_cache_bytes: int = 0
    compute_bytes: int = 0
    host: str | None = None
    """The machine that has the device, in a plan for several."""

    @property
    def total_bytes(self) -> int:
        """Sum of the parts."""
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes


class HostUse(Noun, frozen=True):
    """What the engine holds in host memory.

    The first three are the engine's own rows; the last three are not in its breakdown: the prompt cache and the
    context checkpoints it may fill while serving, and pages of the weights file that are resident only as page cache.
    """

    weights_bytes: int = 0
    kv_cache_bytes: int = 0
    compute_bytes: int = 0
    prompt_cache_bytes: int = 0
    checkpoints_bytes: int = 0
    resident_mmap_bytes: int = 0
    host: str | None = None
    """The machine whose memory it is, in a plan for several."""

    @property
    def engine_bytes(self) -> int:
        """Sum of the rows that the engine itself reports."""
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes

    @property
    def total_bytes(self) -> int:
        """Sum of the parts that cannot be given back under pressure: page cache is left out."""
        return self.engine_bytes + self.prompt_cache_bytes + self.checkpoints_bytes


class Footprint(Noun, frozen=True):
    """Predicted memory per device and host; ``further_hosts`` are of a plan over several machines."""

    devices: tuple[MemoryUse, ...]
    host: HostUse
    further_hosts: tuple[HostUse, ...] = ()

    @property
    def hosts(self) -> tuple[HostUse, ...]:
        """What is held in each host's memory."""
        return self.host, *self.further_hosts

    @property
    def weights_bytes(self) -> int:
        """Size of the weights, on devices and in host memory together."""
        on_devices = sum(use.weights_bytes for use in self.devices)
        return on_devices + sum(use.weights_bytes for use in self.hosts)

    @property
    def kv_cache_bytes(self) -> int:
        """Size of the cache, on devices and in host memory together."""
        on_devices = sum(use.kv_cache_bytes for use in self.devices)
        return on_devices + sum(use.kv_cache_bytes for use in self.hosts)


class Budget(Noun, frozen=True):
    """What a plan may use of one memory: free bytes less the margin that stays free and the driver's residual."""

    name: str
    total_bytes: int
    free_bytes: int
    margin_bytes: int
    residual_bytes: int = 0
    residual_learnt: bool = False
    """Whether the residual was learnt from runs on this machine; else it is assumed."""
    host: str | None = None
    """The machine that has the memory, in a plan for several."""

    @property
    def budget_bytes(self) -> int:
        """Bytes that a plan may use."""
        return max(0, self.free_bytes - self.margin_bytes - self.residual_bytes)


class Speed(Noun, frozen=True):
    """Predicted tokens per second of one request, and what the prediction rests on."""

    generation_tps: float
    basis: Provenance
    prompt_tps: float | None = None


class Condition(StrEnum):
    """Under what a verdict holds."""

    NOW = "now"
    AFTER_OTHERS_LEAVE = "after-others-leave"
    WITH_ANOTHER_DEVICE = "with-another-device"
    WITH_ANOTHER_ENGINE = "with-another-engine"


class Verdict(Noun, frozen=True):
    """The answer under one condition. All are given where they differ: none where now is as good as it gets."""

    condition: Condition
    fits: bool
    text: str
    machine: str | None = None
    """The reference machine that has the other device."""


class Basis(Noun, frozen=True):
    """What a figure of a plan rests on: ``figure`` is its name in the plan's text, ``text`` says whence it is."""

    figure: str
    provenance: Provenance
    text: str


class VllmTerms(Noun, frozen=True):
    """What a plan for vLLM fixes that llama.cpp does not know at all, under vLLM's own names.

    On GPUs the cache is what the plan's ``memory_utilization`` leaves, on a CPU it is ``kv_cache_memory_bytes``: the other
    of the two is ``None``.
    """

    dtype: str
    kv_cache_tokens: int
    """What the engine should say of its cache: requests of full length that it holds at once times that length."""
    kv_cache_dtype: str = "auto"
    kv_cache_memory_bytes: int | None = None
    visible_devices: tuple[str, ...] = ()
    """The GPUs as CUDA numbers or names them, in the order of the plan's; empty on a CPU."""
    learnt_bytes: int = 0
    """What each GPU's share holds beyond the prediction, as earlier starts here told; it is counted in."""


class Plan(Noun, frozen=True, tag="plan", tag_field="outcome"):
    """A decision: every value that the engine's memory depends on, with the prediction that justifies it."""

    model: str
    engine: Engine
    format: WeightsFormat
    quantization: str
    n_ctx: int
    n_ctx_per_request: int
    n_parallel: int
    kv_unified: bool
    n_batch: int
    n_ubatch: int
    n_layer: int
    n_gpu_layers: int
    n_cpu_moe: int
    cache_type_k: CacheType
    cache_type_v: CacheType
    flash_attn: bool
    n_threads: int
    n_threads_batch: int
    address: Address
    footprint: Footprint
    budgets: tuple[Budget, ...]
    """Of the memories in ``footprint``: its devices, then its hosts."""
    artifact: Artifact
    install: EngineInstall | None = None
    engine_devices: tuple[str, ...] = ()
    """The engine's own names of the devices that are used, in the order of ``footprint.devices``; empty: CPU only."""
    tensor_split: tuple[float, ...] = ()
    """Layers of each of several devices; any numbers in the same proportion mean the same."""
    mmap: bool = True
    op_offload: bool = True
    swa_full: bool = False
    cache_ram_bytes: int = 0
    n_ctx_checkpoints: int = 0
    tensor_parallel: int = 1
    """Devices that share each layer; with more than one, and with those below, only vLLM's plans."""
    pipeline_parallel: int = 1
    """Stages that follow each other, each with layers of its own; ``footprint.devices`` has them in order."""
    replicas: int = 1
    """Whole copies that the cluster has room for; ``footprint`` is of the first."""
    memory_utilization: float | None = None
    """Share of each device's memory that vLLM takes; ``None`` for other engines."""
    cuda_graphs: bool = True
    """Whether vLLM captures CUDA graphs, which take memory and save time."""
    vllm: VllmTerms | None = None
    """``None`` for any other engine."""
    speed: Speed | None = None
    given_up: tuple[str, ...] = ()
    """What the plan leaves of the wishes, one fact per line, dearest first; empty when all was granted."""
    notes: tuple[str, ...] = ()
    """Assumptions and provenance that the reader of the plan needs."""
    verdicts: tuple[Verdict, ...] = ()
    basis: tuple[Basis, ...] = ()
    """What each figure rests on: measured, read, published, derived or assumed."""
    schema_version: int = SCHEMA_VERSION

    @property
    def workers(self) -> tuple[str, ...]:
        """Addresses of the RPC workers that hold a part of the model."""
        if self.install is None:
            return ()
        used = {device.description for device in self.install.devices if device.name in self.engine_devices}
        return tuple(address for address in self.install.workers if address in used)

    @property
    def kv_cache_dtype(self) -> str:
        """The type of vLLM's cache, by its own names; ``auto``, the model's own, for other engines too."""
        return "auto" if self.vllm is None else self.vllm.kv_cache_dtype

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the model that could be on a device runs on the CPU."""
        return not self.footprint.devices or (self.n_gpu_layers > self.n_layer and not self.n_cpu_moe)


class RefusalCode(StrEnum):
    """Why the answer is no."""

    EXCEEDS_MEMORY = "exceeds-memory"
    EXCEEDS_DEVICE_MEMORY = "exceeds-device-memory"
    EXCEEDS_HOST_MEMORY = "exceeds-host-memory"
    EXCEEDS_CONTEXT = "exceeds-context"
    EXCEEDS_DISK = "exceeds-disk"
    BELOW_SPEED_FLOOR = "below-speed-floor"
    BELOW_QUALITY_FLOOR = "below-quality-floor"
    NO_SUCH_QUANTIZATION = "no-such-quantization"
    NO_ENGINE = "no-engine"
    ENGINE_TOO_OLD = "engine-too-old"
    UNSUPPORTED = "unsupported"


class Advice(Noun, frozen=True):
    """A way out that the planner has re-planned and found to fit: the words, and the arguments to paste."""

    text: str
    argv: tuple[str, ...]
    export_argv: tuple[str, ...] = ()
    """Of a machine that is rented: the command that writes what rents it and serves the same plan there."""


class Refusal(Noun, frozen=True, tag="refusal", tag_field="outcome"):
    """The request was understood and the answer is no: the facts, the reason, and checked ways to a yes."""

    code: RefusalCode
    model: str
    fact: str
    derivation: tuple[str, ...] = ()
    advice: tuple[Advice, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    needed_bytes: int | None = None
    available_bytes: int | None = None
    footprint: Footprint | None = None
    budgets: tuple[Budget, ...] = ()
    certain: bool = True
    """False where the refusal rests on an estimate, and so can be overridden with ``--force``."""
    schema_version: int = SCHEMA_VERSION


Outcome: TypeAlias = Plan | Refusal


# --- Running ----------------------------------------------------------------------------------------------------


class Command(Noun, frozen=True):
    """How to start an engine for a plan, and how to see that it is ready.

    ``ready_path`` answers 200 once the model is loaded; ``canary`` is the JSON body of a one-token completion that
    must then succeed at ``canary_path``. ``env`` is laid over the inherited environment. ``alive_path`` is answered in any
    way by an engine that lives, whatever it computes; ``None``: the same path.
    """

    argv: tuple[str, ...]
    address: Address
    ready_path: str
    canary_path: str
    canary_body: str
    alive_path: str | None = None
    env: Mapping[str, str] = {}
    expected_gpu_layers: int | None = None
    """Layers that the engine must report as offloaded; ``None`` where the engine does not tell."""
    expected_footprint: Footprint | None = None
    listed_model: str | None = None
    """The name that the engine must list as its model; ``None`` where the canary's name suffices."""
    tells_memory: bool = False
    """Whether the engine prints what it will hold before it allocates anything."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the endpoint's key, where one is required; never the key."""
    temp_env: str | None = None
    """Name of the environment variable for a temporary folder of its own, which is removed with it; ``None``: it needs none."""

    def __repr__(self) -> str:
        """Tell what is started, without the environment: it may hold a key."""
        return f"Command(argv={self.argv!r})"


class State(StrEnum):
    """The life of a served instance; ``launcher.supervisor.machine`` holds the transitions."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


class ProcessId(Noun, frozen=True):
    """A process that cannot be mistaken for a later one of the same number.

    ``start_time`` is field 22 of ``/proc/PID/stat``: clock ticks since the boot that ``boot_id`` names.
    """

    pid: int
    start_time: int
    boot_id: str


class ClusterApplication(Noun, frozen=True):
    """An application on a Ray cluster: the dashboard's address, and its name there."""

    url: str
    name: str


class InstanceRecord(Noun, frozen=True):
    """An instance as its supervisor last described it. Times ending in ``_at`` are seconds since 1970."""

    name: str
    state: State
    supervisor: ProcessId
    address: Address
    started_at: float
    changed_at: float
    reason: str | None = None
    details: tuple[str, ...] = ()
    guard: ProcessId | None = None
    engine: ProcessId | None = None
    ready_at: float | None = None
    n_restarts: int = 0
    n_ladder_steps: int = 0
    """How many steps below its first plan it serves."""
    story: tuple[str, ...] = ()
    """Of the last step: what happened, what was measured, what changed, what it costs."""
    offer: str | None = None
    """What it could give more by now, were it started again."""
    fetching: str | None = None
    """How far the download of its weights, or their comparison with a digest, has come, while that lasts."""
    slow: str | None = None
    """How far its engine is below the speed that was expected, while it is."""
    last_exit: str | None = None
    application: ClusterApplication | None = None
    """What Ray runs of it, where its engine is not on this machine."""
    log_path: str = ""
    plan: Plan | None = None
    schema_version: int = SCHEMA_VERSION


class InstanceView(Noun, frozen=True):
    """An instance as another process sees it: the record, corrected by whether its supervisor lives.

    ``record`` is ``None`` where the file cannot be understood; ``reason`` then says why.
    """

    name: str
    state: State
    path: str
    log_path: str
    supervisor_alive: bool
    reason: str | None = None
    record: InstanceRecord | None = None
    schema_version: int = SCHEMA_VERSION
