"""Warnings point at the line of the caller, however many frames of this package lie between."""

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from small_tables import source_table, tiny_codec

import rqmoe_store as rqs

VECTORS = np.random.default_rng(3).normal(size=(300, 8)).astype(np.float32)
FAR = [{"id": 1000 + row, "vector": vector} for row, vector in enumerate(20 * VECTORS)]


@pytest.fixture
def store(tmp_path: Path) -> rqs.CompressedTable:
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(VECTORS))
    return rqs.compress(docs, tiny_codec(VECTORS, "l2", 4), "small", progress=False)


def warned_at(call: Callable[[], Any], expected: str) -> None:
    """Assert that a call warns, and that the warning names the line of this file that made it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    (found,) = [each for each in caught if expected in str(each.message)]
    source, first = inspect.getsourcelines(call)
    assert found.filename == __file__
    assert first <= found.lineno < first + len(source)


def test_added_rows_that_do_not_fit(store: rqs.CompressedTable) -> None:
    warned_at(lambda: store.add(FAR), "does not fit the rows added")


def test_merged_rows_that_do_not_fit(store: rqs.CompressedTable) -> None:
    merge = store.merge_insert("id").when_not_matched_insert_all()
    warned_at(lambda: merge.execute(FAR), "does not fit the rows added")


def test_ingested_rows_that_do_not_fit(store: rqs.CompressedTable) -> None:
    warned_at(lambda: rqs.ingest(FAR, store, progress=False), "does not fit the rows added")


def test_codes_that_are_encoded_again(store: rqs.CompressedTable) -> None:
    training = rqs.TrainConfig(epochs=0, device="cpu", progress=False)
    warned_at(lambda: store.retrain(training, vectors=VECTORS, progress=False), "have codes only")


def test_few_rows_to_train_on() -> None:
    training = rqs.TrainConfig(epochs=0, device="cpu", progress=False)
    config = rqs.CodecConfig(kind="rq", code_bytes=2, num_partitions=1)
    warned_at(lambda: rqs.train(VECTORS, config=config, training=training), "Training on 2")


def test_each_caller_is_warned(store: rqs.CompressedTable, tmp_path: Path) -> None:
    """The default filter shows a warning once for every line that causes it."""
    other = rqs.open_table(lancedb.connect(tmp_path), "small")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        store.add(FAR)
        other.add(FAR)
    assert len({each.lineno for each in caught}) == 2
