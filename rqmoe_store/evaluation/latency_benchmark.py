"""Benchmark of latency and throughput: our searches and those of others, in turn, quiet and on busy cores.

Every query is answered by all systems, one after the other, before the next query. What else the machine does
then slows all of them alike, so ratios hold although times do not. The order is drawn anew for every query: a
system finds the processor's caches as the one before leaves them, whose threads may not have come to rest.

Shape suffixes: N vectors, Q queries, K neighbors.
"""

import contextlib
import copy
import dataclasses
import functools
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfRq
from lancedb.table import LanceTable
from rich.table import Table

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_measurement import require_disk
from rqmoe_store.evaluation.lancedb_peers import REFINE_FACTOR, check_rq_dim
from rqmoe_store.evaluation.machine import describe_machine
from rqmoe_store.evaluation.recall import Indices, exact_neighbors, k_recall_at_k
from rqmoe_store.evaluation.search_measurement import (
    ID,
    NEIGHBORS,
    VECTOR,
    create_docs,
    default_partitions,
    positions_of,
)
from rqmoe_store.evaluation.tables import format_optional, print_tables, table_of
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress

OURS, OURS_CACHED = "ours", "ours-id-cached"
IVF_RQ, IVF_RQ_REFINED, TURBOVEC = "lancedb-ivf-rq", "lancedb-ivf-rq-refine", "turbovec-4"
BATCH = 64
CLIENTS = (2, 16)
"""Numbers of threads that search at the same time."""

_BUSY = "while True: pass"
_WARM_UP = 20
_TURBOVEC_BITS = 4
_METRICS = ("l2", "cosine")

Found = Any
Search = Callable[[Float32Array], Found]
"""Queries (Q, D) -> a result, whatever its form; what is timed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """How to search, and how often."""

    nprobes: int | None = None
    """Partitions that our table probes; None for its default."""
    shortlist: int | None = None
    """Rows that our table ranks by refine codes or decoded; None for its default."""
    peer_nprobes: int | None = None
    """Partitions that LanceDB's index probes; None for LanceDB's default."""
    timed_queries: int = 300
    """Queries that are timed one at a time."""
    rounds: int = 10
    """Batches that are timed."""
    busy_processes: int = 3
    """Processes that keep cores busy in the second part; 0 leaves it out."""

    def __post_init__(self) -> None:
        for name, least in (("timed_queries", 1), ("rounds", 1), ("busy_processes", 0)):
            if getattr(self, name) < least:
                raise InvalidInputError(f"Got {name}={getattr(self, name)}; expected at least {least}.")
        for name, least in (("nprobes", 1), ("peer_nprobes", 1), ("shortlist", NEIGHBORS)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidInputError(f"Got {name}={value}; expected at least {least}, or None.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyResult:
    """One system in one part of the benchmark. None where the part has no such figure."""

    part: str
    system: str
    recall: float
    """10-recall@10."""
    p50_ms: float | None = None
    p99_ms: float | None = None
    queries_per_second: float | None = None
    ratio: float
    """The system's median time, or queries per second, in units of those of ours."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyReport:
    """All results, with what was compared and on which machine."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    results: list[LatencyResult]
    missing: tuple[str, ...]
    """Systems that are not installed."""

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class _Systems:
    """Ways to search the same vectors."""

    searches: Mapping[str, Search]
    positions: Mapping[str, Callable[[Float32Array], Indices]]
    """The same, with positions (Q, K) of vectors as results."""


def benchmark_latency(
    vectors_ND: Float32Array,
    queries_QD: Float32Array,
    codec: Codec,
    settings: LatencySettings,
    on_part: Callable[[str], None] = lambda part: None,
) -> LatencyReport:
    """Search the vectors by our table and by other systems, in turn.

    Everything is in a temporary database. Recall is that of the 10 nearest raw vectors.

    Args:
        vectors_ND: checked vectors, normalized under cosine.
        queries_QD: checked queries likewise, at least as many as a batch.
        codec: a codec that fits the vectors.
        settings: how to search.
        on_part: called with the name of each part when it begins.

    Raises:
        InvalidInputError: too few queries, or the metric or dimension is not one that all systems take.
    """
    metric = codec.config.metric
    if len(queries_QD) < BATCH or metric not in _METRICS:
        raise InvalidInputError(
            f"Got {len(queries_QD)} queries and metric {metric!r}; expected at least {BATCH} queries and one "
            f"of {', '.join(_METRICS)}."
        )
    check_rq_dim(vectors_ND.shape[1], "this benchmark")
    require_disk(len(vectors_ND), 4 * 4 * vectors_ND.shape[1])
    machine, results = describe_machine(codec.device), list[LatencyResult]()
    truth_QK, _ = exact_neighbors(queries_QD, vectors_ND, NEIGHBORS, metric=metric)
    with tempfile.TemporaryDirectory(prefix="rqmoe-bench-") as folder:
        on_part("building indexes")
        systems = _build(folder, vectors_ND, codec, settings)
        recalls = {
            name: k_recall_at_k(find(queries_QD), truth_QK, NEIGHBORS)
            for name, find in systems.positions.items()
        }
        for part, measure in _parts(settings):
            on_part(part)
            results += [
                dataclasses.replace(each, part=part, recall=recalls[each.system])
                for each in measure(systems.searches, queries_QD, settings)
            ]
    return LatencyReport(
        settings={**dataclasses.asdict(settings), "rows": len(vectors_ND), "codec": repr(codec)},
        machine=machine,
        results=results,
        missing=() if TURBOVEC in systems.searches else (TURBOVEC,),
    )


def print_latency_report(report: LatencyReport) -> None:
    """Print a table for each part to standard output, and what was left out."""
    print_tables(latency_tables(report))
    for name in report.missing:
        print(f"{name} is not installed, and was left out. To compare with it: pip install turbovec")


def latency_tables(report: LatencyReport) -> list[Table]:
    """A table for a terminal for each part."""
    tables = []
    for part in dict.fromkeys(each.part for each in report.results):
        table = table_of(part.capitalize(), "system; 10-recall@10; p50 ms; p99 ms; queries/s; times ours")
        for each in report.results:
            if each.part == part:
                figures = (each.p50_ms, each.p99_ms, each.queries_per_second)
                forms = ("{:.2f}", "{:.2f}", "{:,.0f}")
                cells = map(format_optional, figures, forms)
                table.add_row(each.system, f"{each.recall:.3f}", *cells, f"{each.ratio:.2f}")
        tables.append(table)
    return tables


Measure = Callable[[Mapping[str, Search], Float32Array, LatencySettings], list[LatencyResult]]


def _parts(settings: LatencySettings) -> Iterator[tuple[str, Measure]]:
    yield "single queries", _time_singles
    yield f"batches of {BATCH}", _time_batches
    for clients in CLIENTS:
        yield f"{clients} threads that search", _throughput_of(clients)
    if settings.busy_processes:
        yield f"single queries, beside {settings.busy_processes} busy processes", _time_singles_while_busy


def _build(folder: str, vectors_ND: Float32Array, codec: Codec, settings: LatencySettings) -> _Systems:
    docs = create_docs(lancedb.connect(folder), vectors_ND)
    partitions, metric = default_partitions(len(vectors_ND)), codec.config.metric
    docs.create_index(VECTOR, config=IvfRq(distance_type=metric, num_partitions=partitions))
    store = compress(docs, codec, into="codes", vector_column=VECTOR, progress=False)

    cached = copy.copy(store).use_cache(cache_columns=[ID])

    def ours(store: CompressedTable, queries_QD: Float32Array) -> Found:
        query = store.search(queries_QD).limit(NEIGHBORS).select([ID])
        query = query if settings.nprobes is None else query.nprobes(settings.nprobes)
        return (query if settings.shortlist is None else query.shortlist(settings.shortlist)).to_arrow()

    def peer(refine_factor: int | None, queries_QD: Float32Array) -> Found:
        return _search_lancedb(docs, queries_QD, codec, settings.peer_nprobes, refine_factor)

    searches: dict[str, Search] = {
        OURS: functools.partial(ours, store),
        OURS_CACHED: functools.partial(ours, cached),
        IVF_RQ: lambda queries_QD: peer(None, queries_QD),
        IVF_RQ_REFINED: lambda queries_QD: peer(REFINE_FACTOR, queries_QD),
    }
    positions = {name: functools.partial(_positions, search) for name, search in searches.items()}
    if metric == "cosine" and importlib.util.find_spec("turbovec") is not None:
        searches[TURBOVEC] = _turbovec(vectors_ND)
        positions[TURBOVEC] = functools.partial(_positions, searches[TURBOVEC])
    return _Systems(searches, positions)


def _positions(search: Search, queries_QD: Float32Array) -> Indices:
    """Positions (Q, K) of what a search finds."""
    found = search(queries_QD)
    if isinstance(found, pa.Table):
        return positions_of(found, len(queries_QD))
    _, positions_QK = found
    return np.asarray(positions_QK, dtype=np.int64)


def _search_lancedb(
    docs: LanceTable, queries_QD: Float32Array, codec: Codec, nprobes: int | None, refine_factor: int | None
) -> Found:
    # LanceDB returns no `query_index` for a batch of one, as for a single query.
    queries: Any = queries_QD if len(queries_QD) > 1 else queries_QD[0]
    query: Any = docs.search(queries, vector_column_name=VECTOR).distance_type(codec.config.metric)
    query = query.limit(NEIGHBORS).select([ID, "_distance"])
    query = query if nprobes is None else query.nprobes(nprobes)
    return (query if refine_factor is None else query.refine_factor(refine_factor)).to_arrow()


def _turbovec(vectors_ND: Float32Array) -> Search:
    from turbovec import TurboQuantIndex  # of the extra `bench`

    index = TurboQuantIndex(dim=vectors_ND.shape[1], bit_width=_TURBOVEC_BITS)
    index.add(vectors_ND)
    return lambda queries_QD: index.search(queries_QD, k=NEIGHBORS)


def _time_singles(
    searches: Mapping[str, Search], queries_QD: Float32Array, settings: LatencySettings
) -> list[LatencyResult]:
    """Milliseconds of single queries, each by all systems in turn."""
    order = np.arange(_WARM_UP + settings.timed_queries) % len(queries_QD)
    seconds = _time_in_turn(searches, [queries_QD[[query]] for query in order], warm_up=_WARM_UP)
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    return [
        LatencyResult(
            part="",
            system=name,
            recall=0.0,
            p50_ms=1e3 * medians[name],
            p99_ms=1e3 * float(np.quantile(times, 0.99)),
            ratio=medians[name] / medians[OURS],
        )
        for name, times in seconds.items()
    ]


def _time_singles_while_busy(
    searches: Mapping[str, Search], queries_QD: Float32Array, settings: LatencySettings
) -> list[LatencyResult]:
    with _busy(settings.busy_processes):
        return _time_singles(searches, queries_QD, settings)


def _time_batches(
    searches: Mapping[str, Search], queries_QD: Float32Array, settings: LatencySettings
) -> list[LatencyResult]:
    """Queries per second in batches, each by all systems in turn."""
    starts = [(BATCH * turn) % (len(queries_QD) - BATCH + 1) for turn in range(1 + settings.rounds)]
    batches = [queries_QD[start : start + BATCH] for start in starts]
    seconds = _time_in_turn(searches, batches, warm_up=1)
    return _throughputs({name: BATCH / float(np.median(times)) for name, times in seconds.items()})


def _throughput_of(clients: int) -> Measure:
    """Measures queries per second of so many threads, by every system in turn."""

    def measure(
        searches: Mapping[str, Search], queries_QD: Float32Array, settings: LatencySettings
    ) -> list[LatencyResult]:
        order = np.arange(settings.timed_queries) % len(queries_QD)
        queries = [queries_QD[[query]] for query in order]
        rates = {}
        with ThreadPoolExecutor(clients) as threads:
            for name, search in searches.items():
                list(threads.map(search, queries[:_WARM_UP]))
                started = time.perf_counter()
                list(threads.map(search, queries))
                rates[name] = len(queries) / (time.perf_counter() - started)
        return _throughputs(rates)

    return measure


def _throughputs(rates: Mapping[str, float]) -> list[LatencyResult]:
    return [
        LatencyResult(part="", system=name, recall=0.0, queries_per_second=rate, ratio=rate / rates[OURS])
        for name, rate in rates.items()
    ]


def _time_in_turn(
    searches: Mapping[str, Search], queries: list[Float32Array], *, warm_up: int
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    random, names = np.random.default_rng(0), list(searches)
    for turn, queries_QD in enumerate(queries):
        for place in random.permutation(len(names)):
            name = names[place]
            search, started = searches[name], time.perf_counter()
            search(queries_QD)
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


@contextlib.contextmanager
def _busy(processes: int) -> Iterator[None]:
    """Keep cores busy by other processes."""
    started = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
