"""Tables made with a key."""

from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from small_tables import source_table, tiny_codec

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.tables import compress, create_table, open_table

ROWS, DIM = 120, 8
VECTORS = np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32)
CODEC = tiny_codec(VECTORS, "l2", 2)


@pytest.fixture
def db(tmp_path: Path) -> lancedb.DBConnection:
    return lancedb.connect(tmp_path)


def docs(db: lancedb.DBConnection, ids: Any = None) -> Any:
    rows = source_table(VECTORS)
    if ids is not None:
        rows = rows.set_column(0, "id", pa.array(ids))
    return db.create_table("docs", rows, storage_options={"new_table_enable_stable_row_ids": "true"})


def names(db: lancedb.DBConnection) -> set[str]:
    return {path.name for path in Path(db.uri).glob("*.lance")}


@pytest.mark.parametrize("how", [{"into": "small"}, {"in_place": True}])
def test_compressing_with_a_key(db: lancedb.DBConnection, how: dict[str, Any]) -> None:
    store = compress(docs(db), CODEC, key="id", progress=False, **how)
    assert store.key == open_table(db, store.name).key == "id"
    merge = store.merge_insert().when_matched_update_all().when_not_matched_insert_all()
    new = [{"id": row, "lang": "fr", "text": "new", "vector": VECTORS[0]} for row in (5, 1000)]
    assert merge.execute(new).num_inserted_rows == 1
    assert store.search(VECTORS[0]).where("lang = 'fr'").to_arrow().num_rows == 2


@pytest.mark.parametrize("how", [{"into": "small"}, {"in_place": True}])
@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([*range(ROWS - 1), 7], InvalidInputError, r"same key in table 'docs': id=7\."),
        ([*range(ROWS - 1), None], TableError, "Column 'id' of table 'docs' has nulls"),
        (
            [float(row) for row in range(ROWS)],
            InvalidInputError,
            r"Got key='id'; expected .* here lang, text",
        ),
    ],
)
def test_rows_that_the_key_does_not_tell_apart(
    db: lancedb.DBConnection, how: dict[str, Any], ids: Any, error: type[Exception], message: str
) -> None:
    table = docs(db, ids)
    with pytest.raises(error, match=message):
        compress(table, CODEC, key="id", progress=False, **how)
    table.checkout_latest()
    assert table.version == 1 and names(db) == {"docs.lance"}


def test_the_key_of_the_source_is_kept(db: lancedb.DBConnection) -> None:
    table = docs(db)
    table.alter_columns({"path": "id", "nullable": False})
    table.set_unenforced_primary_key("id")
    store = compress(table, CODEC, "small", progress=False)
    assert store.key == "id"
    with pytest.raises(TableError, match="has the key 'id', which cannot be changed to 'text'"):
        compress(table, CODEC, "other", key="text", progress=False)
    assert "other.lance" not in names(db)


def test_creating_with_a_key(db: lancedb.DBConnection) -> None:
    rows = source_table(VECTORS)
    store = create_table(db, "young", rows, key="id")
    assert (store.key, len(store)) == ("id", ROWS)
    assert create_table(db, "empty", schema=rows.schema, key="text").key == "text"
    with pytest.raises(InvalidInputError, match="Got column 'vector'"):
        create_table(db, "bad", rows, key="vector")
    with pytest.raises(InvalidInputError, match="several rows of the same key"):
        create_table(db, "bad", rows, key="lang")
    assert "bad.lance" not in names(db)
