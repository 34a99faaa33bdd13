"""A codec that stops fitting is noticed, and one that fits is not complained about."""

import dataclasses
import datetime
import json
import shutil
import warnings

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_damage import HOSTILE

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.ingestion.job import ingest
from rqmoe_store.store import health, merge
from rqmoe_store.store.appends import append_rows
from rqmoe_store.store.health import KEY, LEAST_ROWS, stability_index
from rqmoe_store.tables import create_table, open_table

DIM = 8
random = np.random.default_rng(1)
MIXING = random.normal(size=(3, DIM))
CONFIG = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, num_partitions=4, beam=1)
NOW = datetime.timedelta(0)
GOOD = {"fingerprint": "another", "rows": 1, "sampled": 1, "squared_error": 1.0}
TEXTS = [
    *[json.dumps(value) for value in HOSTILE if value != {}][::8],
    *(json.dumps({**GOOD, **bad}) for bad in ({"rows": -1}, {"sampled": 2**63}, {"fingerprint": None})),
    *(json.dumps({**GOOD, "squared_error": bad}) for bad in ("1", 10**400, True)),
    "[" * 10**5,
]


def alike(rows: int) -> np.ndarray:
    return random.uniform(-1, 1, size=(rows, 3)) @ MIXING


def unlike(rows: int) -> np.ndarray:
    return random.normal(size=(rows, DIM)) * 3


def rows_of(vectors: np.ndarray) -> list[dict]:
    return [{"vector": vector} for vector in vectors]


def arrow(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist([{**row, "vector": row["vector"].tolist()} for row in rows])


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    store = create_table(lancedb.connect(folder), "docs", rows_of(alike(2000)), config=CONFIG)
    assert "no codec yet" in str(store.health())
    assert not store.health().needs_retraining
    store.train(TrainConfig(epochs=0, progress=False), progress=False)
    return folder


@pytest.fixture
def store(template, tmp_path):
    """A copy of the table, which takes a tenth of the time that making it takes."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return open_table(lancedb.connect(tmp_path), "docs")


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_rows_like_those_of_training_are_fine(store, quiet):
    assert "too few rows" in str(store.health())
    store.add(rows_of(alike(1000)))
    report = store.health()
    assert report.rows == 1000 and report.complete
    assert report.error_ratio == pytest.approx(1, abs=0.3)
    assert report.balance is not None and report.balance < 0.1
    assert not report.needs_retraining
    assert "fits the rows added; nothing to do" in str(report)


def test_other_rows_are_noticed_and_warned_about_once(store):
    with pytest.warns(UserWarning, match=r"does not fit the rows added any more.*retrain"):
        store.add(rows_of(unlike(1000)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.add(rows_of(unlike(100)))
    report = store.health()
    assert report.error_ratio is not None and report.error_ratio > 2
    assert report.needs_retraining
    assert "does not fit the rows added any more: retrain()" in str(report)
    store.retrain(TrainConfig(epochs=0, progress=False), vectors="decoded", progress=False)
    assert not store.health().needs_retraining
    assert store.health().rows == 0


def test_the_estimate_is_that_of_all_handles_and_survives_cleaning_up(store):
    other = open_table(lancedb.connect(store.table.uri.rpartition("/")[0]), "docs")
    added = [alike(200), alike(300), alike(50)]
    for handle, vectors in zip((store, other, store), added, strict=True):
        handle.add(rows_of(vectors))
    before = store.health()
    assert before.rows == 550 and before == other.health()
    store.optimize(cleanup_older_than=NOW, progress=False)
    assert len(store.table.list_versions()) == 1
    assert store.health() == before
    store.add(rows_of(alike(10)))
    assert other.health().rows == 560 and other.health().complete


def test_versions_removed_by_others_are_owned_up_to(store):
    store.add(rows_of(alike(300)))
    store.table.optimize(cleanup_older_than=NOW)
    report = store.health()
    assert not report.complete
    assert "removed before they were counted" in str(report)


def test_raw_and_older_rows_are_pointed_out(store):
    store.add(rows_of(alike(30)), encode=False)
    store.retrain(TrainConfig(epochs=0, progress=False), vectors=alike(500), encode=False, progress=False)
    report = store.health()
    assert (report.raw_rows, report.older_rows) == (30, 2000)
    assert "30 rows have no code yet" in str(report)
    assert "2,000 rows are of an older codec" in str(report)


@pytest.mark.parametrize(
    "text", ["", "3", "{}", '{"version": 1, "sums": {}}', '{"version": "x", "sums": {}}']
)
def test_damage_is_reported(store, text):
    store.table.to_lance().update_metadata({KEY: text})
    assert_noticed_and_left_out(store, text)


@pytest.mark.parametrize("text", TEXTS)
def test_a_commit_that_says_what_cannot_be_read_keeps_nobody_from_the_table(store, text):
    append_rows(store.table, store.table.to_arrow().slice(0, 1).to_reader(), {KEY: text})
    assert_noticed_and_left_out(store, text)


def assert_noticed_and_left_out(store, text):
    """Everything goes on, the damage is shown, and after `optimize` it is gone."""
    rows = len(store)
    assert store.add(rows_of(alike(3))) == 3
    assert ingest(arrow(rows_of(alike(1))), store, progress=False).rows == 1
    store.update(values={"vector": alike(1)[0]}, where="false")
    report = store.health()
    assert (report.unreadable, report.complete, report.rows) == (1, False, 4)
    assert "1 notes on how rows fit cannot be read" in str(report)
    (problem,) = store.verify(progress=False).problems
    assert repr(text[:20]).strip("'") in problem and "cannot be read" in problem
    store.optimize(progress=False)
    assert store.verify(progress=False).ok
    assert (store.health().unreadable, store.health().rows, len(store)) == (0, 4, rows + 4)


@pytest.mark.filterwarnings("ignore:The codec of table")
@pytest.mark.parametrize("size", [1e-38, 1e10, 1e19, 1e37])
@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_rows_of_any_size_leave_a_table_that_works(tmp_path, size, metric):
    db = lancedb.connect(tmp_path)
    rows = [{"id": number, **row} for number, row in enumerate(rows_of(alike(500).astype(np.float32)))]
    store = create_table(db, "docs", rows, config=dataclasses.replace(CONFIG, metric=metric))
    store.train(TrainConfig(epochs=0, progress=False), progress=False)
    far = [{"id": 1000 + number, "vector": unlike(1)[0] * size} for number in range(300)]
    store.add(far[:2])
    store.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(far[1:299])
    ingest(arrow(far[299:]), store, progress=False)
    assert len(store) == 800
    for handle in (store, open_table(db, "docs")):
        handle.add([{"id": 2000, "vector": alike(1)[0]}])
        assert handle.health().complete and (handle.health().error_ratio or 0) >= 0
        handle.optimize(progress=False)
        assert handle.verify(progress=False).ok
    assert (len(handle), handle.health().rows) == (802, 303)


def test_sums_that_overflowed_in_earlier_releases_are_read_as_the_largest(store):
    sums = health.DriftSums(fingerprint=store.codec.fingerprint, rows=300, sampled=100, squared_error=1.0)
    for error in ("1e300", "9223372036854775808.0", "Infinity", "NaN"):
        text = sums.properties[KEY].replace("1.0", error)
        append_rows(store.table, store.table.to_arrow().slice(0, 1).to_reader(), {KEY: text})
    store.add(rows_of(alike(3)))
    report = store.health()
    assert (report.unreadable, report.rows, report.needs_retraining) == (0, 1203, True)
    assert report.added_mse is not None and np.isfinite(report.added_mse)
    store.optimize(progress=False)
    assert store.health() == report


def test_a_warning_that_is_made_an_error_comes_before_rows_are_committed(store, quiet):
    far = [{"id": number, **row} for number, row in enumerate(rows_of(unlike(1000)))]
    keyed = create_table(
        lancedb.connect(store.table.uri.rpartition("/")[0]), "keyed", far[:500], config=CONFIG
    )
    keyed.train(TrainConfig(epochs=0, progress=False), vectors=alike(2000), encode=False, progress=False)
    for write, table in (
        (lambda: store.add(rows_of(unlike(1000))), store),
        (lambda: keyed.merge_insert("id").when_not_matched_insert_all().execute(far), keyed),
    ):
        rows, version = len(table), table.table.to_lance().latest_version
        with pytest.raises(UserWarning, match="does not fit the rows added"):
            write()
        assert (len(table), table.table.to_lance().latest_version) == (rows, version)


def test_a_note_that_cannot_be_written_after_a_merge_is_no_error(store, monkeypatch):
    def fail(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(merge, "commit_drift", fail)
    store.add_columns({"id": "1"})
    with pytest.warns(UserWarning, match=r"rows were merged.*could not be written: the disk is gone"):
        done = (
            store.merge_insert("id")
            .when_not_matched_insert_all()
            .execute([{"id": 7, **rows_of(alike(1))[0]}])
        )
    assert done.num_inserted_rows == 1 and store.count_rows("id = 7") == 1


def test_every_row_counts_and_a_sample_is_measured(store, monkeypatch):
    monkeypatch.setattr(health, "_SAMPLED_ROWS", 7)
    store.add(rows_of(alike(LEAST_ROWS)))
    sums = health.read_drift(store.table, store.codecs).sums
    assert (sums.rows, sums.sampled) == (LEAST_ROWS, 7)


@given(counts=st.lists(st.integers(0, 1000), min_size=2, max_size=20), factor=st.integers(1, 5))
def test_the_index_is_zero_for_the_same_shares(counts, factor):
    before = np.array(counts) * 100
    assert stability_index(before, before * factor) in (None, pytest.approx(0, abs=0.02))


def test_the_index_grows_with_the_shift():
    before = np.array([1000, 1000, 1000, 1000])
    shifts = [stability_index(before, before + np.array([0, 0, 0, more])) for more in (0, 1000, 4000, 40_000)]
    assert shifts == sorted(shifts) and shifts[0] == 0 and shifts[-1] > 1
    assert stability_index(before[:1], before[:1]) is None
    assert stability_index(before, before * 0) is None
