"""Admission: as many searches compute at a time as there are threads, in the order in which they come.

A search of one query computes in the thread that calls it, in stages of which many take less time than it
takes to wake another thread. With more searches than cores, threads take the cores and Python's own lock from
each other after every stage: 16 clients got two thirds of the answers that 2 got.
"""

import collections
import os
import threading

from rqmoe_store.codecs.parallel import Lock, num_threads

_LEAST = 2
"""Calls that are admitted with a single thread, too: one computes while the other one wakes."""


class _Turn:
    """A call that waits, or computes, as a context that begins when it is its turn."""

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self.has_begun = False
        self.begins = threading.Lock()  # free once it has begun

    def __enter__(self) -> None:
        self.begins.acquire()
        try:
            self._admission.add(self)
            self.begins.acquire()
        except BaseException:  # an interruption ends the waiting
            self._admission.remove(self)
            raise

    def __exit__(self, *raised: object) -> None:
        self._admission.remove(self)


class Admission:
    """Admits calls in the order in which they come, `num_threads()` at a time and at least two."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._admitted = 0
        self._waiting: collections.deque[_Turn] = collections.deque()

    @property
    def waiting(self) -> int:
        """Number of calls that wait."""
        return len(self._waiting)

    def admitted(self) -> _Turn:
        """A context that begins when it is the turn of this call. Calls must not be nested."""
        return _Turn(self)

    def add(self, turn: _Turn) -> None:
        """Have a call wait for its turn, which may come at once."""
        with self._lock:
            self._waiting.append(turn)
            self._admit()

    def remove(self, turn: _Turn) -> None:
        """Go on with the next calls after one has ended, or need not wait any more."""
        with self._lock:
            if turn.has_begun:
                self._admitted -= 1
            elif turn in self._waiting:  # not if an interruption came before
                self._waiting.remove(turn)
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._admitted < max(num_threads(), _LEAST):
            turn = self._waiting.popleft()
            self._admitted += 1
            turn.has_begun = True
            turn.begins.release()

    def forget(self) -> None:
        """Have no calls, in a forked process, which has none of its parent's threads."""
        self._admitted = 0
        self._waiting.clear()


search_admission = Admission()
"""Admits searches of this process that compute without reading."""

if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=search_admission.forget)
