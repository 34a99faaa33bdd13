"""Products with panels: right, and of every row the same whatever rows are with it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import matrices

from rqmoe_store.codecs import panels
from rqmoe_store.codecs.panels import columns_of, in_panels, multiply_with_panels, product_with_panels
from rqmoe_store.codecs.parallel import num_threads, set_num_threads
from rqmoe_store.codecs.products import product


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.one_of(st.integers(0, 20), st.integers(235, 250)),
    dim=st.one_of(st.integers(1, 40), st.integers(250, 530)),
    columns=st.integers(1, 200),
)
def test_products_are_right_and_equal_row_by_row(seed: int, rows: int, dim: int, columns: int) -> None:
    rows_nD, matrix_DE = matrices(seed, rows, dim, columns)
    kept = in_panels(matrix_DE)
    together = product_with_panels(rows_nD, kept, columns)
    exact = rows_nD.astype(np.float64) @ matrix_DE.astype(np.float64)
    np.testing.assert_allclose(together, exact, atol=1e-5 * dim)
    np.testing.assert_array_equal(together, product(rows_nD, matrix_DE))
    filled = np.full_like(together, np.nan)
    multiply_with_panels(rows_nD, kept, filled)
    np.testing.assert_array_equal(filled, together)
    for row in range(0, rows, 1 + rows // 20):
        alone = product_with_panels(rows_nD[row : row + 1], kept, columns)
        np.testing.assert_array_equal(alone[0], together[row])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 13), columns=st.integers(1, 700))
def test_products_on_several_threads_are_the_same(seed: int, rows: int, columns: int) -> None:
    rows_nD, matrix_DE = matrices(seed, rows, 70, columns)
    kept, threads, work = in_panels(matrix_DE), num_threads(), panels._TASK_WORK
    expected = product_with_panels(rows_nD, kept, columns)
    panels._TASK_WORK = 1
    try:
        for count in (2, 3, 5):
            set_num_threads(count)
            np.testing.assert_array_equal(product_with_panels(rows_nD, kept, columns), expected)
    finally:
        panels._TASK_WORK = work
        set_num_threads(threads)


@given(seed=st.integers(0, 1000), dim=st.integers(1, 20), columns=st.integers(1, 140))
def test_columns_are_those_of_the_matrix(seed: int, dim: int, columns: int) -> None:
    _, matrix_DE = matrices(seed, 1, dim, columns)
    columns_ED = columns_of(in_panels(matrix_DE), columns)
    assert columns_ED.flags.c_contiguous
    np.testing.assert_array_equal(columns_ED, matrix_DE.T)
