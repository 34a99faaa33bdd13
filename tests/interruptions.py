"""Ctrl-C at a moment that a test chooses."""

import _thread
import threading
from types import TracebackType
from typing import Self


class Interruption:
    """As long as it is open, `wait` lets the main thread be interrupted while another one is in it."""

    def __init__(self) -> None:
        self._reached, self._go_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._interrupt)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join()

    def wait(self) -> None:
        """Come back once the main thread has been interrupted."""
        self._reached.set()
        assert self._go_on.wait(30)

    def _interrupt(self) -> None:
        assert self._reached.wait(30)
        _thread.interrupt_main()
        self._go_on.set()
