"""Bound how many interim answers an engine sends before an answer.

It must not know requests, nor what an engine that sends more of them leads to.
"""

import asyncio
import functools

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader


class EndlessError(aiohttp.ClientError):
    """An engine sent interim answers, and none at last."""


class _Reader(ResponseHandler):
    """What reads one connection. The library passes over interim answers, however many there are."""

    def __init__(self, loop: asyncio.AbstractEventLoop, n_most: int) -> None:
        super().__init__(loop)
        self._n_most = n_most
        self._n_interim = 0

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take the head of an answer."""
        self._n_interim = self._n_interim + 1 if 100 <= data[0].code < 200 else 0  # noqa: PLR2004 - HTTP's class
        if self._n_interim <= self._n_most:
            super().feed_data(data, size)
        elif self.transport is not None:
            self.set_exception(EndlessError(f"the engine sent more than {self._n_most} interim answers"))
            self.transport.abort()


class Connector(aiohttp.TCPConnector):
    """Any number of connections, on which an answer comes after ``n_interim`` interim ones at most."""

    def __init__(self, *, n_interim: int, keepalive_timeout: float) -> None:
        """Keep a connection that nobody uses for so many seconds."""
        super().__init__(limit=0, keepalive_timeout=keepalive_timeout)

        def read(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
            return _Reader(loop, n_interim)

        # The library has no other way to name what reads; the test of the bound tells whether it is still asked.
        self._factory = functools.partial(read, loop=self._loop)
