"""Check advice: what it says a codec finds, against what searches of a compressed table with that codec find.

    python docs/benchmarks/measure_advice.py VECTORS.npy QUERIES.npy [--targets 0.8,0.9,0.95] [--minutes 0]

Every recommended codec is trained anew on all rows. Recall is 10-recall@10 with all queries, of searches that
probe all partitions and rank 5,000 rows, of default searches, and of searches after `tune`.
"""

import argparse
import json
import math
import tempfile

import lancedb
import numpy as np
import pyarrow as pa

import rqmoe_store as rqs
from rqmoe_store.evaluation.recall import exact_neighbors, k_recall_at_k

SHORTLIST = 5_000


def main() -> None:
    """Measure, and print a line of JSON for every target."""
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors")
    parser.add_argument("queries")
    parser.add_argument("--targets", default="0.8,0.9,0.95")
    parser.add_argument("--minutes", type=float, default=0.0)
    options = parser.parse_args()
    vectors = np.load(options.vectors, allow_pickle=False).astype(np.float32)
    queries = np.load(options.queries, allow_pickle=False).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        rows = pa.table({"id": np.arange(len(vectors)), "vector": lists})
        docs = lancedb.connect(folder).create_table("docs", rows)
        for target in map(float, options.targets.split(",")):
            print(json.dumps(check(docs, vectors, queries, target, options.minutes)), flush=True)


def check(docs, vectors, queries, target: float, minutes: float) -> dict[str, object]:
    """What advice for a target says, and what a table with the recommended codec finds."""
    advice = rqs.advise(docs, queries, target_recall=target, minutes=minutes)
    chosen = advice.recommendation
    truth, _ = exact_neighbors(queries, vectors, 10, metric=advice.metric)
    codec = rqs.train(
        docs, config=advice.config, training=rqs.TrainConfig(max_minutes=chosen.minutes, progress=False)
    )
    store = rqs.compress(docs, codec, f"docs_{round(1000 * target)}", progress=False)

    def recall(**parameters: int) -> float:
        found = []
        for query in queries:
            search = store.search(query).limit(10).select(["id"])
            for name, value in parameters.items():
                search = getattr(search, name)(value)
            found.append([hit["id"] for hit in search.to_list()])
        return k_recall_at_k(np.array(found), truth, 10)

    exhaustive, default = recall(nprobes=codec.num_partitions, shortlist=SHORTLIST), recall()
    share = min(0.999, max(0.99, math.ceil(1e3 * target / chosen.recall) / 1e3))
    store.tune(queries, target_recall=share, progress=False)
    return {
        "target": target,
        "codec": chosen.name,
        "said": chosen.recall,
        "exhaustive": exhaustive,
        "said of default searches": chosen.default_search_recall,
        "default searches": default,
        "tuned searches": recall(),
    }


if __name__ == "__main__":
    main()
