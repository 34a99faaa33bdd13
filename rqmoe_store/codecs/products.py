"""Matrix products in compiled loops: every row is rounded alike, whatever rows are multiplied with it.

A sum runs over the components in their order, for a row alone as for four rows at a time. The inner loops run
over the columns of the matrix, which compilers vectorize without reordering a sum.

Shape legend: n rows, D components, E columns of the matrix.
"""

import functools
from typing import Any

import numpy as np

from rqmoe_store.codecs.parallel import compiled, run_parallel
from rqmoe_store.codecs.vectors import Float32Array

_TASK_COLUMNS = 2_048
"""Columns of a task: a few rows of sums and of the matrix fit the cache of a core."""

_BLOCK_COLUMNS, _BLOCK_COMPONENTS = 512, 256
"""A block of the matrix that stays in the cache while several rows are multiplied with it."""

_TASK_WORK = 2**22
"""Least multiply-adds of a task: about half a millisecond. Less is not worth another thread."""


def product(rows_nD: Float32Array, matrix_DE: Float32Array) -> Float32Array:
    """The product (n, E) of two C-contiguous matrices, on all cores if it is large."""
    products_nE = np.empty((len(rows_nD), matrix_DE.shape[1]), np.float32)
    columns = max(_TASK_COLUMNS, _TASK_WORK // max(1, rows_nD.size))
    run_parallel(
        functools.partial(multiply_columns, rows_nD, matrix_DE, start, start + columns, products_nE)
        for start in range(0, matrix_DE.shape[1], columns)
    )
    return products_nE


@compiled
def multiply_rows(rows_nD: Any, matrix_DE: Any, products_nE: Any) -> None:
    """Fill in the whole product."""
    multiply_columns(rows_nD, matrix_DE, 0, matrix_DE.shape[1], products_nE)


@compiled
def multiply_columns(rows_nD: Any, matrix_DE: Any, first: int, last: int, products_nE: Any) -> None:
    """Fill in the columns from `first` to `last` of the product."""
    rows, dim = rows_nD.shape
    last = min(last, matrix_DE.shape[1])
    products_nE[:, first:last] = 0
    in_fours = rows - rows % 4
    # A single row uses the matrix once, whatever stays in the cache.
    width, height = (_BLOCK_COLUMNS, _BLOCK_COMPONENTS) if rows > 1 else (last - first, dim)
    for left in range(first, last, max(1, width)):
        right = min(left + width, last)
        for start in range(0, dim, height):
            stop = min(start + height, dim)
            for row in range(0, in_fours, 4):
                _add_four(rows_nD, row, matrix_DE, start, stop, left, right, products_nE)
            for row in range(in_fours, rows):
                _add_one(rows_nD, row, matrix_DE, start, stop, left, right, products_nE)


# Columns are sliced from whole rows, whose layout tells the compiler that they are contiguous.


@compiled
def _add_one(
    rows_nD: Any, row: int, matrix_DE: Any, start: int, stop: int, first: int, last: int, products_nE: Any
) -> None:
    """Add the products of one row: eight components at a time, for fewer reads and writes of sums."""
    row_D, sums_C = rows_nD[row], products_nE[row, first:last]
    in_eights = stop - (stop - start) % 8
    for place in range(start, in_eights, 8):
        a, b, c, d = row_D[place], row_D[place + 1], row_D[place + 2], row_D[place + 3]
        e, f, g, h = row_D[place + 4], row_D[place + 5], row_D[place + 6], row_D[place + 7]
        a_C, b_C = matrix_DE[place, first:last], matrix_DE[place + 1, first:last]
        c_C, d_C = matrix_DE[place + 2, first:last], matrix_DE[place + 3, first:last]
        e_C, f_C = matrix_DE[place + 4, first:last], matrix_DE[place + 5, first:last]
        g_C, h_C = matrix_DE[place + 6, first:last], matrix_DE[place + 7, first:last]
        for column in range(len(sums_C)):
            total = sums_C[column] + a * a_C[column] + b * b_C[column] + c * c_C[column]
            total = total + d * d_C[column] + e * e_C[column] + f * f_C[column]
            sums_C[column] = total + g * g_C[column] + h * h_C[column]
    for place in range(in_eights, stop):
        factor, values_C = row_D[place], matrix_DE[place, first:last]
        for column in range(len(sums_C)):
            sums_C[column] += factor * values_C[column]


@compiled
def _add_four(
    rows_nD: Any, row: int, matrix_DE: Any, start: int, stop: int, first: int, last: int, products_nE: Any
) -> None:
    """Add the products of four rows, four components at a time: all rows use what is read of the matrix."""
    one_C, two_C = products_nE[row, first:last], products_nE[row + 1, first:last]
    three_C, four_C = products_nE[row + 2, first:last], products_nE[row + 3, first:last]
    one_D, two_D, three_D, four_D = rows_nD[row], rows_nD[row + 1], rows_nD[row + 2], rows_nD[row + 3]
    in_fours = stop - (stop - start) % 4
    for place in range(start, in_fours, 4):
        a_C, b_C = matrix_DE[place, first:last], matrix_DE[place + 1, first:last]
        c_C, d_C = matrix_DE[place + 2, first:last], matrix_DE[place + 3, first:last]
        a1, b1, c1, d1 = one_D[place], one_D[place + 1], one_D[place + 2], one_D[place + 3]
        a2, b2, c2, d2 = two_D[place], two_D[place + 1], two_D[place + 2], two_D[place + 3]
        a3, b3, c3, d3 = three_D[place], three_D[place + 1], three_D[place + 2], three_D[place + 3]
        a4, b4, c4, d4 = four_D[place], four_D[place + 1], four_D[place + 2], four_D[place + 3]
        for column in range(len(one_C)):
            a, b, c, d = a_C[column], b_C[column], c_C[column], d_C[column]
            one_C[column] = one_C[column] + a1 * a + b1 * b + c1 * c + d1 * d
            two_C[column] = two_C[column] + a2 * a + b2 * b + c2 * c + d2 * d
            three_C[column] = three_C[column] + a3 * a + b3 * b + c3 * c + d3 * d
            four_C[column] = four_C[column] + a4 * a + b4 * b + c4 * c + d4 * d
    for each in range(row, row + 4):
        _add_one(rows_nD, each, matrix_DE, in_fours, stop, first, last, products_nE)
