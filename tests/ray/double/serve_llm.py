"""Stands in for Ray Serve LLM: the same application value, the same placement by Ray, an engine that needs no model.

What it reads of an application, how it asks Ray for room and what it answers are as in ``ray/llm/_internal/serve`` of
Ray 2.60.0. Replicas are looked at each second, and end in two: Ray's own numbers, ten and twenty, make a test wait.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any, Final

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

_WORD_S: Final = 0.1
_DEFAULT_WORDS: Final = 4


class Engine:
    """Answers as many words as it is asked for, a tenth of a second each when they are streamed."""

    def __init__(self, model: str) -> None:
        """Say in the log that it is there."""
        self._model = model
        print(f"the double of {model} is loaded", flush=True)  # noqa: T201 - the log of a replica is its output

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        match request.method, request.url.path.partition("/v1/")[2]:
            case "GET", "models":
                return JSONResponse({"object": "list", "data": [{"id": self._model, "object": "model"}]})
            case "POST", "chat/completions" | "completions":
                return self._complete(await request.json())
            case _:
                return JSONResponse({"detail": "Not Found"}, status_code=404)

    def _complete(self, body: dict[str, Any]) -> Response:
        if body["model"] != self._model:
            return JSONResponse({"error": {"message": f'Could not find model "{body["model"]}"'}}, status_code=404)
        n_words = int(body.get("max_tokens") or _DEFAULT_WORDS)
        if body.get("stream"):
            return StreamingResponse(self._stream(n_words), media_type="text/event-stream")
        words = {"message": {"role": "assistant", "content": "word " * n_words}, "text": "word " * n_words}
        usage = {"prompt_tokens": 1, "completion_tokens": n_words, "total_tokens": n_words + 1}
        choices = [{"index": 0, "finish_reason": "stop", **words}]
        where = {"node": ray.util.get_node_ip_address(), "pid": os.getpid()}
        return JSONResponse({"id": "1", "model": self._model, "choices": choices, "usage": usage, "where": where})

    async def _stream(self, n_words: int) -> AsyncIterator[str]:
        for _ in range(n_words):
            chunk = {"id": "1", "model": self._model, "choices": [{"index": 0, "delta": {"content": "word "}}]}
            yield f"data: {json.dumps(chunk)}\n\n"
            await asyncio.sleep(_WORD_S)
        yield "data: [DONE]\n\n"


def build_openai_app(args: dict[str, Any]) -> Any:
    """Return the application of the one model in ``args``, which Ray places as it would its own."""
    (config,) = args["llm_configs"]
    settings, placement = config["engine_kwargs"], config["placement_group_config"]
    n_workers = settings.get("tensor_parallel_size", 1) * settings.get("pipeline_parallel_size", 1)
    bundles = [dict(placement["bundle_per_worker"]) for _ in range(n_workers)]
    if (accelerator := config.get("accelerator_type")) is not None:
        for bundle in bundles:
            bundle[f"accelerator_type:{accelerator}"] = 0.001
    bundles[0]["CPU"] = bundles[0].get("CPU", 0) + 1
    deployment = serve.deployment(
        Engine,
        name="LLMServer:" + config["model_loading_config"]["model_id"],
        num_replicas=config["deployment_config"]["num_replicas"],
        ray_actor_options={"num_cpus": 1},
        placement_group_bundles=bundles,
        placement_group_strategy=placement["strategy"],
        health_check_period_s=1,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=2,
    )
    return deployment.bind(config["model_loading_config"]["model_id"])
