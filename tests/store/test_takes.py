"""Rows by id in the order asked for."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from rqmoe_store.errors import TableError
from rqmoe_store.store.lance import take_rows

ROWS = 60


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    import lancedb

    options = {"new_table_enable_stable_row_ids": "true"}
    db = lancedb.connect(tmp_path_factory.mktemp("takes"))
    rows = pa.table({"id": range(ROWS), "text": [f"row {row}" for row in range(ROWS)]})
    table = db.create_table("docs", rows.slice(0, 40), storage_options=options)
    table.add(rows.slice(40))
    table.delete("id = 7")
    return table


def ids_of(table):
    rows = table.search().with_row_id(True).to_arrow()
    return dict(zip(rows["id"].to_pylist(), rows["_rowid"].to_pylist(), strict=True))


@settings(deadline=None, max_examples=20)
@given(wanted=some.lists(some.integers(0, ROWS - 1).filter(lambda row: row != 7), unique=True, min_size=1))
def test_rows_come_in_the_order_asked_for(table, wanted):
    row_ids = ids_of(table)
    asked = np.array([row_ids[row] for row in wanted], dtype=np.uint64)
    texts, ids = take_rows(table, ["text", "id"], asked)
    assert ids.to_pylist() == wanted
    assert texts.to_pylist() == [f"row {row}" for row in wanted]


def test_no_columns_and_missing_rows(table):
    assert take_rows(table, [], np.array([0], dtype=np.uint64)) == []
    with pytest.raises(TableError, match="Took 1 of 2 rows of 'docs'"):
        take_rows(table, ["id"], np.array([ids_of(table)[3], 10**6], dtype=np.uint64))
