"""The one-token completion that proves that an engine really answers."""

from typing import Final

import msgspec

CANARY_PATH: Final = "/v1/completions"


def canary_body(model: str, prompt: str = "1") -> str:
    """Return the JSON body: one token, deterministic, no cache of the prompt kept."""
    body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    return msgspec.json.encode(body).decode()
