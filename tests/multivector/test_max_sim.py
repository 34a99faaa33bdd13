"""MaxSim in compiled loops and by tensors: equal to a plain reference, whatever is computed beside it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rqmoe_store as rqs
from rqmoe_store.multivector import max_sim as module
from rqmoe_store.multivector.max_sim import max_sim, max_sim_tensor


def reference(queries, documents):
    return np.array(
        [
            [
                (query.astype(np.float64) @ document.T.astype(np.float64)).max(axis=1).sum()
                if len(document)
                else -np.inf
                for document in documents
            ]
            for query in queries
        ]
    )


@given(
    st.integers(1, 20),
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.lists(st.integers(0, 150), min_size=1, max_size=5),
    st.integers(0, 2**32),
)
@settings(deadline=None)
def test_scores_are_those_of_the_reference(dim, query_lengths, lengths, seed):
    random = np.random.default_rng(seed)
    queries, documents = (
        [random.normal(size=(rows, dim)).astype(np.float32) for rows in counts]
        for counts in (query_lengths, lengths)
    )
    expected = reference(queries, documents)
    scores = max_sim(np.concatenate(queries), documents, query_lengths=query_lengths)
    assert scores.dtype == np.float32 and scores.shape == (len(queries), len(documents))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    alone = max_sim(queries[0], np.concatenate(documents), lengths)
    np.testing.assert_allclose(alone, expected[0], rtol=1e-4, atol=1e-4)
    by_tensor = max_sim_tensor(
        torch.from_numpy(np.concatenate(queries)),
        np.array(query_lengths),
        torch.from_numpy(np.concatenate(documents)),
        np.array(lengths),
    )
    np.testing.assert_allclose(by_tensor.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_scores_depend_neither_on_other_documents_nor_on_threads():
    random = np.random.default_rng(1)
    lengths = random.integers(0, 200, size=60)
    vectors = random.normal(size=(int(lengths.sum()), 96)).astype(np.float32)
    query = random.normal(size=(13, 96)).astype(np.float32)
    before = rqs.num_threads()
    rqs.set_num_threads(3)
    whole = max_sim(query, vectors, lengths)
    rqs.set_num_threads(1)
    np.testing.assert_array_equal(max_sim(query, vectors, lengths), whole)
    rqs.set_num_threads(before)
    ends = np.cumsum(lengths)
    for number, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        alone = max_sim(query, vectors[end - length : end], [length])
        np.testing.assert_array_equal(alone, whole[number : number + 1])


def test_tensors_are_computed_in_parts(monkeypatch):
    random = np.random.default_rng(2)
    lengths = np.array([3, 0, 50, 1, 9])
    vectors = random.normal(size=(63, 8)).astype(np.float32)
    query = random.normal(size=(4, 8)).astype(np.float32)
    monkeypatch.setattr(module, "_TENSOR_PRODUCTS", 4 * 10)
    parts = max_sim_tensor(torch.from_numpy(query), np.array([4]), torch.from_numpy(vectors), lengths)
    np.testing.assert_allclose(parts[0].numpy(), max_sim(query, vectors, lengths), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": np.empty((0, 4))}, "query without vectors"),
        ({"query_lengths": [2, 0]}, "query without vectors"),
        ({"query_lengths": [1]}, "add up to 1 for 2"),
        ({"query": np.ones((2, 3))}, "dimension 4; expected 3"),
        ({"query": np.full((2, 4), np.inf)}, "infinite"),
        ({"query": np.ones(4)}, "two dimensions"),
        ({"vectors": np.full((5, 4), np.nan)}, "NaN"),
        ({"lengths": [2, 2]}, "add up to 4 for 5"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    good = {"query": np.ones((2, 4)), "vectors": np.ones((5, 4)), "lengths": [2, 3]}
    with pytest.raises(rqs.InvalidInputError, match=message):
        max_sim(**good | arguments)
