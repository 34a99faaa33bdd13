"""Codecs leave the registry when nothing that can be opened needs them, and not before."""

import datetime
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import ArtifactError
from rqmoe_store.store import databases, registry
from rqmoe_store.store.registry import RemovedCodecs, places_in_use, remove_unused, unneeded_codecs
from rqmoe_store.tables import compress, create_table, open_table

DIM, ROWS = 16, 120
VECTORS = np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32)
CONFIG = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, num_partitions=2, beam=1)
NOW, DAY = datetime.timedelta(0), datetime.timedelta(days=1)


def rows_of(first, last):
    return [{"id": row, "vector": VECTORS[row]} for row in range(first, last)]


def training(seed):
    return TrainConfig(epochs=0, seed=seed, progress=False)


@pytest.fixture
def store(db):
    """All rows by the first codec; its codec and version are `first` and `before`."""
    store = create_table(db, "mine", rows_of(0, 100), config=CONFIG, keep_vectors="float32")
    store.first = store.train(training(0), progress=False)
    store.before = store.version
    return store


@pytest.fixture
def retrained(store):
    """All rows by a second codec, the older versions still there."""
    store.retrain(training(1), progress=False)
    return store


def cleaned(store, **options):
    return store.optimize(cleanup_older_than=NOW, codecs_older_than=NOW, progress=False, **options).removed


def names(db):
    return set(registry.saved_at(db.open_table(registry.REGISTRY_TABLE)))


def backdate(db, codec, days):
    table = db.open_table(registry.REGISTRY_TABLE)
    moment = datetime.datetime.now(datetime.UTC) - days * DAY
    table.update(f"fingerprint = '{codec.fingerprint}'", {"created_at": moment})


def searched(store, cache="memory"):
    """Whether a row is the nearest to what its code decodes to, wherever codes come from."""
    rows = store.table.search().select(["id", *store.columns.names]).limit(20).to_arrow()
    decoded = store.codecs.decode(store.columns.from_arrow(rows)[0])
    hits = store.use_cache(cache).search(decoded).limit(3).nprobes(100).to_list()
    found = [{hit["id"] for hit in hits if hit["query_index"] == query} for query in range(len(decoded))]
    return all(row in hits for row, hits in zip(rows["id"].to_pylist(), found, strict=True))


def test_a_replaced_codec_goes_with_the_last_version_that_needs_it(db, retrained):
    first, second = retrained.first.fingerprint, retrained.codec.fingerprint
    report = retrained.optimize(codecs_older_than=NOW, progress=False)
    assert report.removed == RemovedCodecs() and names(db) == {first, second}
    retrained.table.restore(retrained.before)
    other = open_table(db, "mine")
    assert other.codec.fingerprint == first and searched(other) and searched(retrained, "disk")
    retrained.retrain(training(2), progress=False)
    third = retrained.codec.fingerprint
    removed = cleaned(retrained)
    assert names(db) == {third}
    assert removed.codecs == 2 and removed.kept_because is None
    artifact = other.codec.to_artifact()
    assert removed.bytes == pytest.approx(2 * (len(artifact.weights) + len(artifact.config_json)), rel=0.01)


def test_a_table_is_used_without_the_codecs_that_are_gone(db, retrained):
    other = open_table(db, "mine")
    report = retrained.optimize(cleanup_older_than=NOW, codecs_older_than=NOW, progress=False)
    assert report.removed.codecs == 1 and "removed 1 codecs" in str(report)
    other.refresh()
    for store in (retrained, other, open_table(db, "mine")):
        assert len(store.codecs.generations) == 2
        assert searched(store) and searched(store, "disk")
        assert store.stats().codec_bytes > 0
    # Read apart from the other handles, which have the old codec in memory.
    apart = lancedb.connect(db.uri, read_consistency_interval=datetime.timedelta(hours=1))
    fresh = open_table(apart, "mine")
    fresh.add(rows_of(100, ROWS))
    assert searched(fresh) and fresh.health().older_rows == 0
    with pytest.raises(ArtifactError, match="no codec with fingerprint"):
        _ = fresh.codecs.generations[0].codec
    fresh.retrain(training(3), vectors="decoded", progress=False)
    assert searched(fresh) and len(fresh) == ROWS
    assert cleaned(fresh).codecs == 1


def test_bytes_are_free_when_codecs_are_gone(db, retrained):
    folder = Path(db.uri) / f"{registry.REGISTRY_TABLE}.lance"

    def size():
        return sum(path.stat().st_size for path in (folder / "data").iterdir())

    before = size()
    removed = cleaned(retrained)
    assert size() <= before - removed.bytes


@pytest.mark.parametrize("keeper", ["tag", "branch", "rows", "another table", "another branch's rows"])
def test_what_keeps_a_codec(db, docs, store, keeper):
    if keeper == "tag":
        store.table.tags.create("good", store.before)
    if keeper == "branch":
        store.table.branches.create("apart", from_version=store.before)
    if keeper == "another table":
        compress(docs, store.first, "other", progress=False)
    if keeper == "another branch's rows":
        branch = store.table.branches.create("apart", from_version=store.before)
    store.retrain(training(1), encode=keeper != "rows", progress=False)
    if keeper == "another branch's rows":
        marks = store.table.to_lance().schema.metadata
        branch.to_lance().update_schema_metadata({key.decode(): text.decode() for key, text in marks.items()})
    if keeper == "rows":
        store.table.to_lance().cleanup_old_versions(datetime.timedelta(microseconds=1))
        removed = remove_unused(db, NOW)
    else:
        removed = cleaned(store)
    assert removed == RemovedCodecs()
    assert store.first.fingerprint in names(db)
    if keeper == "tag":
        store.table.tags.delete("good")
        assert cleaned(store).codecs == 1


def test_places_in_use_are_those_of_rows(db, store):
    def places():
        store.refresh()
        return places_in_use(store.table.to_lance(), store.codecs.metadata)

    assert places() == [0]
    store.retrain(training(1), encode=False, progress=False)
    assert places() == [0, 1]
    store.add(rows_of(100, 110))
    store.retrain(training(2), encode=False, progress=False)
    assert places() == [0, 1, 2]
    store.delete("id < 100")
    assert places() == [1, 2]
    store.delete("true")
    assert places() == [2]
    empty = create_table(db, "empty", rows_of(0, 3), config=CONFIG)
    assert places_in_use(empty.table.to_lance(), empty.codecs.metadata) == []


def test_what_was_saved_or_replaced_lately_stays(db, docs, retrained):
    first, second = retrained.first, retrained.codec
    unused = [create_table(db, "dropped", rows_of(0, 50), config=CONFIG).train(training(7), progress=False)]
    db.drop_table("dropped")
    assert retrained.optimize(cleanup_older_than=NOW, progress=False).removed.codecs == 0
    backdate(db, first, 30)
    backdate(db, unused[0], 6)
    # Rows that the first codec encoded may be on their way: it was replaced a moment ago.
    assert remove_unused(db) == RemovedCodecs()
    backdate(db, second, 8)
    backdate(db, unused[0], 8)
    assert remove_unused(db).codecs == 2
    assert names(db) == {second.fingerprint}


def test_a_codec_that_is_used_again_is_young_again(db, docs, codec):
    registry.save(db, codec)
    registry.save(db, codec)
    assert db.open_table(registry.REGISTRY_TABLE).count_rows() == 1
    backdate(db, codec, 30)
    registry.save(db, codec)  # by a process that will make a table of it
    assert remove_unused(db).codecs == 0
    assert db.open_table(registry.REGISTRY_TABLE).count_rows() == 1
    assert registry.load(db, codec.fingerprint).fingerprint == codec.fingerprint


def test_copies_become_one_unless_the_last_is_damaged(db, codec, plain_codec):
    for each in (codec, plain_codec):
        registry.save(db, each)
    table = db.open_table(registry.REGISTRY_TABLE)
    rows = table.to_arrow().to_pylist()
    for row in rows:
        row["created_at"] += DAY
    rows[1]["weights"] = b"damaged"
    damaged = rows[1]["fingerprint"]
    table.add(rows)
    removed = remove_unused(db)
    assert removed.codecs == 0 and removed.bytes == len(rows[0]["weights"]) + len(rows[0]["config_json"])
    left = db.open_table(registry.REGISTRY_TABLE).to_arrow()["fingerprint"].to_pylist()
    assert sorted(left) == sorted([codec.fingerprint, plain_codec.fingerprint, damaged])
    for each in (codec, plain_codec):
        assert registry.load(db, each.fingerprint).fingerprint == each.fingerprint


def garbled_marks(db):
    table = create_table(db, "bad", rows_of(0, 3), config=CONFIG).table
    table.to_lance().update_schema_metadata({"rqmoe_store.generations": "?"})


def lost_marks(db):
    store = create_table(db, "bad", rows_of(0, 50), config=CONFIG)
    store.train(training(5), progress=False)
    store.table.to_lance().update_schema_metadata({}, replace=True)


def garbled_manifest(db):
    table = db.create_table("bad", [{"id": 1}])
    for path in (Path(table.uri) / "_versions").glob("*.manifest"):
        path.write_bytes(path.read_bytes()[:20])


def garbled_old_manifest(db):
    table = db.create_table("bad", [{"id": 1}])
    table.add([{"id": 2}])
    first = max((Path(table.uri) / "_versions").glob("*.manifest"))
    first.write_bytes(b"")


@pytest.mark.parametrize("damage", [garbled_marks, lost_marks, garbled_manifest, garbled_old_manifest])
def test_in_doubt_every_codec_is_kept(db, retrained, damage):
    damage(db)
    report = retrained.optimize(cleanup_older_than=NOW, codecs_older_than=NOW, progress=False)
    assert report.removed.codecs == 0 and "table 'bad'" in report.removed.kept_because
    assert "kept all codecs, for table 'bad' cannot be read" in str(report)
    assert retrained.first.fingerprint in names(db)
    db.drop_table("bad")
    assert cleaned(retrained).codecs >= 1


def test_tables_of_others_are_no_obstacle(db, retrained):
    db.create_table("plain", pa.table({"id": [1], "vector_code": ["text"], "vector_partition": [1]}))
    (Path(db.uri) / "interrupted.lance" / "data").mkdir(parents=True)
    assert set(databases.table_names(db)) >= {"plain", "interrupted", "mine"}
    assert cleaned(retrained).codecs == 1


def test_a_database_without_codecs(db):
    assert remove_unused(db) == RemovedCodecs()
    assert unneeded_codecs(lancedb.connect(db.uri), {"a", "b"}, recent=()) == {"a", "b"}


def test_a_damaged_registry_is_left_alone(db, store):
    folder = Path(db.uri) / f"{registry.REGISTRY_TABLE}.lance"
    for path in (folder / "data").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    before = sorted(path.name for path in folder.rglob("*"))
    assert "cannot be read" in remove_unused(db, NOW).kept_because
    assert sorted(path.name for path in folder.rglob("*")) == before
