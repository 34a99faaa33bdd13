"""Matrix products: right, and of every row the same whatever rows are with it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import matrices

from rqmoe_store.codecs import products
from rqmoe_store.codecs.parallel import num_threads, set_num_threads
from rqmoe_store.codecs.products import multiply_rows, product


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(0, 11),
    dim=st.one_of(st.integers(1, 40), st.integers(250, 530)),
    columns=st.one_of(st.integers(1, 40), st.integers(500, 1_100)),
)
def test_products_are_right_and_equal_row_by_row(seed: int, rows: int, dim: int, columns: int) -> None:
    rows_nD, matrix_DE = matrices(seed, rows, dim, columns)
    together = product(rows_nD, matrix_DE)
    exact = rows_nD.astype(np.float64) @ matrix_DE.astype(np.float64)
    np.testing.assert_allclose(together, exact, atol=1e-5 * dim)
    for row in range(rows):
        np.testing.assert_array_equal(product(rows_nD[row : row + 1], matrix_DE)[0], together[row])
    filled = np.full_like(together, np.nan)
    multiply_rows(rows_nD, matrix_DE, filled)
    np.testing.assert_array_equal(filled, together)


@pytest.mark.parametrize("rows", [1, 6])
def test_products_on_several_threads_are_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_nD, matrix_DE = matrices(1, rows, 70, 1_000)
    expected, threads = product(rows_nD, matrix_DE), num_threads()
    monkeypatch.setattr(products, "_TASK_COLUMNS", 96)
    monkeypatch.setattr(products, "_TASK_WORK", 1)
    try:
        set_num_threads(3)
        np.testing.assert_array_equal(product(rows_nD, matrix_DE), expected)
    finally:
        set_num_threads(threads)
