"""Selection and order are those of sorting."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.codecs.selection import mark_smallest, nth_smallest, nth_smallest_id, order_rows, smallest


@given(seed=st.integers(0, 10**6), count=st.integers(1, 300), kinds=st.integers(1, 400), data=st.data())
def test_is_the_value_that_sorting_puts_there(seed: int, count: int, kinds: int, data: st.DataObject) -> None:
    random, rank = np.random.default_rng(seed), data.draw(st.integers(0, count - 1))
    values = (random.integers(-kinds, kinds, count) * 2.0 ** random.integers(-140, 120)).astype(np.float32)
    values[random.random(count) < 0.1] = -0.0
    if seed % 2:
        values[values > kinds // 2] = np.inf
        values[values < -kinds // 2] = -np.inf
    assert nth_smallest(values, rank) == np.sort(values)[rank]


@given(seed=st.integers(0, 10**6), count=st.integers(1, 300), kinds=st.integers(1, 400), data=st.data())
def test_is_the_id_that_sorting_puts_there(seed: int, count: int, kinds: int, data: st.DataObject) -> None:
    ids = np.random.default_rng(seed).integers(0, kinds, count).astype(np.uint64) + np.uint64(2**63)
    rank = data.draw(st.integers(0, count - 1))
    expected, moved = np.sort(ids), ids.copy()
    assert nth_smallest_id(moved, rank) == expected[rank]
    np.testing.assert_array_equal(np.sort(moved), expected)


@pytest.mark.parametrize("order", ["ascending", "descending", "equal", "organ pipe"])
def test_ordered_values_take_no_longer(order: str) -> None:
    half = np.arange(20_000, dtype=np.float32)
    values = {
        "ascending": half,
        "descending": half[::-1].copy(),
        "equal": np.zeros(20_000, np.float32),
        "organ pipe": np.concatenate([half, half[::-1]]),
    }[order]
    for rank in (0, 777, len(values) - 1):
        assert nth_smallest(values, rank) == np.sort(values)[rank]
        ids = values.astype(np.uint64)
        assert nth_smallest_id(ids.copy(), rank) == np.sort(ids)[rank]


@given(
    seed=st.integers(0, 10**6),
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    kinds=st.integers(1, 50),
    stages=st.integers(1, 3),
    most=st.integers(1, 45),
)
def test_rows_are_ordered_by_value_and_id(
    seed: int, counts: list[int], kinds: int, stages: int, most: int
) -> None:
    random, starts = np.random.default_rng(seed), np.concatenate([[0], np.cumsum(counts)])
    total = int(starts[-1])
    values = random.integers(0, kinds, total).astype(np.float32)
    values[random.random(total) < 0.2] = np.inf
    values[random.random(total) < 0.2] = np.nan
    ids, stages_H = random.permutation(total).astype(np.uint64), random.integers(0, stages, total)
    every, ends = order_rows(starts, values, ids)
    kept, kept_ends = order_rows(starts, values, ids, stages_H, most)
    for query, (first, last) in enumerate(itertools.pairwise(starts)):
        rows = first + np.lexsort((ids[first:last], values[first:last]))
        rows = rows[~np.isnan(values[rows])]
        assert every[ends[query] : ends[query + 1]].tolist() == rows.tolist()
        some = kept[kept_ends[query] : kept_ends[query + 1]]
        assert some.tolist() == [row for row in rows if row in some]
        for stage in range(stages):
            nearest = rows[stages_H[rows] <= stage][:most]
            assert np.isin(nearest, some).all()


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 5), columns=st.integers(1, 60), data=st.data())
def test_the_smallest_columns_come_in_order(seed: int, rows: int, columns: int, data: st.DataObject) -> None:
    values = np.random.default_rng(seed).integers(0, 9, (rows, columns)).astype(np.float32)
    count = data.draw(st.integers(1, columns))
    expected = np.argsort(values, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(smallest(values, count), expected)
    marked = np.zeros_like(values, dtype=bool)
    mark_smallest(values, count, marked)
    np.testing.assert_array_equal(np.argwhere(marked)[:, 1].reshape(rows, count), np.sort(expected, axis=1))
