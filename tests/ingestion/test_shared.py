"""Ingestion by several processes: every row once, in whichever order parts come, and whoever is lost."""

import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from costly_examples import number_of_examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from other_processes import processes
from small_sources import BAD, COUNT, rows_of

import rqmoe_store as rqs
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.ingestion.job import IngestSettings
from rqmoe_store.ingestion.prepare import prepare
from rqmoe_store.ingestion.shared import PartWriter, WrittenPart, share_pieces, share_rows
from rqmoe_store.ingestion.sources import rows_source

GOOD = [row for row in range(COUNT) if row not in BAD]


def share(source, into, part_bytes=2**11, **settings):
    return share_pieces(prepare(source, into), IngestSettings(**settings), part_bytes=part_bytes)


def writer_of(shared):
    """As in another process."""
    return PartWriter(sent(shared.work), device="cpu")


def sent(value):
    """As another process gets it."""
    return ForkingPickler.loads(ForkingPickler.dumps(value))


def told(written):
    """What was written, as text says it."""
    return WrittenPart.from_json(written.to_json())


def require_all_once(db):
    assert sorted(db.open_table("docs").to_arrow()["id"].to_pylist()) == GOOD
    firsts = {"a": 0, "c": 70, "d": 120}
    bad = db.open_table("docs_quarantine").to_arrow().to_pylist()
    assert sorted(row["position"] + firsts[Path(row["source"]).stem] for row in bad) == sorted(BAD)


def test_as_ingest_does(source, store, db, codec):
    shared = share(source, store)
    writer = writer_of(shared)
    assert len(shared.parts) > len(list(source.iterdir()))
    for part in shared.parts:
        shared.take(told(writer.write(sent(part))))
    report = shared.finish()
    require_all_once(db)
    alone = rqs.ingest(source, (db, "alone"), codec=codec, progress=False)
    assert (report.rows, report.quarantined, report.pieces) == (alone.rows, alone.quarantined, alone.pieces)
    assert report.bytes_read == pytest.approx(alone.bytes_read, rel=0.01)  # masks of nulls are cut elsewhere
    names = ["id", "text", "vector_code", "vector_partition"]
    one, other = (db.open_table(name).to_arrow().sort_by("id").select(names) for name in ("docs", "alone"))
    assert one.to_pydict() == other.to_pydict()
    health, expected = (rqs.open_table(db, name).health() for name in ("docs", "alone"))
    assert health.rows == expected.rows
    assert rqs.open_table(db, "docs").verify().ok


@pytest.mark.costly
@settings(
    max_examples=number_of_examples(20, part=4),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lost=st.lists(st.integers(0, 20), max_size=3),
    commit_rows=st.sampled_from([1, 20, 60, sys.maxsize]),
    seed=st.integers(0, 99),
)
def test_in_any_order_with_processes_lost(source, db, codec, lost, commit_rows, seed):
    """Parts are written twice or not at all, and the process that commits begins again."""
    for name in ("docs", "docs_quarantine"):
        db.drop_table(name, ignore_missing=True)
    random = np.random.default_rng(seed)
    prepared = prepare(source, (db, "docs"), codec=codec)
    for stop in [*lost, None]:
        shared = share_pieces(prepared, IngestSettings(commit_rows=commit_rows), part_bytes=2**11)
        writer = writer_of(shared)
        order = random.permutation(len(shared.parts))
        for place in order[:stop]:
            for _ in range(random.integers(1, 3)):
                shared.take(writer.write(shared.parts[place]))
        if stop is None or len(order) <= stop:
            shared.finish()
    require_all_once(db)
    assert share(source, (db, "docs")).parts == []


def test_one_commit_for_all(source, store):
    shared = share(source, store, commit_rows=sys.maxsize)
    store.refresh()
    writer, before = writer_of(shared), store.table.version
    for part in shared.parts:
        shared.take(writer.write(part))
    store.refresh()
    assert store.table.version == before and store.count_rows() == 0
    shared.finish()
    assert store.count_rows() == len(GOOD)


def test_nothing_is_finished_before_all_is_written(source, store):
    shared = share(source, store)
    shared.take(writer_of(shared).write(shared.parts[0]))
    with pytest.raises(InvalidInputError, match="parts were not written; take all of them first"):
        shared.finish()


def test_bad_rows_as_errors(source, store):
    shared = share(source, store, on_bad_rows="error")
    with pytest.raises(InvalidInputError, match=r"Row 3 of .*a\.parquet cannot be ingested"):
        writer_of(shared).write(shared.parts[0])
    assert store.count_rows() == 0


def test_the_one_that_came_last_commits(source, store):
    first, second = share(source, store, commit_rows=1), share(source, store, commit_rows=1)
    written = writer_of(first).write(first.parts[0])
    second.take(written)
    with pytest.raises(TableError, match="Another process ingests the same source"):
        first.take(written)


def test_what_is_written_as_text(source, store):
    shared = share(source, store)
    for part in shared.parts:
        written = writer_of(shared).write(part)
        assert told(written) == written


def test_another_codec_meanwhile(source, store, db):
    shared = share(source, store)
    table = rqs.open_table(db, "docs")
    table.add(rows_of(200))
    training = rqs.TrainConfig(epochs=0, seed=3, progress=False)
    table.retrain(training, vectors=np.random.default_rng(8).normal(size=(300, 16)), progress=False)
    with pytest.raises(TableError, match="was given another codec while rows were ingested"):
        writer_of(shared)
    again = share(source, (db, "docs"))
    for part in again.parts:
        again.take(writer_of(again).write(part))
    assert again.finish().rows == len(GOOD)


def test_streams_cannot_be_shared(store):
    with pytest.raises(InvalidInputError, match="expected what other processes can open"):
        share(rows_of(3), store)


def test_raw_rows_of_a_table_without_a_codec(source, db):
    store = rqs.create_table(db, "raw", schema=rows_of(0).schema)
    shared = share(source, store)
    for part in shared.parts:
        shared.take(writer_of(shared).write(part))
    assert shared.finish().rows == len(GOOD)
    store.refresh()
    assert store.search(np.ones(16, np.float32)).limit(1000).to_arrow().num_rows == len(GOOD)


@pytest.mark.parametrize("job", [None, "mine"])
def test_rows_without_a_place(store, db, job):
    rows = rows_of(20).to_pylist()
    rows[4]["vector"][0] = float("inf")
    table = pa.Table.from_pylist(rows, schema=rows_of(0).schema)
    for again in (False, True):
        shared = share_rows(prepare(rows_source(table.schema, job), store), IngestSettings(job=job))
        assert shared.is_done == bool(again and job)
        if not shared.is_done:
            writer = writer_of(shared)
            for part in (table.slice(0, 12), table.slice(12)):
                shared.take(told(writer.write_rows(part, shared.name)))
            assert store.count_rows() == 19 * again, "all are committed together"
        report = shared.finish()
        assert (report.rows, report.quarantined, report.skipped) == (
            (0, 0, 1) if again and job else (19, 1, 0)
        )
        store.refresh()
    times = 1 if job else 2
    assert sorted(store.table.to_arrow()["id"].to_pylist()) == sorted([*range(4), *range(5, 20)] * times)
    assert db.open_table("docs_quarantine").count_rows() == times


def _written(work, parts, results):
    writer = PartWriter(work, device="cpu")
    for part in parts:
        results.put(writer.write(part))


def test_in_other_processes(source, store, db):
    shared = share(source, store)
    results = processes.Queue()
    workers = [
        processes.Process(target=_written, args=(shared.work, shared.parts[first::2], results))
        for first in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for _ in shared.parts:
        shared.take(results.get(timeout=600))
    for worker in workers:
        worker.join()
    shared.finish()
    require_all_once(db)
    assert lancedb.connect(db.uri).open_table("docs").count_rows() == len(GOOD)
