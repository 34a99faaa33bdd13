"""Warm starts: training that goes on from a trained codec, when that is better than to start anew."""

import dataclasses
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from small_codecs import curved, vectors

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import ArtifactError, InvalidInputError
from rqmoe_store.tables import compress
from rqmoe_store.training.trainer import add_refine_codes, train

SMALL = {"code_bytes": 3, "codebook_size": 16, "num_experts": 2, "hidden_dim": 16, "num_partitions": 0}
ROWS, HELD_OUT = curved(800), curved(200, seed=5)


def config(**changes: object) -> CodecConfig:
    return CodecConfig(**{**SMALL, **changes})  # type: ignore[arg-type]


def quick(**changes: object) -> TrainConfig:
    settings = {"epochs": 6, "batch_size": 100, "progress": False, "device": "cpu", "learning_rate": 3e-3}
    return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]


def trained(rows: np.ndarray = ROWS, *, epochs: int = 6, **changes: object) -> Codec:
    return train(rows, config=config(**changes), training=quick(epochs=epochs), validation=HELD_OUT)


@pytest.fixture(scope="module")
def start() -> Codec:
    return trained(epochs=25)


@pytest.mark.parametrize("kind", ["rqmoe", "qinco"])
@pytest.mark.parametrize("num_partitions", [0, 3])
def test_without_epochs_the_start_comes_back(kind: str, num_partitions: int) -> None:
    start = trained(kind=kind, num_partitions=num_partitions, epochs=12 if num_partitions else 6)
    again = train(ROWS, training=quick(epochs=0), validation=HELD_OUT, start=start)
    assert again.report.started_from == start.fingerprint
    assert again.report.epochs == 0
    assert again.report.validation_mse == pytest.approx(start.report.validation_mse, rel=1e-4)
    assert again.report.rq_validation_mse == pytest.approx(start.report.rq_validation_mse, rel=1e-4)


def test_training_goes_on_where_it_stopped(start: Codec) -> None:
    anew = trained(epochs=3)
    before = start.to_artifact()
    further = train(ROWS, training=quick(epochs=3), validation=HELD_OUT, start=start)
    assert anew.report.started_from is None
    assert further.report.validation_mse < anew.report.validation_mse
    assert further.report.validation_mse <= start.report.validation_mse * 1.001
    assert start.to_artifact() == before
    loaded = Codec.from_artifact(further.to_artifact(), device="cpu")
    assert loaded.report == further.report


def test_a_start_that_fits_badly_is_not_used(start: Codec) -> None:
    others = vectors(800) * 3 + 7
    anew = train(others[200:], config=config(), training=quick(), validation=others[:200])
    found = train(others[200:], training=quick(), validation=others[:200], start=start)
    assert found.report.started_from is None
    np.testing.assert_array_equal(found.encode(others).codes, anew.encode(others).codes)


@pytest.mark.parametrize(("unit", "offset"), [(1e-20, 0.0), (1.0, 3e4), (2e20, 0.0)])
def test_a_start_in_another_frame(unit: float, offset: float, start: Codec) -> None:
    """The start's own vectors in another unit, or far from zero: the frames of the codecs differ."""
    rows, held_out = (
        (values * np.float32(unit) + np.float32(offset)).astype(np.float32) for values in (ROWS, HELD_OUT)
    )
    first = train(rows, config=config(), training=quick(), validation=held_out)
    again = train(rows, training=quick(epochs=0), validation=held_out, start=first)
    assert again.report.started_from == first.fingerprint
    assert again.report.validation_mse == pytest.approx(first.report.validation_mse, rel=1e-3)
    elsewhere = train(rows, training=quick(epochs=0), validation=held_out, start=start)
    assert elsewhere.report.started_from is None
    assert np.isfinite(elsewhere.report.validation_mse)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "dot"}, "metric='l2' instead of 'dot'"),
        ({"kind": "qinco"}, "kind='rqmoe' instead of 'qinco'"),
        ({"code_bytes": 4}, "code_bytes=3 instead of 4"),
        (
            {"codebook_size": 32, "hidden_dim": 8},
            "codebook_size=16 instead of 32, hidden_dim=16 instead of 8",
        ),
        ({"num_partitions": 5}, "num_partitions=0 instead of 5"),
        ({"num_layers": 2}, "num_layers=1 instead of 2"),
    ],
)
def test_another_shape_is_refused(changes: dict[str, object], message: str, start: Codec) -> None:
    with pytest.raises(InvalidInputError, match=message):
        train(ROWS, config=config(**changes), training=quick(), start=start)


def test_unusable_starts_are_refused(start: Codec) -> None:
    with pytest.raises(InvalidInputError, match=r"dimension 8 and a start of dimension 12"):
        train(np.ascontiguousarray(ROWS[:, :8]), training=quick(), start=start)
    with pytest.raises(InvalidInputError, match="start='codec' for train\\(\\); expected a codec"):
        train(ROWS, training=quick(), start="codec")  # type: ignore[arg-type]
    transform = train(ROWS, config=CodecConfig(kind="pq", code_bytes=3), training=quick())
    with pytest.raises(InvalidInputError, match="a start of kind 'pq'"):
        train(ROWS, training=quick(), start=transform)


def test_refine_codes_and_the_encoder_may_differ(start: Codec) -> None:
    wanted = dataclasses.replace(start.config, refine_bytes=6, beam=5, preselect=9)
    refined = train(ROWS, config=wanted, training=quick(epochs=1), validation=HELD_OUT, start=start)
    assert refined.config.refine_bytes == 6
    assert (refined.config.beam, refined.config.preselect) == (5, 9)
    assert refined.report.started_from == start.fingerprint
    assert refined.report.refined_mse is not None
    base = add_refine_codes(start, ROWS, refine_bytes=6)
    plain = train(ROWS, config=start.config, training=quick(epochs=0), validation=HELD_OUT, start=base)
    assert plain.report.started_from == base.fingerprint
    assert plain.report.refined_mse is None


def test_a_start_that_is_shorter(start: Codec) -> None:
    short = start.truncate(2)
    further = train(ROWS, training=quick(epochs=2), validation=HELD_OUT, start=short)
    assert further.config.code_bytes == 2
    assert further.report.validation_mse <= short.report.validation_mse * 1.001


def test_a_checkpoint_belongs_to_its_start(start: Codec, tmp_path: Path) -> None:
    kept = quick(epochs=2, checkpoint_dir=str(tmp_path))
    first = train(ROWS, training=kept, validation=HELD_OUT, start=start)
    resumed = train(ROWS, training=kept, validation=HELD_OUT, start=start)
    assert resumed.report.started_from == first.report.started_from == start.fingerprint
    np.testing.assert_array_equal(resumed.encode(HELD_OUT).codes, first.encode(HELD_OUT).codes)
    with pytest.raises(ArtifactError, match=r"start is .* in the checkpoint and not there now"):
        train(ROWS, config=start.config, training=kept, validation=HELD_OUT)


def table(folder: Path, codec: Codec) -> object:
    rows = [{"id": number, "vector": values} for number, values in enumerate(ROWS)]
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), ROWS.shape[1]))])
    docs = lancedb.connect(folder).create_table("docs", rows, schema=schema)
    return compress(docs, codec, "small", keep_vectors="float32")


def test_retrain_goes_on_from_the_codec_of_the_table(start: Codec, tmp_path: Path) -> None:
    store = table(tmp_path, start)
    training = quick(epochs=1)
    again = store.retrain(training, config=start.config)
    assert again.report.started_from == start.fingerprint
    assert store.retrain(training, start=None).report.started_from is None
    assert store.retrain(training, start=start).report.started_from == start.fingerprint
    # A codec of another shape starts anew, but is no start itself.
    other = store.retrain(training, config=config(hidden_dim=8))
    assert other.report.started_from is None
    with pytest.raises(InvalidInputError, match="hidden_dim=16 instead of 8"):
        store.retrain(training, start=start)
    for unusable in ("own", 3):
        with pytest.raises(InvalidInputError, match="start"):
            store.retrain(training, start=unusable)
    assert store.count_rows() == len(ROWS)
