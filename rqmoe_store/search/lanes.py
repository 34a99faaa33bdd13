"""Look-up tables of 32 queries side by side, in 8 bits: one instruction adds an entry for each of them.

A scan for many queries reads a row's code once and adds, for every code byte, the entries of all queries. The
entries are rounded down to 255 steps above the smallest entry of their byte, so a sum of them is a lower
bound of the exact one. Rows whose bound is beyond what a query keeps are passed over; the others, a few in a
hundred, are scored exactly. So shortlists are those of exact scores.

The loop over code bytes is written in LLVM's own vector types, as compilers do not find them in loops over
tables.

Shape legend: Q queries (at most L), L lanes, M code bytes, T = 256 M table entries, B rows of a block, X
places in rows of tables.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

from rqmoe_store.codecs.llvm_vectors import load_vector, repeat
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
    """The rounded tables of some queries."""

    entries_TL: npt.NDArray[np.uint8]
    """Rounded entries, in steps above the smallest entry of their code byte."""
    lowest_L: npt.NDArray[np.float64]
    """The sums of the smallest entries."""
    steps_L: npt.NDArray[np.float64]
    """Sizes of the steps."""
    is_finite: bool
    """Whether all entries are finite. If not, the lanes are of no use."""

    @classmethod
    def of(cls, entries_QX: Float32Array, first: int, factor: np.float32) -> "Lanes":
        """Round the tables of queries, times a factor of 1 or -1.

        Args:
            entries_QX: rows that end with exact entries, of at most LANES queries.
            first: where these begin.
            factor: 1 or -1.
        """
        entries_TL = np.zeros((entries_QX.shape[1] - first, LANES), np.uint8)
        lowest_L, steps_L = np.zeros(LANES), np.ones(LANES)
        is_finite = _fill_lanes(entries_QX, first, factor, entries_TL, lowest_L, steps_L)
        return cls(entries_TL, lowest_L, steps_L, is_finite)


@compiled
def _fill_lanes(
    entries_QX: Any, first: int, factor: Any, entries_TL: Any, lowest_L: Any, steps_L: Any
) -> bool:
    """Fill in the parts of lanes; returns whether all entries are finite."""
    queries, num_steps = len(entries_QX), len(entries_TL) // _CODEWORDS
    leasts_QM = np.empty((queries, num_steps), np.float64)
    for query in range(queries):
        widest, entries_X = 0.0, entries_QX[query]
        for step in range(num_steps):
            start = first + _CODEWORDS * step
            least, most = _bounds_of(entries_X[start : start + _CODEWORDS], factor)
            if not np.isfinite(most - least):
                return False
            leasts_QM[query, step], widest = least, max(widest, most - least)
        lowest_L[query], steps_L[query] = leasts_QM[query].sum(), max(widest, _SMALLEST) / _STEPS
    rounded_QK = np.empty((queries, _CODEWORDS), np.uint8)
    for step in range(num_steps):
        start = _CODEWORDS * step
        for query in range(queries):
            entries_K = entries_QX[query][first + start : first + start + _CODEWORDS]
            per_step = 1 / steps_L[query]
            _round_entries(entries_K, factor, leasts_QM[query, step], per_step, rounded_QK[query])
        for codeword in range(_CODEWORDS):
            for query in range(queries):
                entries_TL[start + codeword, query] = rounded_QK[query, codeword]
    return True


@compiled
def _round_entries(entries_K: Any, factor: Any, least: Any, per_step: Any, rounded_K: Any) -> None:
    """Fill in the entries of a step, in whole steps above the least."""
    for codeword in range(_CODEWORDS):
        steps = (np.float64(entries_K[codeword] * factor) - least) * per_step
        rounded_K[codeword] = np.uint8(np.int32(min(steps, _STEPS)))


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
def _bounds_of(entries_K: Any, factor: Any) -> Any:
    """The smallest and the largest entry of a step, times the factor; not finite if any is not."""
    least = most = np.float64(entries_K[0] * factor)
    for codeword in range(_CODEWORDS):
        entry = np.float64(entries_K[codeword] * factor)
        if not np.isfinite(entry):
            return entry, entry
        least, most = min(least, entry), max(most, entry)
    return least, most


def _compile_find_in_row(
    typing_context: Any,
    codes_NM: Any,
    row: Any,
    entries_TL: Any,
    highest_L: Any,
    slopes_L: Any,
    length: Any,
) -> Any:
    """Bits of the lanes in which the sum of the entries for the code bytes of a row is at most
    highest + slope * length."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes, entries, highest, slopes = (
            context.make_array(signature.args[number])(context, builder, arguments[number])
            for number in (0, 2, 3, 4)
        )
        code_bytes = cgutils.unpack_tuple(builder, codes.shape)[1]  # type: ignore[no-untyped-call]
        index = code_bytes.type
        sums_type, floats_type = ir.VectorType(ir.IntType(16), LANES), ir.VectorType(ir.FloatType(), LANES)
        total = cgutils.alloca_once(builder, sums_type)  # type: ignore[no-untyped-call]
        builder.store(ir.Constant(sums_type, [0] * LANES), total)
        code = builder.gep(codes.data, [builder.mul(arguments[1], code_bytes)])
        with cgutils.for_range(builder, code_bytes) as loop:
            codeword = builder.zext(builder.load(builder.gep(code, [loop.index])), index)
            entry = builder.add(builder.mul(loop.index, ir.Constant(index, _CODEWORDS)), codeword)
            added = builder.gep(entries.data, [builder.mul(entry, ir.Constant(index, LANES))])
            values = load_vector(builder, added, ir.IntType(8), LANES)
            builder.store(builder.add(builder.load(total), builder.zext(values, sums_type)), total)
        lengths = repeat(builder, arguments[5], LANES)
        slopes_times = builder.fmul(load_vector(builder, slopes.data, ir.FloatType(), LANES), lengths)
        largest = builder.fadd(load_vector(builder, highest.data, ir.FloatType(), LANES), slopes_times)
        sums = builder.uitofp(builder.load(total), floats_type)
        within = builder.fcmp_ordered("<=", sums, largest)
        return builder.bitcast(within, ir.IntType(LANES))

    return types.uint32(codes_NM, types.intp, entries_TL, highest_L, slopes_L, types.float32), generate


_find_in_row: Callable[..., Any] = intrinsic(_compile_find_in_row)


def _compile_lowest_bit(typing_context: Any, bits: Any) -> Any:
    """The position of the lowest bit of a uint32 that is set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        position = builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))
        return builder.zext(position, ir.IntType(64))

    return types.int64(types.uint32), generate


lowest_bit: Callable[..., Any] = intrinsic(_compile_lowest_bit)
"""Gives the position of the lowest bit of a uint32 that is set."""


@compiled
def find_within(
    codes_NM: Any,
    start: int,
    entries_TL: Any,
    lengths_B: Any,
    highest_L: Any,
    slopes_L: Any,
    places_B: Any,
    lanes_B: Any,
) -> int:
    """Fill in the places of the rows of a block, from `start` on, of which any query may keep some, and the
    bits of these queries; returns how many rows there are.

    Codes are contiguous and have at most 256 bytes.
    """
    found = 0
    for place in range(len(lengths_B)):
        bits = _find_in_row(codes_NM, start + place, entries_TL, highest_L, slopes_L, lengths_B[place])
        places_B[found], lanes_B[found] = place, bits
        found += bits != 0
    return found
