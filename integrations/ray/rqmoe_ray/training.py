"""Training of one codec by several workers of a cluster."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import lancedb
import ray
from lancedb.table import LanceTable
from ray.train import RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

import rqmoe_store as rqs
from rqmoe_ray.places import table_at
from rqmoe_ray.resources import join_cluster
from rqmoe_store.distributed import Artifact

_TABLE = "table"


def train(
    data: Any,
    vector_column: str = "vector",
    *,
    config: rqs.CodecConfig | None = None,
    training: rqs.TrainConfig | None = None,
    num_workers: int = 2,
    num_cpus: float = 1,
    use_gpu: bool | None = None,
    run_config: RunConfig | None = None,
    table_options: Mapping[str, str] | None = None,
) -> rqs.Codec:
    """Train a codec with several workers, by Ray Train's `TorchTrainer`.

    Every worker calls `rqmoe_store.train`, which shares each batch out among them: the codec is that of one
    process up to rounding. With `TrainConfig(checkpoint_dir=)` on a path that all nodes share, and failures
    allowed by `run_config`, training goes on from the last checkpoint when a worker is lost.

    Args:
        data: path or URI of a table, or a LanceDB table, that all nodes can read; or vectors (rows, D).
        vector_column: the table's column of vectors; null vectors are skipped.
        config: shape of the codec; None for the defaults of CodecConfig.
        training: how to train; None for the defaults of TrainConfig.
        num_workers: processes that train together.
        num_cpus: of each.
        use_gpu: whether each has a GPU; None for whether the cluster has that many.
        run_config: of Ray Train: its name, where it keeps its own files, how many failures are allowed.
        table_options: credentials and so on for the table at a URI, as LanceDB takes them.

    Returns:
        The codec.

    Raises:
        InvalidInputError, TableError, ArtifactError: as `rqmoe_store.train`, in any of the workers.
        ray.train.TrainingFailedError: workers failed otherwise, more often than `run_config` allows.
    """
    training = rqs.TrainConfig() if training is None else training
    if use_gpu is None:
        use_gpu = training.device != "cpu" and _gpus() >= num_workers
    if not use_gpu:
        training = dataclasses.replace(training, device="cpu")
    trainer = TorchTrainer(
        _train_here,
        train_loop_config={
            "source": _sendable(data, table_options),
            "arguments": {"vector_column": vector_column, "config": config, "training": training},
        },
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=_each(num_cpus, use_gpu)
        ),
        run_config=run_config,
    )
    try:
        config_json, weights = trainer.fit().return_value
    except TrainingFailedError as error:
        raise _cause(error) from error
    return rqs.Codec.from_artifact(Artifact(config_json, weights))


def _train_here(settings: dict[str, Any]) -> tuple[str, bytes]:
    """Train in a worker. All workers return the same codec, and Ray takes the first one's."""
    kind, source = settings["source"]
    if kind == _TABLE:
        uri, name, options = source
        data: Any = lancedb.connect(uri, storage_options=options).open_table(name)
    else:
        data = ray.get(source)
    artifact = rqs.train(data, **settings["arguments"]).to_artifact()
    return artifact.config_json, artifact.weights


def _cause(error: TrainingFailedError) -> Exception:
    """The error that `rqmoe_store.train` raised in a worker, or else Ray's own."""
    failures = getattr(error, "worker_failures", {}).values()
    bases = [getattr(failure, "_base_exc", failure) for failure in failures]
    return next((base for base in bases if isinstance(base, rqs.RQMoEError)), error)


def _sendable(data: Any, table_options: Mapping[str, str] | None) -> tuple[str, Any]:
    """The data in a form that workers on other nodes can read."""
    if isinstance(data, LanceTable):
        data, table_options = data.uri, data.initial_storage_options()
    if isinstance(data, (str, os.PathLike)):
        db, name = table_at(data, table_options)
        return _TABLE, (db.uri, name, None if table_options is None else dict(table_options))
    join_cluster()
    return "vectors", ray.put(data)


def _each(num_cpus: float, use_gpu: bool) -> dict[str, float]:
    return {"CPU": num_cpus, "GPU": 1} if use_gpu else {"CPU": num_cpus}


def _gpus() -> float:
    join_cluster()
    return float(ray.cluster_resources().get("GPU", 0))
