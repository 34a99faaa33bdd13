"""Tables made with a key, and tables that may exist already."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from small_tables import source_table, tiny_codec

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store.keys import key_of
from rqmoe_store.table import CompressedTable
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
    assert key_of(store.table.to_lance().checkout_version(1).schema) == "id"  # whoever opens it merges by it
    with pytest.raises(InvalidInputError, match=r"Got key='vector'; expected .* here "):
        create_table(db, "bad", rows, key="vector")
    with pytest.raises(InvalidInputError, match="several rows of the same key"):
        create_table(db, "bad", rows, key="lang")
    assert "bad.lance" not in names(db)


def asked(db: lancedb.DBConnection, **changes: Any) -> CompressedTable:
    config = CodecConfig(code_bytes=4, metric="cosine", kind="rq", codebook_size=16)
    rows = source_table(VECTORS)
    arguments = {"schema": rows.schema, "config": config, "exist_ok": True}
    return create_table(db, "notes", **{**arguments, **changes})


def test_a_table_that_exists_is_opened(db: lancedb.DBConnection) -> None:
    rows = source_table(VECTORS)
    assert len(asked(db, data=rows, key="id")) == ROWS
    version = asked(db, key="id").version
    assert len(asked(db)) == ROWS
    assert asked(db, schema=None, config=None).metric == "cosine"
    assert open_table(db, "notes").version == version  # nothing was written
    more = [{"id": 1000, "lang": "en", "text": "new", "vector": VECTORS[0]}]
    assert len(asked(db, data=more, schema=None)) == ROWS + 1
    asked(db).train(TrainConfig(epochs=0, progress=False), progress=False)
    assert asked(db).codec.config.code_bytes == 4
    with pytest.raises(TableError, match="exists already"):
        asked(db, exist_ok=False)
    with pytest.raises(TableError, match="has the key 'id'"):
        asked(db, key="text")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": source_table(VECTORS[:, :5]).schema}, r"dimension 8 \(expected 5\)"),
        ({"config": CodecConfig(code_bytes=4)}, r"metric 'cosine' \(expected 'l2'\)"),
        ({"config": CodecConfig(code_bytes=8, metric="cosine")}, r"code_bytes 4 \(expected 8\)"),
        ({"keep_vectors": "float16"}, r"keep_vectors 'none' \(expected 'float16'\)"),
        ({"vector_column": "v", "schema": None}, r"vector_column 'vector' \(expected 'v'\)"),
    ],
)
def test_another_table_than_asked_for(db: lancedb.DBConnection, changes: Any, message: str) -> None:
    version = asked(db).version
    with pytest.raises(TableError, match=message):
        asked(db, data=source_table(VECTORS), **changes)
    assert open_table(db, "notes").version == version


def test_tables_that_are_none_of_ours(db: lancedb.DBConnection) -> None:
    db.create_table("notes", source_table(VECTORS))
    with pytest.raises(TableError, match="not a compressed table"):
        asked(db)
    db.drop_table("notes")
    with pytest.raises(InvalidInputError, match="neither data nor schema"):
        asked(db, schema=None)
    with pytest.raises(InvalidInputError, match="cannot be a table name"):
        create_table(db, "a b", schema=source_table(VECTORS).schema, exist_ok=True)


# Others at work on the same table.


def rows_after(act: Callable[[], Any], vectors: Any = VECTORS) -> Iterator[pa.Table]:
    """Rows of which the first come when `act` has been called."""
    act()
    yield source_table(vectors)


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("own", [0, ROWS])
def test_a_table_that_others_make_meanwhile(db: lancedb.DBConnection, own: int, others: int) -> None:
    theirs = [{"id": -1, "lang": "en", "text": "theirs", "vector": VECTORS[0]}][:others]
    make = functools.partial(asked, db, data=theirs or None)
    with pytest.raises(TableError, match="Another process made table 'notes' meanwhile"):
        asked(db, data=rows_after(make, VECTORS[:own]), exist_ok=False)
    assert len(open_table(db, "notes")) == others
    db.drop_table("notes")
    store = asked(db, data=rows_after(make, VECTORS[:own]))
    assert sorted(store.table.to_arrow()["id"].to_pylist()) == [*[-1][:others], *range(own)]


@pytest.mark.parametrize("others", [0, 1])
def test_bad_rows_do_nothing_to_a_table_that_others_make_meanwhile(
    db: lancedb.DBConnection, others: int
) -> None:
    good = [{"id": row, "lang": "en", "text": "good", "vector": VECTORS[row]} for row in range(others)]
    with pytest.raises(InvalidInputError, match="NaN"):
        asked(db, data=rows_after(lambda: asked(db, data=good or None), VECTORS * np.nan))
    assert len(open_table(db, "notes")) == others


def test_a_table_is_there_with_its_first_rows_or_not_at_all(db: lancedb.DBConnection) -> None:
    def begin(mine: int) -> int:
        rows = [{"id": row, "lang": "en", "text": "", "vector": VECTORS[row]} for row in (mine, ROWS - 1)]
        other = lancedb.connect(db.uri)
        try:
            create_table(other, "begun", rows, key="id")
        except TableError:
            merge = open_table(other, "begun").merge_insert("id").when_matched_update_all()
            merge.when_not_matched_insert_all().execute(rows)
            return 0
        return 1

    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(begin, range(4))) == 1
        assert sorted(open_table(db, "begun").table.to_arrow()["id"].to_pylist()) == [*range(4), ROWS - 1]
        assert db.open_table("begun", version=1).count_rows() == 2
        db.drop_table("begun")


def test_a_key_that_old_rows_cannot_have(db: lancedb.DBConnection) -> None:
    asked(db, data=source_table(VECTORS))
    with pytest.raises(InvalidInputError, match="several rows of the same key"):
        asked(db, data=source_table(VECTORS), key="lang")
    assert len(asked(db)) == ROWS


@pytest.mark.parametrize("mode", ["overwrite", "append", None])
def test_tables_are_not_overwritten(tmp_path, mode) -> None:
    db = lancedb.connect(tmp_path)
    rows = [{"id": 1, "vector": [1.0, 2.0]}]
    store = create_table(db, "docs", rows, mode="create")
    with pytest.raises(InvalidInputError, match=r"drop_table\('docs'\)"):
        create_table(db, "docs", rows, mode=mode)
    assert len(store) == 1
