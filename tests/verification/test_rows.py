"""Values that come more than once."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.verification import rows
from rqmoe_store.verification.rows import Duplicates


@pytest.mark.parametrize("chunk", [1, 2, 5, 1000])
@given(values=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=40), part=st.integers(1, 50))
def test_the_repeated_ones_are_found(tmp_path_factory, chunk, values, part):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_CHUNK", chunk)
        found = Duplicates(tmp_path_factory.mktemp("values") / "file", len(values))
        for start in range(0, len(values), part):
            found.add(np.array(values[start : start + part], dtype=np.uint64))
        expected = sorted(value for value, count in collections.Counter(values).items() if count > 1)
        assert found.repeated().tolist() == expected


def test_more_than_announced_are_not_looked_at(tmp_path):
    found = Duplicates(tmp_path / "file", 2)
    for _ in range(3):
        found.add(np.array([1, 1, 2, 2], dtype=np.uint64))
    assert found.repeated().tolist() == [1]
