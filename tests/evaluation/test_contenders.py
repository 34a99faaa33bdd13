"""Which codecs are measured at which sizes, what is refused before training, and how they are timed."""

import dataclasses
import shutil
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


def planned(names, sizes=(8, 2), config=CONFIG, dim=DIM, rows=300, total_bytes=()) -> list[tuple[str, int]]:
    contenders = plan_contenders(
        names,
        sizes,
        config=config,
        training=TrainConfig(device="cpu"),
        dim=dim,
        training_rows=rows,
        total_bytes=total_bytes,
    )
    return [(contender.name, contender.code_bytes) for contender in contenders]


def test_plain_rq_is_the_first_of_every_size() -> None:
    assert planned(["rqmoe", "rq"]) == [("rq", 2), ("rqmoe", 2), ("rq", 8), ("rqmoe", 8)]
    assert planned(["opq"]) == [("rq", 2), ("opq", 2), ("rq", 8), ("opq", 8)]
    assert planned(["qinco", "qinco"], sizes=[2, 2]) == [("rq", 2), ("qinco", 2)]


def test_transform_codes_alone_are_measured_without_plain_rq() -> None:
    config = CodecConfig()
    assert planned(["pq", "saq"], config=config) == [("pq", 2), ("saq", 2), ("pq", 8), ("saq", 8)]
    assert planned(["pq", "rqmoe"], [2], config=config) == [("rq", 2), ("pq", 2), ("rqmoe", 2)]


def test_a_folder_has_a_size_of_its_own(folder) -> None:
    assert planned([folder]) == [("rq", 4), (folder, 4)]
    assert planned(["rqmoe", folder], sizes=[2]) == [("rq", 2), ("rqmoe", 2), ("rq", 4), (folder, 4)]
    assert planned(["rqmoe", folder], sizes=[4]) == [("rq", 4), ("rqmoe", 4), (folder, 4)]


def test_codecs_of_ours_are_measured_with_refine_codes_too(folder) -> None:
    contenders = plan_contenders(
        ["rq", folder, "binary"],
        [2],
        config=CONFIG,
        training=TrainConfig(epochs=0, progress=False, device="cpu"),
        dim=DIM,
        training_rows=300,
        refine_bytes=[3, 5],
    )
    names = [(each.name, each.code_bytes) for each in contenders]
    refined = [("rq-2+pq", 5), ("rq-2+pq", 7), (f"{folder}-4+pq", 7), (f"{folder}-4+pq", 9)]
    assert sorted(names) == sorted([("rq", 2), ("rq", 4), (folder, 4), ("binary", 2), *refined])
    rows = np.random.default_rng(0).normal(size=(300, DIM)).astype(np.float32)
    plain = next(each for each in contenders if each.name == "rq" and each.code_bytes == 2).prepare(rows)
    found = next(each for each in contenders if each.name == "rq-2+pq").prepare(rows)
    assert isinstance(plain, OwnCodec) and isinstance(found, OwnCodec)
    assert found.settings == {**plain.settings, "refine_bytes": 3}
    # Trained once: the first code is the same.
    np.testing.assert_array_equal(found.encode(rows).codes, plain.encode(rows).codes)
    assert (
        np.square(rows - found.decode(found.encode(rows))).sum()
        < np.square(rows - plain.decode(plain.encode(rows))).sum()
    )


def test_a_folder_that_is_named_by_its_size_is_not_told_it_twice(folder, tmp_path) -> None:
    named = str(shutil.copytree(folder, tmp_path / "rq-4"))
    assert planned([named], sizes=[4], total_bytes=[4, 7]) == [("rq", 4), (named, 4), (f"{named}+pq", 7)]


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
    assert planned(["int8", "binary"], sizes=[2]) == [("binary", (DIM + 7) // 8), ("int8", DIM)]
    assert planned(["binary", "opq"], sizes=[1]) == [("rq", 1), ("opq", 1), ("binary", (DIM + 7) // 8)]
    assert planned(["binary", "opq"], sizes=[4]) == [("binary", (DIM + 7) // 8), ("rq", 4), ("opq", 4)]


def test_codecs_with_bits_have_sizes_of_their_own() -> None:
    names = ["lancedb-ivf-rq-2", "faiss-rabitq-1", "faiss-eden-2", "faiss-turboquant-4", "faiss-sq-8"]
    cosine = dataclasses.replace(CONFIG, metric="cosine")
    assert planned(names, dim=64, config=cosine) == [
        ("faiss-rabitq-1", 8 + 8),
        ("faiss-eden-2", 16 + 8),
        ("faiss-turboquant-4", 32),
        ("lancedb-ivf-rq-2", 8 + 20 + 8 + 8),
        ("faiss-sq-8", 64),
    ]
    assert planned(["faiss-sq-4", "opq", "faiss-sq-4"], sizes=[8], dim=16) == [
        ("rq", 8),  # before others of its size, whose error is relative to its error
        ("opq", 8),
        ("faiss-sq-4", 8),
    ]


def test_codecs_with_bits_must_fit() -> None:
    with pytest.raises(InvalidInputError, match="faiss-turboquant-2 is for vectors of length 1"):
        planned(["faiss-turboquant-2"])
    with pytest.raises(InvalidInputError, match=r"multiple of 8; got 12\. Leave out lancedb-ivf-rq-1"):
        planned(["lancedb-ivf-rq-1"])
    with pytest.raises(InvalidInputError, match=r"divide it; got \[8\].* leave out lancedb-ivf-pq"):
        planned(["lancedb-ivf-pq"])
    with pytest.raises(InvalidInputError, match="multiple of 8 under the metric 'cosine' or 'dot'; got 16"):
        planned(["turbovec-2"], dim=16)
    with pytest.raises(InvalidInputError, match="usearch-i8 is for vectors of length 1"):
        planned(["usearch-i8"])


def test_at_totals_ours_get_refine_codes_and_all_others_that_size() -> None:
    found = planned(
        ["rq", "pq", "opq", "binary"], sizes=[2, 4], total_bytes=[4, 8, 2, 12], config=CodecConfig()
    )
    ours = [("rq", 2), ("rq", 4), ("rq-4+pq", 8), ("rq-4+pq", 12)]  # on the longest code
    sized = [(name, size) for name in ("pq", "opq") for size in (2, 4, 8, 12)]
    assert sorted(found) == sorted([*ours, *sized, ("binary", 2)])
    assert found == sorted(found, key=lambda each: each[1])


def test_at_totals_plain_rq_is_not_measured_for_others() -> None:
    assert planned(["opq"], sizes=[2], total_bytes=[3, 5]) == [("opq", 3), ("opq", 5)]
    # IVF_PQ has 8 bytes of row id, and parts that divide the dimension, which is 12.
    found = planned(["lancedb-ivf-pq"], sizes=[2], total_bytes=[8, 9, 14, 16, 18])
    assert found == [("lancedb-ivf-pq", 8 + size) for size in (1, 6)]


def test_what_takes_long_to_train_is_not_measured_at_large_totals() -> None:
    assert planned(["faiss-rq", "lsq"], total_bytes=[16, 64, 65]) == [
        ("faiss-rq", 16), ("lsq", 16), ("faiss-rq", 64)
    ]  # fmt: skip


def test_one_training_of_faiss_rq_is_enough_for_all_sizes() -> None:
    rows = np.random.default_rng(0).normal(size=(300, DIM)).astype(np.float32)
    contenders = plan_contenders(
        ["faiss-rq"],
        [],
        config=CONFIG,
        training=TrainConfig(device="cpu"),
        dim=DIM,
        training_rows=300,
        total_bytes=[1, 3, 2],
    )
    decoded = {each.code_bytes: each.prepare(rows) for each in contenders}
    codes = {size: codec.encode(rows) for size, codec in decoded.items()}
    assert {size: found.shape for size, found in codes.items()} == {size: (300, size) for size in (1, 2, 3)}
    errors = [np.square(rows - codec.decode(codes[size])).sum() for size, codec in sorted(decoded.items())]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    "name",
    [
        "rqmo",
        "",
        "OPQ",
        "/no/such/folder",
        "faiss-rabitq",
        "faiss-sq-5",
        "faiss-eden-02",
        "turbovec-3",
        "qdrant",
    ],
)
def test_unknown_names(name) -> None:
    known = (
        r"rqmoe, qinco, rq, pq, saq, turboquant, faiss-pq, opq, faiss-rq, lsq, lancedb-ivf-pq, int8, binary, "
        r"faiss-rabitq-1\|2.*, faiss-sq-4\|6\|8, lancedb.*, turbovec-2\|4, usearch-i8\|b1, qdrant-turbo-1\|1"
    )
    with pytest.raises(InvalidInputError, match=known):
        check_names(["rq", name])


def test_too_few_vectors_for_a_peer() -> None:
    with pytest.raises(InvalidInputError, match="Got 255 vectors to train lsq on; expected at least 256"):
        planned(["lsq"], rows=255)
    assert planned(["rqmoe"], sizes=[2], rows=255) == [("rq", 2), ("rqmoe", 2)]


def test_without_faiss(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    for name in ("faiss-rq", "faiss-rabitq-1"):
        with pytest.raises(RQMoEError, match=r'pip install faiss-cpu, or .*"rqmoe-store\[bench\]"'):
            planned([name])
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
