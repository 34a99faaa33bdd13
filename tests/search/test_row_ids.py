"""Row ids are found by position and positions by row id, whatever the ids are, in little memory."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.parallel import compiled
from rqmoe_store.search.row_ids import RowIdMap, row_id_at
from rqmoe_store.search.segments import CodeBatch, Selection, concatenated, grouped

LIMITS = [0, 2**32, 2**33 + 5, 2**63, 2**64 - 300]
PARTITIONS = 5

near_limits = st.builds(lambda limit, more: limit + more, st.sampled_from(LIMITS), st.integers(0, 299))
random_ids = st.lists(near_limits, unique=True, max_size=60)
runs = st.lists(st.tuples(near_limits, st.integers(1, 40)), max_size=5).map(
    lambda parts: list(
        dict.fromkeys(row_id for first, count in parts for row_id in range(first, min(first + count, 2**64)))
    )
)
any_ids = random_ids | runs | runs.map(lambda ids: ids[::-1])


@compiled
def all_row_ids(arrays: Any, row_ids_N: Any) -> None:
    for position in range(len(row_ids_N)):
        row_ids_N[position] = row_id_at(arrays, position)


def check(row_id_map: RowIdMap, row_ids: np.ndarray, wanted: np.ndarray) -> None:
    assert len(row_id_map) == len(row_ids)
    assert row_id_map.at(np.arange(len(row_ids))).tolist() == row_ids.tolist()
    found = np.empty(len(row_ids), np.uint64)
    all_row_ids(row_id_map.arrays, found)
    assert found.tolist() == row_ids.tolist()
    assert row_id_map.at(np.arange(len(row_ids))[::-2]).dtype == np.uint64
    expected = np.flatnonzero(np.isin(row_ids, wanted))
    assert row_id_map.positions_of(wanted).tolist() == expected.tolist()
    assert row_id_map.nbytes <= row_ids.nbytes + 8


@given(row_ids=any_ids, others=random_ids, share=st.floats(0, 1), seed=st.integers(0, 9))
def test_ids_and_positions_of_any_rows(
    row_ids: list[int], others: list[int], share: float, seed: int
) -> None:
    ids = np.array(row_ids, np.uint64)
    some = ids[np.random.default_rng(seed).random(len(ids)) < share]
    wanted = np.concatenate([some, np.array(others, np.uint64), some[:3]])
    check(RowIdMap.of(ids), ids, wanted)


@given(
    offsets=st.lists(st.integers(0, 50) | st.integers(2**32 - 40, 2**32 - 1), unique=True, max_size=60),
    base=st.sampled_from([0, 2**32 - 1, 2**40, 2**64 - 2**32]),
)
def test_offsets_above_a_base(offsets: list[int], base: int) -> None:
    ids = np.array([base + offset for offset in offsets], np.uint64)
    row_id_map = RowIdMap.from_offsets(base, np.array(offsets, np.uint32))
    check(row_id_map, ids, ids[::2])
    check(row_id_map, ids, np.array([0, 2**32, 2**64 - 1], np.uint64))
    assert row_id_map.nbytes <= 4 * len(ids) + 8


@pytest.mark.parametrize("wanted_every", [1, 2, 50_000])
@pytest.mark.parametrize("base", [0, 2**32 + 7, 2**63])
def test_many_rows_in_any_order(base: int, wanted_every: int) -> None:
    ids = base + np.random.default_rng(0).permutation(200_000).astype(np.uint64)
    row_id_map = RowIdMap.of(ids)
    check(row_id_map, ids, ids[::wanted_every])
    assert row_id_map.nbytes <= 4 * len(ids) + 8
    far = np.append(ids, np.uint64(base + 2**32))
    check(RowIdMap.of(far), far, far[::wanted_every])
    assert RowIdMap.of(far).nbytes == far.nbytes


def test_rows_written_in_order_take_no_memory() -> None:
    ids = 2**34 + np.arange(1_000_000, dtype=np.uint64)
    assert RowIdMap.of(ids).nbytes == 16
    some = np.delete(ids, np.arange(0, len(ids), 1000))
    assert RowIdMap.of(some).nbytes <= len(some)
    check(RowIdMap.of(some), some, ids[::3])


@given(row_ids=any_ids, appended=random_ids, deleted=random_ids, seed=st.integers(0, 9))
def test_segments_after_deletes_and_appends(
    row_ids: list[int], appended: list[int], deleted: list[int], seed: int
) -> None:
    """Rows keep their ids, and partitions have theirs in ascending order."""
    random = np.random.default_rng(seed)

    def batch(ids: list[int]) -> CodeBatch:
        ids_N = np.array(ids, np.uint64)
        codes = (ids_N[:, None] % np.array([251, 241], np.uint64)).astype(np.uint8)
        return CodeBatch(ids_N, Codes(codes, random.integers(0, PARTITIONS, len(ids)).astype(np.int32)))

    gone = np.array(deleted, np.uint64)
    later = [row_id for row_id in appended if row_id not in row_ids]
    kept = Selection(grouped(batch(row_ids), PARTITIONS)).without(gone).rows()
    segment = grouped(concatenated([kept, batch(later)]), PARTITIONS)
    rows = segment.rows(np.arange(len(segment)))
    assert set(rows.row_ids_N.tolist()) == (set(row_ids) - set(deleted)) | set(later)
    assert (rows.codes.codes == batch(rows.row_ids_N.tolist()).codes.codes).all()
    order = np.lexsort((rows.row_ids_N, rows.codes.partitions))
    assert order.tolist() == list(range(len(rows)))
