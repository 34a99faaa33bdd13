"""Tables made without a codec: rows stay raw until there are enough to train one on."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable

from rqmoe_store.config import CodecConfig
from rqmoe_store.refusals import names_refusals
from rqmoe_store.store import registry
from rqmoe_store.store.creation import create_with, require_usable, stored_schema, vector_dim
from rqmoe_store.store.keys import keyed, require_unique
from rqmoe_store.store.metadata import TableMarks
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.spooled_rows import SpooledRows, spooled
from rqmoe_store.store.table_codec import TableCodec


class RawTable:
    """A table to be made without a codec. It appears whole, with its first rows, or not at all."""

    def __init__(
        self,
        db: DBConnection,
        name: str,
        schema: pa.Schema,
        *,
        config: CodecConfig,
        vector_column: str,
        keep_vectors: str,
        key: str | None,
    ) -> None:
        """Say which; nothing is written yet.

        Args:
            db: a database in a folder or bucket.
            name: a name that nobody has by the time it is made.
            schema: the user's columns and a vector column, a fixed-size list of numbers; LanceDB's
                description of an embedding function may be in its metadata.
            config: of the codec that will be trained.
            vector_column: which of the columns has the vectors.
            keep_vectors: "none", or "float16" or "float32" to keep raw vectors beside their codes.
            key: a column that tells rows apart; None for none.

        Raises:
            TableError: no such vector column, columns named like ours.
            InvalidInputError: an unusable name, a vector column of no fixed length, an unknown
                `keep_vectors`, a column that cannot be a key.
        """
        schema = schema if key is None else keyed(schema, key)
        dim = vector_dim(schema, vector_column)
        self.marks = TableMarks(
            vector_column=vector_column, dim=dim, keep_vectors=keep_vectors, config=config
        )
        """What its metadata will say."""
        require_usable(db, name, schema, self.marks)
        self._db, self._name, self._key = db, name, key
        self._schema = stored_schema(name, schema, self.marks)

    @contextlib.contextmanager
    def first_rows(self, rows: Any) -> Iterator[SpooledRows]:
        """The rows that it will be made with, once all of them have been checked.

        Args:
            rows: as for `StoredTable.add`; None for none.

        Raises as `StoredTable.add`, and InvalidInputError for rows that share a key.
        """
        encoder = RowEncoder(self._schema, TableCodec.of(self.marks, []), table_name=self._name, encode=False)
        with spooled(() if rows is None else encoder.encoded(rows)) as encoded:
            if self._key is not None and encoded.count:
                keys = (batch.select([self._key]) for batch in encoded.reader())
                require_unique(keys, [self._key], "the rows")
            yield encoded

    @names_refusals
    def made_with(self, rows: SpooledRows) -> LanceTable:
        """The table, made now.

        Raises:
            TableError: the name is taken.
        """
        neighbour = registry.open_or_create(self._db)
        return create_with(self._db, self._name, self._schema, rows, neighbour=neighbour)
