"""Every command that listens stays on loopback, however the address is spelt, unless a key is required there."""

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from launcher.cli import app
from launcher.cli.serve import _check_engine
from launcher.domain import Address, Engine, EngineInstall, Plan, Request
from launcher.errors import EngineMissingError, LauncherError, UsageError
from launcher.gateway.gateway import Gateway
from launcher.gateway.keys import KEY_ENV, Keys, check_exposure
from launcher.inventory import load_inventory
from launcher.planner.fit import decide
from launcher.profiles import load_profile

pytestmark = pytest.mark.slow

_KEY: Final = "0123456789abcdef0123456789abcdef"
_BEYOND: Final = (
    *("0.0.0.0", "::", "::0", "0:0:0:0:0:0:0:0", "0", "0.0", "00.0.0.0", "0x0.0.0.0", "[::]", "*", ""),  # noqa: S104 - the very case
    *("::ffff:0.0.0.0", "::ffff:192.168.1.4", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "::127.0.0.1"),
    *(
        "192.168.1.4",
        "10.0.0.1",
        "172.16.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "8.8.8.8",
        "255.255.255.255",
        "224.0.0.1",
    ),
    *("2001:db8::1", "fe80::1", "fe80::1%lo", "fc00::1", "ff02::1"),
    *("example.org", "localhost.example.org", "127.0.0.1.nip.io", "localhost.", "LOCALHOST", "localhost.localdomain"),
    *(
        "ip6-localhost",
        "ip6-allnodes",
        "my-machine",
        "my-machine.local",
        "_gateway",
        "xn--lcalhost-54a",
        "l\u043ecalhost",
    ),
    *(
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.0.0.1.",
        "127.0.0.1:8080",
        "127.0.0.1/8",
        "[::1]",
    ),
    *(
        " 127.0.0.1",
        "127.0.0.1 ",
        "127.0.0.1\n",
        "127.0.0.1%lo",
        "\uff11\uff12\uff17.0.0.1",
        "::1%",
        "http://127.0.0.1",
        "unix:/tmp/x",
    ),
)
"""Addresses of all interfaces, of others, and what only some readers take for loopback."""
_ON_LOOPBACK: Final = ("127.0.0.1", "127.255.255.254", "::1", "0:0:0:0:0:0:0:1", "localhost")
_COMMANDS: Final = (
    ("serve", "x.toml"),
    ("serve", "x.toml", "--detach"),
    ("serve", "x.toml", "--cluster", "http://127.0.0.1:1"),
    ("serve", "x.toml", "--cluster", "http://127.0.0.1:1", "--detach"),
    ("serve", "x.toml", "--rpc", "127.0.0.1:50052"),
)


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A state of the test's own, a short profile, and no door open nor a process left in the end."""
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv(KEY_ENV, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("x.toml").write_text('name = "x"\n[[artifact]]\nquantization = "q8_0"\n')
    before = _listeners(), psutil.Process().children()
    yield
    assert (_listeners(), psutil.Process().children()) == before


def _listeners() -> set[Any]:
    return {tuple(each.laddr) for each in psutil.Process().net_connections("inet") if each.status == psutil.CONN_LISTEN}


def _run(*words: str) -> BaseException | None:
    return CliRunner().invoke(app, words).exception


@pytest.mark.parametrize("words", _COMMANDS)
def test_no_command_listens_beyond_loopback_without_a_key(words: Sequence[str], tmp_path: Path) -> None:
    """By option, each is a wrong usage before anything is started, measured or written."""
    for host in _BEYOND:
        error = _run(*words, "--host", host)
        assert isinstance(error, UsageError), (host, error)
        assert "API key" in error.message or "not `" in error.message, host
        assert error.help
    assert not (tmp_path / "state").exists()


def test_no_profile_opens_a_door(tmp_path: Path) -> None:
    """By `serve.host` of a profile: refused as a profile, or as wrong usage; also where it was written by somebody else."""
    for n, host in enumerate(_BEYOND):
        path = tmp_path / f"p{n}.toml"
        text = host.replace("\n", "\\n")
        path.write_text(f'name = "p{n}"\n[[artifact]]\nquantization = "q8_0"\n[serve]\nhost = "{text}"\n')
        error = _run("serve", str(path))
        assert isinstance(error, LauncherError), (host, error)
        assert "not a valid profile" in error.message or "API key" in error.message, (host, error)


def test_a_worker_never_listens_beyond_private_networks() -> None:
    """No key helps there: llama.cpp's RPC asks for none."""
    for host in (
        "0.0.0.0",  # noqa: S104 - the very case
        "0",
        "::",
        "::1",
        "8.8.8.8",
        "1.1.1.1",
        "255.255.255.255",
        "224.0.0.1",
        "",
        "172.32.0.1",
        "100.128.0.1",
        "192.169.0.1",
    ):
        error = _run("worker", "--host", host, "--port", "50052")
        assert isinstance(error, UsageError), (host, error)


def test_loopback_needs_no_key_and_a_key_opens_the_rest() -> None:
    """What the refusals leave."""
    for host in _ON_LOOPBACK:
        check_exposure(Address(host=host), Keys())
    for host in _BEYOND:
        check_exposure(Address(host=host), Keys((_KEY,)))
        with pytest.raises(UsageError):
            check_exposure(Address(host=host), Keys())


@pytest.mark.parametrize("bound", ["0.0.0.0", "127.0.0.1"])  # noqa: S104 - the very case
async def test_a_name_that_means_another_address_is_seen_through(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hosts file or a resolver may say anything of `localhost`: what counts is what was bound, before anybody is let in."""
    real = socket.getaddrinfo

    def lie(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        return real(bound if host == "localhost" else host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lie)
    before = _listeners()
    gateway = Gateway("m")
    if bound == "0.0.0.0":  # noqa: S104 - as above
        with pytest.raises(UsageError, match="API key"):
            await gateway.start(Address(host="localhost", port=None))
    else:
        address = await gateway.start(Address(host="localhost", port=None))
        assert {each[0] for each in _listeners() - before} == {"127.0.0.1"}
        assert address.port
        await gateway.stop(0.0)
    assert _listeners() == before


@pytest.mark.parametrize(
    "named",
    [
        EngineInstall(engine=Engine.LLAMA_SERVER, argv=("/bin/sh", "-c", "touch pwned")),
        EngineInstall(engine=Engine.LLAMA_SERVER, argv=("/usr/bin/llama-server",), env={"LD_PRELOAD": "/home/x.so"}),
        EngineInstall(engine=Engine.LLAMA_SERVER, argv=("/usr/bin/llama-server", "--slot-save-path", "/")),
    ],
)
def test_a_machine_from_a_file_names_no_program(named: EngineInstall, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started was found here: program, its first words and its environment."""
    found = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("/usr/bin/llama-server",))
    machine = load_inventory("cpu-64g")
    monkeypatch.setattr("launcher.inventory.probe_inventory", lambda: replace(machine, engines=(found,)))
    request = Request(profile=load_profile("gemma2-9b"))
    for install, is_refused in ((named, True), (found, False)):
        plan = decide(request, replace(machine, engines=(install,)))
        assert isinstance(plan, Plan)
        assert plan.install == install
        if is_refused:
            with pytest.raises(EngineMissingError, match="no engine found on this machine"):
                _check_engine(plan, "file.toml")
        else:
            _check_engine(plan, "file.toml")
