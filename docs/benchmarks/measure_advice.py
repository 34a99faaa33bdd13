"""Check advice: what it says a codec finds, against what searches of a compressed table with that codec find.

    python docs/benchmarks/measure_advice.py VECTORS.npy QUERIES.npy [--targets 0.8,0.9] [--json advice.json]

Every recommended codec is trained anew on all rows. Recall is 10-recall@10 with all queries, of searches that
probe all partitions and rank 5,000 rows, of default searches, and of searches after `tune`.
"""

import argparse
import math
import tempfile
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import torch

import rqmoe_store as rqs
from rqmoe_store.evaluation.machine import describe_machine
from rqmoe_store.evaluation.recall import exact_neighbors, k_recall_at_k
from rqmoe_store.evaluation.records import run_facts
from rqmoe_store.terminal import write_json

SHORTLIST = 5_000


def main() -> None:
    """Measure, print a line for every target, and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors")
    parser.add_argument("queries")
    parser.add_argument("--targets", default="0.8,0.9,0.95")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    options, found = parser.parse_args(), []
    facts = {**run_facts(), "machine": describe_machine(torch.device("cpu"))}
    vectors = np.load(options.vectors, allow_pickle=False).astype(np.float32)
    queries = np.load(options.queries, allow_pickle=False).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        rows = pa.table({"id": np.arange(len(vectors)), "vector": lists})
        docs = lancedb.connect(folder).create_table("docs", rows)
        for target in map(float, options.targets.split(",")):
            found.append(check(docs, vectors, queries, target, options.minutes))
            print(found[-1], flush=True)
    if options.json is not None:
        rows = [list(each.values()) for each in found]
        write_json(options.json, {**facts, "columns": list(found[0]), "rows": rows})


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
        "recommended": chosen.name,
        "said": chosen.recall,
        "found by an exhaustive search": exhaustive,
        "said of default searches": chosen.default_search_recall,
        "found by them": default,
        "found after `tune`": recall(),
    }


if __name__ == "__main__":
    main()
