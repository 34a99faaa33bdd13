"""Prefetch and background writer: threads that read ahead of the calling thread and write behind it.

Both hold a bounded number of items between two threads, so that memory stays bounded.
"""

import collections
import concurrent.futures
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

_END = object()


class AbandonedError(Exception):
    """Tells the writing thread that no more items come and that its work is to be discarded."""


@contextlib.contextmanager
def prefetch(items: Iterator[Item], depth: int) -> Iterator[Iterator[Item]]:
    """Compute items in another thread while the caller still uses earlier ones.

    Leaving the `with` block, normally or by an exception, waits at most for the item that is being computed.

    Args:
        items: an iterator that nothing else uses.
        depth: most items that are computed and wait, or are being computed.
    """
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        waiting = collections.deque(pool.submit(next, items, _END) for _ in range(depth))

        def results() -> Iterator[Item]:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(pool.submit(next, items, _END))
                yield item  # type: ignore[misc]  # not the end

        try:
            yield results()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class BackgroundWriter(Generic[Item]):
    """Passes items to `work`, which consumes them from an iterator in another thread.

    A context manager. Leaving the `with` block waits until `work` has returned, and raises what it raised. If
    an exception leaves the block, the iterator raises `AbandonedError` in the writing thread.
    """

    def __init__(self, work: Callable[[Iterator[Item]], None], depth: int) -> None:
        """Prepare; at most `depth` items wait."""
        self._work = work
        # Ctrl-C interrupts a SimpleQueue before or after an item, never halfway.
        self._items: queue.SimpleQueue[Item | object] = queue.SimpleQueue()
        self._free_slots: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(depth):
            self._free_slots.put(None)
        self._abandoned = self._ended = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="write", daemon=True)

    def put(self, item: Item) -> None:
        """Hand over an item; block while `depth` items wait. Raises what `work` has raised."""
        self._raise_failure()
        self._free_slots.get()
        self._items.put(item)

    def __enter__(self) -> "BackgroundWriter[Item]":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._abandoned = kind is not None
        self._items.put(_END)
        self._thread.join()
        if kind is None:
            self._raise_failure()

    def _run(self) -> None:
        try:
            self._work(self._items_until_end())
        except BaseException as failure:  # raised again in the calling thread
            self._failure = failure
        while not self._ended:  # drain, so that `put` does not wait forever
            self._next_item()

    def _items_until_end(self) -> Iterator[Item]:
        while not self._ended:
            item = self._next_item()
            if self._abandoned:
                raise AbandonedError
            if not self._ended:
                yield item  # type: ignore[misc]  # not the end

    def _next_item(self) -> Item | object:
        item = self._items.get()
        self._free_slots.put(None)
        self._ended = item is _END
        return item

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
