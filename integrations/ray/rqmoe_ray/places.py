"""URIs of tables, which mean the same to every worker."""

import os
from collections.abc import Mapping

import lancedb
from lancedb.db import DBConnection

import rqmoe_store as rqs
from rqmoe_store.distributed import absolute

_ENDING = ".lance"


def table_at(
    table_uri: str | os.PathLike[str], storage_options: Mapping[str, str] | None
) -> tuple[DBConnection, str]:
    """The database and the name of the table at `<database>/<name>` or `<database>/<name>.lance`.

    Args:
        table_uri: a path that all nodes share, or a URI such as s3://bucket/database/docs.
        storage_options: for buckets, as LanceDB takes them.

    Raises:
        InvalidInputError: something else.
    """
    database, name = split_uri(table_uri)
    options = None if storage_options is None else dict(storage_options)
    return lancedb.connect(database, storage_options=options), name


def split_uri(table_uri: str | os.PathLike[str]) -> tuple[str, str]:
    """The URI of the database and the name of the table. Takes and raises what `table_at` does."""
    if not isinstance(table_uri, (str, os.PathLike)):
        raise rqs.InvalidInputError(
            f"Got {table_uri!r} as a table; expected its path or URI, such as './data/docs.lance', which "
            "workers on other nodes can open, too."
        )
    database, _, name = absolute(os.fspath(table_uri)).rpartition("/")
    name = name.removesuffix(_ENDING)
    if not name or not database or database.endswith(":/"):
        raise rqs.InvalidInputError(
            f"Got {os.fspath(table_uri)!r} as a table; expected <database>/<table>, such as "
            "'./data/docs.lance' or 's3://bucket/database/docs'."
        )
    return database, name
