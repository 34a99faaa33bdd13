"""Small tables with vectors, and codecs for them."""

import functools

import numpy as np
import pyarrow as pa

from rqmoe_store.codecs.artifact import Artifact
from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig, Metric, TrainConfig
from rqmoe_store.table import CompressedTable
from rqmoe_store.training.trainer import train


def source_table(vectors: np.ndarray) -> pa.Table:
    rows = np.arange(len(vectors))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return pa.table(
        {
            "id": rows,
            "lang": pa.array(np.where(rows % 3 == 0, "en", "de")),
            "text": pa.array([f"text {row}" for row in rows]),
            "vector": lists,
        }
    )


def tiny_codec(vectors: np.ndarray, metric: Metric, partitions: int, refine_bytes: int = 0) -> Codec:
    """A codec of its own for every caller, trained once for those who give the same vectors and settings."""
    flat, shape = vectors.tobytes(), vectors.shape
    return Codec.from_artifact(
        _tiny_artifact(flat, shape, vectors.dtype.str, metric, partitions, refine_bytes)
    )


@functools.cache
def _tiny_artifact(
    flat: bytes, shape: tuple[int, int], dtype: str, metric: Metric, partitions: int, refine_bytes: int
) -> Artifact:
    config = CodecConfig(
        kind="rq",
        code_bytes=4,
        refine_bytes=refine_bytes,
        codebook_size=16,
        num_partitions=partitions,
        metric=metric,
        beam=2,
    )
    vectors = np.frombuffer(flat, dtype).reshape(shape).copy()
    return train(vectors, config=config, training=TrainConfig(epochs=0, progress=False)).to_artifact()


def stored(store: CompressedTable, where: str = "true") -> dict[int, tuple[str, bytes, int]]:
    """Text, code and partition by id."""
    found = store.table.search().where(where).to_list()
    return {row["id"]: (row["text"], row["vector_code"], row["vector_partition"]) for row in found}


def coded(codec: Codec, vector: np.ndarray) -> tuple[bytes, int]:
    """The code and the partition of a vector."""
    codes = codec.encode(np.float32(vector)[None])
    return codes.codes[0].tobytes(), int(codes.partitions[0])
