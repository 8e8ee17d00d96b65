"""A call that is waited for only so long.

It must not know what is called. A driver or a network file system may hang in the kernel, where nothing can end the call:
its thread is then left to itself, and does not keep the program from ending.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class Bounded(Generic[T]):
    """A call under way."""

    def __init__(self, call: Callable[[], T]) -> None:
        """Begin."""
        self._value: T | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], T]) -> None:
        try:
            self._value = call()
        except Exception as error:  # noqa: BLE001 - raised again where the result is asked for
            self._error = error

    def result(self, timeout_s: float) -> T | None:
        """Return what the call returned, ``None`` where it has not ended after so many seconds; raise what it raised."""
        return self.value() if self.wait(timeout_s) else None

    def value(self) -> T:
        """Return what a call that has ended returned; raise what it raised."""
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; return whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()
