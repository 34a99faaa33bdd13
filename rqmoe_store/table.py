"""`CompressedTable`, the public face of storing and searching."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, overload

from lancedb.query import FullTextQuery
from lancedb.table import LanceTable

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.lifecycle import LifecycleTable
from rqmoe_store.search.hybrid import HybridQuery
from rqmoe_store.search.plain import PlainQuery
from rqmoe_store.search.query import CompressedQuery
from rqmoe_store.search.shards import ShardCall, ShardedSource
from rqmoe_store.search.source import Cache, CodeSource, bytes_allowed, source_of
from rqmoe_store.search.text import QueryType, TextQuery, as_vector, create_text_index, query_kind
from rqmoe_store.search.tuning import TuningGoal, TuningReport, tune_search
from rqmoe_store.store.databases import TablePlace
from rqmoe_store.store.statistics import TableStats
from rqmoe_store.store.table_codec import TableCodec


class CompressedTable(LifecycleTable):
    """A LanceDB table whose vectors are kept as codes, and which can be searched.

    Made by `compress`, `create_table` or `open_table`. `table` is the underlying LanceDB table.

    Everything is read from the newest version of the table, whichever process made it, until an earlier one
    is checked out. If the connection has a `read_consistency_interval` above zero, all that is read, searches
    included, is of one version that may be up to that much older; what is written through this handle is seen
    by it at once. A table dropped and made again is followed if its vectors are kept in the same way.
    """

    def __init__(self, table: LanceTable, codecs: TableCodec) -> None:
        super().__init__(table, codecs)
        # Told the table when called: if it kept it, codes in memory would outlive the last use of the table.
        self._find_source: Callable[[CompressedTable], CodeSource] = source_of
        self._source = self._find_source(self)
        self._pickles_storage_options = False
        self.use_cache()

    def allow_pickling(self, *, storage_options: bool) -> Self:
        """Say what pickles of this handle may hold, such as those sent to other processes; returns the table
        itself.

        A pickle holds where the table is: URI, name, branch, the version that is checked out and how the
        cache is set. Whoever unpickles it opens the table there. `copy` makes another handle likewise.

        Args:
            storage_options: whether it holds those of the connection as well. They may be secrets, which
                whoever gets the pickle can read.
        """
        self._pickles_storage_options = bool(storage_options)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        place = TablePlace.of(self.table)
        if place.storage_options and not self._pickles_storage_options:
            raise TableError(
                f"Table {self.name!r} was opened with storage options, which may hold secrets and are not "
                "pickled. Open the table in the other process; or call allow_pickling(storage_options=True) "
                "first, if whoever gets the pickle may read them."
            )
        return _reopened, (type(self), place, *self._settings)

    def __copy__(self) -> Self:
        copied: Self = _reopened(type(self), TablePlace.of(self.table), *self._settings)
        return copied

    def __deepcopy__(self, memo: object) -> Self:
        return self.__copy__()

    @property
    def _settings(self) -> tuple[int | None, Cache, int | None, bool]:
        """What a copy of this handle is set to."""
        if self._find_source is not source_of:
            raise TableError(
                f"The codes of table {self.name!r} are held by other processes, which this handle alone "
                "reaches; it cannot be copied or pickled. Open the table in the other process."
            )
        return self.checked_out, *self._cache, self._pickles_storage_options

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
        self._cache: tuple[Cache, int | None] = (cache, memory_budget)
        return self

    def use_shards(self, shards: int, ask: ShardCall) -> Self:
        """Have searches through this handle scanned by other processes, each of which holds the codes of some
        fragments of the table; returns the table itself. Results are the same.

        Args:
            shards: how many there are, at least 1.
            ask: reaches the `rqmoe_store.search.shards.Shard` that each of them has.
        """
        self._find_source = functools.partial(ShardedSource, shards=shards, ask=ask)
        self._source = self._find_source(self)
        return self

    def checkout(self, version: int | str) -> None:
        """As `StoredTable.checkout`."""
        super().checkout(version)
        self._source = self._find_source(self)

    def checkout_latest(self) -> None:
        """As `StoredTable.checkout_latest`."""
        super().checkout_latest()
        self._source = self._find_source(self)

    def stats(self) -> TableStats:
        """Rows, bytes and quality of this table, measured now."""
        resident = self._source.resident
        return dataclasses.replace(super().stats(), resident_bytes=resident.nbytes if resident else 0)

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
        if vector_column_name not in (None, self.columns.vector_column):
            raise InvalidInputError(
                f"Got vector_column_name={vector_column_name!r}; expected {self.columns.vector_column!r}, "
                "the only column of the table that is searched by vector, or nothing."
            )
        kind = query_kind(self, query, query_type, self._source)
        if kind == "hybrid":
            return HybridQuery(self, query, fts_columns, self._source, self._memory_budget)
        if kind == "fts":
            return TextQuery(self, query, fts_columns, self._source)
        if fts_columns:
            raise InvalidInputError(
                f"Got fts_columns={fts_columns!r} for a search by vector; expected it with "
                "query_type='fts' or 'hybrid' only."
            )
        if kind == "plain":
            return PlainQuery(self, self._source)
        return CompressedQuery(self, as_vector(self, query), self._source, self._memory_budget)

    def create_fts_index(
        self, columns: str | Sequence[str], *, replace: bool = False, exist_ok: bool = False, **options: Any
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
        create_text_index(self, columns, replace=replace, exist_ok=exist_ok, **options)

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

        Of the settings that find enough, the fastest is taken. Searches use it unless they say `.nprobes()`
        or `.shortlist()`, in all processes, until the table is tuned again. Every row is decoded once.

        Args:
            queries: vectors (Q, D) like those that will be searched for. Without any, vectors that rows of
                the table may have had before they were encoded are used, and must not find their own rows.
                Real queries are better: questions are seldom distributed like what answers them.
            target_recall: share of the `limit` nearest rows to find, above 0 and up to 1, mean over the
                queries. Nearest is meant by distance to decoded vectors, out of all rows.
            limit: how many nearest rows.
            sample: queries used at most, chosen at random from more.
            seed: of that choice.
            progress: show a progress bar.

        Returns:
            The setting, its recall and time, and what was measured; prints as a table.

        Raises:
            InvalidInputError: arguments out of range, queries that `search` refuses, or a target that all
                partitions with 4,096 (or 16 x limit) rows decoded do not reach; nothing is kept then.
            TableError: no rows to find, or an earlier version is checked out.
            StorageError: the disk or bucket refuses to keep the choice.
        """
        self.refresh()
        goal = TuningGoal(target_recall=target_recall, limit=limit, sample=sample, seed=seed)
        report = self._source.read(
            self._memory_budget,
            lambda state: tune_search(state, self.columns, queries, goal, progress=progress),
        )
        report.setting.write(self.table)
        self.refresh()
        return report


def _reopened(
    kind: type[CompressedTable],
    place: TablePlace,
    checked_out: int | None,
    cache: Cache,
    memory_budget: int | None,
    pickles_storage_options: bool,
) -> Any:
    """A handle like one that was copied or pickled."""
    store = kind.open(place.connected(), place.name, branch=place.branch).use_cache(cache, memory_budget)
    store.allow_pickling(storage_options=pickles_storage_options)
    if checked_out is not None:
        store.checkout(checked_out)
    return store
