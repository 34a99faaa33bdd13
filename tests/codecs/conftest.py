"""Small codecs of every kind."""

import pytest
from small_codecs import SHAPES, as_codec, small_config, stirred

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig


@pytest.fixture(params=SHAPES, scope="session")
def codec(request: pytest.FixtureRequest) -> Codec:
    """Every kind of codec in turn."""
    return as_codec(stirred(small_config(**SHAPES[request.param])))


@pytest.fixture(params=[name for name in SHAPES if not name.startswith("rq,") and name != "rq"])
def expert_config(request: pytest.FixtureRequest) -> CodecConfig:
    """Every configuration that has experts."""
    return small_config(**SHAPES[request.param])
