"""Types that are accepted as vectors, and error messages for all others."""

import decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as extra

from rqmoe_store.codecs.vectors import as_vectors
from rqmoe_store.errors import InvalidInputError

ROWS = [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]


@given(extra.arrays(np.float32, (4, 3), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_clean_arrays_pass_unchanged(rows: np.ndarray) -> None:
    vectors = as_vectors(rows)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    np.testing.assert_array_equal(vectors, rows)


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint16", "int64", "float16", "float64", "longdouble", ">f4"]
)
def test_numbers_of_any_type(dtype: str) -> None:
    np.testing.assert_array_equal(as_vectors(np.array(ROWS).astype(dtype)), ROWS)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.bfloat16, torch.float64])
def test_tensors_of_any_type(dtype: torch.dtype) -> None:
    np.testing.assert_array_equal(as_vectors(torch.tensor(ROWS).to(dtype)), ROWS)
    np.testing.assert_array_equal(as_vectors(torch.tensor(ROWS, requires_grad=True)), ROWS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([["1.5", "2"]], "text"),
        (np.array([[b"1"]]), "text"),
        (np.array([["1.5"]], dtype=np.dtypes.StringDType()), "text"),
        (np.array(ROWS, dtype=complex), "ndarray of complex128 .*complex"),
        (torch.zeros(2, 3, dtype=torch.complex64), r"Tensor of torch.complex64 .*complex"),
        (np.array(ROWS, dtype=object), "ndarray of object .*astype"),
        (np.array([["1.5", 2.0]], dtype=object), "objects"),
        (np.array([np.ones(3), None], dtype=object), r"np\.stack"),
        ([[decimal.Decimal("1.5")]], "objects"),
        ([[None, 1.0]], "objects"),
        (None, "NoneType .*objects"),
        (np.array([["2020-01-01"]], dtype="datetime64[s]"), "dates"),
        (np.array([[1]], dtype="timedelta64[s]"), "durations"),
        (np.zeros(2, dtype=[("a", "f4")]), "records"),
        (torch.eye(3).to_sparse(), "to_dense"),
        ([[1.0, 2.0], [1.0]], "same length"),
    ],
)
def test_types_that_are_not_vectors(data: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read as float32 vectors") as caught:
        as_vectors(data)
    caught.match(message)
