"""Vectors and codes in any memory layout give the same results as plain arrays."""

import warnings

import numpy as np
import pytest
import torch
from array_layouts import LAYOUTS, ROUNDED_LAYOUTS, VECTOR_LAYOUTS
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import DIM, as_codec, small_config, stirred, vectors

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.device import as_tensor
from rqmoe_store.codecs.vectors import as_vectors
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.training.trainer import train

VECTORS = vectors(30)


@pytest.fixture(scope="module", params=[("rq", 0), ("rqmoe", 3), ("qinco", 3)], ids=str)
def codec(request):
    kind, partitions = request.param
    return as_codec(stirred(small_config(kind=kind, num_partitions=partitions)))


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Training on")
        yield


@pytest.mark.parametrize("layout", VECTOR_LAYOUTS)
def test_vectors_of_any_layout_encode_alike(codec, layout):
    expected, found = codec.encode(VECTORS), codec.encode(VECTOR_LAYOUTS[layout](VECTORS))
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.partitions, expected.partitions)


@pytest.mark.parametrize("layout", [*VECTOR_LAYOUTS, *ROUNDED_LAYOUTS])
def test_vectors_of_any_layout_train_the_same_codec(layout):
    whole = (vectors(60) * 3).round()
    config = CodecConfig(kind="rq", code_bytes=2, codebook_size=8)
    settings = TrainConfig(epochs=0, progress=False, device="cpu")
    laid_out = {**VECTOR_LAYOUTS, **ROUNDED_LAYOUTS}[layout](whole)
    expected = train(whole, config=config, training=settings, validation=whole[:20])
    found = train(laid_out, config=config, training=settings, validation=laid_out[:20])
    np.testing.assert_array_equal(found.encode(whole).codes, expected.encode(whole).codes)
    assert found.report.prefix_mse == pytest.approx(expected.report.prefix_mse)


@settings(max_examples=25)
@given(
    codes_layout=st.sampled_from(sorted(LAYOUTS)),
    partitions_layout=st.sampled_from(sorted(set(LAYOUTS) - {"tensor", "transposed tensor"})),
    type_=st.sampled_from(["int32", ">i4", "int64", "uint8", "uint64"]),
    start=st.integers(0, 30),
    step=st.sampled_from([-3, -1, 1, 2]),
    num_steps=st.integers(1, 4),
    sequential=st.booleans(),
)
def test_codes_of_any_layout_decode_alike(
    codec, codes_layout, partitions_layout, type_, start, step, num_steps, sequential
):
    plain = codec.encode(VECTORS)
    codes = Codes(
        LAYOUTS[codes_layout](plain.codes), LAYOUTS[partitions_layout](plain.partitions.astype(type_))
    )
    rows = slice(start, None, step)
    expected = codec.decode(Codes(plain.codes[:, :num_steps].copy(), plain.partitions))[rows]
    found = codec.decode(codes[rows, :num_steps], sequential=sequential)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_is_made_without_a_copy_unless_torch_needs_one(layout):
    given = LAYOUTS[layout](VECTORS)
    if isinstance(given, torch.Tensor):
        given = given.numpy()
    tensor = as_tensor(given)
    np.testing.assert_array_equal(tensor.numpy(), VECTORS)
    copied = layout in ("reversed", "reversed rows", "other byte order", "read-only", "memory-mapped")
    assert np.shares_memory(tensor.numpy(), given) != copied


def test_plain_vectors_are_not_copied():
    assert np.shares_memory(as_vectors(VECTORS), VECTORS)
    tensor = torch.from_numpy(VECTORS)
    assert np.shares_memory(as_vectors(tensor), VECTORS)


@pytest.mark.parametrize(
    "bad",
    [
        np.ma.masked_less(VECTORS, 0),
        torch.from_numpy(VECTORS).to_sparse(),
        [torch.zeros(DIM, requires_grad=True), [1.0] * DIM],
        [torch.zeros(DIM), torch.zeros(DIM + 1)],
        torch.zeros(2, DIM, dtype=torch.complex64),
    ],
    ids=["masked", "sparse", "mixed", "of two lengths", "complex"],
)
def test_input_that_is_not_a_plain_array_is_refused(codec, bad):
    with pytest.raises(InvalidInputError, match="cannot be read as float32 vectors"):
        codec.encode(bad)


@pytest.mark.parametrize("partitions", [np.zeros(3), np.zeros(3, dtype=bool)])
def test_partition_ids_must_be_integers(codec, partitions):
    with pytest.raises(InvalidInputError, match="integers, one per code"):
        codec.decode(Codes(np.zeros((3, 4), np.uint8), partitions))
