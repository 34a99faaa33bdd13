"""A cluster of two nodes on this machine, for all tests, and something to ingest."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Set before torch is imported: on tensors as small as the tests' a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers give way to everything else on the machine otherwise, and may hardly get on beside it.
os.environ.update(RAY_worker_niceness="0")

import pytest
import ray
from ray.cluster_utils import Cluster
from small_rows import vectors_of, write_files

import rqmoe_store as rqs


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Two nodes with two CPUs each; their address."""
    node = {"num_cpus": 2, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=node)
    nodes.add_node(**{name: value for name, value in node.items() if name != "include_dashboard"})
    ray.init(address=nodes.address, log_to_driver=False, logging_level="warning")
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(scope="session")
def codec() -> rqs.Codec:
    """With refine codes."""
    config = rqs.CodecConfig(kind="rq", code_bytes=4, refine_bytes=8, codebook_size=16, num_partitions=4)
    training = rqs.TrainConfig(epochs=0, progress=False, device="cpu")
    return rqs.train(vectors_of(600), config=config, training=training)


@pytest.fixture(scope="session")
def codec_folder(tmp_path_factory: pytest.TempPathFactory, codec: rqs.Codec) -> Path:
    folder = tmp_path_factory.mktemp("codec") / "codec"
    codec.save(folder)
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files with row groups, some of whose rows are bad."""
    folder = tmp_path_factory.mktemp("source")
    write_files(folder, files=6, rows=500)
    return folder


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Where a table may come to be."""
    return str(tmp_path / "db" / "docs.lance")
