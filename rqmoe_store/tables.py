"""Creating, compressing and opening tables."""

import datetime
import functools
from collections.abc import Sequence
from typing import Any, Literal, cast

import lancedb
import pyarrow as pa
from lancedb.db import AsyncConnection, DBConnection
from lancedb.table import LanceTable, Table
from pydantic import BaseModel

from rqmoe_store.async_table import AsyncCompressedTable
from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig, KeepVectors, MultiVectorConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.progress import progress_bar
from rqmoe_store.search.source import Cache
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store import databases
from rqmoe_store.store.columns import as_schema, require_keep_vectors
from rqmoe_store.store.compress import ListEncoding, compress_into, convert_in_place, require_local_table
from rqmoe_store.store.creation import ExpectedSchema, RawTable, require_free_name, require_place
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.keys import require_key
from rqmoe_store.store.multivector import require_no_encoding
from rqmoe_store.store.rows import schema_and_rows
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.vector_lists import has_vector_lists
from rqmoe_store.table import CompressedTable
from rqmoe_store.threads import in_thread


@translates_errors
def create_table(
    db: DBConnection,
    name: str,
    data: Any = None,
    *,
    schema: pa.Schema | type[BaseModel] | None = None,
    config: CodecConfig | None = None,
    vector_column: str = "vector",
    keep_vectors: KeepVectors = "none",
    key: str | None = None,
    multi_vector: MultiVectorConfig | None = None,
    mode: Literal["create"] = "create",
    exist_ok: bool = False,
) -> CompressedTable:
    """Create a table that works at once, with any number of rows, and is compressed when it has grown.

    Vectors stay raw and are searched exactly until there is a codec: `train` makes one, and so does
    `optimize` once there are enough rows. The table appears with all its first rows, or not at all.

    Args:
        db: a database in a folder or bucket.
        name: a name that is free, but for `exist_ok`.
        data: first rows, as for `CompressedTable.add`; None for none. Streams are read once.
        schema: columns, the vector column among them as a list of fixed length, such as
            `pa.list_(pa.float32(), 384)`, or for rows with many vectors each as a list of those,
            `pa.list_(pa.list_(pa.float32(), 128))`; or a `LanceModel` class; None to take it from `data`: the
            model of its rows, what a reader says, or all keys of a list of dicts and of the first 1,024 dicts
            of an iterator. Its metadata may describe embedding functions, as LanceDB does.
        config: what the codec will be that is trained later: metric, code bytes and so on; None for the
            defaults, which have the metric "cosine" where rows have many vectors. These are searched by
            "cosine" or "dot".
        vector_column: the column of vectors.
        keep_vectors: "float16" or "float32" to keep raw vectors beside their codes.
        key: the column that is the unique key; see `CompressedTable.set_key`.
        multi_vector: how rows with many vectors each are found; None for the defaults.
        mode: "create"; a table is not overwritten, as notes on its old rows (what `tune` chose, what `ingest`
            has read) would stay with the new ones.
        exist_ok: whether to open the table if there is one, and add `data` to it. The dimension of its
            vectors, and the metric and code bytes of `config`, must be those asked for.

    Raises:
        TableError: the name is taken, with `exist_ok` by a table of another kind; no such vector column, or
            columns with reserved names.
        InvalidInputError: neither data nor schema, rows that `add` refuses, an unusable name or column.
        StorageError: the disk or bucket refuses a write; there is no such table then.
    """
    schema = None if schema is None else as_schema(schema)
    _require_creating(mode, name)
    asked = ExpectedSchema(
        schema=schema,
        config=config,
        vector_column=vector_column,
        keep_vectors=keep_vectors,
        multi_vector=multi_vector,
    )
    require_place(db, name)
    store = _existing(db, name, asked) if exist_ok else None
    if store is not None:
        return _with_data(store, data, key)
    if not exist_ok:
        require_free_name(db, name)
    if schema is None:
        if data is None:
            raise InvalidInputError("Got neither data nor schema; expected one, to know the columns.")
        schema, data = schema_and_rows(data, vector_column)
    new = RawTable(
        db,
        name,
        schema,
        config=config,
        vector_column=vector_column,
        keep_vectors=keep_vectors,
        key=key,
        multi_vector=multi_vector,
    )
    with new.first_rows(data) as rows:
        try:
            table = new.create(rows)
        except TableError:
            store = _existing(db, name, asked) if exist_ok else None  # perhaps created by others
            if store is None:
                raise
            return _with_data(store, rows.reader() if rows.count else None, key)
    return CompressedTable(Handle(table, TableCodec.of(new.metadata, [])))


def _require_creating(mode: Any, name: str) -> None:
    if mode != "create":
        raise InvalidInputError(
            f"Got mode={mode!r}; expected 'create'. To replace a table {name!r} that exists, say "
            f"db.drop_table({name!r}) first, or open it, delete('true') its rows and add the new ones: its "
            "codec and its earlier versions then stay."
        )


def _existing(db: DBConnection, name: str, asked: ExpectedSchema) -> CompressedTable | None:
    """The table of this name, or None; raises TableError if it is not what is expected."""
    if databases.open_if_exists(db, name) is None:
        return None
    store = CompressedTable.open(db, name)
    asked.require_match(store.codecs.metadata, name)
    return store


def _with_data(store: CompressedTable, data: Any, key: str | None) -> CompressedTable:
    """Set the key of a table that was there, add rows to it, and return it."""
    if key is not None and store.key != key:
        store.set_key(key)
    if data is not None:
        store.add(data)
    return store


@translates_errors
def compress(
    docs: Table,
    codec: Codec,
    into: str | None = None,
    *,
    in_place: bool = False,
    db: DBConnection | None = None,
    vector_column: str = "vector",
    keep_vectors: KeepVectors = "none",
    key: str | None = None,
    multi_vector: MultiVectorConfig | None = None,
    progress: bool = True,
) -> CompressedTable:
    """Create a table with the columns of `docs`, its vectors replaced by codes; or compress `docs` itself.

    With `into`, `docs` is never changed, and if anything fails, Ctrl-C included, no new table is left behind.
    An embedding function that LanceDB has for the column is kept, for queries and for rows to come.

    With `in_place`, rows keep their ids and can be searched throughout. Vectors are replaced part by part,
    each part after a sample of its codes was read back and decoded. Then older versions are removed, which
    frees the bytes of the vectors. If it is interrupted, this call, or `optimize`, finishes it.

    Args:
        docs: a LanceDB table on disk or in an object store.
        codec: trained on vectors like those of `docs`; it is kept in the same database.
        into: name of the new table; None with `in_place`.
        in_place: compress `docs` itself. No other process may be writing to it, and its older versions are
            lost.
        db: database for the new table; default is the one `docs` lives in.
        vector_column: the column to replace. Rows where it is null keep their other values and are
            never found by a search.
        keep_vectors: "float16" or "float32" also keeps the raw vectors in such numbers, in the column
            `vector_column`: searches return them like any column, and `refine_factor` orders by them.
        key: the column that is the unique key; see `CompressedTable.set_key`. None for the key of `docs`.
        multi_vector: how rows are found if `vector_column` has lists of vectors; None for the defaults. Such
            tables can be compressed into new ones only.
        progress: show a progress bar.

    Raises:
        TableError: no such vector column, an empty table, columns with reserved names, `into` taken; in
            place, vectors of another type than single floats, or a codec that does not fit them; a key with
            nulls.
        InvalidInputError: vectors of another dimension, with NaN or infinite values, or zero under
            cosine (named by row position), or beyond float16 where they shall be kept in it; an
            `into` that cannot be a table name; an unknown `keep_vectors`; both or neither of `into` and
            `in_place`; a key that rows share, or that no column can be.
        StorageError: the disk or bucket refuses a write. There is no new table then; a table compressed in
            place has all its rows, and calling this again goes on where it stopped.
    """
    if (into is None) != in_place:
        raise InvalidInputError(
            f"Got into={into!r} and in_place={in_place}; expected the name of a new table, or in_place=True."
        )
    docs = require_local_table(docs)
    if key is not None:
        require_key(docs, key)  # before hours of encoding
    has_lists, lists = has_vector_lists(docs.schema, vector_column), None
    if not has_lists:
        require_no_encoding(multi_vector, vector_column)
    if has_lists and in_place:
        raise InvalidInputError(
            f"Got in_place=True for column {vector_column!r}, whose rows have many vectors each; expected "
            "into=, as such tables are compressed into new ones only."
        )
    if has_lists:
        # Imported here, since tables are opened and searched without torch.
        from rqmoe_store.training.encodings import fit_encoding_codec

        lists = ListEncoding(fit_encoding_codec, multi_vector)
    if in_place:
        store = _compress_in_place(docs, codec, db, vector_column, keep_vectors, progress)
    else:
        handle = compress_into(
            docs,
            codec,
            cast(str, into),
            db=db,
            vector_column=vector_column,
            keep_vectors=keep_vectors,
            lists=lists,
            progress=progress,
        )
        store = CompressedTable(handle)
    if key is not None:
        _set_key(store, key, new=not in_place)
    return store


def _set_key(store: CompressedTable, key: str, *, new: bool) -> None:
    try:
        store.set_key(key)
    except BaseException:
        if new:
            databases.drop(databases.database_of(store.table), store.name)
        raise


def _compress_in_place(
    docs: LanceTable,
    codec: Codec,
    db: DBConnection | None,
    vector_column: str,
    keep_vectors: KeepVectors,
    progress: bool,
) -> CompressedTable:
    if db is not None:
        raise InvalidInputError("Got db= with in_place=True; a table compressed in place stays where it is.")
    require_keep_vectors(keep_vectors)
    store = _begun(docs, codec)
    if store is None:
        with progress_bar(progress) as bar:
            task = bar.add_task("Checking", total=docs.count_rows())
            codecs = convert_in_place(
                docs, codec, vector_column, keep_vectors, lambda rows: bar.advance(task, rows)
            )
        store = CompressedTable(Handle(databases.reopen(docs), codecs))
    report = store.optimize(cleanup_older_than=datetime.timedelta(0), progress=progress)
    if progress:
        print(report)
    return store


def _begun(docs: LanceTable, codec: Codec) -> CompressedTable | None:
    """The table, if an earlier call has made it a compressed one with this codec; None otherwise."""
    try:
        store = CompressedTable.open(databases.database_of(docs), docs.name)
    except TableError:
        return None
    if codec.fingerprint not in [each.fingerprint for each in store.codecs.metadata.generations[-1:]]:
        raise TableError(
            f"Table {docs.name!r} is one of rqmoe_store's already, with another codec or none. Open it with "
            "open_table, and use train() or retrain()."
        )
    return store


@translates_errors
def open_table(
    db: DBConnection,
    name: str,
    *,
    cache: Cache = "memory",
    memory_budget: int | None = None,
    cache_columns: Sequence[str] | None = None,
    device: str = "auto",
) -> CompressedTable:
    """Open the compressed table `name`; its codec is read from the same database.

    Args:
        db: the database, as opened by `lancedb.connect`. Its `read_consistency_interval` says how old what is
            read may be; None, like zero, for never older than the newest version. (LanceDB's own tables never
            look for a newer one with None.)
        name: the table.
        cache, memory_budget, cache_columns: what searches read from memory; see `CompressedTable.use_cache`.
        device: where this handle scans, decodes, reranks and encodes; see `CompressedTable.use_device`.

    Raises:
        TableNotFoundError: no such table.
        TableError: not a compressed one.
        ArtifactError: its codec is not in the database, is damaged, or is another one.
        InvalidInputError: an unknown `cache` or device, a GPU that is not there, a budget that is not a
            number of bytes, or columns that cannot be cached.
    """
    opened = CompressedTable.open(db, name, device=device)
    return opened.use_cache(cache, memory_budget, cache_columns)


_NOT_ON_DISK = ("memory:", "db:")


async def open_table_async(
    db: AsyncConnection | DBConnection,
    name: str,
    *,
    cache: Cache = "memory",
    memory_budget: int | None = None,
    cache_columns: Sequence[str] | None = None,
    device: str = "auto",
) -> AsyncCompressedTable:
    """Open the compressed table `name` for use in event loops; its codec is read from the same database.

    Args:
        db: the database, as opened by `lancedb.connect_async` or `lancedb.connect`.
        name: the table.
        cache, memory_budget, cache_columns: what searches read from memory; see `CompressedTable.use_cache`.
        device: where this handle scans, decodes, reranks and encodes; see `CompressedTable.use_device`.

    Raises:
        TableNotFoundError: no such table.
        TableError: not a compressed one.
        ArtifactError: its codec is not in the database, is damaged, or is another one.
        InvalidInputError: not a connection, an unknown `cache` or device, a GPU that is not there, a budget
            that is not a number of bytes, or columns that cannot be cached.
    """
    databases.require_table_name(name)
    if isinstance(db, AsyncConnection):
        db = await _blocking(db, name)
    elif not isinstance(db, DBConnection):
        raise InvalidInputError(
            f"Got {db!r} as the database; expected what lancedb.connect(...) or await "
            "lancedb.connect_async(...) returns."
        )
    opened = functools.partial(
        open_table,
        db,
        name,
        cache=cache,
        memory_budget=memory_budget,
        cache_columns=cache_columns,
        device=device,
    )
    return AsyncCompressedTable(await in_thread(opened))


async def _blocking(db: AsyncConnection, name: str) -> DBConnection:
    """A connection for threads to the database of `db`."""
    if db.uri.startswith(_NOT_ON_DISK):
        raise TableError(
            f"Got {db.uri!r} as the database; expected one in a folder or bucket, as opened by "
            "lancedb.connect_async(<folder or bucket>)."
        )
    try:
        # LanceDB tells what the storage was opened with for tables alone.
        options = await (await db.open_table(name)).initial_storage_options()
    except ValueError as error:
        if "was not found" not in str(error):
            raise
        raise databases.no_such_table(db.uri, name) from error
    interval = await db.get_read_consistency_interval()
    return await in_thread(
        functools.partial(
            lancedb.connect, db.uri, storage_options=options, read_consistency_interval=interval
        )
    )
