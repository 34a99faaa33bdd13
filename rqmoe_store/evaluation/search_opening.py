"""Opens a compressed table in this process, searches it, and prints what that took.

    python -m rqmoe_store.evaluation.search_opening '{"folder": ..., "name": ..., "nprobes": [...], ...}'

The folder is a database that also holds the file queries.npy. Prints a JSON list with an object for every
number of partitions.

Shape suffixes: Q queries, D vector dimension.
"""

import functools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lancedb
import numpy as np

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.evaluation.memory import resident_bytes
from rqmoe_store.evaluation.search_index import ID, NEIGHBOURS
from rqmoe_store.evaluation.search_measurement import measure_latency
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import open_table


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
