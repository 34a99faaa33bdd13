"""Try an installed rqmoe-ray: train on workers, ingest a file once, and search with actors."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import rqmoe_ray

import rqmoe_store as rqs

vectors = np.random.default_rng(0).normal(size=(1200, 64)).astype(np.float32)
lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 64)

with tempfile.TemporaryDirectory() as folder:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    source, table = Path(folder, "rows.parquet"), Path(folder, "data", "docs.lance")
    pq.write_table(pa.table({"id": range(1200), "vector": lists}), source)
    codec = rqmoe_ray.train(
        vectors,
        config=rqs.CodecConfig(code_bytes=8, codebook_size=16),
        training=rqs.TrainConfig(epochs=1, seed=0, progress=False, device="cpu"),
        num_workers=1,
    )
    for _ in range(2):  # what is there already is left out
        print(rqmoe_ray.ingest(source, table, codec=codec, num_workers=1))
    searched = rqmoe_ray.open_table(table, num_workers=1)
    assert searched.count_rows() == 1200
    assert searched.search(vectors[7]).limit(1).to_list()[0]["id"] == 7
    ray.shutdown()
