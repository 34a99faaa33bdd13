"""The rows of a version of a table, a batch at a time, with codes, vectors and the user's columns apart.

Shapes: N rows of a batch, C of them with a code, R with a raw vector, V with either, D components.
"""

import dataclasses
from collections.abc import Iterator

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.metadata import TableMarks, without_ours
from rqmoe_store.store.schemas import user_schema
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.vector_arrays import read_vectors, rows_per_batch

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class RowBatch:
    """N rows."""

    others: list[pa.Array]
    """The user's columns, without the vector column, in the order of `others_schema`."""
    codes: Codes
    """Of the C rows that have one, with partition ids as the table counts them."""
    coded_N: Mask
    """Which rows these are."""
    raw_RD: Float32Array
    """Of the R rows that have a raw vector, as it was added; rows may have both."""
    raw_N: Mask
    """Which rows these are."""

    def vectors(self, codecs: TableCodec) -> tuple[Float32Array, Mask]:
        """The vectors (V, D) of rows, raw where there are any and decoded elsewhere, and which rows have one.

        Raises as `TableCodec.decode`.
        """
        vectors_ND = np.zeros((len(self.raw_N), codecs.dim), dtype=np.float32)
        vectors_ND[self.raw_N] = self.raw_RD
        vectors_ND[self.coded_N & ~self.raw_N] = codecs.decode(self.codes[~self.raw_N[self.coded_N]])
        valid_N = self.raw_N | self.coded_N
        return vectors_ND[valid_N], valid_N


def others_schema(dataset: lance.LanceDataset, marks: TableMarks) -> pa.Schema:
    """The user's columns, without the vector column and what this package keeps in metadata."""
    ours = (*CodeColumns(marks.vector_column).names, marks.vector_column)
    return without_ours(user_schema(dataset.schema, without=ours))


def read_batches(dataset: lance.LanceDataset, marks: TableMarks) -> Iterator[RowBatch]:
    """All rows in their order, about 32 MB of vectors at a time.

    Raises:
        InvalidInputError: a raw vector with missing, NaN or infinite values, named by row position.
        TableError: a column of ours is missing or of another type.
    """
    columns, others, first_row = CodeColumns(marks.vector_column), others_schema(dataset, marks), 0
    scanner = dataset.scanner(
        columns=[*others.names, *columns.names, marks.vector_column],
        batch_size=rows_per_batch(marks.dim),
        scan_in_order=True,
    )
    for batch in scanner.to_batches():
        codes, coded_N = columns.from_arrow(batch)
        raw_RD, raw_N = read_vectors(
            batch[marks.vector_column], dim=marks.dim, metric=marks.config.metric, first_row=first_row
        )
        yield RowBatch([batch[name] for name in others.names], codes, coded_N, raw_RD, raw_N)
        first_row += len(batch)
