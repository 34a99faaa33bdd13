"""The raw vectors of a compressed table and their Arrow form: of rows that have no code yet, and of all
rows where the table keeps them.

Shapes: N rows, V of them with a vector, D components.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import KEEP_VECTORS
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store.vector_arrays import require_rows

_TYPES = {"float16": pa.float16(), "float32": pa.float32()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptVectors:
    """How a table keeps the raw vectors of coded rows: not at all, or as half or single floats."""

    column: str
    """Name of the column, that of the vector column in the source table."""
    keep: str
    """"none", "float16" or "float32"."""
    dim: int
    """Components of a vector."""

    @property
    def field(self) -> pa.Field:
        """The nullable Arrow field of raw vectors, which every table has."""
        return pa.field(self.column, pa.list_(_TYPES.get(self.keep, pa.float32()), self.dim))

    @property
    def kept(self) -> bool:
        """Whether coded rows keep their vectors."""
        return self.keep != "none"

    def raw_array(self, vectors_VD: Float32Array, valid_N: npt.NDArray[np.bool_]) -> pa.Array:
        """The column for N rows, null where `valid_N` is False."""
        values_ND = np.zeros(
            (len(valid_N), self.dim), dtype="float16" if self.keep == "float16" else "float32"
        )
        values_ND[valid_N] = vectors_VD
        values = pa.array(values_ND.ravel())
        return pa.FixedSizeListArray.from_arrays(values, type=self.field.type, mask=pa.array(~valid_N))

    def require_storable(
        self, vectors_VD: Float32Array, valid_N: npt.NDArray[np.bool_], *, metric: str, first_row: int
    ) -> None:
        """Raise InvalidInputError, naming rows by position, where half floats cannot hold a vector.

        Args:
            vectors_VD: the vectors of the rows where `valid_N` is True, finite.
            valid_N: which rows have a vector.
            metric: under "cosine" a vector must not round to zero either.
            first_row: position of the first row, for messages.
        """
        for problem, good_V in self.problems(vectors_VD, metric).items():
            hint = "; keep_vectors='float32' can keep them"
            require_rows(first_row + np.flatnonzero(valid_N), good_V, f"{problem}{hint}")

    def rounded(self, vectors_VD: Float32Array) -> npt.NDArray[np.floating]:
        """The vectors in the numbers that they would be kept in: infinite beyond float16 where it is that."""
        if self.keep != "float16":
            return vectors_VD
        with np.errstate(over="ignore"):
            return vectors_VD.astype(np.float16)

    def problems(self, vectors_VD: Float32Array, metric: str) -> dict[str, npt.NDArray[np.bool_]]:
        """Per problem that half floats may have with finite vectors, which of the V do not have it."""
        if self.keep != "float16":
            return {}
        halves_VD = self.rounded(vectors_VD)
        problems = {"components beyond 65,504, the range of float16": np.all(np.isfinite(halves_VD), axis=1)}
        if metric == "cosine":
            problem = "zeros only in float16, which have no direction under 'cosine'"
            problems[problem] = np.any(halves_VD, axis=1)
        return problems

    def require_in(self, schema: pa.Schema, table_name: str) -> None:
        """Raise TableError unless the table's `schema` has the column as announced."""
        if self.keep not in KEEP_VECTORS:
            raise TableError(
                f"Table {table_name!r} says that it keeps vectors as {self.keep!r}; expected one of "
                f"{', '.join(KEEP_VECTORS)}. Restore an earlier version of the table."
            )
        present = schema.field(self.column).type if self.column in schema.names else None
        if present != self.field.type:
            raise TableError(
                f"Table {table_name!r} keeps vectors as {self.keep!r}; expected column {self.column!r} as "
                f"{self.field.type}, got {f'one of {present}' if present else 'none'}. Restore an earlier "
                "version of the table."
            )

    def require_kept(self, table_name: str) -> None:
        """Raise TableError unless the table keeps its vectors."""
        if not self.kept:
            raise TableError(
                f"Table {table_name!r} keeps no raw vectors to refine by. Leave refine_factor out, or "
                "compress the source table again with keep_vectors='float16' or 'float32'."
            )


def require_keep_vectors(keep_vectors: object) -> None:
    """Raise InvalidInputError unless `keep_vectors` names a way to keep vectors."""
    if keep_vectors not in KEEP_VECTORS:
        raise InvalidInputError(
            f"Got keep_vectors={keep_vectors!r}; expected one of {', '.join(map(repr, KEEP_VECTORS))}."
        )
