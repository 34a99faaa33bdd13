"""Grouped codes: rows stay together with their ids, codes and partitions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.search.segments import CodeBatch, Segment, Selection, concatenated, grouped, no_rows

PARTITIONS = 4


def batch_of(row_ids: list[int], seed: int = 0) -> CodeBatch:
    """Rows whose codes and partition follow from their id."""
    ids = np.array(row_ids, np.uint64)
    codes = (ids[:, None] * np.array([3, 5], np.uint64) % 256).astype(np.uint8)
    return CodeBatch(ids, Codes(codes, (ids * 7 % PARTITIONS).astype(np.int32)))


def assert_consistent(batch: CodeBatch) -> None:
    wanted = batch_of(batch.row_ids_N.tolist())
    assert (batch.codes.codes == wanted.codes.codes).all()
    assert (batch.codes.partitions == wanted.codes.partitions).all()


row_id_lists = st.lists(st.integers(0, 200), unique=True, max_size=40)


@given(row_ids=row_id_lists)
def test_grouping_keeps_rows_whole_and_partitions_together(row_ids: list[int]) -> None:
    segment = grouped(batch_of(row_ids), PARTITIONS)
    rows = segment.rows(np.arange(len(segment)))
    assert_consistent(rows)
    assert sorted(rows.row_ids_N.tolist()) == sorted(row_ids)
    assert (np.diff(rows.codes.partitions) >= 0).all()
    for partition in range(PARTITIONS):
        run = slice(segment.starts_P[partition], segment.starts_P[partition + 1])
        assert (rows.codes.partitions[run] == partition).all()
    assert segment.nbytes >= len(row_ids) * 2


@given(row_ids=row_id_lists, wanted=st.lists(st.integers(0, 300), max_size=30))
def test_positions_are_those_of_the_row_ids(row_ids: list[int], wanted: list[int]) -> None:
    segment = grouped(batch_of(row_ids), PARTITIONS)
    positions = segment.positions_of(np.array(wanted, np.uint64))
    assert (np.diff(positions) >= 0).all()
    assert set(segment.row_ids(positions).tolist()) == set(wanted) & set(row_ids)


@given(row_ids=row_id_lists, first=st.sets(st.integers(0, 220)), second=st.sets(st.integers(0, 220)))
def test_selections_are_sets_of_rows(row_ids: list[int], first: set[int], second: set[int]) -> None:
    every = Selection(grouped(batch_of(row_ids), PARTITIONS))
    ids = [np.array(sorted(some), np.uint64) for some in (first, second)]
    for selection, wanted in [
        (every, set(row_ids)),
        (every.only(ids[0]), set(row_ids) & first),
        (every.without(ids[0]), set(row_ids) - first),
        (every.without(ids[0]).only(ids[1]), (set(row_ids) - first) & second),
        (every.without(ids[0]).without(ids[1]), set(row_ids) - first - second),
        (every.only(ids[0]).without(ids[1]), (set(row_ids) & first) - second),
    ]:
        rows = selection.rows()
        assert_consistent(rows)
        assert len(selection) == len(rows)
        assert set(rows.row_ids_N.tolist()) == wanted


def test_few_rows_are_copied_and_many_are_masked() -> None:
    every = Selection(grouped(batch_of(list(range(100))), PARTITIONS))
    few, many = every.only(np.arange(5, dtype=np.uint64)), every.only(np.arange(60, dtype=np.uint64))
    assert few.allowed_N is None and len(few.segment) == 5
    assert many.segment is every.segment and many.allowed_N is not None


def test_concatenating() -> None:
    parts = [no_rows(2), batch_of([3, 1]), batch_of([7])]
    together = concatenated(parts)
    assert together.row_ids_N.tolist() == [3, 1, 7]
    assert_consistent(together)
    assert concatenated([parts[1]]) is parts[1]


def test_an_empty_segment_has_every_partition() -> None:
    segment = grouped(no_rows(2), 3)
    assert isinstance(segment, Segment) and segment.starts_P.tolist() == [0, 0, 0, 0]
