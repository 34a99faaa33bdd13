"""Verifying: healthy tables in all states, and every kind of damage."""

import dataclasses
import datetime
import json
import re
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from lance.fragment import RowIdSequence
from lancedb.index import FTS, BTree
from small_tables import source_table

from rqmoe_store.errors import TableError
from rqmoe_store.store import registry
from rqmoe_store.store.lance import write_fragment
from rqmoe_store.tables import compress, create_table, open_table
from rqmoe_store.verification import rows as keys
from rqmoe_store.verification.report import RowCounts, VerifyReport
from rqmoe_store.verification.run import verify

DIM = 16
VECTORS = np.random.default_rng(4).normal(size=(60, DIM)).astype(np.float32)
VECTOR = VECTORS[0]
NOW = datetime.timedelta(0)


def verified(store) -> VerifyReport:
    return store.verify(progress=False)


def problems(store) -> str:
    """All problems, of which there must be some."""
    report = verified(store)
    assert not report.ok and str(report).count("problem: ") == len(report.problems)
    return "\n".join(report.problems)


def append(store, **columns):
    """Rows that did not come through this package."""
    schema = store.table.schema
    count = len(next(iter(columns.values())))
    arrays = {
        field.name: pa.array(columns.get(field.name, [None] * count), field.type)
        for field in schema
        if field.name in columns or field.nullable
    }
    lance.write_dataset(pa.table(arrays), store.table.to_lance(), mode="append")


def data_files(store):
    """Oldest first."""
    return [
        Path(store.table.uri) / "data" / file.path
        for fragment in lance.dataset(store.table.uri).get_fragments()
        for file in fragment.data_files()
    ]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Tables that are as they should be.


def assert_healthy(store, **counts):
    before = sorted(Path(store.table.uri).rglob("*"))
    report = verified(store)
    assert report.problems == () and report.ok and report.orphans == ()
    assert dataclasses.replace(report.counts, decoded=0) == RowCounts(**counts)
    assert bool(report.counts.decoded) == bool(report.counts.coded)
    assert (report.table, report.version) == (store.name, lance.dataset(store.table.uri).version)
    assert "no problems" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["counts"]["rows"] == counts["rows"]
    assert sorted(Path(store.table.uri).rglob("*")) == before
    return report


@pytest.mark.parametrize(("keep", "metric"), [("none", "l2"), ("float16", "cosine"), ("float32", "dot")])
def test_healthy_tables(make_store, rows, training, keep, metric):
    store = make_store(coded=False, keep=keep, metric=metric)
    report = assert_healthy(store, rows=100, raw=100)
    assert (report.codecs, report.advice) == (0, ())
    store.train(training(1), progress=False)
    report = assert_healthy(store, rows=100, coded=100)
    assert (report.codecs, report.advice) == (1, ())
    store.add([*rows(100, 110), {"id": 1000, "text": "no vector", "vector": None}])
    store.add(rows(110, 120), encode=False)
    store.delete("id < 5")
    report = assert_healthy(store, rows=116, coded=105, raw=10)
    assert report.counts.empty == 1 and "1 without a vector" in str(report)
    assert report.advice == ("10 rows have no code yet; optimize() encodes them",)
    store.retrain(training(2), vectors="decoded", encode=False, progress=False)
    report = assert_healthy(store, rows=116, coded=105, raw=10, older=105)
    assert report.codecs == 2 and "105 rows are of an older codec" in report.advice[1]
    store.optimize(cleanup_older_than=NOW, codecs_older_than=NOW, progress=False)
    report = assert_healthy(store, rows=116, coded=115)
    assert (report.codecs, report.advice) == (1, ())


def test_an_empty_table_is_healthy(store):
    store.delete("true")
    assert_healthy(store, rows=0)


def test_a_sample_of_many_rows_is_decoded(store):
    row = store.table.search().where("vector_code IS NOT NULL").limit(1).to_arrow().drop(["vector"])
    code = {name: row[name].to_pylist() * 5000 for name in row.column_names}
    append(store, **code)
    counts = verified(store).counts
    assert counts.decoded == 64 + 64 and counts.coded == 5090


def test_a_branch_is_verified_on_its_own(db, store, rows):
    branch = store.table.branches.create("apart")
    branch.delete("id < 50")
    assert verify(db, "docs", branch="apart", progress=False).counts.rows == 50
    report = verified(store)
    assert report.ok and report.counts.rows == 100 and report.orphans == ()


def test_a_version_that_is_checked_out(store):
    before = store.version
    store.delete("id < 50")
    store.checkout(before)
    report = verified(store)
    assert report.ok and (report.version, report.counts.rows) == (before, 100)


def test_indexes_that_are_behind_are_told_of(store, rows):
    store.table.create_index("id", config=BTree())
    store.create_fts_index("text")
    assert len(verified(store).advice) == 1  # the raw rows
    store.add(rows(100, 120))
    assert sum("lacks 20 rows" in advice for advice in verified(store).advice) == 2
    store.optimize(progress=False)
    assert verified(store).advice == ()


def test_codecs_that_nobody_needs_are_told_of(db, store, make_store):
    assert make_store("other").codec.fingerprint != store.codec.fingerprint
    db.drop_table("other")
    assert not any("needed by no table" in advice for advice in verified(store).advice)
    ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=9)
    db.open_table(registry.REGISTRY_TABLE).update("true", {"created_at": ago})
    report = verified(store)
    assert report.ok and any(advice.startswith("1 codecs in the database") for advice in report.advice)


def test_orphaned_files_are_told_of(store):
    folder = Path(store.table.uri)
    (folder / "data" / "left.lance").write_bytes(b"x" * 1000)
    (folder / "_deletions").mkdir(exist_ok=True)
    (folder / "_deletions" / "left.arrow").write_bytes(b"x" * 10)
    report = verified(store)
    assert report.ok
    assert [(file.name, file.bytes) for file in report.orphans] == [
        ("data/left.lance", 1000),
        ("_deletions/left.arrow", 10),
    ]
    assert "2 files, 1,010 bytes" in str(report) and "data/left.lance (1,000 bytes)" in str(report)


# Rows.


def test_codes_and_partitions(store):
    assert store.codecs.num_partitions == 2
    append(
        store,
        id=[1, 2, 3, 4, 5, 6],
        vector_code=[b"\0\0\0\0", None, b"\xff\0\0\0", b"\0\0\0\x10", b"\0\0\0\0", b"\0\0\0\0"],
        vector_partition=[None, 0, 0, 1, 2, -1],
    )
    found = problems(store)
    assert "2 rows have a code without a partition, or a partition without a code: _rowid" in found
    assert "2 rows have a code that their codec does not have" in found
    assert "2 rows are in a partition that no codec of the table has" in found
    assert verified(store).counts.rows == 106


@pytest.fixture
def refined(make_store):
    """A table with refine codes of 8 bytes."""
    return make_store("refined", refine_bytes=8)


def test_refine_codes(refined, training, rows):
    assert_healthy(refined, rows=100, coded=90, raw=10)
    code = {"vector_code": [b"\0\0\0\0"] * 2, "vector_partition": [0] * 2}
    append(refined, id=[1, 2], **code, vector_refine=[b"\0" * 8, None])
    assert "1 rows lack the refine code that their codec gave them: _rowid" in problems(refined)
    for query in (refined.search(VECTOR), refined.search().select(["vector"])):
        with pytest.raises(TableError, match="1 rows without the refine code of 8 bytes"):
            query.limit(200).to_list()


def test_refine_codes_of_a_codec_that_has_none(refined, training):
    plain = dataclasses.replace(refined.codec.config, refine_bytes=0)
    refined.retrain(training(3), vectors="decoded", config=plain, encode=False, progress=False)
    assert_healthy(refined, rows=100, coded=90, raw=10, older=90)
    append(refined, id=[1], vector_code=[b"\0\0\0\0"], vector_partition=[2], vector_refine=[b"\0" * 8])
    assert "1 rows have a refine code, and their codec has none: _rowid" in problems(refined)


@pytest.mark.parametrize("damage", ["gone", "other width", "truncated", "other file"])
def test_damaged_refine_codes(db, refined, damage):
    dataset = refined.table.to_lance()
    if damage in ("gone", "other width"):
        dataset.drop_columns(["vector_refine"])
        if damage == "other width":
            dataset = lance.dataset(dataset.uri)
            dataset.add_columns(pa.schema([pa.field("vector_refine", pa.binary(5))]))
        expected = {
            "gone": "no column 'vector_refine'",
            "other width": "'vector_refine' is fixed_size_binary\\[5",
        }
        assert re.search(
            f"columns: .*{expected[damage]}", "\n".join(verify(db, "refined", progress=False).problems)
        )
        with pytest.raises(TableError, match=expected[damage]):
            open_table(db, "refined")
        with pytest.raises(TableError, match=expected[damage]):
            refined.search(VECTOR).to_list()
        return
    docs = db.create_table("docs", source_table(VECTORS))
    store = compress(docs, refined.codec, "grouped", progress=False)
    dataset = lance.dataset(store.table.uri)
    (place,) = [field.id() for field in dataset.lance_schema.fields() if field.name() == "vector_refine"]
    (fragment,) = dataset.get_fragments()
    (name,) = [file.path for file in fragment.data_files() if list(file.fields) == [place]]
    path = Path(dataset.uri) / "data" / name
    if damage == "truncated":
        truncate(path)
    else:
        path.write_bytes((Path(dataset.uri) / "data" / fragment.data_files()[0].path).read_bytes())
    assert "codes and vectors cannot be read" in "\n".join(verify(db, "grouped", progress=False).problems)
    with pytest.raises(TableError):
        open_table(db, "grouped").search(VECTOR).limit(5).to_list()


def test_the_rows_are_named(store):
    append(store, id=[1] * 7, vector_code=[b"\xff\0\0\0"] * 7, vector_partition=[0] * 7)
    scanner = lance.dataset(store.table.uri).scanner(
        columns=[], filter="vector_code = X'FF000000'", with_row_id=True
    )
    found = scanner.to_table()
    first = ", ".join(map(str, found["_rowid"].to_pylist()[:5]))
    assert f"_rowid {first} and others" in problems(store)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_vectors(make_store, metric):
    store = make_store(metric=metric)
    bad = [[np.nan] * DIM, [1.0] * 15 + [np.inf], [1.0] * 15 + [None], [0.0] * DIM, None]
    append(store, id=[1, 2, 3, 4, 5], vector=bad)
    found = problems(store)
    assert "3 rows have a vector with missing, NaN or infinite values" in found
    assert ("1 rows have a vector that is zero" in found) == (metric == "cosine")


def test_vectors_that_should_have_been_kept(make_store):
    store = make_store(keep="float16")
    append(store, id=[1], vector_code=[b"\0\0\0\0"], vector_partition=[0])
    assert "1 rows have a code and no vector, which this table keeps" in problems(store)


def test_rows_of_one_id(store):
    dataset = lance.dataset(store.table.uri)
    (first, *_) = dataset.get_fragments()
    ids = dataset.scanner(columns=[], fragments=[first], with_row_id=True).to_table()["_rowid"].to_numpy()
    rows = dataset.scanner(fragments=[first]).to_table()
    new = write_fragment(dataset, rows.schema, iter(rows.to_batches()))
    new.row_id_meta = RowIdSequence(ids.tolist()).to_inline_metadata()
    operation = lance.LanceOperation.Update(removed_fragment_ids=[], new_fragments=[new])
    lance.LanceDataset.commit(dataset.uri, operation, read_version=dataset.version)
    assert f"{len(ids)} rows have the id of another row: _rowid 0, 1, 2, 3, 4 and others" in problems(store)


@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.binary()])
def test_keys(db, make_store, kind, monkeypatch):
    def key(number):
        return number if kind == pa.int64() else f"key {number}" if kind == pa.string() else b"%d" % number

    schema = pa.schema([pa.field("name", kind, nullable=False), ("vector", pa.list_(pa.float32(), DIM))])
    store = create_table(db, "keyed", schema=schema)
    lance.dataset(store.table.uri).update_field_metadata(
        {"name": {"lance-schema:unenforced-primary-key:position": "1"}}
    )
    append(store, name=[key(number) for number in range(10)])
    assert verified(store).ok
    append(store, name=[key(3), key(7), key(3), *map(key, range(20, 30))])
    found = problems(store)
    assert f"2 values of the key 'name' are there more than once: {key(3)!r} (3 rows), {key(7)!r}" in found
    monkeypatch.setattr(keys, "_MOST_SUSPECTS", 1)
    assert "2 values of the key 'name' are there" in problems(store)


def test_rows_that_are_counted_and_not_there(store):
    dataset = lance.dataset(store.table.uri)
    metadata = [fragment.metadata for fragment in dataset.get_fragments()]
    first = json.loads(json.dumps(metadata[0].to_json()))
    first["physical_rows"] += 7
    wrong = [lance.fragment.FragmentMetadata.from_json(json.dumps(first)), *metadata[1:]]
    operation = lance.LanceOperation.Overwrite(dataset.lance_schema, wrong)
    lance.LanceDataset.commit(dataset.uri, operation, read_version=dataset.version)
    assert "read 10 rows; the table counts 107" in problems(store)


# Files.


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
@pytest.mark.parametrize("place", [0, 1])
def test_data_files(store, damage, place):
    store.table.create_index("id", config=BTree())
    path = data_files(store)[place]
    damage(path)
    (Path(store.table.uri) / "data" / "left.lance").write_bytes(b"x")
    report = verified(store)
    found = "\n".join(report.problems)
    assert f"({path.name}): codes and vectors cannot be read" in found
    assert f"({path.name}): column 'text' cannot be read" in found
    assert (f"data file data/{path.name} is missing; this version needs it" in found) == (not path.exists())
    assert report.counts.rows == (10, 90)[place] and "the table counts 100" in found
    assert [file.name for file in report.orphans] == ["data/left.lance"]  # the rest was looked at
    assert ".rs:" not in found


def test_files_that_only_an_older_version_needs(store):
    (path, *_) = data_files(store)
    store.optimize(progress=False)
    assert path not in data_files(store)
    path.unlink()
    report = verified(store)
    assert report.ok
    assert report.advice == (
        f"data file data/{path.name} is missing, which an older version or another branch needs: that cannot "
        "be restored",
    )


def test_deletion_files(store):
    store.delete("id = 3")
    for path in (Path(store.table.uri) / "_deletions").iterdir():
        truncate(path)
    assert "codes and vectors cannot be read" in problems(store)


def test_index_files(store):
    store.table.create_index("text", config=FTS())
    for path in (Path(store.table.uri) / "_indices").rglob("*tokens*"):
        truncate(path)
    assert "tokens.lance cannot be read; make the index again" in problems(store)


def test_a_table_that_cannot_be_opened(db, store):
    for path in (Path(store.table.uri) / "_versions").glob("*.manifest"):
        truncate(path)
    report = verify(db, "docs", progress=False)
    assert not report.ok and report.version is None
    assert report.problems[0].startswith("the table cannot be opened: ")
    assert "table 'docs': 1 problems" in str(report)


def test_no_such_table(db, store):
    with pytest.raises(TableError, match="no table 'dogs'"):
        verify(db, "dogs", progress=False)


# Marks, columns and codecs.


def set_marks(store, **marks):
    dataset = lance.dataset(store.table.uri)
    dataset.update_schema_metadata({f"rqmoe_store.{name}": text for name, text in marks.items()})


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ({"generations": "?"}, "metadata: .*rqmoe_store.generations"),
        ({"format_version": None}, "metadata: .*is not a compressed table"),
        ({"dim": "17"}, "codec 1 of 1: .*codec of dim 17"),
        ({"vector_column": "text"}, "columns: .*no column 'text_code'"),
        ({"keep_vectors": "some"}, "columns: .*keeps vectors as 'some'"),
        ({"embedding_function": "?"}, "embedding function: "),
    ],
)
def test_marks(db, store, marks, message):
    set_marks(store, **marks)
    truncate(data_files(store)[0])
    report = verify(db, "docs", progress=False)
    assert any(
        pa.compute.match_substring_regex(pa.array([each]), message)[0].as_py() for each in report.problems
    )
    assert any("cannot be read" in each for each in report.problems)  # the rest was looked at
    assert report.counts.rows >= 10


@pytest.mark.parametrize("key", ["tuned_search", "drift", "ingested.job"])
def test_notes(store, key):
    lance.dataset(store.table.uri).update_metadata({f"rqmoe_store.{key}": "?"})
    assert "'?'" in problems(store) or "JSONDecodeError" in problems(store)


def test_a_column_that_was_dropped(db, store):
    store.table.drop_columns(["vector_partition"])
    report = verify(db, "docs", progress=False)
    assert len(report.problems) >= 1 and "no column 'vector_partition'" in "".join(report.problems)
    assert report.counts.rows == 100


@pytest.mark.parametrize("damage", ["gone", "weights", "registry"])
@pytest.mark.parametrize("older", [False, True])
def test_codecs(db, make_store, training, damage, older):
    store = make_store()  # not opened: what was read of the registry would be known
    needed = store.codec.fingerprint
    if older:
        store.retrain(training(4), vectors="decoded", encode=False, progress=False)
    table = db.open_table(registry.REGISTRY_TABLE)
    if damage == "registry":
        for path in (Path(table.uri) / "data").iterdir():
            truncate(path)
    else:
        row = table.search().where(f"fingerprint = '{needed}'").to_list()[0]
        table.delete(f"fingerprint = '{needed}'")
        if damage == "weights":
            table.add([{**row, "weights": row["weights"][:-1]}])
    report = verify(db, "docs", progress=False)
    expected = {"gone": "no codec with", "weights": "is damaged", "registry": "cannot be read"}[damage]
    found = [each for each in report.problems if each.startswith(f"codec 1 of {1 + older}: ")]
    assert len(found) == 1 and expected in found[0]
    assert report.counts.rows == 100 and report.codecs == (older and damage != "registry")


def test_damaged_copies_of_an_intact_codec(db, store):
    table = db.open_table(registry.REGISTRY_TABLE)
    table.add([{**table.to_arrow().to_pylist()[0], "weights": b""}])
    report = verified(store)
    assert report.ok and any("1 of 2 copies of codec" in advice for advice in report.advice)
