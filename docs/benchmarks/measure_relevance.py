"""Measure what `tune_codec` gains in searches for queries that were held out.

    python docs/benchmarks/measure_relevance.py VECTORS.npy QUERIES.npy [--codecs rq-8,rq-16,rq-32]
        [--relevance RELEVANCE.npy] [--minutes 0.5] [--splits 3] [--json FILE --name NAME]

Vectors are compressed under cosine, without partitions. With --relevance, pairs of a query and a row that
answers it, as `rqmoe bench data` writes them, say what should be found; otherwise the 10 exact neighbors do.
Measured are searches of a table with default parameters. Every split holds out another 30 % of the queries;
figures, and bounds of the gain with a confidence of 95 %, are means over the splits. --json adds the table
NAME to a record.
"""

import argparse
import datetime
import json
import shlex
import sys
import tempfile
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import torch

import rqmoe_store as rqs
from rqmoe_store.evaluation.machine import describe_machine

COLUMNS = [
    *("codec", "nDCG@10 before", "after", "gain between", "and"),
    *("recall@10 before", "recall@10 after", "splits kept"),
]


def main() -> None:
    """Measure, print a line for every codec, and add a table to the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors")
    parser.add_argument("queries")
    parser.add_argument("--codecs", default="rq-8,rq-16,rq-32")
    parser.add_argument("--relevance")
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--name", default="relevance")
    options = parser.parse_args()
    vectors = np.load(options.vectors, allow_pickle=False).astype(np.float32)
    queries = np.load(options.queries, allow_pickle=False).astype(np.float32)
    positives = None
    if options.relevance:
        positives = [[] for _ in queries]
        for query, row in np.load(options.relevance, allow_pickle=False).tolist():
            positives[query].append(row)
    rows = []
    for name in options.codecs.split(","):
        rows.append(measured(name, vectors, queries, positives, options))
        print(json.dumps(dict(zip(COLUMNS, rows[-1], strict=True))), flush=True)
    if options.json:
        write_record(options.json, options.name, rows)


def measured(name, vectors, queries, positives, options) -> list[object]:
    """The cells of one codec, such as "rq-16"."""
    kind, size = name.split("-")
    codec = rqs.train(
        vectors,
        config=rqs.CodecConfig(kind=kind, code_bytes=int(size), metric="cosine", num_partitions=0),
        training=rqs.TrainConfig(max_minutes=options.minutes, progress=False),
    )
    with tempfile.TemporaryDirectory() as folder:
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        rows = pa.table({"id": np.arange(len(vectors)), "vector": lists})
        docs = lancedb.connect(folder).create_table("docs", rows)
        store = rqs.compress(docs, codec, "small", keep_vectors="float32", progress=False)
        version, reports = store.version, []
        for seed in range(options.splits):
            on = None if positives is None else "id"
            reports.append(store.tune_codec(queries, positives, on=on, seed=seed, progress=False))
            if reports[-1].kept:
                store.restore(version)

    def mean(field: str) -> float:
        return float(np.mean([getattr(report, field) for report in reports]))

    kept = sum(report.kept for report in reports)
    return [
        f"{kind}, {size} bytes",
        *(mean("ndcg_before"), mean("ndcg_after"), mean("ndcg_gain_low"), mean("ndcg_gain_high")),
        *(mean("recall_before"), mean("recall_after"), f"{kept} of {len(reports)}"),
    ]


def write_record(path: Path, name: str, rows: list[list[object]]) -> None:
    """Add a table, and the command that measured it, to a record."""
    record = json.loads(path.read_text()) if path.exists() else {"command": [], "tables": {}}
    command = shlex.join(["python", "docs/benchmarks/measure_relevance.py", *map(shown, sys.argv[1:])])
    record["command"] = [*(each for each in record["command"] if f"--name {name}" not in each), command]
    record["tables"][name] = {"columns": COLUMNS, "rows": rows}
    record["machine"], record["date"] = describe_machine(torch.device("cpu")), f"{datetime.date.today()}"
    path.write_text(json.dumps(record, indent=2) + "\n")


def shown(argument: str) -> str:
    """An argument as it reads from the repository's root; data are elsewhere on every machine."""
    path = Path(argument)
    return path.name if path.suffix == ".npy" else argument


if __name__ == "__main__":
    main()
