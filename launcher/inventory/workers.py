"""Workers of llama.cpp's RPC as devices of this machine: named, asked through the engine that would use them, joined.

It must not know models or plans, nor start a worker. The protocol has no authentication, so a worker is taken only at an
address of this machine or of a private network.
"""

import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network
from typing import Final, NamedTuple

from msgspec.structs import replace

from launcher.domain import Device, DeviceKind, Engine, EngineDevice, EngineInstall, Host, Inventory
from launcher.errors import UsageError, WorkerError
from launcher.inventory.addresses import is_loopback
from launcher.inventory.llama_text import parse_devices
from launcher.inventory.proc import run_bounded
from launcher.units import GIB, MIB

_OPTION: Final = "--rpc"
_MAX_WORKERS: Final = 16
"""``GGML_RPC_MAX_SERVERS`` (``ggml/include/ggml-rpc.h``, build 11434)."""
_CONNECT_S: Final = 3.0
_LISTING_S: Final = 10.0
"""For ``--list-devices`` with one worker: 0.07 to 0.15 s on loopback; assumed to do for a slow network and a cold disk."""
_PRIVATE: Final = tuple(
    IPv4Network(text)
    for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10")
)
"""Loopback, RFC 1918, link-local (RFC 3927), carriers' and overlay networks' shared space (RFC 6598)."""
_ITEM: Final = re.compile(
    r"(?P<host>[A-Za-z0-9_.-]+):(?P<port>\d{1,5})(?:=(?P<size>\d{1,9}(?:\.\d{1,9})?)(?P<unit>[MG])iB)?"
)
_UNITS: Final = {"M": MIB, "G": GIB}
_MAX_PORT: Final = 65535
_SHAPE: Final = "write HOST:PORT[,HOST:PORT...], each with =SIZE (as 8GiB) where only so much of it may be used"
_OTHER_BUILD: Final = re.compile(r"RPC server version mismatch: (\S+)")
_NO_BACKTRACE: Final = {"GGML_NO_BACKTRACE": "1"}
"""An engine that does not like a worker aborts, and would start gdb on itself first: 4 s instead of 0.1."""
_SAME_TOTAL: Final = 0.05
"""A worker on loopback that tells nearly the host's total has the host's memory: engines see it in whole MiB."""

Answer = tuple[EngineDevice, ...] | str
"""A worker's devices, or half a sentence on why one engine cannot use it."""


class Worker(NamedTuple):
    """Where a worker listens (an IPv4 address), and how much of each of its devices may be used, if not all."""

    host: str
    port: int
    limit_bytes: int | None = None

    @property
    def address(self) -> str:
        """As ``--rpc`` takes it."""
        return f"{self.host}:{self.port}"


def parse_workers(text: str) -> tuple[Worker, ...]:
    """Return the workers of ``HOST:PORT[=SIZE],...``, names of hosts resolved.

    Raises:
        UsageError: malformed, named twice, too many, unknown or not of a private network.
    """
    workers: dict[tuple[str, int], Worker] = {}
    for item in (part.strip() for part in text.split(",")):
        worker = _parse_worker(item)
        if workers.setdefault((worker.host, worker.port), worker) is not worker:
            msg = f"{_OPTION} names {worker.address} twice"
            raise UsageError(msg, help="a worker counts once: leave one of them out")
    if len(workers) > _MAX_WORKERS:
        msg = f"{_OPTION} names {len(workers)} workers; llama.cpp takes at most {_MAX_WORKERS}"
        raise UsageError(msg, help="leave some of them out")
    return tuple(workers.values())


def _parse_worker(item: str) -> Worker:
    match = _ITEM.fullmatch(item)
    if match is None:
        what = f"`{item}`" if item else "an empty item"
        ipv6 = "; llama.cpp's RPC speaks IPv4 only" if item.count(":") > 1 else ""
        msg = f"{_OPTION} does not understand {what}{ipv6}"
        raise UsageError(msg, help=_SHAPE)
    port = int(match["port"])
    if not 0 < port <= _MAX_PORT:
        msg = f"{_OPTION}: {port} is no port"
        raise UsageError(msg, help=_SHAPE)
    limit = int(float(match["size"]) * _UNITS[match["unit"]]) if match["size"] else None
    if limit == 0:
        msg = f"{_OPTION}: nothing of {item} may be used"
        raise UsageError(msg, help="leave it out")
    return Worker(private_address(match["host"], _OPTION), port, limit)


def private_address(host: str, option: str) -> str:
    """Return the IPv4 address of a host, one that the public network does not reach.

    Raises:
        UsageError: the host is unknown, or its address is none of loopback or a private network.
    """
    try:
        address = IPv4Address(socket.gethostbyname(host))
    except (OSError, UnicodeError) as error:
        msg = f"{option}: no IPv4 address of `{host}` is known"
        raise UsageError(msg, help="llama.cpp's RPC speaks IPv4 only; name an address of a private network") from error
    if not any(address in network for network in _PRIVATE):
        named = f" ({host})" if str(address) != host else ""
        msg = f"{option}: {address}{named} is no address of this machine or of a private network"
        raise UsageError(
            msg,
            help="whoever reaches a worker can take over its process: keep workers on loopback or a private network",
        )
    return str(address)


class Workers:
    """The workers of one command: asked as often as needed, and what each told last."""

    def __init__(self, workers: tuple[Worker, ...]) -> None:
        """Ask nobody yet."""
        self._workers = workers
        self._last: dict[tuple[str, str], Answer] = {}

    def join(self, machine: Inventory) -> Inventory:
        """Return the machine with all workers as further devices, and the engines that can use all of them.

        Raises:
            WorkerError: no engine here can use them; details say of each worker why.
        """
        servers = self._servers(machine)
        self._ask(servers, self._workers)
        able = [server for server in servers if all(self._devices(server, worker) for worker in self._workers)]
        if not able:
            raise self._fault(servers)
        others = [
            f"`{server.argv[0]}` is not used: {worker.address} {self._last[server.argv[0], worker.address]}"
            for server in servers
            for worker in self._workers
            if server not in able and not self._devices(server, worker)
        ]
        return self._joined(machine, able, notes=tuple(others))

    def join_present(self, machine: Inventory, *, in_use: bool) -> Inventory:
        """Return the machine with the workers that are still there; without any it is what it is.

        A worker serves one engine at a time and answers nobody else meanwhile: while our own is ready (``in_use``),
        what each told last stands, and only those are asked that it was started without.
        """
        servers = self._servers(machine)
        held = [each for each in self._workers if in_use and any(self._devices(server, each) for server in servers)]
        self._ask(servers, [worker for worker in self._workers if worker not in held])
        counts = [sum(bool(self._devices(server, worker)) for worker in self._workers) for server in servers]
        most = max(counts, default=0)
        if not most:
            return machine
        able = [server for server, count in zip(servers, counts, strict=True) if count == most]
        return self._joined(machine, able[:1], notes=())

    def _servers(self, machine: Inventory) -> list[EngineInstall]:
        found = machine.engines or ()
        return [item for item in found if item.engine is Engine.LLAMA_SERVER and _OPTION in item.flags]

    def _devices(self, server: EngineInstall, worker: Worker) -> tuple[EngineDevice, ...]:
        told = self._last.get((server.argv[0], worker.address), ())
        return () if isinstance(told, str) else told

    # --- Asking ---

    def _ask(self, servers: Sequence[EngineInstall], workers: Sequence[Worker]) -> None:
        """Ask workers all at the same time, each by one engine after the other: it serves one at a time."""
        with ThreadPoolExecutor(max_workers=_MAX_WORKERS, thread_name_prefix="worker") as pool:
            answers = pool.map(lambda worker: _ask_worker(worker, servers), workers)
            for worker, told in zip(workers, answers, strict=True):
                self._last |= {(server.argv[0], worker.address): one for server, one in zip(servers, told, strict=True)}

    def _fault(self, servers: Sequence[EngineInstall]) -> WorkerError:
        if not servers:
            msg = f"no llama-server with the option {_OPTION} was found, and no other engine uses workers"
            return WorkerError(msg, help="`launch hardware` lists the engines found; README.md says how to get one")
        unusable = [
            f"{worker.address} {self._last[server.argv[0], worker.address]}"
            for server in servers
            for worker in self._workers
            if not self._devices(server, worker)
        ]
        facts = tuple(dict.fromkeys(unusable))
        msg = facts[0] if len(facts) == 1 else f"no engine here can use all of {len(self._workers)} workers"
        return WorkerError(
            msg,
            help="a worker serves one engine at a time, of its own build of llama.cpp: start it with `launch worker` of that"
            " build, or leave it out of --rpc",
            details=facts if len(facts) > 1 else (),
        )

    # --- Joining ---

    def _joined(self, machine: Inventory, able: Sequence[EngineInstall], *, notes: tuple[str, ...]) -> Inventory:
        present = [worker for worker in self._workers if self._devices(able[0], worker)]
        told = [(worker, self._devices(able[0], worker)) for worker in present]
        devices = [device for worker, entries in told for device in _named(worker, entries)]
        host, devices, shared = _shared(
            machine.host, devices, loopback={w.address for w in present if is_loopback(w.host)}
        )
        return replace(
            machine,
            host=host,
            devices=(*machine.devices, *_limited(devices, present)),
            engines=tuple(self._with_workers(server, present) for server in able),
            notes=(*machine.notes, *notes, *shared),
        )

    def _with_workers(self, server: EngineInstall, present: Sequence[Worker]) -> EngineInstall:
        """Return an engine that lists the workers' devices, numbered as it numbers them when it gets all of them."""
        listed = [
            (entry, device.name)
            for worker in present
            for entries in (self._devices(server, worker),)
            for entry, device in zip(entries, _named(worker, entries), strict=True)
        ]
        remote = tuple(replace(entry, name=f"RPC{idx}", device=name) for idx, (entry, name) in enumerate(listed))
        return replace(
            server,
            devices=(*server.devices, *remote),
            workers=tuple(worker.address for worker in present),
        )


def _ask_worker(worker: Worker, servers: Sequence[EngineInstall]) -> list[Answer]:
    """Return what each engine can make of a worker."""
    try:
        socket.create_connection((worker.host, worker.port), timeout=_CONNECT_S).close()
    except OSError as error:
        why = f"is not reached: {(error.strerror or str(error)).lower()}"
        return [why for _ in servers]
    return [_list(worker, server) for server in servers]


def _list(worker: Worker, server: EngineInstall) -> Answer:
    argv = (*server.argv, _OPTION, worker.address, "--list-devices")
    answer = run_bounded(argv, timeout_s=_LISTING_S, env={**server.env, **_NO_BACKTRACE})
    if answer.timed_out:
        return "does not answer: another engine is using it, or it is no worker"
    if match := _OTHER_BUILD.search(f"{answer.stdout}\n{answer.stderr}"):
        return (
            f"speaks version {match[1]} of the protocol, `{server.argv[0]}` another one: they are of different builds"
        )
    listed = tuple(entry for entry in parse_devices(answer.stdout) if entry.description == worker.address)
    if answer.ok and listed:
        return listed
    how = "lists none" if answer.ok else answer.describe(timeout_s=_LISTING_S)
    return f"gives no device to `{server.argv[0]}`: it {how}"


def _named(worker: Worker, entries: tuple[EngineDevice, ...]) -> list[Device]:
    """Return a worker's devices, named by its address, which stays when others come and go."""
    names = [worker.address] if len(entries) == 1 else [f"{worker.address}/{idx}" for idx in range(len(entries))]
    return [
        Device(
            name=name,
            kind=DeviceKind.RPC,
            description=f"worker at {worker.address}",
            total_bytes=entry.total_bytes or 0,
            free_bytes=entry.free_bytes,
        )
        for name, entry in zip(names, entries, strict=True)
    ]


def _shared(host: Host, devices: list[Device], *, loopback: set[str]) -> tuple[Host, list[Device], tuple[str, ...]]:
    """Give host and workers that have the host's own memory an equal share each of what is free."""
    same = {
        device.name
        for device in devices
        if device.name.partition("/")[0] in loopback
        and abs(device.total_bytes - host.total_bytes) <= _SAME_TOTAL * host.total_bytes
    }
    if not same:
        return host, devices, ()
    share = host.free_bytes // (len(same) + 1)
    note = f"{', '.join(sorted(same))} and this machine share its memory: each is counted with an equal part of what is free"
    split = [replace(device, free_bytes=share) if device.name in same else device for device in devices]
    return replace(host, available_bytes=share), split, (note,)


def _limited(devices: list[Device], workers: Sequence[Worker]) -> list[Device]:
    """Count no more of a device as free than its worker's limit allows."""
    limits = {worker.address: worker.limit_bytes for worker in workers}
    result = []
    for device in devices:
        limit = limits[device.name.partition("/")[0]]
        free = device.known_free_bytes
        result.append(device if limit is None else replace(device, free_bytes=min(free, limit)))
    return result
