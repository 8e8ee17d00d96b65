"""What proves that an engine really answers: a one-token completion, under a name that it lists."""

import json
from typing import Final

import msgspec

CANARY_PATH: Final = "/v1/completions"


def canary_body(model: str, prompt: str = "1") -> str:
    """Return the JSON body: one token, deterministic, no cache of the prompt kept."""
    body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    return msgspec.json.encode(body).decode()


def listed_models(answer: bytes) -> list[str]:
    """Return the names in OpenAI's list of models; none where the answer is something else."""
    try:
        return [str(entry["id"]) for entry in json.loads(answer)["data"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
