"""Coverage of results: sections and packages among 10 passages, their redundancy, and answers found.

Headings ask for the passages below them, and titles of pages for passages of many sections. Ways to choose
results are compared in a table of codes: the nearest, maximal marginal relevance, coverage, and expansion by
the neighbor graph, which is also measured for what it takes to build.

Shape suffixes: N passages, Q queries, K results, S nearest passages, D vector dimension.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from rich.markup import escape
from rich.table import Table

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.documentation import Documentation
from rqmoe_store.evaluation.recall import Indices, exact_neighbors
from rqmoe_store.evaluation.search_measurement import ID, VECTOR, positions_of
from rqmoe_store.evaluation.tables import table_of
from rqmoe_store.search.query import CompressedQuery
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress
from rqmoe_store.training.trainer import train

RESULTS = 10
NEAREST = 100
"""Passages nearest to a query by their raw vectors: how well results stand for them is measured."""

PLAIN = "nearest"
_EVERY_PARTITION = 2**20

Choice = Callable[[CompressedQuery], CompressedQuery]
"""Completes a search by a way to choose its results."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoverageSettings:
    """What to measure."""

    queries: int = 1_000
    """Most headings, and most titles."""
    lambdas: tuple[float, ...] = (0.3, 0.5, 0.7)
    """For each method of `diversify`."""
    config: CodecConfig = dataclasses.field(default_factory=lambda: CodecConfig(kind="rq", metric="cosine"))
    """Of the codec."""
    training: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    seed: int = 0
    """Seed of the queries drawn."""

    def __post_init__(self) -> None:
        if self.queries < 1 or not self.lambdas or not all(0 <= each <= 1 for each in self.lambdas):
            raise InvalidInputError(
                f"Got {self.queries} queries and lambdas {list(self.lambdas)}; expected at least 1 of each, "
                "and lambdas from 0 to 1."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoverageResult:
    """Means over the queries of one kind, of one way to choose results."""

    choice: str
    asked: str
    """"headings" or "titles"."""
    success_10: float
    """Share of queries of which a result is an answer: below the heading, or on the page of the title."""
    found: float
    """Share of the answers to a heading among the results, or of a page's sections that a result is of; of 10
    where there are more."""
    sections: float
    """Different sections among the results."""
    packages: float
    """Different packages among the results."""
    redundancy: float
    """Cosine of a result and the result most similar to it."""
    represented: float
    """Cosine of one of the nearest passages and the result most similar to it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphCost:
    """What building the neighbor graph took."""

    neighbors: int
    seconds_per_1000_rows: float
    """Processor time, of all threads."""
    bytes_per_row: float
    """In its data files."""


@dataclasses.dataclass(kw_only=True)
class CoverageReport:
    """All results so far."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    passages: int
    results: list[CoverageResult] = dataclasses.field(default_factory=list)
    graph: GraphCost | None = None
    """None until the run is complete."""

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-ready values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Asked:
    """Queries of one kind, and what answers them."""

    kind: str
    texts: list[str]
    wanted: list[tuple[int, ...]]
    """Of each query: numbers of its answers."""
    number_N: Indices
    """Of each passage: its number among answers; the passage itself, or its section."""


def choices(lambdas: Sequence[float]) -> dict[str, Choice]:
    """The ways to choose results, by name."""

    def diversified(method: Any, lambda_: float) -> Choice:
        return lambda query: query.diversify(lambda_, method=method)

    different = {
        f"{method} {lambda_:g}": diversified(method, lambda_)
        for method in ("mmr", "coverage")
        for lambda_ in lambdas
    }
    expanded: dict[str, Choice] = {
        "expand, 1 hop": lambda query: query.expand(),
        "expand, 2 hops": lambda query: query.expand(hops=2),
        "all partitions": lambda query: query.nprobes(_EVERY_PARTITION),
        "all partitions, expand, 2 hops": lambda query: query.nprobes(_EVERY_PARTITION).expand(hops=2),
    }
    return {PLAIN: lambda query: query, **different, **expanded}


def benchmark_coverage(
    texts: Documentation,
    embed: Callable[[Sequence[str]], Float32Array],
    settings: CoverageSettings,
    on_done: Callable[[CoverageResult], None],
) -> GraphCost:
    """Search passages for headings and titles, by every way to choose results.

    Args:
        texts: passages, headings and pages.
        embed: makes vectors of unit length.
        settings: what to measure.
        on_done: called with every result.

    Returns:
        What the neighbor graph takes.

    Raises:
        InvalidInputError: there are fewer passages than are compared, no headings, or no pages.
    """
    if len(texts.passages) < NEAREST or not texts.headings or not texts.pages:
        raise InvalidInputError(
            f"Got {len(texts.passages)} passages, {len(texts.headings)} headings, {len(texts.pages)} pages "
            f"with several sections; expected at least {NEAREST}, 1 and 1. Name other folders by --texts."
        )
    vectors_ND = embed(texts.passages)
    codec = train(vectors_ND, config=settings.config, training=settings.training)
    with tempfile.TemporaryDirectory(prefix="rqmoe-bench-") as folder:
        columns = {
            ID: np.arange(len(vectors_ND)),
            VECTOR: pa.FixedSizeListArray.from_arrays(vectors_ND.ravel(), vectors_ND.shape[1]),
        }
        docs = lancedb.connect(folder).create_table("docs", pa.table(columns))
        store = compress(docs, codec, into="codes", vector_column=VECTOR, progress=False)
        graph = _build_graph(store)
        for asked in queries_of(texts, settings):
            queries_QD = embed(asked.texts)
            nearest_QS, _ = exact_neighbors(queries_QD, vectors_ND, NEAREST, metric="cosine")
            for name, choose in choices(settings.lambdas).items():
                found_QK = _search(store, queries_QD, choose)
                measured = measures(found_QK, nearest_QS, vectors_ND, texts, asked)
                on_done(CoverageResult(choice=name, asked=asked.kind, **measured))
    return graph


def _build_graph(store: CompressedTable) -> GraphCost:
    """Build the neighbor graph of a table."""
    started = time.process_time()
    report = store.build_neighbor_graph(progress=False)
    seconds = time.process_time() - started
    size = store.stats().graph_disk_bytes
    return GraphCost(
        neighbors=report.neighbors,
        seconds_per_1000_rows=1_000 * seconds / report.rows,
        bytes_per_row=size / report.rows,
    )


def queries_of(texts: Documentation, settings: CoverageSettings) -> Iterator[Asked]:
    """Headings, and titles of pages, drawn at random."""
    random = np.random.default_rng(settings.seed)
    headings = random.permutation(len(texts.headings))[: settings.queries]
    yield Asked(
        "headings",
        [texts.headings[place] for place in headings],
        [texts.relevant[place] for place in headings],
        np.arange(len(texts.passages)),
    )
    pages = [texts.pages[place] for place in random.permutation(len(texts.pages))[: settings.queries]]
    yield Asked(
        "titles",
        [page.title for page in pages],
        [page.sections for page in pages],
        np.array(texts.sections, np.int64),
    )


def _search(store: CompressedTable, queries_QD: Float32Array, choose: Choice) -> Indices:
    found = choose(store.search(queries_QD)).limit(RESULTS).select([ID]).to_arrow()
    return positions_of(found, len(queries_QD), RESULTS)


def measures(
    found_QK: Indices, nearest_QS: Indices, vectors_ND: Float32Array, texts: Documentation, asked: Asked
) -> Mapping[str, float]:
    """The measures of `CoverageResult`, given positions of passages."""
    sections_N = np.array(texts.sections, np.int64)
    packages_N = np.unique(texts.packages, return_inverse=True)[1]
    measured = []
    for found_K, nearest_S, wanted in zip(found_QK, nearest_QS, asked.wanted, strict=True):
        results_KD = vectors_ND[found_K]
        among_KK = results_KD @ results_KD.T
        np.fill_diagonal(among_KK, -np.inf)
        hits = len(set(wanted) & set(asked.number_N[found_K].tolist()))
        measured.append(
            {
                "success_10": hits > 0,
                "found": hits / min(len(wanted), RESULTS),
                "sections": len(np.unique(sections_N[found_K])),
                "packages": len(np.unique(packages_N[found_K])),
                "redundancy": among_KK.max(axis=1).mean(),
                "represented": (vectors_ND[nearest_S] @ results_KD.T).max(axis=1).mean(),
            }
        )
    return {name: float(np.mean([each[name] for each in measured])) for name in measured[0]}


def coverage_tables(report: CoverageReport) -> list[Table]:
    """What `bench coverage` shows."""
    tables = []
    for kind, found in (("headings", "answers found"), ("titles", "page's sections found")):
        shown = table_of(
            kind.capitalize(),
            f"results; success@10; {found}; sections; packages; redundancy; nearest {NEAREST} represented",
            caption="Sections, packages: different ones among 10 results. Redundancy: cosine of a result and "
            "the most similar other one. Represented: that of a passage and the most similar result.",
        )
        for each in report.results:
            if each.asked == kind:
                shown.add_row(
                    escape(each.choice),
                    f"{each.success_10:.3f}",
                    f"{each.found:.3f}",
                    f"{each.sections:.2f}",
                    f"{each.packages:.2f}",
                    f"{each.redundancy:.3f}",
                    f"{each.represented:.3f}",
                )
        tables.append(shown)
    if report.graph is not None:
        shown = table_of("Neighbor graph", "neighbors of a row; CPU seconds per 1,000 rows; bytes per row")
        graph = report.graph
        shown.add_row(
            f"{graph.neighbors}", f"{graph.seconds_per_1000_rows:.2f}", f"{graph.bytes_per_row:.1f}"
        )
        tables.append(shown)
    return tables
