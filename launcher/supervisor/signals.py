"""Hear the signals by which a supervisor is asked to end.

It must not know what follows from one.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_WANTED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handling(loop: asyncio.AbstractEventLoop, on_signal: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call ``on_signal`` in the loop for as long as the block lasts; only the main thread hears signals.

    What is ignored on purpose stays so: ``nohup`` ignores SIGHUP, a shell's background job SIGINT.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handled = [number for number in _WANTED if is_main and signal.getsignal(number) is not signal.SIG_IGN]
    for number in handled:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
