"""Advice on how many bytes per vector a table needs for a recall: measure candidates, and recommend one.

Shape legend: Q queries, D vector dimension.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from rqmoe_store.advice.candidates import (
    TrainedCode,
    Workbench,
    code_sizes,
    measured_sizes,
    refine_sizes,
)
from rqmoe_store.advice.recommendation import Request, recommend
from rqmoe_store.advice.result import (
    LEAST_TRAINING_ROWS,
    SCALARS,
    Advice,
    Candidate,
    CandidateKind,
    duration,
)
from rqmoe_store.advice.sample import Sample, SampleSizes, draw_sample, metric_of
from rqmoe_store.advice.vectors import open_vectors
from rqmoe_store.arguments import real_number, share, whole_number
from rqmoe_store.config import METRICS, Metric
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.progress import progress_bar
from rqmoe_store.storage_errors import translates_errors

QUERIES, TRAINING_ROWS, ENCODED_ROWS = 500, 70_000, 20_000
"""Most queries, training vectors and encoded rows of a sample."""

_RQ_MINUTES = 0.5
"""Most minutes for plain RQ, whose codebooks need no more."""
_EARLIER_SIZES = 2
"""Sizes below the one that plain RQ needs, at which RQ-MoE is measured."""


@translates_errors
def advise(
    source: Any,
    queries: Any = None,
    *,
    target_recall: float = 0.95,
    k: int = 10,
    metric: Metric | None = None,
    vector_column: str = "vector",
    minutes: float = 1.0,
    encoded_rows: int = ENCODED_ROWS,
    seed: int = 0,
    progress: bool = True,
) -> Advice:
    """Advise how many bytes per vector keep a recall: measure candidates on a sample, and recommend one.

    Plain RQ is trained in seconds, RQ-MoE within `minutes`; both are measured with and without refine codes,
    and int8 and binary scalar codecs beside them. Nothing is written.

    Recall is for the full number of rows. The source is read once for the exact nearest rows of every query.
    These, and a random sample of all rows, are encoded by each candidate. How many other rows have a smaller
    decoded distance than a true neighbor is estimated from those in the random sample: a gamma-Poisson model
    whose parameters come from all queries. A source of at most `encoded_rows` is encoded as a whole, and
    nothing is estimated. The confidence interval is a bootstrap over the queries.

    Args:
        source: a LanceDB table, a compressed table, an array-like (rows, D), or the path of a .npy file or of
            a table's .lance folder. A compressed table without raw vectors is decoded, with a warning.
        queries: array-like (Q, D), or the path of a .npy file, of which at most 500 are used. None makes
            queries of rows of the source, which then are no neighbors. Real queries are better.
        target_recall: wanted share of the k nearest vectors, above 0 and at most 1.
        k: nearest vectors per query.
        metric: "l2", "cosine" or "dot". None means that of a compressed table; otherwise "cosine" for vectors
            of unit length, and "l2" for others.
        vector_column: the table's column of vectors. Null vectors are skipped.
        minutes: training of RQ-MoE; 0 for none.
        encoded_rows: rows that each candidate encodes, at most; more only if queries have more near rows.
        seed: seed of samples and of training.
        progress: show a progress bar.

    Returns:
        All candidates with their figures, the recommendation, the next commands and the `CodecConfig`; prints
        as a table. After Ctrl-C, those measured so far.

    Raises:
        TableError: the source has no such table or column, or no vectors.
        InvalidInputError: unusable vectors or queries, queries of another dimension, another metric than that
            of a compressed table, too few rows for k neighbors, or settings out of range.
        KeyboardInterrupt: Ctrl-C before any candidate was measured.

    Warns:
        UserWarning: the source is a compressed table without raw vectors.

    Example:
        >>> advice = advise(table, queries, target_recall=0.95)  # doctest: +SKIP
        >>> codec = train(table, config=advice.config)  # doctest: +SKIP
    """
    started = time.perf_counter()
    target_recall, minutes = _fraction("target_recall", target_recall), _minutes(minutes)
    sizes = SampleSizes(
        queries=QUERIES,
        training=TRAINING_ROWS,
        encoded=whole_number("encoded_rows", encoded_rows, 100),
        k=whole_number("k", k, 1, 1_000),
        seed=whole_number("seed", seed, 0, 2**31 - 1),
    )
    if metric is not None and metric not in METRICS:
        raise InvalidInputError(f"Got metric={metric!r}; expected one of {', '.join(METRICS)}, or None.")
    vectors = open_vectors(source, vector_column)
    chosen = metric_of(vectors, metric, sizes.seed)
    queries_file = os.fspath(queries) if isinstance(queries, str | os.PathLike) else None
    given = queries if queries_file is None else _read_queries(queries_file)
    with progress_bar(progress) as bar:
        task = bar.add_task("Reading", total=vectors.offsets)
        sample = draw_sample(vectors, given, chosen, sizes, lambda rows: bar.update(task, completed=rows))
        candidates, complete = _candidates(sample, target_recall, minutes, sizes.seed, bar)
    request = Request(
        vectors=vectors,
        sample=sample,
        target_recall=target_recall,
        minutes=minutes,
        queries_file=queries_file,
        complete=complete,
        seconds=time.perf_counter() - started,
    )
    return recommend(request, candidates)


def _candidates(
    sample: Sample, target_recall: float, minutes: float, seed: int, bar: Progress
) -> tuple[list[Candidate], bool]:
    """All candidates, and True; after Ctrl-C those measured before, and False."""
    task, candidates = bar.add_task("Measuring", total=None), list[Candidate]()
    measured = _measure(
        sample, target_recall, minutes, seed, lambda stage: bar.update(task, description=stage)
    )
    try:
        for candidate in measured:
            candidates.append(candidate)
            bar.advance(task)
    except KeyboardInterrupt:
        if not candidates:
            raise
        return candidates, False
    return candidates, True


def _measure(
    sample: Sample, target_recall: float, minutes: float, seed: int, show: Callable[[str], None]
) -> Iterator[Candidate]:
    """Yield all candidates, the quickest first."""
    bench = Workbench.of(sample, seed)
    for scalar in SCALARS:
        show(f"Measuring {scalar}")
        yield bench.scalar(scalar)
    if len(sample.training_nD) < LEAST_TRAINING_ROWS:
        return
    sizes = refine_sizes(bench.dim, sample.metric)
    budgets: list[tuple[CandidateKind, float]] = [("rq", min(minutes or _RQ_MINUTES, _RQ_MINUTES))]
    if minutes:
        budgets.append(("rqmoe", minutes))
    for kind, budget in budgets:
        show(f"Training {kind}, at most {duration(60 * budget)}")
        code = TrainedCode.train(bench, kind, budget)
        show(f"Measuring {kind}")
        for code_bytes in code_sizes(bench.dim)[:-1]:
            yield code.shorter(code_bytes).plain()
        tried = 0
        for candidate in measured_sizes(code, target_recall, sizes):
            tried += candidate.refine_bytes in sizes
            yield candidate
        sizes = sizes[max(0, tried - 1 - _EARLIER_SIZES) :]


def _fraction(name: str, value: Any) -> float:
    """A share as a float; raises InvalidInputError unless it is above 0 and at most 1."""
    number = share(name, value)
    if number == 0:
        raise InvalidInputError(f"Got {name}=0; expected more, such as 0.95.")
    return number


def _minutes(value: Any) -> float:
    words = "a number of minutes, 0 for no RQ-MoE"
    return real_number("minutes", value, lambda number: 0 <= number < math.inf, words)


def _read_queries(path: str) -> Any:
    """The array in a file of queries; raises InvalidInputError if there is none."""
    try:
        return np.load(Path(path).expanduser(), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"Cannot read queries from {path!r} ({error}); expected a .npy file of vectors (queries, dim)."
        ) from error
