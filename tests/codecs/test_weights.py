"""Weights as arrays: the shapes that configurations give them."""

import itertools

import numpy as np
import pytest
from small_codecs import DIM, SHAPES, as_codec, small_config, stirred

from rqmoe_store.codecs.kinds import make_quantizer
from rqmoe_store.codecs.prepared import quantizer_of
from rqmoe_store.codecs.weights import QuantizerWeights, weight_shapes


@pytest.mark.parametrize("kind", ["rq", "qinco", "rqmoe"])
def test_shapes_are_those_of_the_modules(kind: str) -> None:
    for partitions, steps, layers, width in itertools.product((0, 3), (1, 4), (1, 2), (5, DIM)):
        config = small_config(
            kind=kind, num_partitions=partitions, code_bytes=steps, num_layers=layers, network_dim=width
        )
        quantizer = make_quantizer(config, DIM)
        shapes = {name: tuple(tensor.shape) for name, tensor in quantizer.state_dict().items()}
        assert weight_shapes(config, DIM) == shapes
        weights = QuantizerWeights.of(quantizer)
        assert weights.dim == DIM and weights.num_partitions == quantizer.num_partitions
        assert weights.deformation_dim == quantizer.deformation_dim


@pytest.mark.parametrize("kind", SHAPES)
def test_a_quantizer_has_the_weights_that_it_was_made_of(kind: str) -> None:
    weights = QuantizerWeights.of(stirred(small_config(**SHAPES[kind])))
    again = QuantizerWeights.of(quantizer_of(weights))
    assert again.arrays.keys() == weights.arrays.keys()
    for name, array in weights.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


def test_truncated_weights_are_those_of_the_shorter_configuration(codec) -> None:  # type: ignore[no-untyped-def]
    whole = codec.coder.weights
    shorter = codec.truncate(2)
    shapes = {name: array.shape for name, array in shorter.coder.weights.arrays.items()}
    assert shapes == weight_shapes(shorter.config, codec.dim)
    for name, array in shorter.coder.weights.arrays.items():
        np.testing.assert_array_equal(array, whole.arrays[name][: len(array)] if array.ndim else array)
    assert as_codec(quantizer_of(shorter.coder.weights)).config == shorter.config
