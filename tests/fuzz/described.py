"""``python -m tests.fuzz.described``: hold the gateway to what `docs/openapi.json` says of it, by schemathesis.

Before an engine of our own that refuses what the description does not allow, or before one that runs already
(``--engine URL``). It must not know what schemathesis tries.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from jsonschema import Draft202012Validator

from launcher.domain import Address
from launcher.gateway.gateway import Gateway
from launcher.gateway.health import Status
from launcher.gateway.keys import Keys
from tests.fakes.plans import plan_for

DESCRIPTION: Final = Path(__file__).parents[2] / "docs/openapi.json"
KEY: Final = "0123456789abcdef"
_LEFT_OUT: Final = "not_a_server_error,ignored_auth"
"""A declared 503 is an answer; and the description says that without keys none is wanted, which `--keys` tries."""
_OF_ENGINE: Final = "negative_data_rejection,positive_data_acceptance,unsupported_method"
"""What a real engine takes of a request, and how it refuses a method, is its own business."""


def validators() -> dict[str, Draft202012Validator]:
    """Return what says whether the body of a request to a path is as described."""
    described = json.loads(DESCRIPTION.read_text(encoding="utf-8"))
    found = {}
    for path, operations in described["paths"].items():
        if "post" in operations:
            schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]
            found[path] = Draft202012Validator({**schema, "components": described["components"]})
    return found


class StrictEngine:
    """An engine that answers as described, and refuses whatever is not."""

    def __init__(self) -> None:
        """Have seen nothing."""
        self._validators = validators()
        self.n_taken = 0
        self.n_refused = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        validator = self._validators.get(request.path)
        if validator is None:
            return self._refuse(404, "no such path")
        if request.method != "POST":
            return web.json_response({"error": {"message": "POST alone"}}, status=405, headers={"Allow": "POST"})
        if request.content_type != "application/json":
            return self._refuse(400, "no JSON")
        try:
            asked: Any = json.loads(await request.read())
        except (ValueError, RecursionError):
            return self._refuse(400, "no JSON")
        if not validator.is_valid(asked):
            return self._refuse(400, "not as described")
        self.n_taken += 1
        if not asked.get("stream"):
            usage = {"prompt_tokens": 1, "completion_tokens": 1}
            return web.json_response({"choices": [{"index": 0, "text": "x"}], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices":[]}\n\ndata: [DONE]\n\n')
        return response

    def _refuse(self, status: int, why: str) -> web.Response:
        self.n_refused += 1
        return web.json_response({"error": {"message": why}}, status=status)


async def check(*, n_examples: int, seed: int, engine_url: str | None = None, keys: bool = False) -> int:
    """Run schemathesis against a gateway; return its exit code. What it tried it prints itself."""
    engine = StrictEngine()
    runner = web.ServerRunner(web.Server(engine.answer))  # type: ignore[arg-type]  # a base request does for it
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    gateway = Gateway("tiny", keys=Keys((KEY,)) if keys else Keys())
    address = await gateway.start(Address(host="127.0.0.1", port=0))
    gateway.publish(Status(plan=plan_for()))
    gateway.attach(engine_url or site.name)
    left_out = f"{_LEFT_OUT},{_OF_ENGINE}" if engine_url else _LEFT_OUT
    argv = [
        *(sys.executable, "-m", "schemathesis.cli", "run", str(DESCRIPTION), "--no-color"),
        *("--url", f"http://127.0.0.1:{address.port}", "--max-examples", str(n_examples), "--seed", str(seed)),
        *("--exclude-checks", left_out, "--request-timeout", "120", "--generation-database", "none"),
        *(("-H", f"Authorization: Bearer {KEY}") if keys else ()),
    ]
    try:
        with tempfile.TemporaryDirectory() as folder:  # it keeps what it found where it is started
            process = await asyncio.create_subprocess_exec(*argv, cwd=folder)
            code = await process.wait()
        faults = gateway._meters.n_faults
    finally:
        await gateway.stop(1.0)
        await runner.cleanup()
    print(f"the engine took {engine.n_taken} requests and refused {engine.n_refused}; faults of the gateway: {faults}")  # noqa: T201
    return code or int(faults > 0)


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.described", description=__doc__)
    parser.add_argument("--examples", type=int, default=100, help="of each operation and phase")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", metavar="URL", help="of an engine that runs already")
    parser.add_argument("--keys", action="store_true", help="require an API key, and send it")
    asked = parser.parse_args()
    return asyncio.run(check(n_examples=asked.examples, seed=asked.seed, engine_url=asked.engine, keys=asked.keys))


if __name__ == "__main__":
    sys.exit(main())
