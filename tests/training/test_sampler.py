"""Sampling vectors from tables and arrays."""

import re
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.training.sampler import sample_vectors


def table_of(folder: Path, vectors: pa.Array, **columns: object):
    """A table whose column "numbers" holds the vectors: LanceDB itself polices columns it takes for
    vectors by their name, and leaves this one alone."""
    data = pa.table({"numbers": vectors, **columns})
    return lancedb.connect(folder).create_table("docs", data, mode="overwrite")


def numbered(rows: int) -> np.ndarray:
    return np.repeat(np.arange(1, rows + 1, dtype=np.float32)[:, None], 3, axis=1)


def fixed(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])


def sample(data: object, **changes: object) -> np.ndarray:
    arguments = {"vector_column": "numbers", "metric": "l2", "max_rows": 10**6, "seed": 0, **changes}
    return sample_vectors(data, **arguments)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 300), max_rows=st.integers(2, 300), seed=st.integers(0, 99), from_table=st.booleans()
)
def test_distinct_rows_in_random_order(
    tmp_path: Path, rows: int, max_rows: int, seed: int, from_table: bool
) -> None:
    vectors = numbered(rows)
    data = table_of(tmp_path, fixed(vectors)) if from_table else vectors
    sampled = sample(data, max_rows=max_rows, seed=seed)
    assert len(sampled) == min(rows, max_rows)
    assert len(np.unique(sampled[:, 0])) == len(sampled)
    assert set(sampled[:, 0]) <= set(vectors[:, 0])
    np.testing.assert_array_equal(sampled, sample(data, max_rows=max_rows, seed=seed))


def test_sample_covers_the_whole_table(tmp_path: Path) -> None:
    sampled = sample(table_of(tmp_path, fixed(numbered(4000))), max_rows=1000)
    assert 1700 < sampled[:, 0].mean() < 2300
    assert not np.all(np.diff(sampled[:, 0]) > 0)


def test_nulls_are_left_out(tmp_path: Path) -> None:
    vectors = pa.array([[1.0, 2.0], None, [3.0, 4.0], None], pa.list_(pa.float32(), 2))
    sampled = sample(table_of(tmp_path, vectors))
    assert sorted(sampled.tolist()) == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("value_type", [pa.float16(), pa.float32(), pa.float64()])
def test_column_types(tmp_path: Path, value_type: pa.DataType) -> None:
    values = np.arange(12).astype(value_type.to_pandas_dtype())
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values, value_type), 4)
    assert sorted(sample(table_of(tmp_path, vectors))[:, 0].tolist()) == [0.0, 4.0, 8.0]


def test_lists_of_variable_length(tmp_path: Path) -> None:
    same = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32()))
    assert sample(table_of(tmp_path, same)).shape == (2, 2)
    mixed = pa.array([[1.0, 2.0], [3.0]], pa.list_(pa.float32()))
    with pytest.raises(InvalidInputError, match=r"dimensions \[1, 2\]"):
        sample(table_of(tmp_path, mixed))


def test_unusable_columns(tmp_path: Path) -> None:
    table = table_of(tmp_path, fixed(numbered(3)), text=pa.array(["a", "b", "c"]))
    with pytest.raises(TableError, match=r"no column 'embedding'; it has \['numbers', 'text'\]"):
        sample(table, vector_column="embedding")
    with pytest.raises(TableError, match="has type string"):
        sample(table, vector_column="text")
    words = table_of(tmp_path, pa.array([["1.5", "2"]], pa.list_(pa.string())))
    with pytest.raises(TableError, match="holds lists of string"):
        sample(words)
    nulls = table_of(tmp_path, pa.array([None, None], pa.list_(pa.float32(), 2)))
    with pytest.raises(TableError, match="only nulls"):
        sample(nulls)


@pytest.mark.parametrize("from_table", [True, False])
@pytest.mark.parametrize("max_rows", [20_000, 19_900])
def test_bad_rows_are_named_by_their_position(tmp_path: Path, from_table: bool, max_rows: int) -> None:
    vectors = numbered(20_000)
    bad = [7, 9000, 13_000, 19_998]
    vectors[bad] = np.nan
    data = table_of(tmp_path, fixed(vectors)) if from_table else vectors
    with pytest.raises(InvalidInputError, match="contain NaN") as caught:
        sample(data, max_rows=max_rows)
    named = re.search(r"rows ([\d, ]+) \(counted", str(caught.value))
    assert named is not None
    assert {int(row) for row in named.group(1).split(",")} <= set(bad)


def test_tensors_of_any_float_type() -> None:
    vectors = torch.arange(12, dtype=torch.bfloat16).reshape(4, 3)
    assert sorted(sample(vectors)[:, 0].tolist()) == [0.0, 3.0, 6.0, 9.0]
