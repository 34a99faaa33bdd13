"""Advice made of numbers, as a measurement of a table would give it."""

from typing import Any

from rqmoe_store.advice.result import Advice, Candidate, CandidateKind, PartitionError
from rqmoe_store.config import CodecConfig
from rqmoe_store.store.health import CommitError, HealthReport

ROWS, DIM = 100_000, 384


def candidate(kind: CandidateKind, code_bytes: int, refine_bytes: int, recall: float) -> Candidate:
    """A candidate of a recall, with other figures that go with it."""
    is_scalar = kind in ("int8", "binary")
    config = None if is_scalar else CodecConfig(kind=kind, code_bytes=code_bytes, refine_bytes=refine_bytes)  # type: ignore[arg-type]
    codec_bytes, bytes_per_vector = 3000 if is_scalar else 5_300_000, code_bytes + refine_bytes + 1.25
    errors = [
        PartitionError(partition=each, rows=60 + each % 7, relative_error=0.1 + 0.002 * (each * 37 % 50))
        for each in range(0 if is_scalar else 120)
        if each % 10  # some have no rows of the sample
    ]
    return Candidate(
        kind=kind,
        code_bytes=code_bytes,
        refine_bytes=refine_bytes,
        config=config,
        recall=recall,
        recall_low=recall - 0.012,
        recall_high=min(1.0, recall + 0.011),
        sample_recall=min(1.0, recall + 0.021),
        default_search_recall=None if is_scalar else recall - 0.034,
        relative_error=1.003 - recall,
        bytes_per_vector=bytes_per_vector,
        codec_bytes=codec_bytes,
        table_bytes=round(ROWS * bytes_per_vector) + codec_bytes,
        break_even_rows=round(codec_bytes / (4 * DIM - bytes_per_vector)),
        query_seconds=None if is_scalar else 0.00117 + 1e-6 * refine_bytes,
        encode_seconds=17.0,
        training_seconds=61.0,
        minutes=None if is_scalar else 1.0,
        partition_errors=tuple(errors),
    )


def advice(**changes: Any) -> Advice:
    """Advice that recommends a candidate, for a compressed table; `changes` replace some of it."""
    candidates = (
        candidate("rq", 8, 0, 0.583),
        candidate("rqmoe", 8, 0, 0.627),
        candidate("rq", 16, 0, 0.665),
        candidate("rqmoe", 16, 0, 0.714),
        candidate("rq", 16, 48, 0.905),
        candidate("rqmoe", 16, 48, 0.917),
        candidate("rqmoe", 16, 64, 0.951),
        candidate("rqmoe", 16, 80, 0.963),
        candidate("binary", 48, 0, 0.706),
        candidate("int8", 384, 0, 0.994),
    )
    values: dict[str, Any] = {
        "source": "docs",
        "rows": ROWS,
        "dim": DIM,
        "metric": "l2",
        "k": 10,
        "target_recall": 0.95,
        "num_queries": 500,
        "own_queries": True,
        "training_rows": 70_000,
        "encoded_rows": 20_000,
        "method": "How many other rows come before a neighbor is estimated from random rows.",
        "candidates": candidates,
        "recommended": 6,
        "sentence": "Use rqmoe with 16 bytes of code and 64 of refine code.",
        "notes": ("A longer training would add to that: --minutes 15.",),
        "commands": (
            "rqmoe train ./data docs --out codec/ --bytes 16 --refine-bytes 64 --minutes 1",
            "rqmoe compress ./data docs --codec codec/ --into docs_compressed",
        ),
        "seconds": 141.0,
        "complete": True,
        "health": HealthReport(
            rows=900, raw_rows=7, older_rows=0, trained_mse=0.25, added_mse=0.3, balance=0.021, complete=True
        ),
        "commits": tuple(
            CommitError(version=version, rows=300, mse=0.25 + 0.01 * version) for version in (5, 6, 9)
        ),
    }
    return Advice(**(values | changes))
