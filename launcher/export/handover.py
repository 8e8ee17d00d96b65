"""A plan as what is run on each machine: program, arguments, environment, GPUs, bytes.

The engine's settings are the command's that this release would start itself (``launcher.backends``); only where weights,
GPUs and network are differs on another machine. It must not know the formats of files.
"""

import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from launcher.backends import build_command, key_variable, llama_server
from launcher.domain import (
    Address,
    Command,
    Device,
    DeviceKind,
    Engine,
    EngineInstall,
    HostUse,
    Inventory,
    Machines,
    Plan,
)
from launcher.errors import UsageError
from launcher.export.images import LLAMA_BUILD, LLAMA_DEVICES, LLAMA_IMAGES, LLAMA_SERVER, VLLM_IMAGE, VLLM_VERSION
from launcher.planner.hosts import hosts_of
from launcher.units import GIB, MIB, pad

MODELS_PATH: Final = "/models"
"""Where a container finds weights that are mounted, read-only."""
CACHE_PATH: Final = "/cache"
"""Where a container keeps what it downloads and compiles."""
CACHE_ENV: Final = {"HF_HOME": f"{CACHE_PATH}/huggingface", "LLAMA_CACHE": f"{CACHE_PATH}/llama.cpp"}
"""What tells downloads so."""
MASTER_PORT: Final = 29501
"""vLLM's own default for the port by which its machines meet."""

_ONLY_OURS: Final = frozenset({"SPT_NOENV", "GGML_NO_BACKTRACE"})
"""What vLLM is given here that is of no use elsewhere: our supervisor recognises its processes by it, or it is llama.cpp's."""
_OFFLINE: Final = frozenset({"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"})
_SHM_BYTES_PER_GPU: Final = GIB
"""Assumed; vLLM's guide for Kubernetes gives 2 GiB to a pod. What is not used of it takes no memory."""


class Source(NamedTuple):
    """Where the weights come from: a repository of the Hugging Face hub, or a path that is mounted."""

    repository: str | None
    path: str | None
    is_file: bool

    @property
    def folder(self) -> str | None:
        """The folder that is mounted: the path itself, or what holds the file (and its further parts)."""
        if self.path is None or not self.is_file:
            return self.path
        return self.path.rpartition("/")[0] or "/"

    @property
    def mounted_path(self) -> str:
        """The path inside of a container."""
        return f"{MODELS_PATH}/{(self.path or '').rpartition('/')[2]}" if self.is_file else MODELS_PATH


class Surroundings(NamedTuple):
    """What an engine sees of its machine, by the format of the file that starts it."""

    has_own_gpus: bool
    """Only the planned GPUs, then numbered from 0."""
    has_mounts: bool
    """Weights with a path are at ``MODELS_PATH``."""
    is_container: bool
    """It listens on all of its interfaces, of which the file publishes one port, and keeps things in ``CACHE_PATH``."""


class Node(Struct, frozen=True, kw_only=True):
    """What runs on one machine. ``gpus`` are its GPUs as the driver numbers or names them, ``description`` what they are."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    gpus: tuple[str, ...]
    ranks: tuple[int, ...]
    """The places of its GPUs among all of the plan's."""
    description: str
    memory_bytes: int
    """What the plan uses of its memory with the margin, and with ``shm_bytes``."""
    shm_bytes: int
    has_further_gpus: bool


class Handover(Struct, frozen=True, kw_only=True):
    """A plan for other machines. ``slug`` is a name that every format takes; ``kind`` that of the GPUs, ``None`` without."""

    slug: str
    summary: tuple[str, ...]
    """What a reader of the file should know of the plan, a fact a line, without line breaks."""
    engine: Engine
    version: str
    image: str
    kind: DeviceKind | None
    key_variable: str
    source: Source
    weights_bytes: int
    nodes: tuple[Node, ...]
    host: str
    port: int


def hand_over(
    plan: Plan, machines: Machines, *, weights: str | None, address: Address, around: Surroundings
) -> Handover:
    """Return what runs where.

    Raises:
        UsageError: there is no image for the plan, or nothing says where its weights are.
    """
    if address.port is None:
        msg = "an exported file needs a port"
        raise UsageError(msg, help="give one, for example --port 8080")
    host = _ip_address(address.host)
    if plan.workers:
        msg = f"the plan of `{plan.model}` uses RPC workers, which no exported file starts"
        raise UsageError(msg, help="leave the workers out, or run it by `launch serve NAME --rpc ...`")
    source = _source(plan, weights)
    parts = _parts(plan, machines)
    kind, image = _image(plan, frozenset(kind for part in parts for kind in part.kinds))
    nodes = tuple(_node(plan, part, kind=kind, source=source, address=address, around=around) for part in parts)
    return Handover(
        slug=slug(plan.model),
        summary=_summary(plan, machines),
        engine=plan.engine,
        version=VLLM_VERSION if plan.engine is Engine.VLLM else LLAMA_BUILD,
        image=image,
        kind=kind,
        key_variable=key_variable(plan.engine),
        source=source,
        weights_bytes=plan.footprint.weights_bytes,
        nodes=nodes,
        host=host,
        port=address.port,
    )


def _ip_address(host: str) -> str:
    """Return the address to publish at: containers take no names."""
    try:
        return str(ip_address("127.0.0.1" if host == "localhost" else host.partition("%")[0]))
    except ValueError:
        msg = f"an exported file publishes at an IP address, not at `{printable(host)}`"
        raise UsageError(
            msg, help="leave --host out for this machine alone, or give an address, for example 0.0.0.0"
        ) from None


def slug(name: str) -> str:
    """Return a name of lower case letters, digits and dashes, at most 40, that begins with a letter."""
    safe = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return ("" if safe[:1].isalpha() else "model-") + safe[:34].strip("-") if safe else "model"


def printable(text: str) -> str:
    """Return a text for a line of a comment: what would end or hide the line is replaced."""
    return "".join(char if char.isprintable() else "?" for char in text)


def bracketed(host: str) -> str:
    """Return an address as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def check_words(words: Sequence[str]) -> None:
    """Refuse what no file can carry.

    Raises:
        UsageError: a word is empty, has a NUL, or is no text.
    """
    for word in words:
        if not word or "\0" in word or _is_no_text(word):
            msg = f"`{printable(word)}` cannot be written into a file as an argument"
            raise UsageError(msg, help="give the model, or its path, a name in plain text")


def _is_no_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return True
    return False


# --- Where ------------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """What of a plan is on one host: its devices with their places in the plan, and what they are."""

    name: str
    at: tuple[int, ...]
    gpus: tuple[str, ...]
    kinds: frozenset[DeviceKind]
    description: str
    has_further_gpus: bool
    use: HostUse
    spare_bytes: int


def _parts(plan: Plan, machines: Machines) -> list[_Part]:
    hosts = {host.name: host for host in hosts_of(machines)}
    budgets = plan.budgets[len(plan.footprint.devices) :]
    parts = []
    for use, budget in zip(plan.footprint.hosts, budgets, strict=True):
        machine = hosts[use.host] if use.host is not None else next(iter(hosts.values()))
        at = [idx for idx, device in enumerate(plan.footprint.devices) if device.host == use.host]
        named = {device.name: device for device in machine.devices}
        devices = [named[plan.footprint.devices[idx].name] for idx in at]
        kinds = frozenset(device.kind for device in devices)
        names = {device.description for device in devices}
        parts.append(
            _Part(
                name=machine.name,
                at=tuple(at),
                gpus=tuple(_number(plan, idx, device, machine) for idx, device in zip(at, devices, strict=True)),
                kinds=kinds,
                description=printable(" and ".join(sorted(names))),
                has_further_gpus=len([device for device in machine.devices if device.kind in kinds]) > len(at),
                use=use,
                spare_bytes=budget.margin_bytes + budget.residual_bytes,
            )
        )
    return parts


def _number(plan: Plan, idx: int, device: Device, machine: Inventory) -> str:
    """Return the driver's number of the device at a place in the plan; of vLLM's the plan has it."""
    if plan.vllm is not None:
        return plan.vllm.visible_devices[idx]
    alike = [other.name for other in machine.devices if other.kind is device.kind]
    return str(alike.index(device.name))


def renumbered(gpus: Sequence[str]) -> tuple[str, ...]:
    """Return the numbers of GPUs where no others are seen; their order on the machine stays."""
    order = sorted(gpus, key=lambda gpu: (not gpu.isdecimal(), int(gpu) if gpu.isdecimal() else 0, gpu))
    return tuple(str(order.index(gpu)) for gpu in gpus)


def _image(plan: Plan, kinds: frozenset[DeviceKind]) -> tuple[DeviceKind | None, str]:
    kind = next(iter(kinds)) if len(kinds) == 1 else None
    if plan.engine is Engine.VLLM:
        if kind is not DeviceKind.CUDA:
            msg = f"the plan of `{plan.model}` is for vllm without NVIDIA GPUs, for which no image is known"
            raise UsageError(
                msg, help="plan for a machine with NVIDIA GPUs (--inventory), or give --engine llama-server"
            )
        return kind, VLLM_IMAGE
    if plan.engine is Engine.LLAMA_CPP_PYTHON:
        msg = f"the plan of `{plan.model}` is for llama-cpp-python, of which no image is published"
        raise UsageError(msg, help="plan it with --engine llama-server, or for another machine with --inventory")
    if len(kinds) > 1 or (kind is not None and kind not in LLAMA_IMAGES):
        msg = f"no image of llama.cpp reaches the planned devices: {', '.join(sorted(kinds))}"
        raise UsageError(msg, help="plan for NVIDIA or AMD GPUs (--inventory), or with --n-gpu-layers 0")
    return kind, LLAMA_IMAGES[kind]


def _source(plan: Plan, weights: str | None) -> Source:
    artifact = plan.artifact
    is_file = plan.engine is not Engine.VLLM
    path = weights if weights is not None else artifact.local_path
    if path is not None:
        if not path.startswith("/"):
            msg = f"the path of the weights is not absolute: `{printable(path)}`"
            raise UsageError(msg, help="give the whole path on the machine that will serve: --weights /PATH")
        check_words([path])
        return Source(repository=None, path=path.rstrip("/") or "/", is_file=is_file)
    if artifact.repository is None:
        msg = f"nothing says where another machine finds the weights of `{plan.model}` at {plan.quantization}"
        raise UsageError(msg, help="give their path on the machine that will serve: --weights /PATH")
    return Source(repository=artifact.repository, path=None, is_file=is_file)


# --- What -------------------------------------------------------------------------------------------------------


def _node(
    plan: Plan, part: _Part, *, kind: DeviceKind | None, source: Source, address: Address, around: Surroundings
) -> Node:
    command = _command(plan, part, kind=kind, source=source, address=address, around=around)
    # AMD's driver has one device for all GPUs to compute with, and gives them to a container by an environment variable.
    amd = {"ROCR_VISIBLE_DEVICES": ",".join(part.gpus)} if around.is_container and kind is DeviceKind.ROCM else {}
    shm_bytes = _SHM_BYTES_PER_GPU * len(part.gpus) if plan.engine is Engine.VLLM and len(part.gpus) > 1 else 0
    check_words(command.argv)
    return Node(
        name=part.name,
        argv=command.argv,
        env={**command.env, **amd},
        gpus=part.gpus,
        ranks=part.at,
        description=part.description,
        memory_bytes=pad(part.use.total_bytes + part.spare_bytes + shm_bytes, MIB),
        shm_bytes=shm_bytes,
        has_further_gpus=part.has_further_gpus,
    )


def _command(
    plan: Plan, part: _Part, *, kind: DeviceKind | None, source: Source, address: Address, around: Surroundings
) -> Command:
    """Return the command of the engine's backend, for the image's build and for the GPUs as they are numbered there."""
    listen = replace(address, host="0.0.0.0") if around.is_container else address  # noqa: S104 - a container's own interfaces
    where = (
        source.mounted_path if around.has_mounts and source.path is not None else source.path or source.repository or ""
    )
    numbers = renumbered(part.gpus) if around.has_own_gpus else part.gpus
    if plan.engine is Engine.VLLM and plan.vllm is not None:
        plan = replace(
            plan,
            install=EngineInstall(engine=plan.engine, argv=("vllm", "serve"), version=VLLM_VERSION),
            vllm=replace(plan.vllm, visible_devices=numbers),
        )
        cache = f"{CACHE_PATH}/vllm" if around.is_container else None
        command = build_command(plan, weights_path=where, address=listen, alias=plan.model, cache_path=cache)
        dropped = _ONLY_OURS | (_OFFLINE if source.repository is not None else frozenset())
        return replace(command, env={name: value for name, value in command.env.items() if name not in dropped})
    words = tuple(f"{LLAMA_DEVICES[kind]}{number}" for number in numbers) if kind is not None else ()
    install = EngineInstall(engine=plan.engine, argv=(LLAMA_SERVER,), version=LLAMA_BUILD)
    plan = replace(plan, install=install, engine_devices=words)
    command = build_command(plan, weights_path=where, address=listen, alias=plan.model)
    if source.repository is None:
        return command
    files = plan.artifact.files
    return llama_server.from_hub(command, source.repository, files[0].name if files else None, plan.quantization)


def _summary(plan: Plan, machines: Machines) -> tuple[str, ...]:
    n_requests = "1 request" if plan.n_parallel == 1 else f"{plan.n_parallel} requests"
    copies = (f"one of {plan.replicas} copies that find room",) if plan.replicas > 1 else ()
    return (
        printable(f"{plan.model} at {plan.quantization} with {plan.engine}, planned for {machines.name}"),
        f"{plan.n_ctx_per_request} tokens for each of {n_requests} at once",
        *copies,
    )
