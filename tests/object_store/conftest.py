"""A server for buckets, and a codec."""

import logging
from collections.abc import Iterator

import pytest
from small_buckets import VECTORS
from small_tables import tiny_codec

from rqmoe_store.codecs.base import Codec


@pytest.fixture(scope="module")
def codec() -> Codec:
    return tiny_codec(VECTORS, "l2", 4)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server_module = pytest.importorskip("moto.server", reason="moto, a server for buckets, is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def options(endpoint: str) -> dict[str, str]:
    """How to reach the one bucket of the server, which is empty."""
    import boto3

    keys = {"aws_access_key_id": "someone", "aws_secret_access_key": "secret"}
    bucket = boto3.resource("s3", endpoint_url=endpoint, region_name="us-east-1", **keys).Bucket("bucket")
    bucket.create()
    bucket.objects.all().delete()
    # The server runs in this process: a call that lets no other thread run would wait for itself.
    patience = {"timeout": "20s", "client_max_retries": "5"}
    return {**keys, **patience, "aws_region": "us-east-1", "aws_endpoint": endpoint, "allow_http": "true"}
