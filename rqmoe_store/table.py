"""`CompressedTable`: everything that can be done with a table whose vectors are kept as codes."""

import copy
import dataclasses
import datetime
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.expr import Expr
from lancedb.index import IndexConfig
from lancedb.query import FullTextQuery
from lancedb.table import IndexStatistics, LanceTable

from rqmoe_store import lifecycle
from rqmoe_store.arguments import whole_number
from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig, Metric, TrainConfig
from rqmoe_store.errors import InvalidInputError, RQMoEError
from rqmoe_store.exports import ExportReport, FormatName, export
from rqmoe_store.lifecycle import ROWS_TO_TRAIN, Encode, OptimizeReport
from rqmoe_store.search.cached_columns import check_cache_columns
from rqmoe_store.search.codec_tuning import RelevanceSettings, tune_codec
from rqmoe_store.search.graph_building import build_graph
from rqmoe_store.search.hybrid import HybridQuery
from rqmoe_store.search.plain import PlainQuery
from rqmoe_store.search.query import CompressedQuery
from rqmoe_store.search.shards import ShardCall, ShardedCodes
from rqmoe_store.search.source import Cache, CacheSetting, TableSource
from rqmoe_store.search.text import (
    QueryType,
    TextIndexOptions,
    TextQuery,
    as_vector,
    create_text_index,
    query_kind,
)
from rqmoe_store.search.tuning import TuningGoal, TuningReport, tune_table
from rqmoe_store.storage_errors import TranslatesErrors
from rqmoe_store.store import databases, structure, versions
from rqmoe_store.store.columns import CodeColumns, KeptVectors
from rqmoe_store.store.conditions import Conditions
from rqmoe_store.store.embeddings import TableEmbedding
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.health import HealthReport, measure_health
from rqmoe_store.store.merge import MergeInsert
from rqmoe_store.store.neighbor_graph import MOST_NEIGHBORS, GraphReport
from rqmoe_store.store.reencoding import BackgroundEncoding
from rqmoe_store.store.registry import GRACE
from rqmoe_store.store.row_encoder import OnBadVectors
from rqmoe_store.store.row_operations import add_rows, count_rows, delete_rows, first_rows, update_rows
from rqmoe_store.store.snapshot import Snapshot, Snapshots
from rqmoe_store.store.statistics import TableStats, measure
from rqmoe_store.store.structure import ScalarIndex
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.versions import TableTags
from rqmoe_store.training.relevance import RelevanceReport
from rqmoe_store.verification.report import VerifyReport
from rqmoe_store.verification.run import verify

Opened = TypeVar("Opened", bound="CompressedTable")


class CompressedTable(TranslatesErrors):
    """A LanceDB table whose vectors are kept as codes, and which can be searched.

    Made by `compress`, `create_table` or `open_table`. `table` is the underlying LanceDB table.

    Everything is read from the newest version of the table, whichever process wrote it, until an earlier one
    is checked out. If the connection has a `read_consistency_interval` above zero, the version that is read,
    by searches as well, may be up to that much older; what is written through this object is seen by it at
    once. If the table is dropped and created again, reads go on with the new one, provided that it keeps its
    vectors in the same way.
    """

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        """The open table, which the functions of this package work on."""
        self._source = TableSource(handle, CacheSetting())

    @classmethod
    def open(cls, db: DBConnection, name: str, *, branch: str | None = None, device: str = "auto") -> Self:
        """Open the compressed table `name`; its codecs are read from the same database.

        `device` is that of `use_device`.

        Raises:
            InvalidInputError: the device is unknown, or there is no such GPU.
            TableNotFoundError: no such table.
            TableError: not a compressed one, a column of ours is missing or of another
                type, or a newer release wrote it.
            ArtifactError: a codec is not in the database, is damaged, or is another one.
        """
        return cls(Handle.open(db, name, branch=branch, device=device))

    @property
    def table(self) -> LanceTable:
        """The LanceDB table. Rows written through it directly need their own codes; check versions out by
        `checkout`, not through it. Read directly, it is at the version it was brought to last."""
        return self.handle.table

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.handle.name

    @property
    def version(self) -> int:
        """Version of the table that everything is read from; grows with every change."""
        return self.handle.version

    @property
    def checked_out(self) -> int | None:
        """The version that everything is read from; None for the newest one."""
        return self.handle.checked_out

    @property
    def schema(self) -> pa.Schema:
        """The user's columns: the table's schema without codes, partitions and our metadata.

        The vector column is among them, as the last, where the table keeps raw vectors.
        """
        return self.handle.schema

    @property
    def columns(self) -> CodeColumns:
        """Names of the code and partition columns."""
        return self.handle.columns

    @property
    def hidden_columns(self) -> tuple[str, ...]:
        """Columns that results leave out unless they are named: codes, partitions, and raw vectors where
        rows keep them only until they are encoded."""
        return self.handle.hidden_columns

    @property
    def key(self) -> str | None:
        """The unique key of the table; None without one. See `set_key` and `merge_insert`."""
        return self.handle.key

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return self.handle.dim

    @property
    def metric(self) -> Metric:
        """The distance that the table is searched by."""
        return self.handle.metric

    @property
    def codec(self) -> Codec:
        """The newest codec: encodes the vectors that are added.

        Raises:
            TableError: the table has none yet.
        """
        return self.handle.codec

    @property
    def codecs(self) -> TableCodec:
        """The codecs of all generations of rows."""
        return self.handle.codecs

    @property
    def embedding(self) -> TableEmbedding | None:
        """The LanceDB embedding function its vectors come from; None when there is none."""
        return self.handle.embedding

    @property
    def kept(self) -> KeptVectors:
        """Whether the table keeps its raw vectors, and how."""
        return self.handle.kept

    @property
    def conditions(self) -> Conditions:
        """Reads the conditions and expressions that users write over the table."""
        return self.handle.conditions

    @property
    def snapshots(self) -> Snapshots:
        """Gives the version that everything is read from."""
        return self.handle.snapshots

    def __len__(self) -> int:
        return self.count_rows()

    def __repr__(self) -> str:
        try:
            rows = f"{len(self)} rows"
        except RQMoEError as error:  # a table that is gone still has a name to show
            rows = f"cannot be read: {error}"
        return f"{type(self).__name__}({self.name!r}, {rows}, {self.handle.summary})"

    def refresh(self) -> Snapshot:
        """Go on with the newest version of the table now; every write does this as well.

        Without it, reads look for the newest version by themselves, as often as the connection's
        `read_consistency_interval` says.

        Returns:
            The newest version.

        Raises:
            TableError: an earlier version is checked out; the table was dropped, or made again as one that
                cannot take its place.
            ArtifactError: as `open`.
        """
        return self.handle.refresh()

    def count_rows(self, filter: str | Expr | None = None) -> int:
        """Number of rows, or of those that match a condition.

        Args:
            filter: SQL, or an expression of `lancedb.expr`.

        Raises:
            InvalidInputError: `filter` cannot be parsed or names an unknown column.
        """
        return count_rows(self.handle, filter)

    def head(self, n: int = 5) -> pa.Table:
        """The first rows, in the user's columns. Raises InvalidInputError for a number below 0."""
        return first_rows(self.handle, n)

    @overload
    def search(
        self,
        query: None = None,
        query_type: Literal["auto"] = "auto",
        *,
        vector_column_name: str | None = None,
    ) -> PlainQuery: ...

    @overload
    def search(
        self,
        query: FullTextQuery,
        query_type: Literal["auto"] = "auto",
        fts_columns: str | Sequence[str] | None = None,
        *,
        vector_column_name: str | None = None,
    ) -> TextQuery: ...

    @overload
    def search(
        self,
        query: Any,
        query_type: Literal["fts"],
        fts_columns: str | Sequence[str] | None = None,
        *,
        vector_column_name: str | None = None,
    ) -> TextQuery: ...

    @overload
    def search(
        self,
        query: str | None = None,
        *,
        query_type: Literal["hybrid"],
        fts_columns: str | Sequence[str] | None = None,
        vector_column_name: str | None = None,
    ) -> HybridQuery: ...

    @overload
    def search(
        self,
        query: Any,
        query_type: Literal["auto", "vector"] = "auto",
        *,
        vector_column_name: str | None = None,
    ) -> CompressedQuery: ...

    def search(
        self,
        query: Any = None,
        query_type: QueryType = "auto",
        fts_columns: str | Sequence[str] | None = None,
        *,
        vector_column_name: str | None = None,
    ) -> CompressedQuery | TextQuery | HybridQuery | PlainQuery:
        """Start a query; options follow as in LanceDB, then `to_pandas()` or alike.

            table.search(vector).where("lang = 'en'").select(["id", "text"]).limit(10).to_pandas()

        Args:
            query: one vector (D,) or a batch (Q, D): list, array or tensor that casts to float32. A
                batch of several vectors gives a column `query_index`. Or text: in a table with an
                embedding function it is embedded, in others it is searched for in full text. None for a
                plain read: of all rows that match, in the order of the table, with no limit by default.
            query_type: "vector" for the rows nearest to the query, "fts" for full-text search,
                "hybrid" for both, merged: of one text, or of what `.vector(...)` and `.text(...)`
                say when `query` is None.
            fts_columns: text columns for full-text and hybrid search; default all that have a
                full-text index.
            vector_column_name: None, or the table's vector column, of which there is one.

        Raises:
            InvalidInputError: another `vector_column_name` or dimension, NaN or infinite values, a zero
                vector under cosine, an empty batch, or text that cannot be searched for.
            RQMoEError: the embedding function is not registered, lacks a package, or fails.
        """
        if vector_column_name not in (None, self.handle.columns.vector_column):
            raise InvalidInputError(
                f"Got vector_column_name={vector_column_name!r}; expected {self.columns.vector_column!r}, "
                "the only column of the table that is searched by vector, or nothing."
            )
        reader = self._source.reader()
        kind = query_kind(reader, query, query_type)
        if kind == "hybrid":
            return HybridQuery(reader, query, fts_columns)
        if kind == "fts":
            return TextQuery(reader, query, fts_columns)
        if fts_columns:
            raise InvalidInputError(
                f"Got fts_columns={fts_columns!r} for a search by vector; expected it with "
                "query_type='fts' or 'hybrid' only."
            )
        if kind == "plain":
            return PlainQuery(reader)
        return CompressedQuery(reader, as_vector(self.handle, query))

    def tune(
        self,
        queries: Any = None,
        *,
        target_recall: float = 0.95,
        limit: int = 10,
        sample: int = 200,
        seed: int = 0,
        progress: bool = True,
    ) -> TuningReport:
        """Choose the partitions to search and the rows to rerank, and keep the choice with the table.

        It chooses the fastest of the settings that reach the target. Searches in all processes use it, unless
        they call `.nprobes()` or `.shortlist()`, until the table is tuned again. Every row is decoded once.

        Args:
            queries: vectors (Q, D) like those that will be searched for. None makes queries from rows of the
                table: vectors that they may have had before they were encoded, which must not find their own
                rows. Real queries are better: questions are seldom distributed like what answers them.
            target_recall: share of the `limit` nearest rows to find, above 0 and up to 1, mean over the
                queries. The nearest rows are those of all rows whose decoded vectors, with refine codes if
                there are any, are nearest.
            limit: how many nearest rows.
            sample: number of queries to use at most; chosen at random if there are more.
            seed: seed of that choice.
            progress: show a progress bar.

        Returns:
            The setting, its recall and time, and what was measured; prints as a table.

        Raises:
            InvalidInputError: arguments out of range, queries that `search` refuses, or a target that all
                partitions with 4,096 (or 16 x limit) rows decoded do not reach. Nothing is kept then.
            TableError: no rows to find, or an earlier version is checked out.
            StorageError: the disk or bucket refuses to keep the choice.
        """
        goal = TuningGoal(target_recall=target_recall, limit=limit, sample=sample, seed=seed)
        return tune_table(self._source, queries, goal, progress=progress)

    def tune_codec(
        self,
        queries: Any,
        positives: Any = None,
        *,
        on: str | None = None,
        held_out: float = 0.3,
        seed: int = 0,
        progress: bool = True,
    ) -> RelevanceReport:
        """Correct distances so that queries like those given find more of the rows that they should find.

        Codes and decoded vectors stay as they are. Searches take a correction off distances, which depends on
        the query and the code, and `_distance` is the corrected distance. If queries that were held out do
        not clearly gain by it, nothing is changed. Another codec (`retrain`) starts without a correction, and
        `restore` brings back the version before.

        Args:
            queries: at least 100 different vectors (Q, D) like those that will be searched for.
            positives: for each query a value, or a list of them, that rows which answer it have in the column
                `on`. None takes the 10 exact neighbors of each query, in a table that keeps its vectors.
            on: a column, such as that of document ids; None for the table's key.
            held_out: share of the queries that decide whether the result is kept, above 0 and below 1.
            seed: seed of that choice, and of the order of training.
            progress: show a progress bar.

        Returns:
            What queries that were held out find before and after, and whether the result is kept.

        Raises:
            InvalidInputError: arguments out of range, queries that `search` refuses or too few of them,
                positives that the table does not have, or none in a table that keeps no vectors; or the codec
                has refine codes, which leave nothing to gain.
            TableError: no codec, no rows, rows of an earlier codec (`optimize` encodes them), an earlier
                version is checked out, or another process gave the table a codec meanwhile.
            StorageError: the disk or bucket refuses to keep the codec.
        """
        settings = RelevanceSettings(positives=positives, on=on, held_out=held_out, seed=seed)
        return tune_codec(self._source, queries, settings, progress=progress)

    def add(
        self,
        rows: Any,
        mode: Literal["append"] = "append",
        on_bad_vectors: OnBadVectors = "error",
        fill_value: float = 0.0,
        *,
        encode: bool | None = None,
    ) -> int:
        """Encode and append rows, all in one commit or none at all.

        Memory stays bounded for iterators and readers, however long; their encoded rows wait in a
        temporary file until all of them have been checked. The key of the table is not checked: use
        `merge_insert` to replace rows that are there already.

        Args:
            rows: a list of dicts, a pandas or polars frame, an Arrow table, record batch or reader,
                or an iterable of those. Columns are the user's columns and the vector column;
                nullable ones may be left out, a null vector is stored as null. In a table with an
                embedding function, missing vectors are computed from its source column.
            mode: "append".
            on_bad_vectors: what to do with rows whose vector has another dimension, missing, NaN or
                infinite components, ones beyond float16 where the table keeps them in it, or no
                direction under cosine: "error"; "drop" to leave the rows out; "null" to add them
                without a vector; "fill" to put `fill_value` in place of such components and cut or
                lengthen to the dimension. As in LanceDB, "drop" and "fill" treat rows without a
                vector as bad ones, too.
            fill_value: a finite number.
            encode: False to keep the vectors raw, which is quicker, and let `optimize` encode them
                later; searches find them all the same. None to encode if the table has a codec.

        Returns:
            Number of rows added.

        Raises:
            InvalidInputError: unknown or missing columns, values of another type, a bad vector with
                "error", or with "fill" one that filling does not make good (named by row position);
                another `mode`.
            RQMoEError: the embedding function is needed and not registered, lacks a package, or fails.
            TableError: an earlier version is checked out; `encode` is True and the table has no codec yet.
            StorageError: the disk or bucket refuses to take them; no row was added.
        """
        return add_rows(
            self.handle,
            rows,
            mode=mode,
            on_bad_vectors=on_bad_vectors,
            fill_value=fill_value,
            encode=encode,
        )

    def merge_insert(self, on: str | Iterable[str] | None = None) -> MergeInsert:
        """Start an upsert, in LanceDB's words.

            store.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

        A null key matches nothing. If the table has a key, concurrent merges by it are safe: a new key is
        inserted once, whichever process comes first.

        Args:
            on: the key column of the merge, or several columns that are the key together; None for the
                table's key.

        Raises:
            InvalidInputError: `on` has no names of columns.
        """
        return MergeInsert(self.handle, on)

    def update(
        self,
        where: str | Expr | None = None,
        values: Mapping[str, Any] | None = None,
        *,
        values_sql: Mapping[str, str] | None = None,
    ) -> Any:
        """Change columns of rows, all in one commit or none at all.

        A new vector is encoded. All other codes stay as they are. If new text is in the source column of an
        embedding function, the vector is computed anew, unless one is given.

        Args:
            where: which rows: SQL, or an expression of `lancedb.expr`. None for all.
            values: new values by column; None for null.
            values_sql: SQL expressions over the row as it was, by column, such as {"n": "n + 1"}. Not for the
                vector, nor for text that vectors are computed from.

        Returns:
            LanceDB's result, with `rows_updated` and `version`.

        Raises:
            InvalidInputError: neither or both kinds of values; columns that are unknown, code or partition of
                the vector, or the key; a vector that cannot be used; what LanceDB refuses.
            RQMoEError: the embedding function is needed and not registered, lacks a package, or fails.
            TableError: an earlier version is checked out, or others write to the table all the time.
        """
        return update_rows(self.handle, where, values, values_sql)

    def delete(self, where: str | Expr) -> int:
        """Delete the rows that match a condition; returns how many.

        Args:
            where: SQL, or an expression of `lancedb.expr`.

        Raises:
            InvalidInputError: `where` cannot be parsed or names an unknown column.
            TableError: an earlier version is checked out, or others write to the table all the time.
        """
        return delete_rows(self.handle, where)

    def set_key(self, key: str) -> None:
        """Make a column the unique key of the table. It allows no nulls from then on, and stays the key.

        If two concurrent merges insert a row with the same new key, the second one updates it instead. `add`
        does not check whether a key is there already.

        Args:
            key: a column of int32, int64, text or bytes; its values are held in memory once, to compare them.

        Raises:
            InvalidInputError: no such column, or several rows have the same value.
            TableError: a row has none, the table has another key, or an earlier version is checked out.
            StorageError: the disk or bucket refuses the change.
        """
        structure.set_key(self.handle, key)

    def add_columns(self, transforms: Mapping[str, str] | pa.Field | Iterable[pa.Field] | pa.Schema) -> None:
        """Add columns, all or none; they allow nulls, and rows to come may leave them out.

        Args:
            transforms: SQL expressions over the other columns, by name, such as {"double": "2 * n"}; or Arrow
                fields, for columns of nulls.

        Raises:
            InvalidInputError: names that are taken, or what LanceDB refuses.
            TableError: names that LanceDB does not find again, or an earlier version is checked out.
            StorageError: the disk or bucket refuses the change.
        """
        structure.add_columns(self.handle, transforms)

    def alter_columns(self, *alterations: Mapping[str, Any]) -> None:
        """Rename columns, or change their type or whether they allow nulls, in one commit or none at all.

        Args:
            alterations: one for every column, as in LanceDB: {"path": <column>} with "rename", "nullable" or
                "data_type".

        Raises:
            InvalidInputError: unknown columns, the vector's or what is written along with it, the key but for
                its name, the name of text that vectors are computed from, or what LanceDB refuses.
            TableError: names that LanceDB does not find again, or an earlier version is checked out.
            StorageError: the disk or bucket refuses the change.
        """
        structure.alter_columns(self.handle, *alterations)

    def drop_columns(self, columns: str | Iterable[str]) -> None:
        """Drop columns and the indexes on them, in one commit or none at all.

        Args:
            columns: names of user columns, but for the key.

        Raises:
            InvalidInputError: unknown columns, the vector's or what is written along with it, or the key.
            TableError: an earlier version is checked out.
            StorageError: the disk or bucket refuses the change.
        """
        structure.drop_columns(self.handle, columns)

    def create_fts_index(
        self,
        columns: str | Sequence[str],
        *,
        replace: bool = False,
        exist_ok: bool = False,
        **options: Unpack[TextIndexOptions],
    ) -> None:
        """Make LanceDB's full-text index on a column of text, or on each of several.

        Rows added later are found without it, but quicker after `table.optimize()`.

        Args:
            columns: names of user columns that hold text.
            replace: whether to make anew the indexes that exist.
            exist_ok: whether to leave them as they are instead.
            options: those of `lancedb.index.FTS`, such as `language="French"`, `stem=False` or
                `with_position=True` (for phrases).

        Raises:
            InvalidInputError: a column that holds no text, or options that LanceDB refuses.
            TableError: a column has an index already, and both `replace` and `exist_ok` are False; an index
                is to be made and an earlier version is checked out.
        """
        create_text_index(self.handle, columns, replace=replace, exist_ok=exist_ok, **options)

    def create_scalar_index(
        self,
        column: str,
        *,
        replace: bool = True,
        index_type: ScalarIndex = "BTREE",
        name: str | None = None,
    ) -> None:
        """Make LanceDB's index on a column, for quicker filters and merges.

        Args:
            column: a user column.
            replace: whether the new index takes the place of one on the column.
            index_type: "BTREE", "BITMAP" for few different values, or "LABEL_LIST" for lists.
            name: of the index; by default from that of the column.

        Raises:
            InvalidInputError: an unknown column or kind, or values that it is not for.
            TableError: there is an index and `replace` is False, or an earlier version is checked out.
            StorageError: the disk or bucket refuses to take it.
        """
        structure.create_scalar_index(self.handle, column, replace=replace, index_type=index_type, name=name)

    def list_indices(self) -> list[IndexConfig]:
        """The indexes on columns of the user's, as LanceDB describes them."""
        return structure.list_indices(self.handle)

    def index_stats(self, index_name: str) -> IndexStatistics | None:
        """Kind of an index, and how many rows are in it or not yet; None if there is no such index.

        Args:
            index_name: as `list_indices` has it.

        Raises:
            InvalidInputError: not a name.
        """
        return structure.index_stats(self.handle, index_name)

    def drop_index(self, name: str) -> None:
        """Drop an index; columns and rows stay.

        Args:
            name: as `list_indices` has it.

        Raises:
            InvalidInputError: no such index.
            TableError: an earlier version is checked out.
            StorageError: the disk or bucket refuses the change.
        """
        structure.drop_index(self.handle, name)

    @property
    def tags(self) -> TableTags:
        """Names for versions, as in LanceDB: `tags.create(name, version)`, `list`, `get_version`, `update`
        and `delete`. A version that has one is not cleaned up."""
        return TableTags(self.handle)

    def list_versions(self) -> list[dict[str, Any]]:
        """All versions that can be checked out or restored: `version`, `timestamp` and `metadata` of each.

        Raises:
            TableError: the table was dropped.
        """
        return versions.list_versions(self.handle)

    def checkout(self, version: int | str) -> None:
        """Read everything through this handle, searches included, from an earlier version.

        Until `checkout_latest` or `restore`, nothing can be written through it. Other handles are unaffected.

        Args:
            version: a number, or the name of a tag.

        Raises:
            InvalidInputError: no such version or tag.
            TableError: the table was no compressed one then, or of another vector column.
            ArtifactError: a codec that its rows need is not in the database any more.
        """
        versions.checkout(self.handle, version)

    def checkout_latest(self) -> None:
        """Read from the newest version again, and from those to come. Raises as `refresh`."""
        self.handle.checkout_latest()

    def restore(self, version: int | str | None = None) -> None:
        """Make a new version with the content of an earlier one, and go on with it.

        Args:
            version: a number, or the name of a tag; None for the version that is checked out.

        Raises:
            InvalidInputError: no such version or tag, or None and no version is checked out.
            TableError, ArtifactError: as `checkout`.
            StorageError: the disk or bucket refuses the change.
        """
        versions.restore(self.handle, version)

    def train(
        self,
        training: TrainConfig | None = None,
        *,
        vectors: Any = None,
        encode: Encode = True,
        progress: bool = True,
    ) -> Codec:
        """Train the first codec of the table on its raw rows, and encode them.

        Args:
            training: how to train; None for the defaults of TrainConfig.
            vectors: (n, D) to train on instead.
            encode: "background" to return once there is a codec and encode as `encode_in_background` does,
                with progress in `encoding`; False to leave the rows that are there to `optimize`.
            progress: show progress bars.

        Returns:
            The codec, which encodes what is added from now on.

        Raises:
            TableError: the table has a codec already (`retrain` gives it another), perhaps from another
                process since this one began; or it has no raw rows.
            InvalidInputError: as `rqmoe_store.train`, or another word for `encode`.
            StorageError: the disk or bucket refuses to take codec or codes; rows that have none stay raw.
        """
        return lifecycle.train(self.handle, training, vectors=vectors, encode=encode, progress=progress)

    def retrain(
        self,
        training: TrainConfig | None = None,
        *,
        vectors: Any | Literal["decoded"] = None,
        config: CodecConfig | None = None,
        encode: Encode = True,
        start: Codec | Literal["auto"] | None = "auto",
        progress: bool = True,
    ) -> Codec:
        """Train another codec and encode all rows with it, part by part; searches find every row meanwhile.

        If it is interrupted, `optimize` finishes it, in any process. A row whose raw vector is gone is
        decoded by the old codec and encoded by the new one: what the old one lost stays lost, and the new one
        loses a little more. A table that keeps raw vectors (`keep_vectors`) loses nothing.

        Args:
            training: how to train; None for the defaults of TrainConfig.
            vectors: (n, D) to train on; None for the raw vectors that the table has, "decoded" for what its
                codes decode to, from which a codec cannot learn what the old one lost.
            config: of the new codec, with the metric and code bytes of the table; None for the same. With
                `refine_bytes`, rows get refine codes, of the size that other rows have if any do. With
                `refine_bytes=0` they lose them; `optimize` then drops the column.
            encode: as for `train`.
            start: what training starts from. "auto": the table's codec if it has the shape of the new one and
                a lower validation error than new codebooks, else these; None: new codebooks in any case; or a
                codec, as in `rqmoe_store.train`. `report.started_from` of the new codec tells.
            progress: show progress bars.

        Returns:
            The new codec.

        Raises:
            TableError: no vectors to train on.
            InvalidInputError: as `rqmoe_store.train`, or a config of another metric, code size or size of
                refine codes, or a start of another shape.
            StorageError: as `train`; rows that were not reached keep the codes that they have.
        """
        return lifecycle.retrain(
            self.handle,
            training,
            vectors=vectors,
            config=config,
            encode=encode,
            start=start,
            progress=progress,
        )

    def encode_in_background(self) -> BackgroundEncoding:
        """Start to encode, in a thread, rows that are raw or of an older codec; return at once.

        Searches and writes go on meanwhile, through this handle and others, and find every row. If an
        encoding that was started through this handle is running, it takes on these rows as well. What is not
        done when the process ends is left to another call, in any process, or to `optimize`.

        Returns:
            The encoding, which tells its progress, and can be waited for and stopped; `encoding` is the same.

        Raises:
            TableError: an earlier version is checked out.
        """
        return lifecycle.encode_in_background(self.handle)

    @property
    def encoding(self) -> BackgroundEncoding | None:
        """The encoding in the background that was started last through this handle; None for none."""
        return self.handle.encoding

    def optimize(
        self,
        *,
        training: TrainConfig | None = None,
        train_from: int | None = ROWS_TO_TRAIN,
        cleanup_older_than: datetime.timedelta | None = None,
        codecs_older_than: datetime.timedelta = GRACE,
        progress: bool = True,
    ) -> OptimizeReport:
        """Encode rows that are raw or of an older codec, merge small files, update indexes, and clean up.

        Before a vector is replaced by its code, a sample of the codes is read back from disk, decoded and
        compared. The vector's bytes are free once all versions that have it are older than
        `cleanup_older_than`. Codecs are removed if nothing in the database needs them: no row of any version,
        of any table, that can still be restored. An encoding in the background that was started through this
        handle is stopped, and its rows are encoded here. A neighbor graph is brought up to date, as
        `build_neighbor_graph` does.

        Args:
            training: how to train the first codec of a table that has none; None for the defaults.
            train_from: number of raw rows from which a first codec is trained, but at least as many as a
                codec of the table's config needs; None for never.
            cleanup_older_than: versions older than this are removed, and cannot be restored; None for 7 days.
                Zero frees their bytes at once; no other process may be writing then. Versions that have a tag
                or a branch stay.
            codecs_older_than: codecs that nothing needs are removed if they were saved, and replaced, longer
                ago than this; 7 days. Give less only while no other process writes to the database.
            progress: show progress bars.

        Raises:
            TableError: a codec does not fit the vectors; these stay.
            StorageError: the disk or bucket refuses a write; what was not done yet is left as it was.
        """
        return lifecycle.optimize(
            self.handle,
            training=training,
            train_from=train_from,
            cleanup_older_than=cleanup_older_than,
            codecs_older_than=codecs_older_than,
            update_graph=lambda: build_graph(self._source, None, rebuild=False, progress=progress),
            progress=progress,
        )

    def build_neighbor_graph(
        self, neighbors: int = 10, *, rebuild: bool = False, progress: bool = True
    ) -> GraphReport:
        """Find the nearest rows of each row, for `expand` of queries, or bring what was found up to date.

        Each row with a code is searched for as any query is, by the vector that its code stands for. The
        neighbor graph is kept in the folder of the table and dropped with it. It takes about 3 bytes per
        neighbor, and 24 bytes of memory per row while it is built. Every version of the table has the graph
        that it had when it was committed; `optimize` brings that of the newest one up to date.

        If there is a graph with as many neighbors, or if building one was interrupted, this goes on from
        there. It searches for rows that were added, updated or encoded again, for their neighbors, and for
        rows that have lost a neighbor or whose neighbor has changed. What is approximate is that a new row
        enters the list of an older one only if that is among its own neighbors; `rebuild` searches for all.

        Args:
            neighbors: nearest rows to keep of each row, 1 to 1,000; another number than that of the graph
                builds it anew.
            rebuild: search for all rows, also those that are up to date.
            progress: show a progress bar.

        Returns:
            The rows of the graph, and the work done; prints as text.

        Raises:
            InvalidInputError: `neighbors` is out of its range, or rows have many vectors each.
            TableError: the table has no codec yet, or no stable row ids; an earlier version is checked out;
                or another process has begun to build the graph, or restored the table. Searches go on with
                the graph that they had.
            StorageError: the disk or bucket refuses a write; call it again to go on.
        """
        neighbors = whole_number("neighbors", neighbors, 1, MOST_NEIGHBORS)
        return build_graph(self._source, neighbors, rebuild=rebuild, progress=progress)

    def is_due_for_training(self, train_from: int | None = ROWS_TO_TRAIN) -> bool:
        """Whether `optimize(train_from=train_from)` would train a first codec."""
        return lifecycle.is_due_for_training(self.handle, train_from)

    def health(self) -> HealthReport:
        """Whether the newest codec still fits the rows that are added, in numbers and in words."""
        return self.handle.snapshots.read(lambda snapshot: measure_health(snapshot.table, snapshot.codecs))

    def save_health_report(self, path: str | os.PathLike[str]) -> HealthReport:
        """Write the health of this table as an HTML page with plots, and return it.

        The page is one file that loads nothing: drift by commit, rows and errors by partition, size as the
        table grows, and the commands that follow. Codes are read twice, and at most 8,192 rows decoded. Needs
        the extra `report`. A file at `path` is replaced once the page is complete.

        Args:
            path: file in a folder that exists.

        Raises:
            InvalidInputError: no file can be written at `path`.
            RQMoEError: the libraries of the extra `report` are not installed.
        """
        # No query needs these, and each process would wait for them.
        from rqmoe_store.pages.page import require_page, write_page
        from rqmoe_store.store.health_page import health_page, measure_table

        place, database = require_page(path), self.handle.newest().database.uri
        measured = self.handle.snapshots.read(
            lambda snapshot: measure_table(snapshot.table, snapshot.codecs, database)
        )
        write_page(health_page(measured), place)
        return measured.report

    def stats(self) -> TableStats:
        """Rows, bytes and quality of this table, measured now."""
        stats = self.handle.snapshots.read(
            lambda snapshot: measure(snapshot.table, snapshot.codecs, snapshot.codecs.columns)
        )
        stats = dataclasses.replace(stats, refine_codes_in=self._source.refine_codes_in)
        resident = self._source.codes.resident
        if resident is None:
            return stats
        return dataclasses.replace(
            stats,
            resident_bytes=resident.nbytes,
            norm_bytes=resident.norm_bytes,
            cached_columns=tuple(resident.cached.names),
            cached_column_bytes=resident.cached.nbytes,
        )

    def verify(self, *, progress: bool = True) -> VerifyReport:
        """Read the whole table, as it is now or is checked out, and tell what is wrong with it.

        This checks the metadata, codecs, every column of every row, codes and a sample of what they decode
        to, row ids, the key, indexes and files. It changes nothing, and its memory is bounded.
        `print(report)` says it in words, `report.ok` whether there are no problems. For a table that is too
        damaged to be opened there are `rqmoe verify DB TABLE` and
        `rqmoe_store.verification.run.verify(db, name)`.

        Args:
            progress: show a progress bar.
        """
        database, branch = databases.database_of(self.table), self.table.current_branch()
        return verify(database, self.name, branch=branch, version=self.checked_out, progress=progress)

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: FormatName = "parquet",
        overwrite: bool = False,
        progress: bool = True,
    ) -> ExportReport:
        """Write all rows, as they are now or are checked out, to files that others can read.

        Vectors are written as float32: raw ones where a row has one, as it was added, and decoded ones
        elsewhere (of unit length under cosine). Memory is bounded. Files are written under another name and
        moved to `path` when they are complete; after an error, or Ctrl-C, nothing is left of them.

        - "parquet": the user's columns and the vectors, in one file if `path` ends in ".parquet" and
          otherwise in a folder of files; rows without a vector have a null.
        - "npy": the vectors of all rows that have one, as an array (n, dim), in `path`, which ends in ".npy";
          the user's columns of these rows, in the same order, are beside it in a Parquet file of that name.
        - "codes": a folder that makes do without this table, and without LanceDB. In its folder `rows` are
          Parquet files of the user's columns, `vector_code`, `vector_partition` and `vector_codec` (after the
          name of the vector column), `vector_refine` if the table has refine codes, and `vector` if any row
          has a raw one. `vector_codec` names the folder, beside `rows`, of the codec of a row; partition ids
          are those of that codec. Rows have refine codes if it has any:

              def as_array(codes):
                  return numpy.stack([numpy.frombuffer(code, "uint8") for code in codes])

              rows = pyarrow.parquet.read_table("out/rows").to_pandas()
              for folder, some in rows.groupby("vector_codec"):
                  codec = rqmoe_store.load_codec(f"out/{folder}")
                  partitions = some["vector_partition"].to_numpy("int32")
                  refine = as_array(some["vector_refine"]) if codec.config.refine_bytes else None
                  codes = rqmoe_store.Codes(as_array(some["vector_code"]), partitions, refine)
                  vectors = codec.decode(codes)

        Args:
            path: on this machine; the folder it is in must exist.
            format: "parquet", "npy" or "codes".
            overwrite: replace files that are there, or a folder that was exported before.
            progress: show a progress bar.

        Raises:
            InvalidInputError: an unknown format, a path that does not fit it, exists or has no folder; a raw
                vector with NaN or infinite values; a column that Parquet cannot hold.
            TableError: codes that no codec of the table has, of which `verify` says more.
            ArtifactError: a codec is missing or damaged.
            StorageError: the disk refuses a write.
        """
        snapshot = self.handle.snapshots.current()
        return export(
            snapshot.dataset,
            snapshot.codecs,
            path,
            format=format,
            overwrite=overwrite,
            progress=progress,
        )

    def use_cache(
        self,
        cache: Cache = "memory",
        memory_budget: int | None = None,
        cache_columns: Sequence[str] | None = None,
    ) -> Self:
        """Choose what searches through this handle read from memory; returns the table itself.

        In memory, codes take `code_bytes` + `refine_bytes` + at most 6 bytes per row, once for all handles of
        this process on the same device. The first search loads them, and later ones read what has changed. On
        disk, every query reads the partitions that it probes, and the refine codes of its shortlist. Results
        are the same.

        Args:
            cache: "memory" or "disk".
            memory_budget: bytes; a table whose codes would take more is searched on disk. If the codes fit
                and refine codes do not, only the latter are read from disk. None for a quarter of the
                machine's memory.
            cache_columns: columns, such as ["id"], whose values are kept in memory along with the codes and
                are brought up to date with them. A vector search that returns no other columns takes nothing
                from the table, which saves a read for every query. Nor does a full-text search, once a vector
                search has loaded them. These are columns of numbers, texts, bytes, times or booleans. If all
                of them do not fit the memory budget beside codes and refine codes, results are taken from the
                table, as they are of columns that the table loses later. All handles of this process share
                what one of them has loaded; it is freed with the last of them. With `use_shards`, no columns
                are in memory. None for no columns.

        Raises:
            InvalidInputError: another `cache`, or a budget that is not a number of bytes; `cache_columns`
                that are no list of columns of the table, have other values, or come with cache="disk".
        """
        setting = CacheSetting(cache, memory_budget, check_cache_columns(cache_columns))
        self._source.require_cacheable(setting.columns)
        self._source.cache = setting
        return self

    def use_device(self, device: str = "auto") -> Self:
        """Choose where this handle scans, decodes, reranks and encodes; returns the table itself.

        Codes that searches keep in memory are copied to a GPU, as far as they fit into half of what is free
        there; it scans them. Other handles are not affected: those on another device have codecs of their
        own, and codes of their own in memory. Transform codes and refine codes are encoded and decoded on the
        CPU wherever the table is. With `use_shards`, shards scan where they are told to.

        Args:
            device: "auto" for a GPU if there is one, or for where the codec is if it came with the handle
                from `compress`; "cpu", "cuda" or "cuda:1".

        Raises:
            InvalidInputError: the device is unknown, or there is no such GPU.
        """
        self.handle.use_device(device)
        return self

    def use_shards(self, shards: int, call: ShardCall) -> Self:
        """Let other processes scan for searches through this handle; returns the table itself.

        Each of them holds the codes of some fragments of the table. Results are the same.

        Args:
            shards: number of processes, at least 1.
            call: calls a method of the `rqmoe_store.distributed.Shard` that each of them has.
        """
        self._source.use(functools.partial(ShardedCodes, shards=shards, call=call))
        return self

    def allow_pickling(self, *, storage_options: bool) -> Self:
        """Set whether pickles of this table, which send it to other processes, may contain secrets.

        A pickle contains the URI of the database, the table's name and branch, the version that is checked
        out, the device and the cache setting. Unpickling it opens the table there; `copy` makes another
        handle likewise.

        Args:
            storage_options: whether a pickle contains the storage options of the connection, too. They may be
                secrets, which whoever gets the pickle can read.

        Returns:
            The table itself.
        """
        self.handle.pickles_storage_options = bool(storage_options)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        self._source.require_local()
        return _table_of, (type(self), self.handle, self._source.cache)

    def __copy__(self) -> Self:
        self._source.require_local()
        return _table_of(type(self), copy.copy(self.handle), self._source.cache)

    def __deepcopy__(self, memo: object) -> Self:
        return self.__copy__()


def _table_of(kind: type[Opened], handle: Handle, cache: CacheSetting) -> Opened:
    """A table like one that was copied or pickled."""
    table = kind(handle)
    table._source.cache = cache
    return table
