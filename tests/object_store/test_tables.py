"""What a table goes through in a bucket, step by step, beside the same in a folder."""

import dataclasses
import datetime
import json
from collections.abc import Iterator
from pathlib import Path

import lancedb
import numpy as np
import pytest
from lancedb.db import DBConnection
from other_processes import run_script
from small_buckets import CONFIG, DIM, QUERIES, ROWS, TRAINING, VECTORS, Step, assert_equal, connected, found
from small_tables import source_table

from rqmoe_store.codecs.base import Codec
from rqmoe_store.errors import ArtifactError, TableError
from rqmoe_store.store import registry
from rqmoe_store.tables import compress, create_table, open_table

MORE = source_table(np.random.default_rng(4).normal(size=(60, DIM)).astype(np.float32))
NOW = datetime.timedelta(0)


def compressed_table(db: DBConnection, again: DBConnection, codec: Codec) -> Iterator[Step]:
    """A table that is compressed, used and opened by someone else."""
    docs = db.create_table("docs", source_table(VECTORS))
    store = compress(docs, codec, "small", keep_vectors="float16", progress=False)
    yield "compressed", store.schema
    yield "searched", found(store)
    yield "filtered", found(store, where="lang = 'en' AND id < 200")
    yield "refined", store.search(QUERIES[0]).limit(5).refine_factor(4).to_list()
    yield "added", store.add(MORE)
    yield "found what was added", found(store)
    yield "deleted", store.delete("id % 7 = 1")
    yield "counted", (len(store), store.count_rows("lang = 'de'"))
    yield "found what is left", found(store)
    other = open_table(again, "small")
    yield "opened by someone else", (other.codec.fingerprint, len(other), found(other))
    yield "added by someone else", other.add(MORE)
    yield "found what someone else added", found(store)
    yield "updated", store.update(where="id % 5 = 0", values={"lang": "fr"}).rows_updated
    merge = store.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
    merged = merge.execute(source_table(VECTORS[::-1]).slice(50, 3))
    yield "merged", (merged.num_updated_rows, merged.num_inserted_rows)
    yield "found what was changed", (found(store, where="lang = 'fr'"), found(other))
    store.create_fts_index("text")
    yield "searched for words", store.search("17", query_type="fts").limit(3).select(["id"]).to_list()
    report = store.tune(QUERIES, sample=3, progress=False)
    yield "tuned", (report.recall, other.search(QUERIES[0]).explain_plan())
    stats = store.stats()
    yield "looked after", (store.health().rows, store.health().complete)
    yield "measured", (stats.rows, stats.code_disk_bytes, stats.vector_disk_bytes, stats.codeword_utilisation)
    yield "optimized", store.optimize(cleanup_older_than=NOW, progress=False).raw_rows
    yield "found after that", (found(store), found(other))
    with pytest.raises(TableError, match="'small' exists already"):
        compress(docs, codec, "small", progress=False)
    db.drop_table("small")
    with pytest.raises(TableError, match="no table 'small'"):
        open_table(again, "small")


def growing_table(db: DBConnection, again: DBConnection) -> Iterator[Step]:
    """A table that is begun without a codec."""
    store = create_table(db, "raw", source_table(VECTORS), config=CONFIG)
    yield "begun", (len(store), store.stats().raw_rows)
    yield "searched exactly", found(store)
    codec = store.train(TRAINING, progress=False)
    yield "trained", codec.decode(codec.encode(VECTORS[:9])).tolist()
    yield "searched by codes", found(store)
    yield "added raw", store.add(MORE, encode=False)
    other = open_table(again, "raw")
    yield "found raw and coded", (found(store), found(other))
    yield "encoded", other.optimize(cleanup_older_than=NOW, progress=False).encoded.rows
    yield "found coded", (found(store), found(other))
    store.retrain(TRAINING, progress=False, vectors=VECTORS[:300])
    yield "retrained", (found(store), found(other))
    refined = dataclasses.replace(CONFIG, refine_bytes=6)
    store.retrain(TRAINING, progress=False, vectors=VECTORS[:300], config=refined, encode=False)
    other.add(MORE)
    yield "given refine codes", (found(store), found(other), store.verify(progress=False).ok)
    yield (
        "encoded with refine codes",
        (other.optimize(progress=False).encoded.rows, found(store), found(other)),
    )
    store.retrain(TRAINING, progress=False, vectors=VECTORS[:300])
    other.retrain(TRAINING, progress=False, vectors=VECTORS[:300], config=CONFIG)
    yield (
        "relieved of them",
        (store.optimize(progress=False).raw_rows, found(store), found(other), other.columns),
    )


def table_in_place(db: DBConnection, again: DBConnection, codec: Codec) -> Iterator[Step]:
    """A table that is compressed where it is."""
    docs = db.create_table("docs", source_table(VECTORS), mode="overwrite")
    store = compress(docs, codec, in_place=True, progress=False)
    yield "compressed in place", (store.stats().raw_rows, found(store))
    yield "opened by someone else", found(open_table(again, "docs"))


def codecs_in_the_database(db: DBConnection, again: DBConnection, codec: Codec) -> Iterator[Step]:
    """The registry."""
    shorter = codec.truncate(2)
    registry.save(db, shorter)
    registry.save(again, shorter)
    yield "saved once", registry.save(db, shorter).count_rows(f"fingerprint = '{shorter.fingerprint}'")
    yield "loaded", registry.load(again, shorter.fingerprint).fingerprint
    with pytest.raises(ArtifactError, match="no codec with fingerprint"):
        registry.load(again, "0" * 64)


def test_a_bucket_is_as_good_as_a_folder(options: dict[str, str], codec: Codec, tmp_path: Path) -> None:
    lives = {
        to: [
            *compressed_table(db(), db(), codec),
            *growing_table(db(), db()),
            *table_in_place(db(), db(), codec),
            *codecs_in_the_database(db(), db(), codec),
        ]
        for to, db in connected(tmp_path, options).items()
    }
    assert_equal(lives["folder"], lives["bucket"])


def test_another_process_opens_a_bucket(options: dict[str, str], codec: Codec) -> None:
    db = lancedb.connect("s3://bucket/db", storage_options=options)
    store = compress(db.create_table("docs", source_table(VECTORS)), codec, "small", progress=False)
    script = (
        "import json, sys, lancedb, rqmoe_store\n"
        "options, query = json.loads(sys.argv[1])\n"
        "db = lancedb.connect('s3://bucket/db', storage_options=options)\n"
        "store = rqmoe_store.open_table(db, 'small')\n"
        "store.delete('id = 3')\n"
        "print(json.dumps(store.search(query).select(['id']).limit(5).to_list()))\n"
    )
    arguments = json.dumps([options, QUERIES[0].tolist()])
    assert (
        json.loads(run_script(script, arguments))
        == store.search(QUERIES[0]).select(["id"]).limit(5).to_list()
    )
    store.refresh()
    assert len(store) == ROWS - 1


def test_handles_that_reach_a_bucket_otherwise_share_no_codes(options: dict[str, str], codec: Codec) -> None:
    """Credentials may be another's, and the same bucket's name may be at another server."""
    db = lancedb.connect("s3://bucket/db", storage_options=options)
    compress(db.create_table("docs", source_table(VECTORS)), codec, "small", progress=False)
    others = {**options, "timeout": "21s"}
    first, alike, other = (
        open_table(lancedb.connect("s3://bucket/db", storage_options=reached_by), "small")
        for reached_by in (options, dict(options), others)
    )
    assert first._source.codes is alike._source.codes
    assert first._source.codes is not other._source.codes
