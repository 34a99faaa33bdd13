"""CodeColumns and the checks of vector columns."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.vector_arrays import (
    is_vector_type,
    read_vectors,
    require_vector_column,
    rows_per_batch,
)

COLUMNS = CodeColumns("vector")


def make_codes(rows: int, code_bytes: int, seed: int = 0) -> Codes:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 256, (rows, code_bytes), dtype=np.uint8)
    return Codes(codes, random.integers(0, 9, rows).astype(np.int32))


def as_table(codes: Codes, valid: np.ndarray) -> pa.Table:
    fields = COLUMNS.fields(codes.codes.shape[1])
    return pa.table(COLUMNS.to_arrow(codes, valid), schema=pa.schema(fields))


def test_names_follow_the_vector_column():
    assert CodeColumns("embedding").names == ("embedding_code", "embedding_partition")


@settings(deadline=None, max_examples=60)
@given(
    valid=some.lists(some.booleans(), max_size=40), code_bytes=some.integers(1, 9), cut=some.integers(0, 40)
)
def test_round_trip_keeps_codes_partitions_and_nulls(valid, code_bytes, cut):
    valid = np.array(valid, dtype=bool)
    codes = make_codes(int(valid.sum()), code_bytes)
    table = as_table(codes, valid)
    assert table["vector_code"].null_count == table["vector_partition"].null_count == int((~valid).sum())
    # Slices and chunks have offsets of their own; the result must not depend on them.
    for rows in (table, pa.concat_tables([table.slice(0, cut), table.slice(cut)])):
        read, read_valid = COLUMNS.from_arrow(rows)
        np.testing.assert_array_equal(read_valid, valid)
        np.testing.assert_array_equal(read.codes, codes.codes)
        np.testing.assert_array_equal(read.partitions, codes.partitions)


def test_from_arrow_reads_a_sliced_record_batch():
    codes = make_codes(10, 3)
    batch = as_table(codes, np.ones(10, dtype=bool)).to_batches()[0].slice(4, 5)
    np.testing.assert_array_equal(COLUMNS.from_arrow(batch)[0].codes, codes.codes[4:9])


def test_code_bytes_are_stored_as_they_are():
    table = as_table(Codes(np.array([[1, 2, 255]], np.uint8), np.array([5], np.int32)), np.array([True]))
    assert table.to_pylist() == [{"vector_code": bytes([1, 2, 255]), "vector_partition": 5}]


def test_columns_of_the_wrong_kind_are_refused():
    good = as_table(make_codes(2, 4), np.array([True, True]))
    with pytest.raises(TableError, match="no column 'vector_partition'"):
        COLUMNS.from_arrow(good.select(["vector_code"]))
    with pytest.raises(TableError, match="fixed_size_binary"):
        COLUMNS.from_arrow(good.set_column(0, "vector_code", pa.array([b"ab", b"c"])))
    with pytest.raises(TableError, match=r"fixed_size_binary\[8\]"):
        COLUMNS.require_in(good.schema, code_bytes=8)
    with pytest.raises(TableError, match="expected int32"):
        COLUMNS.from_arrow(good.set_column(1, "vector_partition", pa.array([1, 2])))
    with pytest.raises(TableError, match="already has column 'vector_code', 'vector_partition'"):
        COLUMNS.require_absent_from(good.schema)


@pytest.mark.parametrize(
    ("data_type", "expected"),
    [
        (pa.list_(pa.float32(), 4), True),
        (pa.list_(pa.float16(), 4), True),
        (pa.list_(pa.float64()), True),
        (pa.large_list(pa.int8()), True),
        (pa.list_(pa.string()), False),
        (pa.list_(pa.list_(pa.float32())), False),
        (pa.binary(4), False),
        (pa.float32(), False),
    ],
)
def test_vector_types(data_type, expected):
    assert is_vector_type(data_type) is expected


@pytest.mark.parametrize(
    "data_type",
    [
        pa.list_(pa.float32(), 2),
        pa.list_(pa.float16(), 2),
        pa.list_(pa.float64()),
        pa.large_list(pa.int16()),
    ],
)
def test_vectors_of_every_type_are_read_as_float32(data_type):
    column = pa.chunked_array([pa.array([[9, 9], [1, 2], None], data_type), pa.array([[3, 4]], data_type)])
    read, valid = read_vectors(column.slice(1), dim=2, metric="l2", first_row=0)
    assert read.dtype == np.float32
    assert read.tolist() == [[1, 2], [3, 4]]
    assert valid.tolist() == [True, False, True]


def test_a_column_of_nulls_has_no_vectors():
    read, valid = read_vectors(pa.nulls(3, pa.list_(pa.float32(), 2)), dim=2, metric="l2", first_row=0)
    assert read.shape == (0, 2)
    assert not valid.any()


def test_tensor_columns_are_vectors():
    data = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(6, dtype=np.float32).reshape(3, 2))
    require_vector_column(pa.schema([("vector", data.type)]), "vector", 2)
    read, _ = read_vectors(data, dim=2, metric="l2", first_row=0)
    assert read.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("bad", "metric", "message"),
    [
        ([1.0, float("nan")], "l2", "NaN or infinite"),
        ([float("-inf"), 1.0], "l2", "NaN or infinite"),
        ([1e300, 1.0], "l2", "NaN or infinite"),
        ([1.0, None], "l2", "missing, NaN"),
        ([1.0], "l2", "another dimension than the codec's 2"),
        ([1.0, 2.0, 3.0], "l2", "another dimension"),
        ([0.0, 0.0], "cosine", "zero"),
    ],
)
def test_bad_vectors_are_named_by_position(bad, metric, message):
    column = pa.array([[1.0, 2.0], None, bad, [3.0, 4.0], bad], pa.list_(pa.float64()))
    with pytest.raises(InvalidInputError, match=rf"{message}.*rows 102, 104 \(counted from 0\)"):
        read_vectors(column, dim=2, metric=metric, first_row=100)


def test_many_bad_vectors_are_counted():
    column = pa.array([[float("nan")]] * 8, pa.list_(pa.float32()))
    with pytest.raises(InvalidInputError, match="rows 0, 1, 2, 3, 4 and 3 more"):
        read_vectors(column, dim=1, metric="l2", first_row=0)


def test_columns_that_hold_no_vectors_are_refused():
    schema = pa.schema([("id", pa.int64()), ("emb", pa.list_(pa.float32(), 8))])
    with pytest.raises(TableError, match=r"no column 'vector'; its vector columns are \['emb'\]"):
        require_vector_column(schema, "vector", 8)
    with pytest.raises(TableError, match="none of vectors"):
        require_vector_column(pa.schema([("id", pa.int64())]), "vector", 8)
    with pytest.raises(TableError, match="'id' is int64; expected a vector column"):
        require_vector_column(schema, "id", 8)
    with pytest.raises(InvalidInputError, match="dimension 8; the codec was trained on dimension 16"):
        require_vector_column(schema, "emb", 16)


def test_batches_of_wide_vectors_are_short():
    assert rows_per_batch(4096) * 4096 * 4 <= 32 * 2**20
    assert rows_per_batch(2) == 16_384
