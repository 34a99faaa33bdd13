"""Work before and after that of the calling thread, in threads of its own; few items wait in between."""

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
    """Tells the thread behind that no more items come and that its work is not wanted."""


@contextlib.contextmanager
def prefetch(items: Iterator[Item], depth: int) -> Iterator[Iterator[Item]]:
    """The same items, each computed in another thread while earlier ones are still in use.

    When the block is left, however that comes, at most the item that is being computed is waited for.

    Args:
        items: nothing else may use it any more.
        depth: items that wait, or are being computed, at most.
    """
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        waiting = collections.deque(pool.submit(next, items, _END) for _ in range(depth))

        def taken() -> Iterator[Item]:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(pool.submit(next, items, _END))
                yield item  # type: ignore[misc]  # not the end

        try:
            yield taken()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class BackgroundWriter(Generic[Item]):
    """Passes items to `work`, which takes them from an iterator in another thread.

    As a context manager: leaving the block waits until `work` has returned, and raises what it has raised.
    If the block is left by an error, the iterator raises `AbandonedError` instead.
    """

    def __init__(self, work: Callable[[Iterator[Item]], None], depth: int) -> None:
        """Prepare; `depth` items wait at most."""
        self._work = work
        # Simple queues are interrupted by Ctrl-C either before or after an item, never half way.
        self._items: queue.SimpleQueue[Item | object] = queue.SimpleQueue()
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(depth):
            self._places.put(None)
        self._abandoned = self._ended = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="write", daemon=True)

    def put(self, item: Item) -> None:
        """Hand over an item; waits while too many do. Raises what `work` has raised so far."""
        self._raise_failure()
        self._places.get()
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
            self._work(self._taken())
        except BaseException as failure:  # raised again where the other thread can see it
            self._failure = failure
        while not self._ended:  # whoever is putting an item must not wait for ever
            self._take()

    def _taken(self) -> Iterator[Item]:
        while not self._ended:
            item = self._take()
            if self._abandoned:
                raise AbandonedError
            if not self._ended:
                yield item  # type: ignore[misc]  # not the end

    def _take(self) -> Item | object:
        item = self._items.get()
        self._places.put(None)
        self._ended = item is _END
        return item

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
