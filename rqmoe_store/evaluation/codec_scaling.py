"""Encoding many vectors: how fast, and in how much memory.

Shape suffixes: N vectors, D vector dimension, B rows of a block.
"""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_results import ScalingRow
from rqmoe_store.evaluation.memory import PeakMemory

_BLOCK_ROWS = 8192
_WARM_UP = 64


def require_disk(rows: int, row_bytes: int) -> None:
    """Raise InvalidInputError unless the temporary folder has room for `rows` of so many bytes each."""
    folder, needed = tempfile.gettempdir(), rows * row_bytes
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InvalidInputError(
            f"{rows} rows of {row_bytes} bytes need {needed / 1e9:.1f} GB in {folder!r}, which has "
            f"{free / 1e9:.1f} GB left. Measure fewer, or set TMPDIR to a folder with more room."
        )


@contextlib.contextmanager
def cyclic_file(vectors_ND: Float32Array, rows: int) -> Iterator[Float32Array]:
    """`rows` vectors, starting over where there are fewer, memory-mapped from a temporary .npy file."""
    with tempfile.TemporaryDirectory(prefix="rqmoe-bench-") as folder:
        path = Path(folder) / "vectors.npy"
        written = np.lib.format.open_memmap(
            path, mode="w+", dtype=np.float32, shape=(rows, vectors_ND.shape[1])
        )
        for start in range(0, rows, _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, rows)
            written[start:stop] = vectors_ND[np.arange(start, stop) % len(vectors_ND)]
        written.flush()
        del written
        # Copy on write: torch warns about arrays it must not write to, and nothing here writes.
        yield np.load(path, mmap_mode="c", allow_pickle=False)


def measure_scaling(
    codec: Codec, name: str, vectors_ND: Float32Array, counts: Sequence[int]
) -> Iterator[ScalingRow]:
    """Encode the first `counts` of the vectors, smallest count first.

    Args:
        name: what to call the codec.
        vectors_ND: memory-mapped, so that reading them takes no memory; at least as many as counted.
    """
    codec.encode(np.array(vectors_ND[:_WARM_UP]))
    for count in sorted(counts):
        with PeakMemory(codec.device) as memory:
            started = time.perf_counter()
            codec.encode(vectors_ND[:count])
            seconds = time.perf_counter() - started
        yield ScalingRow(
            codec=name,
            code_bytes=codec.config.code_bytes,
            vectors=count,
            vectors_per_second=count / seconds,
            memory_growth_bytes=memory.growth_bytes,
        )
