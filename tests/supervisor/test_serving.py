"""Serving a real process that behaves, misbehaves, and is told to end."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.domain import State
from launcher.store import find_instance
from tests.fakes.harness import Served, poll

Serve = Callable[..., Served]
ONE_TRY = {"restarts": {"n_start_deaths": 1}}
QUICK_RESTARTS = {"restarts": {"first_delay_s": 0.05, "jitter_s": 0.0}}


def test_it_becomes_ready_and_stops_on_sigterm(serve: Serve, state_dir: Path) -> None:
    """The whole life without a fault; exit code 0, every act in order, nothing left, the folder closed to others."""
    served = serve("--load-s", "0.3", "--fork-child")
    served.await_event("engine.ready")
    assert find_instance("fake").state is State.READY
    assert len(served.tree()) == 2
    served.process.terminate()
    assert served.end() == 0
    assert served.events() == [
        "engine.spawned",
        "engine.ready",
        "instance.stopping",
        "engine.exited",
        "instance.stopped",
    ]
    assert served.tree() == []
    view = find_instance("fake")
    assert (view.state, view.supervisor_alive) == (State.STOPPED, False)
    folder = state_dir / "instances" / "fake"
    assert {path.name for path in folder.iterdir()} == {"instance.json", "lock", "engine.log", "events.jsonl"}
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o600"}
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_stop_it_too(serve: Serve, number: signal.Signals) -> None:
    """SIGINT and SIGHUP are as good as SIGTERM, also before it is ready."""
    served = serve("--never-ready")
    served.await_event("engine.spawned")
    served.process.send_signal(number)
    assert served.end() == 0
    assert served.tree() == []


def test_a_second_ctrl_c_forces(serve: Serve) -> None:
    """An engine that ignores SIGTERM is given its grace; a second Ctrl-C ends that at once."""
    served = serve("--ignore-sigterm", options={"grace_s": 600.0})
    served.await_event("engine.ready")
    served.process.send_signal(signal.SIGINT)
    served.await_event("instance.stopping")
    assert len(served.tree()) == 1
    served.process.send_signal(signal.SIGINT)
    assert served.end() == 0
    assert served.tree() == []


def test_an_engine_that_hears_the_second_sigterm_alone_is_not_killed(serve: Serve) -> None:
    """As vLLM while it loads: asked again within its grace, it ends by itself."""
    served = serve("--ignore-first-sigterm", options={"grace_s": 4.0})
    served.await_event("engine.ready")
    served.process.terminate()
    assert served.end() == 0
    (exited,) = [notice for notice in served.notices() if notice["event"] == "engine.exited"]
    assert "exit code 0" in exited["text"]


def test_the_kill_ladder_ends_a_stubborn_tree(serve: Serve) -> None:
    """Grandchildren that left session and parents and ignore SIGTERM are gone after the grace."""
    served = serve("--stubborn-tree", "--escapee", "--ignore-sigterm", options={"grace_s": 0.3})
    served.await_event("engine.ready")
    assert poll(lambda: len(served.tree()) == 5)
    served.process.terminate()
    assert served.end() == 0
    assert served.tree() == []


def test_what_a_finished_engine_left_is_killed(serve: Serve) -> None:
    """The engine's main process is killed: its stubborn tree goes before the next engine starts."""
    served = serve("--stubborn-tree", "--escapee", options=QUICK_RESTARTS)
    served.await_event("engine.ready")
    assert poll(lambda: len(served.tree()) == 5)
    first = set(served.tree())
    signal_engine(served, signal.SIGKILL)
    served.await_event("engine.ready", 2)
    assert first.isdisjoint(served.tree())
    assert served.events().index("instance.backoff") > served.events().index("engine.exited")


def signal_engine(served: Served, number: signal.Signals) -> None:
    """Send a signal to the engine's main process alone."""
    os.kill(served.engine_pid(), number)


def test_too_many_deaths_end_in_failed_with_the_telling_lines(serve: Serve) -> None:
    """Three deaths within the window: failed, with the reason, and the record says so too."""
    served = serve(
        "--say",
        "ggml: the gpu fell off the bus: error 79",
        "--exit-after-s",
        "1.0",
        "--exit-code",
        "7",
        options={"restarts": {"n_deaths": 3, "n_start_deaths": 100, "first_delay_s": 0.01, "jitter_s": 0.0}},
    )
    assert served.end() == 1
    assert served.events().count("engine.spawned") == 3
    assert "error[engine-failed]: the engine ended while it served (exit code 7)" in served.error()
    assert "3 deaths" in served.error()
    assert "  ggml: the gpu fell off the bus: error 79" in served.error()
    view = find_instance("fake")
    assert view.state is State.FAILED
    assert view.record is not None
    assert (view.record.n_restarts, view.record.last_exit) == (2, "exit code 7")


def test_a_crash_is_followed_by_a_restart(serve: Serve, tmp_path: Path) -> None:
    """One crash while it loads: the second start serves."""
    crash = tmp_path / "crash"
    crash.touch()
    served = serve("--crash-file", str(crash), "--exit-signal", "11", options=QUICK_RESTARTS)
    served.await_event("engine.ready")
    assert served.events()[:4] == ["engine.spawned", "engine.exited", "engine.failed", "instance.backoff"]


def test_a_stop_ends_the_wait_before_a_restart(serve: Serve) -> None:
    """In backoff there is nothing to wait for."""
    served = serve("--exit-after-load", "3", options={"restarts": {"first_delay_s": 3000.0, "max_delay_s": 3000.0}})
    served.await_event("instance.backoff")
    assert find_instance("fake").state is State.BACKOFF
    served.process.terminate()
    assert served.end() == 0


def test_want_of_memory_is_not_tried_again(serve: Serve) -> None:
    """The same plan would need the same memory."""
    line = "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9000.00 MiB on device 0: cudaMalloc failed: out of memory"
    served = serve("--say", line, "--exit-after-load", "1")
    assert served.end() == 1
    assert served.events().count("engine.spawned") == 1
    assert line in served.error()
    assert "help: plan with less" in served.error()


def test_a_silent_engine_stalls_and_a_slow_one_does_not(serve: Serve) -> None:
    """The limit is on silence: loading four times as long as the limit is well, as long as something moves."""
    slow = serve("--load-s", "2", name="slow", options={"stall_timeout_s": 0.5})
    silent = serve("--never-ready", name="silent", options={"stall_timeout_s": 0.5, **ONE_TRY})
    assert silent.end() == 1
    assert "the engine stalled while loading" in silent.error()
    slow.await_event("engine.ready")
    assert any(notice["event"] == "engine.loading" for notice in slow.notices())


def test_a_canary_that_never_answers_stalls(serve: Serve) -> None:
    """`/health` is 200 and nothing is ever completed: not ready."""
    served = serve("--canary-hangs", options={"stall_timeout_s": 0.5, **ONE_TRY})
    assert served.end() == 1
    assert "engine.ready" not in served.events()
    assert "stalled while answering its first request" in served.error()


def test_a_canary_that_fails_is_not_ready(serve: Serve) -> None:
    """An endpoint that is up and answers 500 is a failure, with its words."""
    served = serve("--canary-status", "500", options=ONE_TRY)
    assert served.end() == 1
    assert "engine.ready" not in served.events()
    assert "answered with status 500" in served.error()
    assert "compute error" in served.error()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["load_tensors: offloaded 4/19 layers to GPU", "load_tensors:  CUDA0 model buffer size =  9.00 MiB"],
            "4 of 19",
        ),
        (
            ["load_tensors: offloaded 19/19 layers to GPU", "load_tensors:   CPU model buffer size =  9.00 MiB"],
            "0 of 19",
        ),
        ([], "did not say"),
    ],
)
def test_a_silent_fall_back_to_the_cpu_is_a_failure(serve: Serve, lines: list[str], message: str) -> None:
    """Fewer layers on the GPU than planned, or none in truth, or none told: never served."""
    arguments = [argument for line in lines for argument in ("--say", line)]
    served = serve(*arguments, command={"expected_gpu_layers": 10})
    assert served.end() == 1
    assert "error[placement-mismatch]" in served.error()
    assert message in served.error()
    assert "engine.ready" not in served.events()


def test_a_wrong_placement_ends_a_long_load(serve: Serve) -> None:
    """What is known after seconds is not waited for: the engine would load for an hour."""
    lines = ["load_tensors: offloaded 19/19 layers to GPU", "load_tensors:   CPU model buffer size =  9.00 MiB"]
    arguments = [argument for line in lines for argument in ("--say", line)]
    served = serve(*arguments, "--load-s", "3600", command={"expected_gpu_layers": 10})
    assert served.end() == 1
    assert "error[placement-mismatch]" in served.error()


def test_a_taken_port_is_named_before_anything_starts(serve: Serve) -> None:
    """The holder of the port is named, and no engine is started."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        served = serve(port=holder.getsockname()[1])
        assert served.end() == 1
    assert served.events() == []
    assert "error[port-in-use]" in served.error()
    assert f"is taken by process {os.getpid()} (" in served.error()
    assert "help: choose another with `--port`" in served.error()


def test_an_answer_from_another_process_is_not_readiness(serve: Serve) -> None:
    """Somebody takes the port between the check and the engine's own bind, and answers 200: refused."""
    served = serve("--no-bind", name="robbed")
    served.await_event("engine.spawned")
    thief = serve(name="thief", port=served.port)
    assert served.end() == 1
    assert "engine.ready" not in served.events()
    assert "error[port-in-use]" in served.error()
    assert "not by the engine" in served.error()
    assert str(thief.engine_pid()) in served.error()
    thief.process.terminate()
    assert thief.end() == 0


def test_a_program_that_is_not_there(serve: Serve) -> None:
    """A clear error, and nothing started."""
    served = serve(command={"argv": ["/nowhere/llama-server"]})
    assert served.end() == 1
    assert "error[engine-missing]: the engine /nowhere/llama-server" in served.error()
    assert served.events() == []


def test_a_program_that_cannot_be_executed(serve: Serve, tmp_path: Path) -> None:
    """An executable file of no format: the guard's own failure to start it is final."""
    program = tmp_path / "garbage"
    program.write_bytes(b"\x7fELF garbage")
    program.chmod(0o755)
    served = serve(command={"argv": [str(program)]})
    assert served.end() == 1
    assert "cannot be executed: exec format error" in served.error()


def test_two_serves_of_one_name(serve: Serve) -> None:
    """The second is told who serves and how to stop it; the first is not disturbed."""
    first = serve()
    first.await_event("engine.ready")
    second = serve()
    assert second.end() == 1
    assert f"error[already-served]: `fake` is already served by process {first.process.pid}" in second.error()
    assert "launch stop fake" in second.error()
    assert first.process.poll() is None
    assert len(first.tree()) == 1


def test_a_secret_is_in_no_file(serve: Serve, state_dir: Path) -> None:
    """A key in the command's environment reaches the engine, and neither log, record nor events."""
    served = serve("--echo-env", "FAKE_API_KEY", command={"env": {"FAKE_API_KEY": "s3cret-s3cret"}})
    served.await_event("engine.ready")
    served.process.terminate()
    served.end()
    written = b"".join(path.read_bytes() for path in (state_dir / "instances" / "fake").iterdir())
    assert b"the key is ***" in written
    assert b"s3cret" not in written
    assert "s3cret" not in served.output.read_text()


def test_the_log_rotates_and_survives_any_bytes(serve: Serve, state_dir: Path) -> None:
    """Two files of bounded size, text that is no UTF-8, a last line without an end."""
    served = serve("--flood-lines", "2000", "--raw", options={"log_bytes": 50_000})
    served.await_event("engine.ready")
    log = state_dir / "instances" / "fake" / "engine.log"
    assert log.stat().st_size <= 50_000
    assert 0 < Path(f"{log}.1").stat().st_size <= 50_000
    assert "line 1999 " in log.read_text()


def test_a_log_that_cannot_be_written_does_not_end_serving(serve: Serve, state_dir: Path) -> None:
    """A directory stands where the log should be: one warning, and it serves."""
    (state_dir / "instances" / "fake" / "engine.log").mkdir(parents=True)
    served = serve("--flood-lines", "50")
    served.await_event("engine.ready")
    assert served.events().count("log.dropped") == 1


def test_events_are_json_lines_with_fixed_names(serve: Serve, state_dir: Path) -> None:
    """Each act is one line: when, its dotted name, its facts."""
    served = serve()
    served.await_event("engine.ready")
    served.process.terminate()
    served.end()
    lines = [json.loads(line) for line in (state_dir / "instances" / "fake" / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == served.events()
    assert all(abs(line["at"] - time.time()) < 60 for line in lines)
