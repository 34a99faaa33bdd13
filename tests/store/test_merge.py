"""merge_insert: what it does to rows and codes, and what it refuses."""

import datetime

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.expr import col
from small_tables import coded, stored
from word_embedding import embed, sentences, table_of_two_vectors, text_table

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store.creation import SpooledRows
from rqmoe_store.store.health import read_drift
from rqmoe_store.store.merge import MergeResult
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, create_table

DIM = 16


def rows(wanted, **more):
    return [{"id": row, "text": f"new {row}", "vector": vector, **more} for row, vector in wanted.items()]


def upsert(store, on="id"):
    return store.merge_insert(on).when_matched_update_all().when_not_matched_insert_all()


def counts(result):
    return result.num_updated_rows, result.num_inserted_rows, result.num_deleted_rows


def test_upsert(store, codec, vectors) -> None:
    before, version = stored(store), store.version
    result = upsert(store).execute(rows({7: vectors[8], 1000: vectors[9], 9: None}))
    assert counts(result) == (2, 1, 0)
    assert (result.version, result.num_attempts, result.num_rows) == (version + 1, 1, 3)
    assert stored(store) == {
        **before,
        7: ("new 7", *coded(codec, vectors[8])),
        9: ("new 9", None, None),
        1000: ("new 1000", *coded(codec, vectors[9])),
    }


def test_row_ids_stay(store, vectors) -> None:
    read = lambda: store.table.search().where("id = 7").with_row_id(True).to_list()[0]["_rowid"]  # noqa: E731
    row_id = read()
    upsert(store).execute(rows({7: vectors[8]}))
    assert read() == row_id


def test_result_is_lancedbs(store, docs, vectors) -> None:
    mine = upsert(store).execute(rows({7: vectors[8], 1000: vectors[9]}))
    new = pa.Table.from_pylist(rows({7: vectors[8].tolist(), 1000: vectors[9].tolist()}), schema=docs.schema)
    theirs = upsert(docs).execute(new)
    for name in ("num_updated_rows", "num_inserted_rows", "num_deleted_rows", "num_attempts", "num_rows"):
        assert getattr(mine, name) == getattr(theirs, name)


def test_every_action_alone(store, codec, vectors) -> None:
    before = stored(store)
    new = {5: vectors[6], 1000: vectors[9]}
    assert counts(store.merge_insert("id").when_matched_update_all().execute(rows(new))) == (1, 0, 0)
    updated = {**before, 5: ("new 5", *coded(codec, vectors[6]))}
    assert stored(store) == updated
    assert counts(store.merge_insert("id").when_not_matched_insert_all().execute(rows(new))) == (0, 1, 0)
    inserted = {**updated, 1000: ("new 1000", *coded(codec, vectors[9]))}
    assert stored(store) == inserted
    delete = store.merge_insert("id").when_not_matched_by_source_delete("id >= 290")
    assert counts(delete.execute(rows({295: vectors[0]}))) == (0, 0, 10)
    left = {row: value for row, value in inserted.items() if row < 290 or row == 295}
    assert stored(store) == left
    assert counts(store.merge_insert("id").when_not_matched_by_source_delete(col("id") > 8).execute([])) == (
        0,
        0,
        282,
    )
    assert sorted(stored(store)) == list(range(9))
    store.merge_insert("id").when_not_matched_by_source_delete().execute([{"id": 3}])
    assert stored(store) == {3: before[3]}


def test_conditions_on_both_rows(store, vectors) -> None:
    where = "target.text = 'row 4' AND source.id < 100 -- no more"
    merge = store.merge_insert(["id"]).when_matched_update_all(where=where)
    assert counts(merge.execute(rows({4: vectors[0], 5: vectors[0]}))) == (1, 0, 0)
    assert store.count_rows("text = 'new 4' OR text = 'new 5'") == 1


def test_several_columns_together(store, codec, vectors) -> None:
    merge = upsert(store, ["id", "text"])
    new = [
        {"id": 4, "text": "row 4", "vector": vectors[0]},
        {"id": 4, "text": "row 5", "vector": vectors[1]},
        {"id": 5, "text": None, "vector": vectors[2]},
    ]
    assert counts(merge.execute(new)) == (1, 2, 0)
    # A null is like no other value.
    assert counts(merge.execute(new)) == (2, 1, 0)
    assert stored(store, "id = 4 AND text = 'row 4'") == {4: ("row 4", *coded(codec, vectors[0]))}


@pytest.mark.parametrize("keep", ["none", "float16", "float32"])
@pytest.mark.parametrize("indexed", [False, True])
def test_columns_that_are_not_given_stay(docs, codec, vectors, keep, indexed) -> None:
    store = compress(docs, codec, "store", keep_vectors=keep, progress=False)
    if indexed:
        store.table.create_index("id", config=lancedb.index.BTree())
    before, update = stored(store), store.merge_insert("id").when_matched_update_all()
    assert counts(update.execute([{"id": 7, "text": "changed"}, {"id": 999, "text": "nobody"}])) == (1, 0, 0)
    assert stored(store) == {**before, 7: ("changed", *before[7][1:])}
    version = store.version
    assert counts(update.execute([{"id": 8, "vector": vectors[0]}])) == (1, 0, 0)
    assert stored(store, "id = 8") == {8: ("row 8", *coded(codec, vectors[0]))}
    changed = store.table.search().where(f"_row_last_updated_at_version > {version}").to_list()
    assert [row["id"] for row in changed] == [8]  # which searches rely on
    if keep != "none":
        kept = {row["id"]: row["vector"] for row in store.table.search().where("id IN (7, 8)").to_list()}
        np.testing.assert_array_equal(np.float32(kept[7]), vectors[7].astype(keep).astype(np.float32))
        np.testing.assert_array_equal(np.float32(kept[8]), vectors[0].astype(keep).astype(np.float32))


def test_new_rows_without_some_columns(store, codec, vectors) -> None:
    before = stored(store)
    assert counts(upsert(store).execute([{"id": row, "vector": vectors[0]} for row in (7, 1000)])) == (
        1,
        1,
        0,
    )
    code = coded(codec, vectors[0])
    assert stored(store) == {**before, 7: ("row 7", *code), 1000: (None, *code)}


def test_streams_and_bad_vectors(store, codec, vectors) -> None:
    before = stored(store)
    bad = [float("nan")] * DIM
    parts = iter([rows({1: vectors[0], 2: bad}), rows({3: bad, 1000: vectors[1]})])
    assert counts(upsert(store).execute(parts, on_bad_vectors="drop")) == (1, 1, 0)
    assert stored(store) == {
        **before,
        1: ("new 1", *coded(codec, vectors[0])),
        1000: ("new 1000", *coded(codec, vectors[1])),
    }
    filled = upsert(store).execute(rows({2: bad}), on_bad_vectors="fill", fill_value=0.5)
    assert counts(filled) == (1, 0, 0)
    assert stored(store, "id = 2")[2][1:] == coded(codec, [0.5] * DIM)
    upsert(store).execute(rows({2: bad}), on_bad_vectors="null")
    assert stored(store, "id = 2")[2] == ("new 2", None, None)


@pytest.mark.parametrize("nothing", [[], iter([]), pa.table({"id": pa.array([], pa.int64())})])
def test_merging_nothing_changes_nothing(store, nothing) -> None:
    version = store.version
    assert upsert(store).execute(nothing) == MergeResult(
        version=version, num_updated_rows=0, num_inserted_rows=0, num_deleted_rows=0, num_attempts=0
    )
    assert store.version == version


GOOD = [1.0] * DIM


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (rows({1: GOOD}) * 2, r"several rows of the same key in the new rows: id=1\. Nothing"),
        (rows(dict.fromkeys(range(9), GOOD)) * 2, "and 6 more"),
        (iter([rows({1: GOOD}), rows({2: GOOD}), rows({1: GOOD})]), "id=1"),
        ([{"text": "a", "vector": GOOD}], "missing: id"),
        (rows({1: GOOD}, color="red"), "unknown: color"),
        (rows({1: GOOD}, vector_code=b"abcd"), "unknown: vector_code"),
        (rows({1: GOOD}, vector_partition=0), "unknown: vector_partition"),
        ([{"id": "one", "vector": GOOD}], "'id' cannot be read as int64"),
        ([{"id": None, "vector": GOOD}], "'id' has 1 nulls but allows none"),
        (rows({1: [1.0] * 3}), "another dimension.*rows 0"),
        (iter([rows({1: GOOD}), rows({2: [float("nan")] * DIM})]), "NaN or infinite.*rows 1"),
        (
            iter([rows({1: GOOD}), [{"id": 2, "vector": GOOD}]]),
            "id, text, vector at first and id, vector",
        ),
        ({"id": 1, "vector": GOOD}, "Got rows of type dict"),
    ],
)
def test_bad_rows_change_nothing(store, new, message) -> None:
    version = store.version
    with pytest.raises(InvalidInputError, match=message):
        upsert(store).execute(new)
    assert store.version == version


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (lambda store: upsert(store, "nope"), r"on=\['nope'\]; expected some of the columns id, text\."),
        (lambda store: upsert(store, "vector"), r"on=\['vector'\]"),
        (lambda store: upsert(store, ["id", "vector_code"]), "on="),
        (lambda store: upsert(store, None), "no columns to tell rows apart by.*has no key"),
        (lambda store: store.merge_insert(["id", "id"]), "several different ones"),
        (lambda store: store.merge_insert("id"), "without any action"),
        (lambda store: upsert(store).when_matched_update_all(where="text ="), "where=.*sql parser error"),
        (lambda store: upsert(store).when_matched_update_all(where="target.nope = 1"), "where=.*nope"),
        (lambda store: upsert(store).when_matched_update_all(where="id = 1; x"), "where=.*';'"),
        (lambda store: upsert(store).when_matched_update_all(where=5), "where=5"),
        (lambda store: upsert(store).when_not_matched_by_source_delete("nope = 1"), "condition=.*nope"),
        (lambda store: upsert(store).when_not_matched_by_source_delete("id > 5 ;"), "condition=.*';'"),
        (lambda store: upsert(store).when_not_matched_by_source_delete(""), "empty condition"),
    ],
)
def test_merges_that_cannot_be(store, start, message) -> None:
    version = store.version
    with pytest.raises(InvalidInputError, match=f"(?s){message}"):
        start(store).execute(rows({1: GOOD}))
    assert store.version == version


def test_an_old_handle_sees_what_others_added(store, db, vectors) -> None:
    other = CompressedTable.open(lancedb.connect(db.uri), "store")
    other.add(rows({1000: vectors[0]}))
    assert counts(upsert(store).execute(rows({1000: vectors[1]}))) == (1, 0, 0)
    assert store.count_rows("id = 1000") == 1


def test_time_is_limited(store, db, vectors, monkeypatch) -> None:
    """Another writer changes the same row whenever this one is about to."""
    other, reader = CompressedTable.open(lancedb.connect(db.uri), "store"), SpooledRows.reader

    def interfering(spooled):
        other.table.update(where="id = 1", values={"text": "theirs"})
        return reader(spooled)

    monkeypatch.setattr(SpooledRows, "reader", interfering)
    with pytest.raises(TableError, match="Others changed the same rows during each of 1 attempts"):
        upsert(store).execute(rows({1: vectors[0]}), timeout=datetime.timedelta(0))
    monkeypatch.undo()
    assert stored(other, "id = 1")[1][0] == "theirs"
    result = upsert(store).execute(rows({1: vectors[0]}))
    assert result.num_attempts == 1


# Rows that have no code yet.


def raw(store, where="true"):
    """Whether there is a code, and the raw vector, by id."""
    found = store.table.search().where(where).to_list()
    return {row["id"]: (row["vector_code"] is not None, row["vector"]) for row in found}


def test_raw_rows_of_a_table_with_a_codec(store, codec, vectors) -> None:
    store.add(rows({1000: vectors[0], 1001: vectors[1], 1002: vectors[2]}), encode=False)
    update = store.merge_insert("id").when_matched_update_all()
    update.execute([{"id": 1000, "text": "still raw"}])
    update.execute([{"id": 1001, "vector": vectors[9]}])
    update.execute([{"id": 1002, "vector": None}])
    assert raw(store, "id >= 1000") == {
        1000: (False, vectors[0].tolist()),
        1001: (True, None),
        1002: (False, None),
    }
    assert stored(store, "id = 1001")[1001][1:] == coded(codec, vectors[9])


def test_a_table_without_a_codec(db, vectors) -> None:
    schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), DIM))])
    store = create_table(db, "young", rows({1: vectors[1], 2: vectors[2]}), schema=schema)
    assert counts(upsert(store).execute(rows({2: vectors[3], 3: vectors[4]}))) == (1, 1, 0)
    wanted = {1: vectors[1], 2: vectors[3], 3: vectors[4]}
    assert raw(store) == {row: (False, vector.tolist()) for row, vector in wanted.items()}


def test_how_the_codec_fits_is_noted(store, vectors) -> None:
    store.add(rows({1000: vectors[0]}))
    upsert(store).execute(rows({1000: vectors[1], 1001: vectors[2], 1002: None}))
    upsert(store).execute([{"id": 1000, "vector": None}])
    drift = read_drift(store.table, store.codecs)
    assert (drift.sums.rows, drift.complete) == (3, True)


# Embedding functions.


@pytest.fixture
def texts(db, codec):
    return compress(text_table(db, "texts", sentences(60)), codec, "store", progress=False)


def test_text_brings_its_vector(texts, codec) -> None:
    new = [
        {"id": 7, "text": "copper"},
        {"id": 8, "text": "silver", "vector": GOOD},
        {"id": 9, "text": None},
        {"id": 900, "text": "bread"},
    ]
    assert counts(upsert(texts).execute(new)) == (3, 1, 0)
    codes = {row: code for row, (_, *code) in stored(texts, "id IN (7, 8, 9, 900)").items()}
    wanted = {7: embed("copper"), 8: GOOD, 900: embed("bread")}
    assert codes == {9: [None, None], **{row: [*coded(codec, vector)] for row, vector in wanted.items()}}


def test_without_text_vectors_stay(texts) -> None:
    before = stored(texts)
    texts.merge_insert("id").when_matched_update_all().execute([{"id": 7, "title": "another"}])
    assert stored(texts) == before and texts.count_rows("title = 'another'") == 1
    assert counts(upsert(texts).execute([{"id": 7, "title": "one"}, {"id": 900, "title": "one"}])) == (
        1,
        1,
        0,
    )
    assert stored(texts, "id < 900") == before and stored(texts, "id = 900") == {900: (None, None, None)}


def test_vectors_of_other_functions(db, codec) -> None:
    store = compress(table_of_two_vectors(db), codec, "store", progress=False)
    update = store.merge_insert("id").when_matched_update_all()
    assert counts(update.execute([{"id": 7, "title": "copper"}])) == (1, 0, 0)
    (row,) = store.table.search().where("id = 7").to_list()
    np.testing.assert_allclose(row["title_vector"], embed("copper"), rtol=1e-6)
    update.execute([{"id": 7, "text": "silver"}])
    (row,) = store.table.search().where("id = 7").to_list()
    np.testing.assert_allclose(row["title_vector"], embed("copper"), rtol=1e-6)
    assert (row["vector_code"], row["vector_partition"]) == coded(codec, embed("silver"))


@pytest.mark.parametrize("insert", [False, True])
def test_rows_with_some_columns_change_these_alone(store, insert: bool) -> None:
    """As in LanceDB: what new rows lack stays in rows that are there, and is null in those that are not."""
    before, merge = stored(store), store.merge_insert("id").when_matched_update_all()
    merge = merge.when_not_matched_insert_all() if insert else merge
    new = [{"id": 1, "text": "new"}, {"id": 2, "text": None}, {"id": 5000, "text": "new"}]
    assert counts(merge.execute(new)) == (2, int(insert), 0)
    after = stored(store)
    texts = {1: "new", 2: None} | ({5000: "new"} if insert else {})
    assert {row: values[0] for row, values in after.items() if row in texts} == texts
    assert {row: after[row][1:] for row in before} == {row: before[row][1:] for row in before}
    assert not insert or after[5000][1:] == (None, None)
