"""Scaling of opening and searching with rows, on tables of random codes.

Shape suffixes: B rows of one batch, P partitions, Q queries, D vector dimension.

    python -m rqmoe_store.evaluation.search_scaling '{"folder": ..., "name": ..., "nprobes": [...], ...}'

The folder is a database that also holds the file queries.npy. Prints a JSON list with an object for every
number of partitions.

Shape suffixes: Q queries, D vector dimension.
"""

import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.index import BTree
from lancedb.table import LanceTable

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import RQMoEError
from rqmoe_store.evaluation.codec_measurement import require_disk
from rqmoe_store.evaluation.machine import resident_bytes
from rqmoe_store.evaluation.search_measurement import (
    ID,
    NEIGHBOURS,
    VECTOR,
    SyntheticResult,
    measure_latency,
    probe_counts,
)
from rqmoe_store.store import databases, registry
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.creation import stored_schema
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.table_codec import TableCodec, metadata_of
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import open_table

_BATCH_ROWS = 131_072
_PAYLOAD_BYTES = 32
"""Of a row on disk besides its code, at most: position, partition, index."""


def ids_alone(ids_B: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """Rows with the column ID and no other."""
    return pa.record_batch({ID: ids_B})


def create_random_table(
    db: DBConnection,
    name: str,
    codec: Codec,
    rows: int,
    *,
    seed: int,
    rows_of: Callable[[npt.NDArray[np.int64]], pa.RecordBatch] = ids_alone,
) -> CompressedTable:
    """A compressed table whose codes and partitions are drawn at random, grouped by partition.

    Memory is bounded whatever its size.

    Args:
        db: an existing database on disk.
        name: a name that is free.
        codec: what the codes could be of.
        rows: at least 1.
        seed: of the codes.
        rows_of: the other columns of rows, given their positions (B,).
    """
    columns, metadata = CodeColumns(VECTOR), metadata_of(codec, VECTOR, "none")
    others = rows_of(np.arange(0)).schema
    schema = stored_schema(name, others, metadata)
    written = pa.schema([schema.field(each) for each in (*others.names, *columns.names)])
    neighbor = cast(LanceTable, registry.save(db, codec))
    batches = _random_batches(codec, columns, written, rows, np.random.default_rng(seed), rows_of)
    table = databases.create_whole(db, name, schema, written.names, batches, neighbor=neighbor)
    databases.require_stable_row_ids(table)
    if codec.num_partitions > 1:
        table.create_index(columns.partition, config=BTree())
    return CompressedTable(Handle(table, TableCodec.of(metadata, [codec])))


def require_room(codecs: Iterable[Codec], rows: Sequence[int]) -> None:
    """Raise InvalidInputError unless the temporary folder has room for every table of random codes."""
    for codec in codecs:
        require_disk(max(rows), codec.config.code_bytes + _PAYLOAD_BYTES)


def measure_synthetic(
    codecs: Sequence[Codec],
    queries_QD: Float32Array,
    *,
    rows: Sequence[int],
    nprobes: Sequence[int],
    timed_queries: int,
    seed: int,
    on_start: Callable[[str], None] = lambda what: None,
) -> Iterator[SyntheticResult]:
    """Make, open and search a table of random codes for every codec and number of rows, smallest first.

    Every table is opened in a new process, whose memory is its own and whose first query is the first.
    Tables are removed as soon as they have been measured.

    Args:
        codecs: fit the queries.
        queries_QD: at least one.
        rows: sizes, at least 1 each.
        nprobes: partitions to search; the codecs' partitions are the same in every size, and so is the
            share that is searched.
        timed_queries: queries timed with every number of partitions.
        on_start: told what comes next.

    Raises:
        RQMoEError: the process that opens a table fails.
    """
    for codec in codecs:
        for count in sorted(rows):
            on_start(f"{codec.config.kind}, {codec.config.code_bytes} bytes: {count:,} rows of random codes")
            with tempfile.TemporaryDirectory(prefix="rqmoe-bench-") as folder:
                store = create_random_table(lancedb.connect(folder), "random", codec, count, seed=seed)
                table_bytes = store.stats().bytes_per_vector
                np.save(Path(folder) / "queries.npy", queries_QD)
                opened = _open_apart(Path(folder), probe_counts(nprobes, codec.num_partitions), timed_queries)
            for figures in opened:
                yield SyntheticResult(
                    system=codec.config.kind,
                    code_bytes=codec.config.code_bytes,
                    rows=count,
                    table_bytes=table_bytes,
                    **figures,
                )


def _random_batches(
    codec: Codec,
    columns: CodeColumns,
    schema: pa.Schema,
    rows: int,
    random: np.random.Generator,
    rows_of: Callable[[npt.NDArray[np.int64]], pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    ends_P = random.multinomial(rows, np.full(codec.num_partitions, 1 / codec.num_partitions)).cumsum()
    for start in range(0, rows, _BATCH_ROWS):
        ids_B = np.arange(start, min(start + _BATCH_ROWS, rows))
        partitions_B: npt.NDArray[np.int32] = np.searchsorted(ends_P, ids_B, side="right").astype(np.int32)
        shape = (len(ids_B), codec.config.code_bytes)
        codes_BM = random.integers(0, codec.config.codebook_size, shape, dtype=np.uint8)
        codes = Codes(codes=codes_BM, partitions=partitions_B)
        arrays = [*rows_of(ids_B).columns, *columns.to_arrow(codes, np.ones(len(ids_B), dtype=bool))]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _open_apart(folder: Path, nprobes: Sequence[int], timed_queries: int) -> list[dict[str, Any]]:
    """What `search_opening` finds on the table "random" in a new process."""
    command = [sys.executable, "-m", "rqmoe_store.evaluation.search_scaling"]
    settings = {"folder": str(folder), "name": "random", "nprobes": nprobes, "timed_queries": timed_queries}
    run = subprocess.run([*command, json.dumps(settings)], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RQMoEError(f"Searching a table of random codes in a new process failed:\n{run.stderr}")
    found: list[dict[str, Any]] = json.loads(run.stdout)
    return found


def measure_opening(
    folder: Path, name: str, nprobes: Sequence[int], timed_queries: int
) -> list[dict[str, Any]]:
    """The fields of `SyntheticResult` that only the process which opens the table knows.

    Args:
        folder: a database, with queries (Q, D) in queries.npy.
        nprobes: at least one; the first query of all is told the first.
    """
    queries_QD: Float32Array = np.load(folder / "queries.npy", allow_pickle=False)
    before = resident_bytes()
    started = time.perf_counter()
    store = open_table(lancedb.connect(folder), name)
    open_seconds = time.perf_counter() - started
    first_seconds, found = None, []
    for probes in nprobes:
        ask = functools.partial(_ask, store, probes)
        started = time.perf_counter()
        ask(queries_QD[:1])
        first_seconds = first_seconds or time.perf_counter() - started
        latency = measure_latency(ask, queries_QD, timed_queries)
        memory = resident_bytes()
        found.append(
            {
                "nprobes": probes if store.codec.num_partitions > 1 else None,
                "open_ms": 1e3 * open_seconds,
                "first_query_ms": 1e3 * first_seconds,
                "p50_ms": latency.p50_ms,
                "p99_ms": latency.p99_ms,
                "memory_bytes": memory,
                "memory_growth_bytes": memory - before,
            }
        )
    return found


def _ask(store: CompressedTable, nprobes: int, query_QD: Float32Array) -> None:
    store.search(query_QD).nprobes(nprobes).limit(NEIGHBOURS).select([ID]).to_arrow()


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    print(json.dumps(measure_opening(Path(wanted.pop("folder")), **wanted)))
