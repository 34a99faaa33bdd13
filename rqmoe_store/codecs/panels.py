"""Matrix products with a matrix that is kept in panels of sixteen columns, for one that is used many times.

A panel has its numbers one after the other, so that reading them takes what memory gives, whatever the width
of the matrix. Sums of a few rows with a panel stay in the registers of the processor until they are complete:
six rows with one panel are twelve vectors of eight numbers, or six of sixteen, which is what processors have
room for. A sum runs over the components in their order, as in `products`: every row is rounded alike,
whatever rows are multiplied with it.

Shape legend: n rows, D components, E columns of the matrix, X panels, W columns of a panel.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

from rqmoe_store.codecs.llvm_vectors import load_vector, repeat, store_vector
from rqmoe_store.codecs.parallel import compiled, num_threads, run_parallel
from rqmoe_store.codecs.vectors import Float32Array

WIDTH = 16
"""Columns of a panel."""

_AT_ONCE = 4
"""Panels that a single row is multiplied with at a time. The number of panels is a multiple."""

_BLOCK_ROWS = 240
"""Rows that are multiplied with one panel after the other, while they stay in the caches of the core."""

_TASK_WORK = 2**22
"""Least multiply-adds of a task: about 0.1 ms. Less is not worth another thread."""


def in_panels(matrix_DE: Float32Array) -> Float32Array:
    """The panels (X, D, W) of a matrix, with zeros for columns that it lacks."""
    dim, columns = matrix_DE.shape
    panels = _AT_ONCE * -(-columns // (WIDTH * _AT_ONCE))
    padded_DE = np.zeros((dim, panels * WIDTH), np.float32)
    padded_DE[:, :columns] = matrix_DE
    return np.ascontiguousarray(padded_DE.reshape(dim, panels, WIDTH).transpose(1, 0, 2))


def columns_of(panels_XDW: Float32Array, columns: int) -> Float32Array:
    """The columns (E, D) of the matrix with these panels, each of contiguous numbers."""
    columns_ED = panels_XDW.transpose(0, 2, 1).reshape(-1, panels_XDW.shape[1])
    return np.ascontiguousarray(columns_ED[:columns])


def product_with_panels(rows_nD: Float32Array, panels_XDW: Float32Array, columns: int) -> Float32Array:
    """The product (n, E) of C-contiguous rows with the matrix of `columns` columns that has these panels, on
    all cores if it is large."""
    products_nE = np.empty((len(rows_nD), columns), np.float32)
    panels, tasks = -(-columns // WIDTH), products_nE.size * rows_nD.shape[1] // _TASK_WORK
    if tasks < 2 or (tasks := min(num_threads(), tasks)) == 1:
        _multiply(rows_nD, panels_XDW, 0, panels, products_nE)
        return products_nE
    step = _AT_ONCE * max(1, -(-panels // (tasks * _AT_ONCE)))
    run_parallel(
        functools.partial(_multiply, rows_nD, panels_XDW, start, min(start + step, panels), products_nE)
        for start in range(0, panels, step)
    )
    return products_nE


@compiled
def multiply_with_panels(rows_nD: Any, panels_XDW: Any, products_nE: Any) -> None:
    """Fill in the whole product, as `product_with_panels` computes it."""
    for top in range(0, len(rows_nD), _BLOCK_ROWS):
        bottom = min(top + _BLOCK_ROWS, len(rows_nD))
        panels = (products_nE.shape[1] + WIDTH - 1) // WIDTH
        _multiply(rows_nD[top:bottom], panels_XDW, 0, panels, products_nE[top:bottom])


@compiled
def _multiply(rows_nD: Any, panels_XDW: Any, first: int, last: int, products_nE: Any) -> None:
    """Fill in the columns of the panels from `first` to `last`; `first` is a multiple of the panels that
    single rows take at once."""
    rows, columns = products_nE.shape
    sums_nW = np.empty((rows, _AT_ONCE * WIDTH), np.float32)
    for start in range(first, last, _AT_ONCE):
        begin, end = WIDTH * start, min(WIDTH * (start + _AT_ONCE), WIDTH * last, columns)
        if end - begin == _AT_ONCE * WIDTH:
            _multiply_some(rows_nD, panels_XDW, start, products_nE, begin)
        else:  # the last columns
            _multiply_some(rows_nD, panels_XDW, start, sums_nW, 0)
            products_nE[:, begin:end] = sums_nW[:, : end - begin]


@compiled
def _multiply_some(rows_nD: Any, panels_XDW: Any, panel: int, products_nX: Any, column: int) -> None:
    """Fill in the products with some panels from `panel` on, in the columns from `column` on."""
    rows = len(rows_nD)
    if rows < 3:
        for row in range(rows):
            _multiply_one(rows_nD, row, panels_XDW, panel, products_nX, column)
        return
    for offset in range(_AT_ONCE):
        place = column + WIDTH * offset
        # The last rows are multiplied again if they are fewer than a tile has.
        if rows >= 6:
            for row in range(0, rows, 6):
                _multiply_six(rows_nD, min(row, rows - 6), panels_XDW, panel + offset, products_nX, place)
        else:
            for row in range(0, rows, 3):
                _multiply_three(rows_nD, min(row, rows - 3), panels_XDW, panel + offset, products_nX, place)


def _tile(rows: int, panels: int) -> Callable[..., Any]:
    """A function that multiplies so many rows, from `row` on, with so many panels, from `panel` on, and fills
    in the products in the columns from `column` on."""

    def compile_tile(
        typing_context: Any,
        rows_nD: Any,
        row: Any,
        panels_XDW: Any,
        panel: Any,
        products_nX: Any,
        column: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            factors, values, products = (
                context.make_array(signature.args[number])(context, builder, arguments[number])
                for number in (0, 2, 4)
            )
            dim, width = (_width(builder, each) for each in (factors, products))
            row_starts = [_offset(builder, arguments[1], each, dim) for each in range(rows)]
            panel_size = builder.mul(dim, ir.Constant(dim.type, WIDTH))
            panel_starts = [_offset(builder, arguments[3], each, panel_size) for each in range(panels)]
            zeros = ir.Constant(ir.VectorType(ir.FloatType(), WIDTH), [0.0] * WIDTH)
            sums = [[_variable(builder, zeros) for _ in range(panels)] for _ in range(rows)]
            with cgutils.for_range(builder, dim) as loop:
                place = builder.mul(loop.index, ir.Constant(dim.type, WIDTH))
                own = [_load(builder, values, builder.add(start, place)) for start in panel_starts]
                for start, totals in zip(row_starts, sums, strict=True):
                    factor = builder.load(builder.gep(factors.data, [builder.add(start, loop.index)]))
                    _add_products(builder, repeat(builder, factor, WIDTH), own, totals)
            for each, totals in enumerate(sums):
                start = builder.add(_offset(builder, arguments[1], each, width), arguments[5])
                for number, total in enumerate(totals):
                    place = builder.add(start, ir.Constant(dim.type, WIDTH * number))
                    store_vector(builder, builder.load(total), builder.gep(products.data, [place]))
            return context.get_dummy_value()

        given = rows_nD, types.intp, panels_XDW, types.intp, products_nX, types.intp
        return types.void(*given), generate

    made: Callable[..., Any] = intrinsic(compile_tile)
    return made


def _width(builder: Any, matrix: Any) -> Any:
    """Columns of a matrix."""
    return cgutils.unpack_tuple(builder, matrix.shape)[1]  # type: ignore[no-untyped-call]


def _variable(builder: Any, value: Any) -> Any:
    """A variable that has a value first."""
    return cgutils.alloca_once_value(builder, value)  # type: ignore[no-untyped-call]


def _offset(builder: Any, first: Any, more: int, size: Any) -> Any:
    """Where item `first + more` begins, of items of a size."""
    return builder.mul(builder.add(first, ir.Constant(size.type, more)), size)


def _load(builder: Any, values: Any, place: Any) -> Any:
    return load_vector(builder, builder.gep(values.data, [place]), ir.FloatType(), WIDTH)


def _add_products(builder: Any, factor: Any, values: list[Any], totals: list[Any]) -> None:
    """Add a factor times values to totals, in one instruction where there is one."""
    for value, total in zip(values, totals, strict=True):
        added = builder.fmul(factor, value, flags=("contract",))
        builder.store(builder.fadd(builder.load(total), added, flags=("contract",)), total)


_multiply_six, _multiply_three, _multiply_one = _tile(6, 1), _tile(3, 1), _tile(1, _AT_ONCE)
