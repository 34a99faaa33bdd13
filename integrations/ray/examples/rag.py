"""Embed, ingest and ask with Ray: the documentation of Python's own library, in 16 bytes a passage.

python examples/rag.py "How do I read a zip file?"
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import ray
import rqmoe_ray

import rqmoe_store as rqs
from rqmoe_store.demo.texts import collect, sentence_embedder

QUESTION = "How do I read the files in a zip archive?"
PASSAGES, MINUTES = 1500, 0.2


class Embed:
    """A sentence model, loaded once per actor."""

    def __init__(self) -> None:
        self._embed = sentence_embedder()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**batch, "vector": self._embed(batch["text"].tolist())}


def main(question: str, passages: int, minutes: float, folder: Path) -> None:
    documents = [{"name": each.name, "text": each.text} for each in collect(limit=passages)]
    workers = ray.data.ActorPoolStrategy(min_size=1, max_size=2)
    embedded = (
        ray.data.from_items(documents).map_batches(Embed, batch_size=256, compute=workers).materialize()
    )

    codec = rqs.train(
        np.array([row["vector"] for row in embedded.take(10_000)]),
        config=rqs.CodecConfig(code_bytes=16, metric="cosine"),
        training=rqs.TrainConfig(max_minutes=minutes, seed=0, progress=False),
    )
    # Under this name the rows are ingested once, however often it is tried.
    print(rqmoe_ray.ingest(embedded, folder / "docs.lance", codec=codec, job="library"))

    table = rqmoe_ray.open_table(folder / "docs.lance", num_workers=2)
    hits = table.search(sentence_embedder()([question])[0]).limit(3)
    print(question)
    for row in hits.select(["name", "text"]).to_list():
        print(f"  {row['_distance']:.3f}  {row['name']}: {row['text'].splitlines()[0]}")


if __name__ == "__main__":
    ray.init(ignore_reinit_error=True, include_dashboard=False)
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1] if len(sys.argv) > 1 else QUESTION, PASSAGES, MINUTES, Path(temporary))
