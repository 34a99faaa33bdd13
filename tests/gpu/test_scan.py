"""The scan on a GPU finds what the compiled scan on a CPU does, to the last tie."""

import numpy as np
import pytest
from small_scans import PARTITIONS, rows_of, selections_of, tables_of

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search import tensor_scan
from rqmoe_store.search.scan import scan


def require_same(seed: int, count: int, metric: str, lower: float | None) -> None:
    rows, tables = rows_of(seed, count), tables_of(seed, 3, metric)
    probed = np.random.default_rng(seed).random((3, PARTITIONS)) < 0.7
    selections = selections_of(rows, [count // 5])
    wanted = scan(selections, {0: tables}, probed, 50, lower)
    found = scan(selections, {0: tables}, probed, 50, lower, device="cuda")
    for side, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(side.queries_H, other.queries_H)
        np.testing.assert_array_equal(side.rows.row_ids_N, other.rows.row_ids_N)
        np.testing.assert_allclose(side.scores_H, other.scores_H, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("lower", [None, 1.0])
def test_few_rows(gpu, metric: str, lower: float | None) -> None:
    require_same(4, 3_000, metric, lower)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_as_many_rows_as_the_kernel_scans(real_gpu, metric: str) -> None:
    require_same(5, 2 * tensor_scan.KERNEL_ROWS, metric, None)


def test_the_host_waits_for_results_only(cuda) -> None:
    rows, tables = rows_of(4, 3_000), tables_of(4, 3, "cosine")
    selections, probed = selections_of(rows, []), np.ones((3, PARTITIONS), dtype=bool)
    for _ in range(2):  # codes are uploaded first
        cuda.waits.clear()
        scan(selections, {0: tables}, probed, 50, device="cuda")
    assert dict(cuda.waits) == {
        "nonzero in search/tensor_scan.py, scan_chunk": 1,
        "synchronize in codecs/decoding.py, wait": 1,
    }


@pytest.mark.parametrize("lower", [None, 1.0])
def test_less_memory_gives_the_same_in_smaller_chunks(cuda, monkeypatch, lower: float | None) -> None:
    rows, tables = rows_of(4, 3_000), tables_of(4, 3, "cosine")
    selections, probed = selections_of(rows, []), np.ones((3, PARTITIONS), dtype=bool)
    wanted = scan(selections, {0: tables}, probed, 50, lower)
    sizes, score = [], tensor_scan.Scorer.scores

    def watched(scorer, rows_C):
        sizes.append(len(rows_C))
        return score(scorer, rows_C)

    def require_wanted() -> None:
        for side, other in zip(
            scan(selections, {0: tables}, probed, 50, lower, device="cuda"), wanted, strict=True
        ):
            np.testing.assert_array_equal(side.rows.row_ids_N, other.rows.row_ids_N)
            np.testing.assert_allclose(side.scores_H, other.scores_H, rtol=1e-6, atol=1e-6)

    monkeypatch.setattr(tensor_scan.Scorer, "scores", watched)
    require_wanted()
    cuda.largest_bytes = 2**14
    require_wanted()
    assert sizes[0] == 3_000 and 50 < min(sizes) < 2**14 / 12
    cuda.largest_bytes = 2**13  # of tables with 256 codewords a step
    with pytest.raises(InvalidInputError, match=r"tables of 3 queries, 180 bytes.*fewer queries.*codec\.to"):
        scan(selections, {0: tables}, probed, 50, lower, device="cuda")
    cuda.largest_bytes = None
    require_wanted()
