"""Scaling of searches: time and memory to open and search tables of random codes, by number of rows.

A new process opens and searches each table, by the command

    python -m rqmoe_store.evaluation.search_scaling '{"folder": ..., "name": ..., "cache": ..., ...}'

The folder is a database that also contains the file queries.npy. The command prints a JSON list with an
object for every number of partitions searched.

Shape suffixes: B rows of one batch, P partitions, Q queries, D vector dimension, M code bytes.
"""

import dataclasses
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from lancedb.db import DBConnection
from lancedb.index import BTree
from lancedb.table import LanceTable

from rqmoe_store.codecs.artifact import unpack
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import RQMoEError
from rqmoe_store.evaluation.codec_measurement import require_disk
from rqmoe_store.evaluation.machine import PeakMemory, resident_bytes
from rqmoe_store.evaluation.search_measurement import (
    ID,
    NEIGHBORS,
    VECTOR,
    SyntheticResult,
    measure_latency,
    probe_counts,
)
from rqmoe_store.search.source import Cache
from rqmoe_store.store import databases, registry
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.creation import stored_schema
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.table_codec import TableCodec, metadata_of
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import open_table
from rqmoe_store.training.trainer import train

_BATCH_ROWS = 131_072
_PAYLOAD_BYTES = 32
"""Most bytes of a row on disk besides its code: position, partition, index."""

_TRAINING_ROWS = 1.2
"""Vectors for every partition that a random codec is made from, some of which are held out."""

_CACHES: tuple[Cache, ...] = ("memory", "disk")
"""Where searches of a table are measured, each in a process of its own."""

_REFRESHES = 5
"""Rows added one after the other to time the query after each."""


def ids_only(ids_B: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """Rows with the column ID alone."""
    return pa.record_batch({ID: ids_B})


def create_random_table(
    db: DBConnection,
    name: str,
    codec: Codec,
    rows: int,
    *,
    seed: int,
    rows_of: Callable[[npt.NDArray[np.int64]], pa.RecordBatch] = ids_only,
) -> CompressedTable:
    """Create a compressed table with random codes, grouped by random partitions, in bounded memory.

    Args:
        db: an existing database on disk.
        name: an unused name.
        codec: the codec to draw codes for.
        rows: at least 1.
        seed: of the codes.
        rows_of: positions (B,) -> the other columns of these rows.
    """
    metadata = metadata_of(codec, VECTOR, "none")
    columns = metadata.columns
    others = rows_of(np.arange(0)).schema
    schema = stored_schema(name, others, metadata)
    written = pa.schema([schema.field(each) for each in (*others.names, *columns.names)])
    neighbor = cast(LanceTable, registry.save(db, codec))
    batches = _random_batches(codec, columns, written, rows, np.random.default_rng(seed), rows_of)
    table = databases.create_atomically(db, name, schema, written.names, batches, neighbor=neighbor)
    databases.require_stable_row_ids(table)
    if codec.num_partitions > 1:
        table.create_index(columns.partition, config=BTree())
    return CompressedTable(Handle(table, TableCodec.of(metadata, [codec])))


def random_queries(dim: int, count: int, seed: int) -> Float32Array:
    """Unit vectors (count, dim) in random directions."""
    queries_QD = np.random.default_rng(seed).standard_normal((count, dim), np.float32)
    queries_QD /= np.linalg.norm(queries_QD, axis=1, keepdims=True)
    return queries_QD


def random_codec(config: CodecConfig, dim: int, seed: int) -> Codec:
    """A codec of `config`, which names its partitions, made from random vectors without training steps.

    The same arguments make the same codec, with the same fingerprint.
    """
    rows = 1_000 + int(_TRAINING_ROWS * (config.num_partitions or 0))
    vectors_BD = np.random.default_rng(seed).standard_normal((rows, dim), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few vectors
        codec = train(vectors_BD, config=config, training=TrainConfig(epochs=0, seed=seed, progress=False))
    parts = unpack(codec.to_artifact())
    report = dataclasses.replace(parts.report, seconds=0.0)  # part of the fingerprint
    return Codec(parts.coder, parts.calibration, report, parts.frame, parts.refiner)


def require_room(code_bytes: Iterable[int], rows: Sequence[int]) -> None:
    """Raise InvalidInputError unless the temporary folder has space for every table of random codes."""
    for size in code_bytes:
        require_disk(max(rows), size + _PAYLOAD_BYTES)


def measure_synthetic(
    codecs: Sequence[Codec],
    queries_QD: Float32Array,
    *,
    rows: Sequence[int],
    nprobes: Sequence[int],
    timed_queries: int,
    seed: int,
    on_start: Callable[[str], None] = lambda description: None,
) -> Iterator[SyntheticResult]:
    """Create, open and search a table of random codes for every codec and number of rows, smallest first.

    Each table is opened in a new process, to measure its memory and its first query alone, and in another one
    that searches codes on disk. Tables are removed
    as soon as they have been measured.

    Args:
        codecs: codecs that fit the queries.
        queries_QD: at least one query.
        rows: sizes of the tables, at least 1 each.
        nprobes: numbers of partitions to search. A codec has the same partitions in every table, so the share
            that is searched is the same, too.
        timed_queries: queries timed with every number of partitions.
        seed: of the codes.
        on_start: called with a description of each table before it is created.

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
                probes = probe_counts(nprobes, codec.num_partitions)
                opened = [
                    figures
                    for cache in _CACHES
                    for figures in _open_in_new_process(Path(folder), cache, probes, timed_queries)
                ]
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


def _open_in_new_process(
    folder: Path, cache: str, nprobes: Sequence[int], timed_queries: int
) -> list[dict[str, Any]]:
    """Run `measure_opening` on the table "random" in a new process."""
    command = [sys.executable, "-m", "rqmoe_store.evaluation.search_scaling"]
    settings = {
        "folder": str(folder), "name": "random", "cache": cache, "nprobes": nprobes,
        "timed_queries": timed_queries,
    }  # fmt: skip
    run = subprocess.run([*command, json.dumps(settings)], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RQMoEError(f"Searching a table of random codes in a new process failed:\n{run.stderr}")
    found: list[dict[str, Any]] = json.loads(run.stdout)
    return found


def measure_opening(
    folder: Path, name: str, cache: Cache, nprobes: Sequence[int], timed_queries: int
) -> list[dict[str, Any]]:
    """Measure the fields of `SyntheticResult` that only the process that opens the table can measure.

    Args:
        folder: a database, with queries (Q, D) in queries.npy.
        name: name of the table, to which some rows are added at the end.
        cache: where searches read codes.
        nprobes: at least one number of partitions; the first query uses the first one.
        timed_queries: queries timed with every number of partitions.
    """
    queries_QD: Float32Array = np.load(folder / "queries.npy", allow_pickle=False)
    before = resident_bytes()
    started = time.perf_counter()
    store = open_table(lancedb.connect(folder), name, cache=cache)
    open_seconds = time.perf_counter() - started
    with PeakMemory(torch.device("cpu")) as peak:
        started = time.perf_counter()
        _search(store, nprobes[0], queries_QD[:1])
        first_seconds = time.perf_counter() - started
    found = []
    for probes in nprobes:
        search = functools.partial(_search, store, probes)
        latency = measure_latency(search, queries_QD, timed_queries)
        memory = resident_bytes()
        found.append(
            {
                "nprobes": probes if store.codec.num_partitions > 1 else None,
                "cache": cache,
                "open_ms": 1e3 * open_seconds,
                "first_query_ms": 1e3 * first_seconds,
                "load_growth_bytes": peak.growth_bytes,
                "p50_ms": latency.p50_ms,
                "p99_ms": latency.p99_ms,
                "memory_bytes": memory,
                "memory_growth_bytes": memory - before,
            }
        )
    refresh_ms = _refresh_ms(store, nprobes[0], queries_QD[:1])
    return [{**figures, "refresh_ms": refresh_ms} for figures in found]


def _refresh_ms(store: CompressedTable, nprobes: int, query_QD: Float32Array) -> float:
    """Median time of the first query after a row was added."""
    seconds = []
    for _ in range(_REFRESHES):
        store.add([{ID: -1, VECTOR: query_QD[0]}])
        started = time.perf_counter()
        _search(store, nprobes, query_QD)
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds)


def _search(store: CompressedTable, nprobes: int, query_QD: Float32Array) -> None:
    store.search(query_QD).nprobes(nprobes).limit(NEIGHBORS).select([ID]).to_arrow()


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    print(json.dumps(measure_opening(Path(wanted.pop("folder")), **wanted)))
