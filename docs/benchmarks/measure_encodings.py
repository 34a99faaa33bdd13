"""Which fixed dimensional encodings find the best documents by MaxSim, and how much of a mean they keep.

    rqmoe bench data tokens --kind tokens --rows 20000
    python docs/benchmarks/measure_encodings.py tokens --queries 200 --json multivector-encodings.json

Encodings are not compressed. The best documents are those by exact MaxSim of all raw vectors. "Left over" is
the mean squared length of vectors, of length 1, without the mean of their document as its encoding tells it.

Shape legend: B documents, Q queries, N neighbors, F dimension of an encoding, n vectors of a block.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from rqmoe_store.evaluation.machine import describe_machine
from rqmoe_store.evaluation.multivector_benchmark import (
    FEW,
    MultiVectorData,
    best_documents,
    read_multi_vector_data,
)
from rqmoe_store.evaluation.records import run_facts
from rqmoe_store.multivector.fixed_dimensional import FixedDimensionalEncoder
from rqmoe_store.terminal import write_json

SETTINGS = [
    (8, 1, 128),
    (16, 1, 64),
    (8, 2, 64),
    (8, 3, 32),
    (20, 3, 16),
    (3, 1, None),
    (20, 5, 16),
    (4, 3, None),
]
"""Repetitions, hyperplanes, and components of a projection or None."""
SKETCHED = [(20, 5, 16, 2048), (20, 5, 16, 1024)]
"""The same, and components of a final count sketch."""
DEPTHS = (FEW, 50, 100, 200, 400)


def main() -> None:
    """Measure all encodings, and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--json", type=Path, default=Path("multivector-encodings.json"))
    options = parser.parse_args()
    facts = {**run_facts(), "machine": describe_machine(torch.device("cpu"))}
    data = read_multi_vector_data(options.folder, options.documents, options.queries)
    truth_QN = best_documents(data, lambda block_nD: block_nD)[:, :FEW]
    rows = [measure("the mean of the vectors", encoder_of(data, 1, 0, None, None), data, truth_QN)]
    for repetitions, hyperplanes, components, final in [*((*each, None) for each in SETTINGS), *SKETCHED]:
        name = f"{repetitions} repetitions, {hyperplanes} hyperplane{'s' * (hyperplanes != 1)}"
        name += f", to {components}" if components else ""
        name += ", count sketch" if final else ""
        encoder = encoder_of(data, repetitions, hyperplanes, components, final)
        rows.append(measure(name, encoder, data, truth_QN))
        print(json.dumps(rows[-1]), flush=True)
    columns = ["encoding", "dimension", "R@10", *(f"in {depth}" for depth in DEPTHS[1:]), "left over"]
    write_json(options.json, {**facts, "columns": columns, "rows": rows})


def encoder_of(
    data: MultiVectorData, repetitions: int, hyperplanes: int, components: int | None, final: int | None
) -> FixedDimensionalEncoder:
    """The encoder with these settings."""
    return FixedDimensionalEncoder(
        data.queries_KD.shape[1],
        num_repetitions=repetitions,
        num_hyperplanes=hyperplanes,
        projected_dim=components,
        final_dim=final,
    )


def measure(
    name: str, encoder: FixedDimensionalEncoder, data: MultiVectorData, truth_QN: np.ndarray
) -> list[object]:
    """A row of the table."""
    queries_QF = encoder.encode_queries(data.queries_KD, data.query_lengths_Q)
    scores, left = [], 0.0
    for _, block_nD, lengths_n in data.blocks():
        encodings_BF = encoder.encode_documents(block_nD, lengths_n)
        scores.append(queries_QF @ encodings_BF.T)
        means_nD = np.repeat(encoder.estimate_means(encodings_BF), lengths_n, axis=0)
        left += float(np.square(block_nD - means_nD).sum(dtype=np.float64))
    order_QB = np.argsort(-np.concatenate(scores, axis=1), axis=1, kind="stable")
    shares = [
        np.mean(
            [
                np.isin(best_N, found_B[:depth]).mean()
                for best_N, found_B in zip(truth_QN, order_QB, strict=True)
            ]
        )
        for depth in DEPTHS
    ]
    rounded = [round(float(share), 3) for share in shares]
    return [name, encoder.fde_dim, *rounded, round(left / int(data.lengths_B.sum()), 3)]


if __name__ == "__main__":
    main()
