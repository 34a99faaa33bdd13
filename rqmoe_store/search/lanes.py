"""Look-up tables of 32 queries side by side, in 8 bits: one instruction adds an entry for each of them.

A scan for many queries reads a row's code once and adds, for every code byte, the entries of all queries. The
entries are rounded down to 255 steps above the smallest entry of their byte, so a sum of them is a lower
bound of the exact one. Rows whose bound is beyond what a query keeps are passed over; the others, a few in a
hundred, are scored exactly. So shortlists are those of exact scores.

The loop over code bytes is written in LLVM's own vector types, as compilers do not find them in loops over
tables. LLVM translates them to the instructions of the processor.

Shape legend: Q queries (at most L), L lanes, M code bytes, T = 256 M table entries, B rows of a block.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

from rqmoe_store.codecs.parallel import compiled
from rqmoe_store.codecs.vectors import Float32Array

LANES = 32
"""Queries whose tables are side by side."""

MAX_CODE_BYTES = 256
"""Most code bytes: sums of entries fit 16 bits."""

_STEPS = 255
_SMALLEST = 1e-30  # range of entries, as steps must not be zero
_ROUNDING = 1e-5  # of a sum of up to 256 float32 numbers
_CODEWORDS = 256


class Lanes(NamedTuple):
    """The rounded tables of some queries, and room for the sums of a block."""

    entries_TL: npt.NDArray[np.uint8]
    """Rounded entries, in steps above the smallest entry of their code byte."""
    lowest_L: npt.NDArray[np.float64]
    """The sums of the smallest entries."""
    steps_L: npt.NDArray[np.float64]
    """Sizes of the steps."""
    sums_BL: npt.NDArray[np.uint16]
    is_finite: bool
    """Whether all entries are finite. If not, the lanes are of no use."""

    @classmethod
    def of(cls, entries_QT: Float32Array, factor: np.float32, block: int) -> "Lanes":
        """Round the tables of queries, times a factor of 1 or -1.

        Args:
            entries_QT: exact entries, of at most LANES queries.
            factor: 1 or -1.
            block: most rows of a block.
        """
        entries_TL = np.zeros((entries_QT.shape[1], LANES), np.uint8)
        lowest_L, steps_L = np.zeros(LANES), np.ones(LANES)
        is_finite = _fill_lanes(entries_QT, factor, entries_TL, lowest_L, steps_L)
        return cls(entries_TL, lowest_L, steps_L, np.empty((block, LANES), np.uint16), is_finite)


@compiled
def _fill_lanes(entries_QT: Any, factor: Any, entries_TL: Any, lowest_L: Any, steps_L: Any) -> bool:
    """Fill in the parts of lanes; returns whether all entries are finite."""
    num_steps = entries_QT.shape[1] // _CODEWORDS
    for query in range(len(entries_QT)):
        lowest, widest = 0.0, 0.0
        for step in range(num_steps):
            least, most = _bounds_of(entries_QT[query], step, factor)
            if not np.isfinite(most - least):
                return False
            lowest, widest = lowest + least, max(widest, most - least)
        size = max(widest, _SMALLEST) / _STEPS
        lowest_L[query], steps_L[query] = lowest, size
        for step in range(num_steps):
            least, _ = _bounds_of(entries_QT[query], step, factor)
            for entry in range(_CODEWORDS * step, _CODEWORDS * (step + 1)):
                steps = (entries_QT[query, entry] * factor - least) / size
                entries_TL[entry, query] = np.uint8(min(steps, _STEPS))
    return True


@compiled
def bounds_of_sums(
    lanes: Any,
    probing_Q: Any,
    initial_QP: Any,
    partition: int,
    worst_Q: Any,
    sign: Any,
    by_length: bool,
) -> tuple[Any, Any]:
    """Largest sums of rounded entries of rows that a query may keep: highest + slope * length.

    Args:
        lanes: rounded tables of the queries.
        probing_Q: some of the queries; all others keep nothing.
        initial_QP: float32 (Q, P), initial scores of the rows of each partition.
        partition: the partition of the rows.
        worst_Q: float32 (Q,), largest signed scores to keep.
        sign: float32, 1 or -1; a signed score is the score times it.
        by_length: whether a score is 1 - sum / length, else it is the sum. Lanes then have the negative sums.

    Returns:
        float32 (L,) and (L,).
    """
    highest_L, slopes_L = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for lane in range(LANES):
        highest_L[lane], slopes_L[lane] = -np.inf, 0.0
    for query in probing_Q:
        step, worst = lanes.steps_L[query], np.float64(worst_Q[query])
        initial = np.float64(sign * initial_QP[query, partition])
        initial = -initial if by_length else initial
        # Exact scores are sums of float32 numbers, which may be rounded down.
        largest = abs(worst) + abs(initial) + abs(lanes.lowest_L[query]) + 1.0
        spare = 2.0 + _ROUNDING * largest / step
        fixed = -initial - lanes.lowest_L[query]
        if by_length:
            highest_L[query], slopes_L[query] = fixed / step + spare, (worst - sign) / step
        else:
            highest_L[query] = (fixed + worst) / step + spare
    return highest_L, slopes_L


@compiled
def _bounds_of(entries_T: Any, step: int, factor: Any) -> Any:
    """The smallest and the largest entry of a step, times the factor; not finite if any is not."""
    least = most = np.float64(entries_T[_CODEWORDS * step] * factor)
    for place in range(_CODEWORDS * step, _CODEWORDS * (step + 1)):
        entry = np.float64(entries_T[place] * factor)
        if not np.isfinite(entry):
            return entry, entry
        least, most = min(least, entry), max(most, entry)
    return least, most


@intrinsic
def _sum_row(typing_context: Any, codes_NM: Any, row: Any, lanes_TL: Any, sums_BL: Any, place: Any) -> Any:
    """Fill in row `place` of the sums: those of the lanes' entries for the code bytes of a row."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes, lanes, sums = (
            context.make_array(signature.args[number])(context, builder, arguments[number])
            for number in (0, 2, 3)
        )
        code_bytes = cgutils.unpack_tuple(builder, codes.shape)[1]  # type: ignore[no-untyped-call]
        index = code_bytes.type
        bytes_type, sums_type = ir.VectorType(ir.IntType(8), LANES), ir.VectorType(ir.IntType(16), LANES)
        total = cgutils.alloca_once(builder, sums_type)  # type: ignore[no-untyped-call]
        builder.store(ir.Constant(sums_type, [0] * LANES), total)
        code = builder.gep(codes.data, [builder.mul(arguments[1], code_bytes)])
        with cgutils.for_range(builder, code_bytes) as loop:
            codeword = builder.zext(builder.load(builder.gep(code, [loop.index])), index)
            entry = builder.add(builder.mul(loop.index, ir.Constant(index, _CODEWORDS)), codeword)
            entries = builder.gep(lanes.data, [builder.mul(entry, ir.Constant(index, LANES))])
            values = builder.load(builder.bitcast(entries, bytes_type.as_pointer()), align=1)
            builder.store(builder.add(builder.load(total), builder.zext(values, sums_type)), total)
        filled = builder.gep(sums.data, [builder.mul(arguments[4], ir.Constant(index, LANES))])
        builder.store(builder.load(total), builder.bitcast(filled, sums_type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(codes_NM, types.intp, lanes_TL, sums_BL, types.intp), generate


# The compiler finds vectors in these loops only if they get arrays, and no tuples of arrays.


@compiled
def sum_lanes(codes_NM: Any, start: int, stop: int, entries_TL: Any, sums_BL: Any) -> None:
    """Fill in the sums of the rounded entries of all lanes, for the rows of a block.

    Codes are contiguous and have at most 256 bytes.
    """
    for row in range(start, stop):
        _sum_row(codes_NM, row, entries_TL, sums_BL, row - start)  # type: ignore[call-arg]


@compiled
def find_within(sums_BL: Any, lengths_B: Any, highest_L: Any, slopes_L: Any, places_B: Any) -> int:
    """Fill in the places of the rows whose sum is within the bounds of any query; returns how many are."""
    found = 0
    for row in range(len(lengths_B)):
        length, within = lengths_B[row], 0
        for lane in range(LANES):
            within += np.float32(sums_BL[row, lane]) <= highest_L[lane] + slopes_L[lane] * length
        places_B[found] = row
        found += within > 0
    return found
