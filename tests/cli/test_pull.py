"""``launch pull``, and ``serve`` of what is not here yet, as processes against a hub on loopback."""

import contextlib
import json
import os
import pty
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.hub import Handler, Hub, serve

SECRET = "hf_0123456789"  # noqa: S105  a secret for the test


@pytest.fixture(scope="module")
def model(real_model: Path) -> bytes:
    """The real model: what is served afterwards has to work."""
    return real_model.read_bytes()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty hub."""
    with serve(Hub()) as served:
        yield served


@pytest.fixture
def environ(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """An environment in which everything is the test's own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    folders = {
        "HF_HOME": str(tmp_path / "hf"),
        "LAUNCHER_CACHE_DIR": str(tmp_path / "cache"),
        "LAUNCHER_STATE_DIR": str(tmp_path / "state"),
        "HOME": str(tmp_path),
        "OLLAMA_MODELS": str(tmp_path / "none"),
    }
    return {
        **clean,
        "HF_ENDPOINT": hub.url,
        **folders,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


Launch = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch(environ: dict[str, str]) -> Launch:
    """Run the command to its end."""

    def call(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launcher", *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, env={**environ, **more}
        )

    return call


@pytest.fixture
def start(environ: dict[str, str]) -> Iterator[Start]:
    """Start the command; what still runs after the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def call(*words: str, limit: int | None = None, space: int | None = None, **more: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "launcher", *words]
        env = {**environ, **more}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        if limit is not None:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        if space is not None:
            resource.prlimit(process.pid, resource.RLIMIT_AS, (space, space))
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


class Gate:
    """A hub that sends a file as far as a half, and the rest when it is opened."""

    def __init__(self, hub: Hub, name: str, content: bytes) -> None:
        """Shut it."""
        self._name = name
        self._content = content
        self._half = len(content) // 2
        self.opened = threading.Event()
        self.reached = threading.Event()
        hub.fault = self._answer

    def _answer(self, handler: Handler) -> bool:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        if self._name not in handler.path or "resolve" not in handler.path or (asked and asked[2]):
            return False  # a header is read in ranges with an end
        first = int(asked[1]) if asked else 0
        size = len(self._content)
        headers = {"Content-Length": str(size - first), "ETag": '"one"'}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
        middle = max(first, self._half)
        handler.send(206 if asked else 200, self._content[first:middle], headers)
        handler.wfile.flush()
        self.reached.set()
        self.opened.wait(60)
        handler.wfile.write(self._content[middle:])
        return True


def partials(environ: dict[str, str]) -> list[Path]:
    """Return what is half here."""
    return list(Path(environ["HF_HOME"]).rglob("*.incomplete"))


def blob(environ: dict[str, str]) -> list[bytes]:
    """Return what is whole here."""
    blobs = Path(environ["HF_HOME"]).rglob("blobs/*")
    return [path.read_bytes() for path in blobs if path.suffix not in {".incomplete", ".etag"}]


def poll(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until a condition holds."""
    give_up_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_s, "it did not come to be"
        time.sleep(0.02)


@pytest.fixture
def tiny(hub: Hub) -> bytes:
    """A model of some megabytes that is no model at all but for its header; good enough to be pulled by file name."""
    from tests.fakes.hub import make_gguf  # noqa: PLC0415  numpy, only here

    content = make_gguf(n_vocab=20_000)
    hub.files = {"o/tiny": {"tiny-Q8_0.gguf": content}}
    return content


NAME = "hf:o/tiny:tiny-Q8_0.gguf"


def test_a_pull_says_what_it_did(launch: Launch, hub: Hub, environ: dict[str, str], tiny: bytes) -> None:
    """Text or JSON on stdout, progress as lines on stderr; a second one downloads nothing."""
    result = launch("pull", NAME)
    assert result.returncode == 0, result.stderr
    assert re.search(
        r"`tiny` at q8_0 is at \S+/tiny-Q8_0\.gguf\n  1 file, .* verified; .* downloaded in", result.stdout
    )
    assert "downloading tiny-Q8_0.gguf: " in result.stderr
    assert "\r" not in result.stderr
    assert blob(environ) == [tiny]
    again = launch("pull", "hf:o/tiny", "--quant", "Q8_0", "--json")
    assert again.returncode == 0, again.stderr
    pulled = json.loads(again.stdout)["pulled"]
    assert (pulled["quantization"], pulled["format"], pulled["n_fetched_bytes"]) == ("q8_0", "gguf", 0)
    assert Path(pulled["path"]).read_bytes() == tiny
    assert pulled["files"][0]["size_bytes"] == len(tiny)
    assert hub.log


def test_a_terminal_sees_one_line(environ: dict[str, str], tiny: bytes) -> None:
    """It is drawn over and over, and gone at the end; stdout is data alone."""
    assert tiny
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "pull", NAME, "--json"],
        stdout=subprocess.PIPE,
        stderr=follower,
        env=environ,
    )
    os.close(follower)
    output, _ = process.communicate(timeout=60)
    shown = b""
    try:
        while part := os.read(leader, 65536):
            shown += part
    except OSError:  # the other end is closed
        pass
    os.close(leader)
    assert process.returncode == 0
    assert b"\r\x1b[Kdownloading tiny-Q8_0.gguf" in shown
    assert shown.endswith(b"\r\x1b[K")
    assert shown.count(b"\n") == 1  # what was read to describe it
    assert b"pulled" in output
    assert b"downloading" not in output


def test_a_profile_is_pulled_by_its_name(launch: Launch, environ: dict[str, str], tiny: bytes, tmp_path: Path) -> None:
    """By the quantization that is named; the file is looked for where the profile says."""
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "mine.toml").write_text('name = "mine"\n[[artifact]]\nquantization = "q8_0"\nrepository = "o/tiny"\n')
    result = launch("pull", "mine", "--quant", "q8_0", "--json", LAUNCHER_PROFILES=str(folder))
    assert result.returncode == 0, result.stderr
    assert blob(environ) == [tiny]
    unknown = launch("pull", "mine", "--quant", "q2_k", LAUNCHER_PROFILES=str(folder))
    assert unknown.returncode == 2
    assert "`mine` has no q2_k\nhelp: it has q8_0" in unknown.stderr


def test_an_address_is_pulled(launch: Launch, hub: Hub, tiny: bytes, tmp_path: Path) -> None:
    """With its digest behind it, to this program's own folder."""
    import hashlib  # noqa: PLC0415  of this test alone

    url = f"{hub.url}/o/tiny/resolve/main/tiny-Q8_0.gguf"
    result = launch("pull", f"{url}#sha256={hashlib.sha256(tiny).hexdigest()}", "--json")
    assert result.returncode == 0, result.stderr
    path = Path(json.loads(result.stdout)["pulled"]["path"])
    assert path.is_relative_to(tmp_path / "cache" / "models")
    assert path.read_bytes() == tiny
    assert launch("pull", url).returncode == 2


@pytest.mark.parametrize(
    ("words", "more", "code", "said"),
    [
        (("hf:o/none:F.gguf",), {}, 1, "error[remote-missing]"),
        (("hf:o/tiny:none.gguf",), {}, 2, "error[usage]"),
        (("hf:o/tiny", "--quant", "q2_k"), {}, 2, "has no `q2_k`"),
        ((NAME,), {"HF_HUB_OFFLINE": "1"}, 1, "HF_HUB_OFFLINE is set"),
        ((NAME,), {"HF_ENDPOINT": "http://127.0.0.1:9"}, 1, "there is no connection to 127.0.0.1"),
        ((NAME,), {"HF_HUB_CACHE": "/proc/nowhere"}, 1, "error[d"),
        ((NAME,), {"HF_HUB_CACHE": "/dev/null/x"}, 1, "error[d"),
        (("nonsense",), {}, 2, "error[unknown-model]"),
    ],
)
def test_a_fault_is_one_clear_error(
    launch: Launch, tiny: bytes, *, words: tuple[str, ...], more: dict[str, str], code: int, said: str
) -> None:
    """Each names itself and proposes something, without a traceback, and nothing is on stdout."""
    assert tiny
    result = launch("pull", *words, **more)
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    assert said in result.stderr
    assert "\nhelp: " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_token_is_in_no_process_and_no_output(launch: Launch, hub: Hub, tiny: bytes, environ: dict[str, str]) -> None:
    """A gated repository opens to it; wrong or right, it is shown nowhere."""
    assert tiny
    hub.token, hub.gated = SECRET, True
    refused = launch("pull", NAME, HF_TOKEN="hf_wrong")  # noqa: S106
    assert refused.returncode == 1
    assert "is gated" in refused.stderr
    opened = launch("pull", NAME, HF_TOKEN=SECRET)
    assert opened.returncode == 0, opened.stderr
    said = refused.stdout + refused.stderr + opened.stdout + opened.stderr
    assert SECRET not in said
    assert "hf_wrong" not in said
    root = Path(environ["HOME"])
    assert not any(SECRET.encode() in path.read_bytes() for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_pull_goes_on_later(
    start: Start, launch: Launch, hub: Hub, environ: dict[str, str], tiny: bytes, *, number: int, code: int
) -> None:
    """It says so, ends as a shell expects, keeps what came and holds no lock."""
    gate = Gate(hub, "tiny-Q8_0.gguf", tiny)
    process = start("pull", NAME)
    assert gate.reached.wait(60)
    poll(lambda: [path for path in partials(environ) if path.stat().st_size == len(tiny) // 2])
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert "what came is kept" in said
    assert "Traceback" not in said
    gate.opened.set()
    result = launch("pull", NAME, "--json")
    assert json.loads(result.stdout)["pulled"]["n_fetched_bytes"] == len(tiny) - len(tiny) // 2
    assert blob(environ) == [tiny]


def test_a_killed_pull_goes_on_later(
    start: Start, launch: Launch, hub: Hub, environ: dict[str, str], tiny: bytes
) -> None:
    """SIGKILL leaves no lock and nothing under the final name; the next run asks for the rest alone."""
    gate = Gate(hub, "tiny-Q8_0.gguf", tiny)
    process = start("pull", NAME)
    assert gate.reached.wait(60)
    poll(lambda: [path for path in partials(environ) if path.stat().st_size == len(tiny) // 2])
    process.kill()
    process.wait()
    assert blob(environ) == []
    gate.opened.set()
    result = launch("pull", NAME, "--json")
    assert json.loads(result.stdout)["pulled"]["n_fetched_bytes"] == len(tiny) - len(tiny) // 2
    assert blob(environ) == [tiny]


@pytest.mark.parametrize("names", [("tiny-Q8_0.gguf",), ("tiny-Q8_0.gguf", "tiny-Q4_0.gguf")])
def test_what_cannot_be_served_here_is_brought_only_by_its_name(
    start: Start, hub: Hub, environ: dict[str, str], tiny: bytes, names: tuple[str, ...]
) -> None:
    """Whether a repository has one quantization or several: the refusal is told, and nothing comes."""
    hub.files = {"o/tiny": dict.fromkeys(names, tiny)}
    small = 1_200_000_000  # of address space, which the engine would have to do with
    refused = start("pull", "hf:o/tiny", space=small)
    _, said = refused.communicate(timeout=60)
    assert refused.returncode == 3, said
    assert "nothing was downloaded; `--quant` downloads one that this machine cannot serve" in said
    assert blob(environ) == []
    for name in ("hf:o/tiny:Q8_0", "hf:o/tiny:tiny-Q8_0.gguf"):
        named = start("pull", name, space=small)
        _, said = named.communicate(timeout=60)
        assert named.returncode == 0, said
    assert blob(environ) == [tiny]


@pytest.mark.parametrize("n", [2, 5])
def test_several_pulls_share_one_download(start: Start, hub: Hub, environ: dict[str, str], tiny: bytes, n: int) -> None:
    """The first downloads, the others wait, one takes over when it is killed: each byte comes once, and all end well."""
    gate = Gate(hub, "tiny-Q8_0.gguf", tiny)
    first = start("pull", NAME, "--json")
    assert gate.reached.wait(60)
    poll(lambda: [path for path in partials(environ) if path.stat().st_size == len(tiny) // 2])
    others = [start("pull", NAME, "--json") for _ in range(n - 1)]
    for process in others:
        assert process.stderr is not None
        assert next(line for line in process.stderr if "another process downloads" in line)
    gate.reached.clear()
    first.kill()
    first.wait()
    assert gate.reached.wait(30)
    gate.opened.set()
    fetched = []
    for process in others:
        output, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        fetched.append(json.loads(output)["pulled"]["n_fetched_bytes"])
    assert sorted(fetched) == [0] * (n - 2) + [len(tiny) - len(tiny) // 2]
    assert blob(environ) == [tiny]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 64 MiB; ``None`` where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        yield None
        return
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Write a file until there is no more room."""
    descriptor = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(descriptor, bytes(1 << 20))
    os.close(descriptor)


def test_a_disk_that_fills_up_meanwhile(
    start: Start, launch: Launch, hub: Hub, tiny: bytes, small_disk: Path | None
) -> None:
    """Others write while it downloads: told as what it is, what came is kept, and with room again the rest comes.

    Where no file system can be mounted, a limit on the size of files stands for the full one.
    """
    gate = Gate(hub, "tiny-Q8_0.gguf", tiny)
    half = len(tiny) // 2
    more = {} if small_disk is None else {"HF_HOME": str(small_disk)}
    process = start("pull", NAME, limit=None if small_disk is not None else half + 4096, **more)
    assert gate.reached.wait(60)
    if small_disk is not None:
        poll(lambda: [path for path in small_disk.rglob("*.incomplete") if path.stat().st_size == half])
        fill(small_disk)
    gate.opened.set()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error[disk-full]" in said
    assert "what has come is kept" in said
    if small_disk is not None:
        (small_disk / "filler").unlink()
    result = launch("pull", NAME, "--json", **more)
    assert result.returncode == 0, result.stderr
    assert 0 < json.loads(result.stdout)["pulled"]["n_fetched_bytes"] <= len(tiny) - half


def test_a_damaged_file_is_brought_again(launch: Launch, environ: dict[str, str], tiny: bytes) -> None:
    """It is said, set aside, and replaced; a file that is as it was is not read again."""
    path = Path(json.loads(launch("pull", NAME, "--json").stdout)["pulled"]["path"]).resolve()
    path.write_bytes(tiny[:-1] + b"\1")
    result = launch("pull", NAME, "--json")
    assert result.returncode == 0, result.stderr
    assert "does not have the sha256 that it should" in result.stderr
    (file,) = json.loads(result.stdout)["pulled"]["files"]
    assert Path(file["set_aside"]).read_bytes() == tiny[:-1] + b"\1"
    assert path.read_bytes() == tiny
    assert file["n_fetched_bytes"] == len(tiny)
    assert "set aside" not in launch("pull", NAME).stdout
    assert Path(environ["HF_HOME"]).is_dir()


def test_what_is_here_needs_no_place_to_write(launch: Launch, hub: Hub, tiny: bytes, tmp_path: Path) -> None:
    """A cache that others filled may be read-only: nothing is written, locked or downloaded."""
    assert launch("pull", NAME).returncode == 0
    (tmp_path / "hf").rename(tmp_path / "shared")
    locks = tmp_path / "shared" / "hub" / ".locks"
    for path in locks.rglob("*.lock"):
        path.unlink()
    asked = sum("Range" not in str(request.headers) for request in hub.log)
    result = launch("pull", NAME, "--json", HF_HOME=str(tmp_path / "shared"))
    assert json.loads(result.stdout)["pulled"]["n_fetched_bytes"] == 0
    assert list(locks.rglob("*.lock")) == []
    assert asked
    assert tiny


def test_an_interrupted_pull_waits_for_no_server(start: Start, hub: Hub, tiny: bytes) -> None:
    """Headers of several quantizations are read at once, from a server that may not answer for minutes."""
    hub.files = {"o/many": {f"tiny-{name}.gguf": tiny for name in ("Q8_0", "Q6_K", "Q4_K_M", "F16")}}
    silent, opened = threading.Event(), threading.Event()
    n_resolved: list[str] = []

    def fault(handler: Handler) -> bool:
        if "resolve" not in handler.path:
            return False
        n_resolved.append(handler.path)
        if len(n_resolved) == 1:
            return False
        silent.set()
        return opened.wait(120)

    hub.fault = fault
    process = start("pull", "hf:o/many", HF_HUB_DOWNLOAD_TIMEOUT="300")
    assert silent.wait(60)
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=60)
    finally:
        opened.set()
    assert process.returncode == 130


def test_what_was_not_compared_is_not_called_verified(launch: Launch, tiny: bytes, tmp_path: Path) -> None:
    """A file of one's own has no digest that it could be compared with: that is said."""
    path = tmp_path / "own-Q8_0.gguf"
    path.write_bytes(tiny)
    result = launch("pull", str(path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(", not verified: no digest is known; nothing was downloaded\n")


# --- Serving what is not here -----------------------------------------------------------------------------------


def test_nothing_is_downloaded_where_that_is_not_wanted(launch: Launch, tiny: bytes, environ: dict[str, str]) -> None:
    """By ``--no-pull``; the way to have it is named."""
    assert tiny
    result = launch("serve", "hf:o/tiny:Q8_0", "--no-pull", "--port", "0")
    assert result.returncode == 1
    assert "error[weights-missing]" in result.stderr
    assert "launch pull hf:o/tiny --quant q8_0" in result.stderr
    assert blob(environ) == []


@pytest.mark.engine
def test_what_is_served_is_downloaded_first(launch: Launch, start: Start, hub: Hub, model: bytes) -> None:
    """Planned, downloaded with its progress in the status, served; the second time it is here, without the hub too."""
    hub.files = {"o/gemma-GGUF": {"gemma-Q4_K_M.gguf": model}}
    gate = Gate(hub, "gemma-Q4_K_M.gguf", model)
    serving = start("serve", "hf:o/gemma-GGUF", "--port", "0", "--context", "512")
    assert gate.reached.wait(60)

    def status() -> dict[str, Any]:
        result = launch("status", "gemma", "--json")
        found: dict[str, Any] = json.loads(result.stdout) if result.returncode == 0 else {}
        return found

    poll(lambda: "downloading gemma-Q4_K_M.gguf" in ((status().get("record") or {}).get("fetching") or ""))
    assert status()["state"] == "starting"
    assert "download" in launch("status", "gemma").stdout
    gate.opened.set()
    poll(lambda: status().get("state") == "ready", 120)
    assert status()["record"]["fetching"] is None
    stopped = launch("stop", "gemma")
    assert stopped.returncode == 0, stopped.stderr
    _, said = serving.communicate(timeout=30)
    assert serving.returncode == 0, said
    assert said.count("`gemma` at q4_k_m with") == 1
    assert "of q4_k_m downloaded and verified" in said
    asked = len(hub.log)
    again = launch("serve", "hf:o/gemma-GGUF", "--port", "0", "--context", "512", "--detach", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert launch("stop", "gemma").returncode == 0
    assert len(hub.log) == asked


@pytest.mark.engine
def test_a_port_that_is_taken_is_told_before_the_download(launch: Launch, hub: Hub, model: bytes) -> None:
    """Nobody waits for weights that could not be served then."""
    hub.files = {"o/gemma-GGUF": {"gemma-Q4_K_M.gguf": model}}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = launch("serve", "hf:o/gemma-GGUF", "--port", port, "--context", "512")
    assert result.returncode == 1
    assert "error[port-in-use]" in result.stderr
    assert hub.n_sent < len(model)


@pytest.mark.engine
def test_a_service_shares_the_download_of_a_pull(launch: Launch, start: Start, hub: Hub, model: bytes) -> None:
    """It waits, says so in its status, takes over when the pull is killed, and serves."""
    hub.files = {"o/gemma-GGUF": {"gemma-Q4_K_M.gguf": model}}
    gate = Gate(hub, "gemma-Q4_K_M.gguf", model)
    pulling = start("pull", "hf:o/gemma-GGUF:gemma-Q4_K_M.gguf")
    assert gate.reached.wait(60)
    serving = start("serve", "hf:o/gemma-GGUF", "--port", "0", "--context", "512")

    def fetching() -> str:
        result = launch("status", "gemma", "--json")
        record = json.loads(result.stdout)["record"] if result.returncode == 0 else None
        return str((record or {}).get("fetching"))

    poll(lambda: "another process downloads" in fetching())
    pulling.kill()
    gate.opened.set()
    poll(lambda: launch("status", "gemma", "--json").stdout.count('"ready"'), 120)
    path = next(
        Path(artifact)
        for artifact in re.findall(r'"local_path": "([^"]+)"', launch("status", "gemma", "--json").stdout)
    )
    assert launch("stop", "gemma").returncode == 0
    serving.communicate(timeout=30)
    assert serving.returncode == 0
    with path.resolve().open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    refused = launch("serve", "hf:o/gemma-GGUF", "--port", "0", "--context", "512", "--no-pull")
    assert refused.returncode == 1
    assert "does not have the sha256 that it should" in refused.stderr


@pytest.mark.engine
def test_a_service_that_is_stopped_while_it_downloads(
    launch: Launch, start: Start, hub: Hub, environ: dict[str, str], model: bytes
) -> None:
    """`launch stop` ends it in order: nothing runs, what came is kept, and the state says so."""
    hub.files = {"o/gemma-GGUF": {"gemma-Q4_K_M.gguf": model}}
    gate = Gate(hub, "gemma-Q4_K_M.gguf", model)
    serving = start("serve", "hf:o/gemma-GGUF", "--port", "0", "--context", "512")
    assert gate.reached.wait(60)
    poll(lambda: launch("stop", "gemma").returncode == 0)
    _, said = serving.communicate(timeout=30)
    gate.opened.set()
    assert serving.returncode == 0, said
    assert "what was downloaded is kept" in said
    view = json.loads(launch("status", "gemma", "--json").stdout)
    assert (view["state"], view["reason"]) == ("stopped", "stopped while its weights were downloaded")
    assert len(partials(environ)) == 1


@pytest.mark.engine
def test_a_download_that_fails_is_the_instance_s_failure(
    launch: Launch, hub: Hub, model: bytes, environ: dict[str, str]
) -> None:
    """Wrong bytes are not served: exit code 1, the reason in the state, nothing under the name."""
    hub.files = {"o/gemma-GGUF": {"gemma-Q4_K_M.gguf": model}}

    def wrong(handler: Handler) -> bool:
        if "resolve" not in handler.path or "Range" in handler.headers:
            return False
        handler.send(200, model[:-1] + b"\0")
        return True

    hub.fault = wrong
    result = launch("serve", "hf:o/gemma-GGUF", "--port", "0", "--context", "512")
    assert result.returncode == 1
    assert "error[wrong-digest]" in result.stderr
    view = json.loads(launch("status", "gemma", "--json").stdout)
    assert view["state"] == "failed"
    assert "another digest" in view["reason"]
    assert blob(environ) == []


@pytest.mark.engine
def test_a_service_that_is_stopped_while_its_weights_are_compared(
    launch: Launch, start: Start, tiny: bytes, tmp_path: Path
) -> None:
    """They are here, and take minutes to read: the status says how far it is, `launch stop` ends it at once."""
    weights = tmp_path / "tiny-Q8_0.gguf"
    weights.write_bytes(tiny)
    with weights.open("ab") as file:
        file.truncate(256 << 30)
    profile = tmp_path / "tiny.toml"
    artifact = f"[[artifact]]\nquantization = 'q8_0'\nlocal_path = '{weights}'\n"
    profile.write_text(f"name = 'tiny'\n{artifact}files = [{{ name = '{weights.name}', sha256 = '{'0' * 64}' }}]\n")
    serving = start("serve", str(profile), "--port", "0", "--context", "512")
    poll(lambda: "checking what is here of tiny-Q8_0.gguf: " in launch("status", "tiny").stdout)
    assert launch("stop", "tiny").returncode == 0
    _, said = serving.communicate(timeout=10)
    assert serving.returncode == 0, said
    assert "checking the sha256 of tiny-Q8_0.gguf once: 256 GiB" in said
    view = json.loads(launch("status", "tiny", "--json").stdout)
    assert (view["state"], view["reason"]) == ("stopped", "stopped while its weights were compared with their sha256")
