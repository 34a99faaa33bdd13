"""A codec that stops fitting is noticed, and one that fits is not complained about."""

import datetime
import warnings

import lancedb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import TableError
from rqmoe_store.store import drift
from rqmoe_store.store.drift import KEY
from rqmoe_store.store.health import LEAST_ROWS, stability_index
from rqmoe_store.tables import create_table, open_table

DIM = 8
random = np.random.default_rng(1)
MIXING = random.normal(size=(3, DIM))
CONFIG = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, num_partitions=4, beam=1)
NOW = datetime.timedelta(0)


def alike(rows: int) -> np.ndarray:
    return random.uniform(-1, 1, size=(rows, 3)) @ MIXING


def unlike(rows: int) -> np.ndarray:
    return random.normal(size=(rows, DIM)) * 3


def rows_of(vectors: np.ndarray) -> list[dict]:
    return [{"vector": vector} for vector in vectors]


@pytest.fixture
def store(tmp_path):
    store = create_table(lancedb.connect(tmp_path), "docs", rows_of(alike(2000)), config=CONFIG)
    assert "no codec yet" in str(store.health())
    assert not store.health().needs_retraining
    store.train(TrainConfig(epochs=0, progress=False), progress=False)
    return store


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
    with pytest.raises(TableError, match=r"about how its codec fits; expected what add\(\) wrote"):
        store.health()


def test_every_row_counts_and_a_sample_is_measured(store, monkeypatch):
    monkeypatch.setattr(drift, "_SAMPLED_ROWS", 7)
    store.add(rows_of(alike(LEAST_ROWS)))
    sums = drift.read_drift(store.table, store.codecs).sums
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
