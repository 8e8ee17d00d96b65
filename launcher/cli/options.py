"""The options that ``serve``, ``plan`` and ``export`` share, and how they become a ``Request``."""

from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from launcher.cli.completion import (
    complete_cache_type,
    complete_engine,
    complete_machine,
    complete_model,
    complete_quantization,
    complete_switch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from launcher.domain import Address, DeviceProcess, Inventory, Machines, Profile, Settings
    from launcher.fetch.remote import Reading
    from launcher.inventory.workers import Workers
    from launcher.planner.search import Alternatives

MAX_INT = 2**31 - 1
"""What llama-server's options hold."""
_MAX_NUMBER = 2e6
"""Of seconds: 23 days. poll(2) waits for as many milliseconds as an ``int`` holds."""
_MAX_THREADS = 512
"""llama.cpp's own limit (``GGML_MAX_N_THREADS``, build 11434)."""

_HOST_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:_%-")
"""Of a host name, or of an address with or without its zone."""

_Choice = TypeVar("_Choice", bound=StrEnum)


def finite(value: float | None) -> float | None:
    """Return an option's number, which has to be one: comparisons with a least or largest one let NaN pass.

    Raises:
        BadParameter: it is none, or none that a clock can wait for.
    """
    if value is not None and not value <= _MAX_NUMBER:
        msg = f"{value} is no number to count with"
        raise typer.BadParameter(msg)
    return value


Name = Annotated[
    str,
    typer.Argument(
        help="A profile, its alias, a GGUF file, a Hugging Face folder, hf:OWNER/NAME[:QUANT], an address, "
        "ollama:MODEL:TAG, or lmstudio:PUBLISHER/REPOSITORY[:QUANT].",
        autocompletion=complete_model,
    ),
]
Quant = Annotated[
    str | None, typer.Option("--quant", help="Quantization, for example q5_k_m.", autocompletion=complete_quantization)
]
Context = Annotated[int | None, typer.Option("--context", min=1, max=MAX_INT, help="Tokens that one request can use.")]
CtxSize = Annotated[
    int | None, typer.Option("--ctx-size", min=1, max=MAX_INT, help="Tokens of all parallel requests together.")
]
Parallel = Annotated[
    int | None, typer.Option("--parallel", min=1, max=MAX_INT, help="Requests served at the same time.")
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, max=MAX_INT, help="Tokens of a prompt taken at once.")
]
UbatchSize = Annotated[
    int | None, typer.Option("--ubatch-size", min=1, max=MAX_INT, help="Tokens computed in one step.")
]
GpuLayers = Annotated[int | None, typer.Option("--n-gpu-layers", min=0, max=MAX_INT, help="Layers to put on the GPU.")]
CpuMoe = Annotated[
    int | None, typer.Option("--n-cpu-moe", min=0, max=MAX_INT, help="Layers whose experts stay on the CPU.")
]
CacheK = Annotated[
    str | None, typer.Option("--cache-type-k", help="Element type of the K cache.", autocompletion=complete_cache_type)
]
CacheV = Annotated[
    str | None, typer.Option("--cache-type-v", help="Element type of the V cache.", autocompletion=complete_cache_type)
]
FlashAttn = Annotated[str | None, typer.Option("--flash-attn", help="on or off.", autocompletion=complete_switch)]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=_MAX_THREADS, help="CPU threads of the engine.")]
EngineName = Annotated[
    str | None, typer.Option("--engine", help="llama-server, llama-cpp-python or vllm.", autocompletion=complete_engine)
]
MinQuant = Annotated[
    str | None,
    typer.Option("--min-quant", help="Refuse a quantization worse than this.", autocompletion=complete_quantization),
]
MinTps = Annotated[float | None, typer.Option("--min-tps", min=0.0, help="Refuse to generate slower than this.")]
Force = Annotated[bool, typer.Option("--force", help="Override refusals that are estimates or floors.")]
InventoryName = Annotated[
    str | None,
    typer.Option(
        "--inventory",
        help="Plan for this reference machine, inventory file, or a multiple: 2x8xh100.",
        autocompletion=complete_machine,
    ),
]
Rpc = Annotated[
    str | None,
    typer.Option("--rpc", metavar="HOST:PORT,...", help="Experimental: use the memory of these `launch worker`s, too."),
]
ClusterUrl = Annotated[
    str | None,
    typer.Option("--cluster", metavar="URL", help="Plan for the machines of the Ray cluster with this dashboard."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def parse_settings(
    *,
    quant: str | None,
    context: int | None,
    ctx_size: int | None,
    parallel: int | None,
    batch_size: int | None,
    ubatch_size: int | None,
    n_gpu_layers: int | None,
    n_cpu_moe: int | None,
    cache_type_k: str | None,
    cache_type_v: str | None,
    flash_attn: str | None,
    threads: int | None,
    engine: str | None,
) -> "Settings":
    """Turn option texts into typed settings.

    Raises:
        UsageError: a value is none of those allowed, or two options contradict each other.
    """
    from launcher.domain import CacheType, Engine, Settings
    from launcher.errors import UsageError

    if context is not None and ctx_size is not None:
        msg = "--context and --ctx-size cannot both be given"
        raise UsageError(msg, help="--context is per request, --ctx-size the total of all parallel requests")
    if ctx_size is not None and parallel is not None and ctx_size < parallel:
        msg = f"--ctx-size {ctx_size} leaves nothing for each of {parallel} parallel requests"
        raise UsageError(msg, help="--ctx-size is the total of all parallel requests, --context is per request")
    if quant is not None and not quant.strip():
        msg = "--quant is empty"
        raise UsageError(msg, help="leave it out to let the planner choose")
    if flash_attn not in {None, "on", "off"}:
        msg = f"--flash-attn takes on or off, not `{flash_attn}`"
        raise UsageError(msg, help="leave it out to let the planner choose")
    return Settings(
        quantization=quant.strip().lower() if quant is not None else None,
        engine=_member(Engine, "--engine", engine),
        n_ctx=ctx_size,
        n_ctx_per_request=context,
        n_parallel=parallel,
        n_batch=batch_size,
        n_ubatch=ubatch_size,
        n_gpu_layers=n_gpu_layers,
        n_cpu_moe=n_cpu_moe,
        cache_type_k=_member(CacheType, "--cache-type-k", cache_type_k),
        cache_type_v=_member(CacheType, "--cache-type-v", cache_type_v),
        flash_attn=None if flash_attn is None else flash_attn == "on",
        n_threads=threads,
    )


def _member(kind: type[_Choice], option: str, text: str | None) -> _Choice | None:
    return None if text is None else parse_choice(kind, option, text)


def parse_choice(kind: type[_Choice], option: str, text: str) -> _Choice:
    """Return what the text of an option names, in upper or lower case.

    Raises:
        UsageError: it is none of those there are.
    """
    try:
        return kind(text.lower())
    except ValueError:
        from launcher.errors import UsageError

        allowed = ", ".join(kind)
        msg = f"{option} does not know `{text}`"
        raise UsageError(msg, help=f"one of: {allowed}") from None


def is_remote(name: str) -> bool:
    """Tell whether NAME is of something on the network."""
    return name.startswith("hf:") or "://" in name


def is_stored(name: str) -> bool:
    """Tell whether NAME is of something in another program's store."""
    return name.startswith(("ollama:", "lmstudio:"))


def split_quant(name: str, quant: str | None) -> tuple[str, str | None]:
    """Take the quantization from ``hf:OWNER/NAME:QUANT``, as if it were given by ``--quant``; also behind ``lmstudio:``.

    Raises:
        UsageError: the name is malformed, or ``--quant`` says another one.
    """
    if not name.startswith(("hf:", "lmstudio:")) or name.count(":") == 1 or name.lower().endswith(".gguf"):
        return name, quant
    from launcher.errors import UsageError
    from launcher.fetch.names import parse_name

    prefix = name.partition(":")[0]
    remote = parse_name(f"hf:{name.partition(':')[2]}")
    if quant is not None and quant.lower() != remote.selector.lower():
        msg = f"`{name}` names a quantization, and --quant another one: {quant}"
        raise UsageError(msg, help="leave one of them out")
    return f"{prefix}:{remote.repository}", remote.selector


def read_remote(name: str, *, single: bool = False) -> "Reading":
    """Describe a model by its headers on a server; say on stderr what was read."""
    from launcher.fetch.remote import read_remote
    from launcher.render.text import render_reading

    reading = read_remote(name, single=single)
    text = render_reading(
        host=reading.host,
        n_bytes=reading.n_bytes,
        n_requests=reading.n_requests,
        total_bytes=reading.total_bytes,
        left_out=reading.left_out,
    )
    typer.echo(text, err=True, nl=False)
    return reading


def read_stored(name: str) -> "Profile":
    """Describe a model in another program's store; say on stderr where it is, and what of it is left out."""
    from launcher.fetch.stores import read_stored
    from launcher.render.stores import render_stored

    stored = read_stored(name)
    paths = tuple(artifact.local_path or "" for artifact in stored.profile.artifacts)
    typer.echo(render_stored(store=stored.store, paths=paths, left_out=stored.notes), err=True, nl=False)
    return stored.profile


def read_hub(name: str, *, single: bool = False) -> "Profile":
    """Describe a model on the network; a hub's by what is here of it where the hub is not to be asked or cannot be.

    Raises:
        RemoteError: nothing of it is here either.
    """
    from msgspec.structs import replace

    from launcher.errors import (
        LauncherError,
        RemoteAccessError,
        RemoteError,
        RemoteMissingError,
        WeightsMissingError,
    )

    try:
        return read_remote(name, single=single).profile
    except RemoteError as error:
        if isinstance(error, RemoteAccessError | RemoteMissingError) or not name.startswith("hf:"):
            raise  # a hub that answers "no" is not contradicted
        repository, quant = split_quant(name, None)
        try:
            profile = read_stored(repository)
        except LauncherError as fault:
            if not isinstance(fault, WeightsMissingError):
                error.details = (*error.details, f"and what is here of it cannot be used: {fault.message}")
            raise error from None
        typer.echo(f"the hub is no help, what is here is used: {error.message}", err=True)
        if not single:
            return profile
        wanted = tuple(each for each in profile.artifacts if quant is None or each.quantization == quant.lower())
        if len(wanted) != 1:
            error.details = (*error.details, f"here is {', '.join(each.quantization for each in profile.artifacts)}")
            raise
        return replace(profile, artifacts=wanted)


def read_address(name: str) -> "Profile | None":
    """Describe what was downloaded from an address, by its digest alone; ``None`` where it has to be asked."""
    if name.startswith("hf:"):
        return None
    from launcher.fetch.downloaded import read_downloaded

    return read_downloaded(name)


def find_weights(profile: "Profile") -> "Profile":
    """Return the profile with those of its weights that were downloaded, here or by other programs, where they lie."""
    from launcher.fetch.downloaded import mark_downloaded
    from launcher.fetch.stores import look, mark_found

    return mark_found(mark_downloaded(profile), look())


def resolve_profile(name: str) -> "Profile":
    """Find what NAME means: a profile or alias, a TOML file, a GGUF file, a Hugging Face folder, a remote or stored name.

    Raises:
        ProfileNotFoundError, ProfileError, MetadataError, WeightsMissingError, RemoteError, ModelStoreError: as the rooms
            that look say.
    """
    if is_stored(name):
        return read_stored(name)
    if is_remote(name):
        return read_address(name) or read_hub(name)
    from launcher.profiles import load_profile, profile_for_weights
    from launcher.resources import from_home

    path = from_home(name)
    if name and (name.endswith((".gguf", ".safetensors")) or _is_weights(path, name)):
        from launcher.metadata.load import read_spec

        return profile_for_weights(path, read_spec(path))
    return describe_own(load_profile(name))


def describe_own(profile: "Profile") -> "Profile":
    """Return the profile with what the headers say of weights at its own paths, where it names no spec of them.

    Raises:
        MetadataError: such a file is none of weights.
    """
    lacking = [a for a in profile.artifacts if a.spec is None and a.local_path and Path(a.local_path).exists()]
    if not lacking:
        return profile
    from msgspec.structs import replace

    from launcher.metadata.load import read_spec

    specs = {a.local_path: read_spec(Path(a.local_path)) for a in lacking if a.local_path}
    artifacts = tuple(replace(a, spec=a.spec or specs.get(a.local_path or "")) for a in profile.artifacts)
    return replace(profile, artifacts=artifacts)


def _is_weights(path: Path, name: str) -> bool:
    """Tell whether a path that says nothing by its ending is of weights: a folder, or a file as Ollama's store has them."""
    try:
        return path.is_dir() or ("/" in name and not name.endswith(".toml") and path.is_file())
    except (OSError, ValueError):  # no name that the file system knows
        return False


def keep_local(profile: "Profile", settings: "Settings") -> "Profile":
    """Keep the artifacts whose weights are on this machine, in another program's store too: what ``serve`` may choose from.

    Raises:
        WeightsMissingError: none is, or not the quantization that was asked for.
    """
    from msgspec.structs import replace

    from launcher.errors import WeightsMissingError
    from launcher.fetch.stores import look, mark_found, relatives
    from launcher.profiles import is_local

    shelf = look()
    profile = mark_found(profile, shelf)
    local = tuple(artifact for artifact in profile.artifacts if is_local(artifact))
    quantization = settings.quantization or profile.pins.quantization
    have = [artifact.quantization for artifact in local]
    if local and quantization in {None, *have}:
        return replace(profile, artifacts=local)
    wanted = f" at {quantization}" if quantization is not None else ""
    sources = dict.fromkeys(
        artifact.repository
        for artifact in profile.artifacts
        if artifact.repository and quantization in {None, artifact.quantization}
    )
    details = (
        *(f"published at {source}" for source in sources),
        *(f"{model.store} has another file of it: launch serve {model.name}" for model in relatives(profile, shelf)),
        *shelf.faults,
    )
    msg = f"the weights of `{profile.name}`{wanted} are not on this machine"
    pull = f"download them: launch pull {profile.asked or profile.name}"
    pull += "" if quantization is None else f" --quant {quantization}"
    help_ = f"here is {', '.join(have)}; or {pull}" if have else pull
    raise WeightsMissingError(msg, help=help_, details=details)


def apply_limits(profile: "Profile", *, min_quant: str | None, min_tps: float | None) -> "Profile":
    """Lay floors from the command line over the profile's.

    Raises:
        UsageError: the quantization is not one whose quality is known, or the speed is no number.
    """
    from msgspec.structs import replace

    from launcher.planner.quality import KL_DIVERGENCE

    limits = profile.limits
    if min_tps is not None and not isfinite(min_tps):
        from launcher.errors import UsageError

        msg = f"--min-tps is no number of tokens per second: {min_tps}"
        raise UsageError(msg, help="leave it out for the floor of 2, or give 0 for none")
    if min_quant is not None:
        if min_quant.lower() not in KL_DIVERGENCE:
            from launcher.errors import UsageError

            msg = f"--min-quant does not know `{min_quant}`"
            raise UsageError(msg, help=f"one of: {', '.join(KL_DIVERGENCE)}")
        limits = replace(limits, min_quantization=min_quant.lower())
    if min_tps is not None:
        limits = replace(limits, min_generation_tps=min_tps)
    return replace(profile, limits=limits)


def parse_rpc(rpc: str | None, inventory: str | None) -> "Workers | None":
    """Return the workers that ``--rpc`` names.

    Raises:
        UsageError: it is malformed, or the plan is for another machine.
    """
    if rpc is None:
        return None
    from launcher.inventory.workers import Workers, parse_workers

    if inventory is not None:
        from launcher.errors import UsageError

        msg = "--rpc and --inventory cannot both be given"
        raise UsageError(msg, help="workers are asked from this machine: leave --inventory out")
    return Workers(parse_workers(rpc))


def read_inventory(name: str | None, workers: "Workers | None" = None) -> "Inventory":
    """Return the named machine, or measure this one, its workers included.

    Raises:
        InventoryError: no such machine.
        WorkerError: a worker cannot be used.
    """
    from launcher.inventory import load_inventory, probe_inventory

    if name is not None:
        return load_inventory(name)
    from launcher.fetch.places import hub_cache_dir

    machine = probe_inventory(disk_path=hub_cache_dir())
    return machine if workers is None else workers.join(machine)


def start_reading_inventory(
    name: str | None, workers: "Workers | None" = None, cluster: str | None = None
) -> "Callable[[], Machines]":
    """Begin to measure this machine, and return what waits for the result; others, named or of a cluster, are read only then.

    Most of the time goes into waiting for drivers and engines, while the rest of a command can be imported.

    Raises:
        UsageError: a cluster is meant, and other machines as well.
    """
    if cluster is not None:
        if name is not None or workers is not None:
            from launcher.errors import UsageError

            msg = f"--cluster and {'--inventory' if name is not None else '--rpc'} cannot both be given"
            raise UsageError(msg, help="each says by itself which machines are meant")
        from launcher.cluster import read_cluster

        return lambda: read_cluster(cluster)
    if name is not None:
        from launcher.inventory import load_machines

        return lambda: load_machines(name)
    from concurrent.futures import ThreadPoolExecutor

    import launcher.inventory.probe  # noqa: F401 - in turn, so that engines are asked before all else is imported

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inventory")
    answer = pool.submit(read_inventory, None, workers)
    pool.shutdown(wait=False)
    return answer.result


def find_alternatives(*, inventory: str | None, min_quant: str | None, min_tps: float | None) -> "Alternatives":
    """Return what advice may draw on, under the floors of the command line; nothing is read until it is asked for.

    Programs are named only where the request is for this machine: no ``inventory`` is given.
    """
    from functools import cache

    from launcher.planner.search import Alternatives

    def smaller(n_parameters: int) -> "Iterator[Profile]":
        from launcher.profiles import load_smaller

        for each in load_smaller(n_parameters):
            yield apply_limits(each, min_quant=min_quant, min_tps=min_tps)

    programs = _all_programs if inventory is None else tuple
    return Alternatives(smaller=smaller, machines=cache(_all_machines), programs=programs)


def _all_programs() -> "tuple[DeviceProcess, ...]":
    from launcher.inventory.programs import probe_programs

    return probe_programs()


def _all_machines() -> "tuple[Machines, ...]":
    """Return the reference machines, smallest first, then two and four of those that are rented with several GPUs."""
    from launcher.inventory import list_machines, load_inventory, load_machines

    def size(machine: "Inventory") -> tuple[int, int]:
        return sum(device.total_bytes for device in machine.devices), machine.host.total_bytes

    single = sorted((load_inventory(name) for name in list_machines()), key=size)
    servers = [machine for machine in single if machine.is_cloud and len(machine.devices) > 1]
    multiples = sorted((n * size(server)[0], f"{n}x{server.name}") for n in (2, 4) for server in servers)
    return (*single, *(load_machines(name) for _, name in multiples))


def echo_argv(
    command: str,
    *,
    inventory: str | None = None,
    rpc: str | None = None,
    cluster: str | None = None,
    min_quant: str | None = None,
    min_tps: float | None = None,
) -> tuple[str, ...]:
    """Return the words of a command that advice must repeat, its settings apart."""
    words = [command]
    given = {
        "--inventory": inventory,
        "--cluster": cluster,
        "--rpc": rpc,
        "--min-quant": min_quant,
        "--min-tps": min_tps,
    }
    for flag, value in given.items():
        if value is not None:
            words += [flag, f"{value:g}" if isinstance(value, float) else value]
    return tuple(words)


def with_address(address: "Address", *, host: str | None, port: int | None) -> "Address":
    """Lay ``--host`` and ``--port`` over the profile's address; port 0 asks for any free one.

    Raises:
        UsageError: what is no name and no address, and so would be told and kept without ever being of use.
    """
    from msgspec.structs import replace

    if host is not None:
        if not host or not set(host) <= _HOST_CHARACTERS:
            from launcher.errors import UsageError
            from launcher.inventory.text import printable

            msg = f"--host takes a host name or an address, not `{printable(host)}`"
            raise UsageError(
                msg, help="leave it out for 127.0.0.1, or give an address of this machine, ::1 for example"
            )
        address = replace(address, host=host)
    if port is not None:
        address = replace(address, port=port or None)
    return address
