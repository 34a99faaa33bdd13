"""A server for buckets, and a codec."""

from collections.abc import Iterator

import pytest
from small_buckets import VECTORS, bucket_server, empty_bucket
from small_tables import tiny_codec

from rqmoe_store.codecs.base import Codec


@pytest.fixture(scope="module")
def codec() -> Codec:
    """With refine codes."""
    return tiny_codec(VECTORS, "l2", 4, refine_bytes=6)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with bucket_server() as endpoint:
        yield endpoint


@pytest.fixture
def options(endpoint: str) -> dict[str, str]:
    return empty_bucket(endpoint)
