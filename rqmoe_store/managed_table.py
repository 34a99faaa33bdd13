"""Table for framework adapters: opened or created on demand, trained when it has enough rows."""

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, ParamSpec, TypeVar

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.db import DBConnection

from rqmoe_store.arguments import whole_number
from rqmoe_store.config import CodecConfig, Metric, TrainConfig
from rqmoe_store.errors import InvalidInputError, TableError, TableNotFoundError
from rqmoe_store.lifecycle import ROWS_TO_TRAIN
from rqmoe_store.storage_errors import TranslatesErrors
from rqmoe_store.store.creation import vector_dim
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import create_table, open_table
from rqmoe_store.threads import in_thread

DEFAULT_METRIC: Metric = "cosine"
"""Embeddings of text are compared by their angle."""

Existing = Literal["replace", "keep", "none"]

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_TRAINING: dict[tuple[int, str], object] = {}
"""Process id and URI of the tables that threads of this process are training. (A forked process inherits the
entries, but not the threads.)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Added:
    """What `ManagedTable.add` has written."""

    inserted: int
    """Rows whose key was new."""
    updated: int
    """Rows that replaced one of the same key."""


class ManagedTable(TranslatesErrors):
    """A compressed table that is created by its first rows, and trained by the call that adds enough of them.

    A vector store of a framework is a table that may not exist yet, whose rows are upserted by a key, and
    whose codec nobody should have to think of. This class is that table. What is left to an adapter is
    translation: documents to rows, filters to conditions, rows to documents.

        COLUMNS = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("text", pa.string())])

        class VectorStore:
            def __init__(self, uri):
                self._table = ManagedTable(uri, "docs", columns=COLUMNS, key="id", text_column="text")

            def add(self, ids, texts, vectors_ND):
                vectors = pa.FixedSizeListArray.from_arrays(vectors_ND.ravel(), vectors_ND.shape[1])
                self._table.add(pa.table([ids, texts, vectors], [*COLUMNS.names, "vector"]))

            def find(self, vector, k):
                table = self._table.open()  # a CompressedTable; None before the first rows
                return [] if table is None else table.search(vector).limit(k).to_list()

    Any number of threads may use one `ManagedTable`, and any number of processes the same table. The first
    rows create the table in one commit, with its key: others see the table with these rows or not at all.
    While one thread trains the first codec, others go on adding rows, which stay raw and are searched
    exactly; a process never trains a table twice at once. A table that differs from what was asked for
    (columns, key, metric, code size, dimension) is refused before anything is written.
    """

    def __init__(
        self,
        database: DBConnection | str | os.PathLike[str] | Callable[[], DBConnection],
        name: str,
        *,
        columns: pa.Schema,
        key: str,
        vector_column: str = "vector",
        text_column: str | None = None,
        dim: int | None = None,
        config: CodecConfig | None = None,
        training: TrainConfig | None = None,
        train_from: int | None = ROWS_TO_TRAIN,
        progress: bool | None = None,
        storage_options: Mapping[str, str] | None = None,
        table: CompressedTable | None = None,
        row_name: str = "row",
        column_settings: Sequence[str] = (),
    ) -> None:
        """Describe the table. Nothing is read or written before it is used.

        Args:
            database: a connection, the folder or bucket of the database, or a function that connects when the
                database is first needed.
            name: the table.
            columns: its columns but that of vectors, with their types; a table that is opened must have them,
                and may have more.
            key: the column that tells rows apart.
            vector_column: the column of vectors.
            text_column: the column that full-text searches read; None if there are none.
            dim: components of a vector; None for those of the first rows.
            config: of the codec to train, metric and code size among it; None for the defaults with metric
                "cosine", or for whatever the table was created with.
            training: how the codec is trained; None for the defaults.
            train_from: rows with a vector from which a codec is trained, but no fewer than one of `config`
                needs; None for never.
            progress: whether training shows progress bars; None for what `training` says.
            storage_options: of a bucket, as LanceDB takes them.
            table: an open table to use, instead of opening it by name.
            row_name: what the framework calls a row, such as "document", for messages.
            column_settings: what the adapter calls the settings that name columns, for messages.

        Raises:
            InvalidInputError: a database of another type, `train_from` or `dim` below 1.
            TableError: `table` does not have the columns, the key, the dimension or the codec asked for.
        """
        for name_of, number in (("train_from", train_from), ("dim", dim)):
            if number is not None:
                whole_number(name_of, number, 1)
        if not (isinstance(database, DBConnection | str | os.PathLike) or callable(database)):
            raise InvalidInputError(
                f"Got {database!r} as the database; expected its folder or bucket, or what "
                "lancedb.connect(...) returns."
            )
        self.name = name
        """Name of the table."""
        self._database, self._storage_options = database, storage_options
        self._columns, self._key = columns, key
        self._vector_column, self._text_column = vector_column, text_column
        self._dim, self._config = dim, config
        self._training, self._train_from, self._progress = training, train_from, progress
        self._row_name, self._column_settings = row_name, column_settings
        self._lock = threading.RLock()
        self._connection: DBConnection | None = None
        self._table: CompressedTable | None = None if table is None else self._require_fit(table)

    @property
    def connection(self) -> DBConnection:
        """The connection to the database, made when it is first asked for."""
        with self._lock:
            if self._connection is None:
                database = self._database
                if isinstance(database, DBConnection):
                    self._connection = database
                elif isinstance(database, str | os.PathLike):
                    options = None if self._storage_options is None else dict(self._storage_options)
                    self._connection = lancedb.connect(os.fspath(database), storage_options=options)
                else:
                    self._connection = database()
            return self._connection

    @property
    def metric(self) -> Metric:
        """The distance of the table, or of the one that the first rows will create. Raises as `open`."""
        table = self.open()
        return self._new_config.metric if table is None else table.metric

    @property
    def dim(self) -> int | None:
        """Components of a vector; None while there is no table, and nobody said. Raises as `open`."""
        table = self.open()
        return self._dim if table is None else table.dim

    def open(self, *, text_index: bool = False) -> CompressedTable | None:
        """The table, opened if need be; None while there is none.

        Args:
            text_index: also create the full-text index on `text_column`, unless it has one.

        Raises:
            TableError: a table of this name that is no compressed one, has other columns or another key, or
                was created for another dimension, metric or code size than was asked for.
            ArtifactError: its codec is missing or damaged.
            InvalidInputError: an unusable name; an index without a `text_column`.
            StorageError: the disk or bucket refuses to take the index.
        """
        table = self._table
        if table is None:
            with self._lock:
                if self._table is None:
                    self._table = self._open_existing()
                table = self._table
        if table is not None and text_index:
            if self._text_column is None:
                raise InvalidInputError(
                    f"Got text_index=True for table {self.name!r}, for which no text_column was named; "
                    "expected ManagedTable(..., text_column=<the column of texts>)."
                )
            table.create_fts_index(self._text_column, exist_ok=True)
        return table

    def add(self, rows: pa.Table, *, existing: Existing = "replace", progress: bool | None = None) -> Added:
        """Write rows, all in one commit or none at all, and train the first codec if it is due.

        Training is done by this call, in its own thread, once the rows are written. If it fails, the rows are
        there and stay raw, the error is raised with a note that says so, and the next call tries again.

        Args:
            rows: with the columns of the table and a vector column of fixed length, in which nulls are rows
                without a vector; every key once. No rows do nothing, and create no table.
            existing: what becomes of rows whose key the table has: "replace" them, or "keep" the old ones.
                "none" says that there are none, as when the keys were made just now, and appends unseen.
            progress: as for the table itself, for this call.

        Raises:
            InvalidInputError: vectors of another dimension than the table's, with NaN or infinite components,
                or zero under cosine, named by their key; a repeated key; otherwise as
                `CompressedTable.merge_insert`. Nothing was written.
            TableError, ArtifactError: as `open`; nothing was written.
            StorageError: the disk or bucket refuses to take them; nothing was written, unless a note says
                otherwise.
        """
        if existing not in ("replace", "keep", "none"):
            raise InvalidInputError(f"Got existing={existing!r}; expected 'replace', 'keep' or 'none'.")
        if rows.num_rows == 0:
            return Added(inserted=0, updated=0)
        table, created = self._open_or_create(rows)
        if created:
            added = Added(inserted=rows.num_rows, updated=0)
        else:
            self._require_usable(rows, table.metric)
            added = self._write(table, rows, existing)
        self.train_if_due(progress=progress)
        return added

    def train_if_due(self, *, progress: bool | None = None) -> bool:
        """Train the first codec and encode all rows, if there are enough; `add` calls this.

        Nothing is done while another thread of this process trains the table, however many `ManagedTable`s
        stand for it. If another process is quicker, its codec is used.

        Args:
            progress: as for the table itself, for this call.

        Returns:
            Whether this call trained.

        Raises as `CompressedTable.optimize`; rows that have no code then stay raw.
        """
        table = self.open()
        if table is None or not table.is_due_for_training(self._train_from):
            return False
        place, mine = (os.getpid(), table.table.uri), object()
        if _TRAINING.setdefault(place, mine) is not mine:
            return False
        try:
            report = table.optimize(
                training=self._training,
                train_from=self._train_from,
                progress=self._shows_progress(progress),
            )
        except Exception as error:
            error.add_note(
                f"No row was lost: training the codec of table {self.name!r} failed after the rows were "
                "written. They stay raw until the next call that adds rows, or optimize(), has trained it."
            )
            raise
        finally:
            del _TRAINING[place]
        return report.trained

    def require_dim(self, dim: int) -> None:
        """Raise InvalidInputError if there is a table, or a setting, of another dimension than `dim`.

        Raises as `open`, too.
        """
        table = self.open()
        if table is not None and table.dim != dim:
            raise InvalidInputError(_other_dim(table, dim))
        if self._dim not in (None, dim):
            raise InvalidInputError(
                f"Got vectors of {dim} numbers; expected {self._dim}, as this store was told. Nothing was "
                "written."
            )

    def drop(self) -> None:
        """Drop the table with all its rows and its codec, if there is one; the next rows create it anew.

        Raises as `open`: a table that holds something else is not dropped.
        """
        with self._lock:
            if self.open() is not None:
                self.connection.drop_table(self.name)
            self._table = None

    async def in_thread(
        self, function: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> _Result:
        """Call a function in a thread, so that the event loop stays free: what awaited methods are made of.

            async def aadd(self, documents):
                return await self._table.in_thread(self.add, documents)

        The thread is one of this package's own: what others run in the loop's executor does not delay it, and
        it does not delay them. Cancelled before a thread has taken it up, the call is never made; after that
        it goes on to its end, and what comes out of it is dropped.

        Args:
            function: what to call; its arguments follow.

        Returns and raises what the function does.
        """
        return await in_thread(functools.partial(function, *args, **kwargs))

    @property
    def _new_config(self) -> CodecConfig:
        return CodecConfig(metric=DEFAULT_METRIC) if self._config is None else self._config

    def _shows_progress(self, of_call: bool | None) -> bool:
        for said in (of_call, self._progress):
            if said is not None:
                return said
        return self._training is None or self._training.progress

    def _open_existing(self) -> CompressedTable | None:
        try:
            return self._require_fit(open_table(self.connection, self.name))
        except TableNotFoundError:
            return None

    def _open_or_create(self, rows: pa.Table) -> tuple[CompressedTable, bool]:
        """The table, and whether this call created it, with these rows in it."""
        table = self.open()
        if table is None:
            with self._lock:  # threads share one handle, which sees at once what each of them writes
                table = self.open()
                if table is None:
                    self._require_usable(rows, self._new_config.metric)
                    try:
                        self._table = self._create(rows)
                        return self._table, True
                    except TableError:
                        table = self.open()
                        if table is None:  # it is not that another process was quicker
                            raise
        return table, False

    def _create(self, rows: pa.Table) -> CompressedTable:
        return create_table(
            self.connection,
            self.name,
            rows,
            schema=rows.schema,
            config=self._new_config,
            vector_column=self._vector_column,
            key=self._key,
        )

    def _write(self, table: CompressedTable, rows: pa.Table, existing: Existing) -> Added:
        if existing == "none":
            return Added(inserted=table.add(rows), updated=0)
        merge = table.merge_insert(self._key).when_not_matched_insert_all()
        if existing == "replace":
            merge = merge.when_matched_update_all()
        done = merge.execute(rows)
        return Added(inserted=done.num_inserted_rows, updated=done.num_updated_rows)

    def _require_usable(self, rows: pa.Table, metric: Metric) -> None:
        """Raise InvalidInputError, naming the key, for vectors that the table would refuse by position."""
        dim, _ = vector_dim(rows.schema, self._vector_column)
        self.require_dim(dim)
        column = rows[self._vector_column].combine_chunks()
        valid_N = np.asarray(column.is_valid())
        with np.errstate(over="ignore"):  # becomes infinite
            vectors_VD = np.asarray(column.drop_null().flatten(), dtype=np.float32).reshape(-1, dim)
        reasons = [(~np.isfinite(vectors_VD).all(axis=1), "has NaN or infinite components as float32")]
        if metric == "cosine":
            reasons.append((~vectors_VD.any(axis=1), "is zero, which has no direction under metric 'cosine'"))
        for bad_V, reason in reasons:
            if bad_V.any():
                row = int(np.flatnonzero(valid_N)[int(bad_V.argmax())])
                raise InvalidInputError(
                    f"The embedding of {self._row_name} {rows[self._key][row].as_py()!r} {reason}. Nothing "
                    "was written; embed it again, or leave it out."
                )

    def _require_fit(self, table: CompressedTable) -> CompressedTable:
        """The table; raises TableError unless it is what was asked for."""
        types = {field.name: field.type for field in table.schema}
        lacks = [
            f"no column {field.name!r} of type {field.type}"
            for field in self._columns
            if types.get(field.name) != field.type
        ]
        if table.columns.vector_column != self._vector_column:
            lacks.append(f"no column {self._vector_column!r} of vectors")
        if table.key != self._key:
            lacks.append(f"no key {self._key!r}")
        if lacks:
            advice = ", ".join(self._column_settings)
            raise TableError(
                f"Table {table.name!r} has {' and '.join(lacks)}: it holds no {self._row_name}s as this "
                f"store keeps them (columns: {', '.join(table.schema.names)}; vectors: "
                f"{table.columns.vector_column!r}; key: {table.key!r}). Choose another table name"
                + (f", or say by {advice} how its columns are called." if advice else ".")
            )
        if self._dim is not None and self._dim != table.dim:
            raise TableError(_other_dim(table, self._dim))
        self._require_config(table)
        return table

    def _require_config(self, table: CompressedTable) -> None:
        asked, made = self._config, table.codecs.metadata.config
        if asked is None:
            return
        # A table may get refine codes later, which a store that asks for none uses, too.
        names = ["metric", "code_bytes"] + (["refine_bytes"] if asked.refine_bytes else [])
        differing = [name for name in names if getattr(asked, name) != getattr(made, name)]
        if differing:
            wanted = " and ".join(f"{name} {getattr(asked, name)!r}" for name in differing)
            there = ", ".join(f"{name}={getattr(made, name)!r}" for name in differing)
            raise TableError(
                f"Got a config with {wanted}, but table {table.name!r} was made for CodecConfig({there}). "
                "Leave config out to use the table as it is, or choose another table name."
            )


def _other_dim(table: CompressedTable, dim: int) -> str:
    return (
        f"Got vectors of {dim} numbers, but table {table.name!r} holds vectors of {table.dim}: it was filled "
        "by another embedding model. Use that model, or choose another table name. Nothing was written."
    )
