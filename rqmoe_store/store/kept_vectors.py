"""The raw vectors a compressed table may keep beside their codes, and their Arrow form.

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
    """How a table keeps its raw vectors: not at all, or as a nullable column of half or single floats."""

    column: str
    """Name of the column, that of the vector column in the source table."""
    keep: str
    """"none", "float16" or "float32"."""
    dim: int
    """Components of a vector."""

    @property
    def fields(self) -> list[pa.Field]:
        """The Arrow field of the column, or nothing where no vectors are kept."""
        if self.keep == "none":
            return []
        return [pa.field(self.column, pa.list_(_TYPES[self.keep], self.dim))]

    def to_arrow(self, vectors_VD: Float32Array, valid_N: npt.NDArray[np.bool_]) -> list[pa.Array]:
        """The column for N rows, null where `valid_N` is False; nothing where no vectors are kept."""
        arrays = []
        for field in self.fields:
            values_ND = np.zeros((len(valid_N), self.dim), dtype=self.keep)
            values_ND[valid_N] = vectors_VD
            values = pa.array(values_ND.ravel())
            arrays.append(pa.FixedSizeListArray.from_arrays(values, type=field.type, mask=pa.array(~valid_N)))
        return arrays

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
        if self.keep != "float16":
            return
        with np.errstate(over="ignore"):  # becomes inf, which is what is looked for
            halves_VD = vectors_VD.astype(np.float16)
        rows_V = first_row + np.flatnonzero(valid_N)
        hint = "; keep_vectors='float32' can keep them"
        within_V = np.all(np.isfinite(halves_VD), axis=1)
        require_rows(rows_V, within_V, f"have components beyond 65,504, the range of float16{hint}")
        if metric == "cosine":
            some_V = np.any(halves_VD, axis=1)
            require_rows(rows_V, some_V, f"are zero in float16, which has no direction under 'cosine'{hint}")

    def require_in(self, schema: pa.Schema, table_name: str) -> None:
        """Raise TableError unless the table's `schema` has the column, or lacks it, as announced."""
        if self.keep not in KEEP_VECTORS:
            raise TableError(
                f"Table {table_name!r} says that it keeps vectors as {self.keep!r}; expected one of "
                f"{', '.join(KEEP_VECTORS)}. Restore an earlier version of the table."
            )
        present = schema.field(self.column).type if self.column in schema.names else None
        wanted = next((field.type for field in self.fields), None)
        if present != wanted:
            raise TableError(
                f"Table {table_name!r} was compressed with keep_vectors={self.keep!r}; expected "
                f"{f'column {self.column!r} as {wanted}' if wanted else f'no column {self.column!r}'}, got "
                f"{f'one of {present}' if present else 'none'}. Restore an earlier version of the table."
            )

    def require_kept(self, table_name: str) -> None:
        """Raise TableError unless the table keeps its vectors."""
        if self.keep == "none":
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
