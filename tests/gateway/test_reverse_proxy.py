"""The text for nginx in docs/reverse-proxy.md, in a real nginx with TLS before the gateway. Collected where nginx and openssl are."""

import asyncio
import io
import re
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp

from launcher.gateway.keys import Keys
from launcher.supervisor.checks import free_port
from launcher.units import MIB
from tests.fakes.gateway import CHAT, DEADLINE_S, Engine, Served, serving

_KEY: Final = "0123456789abcdef"
_PAGE: Final = Path(__file__).parents[2] / "docs" / "reverse-proxy.md"
_FRAME: Final = """
daemon off;
master_process off;
pid {folder}/pid;
error_log stderr warn;
events {{ }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{site}
}}
"""


def _site(folder: Path, gateway: int, port: int) -> str:
    """Return the page's text with this test's ports, name and certificate."""
    found = re.search(r"```nginx\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    assert found is not None
    text = found[1]
    for old, new in (
        ("127.0.0.1:8080", f"127.0.0.1:{gateway}"),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/models.example.org.pem", f"{folder}/cert.pem"),
        ("/etc/ssl/private/models.example.org.key", f"{folder}/key.pem"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@asynccontextmanager
async def _behind_nginx(folder: Path, served: Served) -> AsyncIterator[aiohttp.ClientSession]:
    """Run nginx before a gateway, and yield a client that trusts its certificate."""
    port = free_port("127.0.0.1")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    made += [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(folder / "key.pem"),
        "-out",
        str(folder / "cert.pem"),
    ]
    await asyncio.to_thread(subprocess.run, made, check=True, capture_output=True)
    config = folder / "nginx.conf"
    config.write_text(_FRAME.format(folder=folder, site=_site(folder, served.port, port)))
    process = await asyncio.create_subprocess_exec(
        "nginx", "-p", str(folder), "-c", str(config), stderr=asyncio.subprocess.PIPE
    )
    trusted = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    try:
        connector = aiohttp.TCPConnector(ssl=trusted)
        async with aiohttp.ClientSession(f"https://127.0.0.1:{port}", connector=connector) as session:
            await _listens(session)
            yield session
    finally:
        if process.returncode is None:
            process.terminate()
        _, errors = await asyncio.wait_for(process.communicate(), DEADLINE_S)
        assert b"emerg" not in errors, errors


async def _listens(session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                async with session.get("/health") as response:
                    assert response.status in {200, 503}
                    return
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.02)


async def test_streams_bodies_and_keys_pass_nginx_as_they_do_without(engine: Engine, tmp_path: Path) -> None:
    """Events one by one while the next are not made yet; bodies above nginx's own bound, and none above the gateway's; no key, no answer."""
    key = {"Authorization": f"Bearer {_KEY}"}
    async with serving(engine, keys=Keys((_KEY,))) as served, _behind_nginx(tmp_path, served) as client:
        body = {"stream": True, "max_tokens": 1000, "fake": {"tps": 20}}
        async with client.post(CHAT, json=body, headers=key) as response:
            assert (response.status, response.content_type) == (200, "text/event-stream")
            events = [await asyncio.wait_for(response.content.readuntil(b"\n\n"), DEADLINE_S) for _ in range(3)]
        assert [event.count(b'"content"') for event in events] == [1, 1, 1]

        async with client.post(CHAT, data=io.BytesIO(b" " * (4 * MIB) + b'{"max_tokens": 1}'), headers=key) as response:
            assert response.status == 200
        assert engine.seen()["last"]["n_body"] == 4 * MIB + len(b'{"max_tokens": 1}')
        async with client.post(CHAT, data=io.BytesIO(b" " * (33 * MIB)), headers=key) as response:
            assert response.status == 413

        for headers in ({}, {"Authorization": "Bearer wrong"}):
            async with client.post(CHAT, json={"max_tokens": 1}, headers=headers) as response:
                assert response.status == 401
        async with client.get("/metrics", headers=key) as response:
            assert response.status == 404
        async with client.get("/v1/models", headers={"X-Api-Key": _KEY}) as response:
            assert response.status == 200
    assert _KEY not in (tmp_path / "access.log").read_text()


async def test_a_request_that_waits_for_an_engine_is_not_given_up(engine: Engine, tmp_path: Path) -> None:
    """What is held while there is no engine is answered once there is one, and sent once."""
    async with serving() as served, _behind_nginx(tmp_path, served) as client:
        asked = asyncio.ensure_future(client.post(CHAT, json={"max_tokens": 1}))
        async with asyncio.timeout(DEADLINE_S):
            while served.gateway.load().n_waiting == 0:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        served.gateway.attach(engine.url)
        async with await asked as response:
            assert response.status == 200
    assert engine.seen()["n_requests"] == 1
