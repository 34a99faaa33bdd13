"""Which kind of search a query asks for, by LanceDB's rules."""

from typing import Any, Literal, get_args

from lancedb.query import FullTextQuery

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.source import CodeSource
from rqmoe_store.search.text_index import indexed_columns
from rqmoe_store.store.table import StoredTable

QueryKind = Literal["vector", "fts", "hybrid", "plain"]
QueryType = Literal["auto", "vector", "fts", "hybrid"]

_VECTOR_INSTEAD = (
    'Pass a vector, made by the model that made the table\'s vectors, or use query_type="fts" for a '
    "full-text search (create_fts_index makes its index)."
)


def query_kind(store: StoredTable, query: Any, query_type: str, source: CodeSource) -> QueryKind:
    """What `query_type` means for this query.

    "auto" is a vector search, but full-text search for one of LanceDB's structured text queries, and
    for text in a table that has no embedding function, and a plain read without a query.

    Raises:
        InvalidInputError: another `query_type`, or "auto" with text that cannot be searched for.
    """
    if query_type not in get_args(QueryType):
        raise InvalidInputError(
            f"Got query_type={query_type!r}; expected one of {', '.join(get_args(QueryType))}."
        )
    for kind in get_args(QueryKind):
        if query_type == kind:
            return kind  # type: ignore[no-any-return]
    if query is None:
        return "plain"
    if isinstance(query, FullTextQuery):
        return "fts"
    if not is_content(query) or store.embedding is not None:
        return "vector"
    if isinstance(query, str) and indexed_columns(source.current(0).snapshot.table):
        return "fts"
    raise InvalidInputError(
        f"Got text {query!r}, but table {store.name!r} has neither an embedding function nor a full-text "
        f"index. {_VECTOR_INSTEAD}"
    )


def as_vector(store: StoredTable, query: Any) -> Any:
    """`query` itself, or its vector by the table's embedding function when it is text or an image.

    Raises:
        InvalidInputError: the table has no embedding function, or it gives no usable vector.
        RQMoEError: the function is not registered, lacks a package, or fails.
    """
    if not is_content(query):
        return query
    if store.embedding is None:
        raise InvalidInputError(
            f"Got {query!r} to search for by vector, but table {store.name!r} has no embedding function. "
            f"{_VECTOR_INSTEAD}"
        )
    return store.embedding.of_query(query)


def is_content(query: Any) -> bool:
    """Whether `query` is something to embed: text, or an image of the PIL package."""
    return isinstance(query, str) or type(query).__module__.partition(".")[0] == "PIL"
