"""Recorded decoding equals plain decoding. Needs a GPU."""

import numpy as np
import pytest
import torch
from small_codecs import as_codec, small_config, stirred, vectors

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.decoding import LARGEST_BATCH

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 2, 3, 64, 1000, LARGEST_BATCH, LARGEST_BATCH + 1])
def test_recorded_batches_decode_like_the_cpu(codec: Codec, batch: int, precision: str) -> None:
    codes = codec.encode(vectors(batch, seed=4))
    expected = codec.decode(codes, precision=precision)
    on_gpu = Codec.from_artifact(codec.to_artifact(), device="cuda")
    for part in (codes, codes[::-1], codes[:, :2]):  # a second replay must not remember the first
        again = on_gpu.decode(part, precision=precision)
        np.testing.assert_allclose(again, codec.decode(part, precision=precision), atol=2e-2)
    np.testing.assert_allclose(on_gpu.decode(codes, precision=precision), expected, atol=2e-2)


def test_two_batch_sizes_do_not_share_buffers() -> None:
    codec = as_codec(stirred(small_config())).to("cuda")
    codes = codec.encode(vectors(40))
    first = codec.decode(codes[:3])
    codec.decode(codes[3:40])
    np.testing.assert_array_equal(first, codec.decode(codes[:3]))
