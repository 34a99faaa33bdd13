"""Training by two workers: the codec that one process trains."""

import numpy as np
import pyarrow as pa
import pytest
import rqmoe_ray
from ray.train import ControllerError, RunConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from rqmoe_ray.training import _cause
from small_rows import DIM, database_of

import rqmoe_store as rqs

CONFIG = rqs.CodecConfig(
    code_bytes=4, codebook_size=16, num_partitions=2, num_experts=3, hidden_dim=8, beam=2
)
TRAINING = rqs.TrainConfig(epochs=3, batch_size=64, seed=1, progress=False, device="cpu", precision="float32")


def curved(rows: int) -> np.ndarray:
    """Vectors on a curved surface, which experts can learn."""
    generator = np.random.default_rng(0)
    mixing = np.random.default_rng(99).standard_normal((3, DIM)) * 2
    return np.sin(generator.uniform(-1, 1, (rows, 3)) @ mixing).astype(np.float32)


def assert_close(codec: rqs.Codec, other: rqs.Codec) -> None:
    """Equal but for rounding: sums over a batch come in another order, and training amplifies it."""
    assert codec.report.epochs == other.report.epochs
    np.testing.assert_allclose(codec.report.prefix_mse, other.report.prefix_mse, rtol=2e-2)
    vectors = curved(300)
    same = (codec.encode(vectors).codes == other.encode(vectors).codes).all(axis=1)
    assert same.mean() > 0.95


def test_two_workers_train_the_codec_of_one(cluster, tmp_path):
    vectors = curved(600)
    uri = str(tmp_path / "db" / "docs")
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM)
    docs = database_of(uri).create_table("docs", pa.table({"embedding": lists}))
    alone = rqs.train(docs, "embedding", config=CONFIG, training=TRAINING)
    run = RunConfig(storage_path=str(tmp_path / "runs"))
    settings = {"config": CONFIG, "training": TRAINING, "num_workers": 2, "run_config": run}
    codec = rqmoe_ray.train(uri, "embedding", **settings)
    assert alone.report.validation_mse < alone.report.rq_validation_mse
    assert_close(codec, alone)


def test_what_workers_raise_is_raised():
    refused = rqs.InvalidInputError("no vectors")
    told = WorkerGroupError("worker 1 failed", {1: UserExceptionWithTraceback(refused, "traceback")})
    assert _cause(told) is refused
    for other in (WorkerGroupError("lost", {0: OSError("lost")}), ControllerError(OSError("lost"))):
        assert _cause(other) is other


def test_refused_before_any_worker_starts(cluster):
    with pytest.raises(rqs.InvalidInputError, match="as a table; expected"):
        rqmoe_ray.train("s3://bucket", num_workers=1)
