"""The codec comparison on small data, and the bound on what any codec can reach."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from small_codecs import curved
from small_searches import clustered

from rqmoe_store.codecs.base import load_codec
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError, RQMoEError
from rqmoe_store.evaluation.codec_benchmark import (
    RATE,
    BenchmarkSettings,
    benchmark_codecs,
    gaussian_distortion,
    principal_variances,
    water_level,
)
from rqmoe_store.evaluation.codec_results import BenchmarkReport
from rqmoe_store.evaluation.peer_names import missing_peers

pytestmark = pytest.mark.usefixtures("brief_timing")

ROWS, QUERIES = curved(1500), curved(40, seed=1)

SETTINGS = BenchmarkSettings(
    codecs=("rq",),
    code_bytes=(2,),
    config=CodecConfig(codebook_size=16, num_partitions=0, num_experts=2, hidden_dim=16),
    training=TrainConfig(epochs=12, batch_size=150, learning_rate=3e-3, progress=False, device="cpu"),
    held_out=300,
)


def benchmark(rows=ROWS, queries=QUERIES, **changes) -> BenchmarkReport:
    settings = dataclasses.replace(SETTINGS, **changes)
    return benchmark_codecs(rows, queries, settings=settings, console=Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> BenchmarkReport:
    """Ours at two sizes, saved."""
    folder = tmp_path_factory.mktemp("codecs")
    return benchmark(codecs=("rqmoe",), code_bytes=(4, 2), save=folder)


def test_more_bytes_and_experts_lower_the_error(report) -> None:
    names = [(result.codec, result.code_bytes) for result in report.results]
    assert names == [("rq", 2), ("rqmoe", 2), ("rq", 4), ("rqmoe", 4)]
    rq_2, rqmoe_2, rq_4, rqmoe_4 = report.results
    assert rq_2.relative_to_rq == rq_4.relative_to_rq == 1
    assert rqmoe_2.mse < rq_2.mse
    assert rqmoe_4.relative_to_rq == pytest.approx(rqmoe_4.mse / rq_4.mse)
    assert rqmoe_4.mse < rq_4.mse
    assert rq_4.mse < rq_2.mse
    assert rq_4.recall.ten_recall_10 > rq_2.recall.ten_recall_10
    assert rqmoe_2.epochs == 12
    for result in report.results:
        for recall in (result.recall, result.unseen_recall):
            assert 0 <= recall.one_recall_1 <= recall.one_recall_10 <= recall.one_recall_100 <= 1
            assert 0 < recall.ten_recall_10 <= 1


def test_every_size_has_its_bound(report) -> None:
    first, second = report.bounds
    assert (first.code_bytes, second.code_bytes) == (2, 4)
    assert second.mse < first.mse < ROWS[:-300].var(axis=0).sum()
    assert first.relative_to_rq == pytest.approx(first.mse / report.results[0].mse)


def test_every_codec_of_ours_has_speed_rows_and_was_saved(report) -> None:
    assert [(row.codec, row.code_bytes) for row in report.speed[::5]] == [
        (result.codec, result.code_bytes) for result in report.results
    ]
    assert report.scaling == []
    assert report.machine[RATE] > 0
    folder = Path(report.settings["save"])
    assert {path.name for path in folder.iterdir()} == {"rq-2", "rqmoe-2", "rq-4", "rqmoe-4"}


@pytest.mark.slow
def test_held_out_vectors_take_no_part_in_training(report) -> None:
    codec = load_codec(Path(report.settings["save"]) / "rqmoe-2", device="cpu")
    assert codec.report.rows + codec.report.validation_rows == 1200
    other = np.concatenate([ROWS[:-300], np.roll(ROWS[-300:], 1, axis=1)])
    again = benchmark(other, codecs=("rqmoe",), save=Path(report.settings["save"]) / "again")
    assert again.results[1].mse != report.results[1].mse
    trained = load_codec(Path(again.settings["save"]) / "rqmoe-2", device="cpu")
    assert trained.to_artifact().weights == codec.to_artifact().weights


def test_at_totals_the_best_are_compared_and_who_is_missing_is_skipped_by_name(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "turbovec", None)
    monkeypatch.setitem(sys.modules, "usearch", None)
    console = Console(file=io.StringIO())
    settings = dataclasses.replace(
        SETTINGS,
        codecs=("rq", "faiss-pq", "turbovec-2", "binary", "usearch-b1"),
        total_bytes=(2, 6),
        training=TrainConfig(epochs=0, progress=False, device="cpu"),
    )
    meanwhile: list[tuple[int, list[int]]] = []
    report = benchmark_codecs(
        ROWS,
        QUERIES,
        settings=settings,
        console=console,
        on_done=lambda so_far: meanwhile.append(
            (so_far.results[-1].code_bytes, [row.total_bytes for row in so_far.best])
        ),
    )
    # A size is compared once all within it has been measured.
    assert meanwhile == [(2, []), (2, []), (2, [2]), (6, [2]), (6, [2, 6])]
    names = [(result.codec, result.code_bytes) for result in report.results]
    assert sorted(names) == [("binary", 2), ("faiss-pq", 2), ("faiss-pq", 6), ("rq", 2), ("rq-2+pq", 6)]
    assert [row.total_bytes for row in report.best] == [2, 6]
    assert report.best[1].ours.codec == "rq-2+pq" and report.best[1].ours.recall > 0.5
    assert report.best[1].best_peer.code_bytes <= 6
    skipped = {"turbovec-2": "pip install turbovec", "usearch-b1": "pip install usearch"}
    assert report.skipped == report.to_dict()["skipped"] == skipped
    printed = console.file.getvalue()
    assert all(f"{name} is not installed, and was left out" in printed for name in skipped)
    with pytest.raises(RQMoEError, match="pip install turbovec, or"):
        dataclasses.replace(SETTINGS, codecs=("turbovec-2",))


def test_totals_say_what_refine_codes_have() -> None:
    with pytest.raises(InvalidInputError, match="expected one of them"):
        dataclasses.replace(SETTINGS, refine_bytes=(3,), total_bytes=(8,))
    with pytest.raises(InvalidInputError, match="Got refine_bytes=1"):
        dataclasses.replace(SETTINGS, total_bytes=(3,))


@pytest.mark.parametrize("name", ["turbovec-2", "qdrant-turbo-1", "lancedb-ivf-pq", "faiss-pq"])
def test_codecs_of_others_are_measured(name) -> None:
    if missing_peers([name]):
        pytest.skip("not installed")
    config = CodecConfig(metric="cosine", num_partitions=0)
    report = benchmark(
        clustered(), clustered(20, seed=1), codecs=(name,), config=config, total_bytes=(16,), held_out=200
    )
    (result,) = report.results
    assert result.codec == name and result.code_bytes <= 16
    assert result.recall.ten_recall_10 > 0.3 and result.unseen_recall.ten_recall_10 > 0.3
    assert report.best[0].best_peer.codec == name


def test_a_saved_codec_is_measured_as_it_was(report) -> None:
    folder = str(Path(report.settings["save"]) / "rqmoe-4")
    again = benchmark(codecs=(folder,))
    reference, loaded = again.results
    assert (reference.codec, loaded.codec) == ("rq", folder)
    assert loaded.training_seconds is None
    for name in ("mse", "recall", "unseen_recall", "artifact_bytes", "epochs", "relative_to_rq"):
        assert getattr(loaded, name) == getattr(report.results[3], name), name


@pytest.mark.slow
def test_peers_scaling_and_what_is_reported_meanwhile() -> None:
    rows = curved(800)
    counts: list[int] = []
    settings = dataclasses.replace(SETTINGS, codecs=("opq", "faiss-rq"), held_out=200, scaling=(500, 200))
    report = benchmark_codecs(
        rows,
        QUERIES,
        settings=settings,
        console=Console(file=io.StringIO()),
        on_done=lambda sofar: counts.append(len(sofar.results)),
    )
    assert counts == [1, 2, 3]
    rq, opq, faiss_rq = report.results
    assert faiss_rq.mse < rq.mse  # 256 codewords against 16
    assert opq.epochs is None and opq.training_seconds > 0
    assert {row.codec for row in report.speed} == {"rq"}
    assert [(row.codec, row.vectors) for row in report.scaling] == [("rq", 200), ("rq", 500)]
    written = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert written["settings"]["scaling"] == [500, 200]
    assert written["results"][2]["settings"]["beam"] == SETTINGS.config.beam


def test_codecs_with_bits_are_measured_beside_ours() -> None:
    rows, queries = clustered(800), clustered(40, seed=1)
    names = ("int8", "faiss-sq-8", "faiss-rabitq-4", "lancedb-ivf-rq-4")
    report = benchmark(rows, queries, codecs=(*names, "faiss-pq"), code_bytes=(16,), held_out=200)
    found = {result.codec: result for result in report.results}
    assert [(name, result.code_bytes) for name, result in found.items()] == [
        ("rq", 16), ("faiss-pq", 16), ("int8", 16), ("faiss-sq-8", 16), ("faiss-rabitq-4", 28),
        ("lancedb-ivf-rq-4", 54),
    ]  # fmt: skip
    for result in report.results:
        assert 0.3 < result.recall.ten_recall_10 <= 1 and 0.3 < result.unseen_recall.ten_recall_10 <= 1
    for name in ("faiss-pq", "int8", "faiss-sq-8"):
        assert found[name].relative_to_rq == pytest.approx(found[name].mse / found["rq"].mse)
    for name in ("faiss-rabitq-4", "lancedb-ivf-rq-4"):
        assert found[name].mse is None and found[name].relative_to_rq is None
    assert found["faiss-rabitq-4"].training_seconds > 0
    assert found["lancedb-ivf-rq-4"].training_seconds is None
    json.dumps(report.to_dict(), allow_nan=False)


def test_errors_are_relative_to_plain_rq_alone() -> None:
    report = benchmark(curved(400), codecs=("int8", "faiss-sq-8"), held_out=100)
    assert [result.relative_to_rq for result in report.results] == [None, None]
    assert report.bounds == []


@pytest.mark.parametrize("metric", ["cosine", pytest.param("dot", marks=pytest.mark.slow)])
def test_other_metrics(metric) -> None:
    config = dataclasses.replace(SETTINGS.config, metric=metric)
    report = benchmark(codecs=("rq", "faiss-pq"), config=config)
    for result in report.results:
        assert 0 < result.recall.ten_recall_10 <= 1
        assert metric == "dot" or result.mse < 1  # of vectors scaled to length 1


def test_partitions_are_codecs_settings() -> None:
    report = benchmark(config=dataclasses.replace(SETTINGS.config, num_partitions=5))
    assert report.results[0].settings["num_partitions"] == 5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rows": ROWS[:150], "held_out": 100}, "Got 150 vectors to hold 100 out of"),
        ({"rows": ROWS[:400], "held_out": 400}, "Got 400 vectors to hold 400 out of"),
        ({"queries": QUERIES[:, :5]}, "Queries: Got vectors of dimension 5; expected 12"),
        ({"queries": QUERIES[:0]}, "no queries"),
        ({"codecs": ("rq", "best")}, "Codec 'best' is unknown"),
        ({"code_bytes": (2, 0)}, "code_bytes=0"),
        ({"scaling": (0,)}, "scaling"),
        ({"scaling": (10**15,)}, "TMPDIR"),
        ({"codecs": ("lsq",), "rows": ROWS[:400], "held_out": 200}, "Got 200 vectors to train lsq on"),
    ],
)
def test_unusable_arguments(changes, reason) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        benchmark(**changes)


VARIANCES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40).map(np.array)

BITS = st.floats(0, 400)


@given(dim=st.integers(1, 300), variance=st.floats(1e-3, 1e3), bits=BITS)
def test_white_covariance_has_a_closed_form(dim, variance, bits) -> None:
    wanted = dim * variance * 2 ** (-2 * bits / dim)
    assert gaussian_distortion(np.full(dim, variance), bits) == pytest.approx(wanted, rel=1e-9)


def test_two_variances_by_hand() -> None:
    # Half a bit brings 4 down to 2; one more bit each brings both from 1 to 1/4.
    assert gaussian_distortion(np.array([1.0, 4.0]), 0.5) == pytest.approx(1 + 2)
    assert gaussian_distortion(np.array([1.0, 4.0]), 1 + 2) == pytest.approx(1 / 4 + 1 / 4)


@settings(deadline=None)
@given(variances=VARIANCES, bits=BITS)
def test_the_level_satisfies_the_kkt_conditions(variances, bits) -> None:
    level = water_level(variances, bits)
    errors = np.minimum(variances, level)
    spent = np.log2(variances / errors) / 2
    assert spent.sum() == pytest.approx(bits, abs=1e-6)  # the whole budget, and nothing else
    assert (spent >= 0).all()
    with_bits = spent > 1e-9  # equal slopes where bits are spent, none where they would help less
    np.testing.assert_allclose(errors[with_bits], level, rtol=1e-9)
    assert (variances[~with_bits] <= level * (1 + 1e-6)).all()


@given(variances=VARIANCES, bits=BITS, more=st.floats(0.01, 100))
def test_more_bits_never_hurt(variances, bits, more) -> None:
    assert gaussian_distortion(variances, bits + more) <= gaussian_distortion(variances, bits)


@given(variances=VARIANCES)
def test_no_bits_leave_the_whole_variance(variances) -> None:
    assert gaussian_distortion(variances, 0) == pytest.approx(variances.sum(), rel=1e-12)


@settings(deadline=None)
@given(variances=VARIANCES, bits=BITS, seed=st.integers(0, 99))
def test_no_other_split_of_the_bits_is_better(variances, bits, seed) -> None:
    shares = np.random.default_rng(seed).dirichlet(np.full(len(variances), 0.5)) * bits
    assert gaussian_distortion(variances, bits) <= (variances * 2 ** (-2 * shares)).sum() * (1 + 1e-9)


def test_directions_without_variance_take_no_bits() -> None:
    assert gaussian_distortion(np.array([2.0, 0.0, 0.0]), 1) == pytest.approx(0.5)
    assert gaussian_distortion(np.zeros(3), 8) == 0


def test_principal_variances_are_those_of_the_covariance() -> None:
    generator = np.random.default_rng(0)
    rows = (generator.normal(size=(9000, 6)) @ generator.normal(size=(6, 6)) + 100).astype(np.float32)
    found = principal_variances(rows)
    wanted = np.linalg.eigvalsh(np.cov(rows.astype(np.float64), rowvar=False, bias=True))[::-1]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    flat = principal_variances(np.ones((5, 4), dtype=np.float32))
    assert (flat == 0).all()


@pytest.mark.parametrize(("variances", "bits"), [([1.0], -1), ([-1.0], 1), ([], 1), ([np.nan], 1)])
def test_unusable_arguments_of_bounds(variances, bits) -> None:
    with pytest.raises(InvalidInputError, match="none below 0"):
        gaussian_distortion(np.array(variances), bits)
