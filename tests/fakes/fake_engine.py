"""A small real process that speaks llama-server's endpoints and misbehaves on request.

It knows nothing of the launcher: standard library only, started as any engine is.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def say(text: str) -> None:
    """Print a line as engines do: on stderr, at once."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def parse_arguments() -> argparse.Namespace:
    """Read what to do wrong; every delay in seconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tag", help="changes nothing: a test finds the process by it")
    parser.add_argument("--load-s", type=float, default=0.0, help="load this long, with progress lines")
    parser.add_argument("--silent-load-s", type=float, default=0.0, help="load this long without a sign of life")
    parser.add_argument("--slow-file", help="while it exists, remove it and load two seconds longer")
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--say", action="append", default=[], help="print this line while loading")
    parser.add_argument("--exit-after-load", type=int, help="exit with this code instead of serving")
    parser.add_argument("--exit-after-s", type=float, help="exit this long after becoming ready")
    parser.add_argument("--exit-code", type=int, default=1)
    parser.add_argument("--exit-signal", type=int)
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--ignore-first-sigterm", action="store_true")
    parser.add_argument("--fork-child", action="store_true")
    parser.add_argument(
        "--stubborn-tree", action="store_true", help="children that left the session and ignore SIGTERM"
    )
    parser.add_argument("--escapee", action="store_true", help="a daemon with a clean environment, besides")
    parser.add_argument("--canary-status", type=int, default=200)
    parser.add_argument("--canary-hangs", action="store_true")
    parser.add_argument("--crash-file", help="while it exists, remove it and crash after load")
    parser.add_argument("--no-bind", action="store_true", help="serve nothing: somebody else has the port")
    parser.add_argument("--sick-file", help="while it exists, answer every request with an error; removed at the start")
    parser.add_argument("--leak-mib", type=int, default=0)
    parser.add_argument("--flood-lines", type=int, default=0)
    parser.add_argument("--raw", action="store_true", help="print bytes that are no UTF-8, and a partial line")
    parser.add_argument("--echo-env", help="print this variable's value")
    parser.add_argument(
        "--rates", help="JSON: threads to prompt and generated tokens/s; other options are then ignored"
    )
    parser.add_argument("--answer-s", type=float, default=0.0, help="take this long until a completion is answered")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--threads-batch", default="1")
    parser.add_argument("--flash-attn", default="on")
    parser.add_argument("--journal", help="append the threads of each start to this file")
    if "--rates" in sys.argv:
        return parser.parse_known_args()[0]
    return parser.parse_args()


def timings(args: argparse.Namespace, request: dict[str, object]) -> dict[str, float]:
    """Say how long a request would have taken, by the table; without flash attention, twice as long."""
    rates = json.loads(args.rates)
    n_prompt, n_predicted = len(str(request["prompt"]).split()), int(str(request["n_predict"]))
    factor = 1000 if args.flash_attn == "on" else 2000
    return {
        "prompt_n": n_prompt,
        "prompt_ms": factor * n_prompt / rates[args.threads_batch][0],
        "predicted_n": n_predicted,
        "predicted_ms": factor * n_predicted / rates[args.threads][1],
    }


STUBBORN = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if sys.argv[1] == "fork":
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
while True:
    time.sleep(3600)
"""


def grow_tree(args: argparse.Namespace) -> None:
    """Start the children that are asked for; each can be found by its last argument."""
    mark = f"fake-engine-{args.port}"
    python = (sys.executable, "-S", "-c")
    if args.fork_child:
        subprocess.Popen([*python, "import time; time.sleep(3600)", mark])
    if args.stubborn_tree:
        subprocess.Popen([*python, STUBBORN, "stay", mark])
        subprocess.Popen([*python, STUBBORN, "stay", mark], start_new_session=True)
        subprocess.Popen([*python, STUBBORN, "fork", mark])
    if args.escapee:
        subprocess.Popen([*python, STUBBORN, "fork", mark], env={})


class Handler(BaseHTTPRequestHandler):
    """llama-server's endpoints, as far as a supervisor uses them."""

    args: argparse.Namespace
    ready = False

    def answer(self, status: int, value: object) -> None:
        """Send a JSON answer."""
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, asked: dict[str, object]) -> None:
        """Send a token an event, the timings with the last, and close the connection as llama-server does."""
        events: list[dict[str, object]] = [{"content": "x", "stop": False} for _ in range(int(str(asked["n_predict"])))]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for event in [*events, {"content": "", "stop": True, "timings": timings(self.args, asked)}]:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.close_connection = True

    def do_GET(self) -> None:
        """Answer health and models: 503 while loading."""
        if self.ready:
            self.answer(200, {"status": "ok", "data": []})
        else:
            self.answer(503, {"error": {"message": "Loading model", "code": 503}})

    def do_POST(self) -> None:
        """Answer a completion."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        while self.args.canary_hangs:
            time.sleep(3600)
        time.sleep(self.args.answer_s)
        asked = json.loads(body or b"{}")
        if "status" in asked.get("fake", {}):
            self.answer(asked["fake"]["status"], {"error": {"message": "cannot read the picture"}})
        elif self.args.sick_file and Path(self.args.sick_file).exists():
            self.answer(500, {"error": {"message": "Compute error."}})
        elif self.args.canary_status != 200:
            self.answer(self.args.canary_status, {"error": {"message": "compute error"}})
        elif self.path == "/completion" and self.args.rates:
            self.stream(asked)
        elif self.path == "/completion":
            self.answer(200, {"content": "x", "tokens_predicted": 1})
        else:
            self.answer(200, {"choices": [{"message": {"role": "assistant", "content": "x"}}]})

    def log_message(self, *_: object) -> None:
        """Stay silent, as llama-server does about health checks."""


class Server(ThreadingHTTPServer):
    """Binds as llama-server does, and does not look up its own name."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without the reverse lookup of the base class."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "fake", self.server_address[1]


def load(args: argparse.Namespace) -> None:
    """Pretend to load: the lines, the time, the memory."""
    for line in args.say:
        say(line)
    if args.echo_env:
        say(f"the key is {os.environ[args.echo_env]}")
    if args.raw:
        os.write(2, b"bad \xff\xfe bytes\nno newline at the end")
    for number in range(args.flood_lines):
        say(f"line {number} " + "x" * 80)
    end = time.monotonic() + args.load_s
    while time.monotonic() < end:
        say(f"load_tensors: {args.load_s - (end - time.monotonic()):.1f} s of {args.load_s:.1f}")
        time.sleep(0.05)
    time.sleep(args.silent_load_s)
    if args.slow_file and Path(args.slow_file).exists():
        Path(args.slow_file).unlink()
        time.sleep(2)
    while args.never_ready:
        time.sleep(3600)


def end(args: argparse.Namespace) -> None:
    """End as asked."""
    if args.exit_signal:
        os.kill(os.getpid(), args.exit_signal)
    os._exit(args.exit_code)


def answer_requests(server: Server) -> None:
    """Serve without taking signals: Python acts on them in the main thread, which sleeps on if another gets them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    server.serve_forever(poll_interval=0.05)


def hear_the_next_sigterm() -> None:
    """End at the next one."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def obey_sigterm(args: argparse.Namespace) -> None:
    """End at the first SIGTERM, at the second, or at none."""
    if args.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif args.ignore_first_sigterm:
        signal.signal(signal.SIGTERM, lambda *_: hear_the_next_sigterm())
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def main() -> None:
    """Serve until told to end."""
    args = parse_arguments()
    Handler.args = args
    obey_sigterm(args)
    if args.journal:
        with Path(args.journal).open("a") as file:
            file.write(f"{args.threads}\n")
    grow_tree(args)
    if args.sick_file:
        Path(args.sick_file).unlink(missing_ok=True)
    leak = bytearray(args.leak_mib << 20)
    if not args.no_bind:
        try:
            server = Server((args.host, args.port), Handler)
        except OSError:
            say(f"srv start: couldn't bind HTTP server socket, hostname: {args.host}, port: {args.port}")
            sys.exit(1)
        threading.Thread(target=answer_requests, args=(server,), daemon=True).start()
    load(args)
    if args.crash_file and Path(args.crash_file).exists():
        Path(args.crash_file).unlink()
        end(args)
    if args.exit_after_load is not None:
        os._exit(args.exit_after_load)
    Handler.ready = True
    say("srv llama_server: server is listening")
    if args.exit_after_s is not None:
        time.sleep(args.exit_after_s)
        end(args)
    del leak
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
