"""`CompressedTable`, the public face of storing and searching, and the two ways to get one."""

import dataclasses
from typing import Any, Self

from lancedb.db import DBConnection
from lancedb.table import LanceTable, Table

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import KeepVectors
from rqmoe_store.search.query import CompressedQuery
from rqmoe_store.search.source import Cache, bytes_allowed, source_of
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.compress import compress as _compress
from rqmoe_store.store.statistics import TableStats
from rqmoe_store.store.table import StoredTable


class CompressedTable(StoredTable):
    """A LanceDB table whose vectors are kept as codes, and which can be searched.

    Made by `compress` or `open_table`. `table` is the underlying LanceDB table.
    """

    def __init__(self, table: LanceTable, codec: Codec, columns: CodeColumns) -> None:
        super().__init__(table, codec, columns)
        self._source = source_of(self)
        self.use_cache()

    def use_cache(self, cache: Cache = "memory", memory_budget: int | None = None) -> Self:
        """Choose where searches through this handle read codes; returns the table itself.

        In memory they take `code_bytes` + 8 bytes per row, once for all handles of this process, are
        loaded by the first search and follow every change of the table. On disk only the probed
        partitions are read, for every query. Both give the same results.

        Args:
            cache: "memory" or "disk".
            memory_budget: bytes; a table whose codes would take more is searched on disk. None for a
                quarter of the machine's memory.

        Raises:
            InvalidInputError: another word, or a budget that is not a number of bytes.
        """
        self._memory_budget = bytes_allowed(cache, memory_budget)
        return self

    def stats(self) -> TableStats:
        """Rows, bytes and quality of this table, measured now."""
        resident = self._source.resident
        return dataclasses.replace(super().stats(), resident_bytes=resident.nbytes if resident else 0)

    def search(self, query: Any) -> CompressedQuery:
        """Start a nearest-neighbour query; options follow as in LanceDB, then `to_pandas()` or alike.

            table.search(vector).where("lang = 'en'").select(["id", "text"]).limit(10).to_pandas()

        Args:
            query: one vector (D,) or a batch (Q, D): list, array or tensor that casts to float32. A
                batch of several vectors gives a column `query_index`.

        Raises:
            InvalidInputError: another dimension, NaN or infinite values, a zero vector under cosine,
                an empty batch.
        """
        return CompressedQuery(self, query, self._source, self._memory_budget)


def compress(
    docs: Table,
    codec: Codec,
    into: str,
    *,
    db: DBConnection | None = None,
    vector_column: str = "vector",
    keep_vectors: KeepVectors = "none",
    progress: bool = True,
) -> CompressedTable:
    """Make a new table with the columns of `docs`, its vectors replaced by codes.

    `docs` is never changed. If anything fails, Ctrl-C included, no table `into` is left behind.

    Args:
        docs: a LanceDB table on disk or in an object store.
        codec: trained on vectors like those of `docs`; it is kept in the same database.
        into: name of the new table.
        db: database for the new table; default is the one `docs` lives in.
        vector_column: the column to replace. Rows where it is null keep their other values and are
            never found by a search.
        keep_vectors: "float16" or "float32" also keeps the raw vectors in such numbers, in the column
            `vector_column`: searches return them like any column, and `refine_factor` orders by them.
        progress: show a progress bar.

    Raises:
        TableError: no such vector column, an empty table, columns named like ours, `into` taken.
        InvalidInputError: vectors of another dimension, with NaN or infinite values, or zero under
            cosine (named by row position), or beyond float16 where they shall be kept in it; an
            `into` that cannot be a table name; an unknown `keep_vectors`.
    """
    return _compress(
        docs,
        codec,
        into,
        db=db,
        vector_column=vector_column,
        keep_vectors=keep_vectors,
        progress=progress,
        cls=CompressedTable,
    )


def open_table(
    db: DBConnection, name: str, *, cache: Cache = "memory", memory_budget: int | None = None
) -> CompressedTable:
    """Open the compressed table `name`; its codec is read from the same database.

    Args:
        db: the database, as opened by `lancedb.connect`.
        name: the table.
        cache, memory_budget: where searches read codes; see `CompressedTable.use_cache`.

    Raises:
        TableError: no such table, or not a compressed one.
        ArtefactError: its codec is not in the database, is damaged, or is another one.
        InvalidInputError: an unknown `cache` or a budget that is not a number of bytes.
    """
    return CompressedTable.open(db, name).use_cache(cache, memory_budget)
