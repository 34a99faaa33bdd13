"""Steps of what is done with a table in a bucket, beside the same in a folder."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
from lancedb.db import DBConnection

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.table import CompressedTable

ROWS, DIM = 400, 8
VECTORS = np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32)
QUERIES = VECTORS[:3] + np.float32(0.01)
CONFIG = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, num_partitions=4, beam=2)
TRAINING = TrainConfig(epochs=0, progress=False)
BUCKET = "s3://bucket"

Step = tuple[str, Any]
"""What was done and what came of it, equal wherever the table is."""


def connected(folder: Path, options: dict[str, str]) -> dict[str, Callable[[], DBConnection]]:
    """What connects to a database in a folder and to one in the bucket."""
    return {
        "folder": functools.partial(lancedb.connect, folder / "db"),
        "bucket": functools.partial(lancedb.connect, f"{BUCKET}/db", storage_options=options),
    }


def assert_equal(expected: list[Step], got: list[Step]) -> None:
    """What came of every step is the same."""
    for (step, one), (_, other) in zip(expected, got, strict=True):
        assert other == one, step


def found(store: CompressedTable, **where: str) -> list[list[dict[str, Any]]]:
    """What searches find with codes in memory and on disk."""
    results = []
    for cache in ("memory", "disk"):
        search = store.use_cache(cache).search(QUERIES).nprobes(4).limit(5).with_row_id(True)
        results.append((search.where(where["where"]) if where else search).to_list())
    store.use_cache("memory")
    return results
