"""`DecodedReranker`: reranks LanceDB's own queries on a compressed table by distance to decoded vectors.

Shape legend: R rows of a result, V of them with a raw vector and no code, D vector dimension.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from lancedb.rerankers import Reranker

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.columns import DISTANCE, RELEVANCE, ROW_ID, SCORE
from rqmoe_store.search.hybrid import values_of
from rqmoe_store.search.multivector import require_one_vector
from rqmoe_store.search.request import as_queries
from rqmoe_store.search.rerank import decoded_distances, exact_distances
from rqmoe_store.search.text import as_vector
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store.handle import OpenTable
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.vector_arrays import read_vectors


class DecodedReranker(Reranker):
    """A LanceDB reranker that orders rows by the distance of their decoded vectors to a query vector.

        reranker = DecodedReranker(store, query=vector)
        store.table.search("words", query_type="fts").with_row_id(True).rerank(reranker).to_pandas()

    `_relevance_score` is minus the distance, so that higher is better, and null for rows without a vector,
    which come last. It works in LanceDB's vector, full-text and hybrid queries. A query that selects columns
    must select the row id, or the vector column and all code columns.
    """

    @translates_errors
    def __init__(self, store: OpenTable, query: Any = None, return_score: str = "relevance") -> None:
        """Create a reranker for one query, or for all queries by text.

        Args:
            store: the compressed table whose `table` is searched.
            query: a vector (D,), or text for the table's embedding function; None for the text that the
                LanceDB query searches for.
            return_score: "all" to keep LanceDB's `_distance` and `_score`.

        Raises:
            InvalidInputError: the query cannot be used, or `return_score` is another value.
            RQMoEError: the embedding function cannot be used.
        """
        if return_score not in ("relevance", "all"):
            raise InvalidInputError(f"Got return_score={return_score!r}; expected 'relevance' or 'all'.")
        require_one_vector(store.handle, "DecodedReranker", "Search it with search(...) of the table itself.")
        super().__init__(return_score)
        self._handle = store.handle
        self._query_D = None if query is None else self._vector_of(query)

    def __str__(self) -> str:
        return f"DecodedReranker({self._handle.name!r})"

    def rerank_hybrid(self, query: str, vector_results: pa.Table, fts_results: pa.Table) -> pa.Table:
        """Order the rows of both results, each once."""
        merged = self.merge_results(vector_results, fts_results)
        if self.score == "all":
            for name, results in ((DISTANCE, vector_results), (SCORE, fts_results)):
                place = merged.schema.get_field_index(name)
                merged = merged.set_column(place, merged.field(place), values_of(merged, results, name))
        return self._rerank(query, merged)

    def rerank_vector(self, query: str, vector_results: pa.Table) -> pa.Table:
        """Order the rows of a vector query on any column."""
        return self._rerank(query, vector_results)

    def rerank_fts(self, query: str, fts_results: pa.Table) -> pa.Table:
        """Order the rows of a full-text query."""
        return self._rerank(query, fts_results)

    def _rerank(self, query: Any, results: pa.Table) -> pa.Table:
        query_D = self._from_lancedb(query) if self._query_D is None else self._query_D
        distances = self._distances(query_D, results)
        # Stable, so that equal rows keep LanceDB's order. NaN, of rows without a vector, comes last.
        order_R = np.argsort(distances, kind="stable")
        scores = pa.array(-distances, pa.float32(), from_pandas=True)  # NaN becomes null
        ranked = results.append_column(RELEVANCE, scores).take(pa.array(order_R))
        return self._keep_relevance_score(ranked)

    def _from_lancedb(self, query: Any) -> Float32Array:
        """The vector of the query that LanceDB passes: a text, or a structured query, which raises."""
        if not isinstance(query, str) or self._handle.embedding is None:
            raise InvalidInputError(
                f"Got {query!r} from LanceDB and cannot embed it; expected text, and a table with an "
                "embedding function. Give the reranker its own query: DecodedReranker(store, query=vector)."
            )
        return self._vector_of(query)

    def _vector_of(self, query: Any) -> Float32Array:
        handle = self._handle
        queries_QD = as_queries(as_vector(handle, query), dim=handle.dim, metric=handle.metric)
        if len(queries_QD) > 1:
            raise InvalidInputError("Got a batch of vectors to rerank by; expected a single one.")
        return np.asarray(queries_QD[0])

    def _distances(self, query_D: Float32Array, results: pa.Table) -> Float32Array:
        """Distance of every row, (R,); NaN for rows without a vector."""
        codecs = self._handle.codecs
        names = [*codecs.columns.names, codecs.columns.vector_column]
        if all(name in results.column_names for name in names):
            return self._distances_of_rows(query_D, results, codecs)
        if ROW_ID not in results.column_names:
            raise InvalidInputError(
                f"Got a result with neither {ROW_ID} nor the columns {', '.join(names)}; expected either. "
                "Add .with_row_id(True) to the query."
            )
        row_ids = results[ROW_ID].unique().to_pylist()

        def taken(snapshot: Snapshot) -> tuple[pa.Table, TableCodec]:
            read = [*snapshot.codecs.columns.names, snapshot.codecs.columns.vector_column]
            rows = snapshot.table.take_row_ids(row_ids).select(read).with_row_id().to_arrow()
            return rows, snapshot.codecs

        rows, codecs = self._handle.snapshots.read(taken)
        distances = pa.array(self._distances_of_rows(query_D, rows, codecs))
        found = pa.table({ROW_ID: rows[ROW_ID], DISTANCE: distances})
        # A row that was deleted meanwhile is missing there: null, which becomes NaN.
        return np.asarray(values_of(results, found, DISTANCE).to_numpy(), dtype=np.float32)

    def _distances_of_rows(self, query_D: Float32Array, rows: pa.Table, codecs: TableCodec) -> Float32Array:
        """Distances to decoded vectors, or to raw vectors of rows that are not encoded yet."""
        handle = self._handle
        codes, coded_R = codecs.read(rows)
        distances_R = np.full(len(rows), np.nan, dtype=np.float32)
        one_n = np.zeros(len(codes), np.int64)
        distances_R[coded_R] = decoded_distances(codecs, query_D[None], codes, one_n, precision="auto")
        raw = rows[handle.columns.vector_column].filter(pa.array(~coded_R))
        vectors_VD, valid = read_vectors(raw, dim=handle.dim, metric=handle.metric, first_row=0)
        distances_R[np.flatnonzero(~coded_R)[valid]] = exact_distances(query_D, vectors_VD, handle.metric)
        return distances_R
