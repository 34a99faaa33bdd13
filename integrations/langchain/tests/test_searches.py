"""Relevance of distances."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_rqmoe.searches import relevance_of

angles = st.floats(0, math.pi)


def distance(metric: str, angle: float) -> float:
    """Between two vectors of length 1, as LanceDB has it."""
    one, other = np.array([1.0, 0.0]), np.array([math.cos(angle), math.sin(angle)])
    by_metric = {"l2": float(((one - other) ** 2).sum()), "cosine": 1 - one @ other, "dot": 1 - one @ other}
    return by_metric[metric]


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@given(pair=st.tuples(angles, angles).map(sorted))
def test_nearer_is_more_relevant(metric, pair):
    near, far = (relevance_of(metric, distance(metric, angle)) for angle in pair)
    assert near >= far - 1e-9
    assert near <= 1 + 1e-9


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_ends_of_the_scale(metric):
    assert relevance_of(metric, distance(metric, 0)) == pytest.approx(1)
    assert relevance_of(metric, distance(metric, math.pi / 2)) == pytest.approx(0)


def test_rounding_takes_nothing_above_one():
    assert relevance_of("cosine", -1e-7) == 1
    assert relevance_of("l2", -1e-7) == 1


def test_longer_vectors_by_dot_stay_in_order():
    assert relevance_of("dot", 1 - 30.0) > relevance_of("dot", 1 - 2.0) > relevance_of("dot", 1 - 0.9)
