"""FAISS codecs behind our interface: code sizes and plausible errors."""

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_codecs import DIM, curved

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_measurement import mean_squared_error
from rqmoe_store.evaluation.contenders import PEERS
from rqmoe_store.evaluation.faiss_peers import check_trainable, rotated_dim, train_peer

ROWS = curved(400)
VARIANCE = ((ROWS - ROWS.mean(axis=0)) ** 2).sum(axis=1).mean()


def error(codec, rows=ROWS) -> float:
    return mean_squared_error(rows, codec.decode(codec.encode(rows)))


@pytest.mark.parametrize("name", PEERS)
def test_peers_encode_and_decode(name, capfd) -> None:
    codec = train_peer(name, ROWS, code_bytes=2, beam=4)
    codes = codec.encode(ROWS)
    assert codes.shape == (400, 2) and codes.dtype == np.uint8
    decoded = codec.decode(codes)
    assert decoded.shape == ROWS.shape and decoded.dtype == np.float32
    # Alone or among others is another matrix product, which may be summed in another order.
    np.testing.assert_allclose(codec.decode(codes[7:9]), decoded[7:9], rtol=1e-5, atol=1e-5)
    assert error(codec) < 0.2 * VARIANCE
    assert 256 * DIM * 4 < codec.artifact_bytes < 40_000  # codebooks, and no vectors
    assert codec.epochs is None
    assert capfd.readouterr().err == ""  # no warning for each codebook


@pytest.mark.parametrize("code_bytes", [5, 8])
def test_opq_where_the_dimension_is_no_multiple(code_bytes) -> None:
    codec = train_peer("opq", ROWS, code_bytes=code_bytes, beam=1)
    assert codec.settings == {"rotated_dim": {5: 10, 8: 16}[code_bytes]}
    assert codec.encode(ROWS).shape == (400, code_bytes)
    assert error(codec) < 0.2 * VARIANCE


@given(dim=st.integers(1, 4000), code_bytes=st.integers(1, 128))
def test_rotated_dim_is_the_nearest_multiple(dim, code_bytes) -> None:
    rotated = rotated_dim(dim, code_bytes)
    assert rotated % code_bytes == 0 and rotated > 0
    assert rotated == code_bytes or abs(rotated - dim) <= code_bytes / 2
    assert dim % code_bytes or rotated == dim


def test_beam_is_that_of_encoding() -> None:
    narrow, wide = (train_peer("faiss-rq", ROWS, code_bytes=3, beam=beam) for beam in (1, 16))
    np.testing.assert_array_equal(narrow.decode(narrow.encode(ROWS)[:0]), np.empty((0, DIM), np.float32))
    assert narrow.index.rq.max_beam_size == 1 and wide.settings["training_beam"] == 5
    assert error(wide) < error(narrow)


def test_save_writes_an_index(tmp_path) -> None:
    codec = train_peer("opq", ROWS, code_bytes=2, beam=1)
    codec.save(tmp_path / "new" / "opq-2")
    again = faiss.read_index(str(tmp_path / "new" / "opq-2.faiss"))
    np.testing.assert_array_equal(again.sa_encode(ROWS), codec.encode(ROWS))


def test_too_few_rows() -> None:
    check_trainable("lsq", 256)
    with pytest.raises(InvalidInputError, match="at least 256"):
        check_trainable("lsq", 255)
