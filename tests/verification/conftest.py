"""Tables in all states, for the tests of verifying them."""

import functools
import shutil

import lancedb
import numpy as np
import pytest

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.tables import create_table, open_table

DIM, ROWS = 16, 120
VECTORS = np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32)


def _rows(first, last):
    return [{"id": row, "text": f"row {row}", "vector": VECTORS[row]} for row in range(first, last)]


def _training(seed):
    return TrainConfig(epochs=0, seed=seed, progress=False)


@pytest.fixture
def db(tmp_path):
    return lancedb.connect(tmp_path / "db")


def _make(db, name="docs", *, coded=True, keep="none", metric="l2", **config):
    config = CodecConfig(
        kind="rq", code_bytes=4, codebook_size=16, num_partitions=2, beam=1, metric=metric, **config
    )
    store = create_table(db, name, _rows(0, 90), config=config, keep_vectors=keep)
    if coded:
        store.train(_training(0), progress=False)
    store.add(_rows(90, 100), encode=False)
    return store


@pytest.fixture
def make_store(db):
    """Makes a table of 100 raw rows, of which a codec has encoded 90 unless told otherwise."""
    return functools.partial(_make, db)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A database with the table that `make_store` makes unless told otherwise."""
    folder = tmp_path_factory.mktemp("template")
    _make(lancedb.connect(folder))
    return folder


@pytest.fixture
def store(template, db, tmp_path):
    shutil.copytree(template, tmp_path / "db", dirs_exist_ok=True)
    return open_table(db, "docs")


@pytest.fixture(scope="session")
def rows():
    return _rows


@pytest.fixture(scope="session")
def training():
    return _training
