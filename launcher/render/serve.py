"""What a person needs once a model is served. Pure."""

import shlex

import msgspec

from launcher.domain import Address


def base_url(address: Address) -> str:
    """Return the address as a client on this machine reaches it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 - read, not bound
    return f"http://[{host}]:{address.port}" if ":" in host else f"http://{host}:{address.port}"


def render_endpoint(model: str, host: str, port: int) -> str:
    """Return the endpoint, and a command to paste that asks it something."""
    url = base_url(Address(host=host, port=port))
    body = {"model": model, "messages": [{"role": "user", "content": "Say hello in five words."}], "max_tokens": 32}
    data = shlex.quote(msgspec.json.encode(body).decode())
    return (
        f"`{model}` answers at {url}/v1\n"
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d {data}\n"
    )
