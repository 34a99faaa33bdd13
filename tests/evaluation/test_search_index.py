"""Parts that all systems share: positions of results, and numbers of partitions."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from small_searches import clustered, small_corpus

from rqmoe_store.evaluation.search_measurement import (
    NEIGHBORS,
    default_partitions,
    positions_of,
    probe_counts,
)


def test_rows_of_a_batch_go_to_their_queries() -> None:
    hits = pa.table({"query_index": pa.array([2, 0, 2, 0, 0], pa.int32()), "id": [20, 5, 21, 3, 8]})
    found = positions_of(hits, 4)
    assert found.shape == (4, NEIGHBORS) and found.dtype == np.int64
    assert found[0].tolist() == [5, 3, 8, *[-1] * 7]
    assert found[2].tolist() == [20, 21, *[-1] * 8]
    assert (found[[1, 3]] == -1).all()


def test_a_single_query_has_no_index() -> None:
    assert positions_of(pa.table({"id": [7, 4]}), 1).tolist() == [[7, 4, *[-1] * 8]]
    assert positions_of(pa.table({"id": pa.array([], pa.int64())}), 1).tolist() == [[-1] * 10]


@given(rows=st.integers(1, 10**9))
def test_partitions_have_enough_rows(rows) -> None:
    partitions = default_partitions(rows)
    assert 1 <= partitions <= max(1, rows // 256)
    assert partitions**2 <= rows


def test_probes_beyond_the_partitions_mean_all() -> None:
    assert probe_counts((80, 5, 1, 20), 12) == [1, 5, 12]
    assert probe_counts((80, 5, 1, 20), 100) == [1, 5, 20, 80]
    assert probe_counts((5,), 1) == [1]


def test_the_table_holds_the_vectors_by_position(tmp_path) -> None:
    rows = small_corpus(tmp_path).docs.search().limit(None).to_arrow()
    stored = np.stack(rows["vector"].to_numpy())
    np.testing.assert_array_equal(stored[np.argsort(rows["id"].to_numpy())], clustered())
