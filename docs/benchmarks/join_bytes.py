"""Join records of runs of `rqmoe bench codec --total-bytes` that measured some of the codecs each.

    python docs/benchmarks/join_bytes.py RUN.json ... --json docs/benchmarks/bytes.json

What is written has the commands of all runs, and the table of the best codec at each number of bytes,
over all that they measured. They must have measured the same vectors and queries; of a codec that
several measured at a size, the first counts.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rqmoe_store.evaluation.best_by_bytes import best_by_bytes
from rqmoe_store.evaluation.codec_results import BenchmarkReport, CodecResult, Recalls
from rqmoe_store.evaluation.records import Record, run_record
from rqmoe_store.evaluation.tables import codec_tables

BEST = "best-by-bytes"


def main() -> None:
    """Read the records, and write the joined one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--json", required=True, type=Path)
    options = parser.parse_args()
    record = joined([json.loads(path.read_text()) for path in options.runs])
    options.json.write_text(json.dumps(record, indent=2) + "\n")


def joined(runs: list[Record]) -> Record:
    """One record of several runs.

    Raises:
        ValueError: runs differ in the vectors that they measured.
    """
    if any(run["data"] != runs[0]["data"] for run in runs):
        raise ValueError(f"Got runs on {[run['data'] for run in runs]}; expected the same vectors for all.")
    found = [_result(each) for run in reversed(runs) for each in reversed(run["results"])]
    results = list({(each.codec, each.code_bytes): each for each in found}.values())
    totals = {total for run in runs for total in run["settings"]["total_bytes"]}
    report = BenchmarkReport(settings={}, machine=runs[0]["machine"], results=results)
    report.best = best_by_bytes(results, sorted(totals))
    record = run_record(report.to_dict(), codec_tables(report))
    return {
        "command": [run["command"] for run in runs],
        "date": max(run["date"] for run in runs),
        "machine": {**report.machine, "versions": _versions(runs)},
        "data": runs[0]["data"],
        "tables": {BEST: record["tables"][BEST]},
        "best": record["best"],
        "results": [_kept(each) for each in record["results"]],
    }


def _result(values: dict[str, Any]) -> CodecResult:
    recalls = {name: Recalls(**values[name]) for name in ("recall", "unseen_recall")}
    return CodecResult(**{**values, **recalls})


def _versions(runs: list[Record]) -> dict[str, str]:
    """Versions of all libraries; those that a run did not need may be missing from it."""
    return {name: version for run in runs for name, version in run["machine"]["versions"].items()}


def _kept(result: dict[str, Any]) -> dict[str, Any]:
    """A result without times, which runs beside other work do not have right."""
    names = ("codec", "code_bytes", "epochs", "mse", "relative_to_rq", "recall", "unseen_recall")
    return {name: result[name] for name in names}


if __name__ == "__main__":
    main()
