"""Vectors of any length in float32 can be trained on, compressed in place, reopened and found."""

import warnings

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_codecs import as_codec, small_config, stirred

import rqmoe_store
from rqmoe_store import CodecConfig, TrainConfig
from rqmoe_store.codecs.base import Codec
from rqmoe_store.errors import ArtifactError, InvalidInputError, RQMoEError
from rqmoe_store.store import registry

ROWS, DIM, QUERIES = 120, 6, 20
ORDINARY = np.random.default_rng(0).normal(size=(ROWS, DIM))
LARGEST = np.finfo(np.float32).max
TRAINING = TrainConfig(epochs=1, progress=False, device="cpu", batch_size=64)

pytestmark = pytest.mark.filterwarnings("ignore:Training on")


def config(kind="rq", metric="l2", partitions=0):
    return CodecConfig(
        kind=kind,
        metric=metric,
        num_partitions=partitions,
        code_bytes=5,
        codebook_size=16,
        beam=2,
        hidden_dim=4,
    )


def in_float32(vectors):
    return np.clip(vectors, -LARGEST, LARGEST).astype(np.float32)


def docs_of(vectors, folder):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return lancedb.connect(folder).create_table(
        "docs", pa.table({"id": np.arange(len(vectors)), "vector": lists}), mode="overwrite"
    )


def raw_vectors(docs):
    docs.checkout_latest()
    return np.stack(docs.to_pandas()["vector"].to_numpy())


def measured(query, vectors, metric):
    """Distances in numbers that have all of float32's squares, infinite where undefined."""
    query, vectors = query.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        return np.square(vectors - query).sum(axis=1)
    products = vectors @ query
    if metric == "dot":
        return -products
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(-products / np.linalg.norm(vectors, axis=1), nan=np.inf)


scales = st.one_of(
    st.integers(-44, 38).map(lambda power: np.full(DIM, 10.0**power)),
    st.lists(st.integers(-44, 38), min_size=DIM, max_size=DIM).map(lambda powers: 10.0 ** np.array(powers)),
)
centers = st.sampled_from([0.0, 0.0, 3.0, 1e5, 1.7e9])
outliers = st.sampled_from([None, None, 1e6, 1e30, 3e38])


@settings(
    max_examples=6, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    scale=scales,
    center=centers,
    outlier=outliers,
    kind=st.sampled_from(["rq", "rqmoe", "qinco"]),
    metric=st.sampled_from(["l2", "cosine", "dot"]),
    partitions=st.sampled_from([0, 3]),
)
def test_any_vectors_are_found_or_left_alone(tmp_path, scale, center, outlier, kind, metric, partitions):
    vectors = in_float32((ORDINARY + center) * scale)
    if outlier is not None:
        vectors[7] = in_float32(np.sign(ORDINARY[7]) * outlier)
    docs = docs_of(vectors, tmp_path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* times as far from")
            codec = rqmoe_store.train(docs, config=config(kind, metric, partitions), training=TRAINING)
        rqmoe_store.compress(docs, codec, in_place=True, progress=False)
    except RQMoEError as error:
        assert isinstance(error, InvalidInputError)
        np.testing.assert_array_equal(raw_vectors(docs), vectors)
        return
    store = rqmoe_store.open_table(lancedb.connect(tmp_path), "docs")
    decoded = np.stack(
        store.search().select(["id", "vector"]).to_pandas().sort_values("id")["vector"].to_numpy()
    )
    assert np.isfinite(decoded).all()
    for query in vectors[5:9]:
        found = store.search(query).nprobes(3).shortlist(ROWS).limit(ROWS).to_pandas()
        distances = found["_distance"].to_numpy()
        assert np.isfinite(distances).all() and (np.diff(distances) >= 0).all()
        exact = measured(query, decoded[found["id"]], metric)
        assert np.isfinite(exact).all()
        rounding = 1e-6 * np.abs(exact).max()
        assert (np.diff(exact) >= -rounding).all()


@pytest.mark.parametrize("kind", ["rq", "rqmoe"])
def test_directions_that_differ_by_less_than_float32_can_square_are_refused(kind) -> None:
    vectors = in_float32((ORDINARY + 1.7e9) * 10.0 ** np.array([7, 33, 5, 12, -32, -27]))
    with pytest.raises(InvalidInputError, match="differ so little"):
        rqmoe_store.train(vectors, config=config(kind, "cosine", 0), training=TRAINING)


def recalls_of(vectors, metric, kind, folder):
    docs = docs_of(vectors, folder)
    codec = rqmoe_store.train(docs, config=config(kind, metric), training=TRAINING)
    rqmoe_store.compress(docs, codec, in_place=True, progress=False)
    store = rqmoe_store.open_table(lancedb.connect(folder), "docs")
    hits = store.search(vectors[:QUERIES]).limit(1).to_pandas().sort_values("query_index")["id"]
    nearest = [measured(query, vectors, metric).argmin() for query in vectors[:QUERIES]]
    return np.mean(hits.to_numpy() == nearest)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_nearest_rows_are_found_as_well_at_any_scale(tmp_path, metric):
    expected = recalls_of(in_float32(ORDINARY), metric, "rq", tmp_path)
    assert expected > 0.5
    for power in (-40, -23, 8, 37):
        share = recalls_of(in_float32(ORDINARY * 10.0**power), metric, "rq", tmp_path)
        assert share >= expected - 0.1, power


@given(
    power=st.integers(-120, 124),
    kind=st.sampled_from(["rq", "rqmoe", "qinco"]),
    metric=st.sampled_from(["l2", "dot"]),
)
@settings(max_examples=3, phases=[Phase.generate])
def test_a_power_of_two_changes_no_code(power, kind, metric):
    vectors = in_float32(ORDINARY)
    scaled = np.ldexp(vectors, power)
    plain = rqmoe_store.train(vectors, config=config(kind, metric, 3), training=TRAINING)
    codec = rqmoe_store.train(scaled, config=config(kind, metric, 3), training=TRAINING)
    codes, expected = codec.encode(scaled), plain.encode(vectors)
    assert (codes.codes == expected.codes).mean() > 0.99
    decoded = codec.decode(expected).astype(np.float64)
    np.testing.assert_allclose(np.ldexp(decoded, -power), plain.decode(expected), rtol=1e-3, atol=1e-3)
    assert codec.report.relative_mse == pytest.approx(plain.report.relative_mse, rel=1e-2)
    loaded = Codec.from_artifact(codec.to_artifact())
    np.testing.assert_array_equal(loaded.encode(scaled).codes, codes.codes)
    shorter = loaded.truncate(2)
    assert np.isfinite(shorter.decode(codes[:, :2])).all()
    assert np.isfinite(shorter.lookup_tables(scaled[:3]).score(codes[:, :2])).all()


def test_a_codec_for_ordinary_vectors_is_described_as_ever():
    codec = rqmoe_store.train(in_float32(ORDINARY), config=config(), training=TRAINING)
    description, tensors = codec.to_artifact().unpack()
    assert set(description) == {"config", "dim", "encodes", "report", "format_version", "weights_sha256"}
    assert not any(name.startswith("frame") for name in tensors)


def test_seconds_of_the_clock_beside_ordinary_features(tmp_path):
    vectors = ORDINARY.copy()
    vectors[:, 2] = 1.7e9
    expected = recalls_of(in_float32(np.delete(ORDINARY, 2, axis=1)), "l2", "rq", tmp_path)
    assert recalls_of(in_float32(vectors), "l2", "rq", tmp_path) >= expected - 0.1


def test_few_vectors_far_away_do_not_cost_the_others(tmp_path):
    vectors = in_float32(ORDINARY)
    expected = recalls_of(vectors, "l2", "rqmoe", tmp_path)
    vectors[[60, 70, 80]] *= np.float32(1e30)
    with pytest.warns(UserWarning, match=r"\d of \d+ training vectors lie more than 1,024 times as far"):
        assert recalls_of(vectors, "l2", "rqmoe", tmp_path) >= expected - 0.1


@pytest.mark.parametrize("power", [-45, 20, 38])
@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_queries_of_any_length_get_finite_distances_in_order(tmp_path, metric, power):
    vectors = in_float32(ORDINARY)
    codec = rqmoe_store.train(vectors, config=config(metric=metric, partitions=3), training=TRAINING)
    docs = docs_of(vectors, tmp_path)
    store = rqmoe_store.compress(docs, codec, into="codes", progress=False)
    raw = rqmoe_store.create_table(
        lancedb.connect(tmp_path), "raw", docs.to_arrow(), config=config(metric=metric)
    )
    query = in_float32(ORDINARY[3] * 10.0**power)
    if not query.any():
        query[0] = np.finfo(np.float32).smallest_subnormal
    for table in (store, raw):
        for search in (
            table.search(query),
            table.search(query).diversify(0.5),
            table.search(query).diversify(0.5, method="coverage"),
            table.search(query).nprobes(1),
        ):
            found = search.limit(5).to_pandas()
            assert len(found) == 5 and np.isfinite(found["_distance"]).all()


def broken_codec():
    quantizer = stirred(small_config(kind="rq"))
    quantizer.codebooks_MKD.data[1, 2, 3] = float("nan")
    return as_codec(quantizer)


def test_a_codec_that_would_not_load_is_not_written(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)
    docs, codec = docs_of(vectors, tmp_path), broken_codec()
    with pytest.raises(ArtifactError):
        Codec.from_artifact(codec.to_artifact())
    for write in (
        lambda: codec.save(tmp_path / "codec"),
        lambda: registry.save(lancedb.connect(tmp_path), codec),
        lambda: rqmoe_store.compress(docs, codec, in_place=True, progress=False),
        lambda: rqmoe_store.compress(docs, codec, into="codes", progress=False),
    ):
        with pytest.raises(InvalidInputError, match="The codec is of no use"):
            write()
    assert not (tmp_path / "codec").exists()
    np.testing.assert_array_equal(raw_vectors(docs), vectors)
    assert "codes" not in lancedb.connect(tmp_path).table_names()
