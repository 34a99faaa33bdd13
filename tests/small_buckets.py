"""Steps of what is done with a table in a bucket, beside the same in a folder."""

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
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


@contextlib.contextmanager
def bucket_server() -> Iterator[str]:
    """The endpoint of a server for buckets, which runs in this process."""
    serving = pytest.importorskip("werkzeug.serving", reason="moto, a server for buckets, is missing")
    moto = pytest.importorskip(
        "moto.moto_server.werkzeug_app", reason="moto, a server for buckets, is missing"
    )
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    # moto's own server finds out for every request which of all services it is for, by reading folders.
    server = serving.make_server(
        "127.0.0.1", 0, moto.create_backend_app("s3"), threaded=True, request_handler=moto.MotoRequestHandler
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def empty_bucket(endpoint: str) -> dict[str, str]:
    """How to reach the one bucket of the server, which is empty."""
    import boto3

    keys = {"aws_access_key_id": "someone", "aws_secret_access_key": "secret"}
    bucket = boto3.resource("s3", endpoint_url=endpoint, region_name="us-east-1", **keys).Bucket("bucket")
    bucket.create()
    bucket.objects.all().delete()
    # The server runs in this process: a call that lets no other thread run would wait for itself.
    patience = {"timeout": "20s", "client_max_retries": "5"}
    return {**keys, **patience, "aws_region": "us-east-1", "aws_endpoint": endpoint, "allow_http": "true"}


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
