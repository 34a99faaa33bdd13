"""Refine codes: a second code of what the first code leaves over, and scores that use both.

    r = x - base(c)             base: the additive approximation that tables score, or the decoded vector
    y = base(c) + decode(g)     g: the transform code of r; beyond 4 bits a dimension in two stages, the
                                second of which codes what the first leaves over
    <q, y> = <q, base(c)> + sum_b T_b[g_b]

No network runs for an additive base: a row is scored by M look-ups for its code and one per byte of its
refine code. Cosines and squared distances also need ||y||^2. Its difference from the estimate that look-up
tables give for the code alone takes the last two bytes of a refine code, as a 16-bit number n: difference =
center + unit * sinh(STEP * n). That is precise where differences are common, and reaches 2,000 of their
standard deviations.

Shape legend: n rows, D dimension, M code bytes, K codewords, R bytes of a refine code, B of them for the
transform code, P partitions, Q queries, S stages, C coordinates of all stages.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.additive import SMALLEST_SQUARE, LookupTables, add_entries
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.frame import FramedQueries, ScoreUnits, scaled
from rqmoe_store.codecs.parallel import compiled, num_threads, run_chunks_parallel
from rqmoe_store.codecs.transform import (
    CODEWORDS,
    Arrays,
    Bytes,
    Int32Array,
    TransformQuantizer,
    fill_products,
)
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric, RefineBase
from rqmoe_store.errors import InvalidInputError

LENGTH_BYTES = 2
"""Bytes of a refine code for the length of the refined vector; none under "dot", which needs no lengths."""

_LEAST_ROWS, _MOST_ROWS = 2_048, 8_192
"""Rows of a task, some 0.1 to 0.3 ms: as many for each thread, as long as it is worth another thread."""

_QUERIES_PER_TASK = 16  # whose tables take some 0.1 ms

_STEP = 3e-4
_LARGEST = 2**15 - 1
_UNIT = 0.25  # of the standard deviation
_LEAST_UNIT = 1e-5  # of the mean squared length, where training vectors do not differ
_SMALLEST_UNIT = 1e-30
_REACH = math.sinh(_STEP * _LARGEST)


def stage_bytes(refine_bytes: int, dim: int, metric: Metric) -> tuple[int, ...]:
    """Bytes of each stage that codes a residual.

    Beyond 4 bits a dimension, a byte has room for one coordinate only, and few of its bits are of use. Two
    stages have a smaller error there.
    """
    num_bytes = refine_bytes if metric == "dot" else refine_bytes - LENGTH_BYTES
    first = (dim + 1) // 2
    return (num_bytes,) if num_bytes <= first else (first, num_bytes - first)


@dataclasses.dataclass(frozen=True)
class SquareCode:
    """A 16-bit code for the differences between squared lengths and their estimates."""

    center: float
    unit: float

    @classmethod
    def fit(cls, differences_n: Float32Array, squares_n: Float32Array) -> "SquareCode":
        """The code for differences like these, of vectors of such squared lengths."""
        spread = float(np.std(differences_n, dtype=np.float64))
        least = max(_LEAST_UNIT * float(np.mean(squares_n, dtype=np.float64)), _SMALLEST_UNIT)
        return cls(float(np.mean(differences_n, dtype=np.float64)), max(_UNIT * spread, least))

    @property
    def is_finite(self) -> bool:
        """Whether all differences are finite float32 numbers."""
        return abs(self.center) + self.unit * _REACH < float(np.finfo(np.float32).max)

    def encode(self, differences_n: Float32Array) -> Bytes:
        """Codes, uint8 (n, 2), little-endian."""
        exact_n = (differences_n.astype(np.float64) - self.center) / self.unit
        numbers_n = np.rint(np.arcsinh(exact_n) / _STEP).clip(-_LARGEST, _LARGEST)
        return numbers_n.astype("<i2").view(np.uint8).reshape(-1, LENGTH_BYTES)

    def decode(self, codes_n2: Bytes) -> Float32Array:
        """Differences (n,)."""
        numbers_n = np.ascontiguousarray(codes_n2).view("<i2")[:, 0]
        return (self.center + self.unit * np.sinh(_STEP * numbers_n.astype(np.float64))).astype(np.float32)

    @functools.cached_property
    def all_differences(self) -> Float32Array:
        """The differences of all 2^16 codes, in the order of the numbers that their two bytes are."""
        return self.decode(np.arange(2**16, dtype="<u2").view(np.uint8).reshape(-1, LENGTH_BYTES))


@dataclasses.dataclass(frozen=True)
class RefineTables:
    """What the bytes of refine codes add to the scores of queries, in the units of their look-up tables.

    On a CPU, the table of a query is made when its rows are scored, and gives way to that of the next query:
    it stays in the caches of a core, where those of all queries would not.
    """

    books: "_Codebooks"
    queries_QD: Float32Array
    """The queries in the frame of the codec."""
    product_factors_Q: Float32Array
    """What an inner product of 1 adds to a score."""
    square_factors_Q: Float32Array
    """What a squared length of 1 adds to a score; 1 under "cosine", where lengths are no summands."""
    square_code: SquareCode | None

    @functools.cached_property
    def _coordinates(self) -> tuple[Float32Array, Float32Array]:
        """Coordinates (Q, C) of the queries, and their products (Q, S) with the mean of every stage."""
        return self.books.coordinates(self.queries_QD)

    @functools.cached_property
    def products_QBK(self) -> Float32Array:
        """The tables of all queries."""
        coordinates_QC, means_QS = self._coordinates
        shape = len(self.queries_QD), len(self.books.stages_B), CODEWORDS
        products_QBK = np.empty(shape, np.float32)

        def fill(start: int, stop: int, _: int) -> None:
            some = slice(start, stop)
            own = coordinates_QC[some], means_QS[some], self.product_factors_Q[some]
            _fill_tables(*self.books.arrays, *own, products_QBK[some])

        run_chunks_parallel(len(self.queries_QD), _QUERIES_PER_TASK, fill)
        return products_QBK

    def score(
        self,
        lookup: LookupTables,
        queries_n: npt.NDArray[np.int64],
        codes: Codes,
        corrections_nD: Float32Array | None = None,
    ) -> Float32Array:
        """Refined scores (n,) of codes, each for a query of its own.

        Args:
            lookup: look-up tables of the same queries.
            queries_n: int64 numbers of the queries. Codes of the same query had better be together.
            codes: codes with refine codes.
            corrections_nD: differences between the bases of the refine codes and the additive approximations;
                None for additive bases.
        """
        assert codes.refine is not None, "has refine codes"
        count, refine_nR = len(codes.codes), codes.refine
        sums_n = np.zeros(count, np.float32)
        squares_n = np.empty(count if lookup.metric == "cosine" else 0, np.float32)
        of_queries = *self._coordinates, self.product_factors_Q
        of_lookup = lookup.scores_QT, lookup.constants_Q, lookup.norms_T
        sizes, of_codes = (lookup.num_partitions, lookup.codebook_size), (codes.partitions, codes.codes)

        def score_rows(start: int, stop: int, _: int) -> None:
            rows = slice(start, stop)
            if corrections_nD is not None:
                own_n = queries_n[rows]
                products_n = np.einsum("nd,nd->n", corrections_nD[rows], self.queries_QD[own_n])
                sums_n[rows] = products_n * self.product_factors_Q[own_n]
            _add_entries(
                *self.books.arrays,
                *of_queries,
                *of_lookup,
                *sizes,
                start,
                stop,
                queries_n,
                *of_codes,
                refine_nR,
                sums_n,
                squares_n,
            )
            if self.square_code is not None:
                differences_n = self.square_code.decode(refine_nR[rows, -LENGTH_BYTES:])
                self._use_lengths(sums_n[rows], squares_n[rows], differences_n, queries_n[rows])

        for_each_thread = -(-count // num_threads())
        run_chunks_parallel(count, min(max(for_each_thread, _LEAST_ROWS), _MOST_ROWS), score_rows)
        return sums_n

    def _use_lengths(
        self,
        sums_n: Float32Array,
        squares_n: Float32Array,
        differences_n: Float32Array,
        queries_n: npt.NDArray[np.int64],
    ) -> None:
        """Make scores of sums of table entries by the lengths that refine codes have.

        Args:
            sums_n: the sums, which become scores.
            squares_n: squared lengths that look-up tables estimate; empty unless under "cosine".
            differences_n: what refine codes add to these.
            queries_n: the numbers of the queries.
        """
        if len(squares_n) == 0:
            sums_n += differences_n * self.square_factors_Q[queries_n]
        else:
            sums_n[:] = 1 - sums_n / np.sqrt(np.maximum(squares_n + differences_n, SMALLEST_SQUARE))


@dataclasses.dataclass(frozen=True, eq=False)
class _Codebooks:
    """The codebooks of all stages as one."""

    stages: tuple[TransformQuantizer, ...]
    starts_B1: Int32Array
    """Byte b codes the coordinates starts[b] : starts[b + 1], of those of all stages."""
    codebooks_CK: Float32Array
    stages_B: Int32Array
    """For a byte that is the first of its stage, the number of the stage, else -1."""

    @classmethod
    def of(cls, stages: "tuple[TransformQuantizer, ...]") -> "_Codebooks":
        """The codebooks of stages, one after the other."""
        starts, firsts, coordinates = [np.zeros(1, np.int32)], [], 0
        for number, stage in enumerate(stages):
            starts.append(stage.starts_B1[1:] + np.int32(coordinates))
            coordinates += len(stage.codebooks_CK)
            firsts.append(np.full(stage.num_bytes, -1, np.int32))
            firsts[-1][0] = number
        codebooks_CK = np.concatenate([stage.codebooks_CK for stage in stages])
        return cls(stages, np.concatenate(starts), codebooks_CK, np.concatenate(firsts))

    @property
    def arrays(self) -> tuple[Int32Array, Float32Array, Int32Array]:
        """What compiled functions need."""
        return self.starts_B1, self.codebooks_CK, self.stages_B

    def coordinates(self, queries_QD: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Coordinates (Q, C) of queries, and their products (Q, S) with the mean of every stage."""
        coordinates_QC = np.empty((len(queries_QD), len(self.codebooks_CK)), np.float32)
        means_QS, start = np.empty((len(queries_QD), len(self.stages)), np.float32), 0
        for number, stage in enumerate(self.stages):
            stop = start + len(stage.codebooks_CK)
            coordinates_QC[:, start:stop] = stage.rotation.apply(queries_QD)[:, : stop - start]
            means_QS[:, number] = stage.mean_products(queries_QD)
            start = stop
        return coordinates_QC, means_QS


@dataclasses.dataclass(frozen=True)
class Refiner:
    """Encodes residuals of a first code; immutable. Vectors are in the frame of the codec."""

    stages: tuple[TransformQuantizer, ...]
    base: RefineBase
    square_code: SquareCode | None
    """None under "dot"."""

    @property
    def num_bytes(self) -> int:
        """Bytes of a refine code."""
        return sum(stage.num_bytes for stage in self.stages) + (LENGTH_BYTES if self.square_code else 0)

    def encode(self, vectors_nD: Float32Array, base_nD: Float32Array, squares_n: Float32Array) -> Bytes:
        """Refine codes, uint8 (n, R).

        Args:
            vectors_nD: the vectors.
            base_nD: what their codes stand for.
            squares_n: the squared lengths that look-up tables estimate for their codes.
        """
        codes, refined_nD = [], base_nD
        for stage in self.stages:
            codes.append(stage.encode(vectors_nD - refined_nD))
            refined_nD = refined_nD + stage.decode(codes[-1])
        if self.square_code is not None:
            codes.append(self.square_code.encode(squared_lengths(refined_nD) - squares_n))
        return np.concatenate(codes, axis=1)

    def decode(self, refine_nR: Bytes, base_nD: Float32Array) -> Float32Array:
        """Refined vectors (n, D)."""
        start = 0
        for stage in self.stages:
            base_nD = base_nD + stage.decode(refine_nR[:, start : start + stage.num_bytes])
            start += stage.num_bytes
        return base_nD

    def tables(self, queries: FramedQueries, units: ScoreUnits) -> RefineTables:
        """Tables for queries in the codec's frame, with scores in `units`."""
        powers_Q1, count = (queries.magnitudes_Q - units.exponents_Q)[:, None], len(queries.queries_QD)
        factors_Q = np.float32({"l2": -2, "dot": -1, "cosine": 1}[queries.metric]).repeat(count)
        squares_Q = np.float32(1).repeat(count)
        if queries.metric == "l2":
            squares_Q = scaled(squares_Q[:, None], powers_Q1 - queries.exponents_Q[:, None])[:, 0]
        if queries.metric != "cosine":
            factors_Q = scaled(factors_Q[:, None], powers_Q1)[:, 0]
        return RefineTables(self._codebooks, queries.queries_QD, factors_Q, squares_Q, self.square_code)

    @functools.cached_property
    def _codebooks(self) -> "_Codebooks":
        return _Codebooks.of(self.stages)

    def arrays(self) -> Arrays:
        """The arrays that define it, by name."""
        arrays = {
            f"{number}.{name}": array
            for number, stage in enumerate(self.stages)
            for name, array in stage.arrays().items()
        }
        if self.square_code is not None:
            arrays["squares"] = np.array([self.square_code.center, self.square_code.unit])
        return arrays

    @classmethod
    def from_arrays(
        cls, arrays: Arrays, *, dim: int, refine_bytes: int, base: RefineBase, metric: Metric
    ) -> "Refiner":
        """Inverse of `arrays`. Raises InvalidInputError if they are not those of such a refiner."""
        arrays, square_code = dict(arrays), None
        if metric != "dot":
            center_unit = arrays.pop("squares", np.zeros(0))
            if center_unit.shape != (2,) or center_unit.dtype != np.float64:
                raise InvalidInputError(f"a code of squared lengths of {center_unit}")
            square_code = SquareCode(float(center_unit[0]), float(center_unit[1]))
            if not (square_code.unit > 0 and square_code.is_finite):
                raise InvalidInputError(f"a code of squared lengths without a use: {square_code}")
        stages = []
        for number, num_bytes in enumerate(stage_bytes(refine_bytes, dim, metric)):
            prefix = f"{number}."
            names = [name for name in arrays if name.startswith(prefix)]
            own = {name.removeprefix(prefix): arrays.pop(name) for name in names}
            stages.append(TransformQuantizer.from_arrays(own, dim=dim, num_bytes=num_bytes))
        if arrays:
            raise InvalidInputError(f"unknown arrays {sorted(arrays)}")
        return cls(tuple(stages), base, square_code)


def squared_lengths(vectors_nD: Float32Array) -> Float32Array:
    """Squared lengths (n,), summed in float64."""
    squares_n: npt.NDArray[np.float64] = np.einsum("nd,nd->n", vectors_nD, vectors_nD, dtype=np.float64)
    return squares_n.astype(np.float32)


@compiled
def _add_entries(
    starts_B1: Any,
    codebooks_CK: Any,
    stages_B: Any,
    coordinates_QC: Any,
    means_QS: Any,
    factors_Q: Any,
    entries_QT: Any,
    constants_Q: Any,
    norms_T: Any,
    num_partitions: int,
    codebook_size: int,
    start: int,
    stop: int,
    queries_n: Any,
    partitions_n: Any,
    codes_nM: Any,
    refine_nR: Any,
    sums_n: Any,
    squares_n: Any,
) -> None:
    """Add the table entries that the codes and refine codes of the rows from `start` to `stop` select in the
    tables of their queries; fill in squared lengths, if there is room for them."""
    table_BK, made = np.empty((len(stages_B), 256), np.float32), -1
    for row in range(start, stop):
        query = queries_n[row]
        if query != made:
            _fill_table(
                starts_B1,
                codebooks_CK,
                stages_B,
                coordinates_QC[query],
                means_QS[query],
                factors_Q[query],
                table_BK,
            )
            made = query
        partition, codes_M = partitions_n[row], codes_nM[row]
        total = entries_QT[query, partition] + constants_Q[query]
        total = add_entries(total, entries_QT[query], num_partitions, codebook_size, codes_M)
        refined = np.float32(0)
        for byte in range(len(table_BK)):
            refined += table_BK[byte, refine_nR[row, byte]]
        sums_n[row] = total + sums_n[row] + refined
        if len(squares_n):
            squares_n[row] = add_entries(norms_T[partition], norms_T, num_partitions, codebook_size, codes_M)


@compiled
def _fill_tables(
    starts_B1: Any,
    codebooks_CK: Any,
    stages_B: Any,
    coordinates_QC: Any,
    means_QS: Any,
    factors_Q: Any,
    tables_QBK: Any,
) -> None:
    """Fill in what the bytes of refine codes add to the scores of queries."""
    for query in range(len(tables_QBK)):
        own = coordinates_QC[query], means_QS[query], factors_Q[query], tables_QBK[query]
        _fill_table(starts_B1, codebooks_CK, stages_B, *own)


@compiled
def _fill_table(
    starts_B1: Any,
    codebooks_CK: Any,
    stages_B: Any,
    coordinates_C: Any,
    means_S: Any,
    factor: Any,
    table_BK: Any,
) -> None:
    """Fill in what the bytes of refine codes add to the scores of one query."""
    fill_products(coordinates_C, starts_B1, codebooks_CK, table_BK)
    for byte in range(len(table_BK)):
        products_K = table_BK[byte]
        if stages_B[byte] >= 0:  # every code has a first byte
            products_K += means_S[stages_B[byte]]
        products_K *= factor
