"""Sources into tables: all rows, in bounded parts, and only what is new when asked again."""

import dataclasses
import datetime
import json
import os
import time

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from small_sources import DIM, rows_of

import rqmoe_store as rqs
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.ingestion import writer

NOW = datetime.timedelta(0)


def ingest(source, into, **settings):
    return rqs.ingest(source, into, **{"progress": False, **settings})


def ids(store, name="id"):
    store.table.checkout_latest()
    return sorted(store.table.to_arrow()[name].to_pylist())


def encoded_as_by_add(store, codec, count):
    """Whether the rows are what the codec makes of `rows_of(count)`."""
    table = store.table.to_arrow().sort_by("id")
    codes = codec.encode(np.array(rows_of(count)["vector"].to_pylist(), dtype=np.float32))
    assert table["text"].to_pylist() == rows_of(count)["text"].to_pylist()
    assert table["vector_code"].to_pylist() == [bytes(code) for code in codes.codes]
    assert table["vector_partition"].to_pylist() == codes.partitions.tolist()
    assert table["vector_refine"].to_pylist() == [bytes(code) for code in codes.refine]
    assert table["vector"].null_count == count


@pytest.fixture
def folder(tmp_path):
    """Three Parquet files of 40 rows each, of which every 16th is bad in the second one."""
    folder = tmp_path / "source"
    folder.mkdir()
    for place in range(3):
        rows = rows_of(40, 40 * place).to_pylist()
        if place == 1:
            for row in rows[::16]:
                row["vector"][2] = float("nan")
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{place}.parquet", row_group_size=15)
    return folder


GOOD = [row for row in range(120) if row not in (40, 56, 72)]


@pytest.mark.parametrize("commit_rows", [7, 40, 1000])
def test_files_in_commits_of_any_size(folder, store, codec, commit_rows):
    report = ingest(folder, store, commit_rows=commit_rows)
    assert ids(store) == GOOD
    assert dataclasses.replace(report, seconds=0.0, bytes_read=0) == rqs.IngestReport(
        table="docs", quarantine="docs_quarantine", rows=117, quarantined=3, pieces=3, skipped=0,
        bytes_read=0, seconds=0.0,
    )  # fmt: skip
    assert report.bytes_read > 120 * 4 * DIM
    added = [fragment.count_rows() for fragment in store.table.to_lance().get_fragments()]
    assert max(added) <= commit_rows
    assert store.health().rows == 117 and store.health().complete


def test_rows_are_encoded_as_by_add(store, codec):
    ingest(rows_of(100), store)
    encoded_as_by_add(store, codec, 100)


def test_asked_again_only_what_is_new_is_added(folder, store):
    ingest(folder, store)
    again = ingest(folder, store)
    assert (again.rows, again.quarantined, again.skipped) == (0, 0, 3)
    pq.write_table(rows_of(10, 500), folder / "00.parquet")  # comes first in order
    more = ingest(pads.dataset(folder), store)
    assert (more.rows, more.skipped, more.pieces) == (10, 3, 4)
    (folder / "1.parquet").unlink()
    assert ingest(folder, store).rows == 0
    assert ids(store) == [*GOOD, *range(500, 510)]
    assert store.table.count_rows() == len(set(ids(store)))


def test_a_file_that_changed_is_refused(folder, store):
    ingest(folder, store)
    version = store.table.to_lance().latest_version
    os.utime(folder / "1.parquet")
    with pytest.raises(InvalidInputError, match=r"1\.parquet has changed .* resume=False"):
        ingest(folder, store)
    assert store.table.to_lance().latest_version == version
    assert ingest(folder, store, resume=False).rows == 117
    assert ids(store) == sorted(GOOD * 2)
    assert ingest(folder, store).rows == 0


def test_what_was_ingested_is_known_after_upkeep(folder, db, codec):
    ingest(folder, (db, "docs"), codec=codec)
    store = rqs.open_table(db, "docs")
    for _ in range(2):
        store.optimize(cleanup_older_than=NOW, progress=False)
        db.open_table("docs_quarantine").optimize(cleanup_older_than=NOW)
        report = ingest(folder, store)
        assert (report.rows, report.quarantined) == (0, 0)
    assert store.health().complete
    assert store.health().rows == 117


def test_lance_tables(db, store, codec):
    source = db.create_table("source", rows_of(60))
    source.add(rows_of(40, 60))
    source.delete("id = 7")
    assert ingest(source, store, commit_rows=30).rows == 99
    source.add(rows_of(5, 100))
    report = ingest(source.uri, store)
    assert (report.rows, report.skipped, report.pieces) == (5, 2, 3)
    assert ids(store) == [row for row in range(105) if row != 7]
    ingested_at = source.version
    source.to_lance().optimize.compact_files()
    source.checkout_latest()
    with pytest.raises(InvalidInputError, match=rf"changed .* version {ingested_at} then"):
        ingest(source, store)
    assert ingest(db.open_table("source", version=ingested_at), store).rows == 0


def test_arrays_with_metadata(tmp_path, store, codec):
    rows = rows_of(70)
    np.save(tmp_path / "v.npy", np.array(rows["vector"].to_pylist(), dtype=np.float32))
    pq.write_table(rows.drop_columns("vector"), tmp_path / "rows.parquet")
    assert ingest(tmp_path / "v.npy", store, metadata=tmp_path / "rows.parquet", commit_rows=32).rows == 70
    encoded_as_by_add(store, codec, 70)
    assert ingest(tmp_path / "v.npy", store, metadata=str(tmp_path / "rows.parquet")).rows == 0


def test_streams_are_resumed_by_name(store):
    def stream(count):
        return iter(rows_of(count).to_batches(9))

    assert ingest(stream(50), store, job="mine").rows == 50
    assert ingest(stream(80), store, job="mine").rows == 30
    assert ingest(rows_of(80).to_reader(7), store, job="mine").rows == 0
    assert ids(store) == list(range(80))
    with pytest.raises(InvalidInputError, match="has 20 rows, but 80"):
        ingest(stream(20), store, job="mine")
    assert ingest(stream(20), store).rows == 20
    assert ingest(stream(20), store, job="another").rows == 20
    assert ids(store) == sorted([*range(80), *range(20), *range(20)])


def test_a_new_table(folder, db, codec, tmp_path):
    codec.save(tmp_path / "codec")
    for name, given in {"one": codec, "two": tmp_path / "codec"}.items():
        assert ingest(folder, (db, name), codec=given).rows == 117
        assert ingest(folder, (db, name), codec=given).rows == 0
        store = rqs.open_table(db, name)
        assert store.schema.names == ["id", "text"]
        assert ids(store) == GOOD
        hits = store.search(rows_of(6)["vector"][5].as_py()).limit(5).to_list()
        assert 5 in [hit["id"] for hit in hits]
    with pytest.raises(TableError, match=r"no table 'three', .* codec="):
        ingest(folder, (db, "three"))
    other = rqs.train(
        np.random.default_rng(1).normal(size=(50, DIM)).astype(np.float32),
        config=rqs.CodecConfig(kind="rq", code_bytes=2, codebook_size=4, beam=1),
        training=rqs.TrainConfig(epochs=0, progress=False),
    )
    with pytest.raises(InvalidInputError, match="has another one already"):
        ingest(folder, (db, "one"), codec=other)


def test_nothing_is_made_for_a_source_that_does_not_fit(db, codec, tmp_path):
    pq.write_table(rows_of(3, dim=5), tmp_path / "narrow.parquet")
    pq.write_table(rows_of(3).append_column("vector_code", rows_of(3)["id"]), tmp_path / "ours.parquet")
    for source, error, message in (
        (tmp_path / "narrow.parquet", InvalidInputError, "dimension 5"),
        (tmp_path / "ours.parquet", TableError, "already has column"),
        (rows_of(3).drop_columns("vector"), TableError, "no column 'vector'"),
    ):
        with pytest.raises(error, match=message):
            ingest(source, (db, "docs"), codec=codec)
    assert "docs" not in db.list_tables().tables


@pytest.mark.parametrize("keep_vectors", ["none", "float16"])
def test_raw_rows_are_encoded_later(db, codec, keep_vectors):
    table = (db, "docs")
    ingest(rows_of(100), table, codec=codec, encode=False, keep_vectors=keep_vectors, commit_rows=30)
    store = rqs.open_table(db, "docs")
    raw = store.table.to_arrow()
    assert (raw["vector_code"].null_count, raw["vector"].null_count) == (100, 0)
    assert store.search(rows_of(6)["vector"][5].as_py()).limit(1).to_list()[0]["id"] == 5
    assert store.optimize(progress=False).encoded.rows == 100
    if keep_vectors == "none":
        encoded_as_by_add(store, codec, 100)


def test_a_table_without_a_codec_takes_rows_raw(db):
    store = rqs.create_table(db, "docs", schema=rows_of(0).schema)
    assert ingest(rows_of(20), store).rows == 20
    assert store.table.to_arrow()["vector"].null_count == 0
    with pytest.raises(TableError, match="no codec yet"):
        ingest(rows_of(20), store, encode=True)


def test_columns_can_be_chosen_and_vectors_be_called_otherwise(store, codec):
    rows = rows_of(30).rename_columns({"vector": "embedding"})
    rows = rows.append_column("more", rows["id"]).append_column("vector_code", rows["id"])
    with pytest.raises(InvalidInputError, match="unknown: more"):
        ingest(rows, store, vector_column="embedding")
    ingest(rows, store, vector_column="embedding", columns=["text", "id"])
    encoded_as_by_add(store, codec, 30)
    with pytest.raises(InvalidInputError, match="no columns"):
        ingest(rows, store, columns=["absent"])


def test_bad_rows_can_be_an_error(folder, store, db):
    with pytest.raises(InvalidInputError, match=r"Row 0 of .*1\.parquet cannot be ingested"):
        ingest(folder, store, on_bad_rows="error", commit_rows=30)
    assert ids(store) == list(range(30))  # the commit that the bad row is in is not made
    assert "docs_quarantine" not in db.list_tables().tables
    report = ingest(folder, store)
    assert (report.rows, report.quarantined) == (87, 3)
    assert ids(store) == GOOD


def test_bad_rows_with_reason_and_place(folder, store, db):
    ingest(folder, store)
    bad = db.open_table("docs_quarantine").to_arrow().sort_by("position").to_pylist()
    assert [(row["source"], row["position"]) for row in bad] == [
        (str(folder / "1.parquet"), position) for position in (0, 16, 32)
    ]
    assert {row["reason"] for row in bad} == {"vector with missing, NaN or infinite values (as float32)"}


def test_bad_rows_do_not_pile_up_in_memory(store, db, monkeypatch):
    monkeypatch.setattr(writer, "_BAD_BYTES", 2_000)
    rows = rows_of(60).set_column(2, "vector", pa.array([[1.0]] * 60))
    assert ingest(rows.to_reader(5), store, commit_rows=50).quarantined == 60
    quarantine = db.open_table("docs_quarantine").to_lance()
    assert max(fragment.count_rows() for fragment in quarantine.get_fragments()) <= 50
    monkeypatch.setattr(writer, "_BAD_BYTES", 100)
    monkeypatch.setattr("rqmoe_store.store.metadata.rows_per_batch", lambda dim: 5)
    assert ingest(rows, store, commit_rows=50).quarantined == 60
    quarantine = db.open_table("docs_quarantine").to_lance()
    assert min(fragment.count_rows() for fragment in quarantine.get_fragments()) == 5


def test_only_a_few_blocks_are_in_memory(store):
    ahead, most = 0, 0

    def batches():
        nonlocal ahead, most
        for read, batch in enumerate(rows_of(400).to_batches(10), start=1):
            yield batch
            ahead = 10 * read - store.table.to_lance().count_rows()
            most = max(most, ahead)

    ingest(batches(), store, commit_rows=10)
    assert ids(store) == list(range(400))
    assert 10 <= most <= 100  # reading never runs far ahead of writing


def test_an_iterator_is_not_run_through_ahead_of_the_table(store, monkeypatch):
    yielded = committed = distance = 0
    real = writer.commit_rows

    def counting(*arguments):
        nonlocal committed
        committed += 10
        return real(*arguments)

    def batches():
        nonlocal yielded, distance
        for first in range(0, 400, 10):
            yielded += 10
            distance = max(distance, yielded - committed)
            yield rows_of(10, first)

    monkeypatch.setattr(writer, "commit_rows", counting)
    ingest(batches(), store, commit_rows=10)
    assert distance <= 10 * 9


def test_two_at_the_same_time_do_not_add_twice(folder, store, db):
    def batches():
        yield rows_of(10)
        while db.open_table("docs").count_rows() < 10:
            time.sleep(0.01)
        other = lancedb.connect(db.uri)
        rqs.ingest(rows_of(30), (other, "docs"), job="mine", progress=False)
        yield rows_of(20, 10)

    with pytest.raises(TableError, match="Another process"):
        ingest(batches(), store, job="mine", commit_rows=10)
    assert ids(store) == list(range(30))


def test_a_warning_when_rows_do_not_fit_the_codec(store):
    rows = rows_of(300).to_pylist()
    for row in rows:
        row["vector"] = [value * 9 for value in row["vector"]]
    with pytest.warns(UserWarning, match="does not fit") as warned:
        ingest(pa.Table.from_pylist(rows), store)
    assert warned[0].filename == __file__


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_bad_rows": "drop"}, "on_bad_rows='drop'"),
        ({"commit_rows": 0}, "commit_rows=0"),
        ({"commit_rows": 2.5}, "commit_rows=2.5"),
        ({"job": ""}, "job=''"),
        ({"into": "docs"}, "a database and the name"),
        ({"source": 3}, "type int"),
    ],
)
def test_arguments_that_cannot_be_used(store, settings, message):
    with pytest.raises(InvalidInputError, match=message):
        ingest(**{"source": rows_of(1), "into": store, **settings})


def test_the_report_in_words(folder, store):
    ingest(folder, store)
    pq.write_table(rows_of(10, 500), folder / "new.parquet")
    lines = str(ingest(folder, store)).splitlines()
    assert lines[0].startswith("10 rows added to 'docs' in ")
    assert "rows/s" in lines[0]
    assert lines[1] == "3 of 4 pieces had been ingested before"


def test_progress_is_shown(folder, store, capsys):
    ingest(folder, store, progress=True)
    shown = " ".join(capsys.readouterr().out.split())
    assert "Ingesting" in shown and "120 rows" in shown and "rows/s" in shown


def test_a_pattern_a_list_and_their_folder_are_one_source(folder, store, codec):
    files = [folder / f"{place}.parquet" for place in (2, 0)]
    assert ingest(files, store).rows == 80
    assert ingest(folder / "*.parquet", store).rows == 37
    assert ingest(folder, store).rows == ingest(iter(files), store).rows == 0
    pq.write_table(rows_of(40, 120), folder / "3.parquet")
    assert ingest(f"{folder}/[0-9].parquet", store).rows == 40
    assert ids(store) == [*GOOD, *range(120, 160)]
    with pytest.raises(InvalidInputError, match="nothing at"):
        ingest([folder / "3.parquet", folder / "4.parquet"], store, resume=False)
    assert len(store) == 157


@pytest.mark.parametrize(
    "form",
    [
        lambda rows: rows.to_pylist(),
        lambda rows: iter(rows.to_pylist()),
        lambda rows: (rows.slice(start, 7).to_pylist() for start in range(0, len(rows), 7)),
        lambda rows: pads.dataset(rows).scanner(),
        lambda rows: rows.to_reader(max_chunksize=7),
        lambda rows: [rows.slice(0, 9).to_reader(), rows.slice(9).to_reader()],
    ],
)
def test_streams_of_every_form(store, codec, form):
    assert ingest(form(rows_of(2100)), store, job="mine", commit_rows=500).rows == 2100
    assert ingest(form(rows_of(2200)), store, job="mine").rows == 100
    encoded_as_by_add(store, codec, 2200)


def test_columns_that_only_some_rows_have(folder, store, tmp_path):
    """They are known when the file that has them is read, which is before any row of it is written."""
    more = pa.array(["lost"] * 40)
    pq.write_table(rows_of(40, 200).append_column("more", more), folder / "9.parquet")
    with pytest.raises(InvalidInputError, match=r"9\.parquet has columns .* \(more\).*columns="):
        ingest(folder, store)
    before = ids(store)
    assert not set(before) & set(range(200, 240))
    assert ingest(folder, store, columns=["id", "text"]).rows == 157 - len(before)
    stream = [rows_of(10, 300), rows_of(10, 310).append_column("more", more[:10])]
    with pytest.raises(InvalidInputError, match=r"has columns that its first rows have not \(more\)"):
        ingest(iter(stream), store)
    assert ingest(iter(stream), store, columns=["id", "text"]).rows == 20


@pytest.fixture
def nested(db, codec):
    meta = pa.struct([("author", pa.string()), ("year", pa.int64())])
    schema = pa.schema(
        [("id", pa.int64()), ("metas", pa.list_(meta)), ("vector", pa.list_(pa.float32(), DIM))]
    )
    docs = db.create_table("docs", schema=schema)
    docs.add([{"id": -1, "metas": [{"author": "Ann", "year": 1}], "vector": [1.0] * DIM}])
    return rqs.compress(docs, codec, "nested", progress=False)


def with_metas(*metas):
    rows = rows_of(len(metas)).drop_columns("text").to_pylist()
    return [{**row, "metas": [meta]} for row, meta in zip(rows, metas, strict=True)]


@pytest.mark.parametrize("form", ["dicts", "table", "parquet", "jsonl", "arrow"])
def test_unknown_fields_are_refused_with_the_source(nested, tmp_path, form):
    rows = with_metas({"author": "Bo", "year": 2}, {"author": "Bo", "years": 2})
    table = pa.Table.from_pylist(rows)
    path = tmp_path / f"rows.{form}"
    if form == "parquet":
        pq.write_table(table, path)
    elif form == "arrow":
        feather.write_feather(table, path)
    elif form == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    source = {"dicts": rows, "table": table}.get(form, path)
    with pytest.raises(InvalidInputError, match=r"unknown: metas\[\]\.years"):
        ingest(source, nested)
    assert len(nested) == 1 and nested.version == nested.table.version


def test_unknown_fields_of_later_files(nested, tmp_path):
    for name, rows in {
        "a": with_metas({"author": "Bo"}),
        "b": with_metas({"author": "Bo", "born": 1}),
    }.items():
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        feather.write_feather(pa.Table.from_pylist(rows), tmp_path / f"{name}.arrow")
    for ending in ("parquet", "arrow"):
        with pytest.raises(InvalidInputError, match=r"metas\[\]\.born"):
            ingest(tmp_path / f"*.{ending}", nested)


def test_values_that_do_not_fit_go_into_quarantine(nested, db):
    rows = with_metas({"author": "Bo", "year": 2.0}, {"author": "Bo", "year": 2.5}, {"author": None})
    report = ingest(rows, nested)
    assert (report.rows, report.quarantined) == (2, 1)
    (bad,) = db.open_table(report.quarantine).to_arrow().to_pylist()
    assert (bad["position"], "2.5" in bad["reason"]) == (1, True)


def test_text_that_reads_like_numbers_in_csv(db, codec, tmp_path):
    schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), DIM))])
    plain = db.create_table("plain", schema=schema)
    plain.add([{"id": -1, "text": "a", "vector": [1.0] * DIM}])
    store = rqs.compress(plain, codec, "csv", progress=False)
    np.save(tmp_path / "v.npy", np.ones((2, DIM), dtype=np.float32))
    (tmp_path / "v.csv").write_text("id,text\n0,007\n1,5\n")
    ingest(tmp_path / "v.npy", store, metadata=tmp_path / "v.csv", on_bad_rows="error")
    assert sorted(store.table.to_arrow()["text"].to_pylist()) == ["007", "5", "a"]
