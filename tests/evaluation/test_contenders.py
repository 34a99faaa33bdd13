"""Which codecs are measured at which sizes, what is refused before training, and how they are timed."""

import sys
from pathlib import Path

import numpy as np
import pytest
from small_codecs import DIM, as_codec, small_config, stirred

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import ArtifactError, InvalidInputError, RQMoEError
from rqmoe_store.evaluation import contenders as module
from rqmoe_store.evaluation.contenders import (
    BATCHES,
    OwnCodec,
    check_names,
    cyclic,
    plan_contenders,
    time_call,
    time_codec,
)

CONFIG = CodecConfig(codebook_size=16, num_partitions=0)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A codec of 4 bytes for l2."""
    as_codec(stirred(small_config())).save(tmp_path / "codec")
    return str(tmp_path / "codec")


def planned(names, sizes=(8, 2), config=CONFIG, dim=DIM, rows=300) -> list[tuple[str, int]]:
    training = TrainConfig(device="cpu")
    contenders = plan_contenders(names, sizes, config=config, training=training, dim=dim, training_rows=rows)
    return [(contender.name, contender.code_bytes) for contender in contenders]


def test_plain_rq_is_the_first_of_every_size() -> None:
    assert planned(["rqmoe", "rq"]) == [("rq", 2), ("rqmoe", 2), ("rq", 8), ("rqmoe", 8)]
    assert planned(["opq"]) == [("rq", 2), ("opq", 2), ("rq", 8), ("opq", 8)]
    assert planned(["qinco", "qinco"], sizes=[2, 2]) == [("rq", 2), ("qinco", 2)]


def test_a_folder_has_a_size_of_its_own(folder) -> None:
    assert planned([folder]) == [("rq", 4), (folder, 4)]
    assert planned(["rqmoe", folder], sizes=[2]) == [("rq", 2), ("rqmoe", 2), ("rq", 4), (folder, 4)]
    assert planned(["rqmoe", folder], sizes=[4]) == [("rq", 4), ("rqmoe", 4), (folder, 4)]


def test_a_folder_is_loaded_and_not_trained(folder) -> None:
    _, contender = plan_contenders(
        [folder], [8], config=CONFIG, training=TrainConfig(device="cpu"), dim=DIM, training_rows=300
    )
    assert not contender.is_trained
    codec = contender.prepare(None)
    assert isinstance(codec, OwnCodec)
    files = [path for path in Path(folder).iterdir() if path.suffix == ".safetensors"]
    assert codec.artifact_bytes > files[0].stat().st_size


def test_a_folders_codec_must_fit(folder, tmp_path) -> None:
    with pytest.raises(InvalidInputError, match=r"dimension 12 .* have dimension 13"):
        planned([folder], dim=13)
    with pytest.raises(InvalidInputError, match=r"metric 'l2'; .* metric is 'cosine'"):
        planned([folder], config=CodecConfig(metric="cosine", num_partitions=0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="No codec"):
        planned([str(tmp_path / "empty")])


def test_scalar_codecs_have_sizes_of_their_own() -> None:
    assert planned(["int8", "binary"], sizes=[2]) == [("int8", DIM), ("binary", (DIM + 7) // 8)]
    assert planned(["binary", "opq"], sizes=[4]) == [("rq", 4), ("opq", 4), ("binary", (DIM + 7) // 8)]


@pytest.mark.parametrize("name", ["rqmo", "", "OPQ", "/no/such/folder"])
def test_unknown_names(name) -> None:
    with pytest.raises(InvalidInputError, match="rqmoe, qinco, rq, opq, faiss-rq, lsq, int8, binary"):
        check_names(["rq", name])


def test_too_few_vectors_for_a_peer() -> None:
    with pytest.raises(InvalidInputError, match="Got 255 vectors to train lsq on; expected at least 256"):
        planned(["lsq"], rows=255)
    assert planned(["rqmoe"], sizes=[2], rows=255) == [("rq", 2), ("rqmoe", 2)]


def test_without_faiss(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(RQMoEError, match=r'pip install "rqmoe-store\[bench\]"'):
        planned(["faiss-rq"])
    assert planned(["rq"], sizes=[2]) == [("rq", 2)]


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
