"""Fixed dimensional encodings: equal to a reference, near MaxSim as the paper bounds it, reproducible."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rqmoe_store as rqs
from rqmoe_store.multivector.max_sim import max_sim


@pytest.fixture(autouse=True)
def few_threads():
    before = rqs.num_threads()
    rqs.set_num_threads(2)
    yield
    rqs.set_num_threads(before)


def unit_vectors(random: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    vectors = random.normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def bits_of(seed: int, purpose: int, repetition: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(purpose, repetition)))


def sketched(vector, dim, words):
    """The count sketch of a vector, by one random word for each component."""
    result = np.zeros(dim)
    for value, word in zip(vector, words, strict=True):
        result[(int(word) & (2**63 - 1)) % dim] += value if int(word) >> 63 else -value
    return result


def reference(encoder, vectors, is_query):
    """The encoding of one document or query, step by step as the paper has it."""
    parts = []
    for repetition in range(encoder.num_repetitions):
        words = bits_of(encoder.seed, 0, repetition).random_raw(encoder.dim * encoder.num_hyperplanes * 4)
        ones = [sum(int(word).bit_count() for word in words[i : i + 4]) for i in range(0, len(words), 4)]
        planes = np.array(ones).reshape(encoder.dim, encoder.num_hyperplanes) - 128.0
        sides = [tuple(int(each > 0) for each in vector @ planes) for vector in vectors.astype(np.float64)]
        # Partitions in the order of the Gray code: neighbors differ in one side.
        for partition in range(2**encoder.num_hyperplanes):
            bits = format(partition ^ partition >> 1, f"0{encoder.num_hyperplanes}b")
            wanted = tuple(int(bit) for bit in bits[: encoder.num_hyperplanes])
            inside = [v for v, s in zip(vectors.astype(np.float64), sides, strict=True) if s == wanted]
            part = np.zeros(encoder.dim)
            if is_query and inside:
                part = np.sum(inside, axis=0) / encoder.num_repetitions
            elif inside:
                part = np.mean(inside, axis=0)
            elif not is_query and encoder.fill_empty_partitions:
                apart = [sum(a != b for a, b in zip(s, wanted, strict=True)) for s in sides]
                part = vectors[int(np.argmin(apart))].astype(np.float64)
            if encoder.projected_dim is not None:
                words = bits_of(encoder.seed, 1, repetition).random_raw(encoder.dim)
                part = sketched(part, encoder.projected_dim, words)
            parts.append(part)
    whole = np.concatenate(parts)
    if encoder.final_dim is None:
        return whole
    return sketched(whole, encoder.final_dim, bits_of(encoder.seed, 2, 0).random_raw(len(whole)))


ENCODERS = st.builds(
    rqs.FixedDimensionalEncoder,
    st.integers(1, 9),
    num_repetitions=st.integers(1, 3),
    num_hyperplanes=st.integers(0, 4),
    projected_dim=st.none() | st.integers(1, 5),
    final_dim=st.none() | st.integers(1, 40),
    fill_empty_partitions=st.booleans(),
    seed=st.integers(0, 2**40),
)


@given(ENCODERS, st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(0, 2**32))
@settings(deadline=None, max_examples=25)
def test_encodings_are_those_of_the_reference(encoder, lengths, seed):
    random = np.random.default_rng(seed)
    documents = [unit_vectors(random, length, encoder.dim) for length in lengths]
    joined = np.concatenate(documents)
    encoded = encoder.encode_documents(joined, lengths)
    assert encoded.shape == (len(lengths), encoder.fde_dim) and encoded.dtype == np.float32
    for document, found in zip(documents, encoded, strict=True):
        expected = reference(encoder, document, False) if len(document) else np.zeros(encoder.fde_dim)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(encoder.encode_documents(documents), encoded)
    queries = [document for document in documents if len(document)]
    for query, found in zip(queries, encoder.encode_queries(queries), strict=True):
        np.testing.assert_allclose(found, reference(encoder, query, True), atol=1e-5)


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6))
@settings(deadline=None, max_examples=25)
def test_inner_products_never_exceed_max_sim(seed, query_rows, rows):
    """A mean of products with some vectors is at most the largest; one vector fills all partitions."""
    random = np.random.default_rng(seed)
    encoder = rqs.FixedDimensionalEncoder(8, num_repetitions=3, num_hyperplanes=3, seed=seed)
    query, document = unit_vectors(random, query_rows, 8), unit_vectors(random, rows, 8)
    product = float(encoder.encode_queries([query])[0] @ encoder.encode_documents([document])[0])
    (exact,) = max_sim(query, document, [rows])
    assert product <= exact + 1e-5
    if rows == 1:
        assert product == pytest.approx(float(exact), abs=1e-5)


@pytest.mark.parametrize("projected_dim", [None, 16])
def test_inner_products_approximate_max_sim_better_with_more_hyperplanes(projected_dim):
    """Theorem 2.1: within eps of the mean over the query, for hyperplanes of the order of 1 / eps."""
    random = np.random.default_rng(4)
    documents = [unit_vectors(random, 6, 16) for _ in range(40)]
    # Each query vector is near one of the document's, and the document's others are elsewhere.
    queries = [
        unit / np.linalg.norm(unit, axis=1, keepdims=True)
        for unit in (document[:4] + 0.1 * unit_vectors(random, 4, 16) for document in documents)
    ]
    lengths = [6] * len(documents)
    exact = np.array([max_sim(query, np.concatenate(documents), lengths) for query in queries]) / 4

    def errors(hyperplanes, repetitions):
        encoder = rqs.FixedDimensionalEncoder(
            16, num_repetitions=repetitions, num_hyperplanes=hyperplanes, projected_dim=projected_dim
        )
        return encoder.encode_queries(queries) @ encoder.encode_documents(documents).T / 4 - exact

    few, many = errors(2, 16), errors(9, 16)
    own = np.arange(len(documents)), np.arange(len(documents))
    assert np.abs(many).mean() < 0.8 * np.abs(few).mean()
    assert np.abs(many[own]).mean() < 0.4 * np.abs(few[own]).mean()
    assert np.quantile(np.abs(many), 0.9) < 0.3
    # What counts in a search: the document of the query has the largest inner product.
    assert ((many + exact).argmax(axis=1) == np.arange(len(documents))).all()


def test_repetitions_lower_the_error_of_projections():
    random = np.random.default_rng(5)
    documents, query = [unit_vectors(random, 5, 12) for _ in range(60)], unit_vectors(random, 3, 12)

    def deviation(repetitions):
        whole, projected = (
            rqs.FixedDimensionalEncoder(12, num_repetitions=repetitions, num_hyperplanes=3, projected_dim=dim)
            for dim in (None, 4)
        )
        products = [
            each.encode_documents(documents) @ each.encode_queries([query])[0] for each in (whole, projected)
        ]
        return np.std(products[0] - products[1])

    assert deviation(64) < 0.5 * deviation(2)


def test_encodings_depend_neither_on_the_batch_nor_on_threads():
    random = np.random.default_rng(6)
    lengths = random.integers(0, 90, size=70)
    vectors = unit_vectors(random, int(lengths.sum()), 64)
    encoder = rqs.FixedDimensionalEncoder(64, projected_dim=8, final_dim=512)
    whole = encoder.encode_documents(vectors, lengths)
    rqs.set_num_threads(1)
    np.testing.assert_array_equal(encoder.encode_documents(vectors, lengths), whole)
    for number, (start, stop) in enumerate(itertools.pairwise([0, *np.cumsum(lengths)])):
        alone = encoder.encode_documents(vectors[start:stop], [stop - start])
        np.testing.assert_array_equal(alone[0], whole[number])


def test_random_numbers_are_those_that_stored_tables_were_made_with():
    """Literal values: another encoder would make all stored encodings worthless without a word."""
    encoder = rqs.FixedDimensionalEncoder(
        3, num_repetitions=2, num_hyperplanes=2, projected_dim=2, final_dim=6, seed=7
    )
    document = np.array([[1, 2, 4], [8, -16, 32]], np.float32)
    assert encoder.encode_documents([document]).tolist() == [[10, 5, 11, -25, -8, -1]]
    assert encoder.encode_queries([document]).tolist() == [[5, 0, 2.5, -12.5, 0, 12]]


def test_settings_are_readable_and_make_the_same_encoder():
    encoder = rqs.FixedDimensionalEncoder(24, num_repetitions=4, projected_dim=8, final_dim=100, seed=3)
    assert (encoder.dim, encoder.num_repetitions, encoder.num_hyperplanes) == (24, 4, 5)
    assert (encoder.projected_dim, encoder.final_dim, encoder.fde_dim, encoder.seed) == (8, 100, 100, 3)
    assert dataclasses.replace(encoder, final_dim=None).fde_dim == 4 * 2**5 * 8
    again = rqs.FixedDimensionalEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert again == encoder
    vectors = unit_vectors(np.random.default_rng(8), 9, 24)
    np.testing.assert_array_equal(again.encode_documents([vectors]), encoder.encode_documents([vectors]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        encoder.seed = 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "to_dict"),
        ({"format": 2, **rqs.FixedDimensionalEncoder(4).to_dict(), "more": 1}, "to_dict"),
        ({**rqs.FixedDimensionalEncoder(4).to_dict(), "format": 2}, "format 2"),
        ({**rqs.FixedDimensionalEncoder(4).to_dict(), "dim": 0}, "dim=0"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(rqs.InvalidInputError, match=message):
        rqs.FixedDimensionalEncoder.from_dict(wrong)


def test_too_large_an_encoding_is_refused():
    with pytest.raises(rqs.InvalidInputError, match="projected_dim"):
        rqs.FixedDimensionalEncoder(1024, num_hyperplanes=16)


@pytest.mark.parametrize(
    ("vectors", "lengths", "message"),
    [
        (np.ones((3, 5)), [3], "dimension 5; expected 4"),
        (np.ones((3, 4)), [2], "add up to 2 for 3 vectors"),
        (np.ones((3, 4)), [4, -1], "lengths"),
        (np.ones((3, 4)), [1.5, 1.5], "lengths"),
        (np.ones((3, 4)), [[3]], "lengths"),
        (np.ones((3, 4)), None, "without lengths"),
        (np.full((3, 4), np.nan), [3], "NaN"),
        ([np.ones((2, 4)), np.ones((2, 3))], None, "Document 1 .* dimension 3; expected 4"),
        ([np.ones((2, 4)), None], None, "Document 1"),
        ("text", None, "str"),
        (7, None, "int"),
    ],
)
def test_bad_vectors_are_refused(vectors, lengths, message):
    encoder = rqs.FixedDimensionalEncoder(4)
    for encode in (encoder.encode_documents, encoder.encode_queries):
        with pytest.raises(rqs.InvalidInputError, match=message):
            encode(vectors, lengths)


def test_documents_without_vectors_have_zeros_and_queries_without_are_refused():
    encoder = rqs.FixedDimensionalEncoder(4, final_dim=16)
    encoded = encoder.encode_documents([np.ones((2, 4)), [], np.empty((0, 4))])
    assert encoded[0].any() and not encoded[1:].any()
    assert encoder.encode_documents([]).shape == (0, 16)
    assert encoder.encode_documents(np.empty((0, 4)), []).shape == (0, 16)
    with pytest.raises(rqs.InvalidInputError, match="query 1 "):
        encoder.encode_queries([np.ones((2, 4)), []])


@given(ENCODERS, st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 2**32))
@settings(deadline=None)
def test_means_follow_from_encodings_without_partitions_and_projections(encoder, lengths, seed):
    random = np.random.default_rng(seed)
    vectors = unit_vectors(random, sum(lengths), encoder.dim)
    means = np.stack([each.mean(axis=0) for each in np.split(vectors, np.cumsum(lengths)[:-1])])
    whole = dataclasses.replace(encoder, num_hyperplanes=0, projected_dim=None, final_dim=None)
    estimated = whole.estimate_means(whole.encode_documents(vectors, lengths))
    np.testing.assert_allclose(estimated, means, atol=0.05)
    # Of documents of one vector, whatever projections keep of it is nearer than nothing.
    encodings = encoder.encode_documents(vectors, np.ones(len(vectors), np.int64))
    if encoder.fill_empty_partitions:
        left = vectors - encoder.estimate_means(encodings)
        assert (np.linalg.norm(left, axis=1) <= 1 + 1e-5).all()


def test_means_of_random_partitions_are_near_those_of_vectors():
    random = np.random.default_rng(0)
    centers = unit_vectors(random, 50, 32)
    vectors = np.repeat(centers, 10, axis=0) + 0.1 * random.normal(size=(500, 32)).astype(np.float32)
    encoder = rqs.FixedDimensionalEncoder(32, num_repetitions=8, num_hyperplanes=1, projected_dim=16)
    means = vectors.reshape(50, 10, 32).mean(axis=1)
    estimated = encoder.estimate_means(encoder.encode_documents(vectors, np.full(50, 10)))
    assert np.square(estimated - means).sum() < 0.1 * np.square(means).sum()


def test_encodings_of_another_dimension_have_no_means():
    encoder = rqs.FixedDimensionalEncoder(8, num_repetitions=2, num_hyperplanes=1)
    with pytest.raises(rqs.InvalidInputError, match="expected 32"):
        encoder.estimate_means(np.zeros((1, 8), np.float32))


def test_an_encoding_of_nothing_tells_means_of_zero():
    """The parts of these encodings cancel out in the only component."""
    encoder = rqs.FixedDimensionalEncoder(1, num_repetitions=1, num_hyperplanes=2, final_dim=1, seed=3)
    assert not encoder.encode_documents(np.ones((1, 1), np.float32), [1]).any()
    assert not encoder.means_FD.any()
