"""Batches of Ray Data as the tables that are stored."""

import numpy as np
import pyarrow as pa
import pytest
from ray.data.extensions import ArrowTensorArray
from rqmoe_ray.batches import plain_table

import rqmoe_store as rqs


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_tensors_become_lists(rows):
    vectors = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    column = pa.chunked_array([ArrowTensorArray.from_numpy(vectors)] * 2)
    plain = plain_table(pa.table({"id": range(2 * rows), "vector": column}))
    assert plain.schema.field("vector").type == pa.list_(pa.float32(), 3)
    assert plain["vector"].to_pylist() == [*vectors.tolist(), *vectors.tolist()]


def test_slices_of_tensors():
    vectors = np.arange(30, dtype=np.float64).reshape(10, 3)
    table = pa.table({"vector": ArrowTensorArray.from_numpy(vectors)}).slice(4, 3)
    assert plain_table(table)["vector"].to_pylist() == vectors[4:7].tolist()


def test_the_rest_is_left_as_it_is():
    table = pa.table({"a": [1, None], "b": [["x"], None], "c": [{"d": 1.5}, None]})
    assert plain_table(table).equals(table)


def test_other_tensors_are_refused():
    column = ArrowTensorArray.from_numpy(np.zeros((2, 3, 4)))
    with pytest.raises(rqs.InvalidInputError, match="Column 'image' of the dataset is"):
        plain_table(pa.table({"image": column}))
