"""Calls that timing makes, and how often; never their duration."""

import numpy as np
import pytest

from rqmoe_store.evaluation import contenders as module
from rqmoe_store.evaluation.contenders import BATCHES, cyclic, time_call, time_codec

ROWS = np.arange(30, dtype=np.float32).reshape(10, 3)


class Recorder:
    """A codec whose codes are the vectors, and which notes how many it was given."""

    def __init__(self) -> None:
        self.encoded: list[int] = []
        self.decoded: list[int] = []

    def encode(self, vectors):
        self.encoded.append(len(vectors))
        return vectors

    def decode(self, codes):
        self.decoded.append(len(codes))
        return codes


def test_cyclic_starts_over() -> None:
    np.testing.assert_array_equal(cyclic(ROWS, 23), np.concatenate([ROWS, ROWS, ROWS[:3]]))
    np.testing.assert_array_equal(cyclic(ROWS, 4), ROWS[:4])


def test_slow_work_runs_as_often_as_it_must(monkeypatch) -> None:
    now = iter(range(0, 10_000, 7))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(now))
    calls: list[int] = []
    assert time_call(lambda: calls.append(1) or len(calls), least=2) == (7, 2)


def test_quick_work_runs_for_a_while_and_not_for_ever(monkeypatch) -> None:
    moments = iter(np.arange(0, 100, 0.1))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(moments))
    calls: list[int] = []
    seconds, _ = time_call(lambda: calls.append(1))
    assert seconds == pytest.approx(0.1)
    assert len(calls) in (5, 6)  # half a second of a tenth each, up to rounding
    monkeypatch.setattr(module.time, "perf_counter", lambda: 0.0)
    calls.clear()
    time_call(lambda: calls.append(1))
    assert len(calls) == 100


def test_every_batch_size_is_warmed_up_and_timed() -> None:
    codec = Recorder()
    encoding, decoding = time_codec(codec, ROWS)
    assert list(encoding) == list(decoding) == list(BATCHES)
    assert all(time > 0 for time in (*encoding.values(), *decoding.values()))
    for given in (codec.encoded, codec.decoded):
        assert given[0] == 64  # not timed
        assert set(given[1:]) == set(BATCHES)
        assert given.count(1) >= 3
