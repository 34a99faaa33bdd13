"""Wall-clock time of encoding and decoding.

Shape suffixes: N vectors, D vector dimension.
"""

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.evaluation.contenders import MeasuredCodec

BATCHES = (1, 64, 4096)
"""Vectors at a time: a query, a small batch, bulk work."""

_WARM_UP = 64
_LEAST_REPEATS = 3
_ENOUGH_SECONDS = 0.5
_MOST_REPEATS = 100

Value = TypeVar("Value")


def timed(work: Callable[[], Value], *, least: int = _LEAST_REPEATS) -> tuple[float, Value]:
    """Median seconds of some runs of `work`, and what it returned.

    Runs it until half a second has gone by, but at least `least` and at most 100 times. Nothing is run
    to warm up.
    """
    seconds: list[float] = []
    while len(seconds) < least or (sum(seconds) < _ENOUGH_SECONDS and len(seconds) < _MOST_REPEATS):
        started = time.perf_counter()
        value = work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), value


def cyclic(vectors_ND: Float32Array, rows: int) -> Float32Array:
    """`rows` vectors, starting over where there are fewer."""
    return vectors_ND[np.arange(rows) % len(vectors_ND)]


def time_codec(codec: MeasuredCodec, vectors_ND: Float32Array) -> tuple[dict[int, float], dict[int, float]]:
    """Microseconds per vector of encoding and of decoding, by batch size."""
    encoding, decoding = {}, {}
    codec.decode(codec.encode(cyclic(vectors_ND, _WARM_UP)))
    for batch in BATCHES:
        batch_BD = cyclic(vectors_ND, batch)
        # Slow encoders need seconds for the largest batch, which is then long enough to go by once.
        least = 1 if batch == max(BATCHES) else _LEAST_REPEATS
        encode_seconds, codes = timed(lambda: codec.encode(batch_BD), least=least)  # noqa: B023
        decode_seconds, _ = timed(lambda: codec.decode(codes), least=least)  # noqa: B023
        encoding[batch] = 1e6 * encode_seconds / batch
        decoding[batch] = 1e6 * decode_seconds / batch
    return encoding, decoding
