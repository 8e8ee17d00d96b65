"""How a dashboard is asked: what goes where with which token, and what is said where nobody answers."""

import gzip
import json
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.cluster import dashboard as module
from launcher.cluster import read_cluster
from launcher.cluster.dashboard import open_dashboard, read_token
from launcher.errors import ClusterAccessError, ClusterError, UsageError
from tests.cluster.conftest import TOKEN, FakeDashboard


def test_a_cluster_is_read_by_its_address(dashboard: FakeDashboard) -> None:
    """Four questions, and the nodes that were recorded; the scheme may be left out, a slash may follow."""
    found = read_cluster(dashboard.url)
    assert [len(node.devices) for node in found.nodes] == [0, 8, 2]
    assert sorted(dashboard.asked) == sorted(dashboard.answers)
    assert read_cluster(dashboard.url.removeprefix("http://") + "/") == found


def test_the_token_is_sent(dashboard: FakeDashboard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the variable, from the file that a variable names, from Ray's own file."""
    dashboard.token = TOKEN
    with pytest.raises(ClusterAccessError, match=r"\(401\): Unauthorized: Missing authentication token"):
        read_cluster(dashboard.url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(ClusterAccessError, match=r"\(403\): Forbidden: Invalid authentication token") as caught:
        read_cluster(dashboard.url)
    assert "RAY_AUTH_TOKEN" in str(caught.value.help)
    assert "wrong" not in f"{caught.value.message} {caught.value.help}"
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert len(read_cluster(dashboard.url).nodes) == 3
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / "token").write_text(TOKEN + "\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert len(read_cluster(dashboard.url).nodes) == 3
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
    assert len(read_cluster(dashboard.url).nodes) == 3


def test_no_token_is_no_token(dashboard: FakeDashboard) -> None:
    """Where nothing is set there is none."""
    assert dashboard.token is None
    assert read_token() is None


@pytest.mark.parametrize("content", [b"\xff\xfe", b"two words", b"line\nbreak"])
def test_what_is_no_token_is_not_sent(
    dashboard: FakeDashboard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    """A file of something else is an error that does not show it."""
    (tmp_path / "token").write_bytes(content)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ClusterError, match="token") as caught:
        read_cluster(dashboard.url)
    assert "words" not in caught.value.message
    assert dashboard.asked == []


def test_a_file_that_was_named_must_be_there(dashboard: FakeDashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt path is told, rather than no token sent."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(ClusterError, match="/nowhere/token"):
        read_cluster(dashboard.url)


@pytest.mark.parametrize(
    "url", ["http://10.1.2.3:8265", "https://ray.example/", "http://[2001:db8::1]:8265", "ray-head"]
)
def test_beyond_loopback_a_token_is_needed(dashboard: FakeDashboard, url: str) -> None:
    """Nothing is sent to an address beyond this machine without one."""
    assert dashboard.token is None
    with pytest.raises(UsageError, match="there is no token"), open_dashboard(url):
        pass


def test_whether_a_token_is_exposed_is_known(dashboard: FakeDashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is where it goes over a network without encryption."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    exposed = {}
    for url in (dashboard.url, "http://10.1.2.3", "https://10.1.2.3"):
        with open_dashboard(url) as client:
            exposed[url] = client.is_exposed
    assert exposed == {dashboard.url: False, "http://10.1.2.3": True, "https://10.1.2.3": False}


@pytest.mark.parametrize(
    "url",
    ["", "ftp://127.0.0.1", "http://", "http://user:secret@127.0.0.1", "http://127.0.0.1/?a=b", "http://[::1", "/x"],
)
def test_what_is_no_address_is_a_fault_of_usage(url: str) -> None:
    """An address with a password in it is not repeated."""
    with pytest.raises(UsageError) as caught, open_dashboard(url):
        pass
    assert "secret" not in f"{caught.value.message} {caught.value.help}"


def test_redirects_are_not_followed(dashboard: FakeDashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token would go where nobody said that it should."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    dashboard.redirect = "http://127.0.0.1:1"
    with pytest.raises(ClusterError, match="with 302"):
        read_cluster(dashboard.url)
    assert len(dashboard.asked) == 1


def test_another_program_is_told_from_a_dashboard(dashboard: FakeDashboard) -> None:
    """A server that has none of the pages, and one that has other ones."""
    dashboard.answers["/nodes?view=summary"] = b"<html>hello</html>"
    with pytest.raises(ClusterError, match="does not answer as Ray's dashboard does"):
        read_cluster(dashboard.url)
    dashboard.answers.clear()
    with pytest.raises(ClusterError, match="with 404"):
        read_cluster(dashboard.url)


def test_nobody_there_is_told(dashboard: FakeDashboard) -> None:
    """A port on which nothing listens, and one whose server hangs up."""
    assert dashboard.asked == []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ClusterError, match="nothing listens there"):
            read_cluster(f"http://127.0.0.1:{taken.getsockname()[1]}")


def test_an_endless_answer_is_cut(dashboard: FakeDashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is larger than any cluster's answer is not read to its end."""
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 1000)
    with pytest.raises(ClusterError, match="answers with more than"):
        read_cluster(dashboard.url)


def test_an_answer_that_trickles_is_cut(dashboard: FakeDashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time of a whole answer is over, not once a large part is full."""
    monkeypatch.setattr(module, "MAX_ANSWER_S", 0.0)
    dashboard.hold = threading.Event()
    try:
        with pytest.raises(ClusterError, match="for one answer"):
            read_cluster(dashboard.url)
    finally:
        dashboard.hold.set()


_OK = b"HTTP/1.1 200 OK\r\n"
_ENDLESS = {
    "packed": (_OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"")[:3] + b"\x08" + bytes(6), b"name"),
    "head": (_OK + b"X-Name: ", b"x"),
    "chunk": (_OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
}
"""What an answer begins with, and what then comes again and again without a byte of a body ever being there."""


@pytest.mark.parametrize("kind", _ENDLESS)
def test_an_answer_of_which_nothing_ever_comes_is_cut(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A packed one whose head has no end, a line of HTTP without one: something comes always, and it is never a part."""
    monkeypatch.setattr(module, "MAX_ANSWER_S", 0.3)
    monkeypatch.setattr(module, "_READ_S", 20.0)
    begin, more = _ENDLESS[kind]

    def trickle() -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.recv(4096)
            connection.sendall(begin)
            while not over.wait(0.02):
                connection.sendall(more)

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            began_s = time.monotonic()
            with pytest.raises(ClusterError, match="for one answer"):
                read_cluster(f"http://127.0.0.1:{listening.getsockname()[1]}")
            assert time.monotonic() - began_s < 10
        finally:
            over.set()
            thread.join()


def test_a_plan_for_a_cluster(dashboard: FakeDashboard) -> None:
    """The command reads the cluster and plans over it; its advice asks the same cluster again."""
    run = CliRunner()
    shown = run.invoke(app, ["plan", "gemma2-9b", "--cluster", dashboard.url])
    assert shown.exit_code == 0, shown.output
    assert "127.0.0.3/gpu0" in shown.output
    words = ["plan", "llama3.1-405b", "--engine", "vllm", "--quant", "bf16", "--cluster", dashboard.url, "--json"]
    as_json = run.invoke(app, words)
    assert as_json.exit_code == 3, as_json.output
    refused = json.loads(as_json.output)["refusal"]
    commands = [advice["argv"] for advice in refused["advice"]]
    assert commands
    for words in commands:
        assert ("--cluster" in words) is ("--inventory" not in words)


def test_the_hardware_of_a_cluster_is_a_file_for_plans(dashboard: FakeDashboard, tmp_path: Path) -> None:
    """What is printed as JSON is an inventory of several machines."""
    run = CliRunner()
    printed = run.invoke(app, ["hardware", "--cluster", dashboard.url, "--json"])
    assert printed.exit_code == 0, printed.output
    (tmp_path / "lab.json").write_text(printed.output)
    direct = run.invoke(app, ["plan", "gemma2-9b", "--cluster", dashboard.url, "--json"])
    by_file = run.invoke(app, ["plan", "gemma2-9b", "--inventory", str(tmp_path / "lab.json"), "--json"])
    assert json.loads(direct.output)["plan"]["budgets"] == json.loads(by_file.output)["plan"]["budgets"]
    assert "127.0.0.4" in run.invoke(app, ["hardware", "--cluster", dashboard.url]).output


def test_one_source_of_machines_at_a_time(dashboard: FakeDashboard) -> None:
    """A cluster and another machine contradict each other."""
    result = CliRunner().invoke(app, ["plan", "gemma2-9b", "--cluster", dashboard.url, "--inventory", "rtx4090"])
    assert isinstance(result.exception, UsageError)
    assert dashboard.asked == []
