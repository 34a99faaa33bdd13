"""Working through many rows in chunks that fit the memory."""

import functools
from collections.abc import Callable

import torch

from rqmoe_store.codecs.parallel import side_by_side
from rqmoe_store.errors import InvalidInputError


def in_chunks(total: int, rows: int, work: Callable[[int, int, int], None]) -> None:
    """Call `work(start, stop, rows)` for consecutive chunks of at most `rows` rows.

    A chunk for which the GPU has too little memory is done again, from its start, in halves.

    Raises:
        InvalidInputError: the GPU has no memory for a single row.
    """
    start = 0
    while start < total:
        stop = min(start + rows, total)
        try:
            work(start, stop, rows)
        except torch.OutOfMemoryError as error:
            if rows == 1:
                raise InvalidInputError(
                    f"The GPU ran out of memory with a single vector (after {start} of {total}): {error} "
                    "Free memory on it, or move the codec to the CPU with codec.to('cpu')."
                ) from error
            rows = (rows + 1) // 2
            torch.cuda.empty_cache()
        else:
            start = stop


def side_by_side_chunks(total: int, rows: int, work: Callable[[int, int, int], None]) -> None:
    """Call `work` as `in_chunks` does, for several chunks at once, each on a core of its own.

    For work on a CPU: nothing is done again there for lack of memory.
    """
    side_by_side(
        functools.partial(work, start, min(start + rows, total), rows) for start in range(0, total, rows)
    )


def rows_in_budget(budget_bytes: int, floats_per_row: int, most: int) -> int:
    """The largest power of two of float32 rows that fits a budget, from 1 to `most`."""
    rows = max(1, budget_bytes // (4 * max(1, floats_per_row)))
    return int(min(most, 2 ** (rows.bit_length() - 1)))
