"""Rows that are ingested, merged, verified, exported, encoded in the background and had back: in a bucket."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lancedb.db import DBConnection
from small_buckets import BUCKET, CONFIG, QUERIES, TRAINING, VECTORS, Step, assert_equal, connected, found
from small_tables import source_table

from rqmoe_store.codecs.base import Codec
from rqmoe_store.ingestion.filesystems import filesystem_of
from rqmoe_store.ingestion.job import IngestReport, ingest
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import create_table, open_table

ANOTHER = dataclasses.replace(TRAINING, seed=1)


class Place:
    """A folder, here or in the bucket, that sources are put into."""

    def __init__(self, location: str, options: dict[str, str] | None) -> None:
        self.location, self.options = location, options
        self._filesystem, self._path = filesystem_of(location, options)
        self._filesystem.create_dir(self._path)

    def put(self, name: str, what: pa.Table | np.ndarray) -> str:
        """Write a Parquet or .npy file; returns where it is."""
        path = f"{self._path}/{name}"
        self._filesystem.create_dir(path.rpartition("/")[0])
        if isinstance(what, pa.Table):
            pq.write_table(what, path, filesystem=self._filesystem)
        else:
            with self._filesystem.open_output_stream(path) as file:
                np.save(file, what)
        return f"{self.location}/{name}"


def told(report: IngestReport) -> dict[str, Any]:
    """What a report says that does not depend on the place."""
    return {**dataclasses.asdict(report), "seconds": 0, "bytes_read": 0}


def contents(store: CompressedTable) -> list[dict[str, Any]]:
    """All rows as they are stored, in the order of their ids."""
    names = [*store.schema.names, *store.columns.names]
    return store.table.search().select(names).limit(None).to_arrow().sort_by("id").to_pylist()


def part(first: int, last: int) -> pa.Table:
    return source_table(VECTORS).slice(first, last - first)


def ingested_rows(db: DBConnection, again: DBConnection, place: Place, codec: Codec) -> Iterator[Step]:
    """Files, an array and a Lance table, into a new table."""

    def added(source: str, **settings: Any) -> dict[str, Any]:
        report = ingest(
            source,
            (db, "docs"),
            storage_options=place.options,
            commit_rows=70,
            progress=False,
            **settings,
        )
        return told(report)

    place.put("files/first.parquet", part(0, 200))
    yield "ingested", added(f"{place.location}/files", codec=codec)
    place.put("files/second.parquet", part(200, 300))
    yield "ingested what came later", added(f"{place.location}/files")
    yield "ingested nothing twice", added(f"{place.location}/files")
    others = place.put("array.parquet", part(300, 350).drop_columns(["vector"]))
    array = place.put("array.npy", VECTORS[300:350])
    yield "ingested an array", added(array, metadata=others)
    db.create_table("source", part(350, 400))
    yield "ingested a table", added(f"{db.uri.rstrip('/')}/source.lance")
    bad = VECTORS[:5].copy()
    bad[2, 1] = np.nan
    yield "put a row apart", added(place.put("bad.parquet", source_table(bad)))
    quarantine = again.open_table("docs_quarantine").to_arrow()
    yield "which can be read", quarantine.drop_columns(["source"]).column_names
    store = open_table(again, "docs")
    yield "searched", (found(store), contents(store))
    report = store.verify(progress=False)
    yield "verified", (report.counts, report.problems, report.advice, report.orphans, report.fragments)


def exported_rows(again: DBConnection, folder: Path) -> Iterator[Step]:
    """To files on this machine."""
    store = open_table(again, "docs")
    for form in ("parquet", "npy", "codes"):
        path = folder / {"parquet": "docs.parquet", "npy": "vectors.npy", "codes": "codes"}[form]
        report = store.export(path, format=form, progress=False)
        yield f"exported {form}", (report.rows, report.coded, report.raw, report.empty)
    exported = pq.read_table(folder / "docs.parquet").sort_by("id")
    yield "with these rows", exported.to_pylist()


def merged_rows(db: DBConnection, again: DBConnection) -> Iterator[Step]:
    """A table with a key, which two handles merge into."""
    store = create_table(db, "keyed", part(0, 200), config=CONFIG, key="id")
    store.train(TRAINING, progress=False)
    other = open_table(again, "keyed")
    for number, (handle, rows) in enumerate([(store, part(150, 250)), (other, part(240, 300))]):
        merge = handle.merge_insert().when_matched_update_all().when_not_matched_insert_all()
        done = merge.execute(rows.set_column(1, "lang", pa.array(["it"] * len(rows))))
        yield f"merged {number}", (done.num_updated_rows, done.num_inserted_rows)
    yield (
        "deleted by a merge",
        (
            store.merge_insert()
            .when_not_matched_by_source_delete("id < 20")
            .execute(part(10, 400))
            .num_deleted_rows
        ),
    )
    store.add_columns({"double": "2 * id"})
    store.create_scalar_index("id")
    yield "with a column and an index", (found(store, where="double > 300"), store.count_rows("id = 160"))
    yield "as it is now", (contents(store), other.key, other.verify(progress=False).problems)


def versions_of_rows(db: DBConnection, again: DBConnection) -> Iterator[Step]:
    """What was, looked at and made again what is."""
    store, other = open_table(db, "keyed"), open_table(again, "keyed")
    before, was = store.version, contents(store)
    store.tags.create("before", before)
    store.delete("id % 2 = 0")
    other.checkout("before")
    yield "checked out", (contents(other) == was, found(other), len(other), len(store))
    yield "verified as it was", other.verify(progress=False).version == before
    other.checkout_latest()
    yield "looked at the newest", (len(other), found(other))
    other.restore("before")
    yield "restored", (contents(store) == was, found(store), found(other))
    yield "tags", [*other.tags.list()]
    yield "versions", [entry["version"] for entry in store.list_versions()]


def rows_in_the_background(db: DBConnection, again: DBConnection) -> Iterator[Step]:
    """A second codec, while rows are added and searched."""
    store, other = open_table(db, "keyed"), open_table(again, "keyed")
    with pytest.warns(UserWarning, match="have codes only"):
        store.retrain(ANOTHER, vectors=VECTORS, encode="background", progress=False)
    other.add(part(300, 400).append_column("double", pa.nulls(100, pa.int64())))
    yield (
        "added meanwhile",
        sorted(row["id"] for row in store.search(QUERIES[0]).nprobes(99).limit(999).to_list()),
    )
    assert store.encoding is not None
    store.encoding.wait(timeout=600)
    yield "encoded", (store.encoding.rows_left, contents(store), found(store), found(other))
    yield "whole", (store.verify(progress=False).counts, store.optimize(progress=False).encoded.rows)


def test_lives_in_a_bucket(options: dict[str, str], codec: Codec, tmp_path: Path) -> None:
    sources = {
        "folder": Place(str(tmp_path / "sources"), None),
        "bucket": Place(f"{BUCKET}/sources", options),
    }
    lives = {}
    for to, db in connected(tmp_path, options).items():
        (tmp_path / to).mkdir()
        lives[to] = [
            *ingested_rows(db(), db(), sources[to], codec),
            *exported_rows(db(), tmp_path / to),
            *merged_rows(db(), db()),
            *versions_of_rows(db(), db()),
            *rows_in_the_background(db(), db()),
        ]
    assert_equal(lives["folder"], lives["bucket"])
