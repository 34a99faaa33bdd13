"""FAISS's codecs and indexes behind our interface: codes of the size asked for, and the right rows."""

import dataclasses

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_codecs import DIM as CURVED_DIM
from small_codecs import curved
from small_searches import DIM, ROWS, clustered, small_corpus

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation import faiss_peers
from rqmoe_store.evaluation.codec_measurement import mean_squared_error
from rqmoe_store.evaluation.faiss_peers import (
    FaissCodec,
    bits_index,
    build_faiss,
    check_metric,
    check_trainable,
    first_steps,
    rotated_dim,
    train_peer,
    train_rq,
    train_with_bits,
)
from rqmoe_store.evaluation.peer_names import FAISS_SYSTEMS, FORMS, PEERS, SYSTEM_FORMS
from rqmoe_store.evaluation.recall import exact_neighbors, k_recall_at_k
from rqmoe_store.evaluation.search_measurement import SearchSetting

CURVED = curved(400)

VARIANCE = ((CURVED - CURVED.mean(axis=0)) ** 2).sum(axis=1).mean()


def error(codec, rows=CURVED) -> float:
    return mean_squared_error(rows, codec.decode(codec.encode(rows)))


@pytest.mark.parametrize("name", PEERS)
def test_peers_encode_and_decode(name, capfd) -> None:
    codec = train_peer(name, CURVED, code_bytes=2, beam=4)
    codes = codec.encode(CURVED)
    assert codes.shape == (400, 2) and codes.dtype == np.uint8
    decoded = codec.decode(codes)
    assert decoded.shape == CURVED.shape and decoded.dtype == np.float32
    # Alone or among others is another matrix product, which may be summed in another order.
    np.testing.assert_allclose(codec.decode(codes[7:9]), decoded[7:9], rtol=1e-5, atol=1e-5)
    assert error(codec) < 0.2 * VARIANCE
    assert 256 * CURVED_DIM * 4 < codec.artifact_bytes < 40_000  # codebooks, and no vectors
    assert codec.epochs is None
    assert capfd.readouterr().err == ""  # no warning for each codebook


@pytest.mark.parametrize("code_bytes", [5, 8])
def test_opq_where_the_dimension_is_no_multiple(code_bytes) -> None:
    codec = train_peer("opq", CURVED, code_bytes=code_bytes, beam=1)
    assert codec.settings == {"rotated_dim": {5: 10, 8: 16}[code_bytes]}
    assert codec.encode(CURVED).shape == (400, code_bytes)
    assert error(codec) < 0.2 * VARIANCE


@given(dim=st.integers(1, 4000), code_bytes=st.integers(1, 128))
def test_rotated_dim_is_the_nearest_multiple(dim, code_bytes) -> None:
    rotated = rotated_dim(dim, code_bytes)
    assert rotated % code_bytes == 0 and rotated > 0
    assert rotated == code_bytes or abs(rotated - dim) <= code_bytes / 2
    assert dim % code_bytes or rotated == dim


def test_beam_is_that_of_encoding() -> None:
    narrow, wide = (train_peer("faiss-rq", CURVED, code_bytes=3, beam=beam) for beam in (1, 16))
    np.testing.assert_array_equal(
        narrow.decode(narrow.encode(CURVED)[:0]), np.empty((0, CURVED_DIM), np.float32)
    )
    assert narrow.index.rq.max_beam_size == 1 and wide.settings["training_beam"] == 1
    unseen = curved(400, seed=1)
    assert error(wide, unseen) < error(narrow, unseen)


def test_save_writes_an_index(tmp_path) -> None:
    codec = train_peer("opq", CURVED, code_bytes=2, beam=1)
    codec.save(tmp_path / "new" / "opq-2")
    again = faiss.read_index(str(tmp_path / "new" / "opq-2.faiss"))
    np.testing.assert_array_equal(again.sa_encode(CURVED), codec.encode(CURVED))


def test_too_few_rows() -> None:
    check_trainable("lsq", 256)
    with pytest.raises(InvalidInputError, match="at least 256"):
        check_trainable("lsq", 255)


QUERIES = clustered(30, seed=1)

WITH_BITS = [
    (family, int(bits)) for family, choices in FORMS.items() for bits in choices if "faiss" in family
]


@pytest.mark.parametrize(("family", "bits"), WITH_BITS)
def test_bytes_follow_from_bits(family, bits) -> None:
    factors = {"faiss-rabitq": 8 if bits == 1 else 20, "faiss-eden": 8}.get(family, 0)
    for dim in (384, 256):
        assert bits_index(family, bits, dim, "l2").sa_code_size() == dim * bits // 8 + factors


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("family", ["faiss-eden", "faiss-turboquant", "faiss-sq"])
def test_more_bits_lower_the_error(family, metric) -> None:
    errors = []
    for bits in map(int, FORMS[family]):
        codec = train_with_bits(family, bits, clustered(), metric=metric)
        assert isinstance(codec, FaissCodec)
        codes = codec.encode(QUERIES)
        assert codes.shape == (30, bits_index(family, bits, DIM, metric).sa_code_size())
        assert codes.dtype == np.uint8 and codec.artifact_bytes < 4000
        assert str(bits) in codec.settings["factory"]
        errors.append(error(codec, QUERIES))
    assert errors == sorted(errors, reverse=True) and errors[0] < 0.5 and errors[-1] < 0.001


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_faiss_searches_rabitq_itself(metric) -> None:
    truth, _ = exact_neighbors(QUERIES, clustered(), 10, metric=metric)
    recalls = []
    for bits in (1, 3, 7):
        codec = train_with_bits("faiss-rabitq", bits, clustered(500), metric=metric)
        few = codec.search(clustered(40), QUERIES, 40)
        assert sorted(few[0]) == list(range(40))  # nothing of another search is left
        found = codec.search(clustered(), QUERIES, 10)
        assert found.shape == (30, 10) and found.dtype == np.int64
        recalls.append(k_recall_at_k(found, truth, 10))
        np.testing.assert_array_equal(codec.search(clustered(40), QUERIES, 40), few)
    assert 0.3 < recalls[0] < recalls[1] < recalls[2] and recalls[2] > 0.95


def test_turboquant_is_for_unit_vectors() -> None:
    check_metric("faiss-turboquant-2", "faiss-turboquant", "cosine")
    check_metric("faiss-eden-2", "faiss-eden", "l2")
    with pytest.raises(InvalidInputError, match=r"faiss-turboquant-2 is for vectors of length 1.*got 'dot'"):
        check_metric("faiss-turboquant-2", "faiss-turboquant", "dot")


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("name", FAISS_SYSTEMS)
def test_indexes_answer(name, metric, tmp_path, capfd) -> None:
    index = build_faiss(small_corpus(tmp_path, metric), name, 4)
    assert list(index.settings) == [SearchSetting(nprobes=1), SearchSetting(nprobes=2)]
    truth, _ = exact_neighbors(QUERIES, clustered(), 10, metric=metric)
    found = [index.search(QUERIES, setting) for setting in index.settings]
    assert found[0].dtype == np.int64 and found[0].shape == (30, 10)
    few, many = (k_recall_at_k(rows, truth, 10) for rows in found)
    assert many >= few and many > 0.4
    norm = 1 if name == "faiss-ivf-rq" and metric == "l2" else 0
    assert index.result.resident_bytes == 4 + norm + 8
    assert index.result.index_bytes == index.result.total_bytes > 256 * DIM * 4 / ROWS
    assert (index.result.system, index.result.code_bytes) == (name, 4)
    assert capfd.readouterr().err == ""  # no warning for each codebook


IVF_WITH_BITS = [
    f"{family}-{bits[place]}"
    for family, bits in SYSTEM_FORMS.items()
    if family.startswith("faiss-ivf-")
    for place in (0, -1)
]


@pytest.mark.parametrize("name", IVF_WITH_BITS)
def test_indexes_with_bits_answer(name, tmp_path) -> None:
    corpus = small_corpus(tmp_path, "cosine")
    index = build_faiss(corpus, name)
    family, bits = name.replace("-ivf", "").rsplit("-", 1)
    code_bytes = bits_index(family, int(bits), DIM, "cosine").sa_code_size()
    assert (index.result.system, index.result.code_bytes) == (name, code_bytes)
    assert index.result.resident_bytes == code_bytes + 8 and index.result.raw_bytes == 0
    # What the file holds for every further vector.
    half = dataclasses.replace(corpus, vectors_ND=clustered()[: ROWS // 2])
    grown = index.result.index_bytes * ROWS - build_faiss(half, name).result.index_bytes * (ROWS // 2)
    assert grown / (ROWS // 2) == pytest.approx(code_bytes + 8, abs=0.5)
    truth, _ = exact_neighbors(QUERIES, clustered(), 10, metric="cosine")
    found = k_recall_at_k(index.search(QUERIES, SearchSetting(nprobes=2)), truth, 10)
    assert found > (0.9 if int(bits) >= 8 else 0.25)
    assert index.scan is None


def test_an_index_of_turboquant_is_for_unit_vectors(tmp_path) -> None:
    with pytest.raises(InvalidInputError, match="faiss-ivf-turboquant-2 is for vectors of length 1"):
        build_faiss(small_corpus(tmp_path, "l2"), "faiss-ivf-turboquant-2")


def test_first_steps_are_what_a_training_of_so_many_makes() -> None:
    long, short = train_rq(CURVED, 5), train_rq(CURVED, 2)
    cut = first_steps(long, 2, beam=3)
    short.rq.max_beam_size = 3
    codes = short.sa_encode(CURVED)
    np.testing.assert_array_equal(cut.encode(CURVED), codes)
    np.testing.assert_allclose(cut.decode(codes), short.sa_decode(codes), rtol=1e-6)
    assert cut.settings == {"beam": 3, "training_beam": 1}


def test_a_scan_scores_its_share_of_the_rows(tmp_path) -> None:
    index = build_faiss(small_corpus(tmp_path), "faiss-ivf-pq", 4)
    threads = faiss.omp_get_max_threads()
    assert index.scan(QUERIES, 1.0, 1)() == 30 * ROWS
    half = index.scan(QUERIES, 0.5, threads + 1)
    assert 0 < half() < 30 * ROWS
    assert half() == half()
    assert index.scan(QUERIES, 1e-6, 1)() == half()  # no less than one of two partitions
    assert faiss.omp_get_max_threads() == threads


def test_training_rows_are_limited(tmp_path, monkeypatch) -> None:
    corpus = small_corpus(tmp_path)
    monkeypatch.setattr(faiss_peers, "_TRAINING_ROWS", 300)
    sampled = faiss_peers._sample(corpus.vectors_ND)
    assert len(np.unique(sampled, axis=0)) == 300
    whole = faiss_peers._sample(dataclasses.replace(corpus, vectors_ND=clustered(300)).vectors_ND)
    np.testing.assert_array_equal(whole, clustered(300))
    result = build_faiss(corpus, "faiss-ivf-rq", 2).result
    assert result.index_bytes > 3  # filled with all vectors all the same
