"""The messages of ``sd_notify``, through real datagram sockets."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.supervisor.service_manager import ServiceManager, microseconds, take_over
from tests.fakes.harness import poll
from tests.fakes.manager import Manager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """One that listens where systemd does: at a path, or in the abstract namespace."""
    made = Manager(tmp_path / "notify" if request.param == "path" else f"@launcher-test-{os.getpid()}-{id(request)}")
    yield made
    made.close()


def test_a_message_arrives_as_one_datagram_of_lines(manager: Manager) -> None:
    """Several values are one message, from this process."""
    ours = ServiceManager(manager.address)
    ours.tell({"READY": "1", "STATUS": "ready"})
    assert poll(lambda: manager.messages)
    assert manager.messages[0].fields == {"READY": "1", "STATUS": "ready"}
    assert manager.messages[0].pid == os.getpid()
    ours.close()


def test_progress_is_told_in_words_and_extends_the_start(manager: Manager) -> None:
    """What happens before the supervisor lives, a download for one, is not cut off while it goes on."""
    ours = ServiceManager(manager.address)
    ours.tell_progress("downloading, 12 %", next_within_s=90.0)
    assert poll(lambda: manager.messages)
    assert manager.messages[0].fields == {
        "STATUS": "starting: downloading, 12 %",
        "EXTEND_TIMEOUT_USEC": "90000000",
    }
    ours.close()


def test_an_engines_words_cannot_become_a_message(manager: Manager) -> None:
    """A status of several lines is one line: what follows a line break would be a message of its own."""
    ours = ServiceManager(manager.address)
    ours.tell({"STATUS": "failed:\nREADY=1\r\x00é\ud800" + "x" * 1000})
    assert poll(lambda: manager.messages)
    (fields,) = [message.fields for message in manager.messages]
    assert set(fields) == {"STATUS"}
    assert fields["STATUS"].startswith("failed: READY=1  é")
    assert len(fields["STATUS"]) <= 400
    ours.close()


def test_what_a_full_queue_does_not_take_goes_with_the_next_message(tmp_path: Path) -> None:
    """Nothing waits, nothing is lost: the latest value of each name arrives once there is room."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.bind(str(path))
        ours = ServiceManager(str(path))
        for n in range(2000):  # the kernel's own bound on waiting datagrams is far below
            ours.tell({"STATUS": str(n)})
        ours.tell({"READY": "1"})
        full.setblocking(False)  # noqa: FBT003 - the standard library's signature
        received = []
        while (data := _receive(full)) is not None:
            received.append(data)
        assert not [data for data in received if b"READY" in data]
        ours.tell()
        assert _receive(full) == b"STATUS=1999\nREADY=1\n"
        ours.close()


def _receive(listener: socket.socket) -> bytes | None:
    try:
        return listener.recv(1 << 16)
    except BlockingIOError:
        return None


def test_a_manager_that_is_gone_is_no_fault(tmp_path: Path) -> None:
    """A manager that restarts has no socket for a moment; what was said then arrives afterwards."""
    path = tmp_path / "notify"
    ours = ServiceManager(str(path))
    ours.tell({"READY": "1"})
    there = Manager(path)
    ours.tell({"WATCHDOG": "1"})
    assert poll(lambda: there.messages)
    assert there.messages[0].fields == {"READY": "1", "WATCHDOG": "1"}
    there.close()
    ours.close()


def test_a_sign_of_life_is_of_its_moment(tmp_path: Path) -> None:
    """One that could not be sent does not go with a later message: by then nothing may live any more."""
    path = tmp_path / "notify"
    ours = ServiceManager(str(path))
    ours.tell({"WATCHDOG": "1", "STATUS": "ready"})
    there = Manager(path)
    ours.tell()
    assert poll(lambda: there.messages)
    assert there.messages[0].fields == {"STATUS": "ready"}
    there.close()
    ours.close()


def test_the_environment_is_taken_over() -> None:
    """What this process starts finds neither the address nor the watchdog's time."""
    environ = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
    ours = take_over(environ)
    assert (ours.is_listening, ours.watchdog_s) == (True, 30.0)
    assert environ == {"A": "b"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (False, None)),
        ({"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "5"}, (False, None)),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, (False, None)),
        ({"NOTIFY_SOCKET": "@"}, (False, None)),
        ({"NOTIFY_SOCKET": "@x"}, (True, None)),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1500000"}, (True, 1.5)),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, (True, None)),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"}, (True, None)),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "-1"}, (True, None)),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"}, (True, None)),
    ],
)
def test_an_address_is_a_path_or_a_name_and_a_watchdog_is_of_this_process(
    environ: dict[str, str], expected: tuple[bool, float | None]
) -> None:
    """Whatever else stands there counts as nothing; a watchdog of another process is none of ours."""
    ours = take_over(environ)
    assert (ours.is_listening, ours.watchdog_s) == expected


def test_nobody_is_told_where_nobody_listens() -> None:
    """Outside of systemd nothing is sent, opened or kept."""
    ours = ServiceManager()
    ours.tell({"READY": "1"})
    ours.close()
    assert not ours.is_listening


def test_times_are_whole_microseconds() -> None:
    """The protocol knows no fractions."""
    assert microseconds(1.5) == "1500000"
    assert microseconds(0.0000004) == "0"
