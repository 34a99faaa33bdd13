"""How many bytes per vector? Train once at the most you would pay, and see what fewer would give."""

import numpy as np

import rqmoe_store as rqs
from rqmoe_store.evaluation.recall import exact_neighbors, k_recall_at_k

random = np.random.default_rng(0)
centers = random.normal(size=(50, 64))
vectors = (centers[random.integers(50, size=1600)] + random.normal(scale=0.5, size=(1600, 64))).astype(
    "float32"
)
stored, queries = vectors[:1500], vectors[1500:]

codec = rqs.train(
    stored,
    config=rqs.CodecConfig(code_bytes=8, codebook_size=64, num_partitions=0),
    training=rqs.TrainConfig(epochs=2, seed=0, progress=False),
)
codes = codec.encode(stored)
truth, _ = exact_neighbors(queries, stored, 10)

print("bytes  MSE / plain RQ's  recall@10 of the decoded vectors")
for num_bytes in (1, 2, 4, 8):
    report = codec.report.truncated(num_bytes)
    found, _ = exact_neighbors(queries, codec.decode(codes[:, :num_bytes]), 10)
    ratio = report.validation_mse / report.rq_validation_mse
    print(f"{num_bytes:5}  {ratio:16.3f}  {k_recall_at_k(found, truth, 10):.3f}")
