"""Workers of llama.cpp's RPC: what may be named, what an engine makes of them, and how they join the machine."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from launcher.domain import Device, DeviceKind, Engine, EngineInstall, Host, Inventory
from launcher.errors import UsageError, WorkerError
from launcher.inventory import workers as room
from launcher.inventory.rpc_server import find_rpc_server
from launcher.inventory.workers import Worker, Workers, parse_workers, private_address
from launcher.units import GIB, MIB

Program = Callable[[str, str], Path]

_LISTS_ONE = 'echo "Available devices:"; echo "  RPC0: $2 (81920 MiB, 80000 MiB free)"'
_LISTS_TWO = f'{_LISTS_ONE}; echo "  RPC1: $2 (81920 MiB, 70000 MiB free)"'
_OF_ANOTHER_BUILD = 'echo "0.00.1 E RPC server version mismatch: 7.0.0" >&2; echo "Available devices:"; echo "  (none)"'


@pytest.fixture
def listening() -> Iterator[Callable[[], Worker]]:
    """Open sockets that take connections, as workers do, until the test ends."""
    with ExitStack() as stack:

        def listen() -> Worker:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            return Worker("127.0.0.1", server.getsockname()[1])

        yield listen


def _server(path: Path) -> EngineInstall:
    return EngineInstall(engine=Engine.LLAMA_SERVER, argv=(str(path),), flags=frozenset({"--rpc"}))


def _machine(*paths: Path) -> Inventory:
    gpu = Device(name="gpu0", kind=DeviceKind.CUDA, description="a GPU", total_bytes=24 * GIB)
    host = Host(total_bytes=32 * GIB, available_bytes=30 * GIB)
    others = (EngineInstall(engine=Engine.LLAMA_CPP_PYTHON, argv=("python",)),)
    return Inventory(name="m", host=host, devices=(gpu,), engines=(*map(_server, paths), *others))


# --- Naming -----------------------------------------------------------------------------------------------------


def test_workers_are_named_by_address_port_and_limit() -> None:
    """Names are resolved, sizes are binary, the order is kept."""
    assert parse_workers("10.1.2.3:50052, localhost:9=1.5GiB,192.168.0.7:1=700MiB") == (
        Worker("10.1.2.3", 50052),
        Worker("127.0.0.1", 9, 3 * GIB // 2),
        Worker("192.168.0.7", 1, 700 * MIB),
    )


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "an empty item"),
        ("127.0.0.1:1,", "an empty item"),
        ("127.0.0.1", "does not understand `127.0.0.1`"),
        (":50052", "does not understand"),
        ("127.0.0.1:x", "does not understand"),
        ("127.0.0.1:0", "0 is no port"),
        ("127.0.0.1:70000", "70000 is no port"),
        ("127.0.0.1:1=2GB", "does not understand"),
        ("127.0.0.1:1=0MiB", "nothing of"),
        ("[::1]:50052", "IPv4 only"),
        ("http://127.0.0.1:1", "does not understand"),
        ("-x:1;reboot", "does not understand"),
        ("127.0.0.1:1,localhost:1", "names 127.0.0.1:1 twice"),
        (",".join(f"127.0.0.1:{port}" for port in range(1, 18)), "at most 16"),
        (f"{'a' * 64}:1", "no IPv4 address"),
    ],
)
def test_what_is_malformed_is_refused_with_help(text: str, fact: str) -> None:
    """The fact names the item, the help the form."""
    with pytest.raises(UsageError) as caught:
        parse_workers(text)
    assert fact in caught.value.message
    assert caught.value.help


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "172.31.255.1", "192.168.1.1", "169.254.3.4", "100.64.0.1"])
def test_addresses_that_the_public_network_does_not_reach(host: str) -> None:
    """Loopback, RFC 1918, link-local and the shared space of RFC 6598 are taken as they are."""
    assert private_address(host, "--host") == host


@pytest.mark.parametrize("host", ["8.8.8.8", "0.0.0.0", "172.32.0.1", "100.128.0.1", "192.169.0.1", "255.255.255.255"])  # noqa: S104 - refused
def test_public_addresses_are_refused(host: str) -> None:
    """A worker has no authentication; every interface counts as public."""
    with pytest.raises(UsageError, match=f"{host} is no address of this machine or of a private network"):
        private_address(host, "--host")


# --- Asking -----------------------------------------------------------------------------------------------------


def test_workers_become_devices_of_the_engine(program: Program, listening: Callable[[], Worker]) -> None:
    """Named by address, numbered in the order of ``--rpc``; engines that cannot use workers are left out."""
    one, two = listening(), listening()._replace(limit_bytes=9 * GIB)
    found = Workers((one, two)).join(_machine(program("llama-server", _LISTS_ONE)))
    assert [(device.name, device.kind) for device in found.devices] == [
        ("gpu0", DeviceKind.CUDA),
        (one.address, DeviceKind.RPC),
        (two.address, DeviceKind.RPC),
    ]
    assert [device.free_bytes for device in found.devices[1:]] == [80000 * MIB, 9 * GIB]
    (server,) = found.engines or ()
    assert server.workers == (one.address, two.address)
    assert [(entry.name, entry.device) for entry in server.devices] == [("RPC0", one.address), ("RPC1", two.address)]


def test_a_worker_may_have_several_devices(program: Program, listening: Callable[[], Worker]) -> None:
    """The engine numbers on through the workers; a limit is each device's."""
    one, two = listening()._replace(limit_bytes=GIB), listening()
    found = Workers((one, two)).join(_machine(program("llama-server", _LISTS_TWO)))
    names = [f"{worker.address}/{idx}" for worker in (one, two) for idx in (0, 1)]
    assert [device.name for device in found.devices[1:]] == names
    assert [device.free_bytes for device in found.devices[1:]] == [GIB, GIB, 80000 * MIB, 70000 * MIB]
    (server,) = found.engines or ()
    assert [entry.name for entry in server.devices] == ["RPC0", "RPC1", "RPC2", "RPC3"]


def test_a_worker_that_is_not_there_is_an_error(program: Program) -> None:
    """It says which and why."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(WorkerError, match=rf"127\.0\.0\.1:{port} is not reached: connection refused") as caught:
            Workers((Worker("127.0.0.1", port),)).join(_machine(program("llama-server", _LISTS_ONE)))
    assert "launch worker" in (caught.value.help or "")


def test_a_worker_of_another_build_is_an_error(program: Program, listening: Callable[[], Worker]) -> None:
    """The engine itself says that they do not match."""
    with pytest.raises(WorkerError, match=r"speaks version 7\.0\.0 of the protocol.*different builds"):
        Workers((listening(),)).join(_machine(program("llama-server", _OF_ANOTHER_BUILD)))


def test_a_worker_in_use_is_an_error(
    program: Program, listening: Callable[[], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the connection and says nothing: it serves one engine at a time."""
    monkeypatch.setattr(room, "_LISTING_S", 0.2)
    with pytest.raises(WorkerError, match="does not answer: another engine is using it"):
        Workers((listening(),)).join(_machine(program("llama-server", "exec sleep 60")))


def test_an_engine_that_crashes_on_a_worker_is_an_error(program: Program, listening: Callable[[], Worker]) -> None:
    """What it printed last is told."""
    with pytest.raises(WorkerError, match=r"gives no device to .*: it ended with exit code 3: oh no"):
        Workers((listening(),)).join(_machine(program("llama-server", "echo oh no >&2; exit 3")))


def test_no_engine_for_workers_is_an_error(listening: Callable[[], Worker]) -> None:
    """llama-cpp-python alone does not do."""
    with pytest.raises(WorkerError, match="no llama-server with the option --rpc was found"):
        Workers((listening(),)).join(_machine())


def test_engines_that_cannot_use_all_workers_are_passed_over(program: Program, listening: Callable[[], Worker]) -> None:
    """A note says why; the other one serves."""
    old, new = program("old", _OF_ANOTHER_BUILD), program("new", _LISTS_ONE)
    found = Workers((listening(),)).join(_machine(old, new))
    assert [install.argv for install in found.engines or ()] == [(str(new),)]
    (note,) = found.notes
    assert note.startswith(f"`{old}` is not used: 127.0.0.1:")


def test_workers_on_loopback_share_the_hosts_memory(program: Program, listening: Callable[[], Worker]) -> None:
    """What is free is counted once: in equal parts for the host and each of them."""
    lists = 'echo "Available devices:"; echo "  RPC0: $2 (32000 MiB, 32000 MiB free)"'
    found = Workers((listening(), listening())).join(_machine(program("llama-server", lists)))
    assert [device.free_bytes for device in found.devices[1:]] == [10 * GIB, 10 * GIB]
    assert found.host.free_bytes == 10 * GIB
    assert "share its memory" in found.notes[0]


# --- Asking again -----------------------------------------------------------------------------------------------


def test_lost_workers_are_left_out(program: Program, listening: Callable[[], Worker]) -> None:
    """The rest is numbered anew, names stay; without any the machine is what it is."""
    with socket.create_server(("127.0.0.1", 0)) as dying:
        lost, stays = Worker("127.0.0.1", dying.getsockname()[1]), listening()
        workers = Workers((lost, stays))
        machine = _machine(program("llama-server", _LISTS_ONE))
        workers.join(machine)
    found = workers.join_present(machine, in_use=False)
    assert [device.name for device in found.devices] == ["gpu0", stays.address]
    (server,) = found.engines or ()
    assert (server.workers, [entry.name for entry in server.devices]) == ((stays.address,), ["RPC0"])
    alone = Workers((lost,))
    assert alone.join_present(machine, in_use=False) == machine


def test_workers_in_use_are_not_asked_again(program: Program, listening: Callable[[], Worker], tmp_path: Path) -> None:
    """What they told last stands; one that was missing is asked for."""
    asked = tmp_path / "asked"
    machine = _machine(program("llama-server", f"echo $2 >> {asked}; {_LISTS_ONE}"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        used, missing = listening(), Worker("127.0.0.1", closed.getsockname()[1])
        workers = Workers((used, missing))
        assert len(workers.join_present(machine, in_use=False).devices) == 2
        closed.listen()
        assert len(workers.join_present(machine, in_use=True).devices) == 3
    assert asked.read_text().split() == [used.address, missing.address]


# --- The program ------------------------------------------------------------------------------------------------


def test_the_worker_program_beside_the_engine_is_taken(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of the same build; where the engine has none beside it, one on ``PATH`` is taken."""
    engine = program("llama-server", "")
    monkeypatch.setenv("LAUNCHER_LLAMA_SERVER", str(engine))
    beside = program("ggml-rpc-server", "")
    found = find_rpc_server()
    assert found is not None
    assert found.binary == beside
