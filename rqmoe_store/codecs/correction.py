"""Distance correction: what training by relevance takes off the distances of decoded codes.

A corrected distance is the distance to the decoded vector, less <(P q, 1), sum of the rows that the code
selects>, where P projects a query to a few directions. Codes and decoded vectors stay as they are. As in
look-up tables, there is a row per partition and per (step, codeword).

Shape legend: Q queries, n codes, M steps, K codewords, D dimension, R directions, P partitions (1 if the
codec has none), T = P + M * K rows, C = R + 1 columns.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.frame import Float64Array
from rqmoe_store.codecs.parallel import compiled
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import InvalidInputError

ROWS, DIRECTIONS = "rows", "directions"
"""Names of the arrays."""


@dataclasses.dataclass(frozen=True, eq=False)
class DistanceCorrection:
    """Rows that codes select, and the directions that queries are projected to."""

    rows_TC: Float32Array
    directions_RD: Float32Array
    num_partitions: int
    """Partition ids, at least 1."""
    codebook_size: int

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], config: CodecConfig, dim: int) -> Self:
        """The correction of a codec of this configuration, from what `arrays` returned.

        Raises:
            InvalidInputError: the arrays are not those of such a codec.
        """
        partitions = max(1, config.num_partitions or 0)
        if arrays.keys() != {ROWS, DIRECTIONS}:
            raise InvalidInputError(f"a correction of arrays {sorted(arrays)}, expected {ROWS}, {DIRECTIONS}")
        rows_TC, directions_RD = arrays[ROWS], arrays[DIRECTIONS]
        count = partitions + config.code_bytes * config.codebook_size
        shape = (count, len(directions_RD) + 1)
        fits = directions_RD.ndim == 2 and directions_RD.shape[1] == dim and rows_TC.shape == shape
        if not fits or rows_TC.dtype != np.float32 or directions_RD.dtype != np.float32:
            raise InvalidInputError(
                f"a correction of {rows_TC.dtype} rows {rows_TC.shape} and {directions_RD.dtype} directions "
                f"{directions_RD.shape}, expected float32 of {count} rows for dimension {dim}"
            )
        return cls(rows_TC, directions_RD, partitions, config.codebook_size)

    def arrays(self) -> dict[str, Float32Array]:
        """The arrays by name."""
        return {ROWS: self.rows_TC, DIRECTIONS: self.directions_RD}

    def amounts(
        self, queries_QD: Float32Array, queries_n: npt.NDArray[np.int64], codes: Codes
    ) -> Float64Array:
        """What is taken off the distances (n,) of codes, each to a query of its own.

        Args:
            queries_QD: checked queries (normalized under cosine).
            queries_n: int64 numbers of the queries.
            codes: checked codes.
        """
        projected_QC = np.ones((len(queries_QD), self.rows_TC.shape[1]))
        projected_QC[:, :-1] = queries_QD.astype(np.float64) @ self.directions_RD.astype(np.float64).T
        amounts_n = np.empty(len(codes))
        _sum_products(
            *(projected_QC, queries_n, self.rows_TC, codes.partitions, codes.codes),
            *(self.num_partitions, self.codebook_size, amounts_n),
        )
        return amounts_n


@compiled
def _sum_products(
    projected_QC: Any,
    queries_n: Any,
    rows_TC: Any,
    partitions_n: Any,
    codes_nM: Any,
    num_partitions: int,
    codebook_size: int,
    amounts_n: Any,
) -> None:
    """Fill in the inner products of queries with the rows that codes select."""
    for place in range(len(codes_nM)):
        query = queries_n[place]
        total = 0.0
        for column in range(rows_TC.shape[1]):
            total += projected_QC[query, column] * rows_TC[partitions_n[place], column]
        for step in range(codes_nM.shape[1]):
            selected = num_partitions + codebook_size * step + codes_nM[place, step]
            for column in range(rows_TC.shape[1]):
                total += projected_QC[query, column] * rows_TC[selected, column]
        amounts_n[place] = total
