"""Columns are taken by row id: in result order, of rows that still exist, wherever these are stored now."""

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from costly_examples import costly_examples
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.search.columns import DISTANCE, QUERY_INDEX, ROW_ID, ResultColumns, take
from rqmoe_store.search.rerank import Hits
from rqmoe_store.store import lance

ROWS = 300
MISSING = [ROWS + 50, 2**32 + 1, 2**40, 2**63 - 1]
"""Row ids that no row has, some beyond 32 bits."""


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Rows by row id, and the dataset, of three versions: as written, changed, and compacted."""
    options = {"new_table_enable_stable_row_ids": "true"}
    db = lancedb.connect(tmp_path_factory.mktemp("db"))
    parts = [
        pa.table({"id": pa.array(range(first, first + 100)), "s": [f"text {row}" for row in range(100)]})
        for first in range(0, ROWS, 100)
    ]
    table = db.create_table("docs", parts[0], storage_options=options)
    found = []
    for change in [
        lambda: [table.add(part) for part in parts[1:]],
        lambda: (table.delete("id % 7 = 0"), table.update(where="id % 5 = 1", values={"s": "new"})),
        lambda: table.to_lance().optimize.compact_files(),
    ]:
        change()
        table.checkout_latest()
        rows = table.search().with_row_id(True).to_arrow().to_pylist()
        found.append(({row[ROW_ID]: row for row in rows}, table.to_lance()))
    assert found[0][1].has_stable_row_ids
    return found


def hits_of(row_ids: list[int]) -> Hits:
    ids = np.array(row_ids, np.uint64)
    zeros = np.zeros(len(ids), np.int64)
    return Hits(ids, np.arange(len(ids), dtype=np.float32), stages_S=zeros, estimates_S=zeros.astype(float))


chosen_rows = st.lists(st.integers(0, ROWS - 1) | st.sampled_from(MISSING), unique=True, max_size=40)


@pytest.mark.parametrize("version", [0, 1, 2])
@costly_examples(100, part=25)
@given(queries=st.lists(chosen_rows, min_size=1, max_size=4), with_sql=st.booleans(), rows=st.integers(1, 50))
def test_rows_that_exist_in_result_order(versions, version, queries, with_sql, rows) -> None:
    """Hits of the first version, taken from it or a later one."""
    stored, dataset = versions[version]
    first = list(versions[0][0])
    hits = [hits_of([first[row] if row < ROWS else row for row in rows_S]) for rows_S in queries]
    sql = {"twice": "2 * id"} if with_sql else {}
    chosen = ResultColumns({name: name for name in ["s", "id", *sql]}, sql)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lance, "_TAKEN_ROWS", rows)
        found = take(dataset, hits, chosen, ["s", "id"])
    expected = [
        {
            QUERY_INDEX: query,
            DISTANCE: float(place),
            ROW_ID: row_id,
            "s": stored[row_id]["s"],
            "id": stored[row_id]["id"],
            **({"twice": 2 * stored[row_id]["id"]} if with_sql else {}),
        }
        for query, each in enumerate(hits)
        for place, row_id in enumerate(each.row_ids_S.tolist())
        if row_id in stored
    ]
    assert found.to_pylist() == expected
    assert found.schema.field("id").type == pa.int64()


def test_row_ids_alone_tell_which_rows_exist(versions) -> None:
    stored, dataset = versions[1]
    row_ids = [*versions[0][0], *MISSING]
    found = take(dataset, [hits_of(row_ids)], ResultColumns({}, {}), [])
    assert found[ROW_ID].to_pylist() == [row_id for row_id in row_ids if row_id in stored]


def test_a_table_whose_row_ids_are_addresses(tmp_path) -> None:
    """Those of its second file are beyond 32 bits."""
    table = lancedb.connect(tmp_path).create_table("docs", pa.table({"id": range(3)}))
    table.add(pa.table({"id": range(3, 6)}))
    dataset = table.to_lance()
    assert not dataset.has_stable_row_ids
    found = take(dataset, [hits_of([2**32 + 2, 1, 2**32])], ResultColumns({"id": "id"}, {}), ["id"])
    assert found["id"].to_pylist() == [5, 1, 3]
