"""Ways to encode and decode: counted work equals that of torch, and errors are those of each way."""

import numpy as np
import pytest
import torch
from small_codecs import SHAPES, as_codec, small_config, stirred, vectors
from torch.utils.flop_counter import FlopCounterMode

from rqmoe_store.evaluation.codec_measurement import (
    decode_multiply_adds,
    mean_squared_error,
    measure_matmul_rate,
    measure_speed,
)

pytestmark = pytest.mark.usefixtures("brief_timing")

ROWS = vectors(300, seed=4)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_multiply_adds_are_those_of_torch(shape) -> None:
    quantizer = stirred(small_config(**shape))
    codes = torch.zeros(10, quantizer.num_steps, dtype=torch.long)
    partitions = torch.zeros(10, dtype=torch.long)
    folded = quantizer.fold()
    # In a format that is decoded by matrix products: the compiled loop is not torch's, and skips zeros.
    folded = None if folded is None else folded.to(torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        quantizer.decode(codes, partitions, folded)
    products = counter.get_total_flops() // 2 // 10  # it counts matrix products, two for a multiply-add
    additions = quantizer.num_steps * quantizer.dim
    assert decode_multiply_adds(quantizer.config, quantizer.dim) == products + additions


def test_one_step_without_partitions_has_no_experts() -> None:
    config = small_config(kind="rqmoe", code_bytes=1)
    assert decode_multiply_adds(config, 12) == 12


@pytest.mark.parametrize("name", ["rqmoe, partitions", "rq"])
def test_rows_compare_with_the_default_of_their_work(name) -> None:
    codec = as_codec(stirred(small_config(**SHAPES[name])))
    rows = measure_speed(codec, "a name", ROWS, matmul_rate=1e9)
    assert [(row.work, row.form, row.vectors) for row in rows] == [
        ("encode", "default (beam 4)", 4096),
        ("encode", "exhaustive (beam 1)", 256),
        ("decode", "default", 4096),
        ("decode", "step by step", 4096),
        ("decode", "bfloat16", 256),
    ]
    assert {(row.codec, row.code_bytes) for row in rows} == {("a name", 4)}
    beam, exhaustive, default, sequential, _ = rows
    assert default.times_default == beam.times_default == 1
    assert exhaustive.times_default == pytest.approx(exhaustive.microseconds / beam.microseconds)
    assert default.multiply_adds == decode_multiply_adds(codec.config, codec.dim)
    wanted_share = default.multiply_adds / (default.microseconds / 1e6) / 1e9
    assert default.matmul_share == pytest.approx(wanted_share)
    assert sequential.multiply_adds is None and exhaustive.matmul_share is None


def test_errors_are_those_of_the_forms_on_the_same_vectors() -> None:
    codec = as_codec(stirred(small_config()))
    beam, exhaustive, default, sequential, rounded = measure_speed(codec, "rqmoe", ROWS, matmul_rate=1e9)
    few = ROWS[:256]
    best = mean_squared_error(few, codec.decode(codec.encode(few)))
    alone = mean_squared_error(few, codec.decode(codec.encode(few, beam=1, preselect=None)))
    assert default.mse == beam.mse == pytest.approx(best)
    assert sequential.mse == pytest.approx(best, rel=1e-4)
    assert rounded.mse == pytest.approx(best, rel=1e-2)
    assert exhaustive.mse == pytest.approx(alone)
    assert alone != pytest.approx(best, rel=1e-3)


def test_fewer_vectors_than_are_timed() -> None:
    codec = as_codec(stirred(small_config()))
    (default, *_) = measure_speed(codec, "rqmoe", ROWS[:5], matmul_rate=1e9)
    assert default.mse == pytest.approx(mean_squared_error(ROWS[:5], codec.decode(codec.encode(ROWS[:5]))))


def test_mean_squared_error() -> None:
    decoded = np.array([[1.0, 2.0], [3.0, 0.0]], dtype=np.float32)
    assert mean_squared_error(np.zeros((2, 2), dtype=np.float32), decoded) == pytest.approx((5 + 9) / 2)


def test_matmul_rate_is_a_rate() -> None:
    assert 1e7 < measure_matmul_rate(torch.device("cpu")) < 1e14
