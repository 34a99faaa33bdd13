"""Tuning: what it measures is what searches find, and searches use what it chose."""

import dataclasses
import json
from pathlib import Path

import lancedb
import numpy as np
import pytest
from small_tables import source_table, tiny_codec

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.search import resident as residents
from rqmoe_store.search import tuning
from rqmoe_store.search.tuning import (
    MeasuredSetting,
    Measures,
    TimedSetting,
    cheapest,
    geometric,
    queries_from_rows,
    sufficient_settings,
)
from rqmoe_store.store.metadata import KEY, TunedSearch
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, open_table

DIM = 16
VECTORS = np.random.default_rng(3).normal(size=(400, DIM)).astype(np.float32)
QUERIES = np.random.default_rng(4).normal(size=(15, DIM)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> CompressedTable:
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(VECTORS))
    return compress(docs, tiny_codec(VECTORS, "l2", 8), "small", progress=False)


def found_ids(store, queries, nprobes, shortlist, limit) -> list[set[int]]:
    found = store.search(queries).nprobes(nprobes).shortlist(shortlist).limit(limit).to_pandas()
    return [set(found[found["query_index"] == query]["id"]) for query in range(len(queries))]


@pytest.mark.parametrize(
    ("metric", "cache"), [("l2", "memory"), ("l2", "disk"), ("cosine", "memory"), ("dot", "disk")]
)
def test_recall_is_that_of_searches(tmp_path, metric, cache) -> None:
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(VECTORS))
    store = compress(docs, tiny_codec(VECTORS, metric, 8), "small", progress=False).use_cache(cache)
    report = store.tune(QUERIES, target_recall=0.9, limit=5, progress=False)
    truth = found_ids(store, QUERIES, 8, 400, 5)
    for measured in report.measured:
        found = found_ids(store, QUERIES, measured.nprobes, measured.shortlist, 5)
        recall = np.mean([len(one & other) / 5 for one, other in zip(found, truth, strict=True)])
        # Rows of equal codes are equally near, and any of them counts: searches may miss "the" right one.
        assert recall <= measured.recall + 1e-9
        assert measured.recall - recall < 0.02
    assert report.measured[-1].recall == 1.0
    assert report.recall >= 0.9
    assert {(each.nprobes, each.shortlist) for each in report.timed} >= {
        (report.setting.nprobes, report.setting.shortlist)
    }


def test_searches_use_it_until_they_ask_for_something_else(store, tmp_path) -> None:
    other = open_table(lancedb.connect(tmp_path), "small")
    assert "8 of 8 partitions (default), memory, keep 30 (default)" in other.search(VECTORS[0]).explain_plan()
    setting = store.tune(QUERIES, target_recall=0.6, progress=False).setting
    assert setting.nprobes < 8 and setting.shortlist < 50
    tuned = f"{setting.nprobes} of 8 partitions (tuned), memory, keep {setting.shortlist} (tuned)"
    for handle in (store, other, open_table(lancedb.connect(tmp_path), "small")):
        assert tuned in handle.search(VECTORS[0]).explain_plan()
        assert tuned in handle.search(VECTORS[0]).analyze_plan()
        asked = handle.search(VECTORS[0]).nprobes(7).shortlist(30).explain_plan()
        assert "7 of 8 partitions (asked for), memory, keep 30 (asked for)" in asked
        assert "keep 300 (default)" in handle.search(VECTORS[0]).limit(80).explain_plan()
    wanted = store.search(VECTORS[:3]).nprobes(setting.nprobes).shortlist(setting.shortlist).to_arrow()
    assert other.search(VECTORS[:3]).to_arrow().equals(wanted)


def test_it_lasts_and_can_be_done_again(store) -> None:
    first = store.tune(QUERIES, target_recall=0.6, progress=False).setting
    store.add([{"id": 999, "lang": "en", "text": "new", "vector": VECTORS[0]}])
    store.delete("id < 5")
    store.table.optimize()
    assert store.snapshots.current().tuned == first
    second = store.tune(QUERIES, target_recall=1.0, limit=3, progress=False).setting
    assert second != first
    assert store.snapshots.current().tuned == second


def test_codes_are_not_read_again(store, monkeypatch) -> None:
    store.search(VECTORS[0]).to_arrow()

    def load(*_: object) -> None:
        raise AssertionError("read everything")

    monkeypatch.setattr(residents, "load", load)
    store.tune(QUERIES, progress=False)
    assert store.search(VECTORS[0]).to_arrow().num_rows == 10


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_rows_stand_in_for_queries(store, cache) -> None:
    store.add([{"id": 1000, "lang": "en", "text": "no vector", "vector": None}])
    store.use_cache(cache)
    report = store.tune(target_recall=0.8, sample=15, seed=3, progress=False)
    again = store.tune(target_recall=0.8, sample=15, seed=3, progress=False)
    assert report.own_rows and report.queries == 15
    assert report.measured == again.measured
    assert report.measured != store.tune(target_recall=0.8, sample=15, seed=4, progress=False).measured


def test_no_query_made_from_a_row_meets_that_row(store) -> None:
    state = store.use_cache("memory")._source.reader().state()
    row_ids = np.sort(store.table.search().with_row_id(True).to_arrow()["_rowid"].to_numpy())
    made = queries_from_rows(state.snapshot, row_ids, store.columns, sample=20, seed=0)
    measures = Measures(state, store.columns, made, limit=3)
    nearest, shortlists = measures.nearest(lambda _: None), measures._candidates(8, 399).each()
    for own, near, shortlist in zip(made.own_Q, nearest, shortlists, strict=True):
        assert len(near) == 3 and own not in near.row_ids_N
        assert sorted(shortlist.rows.row_ids_N) == sorted(set(row_ids) - {own})


def test_queries_from_rows_lie_as_far_off_as_vectors_did(store) -> None:
    snapshot = store.snapshots.current()
    row_ids = np.sort(store.table.search().with_row_id(True).to_arrow()["_rowid"].to_numpy())
    made = queries_from_rows(snapshot, row_ids, store.columns, sample=1000, seed=0)
    assert made.own_Q.tolist() == row_ids.tolist()
    stored = store.table.search().with_row_id(True).to_arrow().sort_by("_rowid")
    codes, _ = store.columns.from_arrow(stored)
    squares = ((made.queries_QD - store.codec.decode(codes)) ** 2).sum(axis=1)
    np.testing.assert_allclose(squares, store.codec.report.validation_mse, rtol=1e-3)


def test_rows_with_equal_codes_are_equally_good(tmp_path) -> None:
    """Of many equal rows any is as near as any other, so no recall is lost by finding other ones."""
    vectors = np.concatenate([VECTORS[:20], np.repeat(VECTORS[20:21], 300, axis=0)])
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(vectors))
    store = compress(docs, tiny_codec(VECTORS, "l2", 8), "small", progress=False)
    report = store.tune(VECTORS[20:21], target_recall=1.0, progress=False)
    assert (report.setting.nprobes, report.setting.shortlist) == (1, 10)
    assert all(measured.recall == 1.0 for measured in report.measured)


def test_no_partitions_and_few_rows(tmp_path) -> None:
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(VECTORS[:6]))
    store = compress(docs, tiny_codec(VECTORS, "l2", 0), "small", progress=False)
    report = store.tune(target_recall=1.0, progress=False)
    assert (report.setting.nprobes, report.setting.shortlist, report.recall) == (1, 10, 1.0)
    assert store.search(VECTORS[0]).to_arrow().num_rows == 6


def test_the_report_prints_as_a_table(store) -> None:
    text = str(store.tune(QUERIES[:7], target_recall=0.7, progress=False))
    head, _, columns, *lines = text.splitlines()
    assert "of 8 partitions and a shortlist of" in head
    assert "(wanted 0.7; 7 queries)" in head
    assert columns.split()[:4] == ["partitions", "10", "20", "40"]
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4", "6", "8"]
    assert sum(line.endswith("<- chosen") for line in lines) == 1


def test_a_target_out_of_reach_is_refused_and_nothing_kept(store, monkeypatch) -> None:
    monkeypatch.setattr(tuning, "_LONGEST", 10)
    monkeypatch.setattr(tuning, "_LONGEST_PER_ROW", 1)
    with pytest.raises(
        InvalidInputError, match=r"all 8 partitions with a shortlist of 10 rows find 0\.\d+ of"
    ):
        store.tune(QUERIES, target_recall=1.0, progress=False)
    assert store.snapshots.current().tuned is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"target_recall": 0}, "target_recall=0"),
        ({"target_recall": 1.01}, "target_recall=1.01"),
        ({"target_recall": float("nan")}, "target_recall=nan"),
        ({"target_recall": "most"}, "target_recall='most'"),
        ({"target_recall": True}, "target_recall=True"),
        ({"limit": 0}, "limit=0"),
        ({"limit": 2.5}, "limit=2.5"),
        ({"sample": 0}, "sample=0"),
        ({"seed": -1}, "seed=-1"),
        ({"queries": np.zeros((2, 3))}, "dimension 3; expected 16"),
        ({"queries": np.zeros((0, DIM))}, "empty batch"),
        ({"queries": np.full((1, DIM), np.nan)}, "NaN"),
    ],
)
def test_unusable_arguments(store, options, reason) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        store.tune(progress=False, **options)


def test_tables_without_rows_to_find(store) -> None:
    store.delete("id > 0")
    with pytest.raises(TableError, match="has 1 row with a vector"):
        store.tune(progress=False)
    assert store.tune(QUERIES, progress=False).recall == 1.0
    store.delete("id = 0")
    for queries in (None, QUERIES):
        with pytest.raises(TableError, match="no rows with a vector"):
            store.tune(queries, progress=False)


def test_unreadable_settings_stop_searches_but_not_tuning(store) -> None:
    unreadable = TunedSearch(nprobes=0, shortlist=1, limit=1, target_recall=1.0)
    with pytest.raises(TableError, match="could not be read again"):
        unreadable.write(store.table)
    store.table.to_lance().update_metadata({KEY: json.dumps(dataclasses.asdict(unreadable))})
    with pytest.raises(TableError, match="Tune the table again"):
        store.search(VECTORS[0]).to_arrow()
    store.tune(QUERIES, progress=False)
    assert store.search(VECTORS[0]).to_arrow().num_rows == 10


def test_geometric() -> None:
    assert geometric(1, 1, 2**0.5) == [1]
    assert geometric(1, 8, 2**0.5) == [1, 2, 3, 4, 6, 8]
    assert geometric(10, 10, 2) == [10]
    assert geometric(10, 90, 2) == [10, 20, 40, 80, 90]


def measured(nprobes: int, shortlist: int, recall: float) -> MeasuredSetting:
    return MeasuredSetting(nprobes=nprobes, shortlist=shortlist, recall=recall)


def test_candidates_are_the_shortest_that_are_enough() -> None:
    goal = tuning.TuningGoal(target_recall=0.9, limit=10, sample=1, seed=0)
    grid = [
        *(measured(1, 10, 0.1), measured(1, 20, 0.2), measured(1, 40, 0.3)),
        *(measured(2, 10, 0.5), measured(2, 20, 0.8), measured(2, 40, 0.9)),
        *(measured(4, 10, 0.6), measured(4, 20, 0.85), measured(4, 40, 0.95)),
        *(measured(8, 10, 0.7), measured(8, 20, 0.95), measured(8, 40, 1.0)),
    ]
    assert sufficient_settings(grid, goal) == [grid[5], grid[10]]


def test_the_cheapest_is_the_fastest_or_about_as_fast_with_fewer_rows() -> None:
    def timed(nprobes: int, shortlist: int, milliseconds: float) -> TimedSetting:
        return TimedSetting(
            **dataclasses.asdict(measured(nprobes, shortlist, 1.0)), milliseconds=milliseconds
        )

    settings = [timed(1, 80, 1.0), timed(2, 40, 1.04), timed(4, 20, 1.2)]
    assert cheapest(settings) == settings[1]
    assert cheapest(settings[1:]) == settings[1]
    assert cheapest(settings[2:]) == settings[2]
