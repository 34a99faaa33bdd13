"""How many codes per second are scored: look-up tables count, finding partitions and reranking do not.

Shape suffixes: Q queries, D vector dimension.
"""

from collections.abc import Callable, Iterator

import torch

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.evaluation.codec_timing import timed
from rqmoe_store.evaluation.search_results import IndexResult, ScanResult

SHARES = (0.1, 1.0)
"""Shares of the partitions that every query scans."""

_QUERIES = 16

Scan = Callable[[Float32Array, float, int], Callable[[], int]]
"""Queries (Q, D), share of the partitions and number of threads -> the work that is timed: it makes look-up
tables, keeps a shortlist for every query, and returns how many rows it scored for all of them."""


def measure_scan(scan: Scan, index: IndexResult, queries_QD: Float32Array) -> Iterator[ScanResult]:
    """A scan's speed by share of partitions, with one thread and with as many as torch has.

    Args:
        scan: what to time; run once before.
        index: whose codes it scores.
        queries_QD: the first 16 are scanned for, in one call.
    """
    for threads in dict.fromkeys((1, torch.get_num_threads())):
        for share in SHARES:
            work = scan(queries_QD[:_QUERIES], share, threads)
            work()
            seconds, rows = timed(work, least=1)
            yield ScanResult(
                system=index.system,
                code_bytes=index.code_bytes,
                threads=threads,
                share=share,
                rows_per_second=rows / seconds,
            )
