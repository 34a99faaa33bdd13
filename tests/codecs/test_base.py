"""The codec's public interface: input checks, saving, devices."""

import numpy as np
import pytest
import torch
from small_codecs import DIM, as_codec, small_config, stirred, vectors

from rqmoe_store.codecs.base import Codec, load_codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.errors import InvalidInputError

PLAIN = as_codec(stirred(small_config()))
PARTITIONED = as_codec(stirred(small_config(num_partitions=3, metric="cosine")))


def test_save_and_load_give_identical_codes_and_reconstructions(codec: Codec, tmp_path) -> None:
    rows = vectors(80, seed=1)
    codec.save(tmp_path / "codec")
    loaded = load_codec(tmp_path / "codec", device="cpu")
    codes, again = codec.encode(rows), loaded.encode(rows)
    np.testing.assert_array_equal(codes.codes, again.codes)
    np.testing.assert_array_equal(codes.partitions, again.partitions)
    np.testing.assert_array_equal(codec.decode(codes), loaded.decode(codes))
    np.testing.assert_array_equal(
        codec.lookup_tables(rows[:4]).score(codes), loaded.lookup_tables(rows[:4]).score(codes)
    )
    assert loaded.fingerprint == codec.fingerprint
    assert loaded.config == codec.config
    assert loaded.report == codec.report


def test_fingerprints_tell_codecs_apart(tmp_path) -> None:
    assert PLAIN.fingerprint != PARTITIONED.fingerprint
    assert PLAIN.fingerprint != PLAIN.truncate(3).fingerprint


def test_types_and_shapes(codec: Codec) -> None:
    codes = codec.encode(vectors(7))
    assert isinstance(codes, Codes)
    assert (codes.codes.dtype, codes.codes.shape) == (np.uint8, (7, 4))
    assert (codes.partitions.dtype, codes.partitions.shape) == (np.int32, (7,))
    decoded = codec.decode(codes)
    assert (decoded.dtype, decoded.shape) == (np.float32, (7, DIM))


@pytest.mark.parametrize("convert", [np.float64, np.float16, torch.from_numpy, np.ndarray.tolist])
def test_input_types(convert) -> None:
    rows = vectors(6).astype(np.float16).astype(np.float32)
    data = rows.astype(convert) if isinstance(convert, type) else convert(rows)
    np.testing.assert_array_equal(PLAIN.encode(data).codes, PLAIN.encode(rows).codes)


def test_cosine_ignores_length() -> None:
    rows = vectors(30)
    np.testing.assert_array_equal(PARTITIONED.encode(rows).codes, PARTITIONED.encode(rows * 8).codes)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((3, DIM + 1)), f"dimension {DIM + 1}; expected {DIM}"),
        (np.zeros(DIM), "two dimensions"),
        (np.zeros((2, 3, DIM)), "two dimensions"),
        ([["a"] * DIM], "text"),
        ([[1.0, 2.0], [1.0]], "same length"),
        (np.zeros((2, DIM), dtype=complex), "complex"),
        ([object()], "cannot be read as float32"),
    ],
)
def test_unusable_vectors(data, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        PLAIN.encode(data)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_rows_that_are_not_finite_are_named(value: float) -> None:
    rows = vectors(9).astype(np.float64)
    rows[[2, 5], 3] = value
    with pytest.raises(InvalidInputError, match=r"2 of 9 vectors .* rows 2, 5"):
        PLAIN.encode(rows)


def test_zero_vectors_under_cosine_are_named() -> None:
    rows = vectors(5)
    rows[4] = 0
    with pytest.raises(InvalidInputError, match=r"rows 4 \(counted"):
        PARTITIONED.encode(rows)
    assert len(PLAIN.encode(rows)) == 5


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (Codes(np.full((1, 4), 16, np.uint8), np.zeros(1, np.int32)), "code 16 in row 0"),
        (Codes(np.zeros((2, 4), np.uint8), np.array([0, 3], np.int32)), "partition id 3 in row 1"),
        (Codes(np.zeros((2, 4), np.uint8), np.array([-1, 0], np.int32)), "partition id -1"),
        (Codes(np.zeros((1, 5), np.uint8), np.zeros(1, np.int32)), "expected uint8"),
        (Codes(np.zeros((1, 4), np.int64), np.zeros(1, np.int32)), "expected uint8"),
        (Codes(np.zeros((2, 4), np.uint8), np.zeros(1, np.int32)), "one per code"),
        (np.zeros((1, 4), np.uint8), "has partitions"),
    ],
)
def test_unusable_codes(codes, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        PARTITIONED.decode(codes)


@pytest.mark.parametrize("choice", [{"precision": "float16"}, {"precision": "bfloat16", "sequential": True}])
def test_unusable_precisions(choice: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match="precision"):
        PLAIN.decode(PLAIN.encode(vectors(4)), **choice)


def test_plain_arrays_decode_without_partitions() -> None:
    codes = PLAIN.encode(vectors(4))
    np.testing.assert_array_equal(PLAIN.decode(codes.codes), PLAIN.decode(codes))


def test_codes_index_like_arrays() -> None:
    codes = PARTITIONED.encode(vectors(10))
    assert len(codes[2:5]) == 3
    np.testing.assert_array_equal(codes[:, :2].codes, codes.codes[:, :2])
    np.testing.assert_array_equal(codes[[4, 1]].partitions, codes.partitions[[4, 1]])
    np.testing.assert_array_equal(codes[-1].codes, codes.codes[-1:])


@pytest.mark.parametrize("num_steps", [0, 5, True])
def test_truncation_out_of_range(num_steps: int) -> None:
    with pytest.raises(InvalidInputError, match="num_steps="):
        PLAIN.truncate(num_steps)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_probe_orders_partitions_by_the_distances_of_their_centroids(metric) -> None:
    codec = as_codec(stirred(small_config(num_partitions=30, metric=metric)))
    queries = vectors(20)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    centroids = codec.coder.weights.centroids_PD.astype(np.float64)
    if metric == "cosine":
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    distances = -queries @ centroids.T
    if metric == "l2":
        distances = np.square(queries[:, None] - centroids).sum(axis=2)
    probed = codec.probe(queries, 100)
    np.testing.assert_array_equal(np.sort(probed), np.tile(np.arange(30), (20, 1)))
    # Neighbors in the order may be swapped by rounding, which is what float32 has for sums of these lengths.
    ordered = np.take_along_axis(distances, probed, axis=1)
    assert (np.diff(ordered, axis=1) > -1e-4 * (1 + np.abs(distances).max())).all()
    np.testing.assert_array_equal(codec.probe(queries, 7), probed[:, :7])


def test_a_vector_is_in_the_partition_that_is_nearest_under_l2() -> None:
    codec = as_codec(stirred(small_config(num_partitions=3, metric="l2")))
    rows = vectors(50)
    np.testing.assert_array_equal(codec.probe(rows, 1)[:, 0], codec.encode(rows).partitions)


@pytest.mark.parametrize("codec", [PARTITIONED, PLAIN])
@pytest.mark.parametrize("nprobes", [1, 2, 3, 9])
def test_partitions_are_marked_that_probe_gives(codec: Codec, nprobes: int) -> None:
    queries = vectors(5)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    expected = np.zeros((5, codec.num_partitions), dtype=bool)
    np.put_along_axis(expected, codec.probe(queries, nprobes), True, axis=1)
    np.testing.assert_array_equal(codec.probed(queries, nprobes), expected)


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_unknown_devices(device: str) -> None:
    with pytest.raises(InvalidInputError, match="device="):
        PLAIN.to(device)
