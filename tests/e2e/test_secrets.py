"""No secret is where it must not be: unique ones are planted wherever the launcher reads any, and everything it leaves is searched.

The search is proved by finding each of them where it belongs. All of it runs under a umask that gives everything away, in a
folder of somebody's who has put modules there that Python would import from it.
"""

import base64
import contextlib
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psutil
import pytest

from launcher.domain import EngineInstall
from launcher.export import Target
from launcher.inventory.addresses import is_loopback
from launcher.supervisor.checks import free_port
from tests.fakes.planted import open_to_others
from tests.fakes.processes import heirs

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

_READY_S: Final = 150.0
_DEBUG: Final = {
    "PYTHONDEVMODE": "1",
    "PYTHONASYNCIODEBUG": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONWARNINGS": "default",
    "DEBUG": "1",
    "RUST_BACKTRACE": "full",
    "LLAMA_LOG_VERBOSITY": "5",
}
"""Switches by which programs tell more of themselves."""
_SHADOWS: Final = ("secrets", "shlex", "uuid", "aiohttp", "llama_cpp", "launcher", "sitecustomize")
"""Modules that a folder of somebody's may hold."""


class Sentinels:
    """Unique secrets, each with the place where it belongs."""

    def __init__(self, folder: Path) -> None:
        """Plant those that stand in files below ``folder``."""
        self.secret = {
            name: f"sentinel{name}{secrets.token_hex(12)}"
            for name in (
                "keyfile",
                "keyvariable",
                "hub",
                "hubfile",
                "ray",
                "rayfile",
                "proxy",
                "endpoint",
                "address",
                "profile",
                "client",
                "crash",
            )
        }
        self.folder = folder / "planted"
        self.folder.mkdir(mode=0o700)
        for name in ("keyfile", "hubfile", "rayfile"):
            path = self.folder / name
            path.touch(mode=0o600)
            path.write_text(f"{self.secret[name]}\n")
        profile = self.folder / "mine.toml"
        profile.touch(mode=0o600)
        profile.write_text(
            f'name = "mine"\n[model]\nurls = ["https://me:{self.secret["profile"]}@example.org/x"]\n[[artifact]]\nquantization = "q8_0"\n'
        )

    def environment(self) -> dict[str, str]:
        """Return the variables that hold secrets."""
        return {
            "LAUNCHER_API_KEY": self.secret["keyvariable"],
            "HF_TOKEN": self.secret["hub"],
            "HF_TOKEN_PATH": str(self.folder / "hubfile"),
            "RAY_AUTH_TOKEN": self.secret["ray"],
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "rayfile"),
            "HTTPS_PROXY": f"http://me:{self.secret['proxy']}@127.0.0.1:9",
            "ALL_PROXY": f"me:{self.secret['proxy']}@127.0.0.1:9",
        }

    def find(self, data: bytes) -> set[str]:
        """Return the names of the secrets that are in some bytes: as they are, in an address, or as basic authentication has them."""
        return {name for name, forms in self.forms().items() if any(form in data for form in forms)}

    def forms(self) -> dict[str, tuple[bytes, ...]]:
        """Return how each may be written; a secret encoded at any of three offsets has the same middle."""
        return {
            name: (
                secret.encode(),
                quote(secret, safe="").encode(),
                *(base64.b64encode(b"x" * offset + secret.encode())[4:-4] for offset in range(3)),
            )
            for name, secret in self.secret.items()
        }


class Stage:
    """One user's machine: a home, a state, a cache, a temporary folder, and the commands that are run there."""

    def __init__(self, folder: Path, launch: tuple[str, ...]) -> None:
        """Make the folders; what is run is told to ``told``."""
        self.sentinels = Sentinels(folder)
        # Where there is no command, Python is told by `-P` to keep away from the folder that it is started in.
        self.folder, self._launch = folder, (launch[0], "-P", *launch[1:]) if launch[1:] else launch
        self.work = folder / "work"
        for name in ("home", "tmp", "work"):
            (folder / name).mkdir(mode=0o700)
        self.pwned = folder / "home" / "pwned"
        for name in _SHADOWS:
            (self.work / f"{name}.py").write_text(f"open({str(self.pwned)!r}, 'a').write({name!r} + chr(10))\n")
        self.environment = {
            **os.environ,
            **self.sentinels.environment(),
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "LAUNCHER_STATE_DIR": str(folder / "state"),
            "LAUNCHER_CACHE_DIR": str(folder / "cache"),
        }
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "CI"):
            self.environment.pop(name, None)
        self.told: list[tuple[str, bytes]] = []
        self.port = free_port("127.0.0.1")

    def run(
        self, *words: str, more: dict[str, str] | None = None, expect: int | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, with and without what it prints being asked for as JSON by the words."""
        done = self._run(self._launch + words, more or {})
        self.told.append((" ".join(words), done.stdout + done.stderr))
        if expect is not None:
            assert done.returncode == expect, (words, done)
        return done

    def _run(self, argv: Sequence[str], more: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            argv,
            capture_output=True,
            env={**self.environment, **more},
            cwd=self.work,
            timeout=200,
            check=False,
            umask=0,
        )

    def run_python(self, code: str) -> subprocess.CompletedProcess[bytes]:
        """Run a program of the test's, told as the commands are."""
        done = self._run([sys.executable, "-P", "-c", code], _DEBUG)
        self.told.append((code, done.stdout + done.stderr))
        return done

    def ask(self, path: str, headers: dict[str, str], body: object = None) -> int:
        """Ask the endpoint, and return the status; the whole answer is told."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            method = "GET" if body is None else "POST"
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            head = repr(response.getheaders()).encode()
            self.told.append((f"answer to {path}", head + response.read()))
            return response.status
        finally:
            connection.close()

    def processes(self) -> list[psutil.Process]:
        """Return what runs of ours: supervisors, guards, engines."""
        return heirs(self.environment["LAUNCHER_STATE_DIR"])

    def leaks(self) -> Iterator[str]:
        """Yield each secret that is somewhere in what was told or written; what was planted is left out."""
        for what, data in self.told:
            for name in self.sentinels.find(data):
                yield f"{name} in what `{what}` told"
        for path, data in self.files():
            for name in self.sentinels.find(data):
                yield f"{name} in {path}"

    def files(self) -> Iterator[tuple[Path, bytes]]:
        """Yield every file that commands could have written, and names of files with them."""
        for path in self.folder.rglob("*"):
            yield path, os.fsencode(path)
            if path.is_file() and self.sentinels.folder not in path.parents:
                yield path, path.read_bytes()


@pytest.fixture(name="stage")
def make_stage(tmp_path: Path, launch: tuple[str, ...]) -> Iterator[Stage]:
    """A machine on which nothing is left running."""
    stage = Stage(tmp_path, launch)
    yield stage
    for process in stage.processes():
        with contextlib.suppress(psutil.Error):
            process.kill()


def _await(condition: Callable[[], bool], what: str, timeout_s: float = _READY_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.05)


def test_commands_tell_no_secret(stage: Stage, real_model: Path) -> None:
    """What plans, lists, measures and exports; what fails with an address that holds a password; a fault of our own."""
    secret = stage.sentinels.secret
    model = str(real_model)
    for command in ("plan", "footprint", "inspect"):
        stage.run(command, model, "--json", expect=0)
    for command in ("hardware", "list", "ps"):
        stage.run(command, "--json", expect=0)
    for words in (
        ("doctor", model, "--json"),
        ("explain", "bad-api-key"),
        ("systemd", "render", model),
        ("pull", "gemma2-9b"),
    ):
        stage.run(*words)  # what they find on a machine of the test's is not the matter here
    stage.run("plan", f"https://me:{secret['address']}@example.org/x.gguf", "--json", expect=2)
    stage.run("plan", f"https:/me:{secret['address']}@example.org/x.gguf", "--json", expect=1)
    stage.run("footprint", f"https://{secret['address']}@example.org/x.gguf", expect=1)
    stage.run("plan", "llama3.1-8b", "--cluster", f"http://me:{secret['address']}@127.0.0.1:9", "--json", expect=2)
    stage.run("plan", "llama3.1-8b", "--cluster", "http://127.0.0.1:9", "--json", expect=1)
    stage.run("plan", "hf:OWNER/NAME", "--json", expect=1)  # by way of the proxy, at which nobody listens
    endpoint = {"HF_ENDPOINT": f"https://me:{secret['endpoint']}@hub.invalid"}
    stage.run("plan", "hf:OWNER/NAME", "--json", more=endpoint, expect=2)
    stage.run("plan", str(stage.sentinels.folder / "mine.toml"), "--json", expect=1)
    stage.run("serve", model, "--api-key-file", str(stage.folder / "missing"), expect=1)
    stage.run("serve", model, "--host", f"http://me:{secret['address']}@0.0.0.0", expect=2)
    for target in Target:
        stage.run("export", "llama3.1-8b", "--inventory", "rtx4090", "--to", target, "--output", f"exported.{target}")
    crash = f"raise ValueError('{secret['hub']} in http://me:{secret['crash']}@host/x')"
    done = stage.run_python(f"import launcher.cli as c\ndef fail(*a):\n    {crash}\nc.app = fail\nc.main()")
    assert done.returncode == 1
    assert b"ValueError" in done.stderr
    assert b"Traceback" in done.stderr
    _check(stage)


def test_what_is_served_keeps_its_secrets(stage: Stage, real_model: Path, llama_server: EngineInstall) -> None:
    """From the start to the stop of a real engine that is killed, by a supervisor that is killed; with clients of all kinds."""
    del llama_server
    secret = stage.sentinels.secret
    words = ("serve", str(real_model), "--engine", "llama-server", "--context", "512", "--port", str(stage.port))
    keyed = (*words, "--api-key-file", str(stage.sentinels.folder / "keyfile"), "--detach")
    stage.run(*keyed, more=_DEBUG, expect=0)
    name = json.loads(stage.run("ps", "--json", expect=0).stdout)["instances"][0]["name"]
    _check_processes(stage)

    _ask_as_clients_do(stage)
    for reading in (
        ("ps",),
        ("ps", "--json"),
        ("status", name),
        ("status", name, "--json"),
        ("logs", name, "-n", "100000"),
        ("top", name),
        ("top", "--json", "--api-key-file", str(stage.sentinels.folder / "keyfile")),
    ):
        stage.run(*reading, expect=0)
    figures = json.loads(stage.told[-1][1])["instances"][0]["figures"]
    assert figures["memories"], "the key opened them"
    talk = ("chat", name, "--message", "hi", "--max-tokens", "2")
    for more in ((), ("--api-key-file", str(stage.sentinels.folder / "keyfile"))):
        assert b"[answer-incomplete]" in stage.run(*talk, *more, more=_DEBUG, expect=1).stderr  # it came to its limit
    assert b"[endpoint-access]" in stage.run(*talk, more={"LAUNCHER_API_KEY": "f" * 24}, expect=1).stderr
    measure = ("bench", name, "--repetitions", "1", "--seconds", "120", "--json")
    stage.run(*measure, "--api-key-file", str(stage.sentinels.folder / "keyfile"), expect=0)
    assert b"[endpoint-access]" in stage.run(*measure, more={"LAUNCHER_API_KEY": "f" * 24}, expect=1).stderr

    _engine(stage).kill()
    good = {"Authorization": f"Bearer {secret['keyvariable']}"}
    _await(lambda: stage.ask("/v1/completions", good, {"prompt": "1 2", "max_tokens": 2}) == 200, "it is back")
    _check_processes(stage)  # with a new key of its own
    _check(stage)

    supervisor = psutil.Process(json.loads(stage.run("status", name, "--json").stdout)["record"]["supervisor"]["pid"])
    supervisor.send_signal(signal.SIGKILL)
    _await(lambda: not stage.processes(), "nothing outlives it", 60)
    for reading in (("ps", "--all", "--json"), ("status", name), ("logs", name, "-n", "100000")):
        stage.run(*reading)
    stage.run(*keyed, expect=0)
    stage.run("stop", name, expect=0)
    assert stage.processes() == []
    _check(stage)
    assert {path.name for path in (stage.folder / "state").rglob("*")} >= {
        "engine.log",
        "events.jsonl",
        "instance.json",
    }


def _engine(stage: Stage) -> psutil.Process:
    (found,) = [process for process in stage.processes() if "--alias" in process.cmdline()]
    return found


def _ask_as_clients_do(stage: Stage) -> None:
    """Ask with a right key in each way, with a wrong one in each place, and with a right one where it does not belong."""
    secret = stage.sentinels.secret
    work = {"prompt": "1 2 3", "max_tokens": 4, "api_key": secret["client"]}
    for right in (secret["keyfile"], secret["keyvariable"]):
        for headers in ({"Authorization": f"Bearer {right}"}, {"X-Api-Key": right}):
            assert stage.ask("/v1/completions", headers, {"prompt": "1 2 3", "max_tokens": 4}) == 200
            for path in ("/metrics", "/health", "/v1/models", "/props", "/slots", "/v1/nowhere"):
                assert stage.ask(path, {**headers, "Cookie": f"k={right}", "Api-Key": right}) != 401
    for headers in (
        {"Authorization": f"Bearer {secret['client']}"},
        {"Authorization": f"Basic {base64.b64encode(secret['client'].encode()).decode()}"},
        {"X-Api-Key": secret["client"]},
        {"Cookie": f"key={secret['client']}"},
        {},
    ):
        for path in ("/v1/completions", f"/v1/completions?key={secret['client']}", f"/{secret['client']}"):
            assert stage.ask(path, headers, work) == 401
        assert stage.ask("/metrics", headers) == 401
        assert stage.ask("/health", headers) == 200
    assert stage.ask(f"/{secret['client']}?key={secret['client']}", {"X-Api-Key": secret["keyfile"]}) == 404
    # An answer may repeat to a client what it sent, an engine's log may not.
    stage.told = [
        (what, data.replace(secret["client"].encode(), b"") if what.startswith("answer") else data)
        for what, data in stage.told
    ]


def _check(stage: Stage) -> None:
    """Hold what is promised of all that was told and written until now, and prove that it would have been found."""
    sentinels = stage.sentinels
    assert sorted(set(stage.leaks())) == []
    assert not stage.pwned.exists(), stage.pwned.read_text()
    for place in ("state", "cache", "tmp", "home"):
        if (stage.folder / place).exists():
            assert list(open_to_others(stage.folder / place)) == []
    for name in ("keyfile", "hubfile", "rayfile"):
        assert sentinels.find((sentinels.folder / name).read_bytes()) == {name}
    assert sentinels.find("\n".join(stage.environment.values()).encode()) == {"keyvariable", "hub", "ray", "proxy"}
    for name, value in sentinels.secret.items():
        basic = base64.b64encode(f"me:{value}".encode())
        assert sentinels.find(b"Authorization: Basic " + basic) == {name}
    told, stage.told = stage.told, [*stage.told, ("control", sentinels.secret["proxy"].encode())]
    (stage.folder / "home" / "control").write_text(sentinels.secret["ray"])
    assert sorted(stage.leaks()) == ["proxy in what `control` told", f"ray in {stage.folder / 'home' / 'control'}"]
    (stage.folder / "home" / "control").unlink()
    stage.told = told


def _check_processes(stage: Stage) -> None:
    """Hold what is promised of running processes, and add the engine's own key to what is searched for."""
    engine = _engine(stage)
    own_key = engine.environ()["LLAMA_API_KEY"]
    assert len(own_key) >= 32
    stage.sentinels.secret[f"engine{len(stage.sentinels.secret)}"] = own_key
    processes = stage.processes()
    knowing = {"keyvariable", "hub", "ray", "proxy"}
    roles = set()
    for process in processes:
        words = b"\0".join(os.fsencode(word) for word in process.cmdline())
        assert stage.sentinels.find(words) == set(), process.cmdline()
        found = stage.sentinels.find(Path(f"/proc/{process.pid}/environ").read_bytes())
        is_supervisor = "launcher" in process.cmdline()
        roles.add("supervisor" if is_supervisor else "engine" if process == engine else "guard")
        if is_supervisor:
            assert found == knowing  # it needs them; and so the search finds them where they are
        elif process == engine:
            assert {name.rstrip("0123456789") for name in found} == {"engine"}
        else:
            assert found == set(), process.cmdline()
        for listening in process.net_connections("inet"):
            assert listening.status != psutil.CONN_LISTEN or is_loopback(listening.laddr.ip)
    assert roles == {"supervisor", "guard", "engine"}
