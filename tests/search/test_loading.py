"""Loading puts every row where a sort would, and can be interrupted."""

import signal

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tables import source_table, tiny_codec

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.errors import TableError
from rqmoe_store.search import loading
from rqmoe_store.search.loading import load_segment, merged
from rqmoe_store.search.segments import CodeBatch, Segment, Selection, grouped
from rqmoe_store.tables import compress

DIM = 16
PARTITIONS = 4
VECTORS = np.random.default_rng(3).normal(size=(300, DIM)).astype(np.float32)


@pytest.fixture(params=[0, 5])
def store(request, tmp_path):
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(VECTORS))
    codec = tiny_codec(VECTORS, "l2", PARTITIONS, refine_bytes=request.param)
    return compress(docs, codec, "small", progress=False)


def assert_same(segment: Segment, expected: Segment) -> None:
    every = np.arange(len(expected))
    assert segment.starts_P.tolist() == expected.starts_P.tolist()
    assert (segment.codes_NM == expected.codes_NM).all()
    assert segment.row_ids(every).tolist() == expected.row_ids(every).tolist()
    assert (segment.refine_NR is None) == (expected.refine_NR is None)
    if expected.refine_NR is not None:
        assert (segment.refine_NR == expected.refine_NR).all()


def sorted_in_one_go(store, refine: bool) -> Segment:
    snapshot = store.handle.snapshots.current()
    rows = snapshot.table.search().select(list(store.columns.names)).with_row_id(True).to_arrow()
    codes, valid = snapshot.codecs.read(rows)
    ids = rows["_rowid"].to_numpy()[valid].astype(np.uint64)
    return grouped(CodeBatch(ids, codes if refine else codes.unrefined), PARTITIONS)


@pytest.mark.parametrize("batch_rows", [7, 1000])
def test_rows_as_written_changed_moved_and_without_a_code(store, batch_rows, monkeypatch) -> None:
    monkeypatch.setattr(loading, "_BATCH_ROWS", batch_rows)
    refine = bool(store.columns.refine_bytes)
    more = pa.table({**dict.fromkeys(["id"], range(900, 905)), "vector": list(VECTORS[:5])})
    for change in [
        lambda: None,
        lambda: store.add([{**row, "lang": "en", "text": "t"} for row in more.to_pylist()]),
        lambda: store.table.update(where="id % 3 = 0", values={"text": "moved"}),
        lambda: (store.delete("id % 7 = 1"), store.add([{"id": 999, "vector": None}])),
        lambda: store.table.to_lance().optimize.compact_files(),
    ]:
        change()
        snapshot = store.handle.snapshots.current()
        assert_same(
            load_segment(snapshot, store.columns, refine=refine), sorted_in_one_go(store, refine=refine)
        )
        without = load_segment(snapshot, store.columns, refine=False)
        assert_same(without, sorted_in_one_go(store, refine=False))


def test_a_partition_without_a_code(store) -> None:
    """Rows that only others write are left out, as they are by queries that read from the disk."""
    store.table.update(where="id % 5 = 0", values_sql={"vector_code": "NULL"})
    segment = load_segment(store.handle.snapshots.current(), store.columns, refine=False)
    assert len(segment) == 240
    assert_same(segment, sorted_in_one_go(store, refine=False))


def test_a_partition_that_no_codec_has(store) -> None:
    for partition in (PARTITIONS, -1, 2**31 - 1):
        store.table.update(where="id = 9", values_sql={"vector_partition": f"CAST({partition} AS INT)"})
        with pytest.raises(TableError, match="none of its codecs wrote"):
            load_segment(store.handle.snapshots.current(), store.columns, refine=False)


row_ids = st.integers(0, 40) | st.integers(2**32 - 5, 2**32 + 40) | st.integers(2**63, 2**63 + 40)


@given(
    parts=st.lists(st.lists(row_ids, unique=True, max_size=30), min_size=1, max_size=3),
    gone=st.lists(row_ids, max_size=10),
    batch_rows=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_merging_selections(parts, gone, batch_rows, seed) -> None:
    random, seen, selections, kept = np.random.default_rng(seed), set(), [], []
    for part in parts:
        ids = np.array([row_id for row_id in part if row_id not in seen], np.uint64)
        seen |= set(part)
        codes = Codes(
            random.integers(0, 256, (len(ids), 3)).astype(np.uint8),
            random.integers(0, PARTITIONS, len(ids)).astype(np.int32),
        )
        selection = Selection(grouped(CodeBatch(ids, codes), PARTITIONS)).without(np.array(gone, np.uint64))
        selections.append(selection)
        kept.append(selection.rows())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loading, "_BATCH_ROWS", batch_rows)
        segment = merged(selections, num_partitions=PARTITIONS, code_bytes=3, refine_bytes=None)
    every = CodeBatch(
        np.concatenate([rows.row_ids_N for rows in kept]),
        Codes(
            np.concatenate([rows.codes.codes for rows in kept]),
            np.concatenate([rows.codes.partitions for rows in kept]),
        ),
    )
    assert_same(segment, grouped(every, PARTITIONS))


def test_an_interrupted_search_leaves_the_table_usable(store, monkeypatch) -> None:
    expected = store.use_cache("disk").search(VECTORS[0]).limit(300).to_arrow()
    read, interrupted = loading.scan_batches, []

    def interrupt_once(*arguments):
        for batch in read(*arguments):
            if len(interrupted) < 2:
                interrupted.append(arguments)
                signal.raise_signal(signal.SIGINT)
            yield batch

    monkeypatch.setattr(loading, "scan_batches", interrupt_once)
    store.use_cache("memory")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            store.search(VECTORS[0]).limit(300).to_arrow()
    assert store.search(VECTORS[0]).limit(300).to_arrow().equals(expected)
