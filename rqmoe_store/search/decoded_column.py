"""The vector column of results: raw vectors where rows have them, decoded ones elsewhere.

Shape suffixes: N rows, V of them with a vector, D vector dimension.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.kept_vectors import KeptVectors
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.vector_arrays import rows_per_batch


@dataclasses.dataclass(frozen=True)
class DecodedColumn:
    """The vector column of a table that has codes in its place; columns of others are left as they are."""

    columns: CodeColumns
    kept: KeptVectors

    def is_in(self, names: Sequence[str]) -> bool:
        """Whether a result with these columns has vectors to decode."""
        return self.columns.vector_column in names and not self.kept.kept

    def to_read(self, names: Sequence[str]) -> list[str]:
        """The columns to read for a result with the columns `names`."""
        codes = [name for name in self.columns.names if name not in names] if self.is_in(names) else []
        return [*names, *codes]

    def filled(self, rows: pa.Table, names: Sequence[str], codecs: TableCodec) -> pa.Table:
        """The result, with vectors in all rows that have a code.

        Args:
            rows: N rows with the columns `to_read(names)`, and perhaps others.
            names: the columns of the result; it also has those others.
            codecs: of the version of the table that the rows are from.

        Raises as `TableCodec.decode`.
        """
        if not self.is_in(names):
            return rows
        step, place = rows_per_batch(codecs.dim), rows.schema.get_field_index(self.columns.vector_column)
        parts = [self._vectors(rows.slice(start, step), codecs) for start in range(0, len(rows), step)]
        vectors = pa.chunked_array(parts, self.kept.field.type)
        return rows.set_column(place, self.kept.field, vectors).drop_columns(
            self.to_read(names)[len(names) :]
        )

    def _vectors(self, rows: pa.Table, codecs: TableCodec) -> pa.Array:
        raw = rows[self.columns.vector_column].combine_chunks()
        codes, coded_N = self.columns.from_arrow(rows)
        raw_N = raw.is_valid().to_numpy(zero_copy_only=False)
        decoded_N = coded_N & ~raw_N
        vectors_ND = np.zeros((len(rows), codecs.dim), dtype=np.float32)
        vectors_ND[raw_N] = raw.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, codecs.dim)
        vectors_ND[decoded_N] = codecs.decode(codes[decoded_N[coded_N]])
        valid_N = raw_N | decoded_N
        return self.kept.raw_array(vectors_ND[valid_N], valid_N)
