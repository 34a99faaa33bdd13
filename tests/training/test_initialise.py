"""What is said about the number of vectors."""

import warnings

import numpy as np
import pytest
from small_codecs import small_config, vectors

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.training.initialise import warn_if_few
from rqmoe_store.training.trainer import train


def test_too_few_rows_are_a_warning_that_names_enough() -> None:
    with pytest.warns(UserWarning, match=r"Training on 16,383 vectors; 16,384 would do .*codebook_size=256"):
        warn_if_few(16_383, CodecConfig(), stacklevel=1)
    with pytest.warns(UserWarning, match="1,024 would do"):
        warn_if_few(17, small_config(), stacklevel=1)


def test_enough_rows_are_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_few(16_384, CodecConfig(), stacklevel=1)
        warn_if_few(1024, small_config(), stacklevel=1)


def test_training_warns_at_the_line_that_called_it() -> None:
    settings = TrainConfig(epochs=0, progress=False)
    config = CodecConfig(kind="rq", code_bytes=1, codebook_size=16)
    with pytest.warns(UserWarning, match="Training on 450 vectors; 1,024 would do") as caught:
        train(vectors(500), config=config, training=settings)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(np.repeat(vectors(500), 3, axis=0), config=config, training=settings)
