"""`ingest`: a source of any size into a table, exactly once."""

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import KeepVectors
from rqmoe_store.ingestion.pipeline import COMMIT_ROWS, Ingestion, IngestSettings
from rqmoe_store.ingestion.prepare import prepare
from rqmoe_store.ingestion.report import IngestReport
from rqmoe_store.ingestion.target import Target
from rqmoe_store.refusals import names_refusals

OnBadRows = Literal["quarantine", "error"]


@names_refusals
def ingest(
    source: Any,
    into: Target,
    *,
    codec: Codec | str | os.PathLike[str] | None = None,
    vector_column: str | None = None,
    columns: Sequence[str] | None = None,
    metadata: str | os.PathLike[str] | None = None,
    encode: bool | None = None,
    keep_vectors: KeepVectors = "none",
    on_bad_rows: OnBadRows = "quarantine",
    commit_rows: int = COMMIT_ROWS,
    job: str | None = None,
    resume: bool = True,
    storage_options: Mapping[str, str] | None = None,
    progress: bool = True,
) -> IngestReport:
    """Add the rows of a source to a table: any number of them in bounded memory, each of them once.

    Rows are committed part by part. Interrupted at any moment, by Ctrl-C, an error or the loss of the
    process, the same call goes on where it was: every commit says which rows of the source it adds.
    Called again once all rows are in, it adds what has come since, such as new files in a folder.
    Reading, encoding and writing overlap; an iterator is read in another thread.

    Args:
        source: the path or URI of a file or folder in Parquet, Arrow, CSV, JSON or ORC, of a .npy file, or of
            a .lance folder; a pattern, such as "rows/**/*.parquet", or several paths; a pyarrow dataset, a
            Lance dataset or a LanceDB table; or a stream: rows in any form that `add` takes. Folders named
            like `lang=en` are columns. Files are read in the order of their paths. A pattern, a list of paths
            and a folder are the same source if the same folder is the innermost that holds them, so that
            rows ingested from one of them are not ingested again from another.
        into: a table, or the database and name of one, as `(db, "docs")`, which is made if need be.
        codec: what to make a new table with, or the folder of it; kept in the database.
        vector_column: what the source calls the vectors; default is what the table calls them, or "vector".
        columns: columns of the source to take, besides the vectors; default all.
        metadata: path or URI of the file with the other columns of a .npy file.
        encode: False to keep vectors raw and have `optimize` encode them later; None to encode if the table
            has a codec.
        keep_vectors: of a new table, as in `compress`.
        on_bad_rows: "quarantine" to put rows that cannot be encoded (with a vector of another dimension, NaN
            or infinite, zero under cosine; null where that is not allowed; of values that do not cast) into
            the table `<name>_quarantine`, with source, position, reason and the row as JSON; or "error".
        commit_rows: rows of the source per commit at most.
        job: names a source that has no place of its own. A stream is only resumed if it has a name, and must
            then yield the same rows again from its first on; more may follow.
        resume: False to ingest all rows again, whether or not they are in the table.
        storage_options: credentials and so on for URIs, as LanceDB takes them.
        progress: show a progress bar.

    Returns:
        Rows added and quarantined, time and speed; prints as words.

    Raises:
        InvalidInputError: a source or argument that cannot be used, a path of several with nothing there,
            columns, or fields of structs, that are not those of the table or that only some files have, a
            file that has changed since part of it was ingested, or a bad row if that is an error.
        TableError: no such table and no codec, one that is not ours, another process that ingests the same
            source, or a table that cannot tell any more what was ingested.
        StorageError: the disk or bucket is full, or may not be written to.
    """
    started = time.perf_counter()
    settings = IngestSettings(
        on_bad_rows=on_bad_rows, commit_rows=commit_rows, job=job, resume=resume, progress=progress
    )
    prepared = prepare(
        source,
        into,
        codec=codec,
        vector_column=vector_column,
        columns=columns,
        metadata=metadata,
        encode=encode,
        keep_vectors=keep_vectors,
        storage_options=storage_options,
        job=job,
    )
    report, warning = Ingestion(prepared, settings).run(started)
    if warning:
        warnings.warn(warning, stacklevel=3)
    return report
