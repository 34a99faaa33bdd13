"""Join records of runs of `rqmoe bench codec --total-bytes` that measured some of the codecs each.

    python docs/benchmarks/join_bytes.py RUN.json ... --json docs/benchmarks/bytes.json

What is written has the commands of all runs, and the table of the best codec at each number of bytes,
over all that they measured. They must have measured the same vectors and queries; of a codec that
several measured at a size, the first counts. A record that kept no results but the best at each size,
as older ones do, has these to give; refine-codes.json and libraries.json have what their tables say of the
passages.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from rqmoe_store.evaluation.best_by_bytes import best_of_found
from rqmoe_store.evaluation.codec_results import BenchmarkReport, FoundBy
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
    """One record of several runs, the first of which is one of `bench codec`.

    Raises:
        ValueError: runs differ in the vectors that they measured.
    """
    data = [run["data"] for run in runs if "data" in run]
    if any(each != data[0] for each in data):
        raise ValueError(f"Got runs on {data}; expected the same vectors for all.")
    known = [each for run in runs for each in (_in_table(run) if "columns" in run else _found(run))]
    found = list({(each.codec, each.code_bytes): each for each in reversed(known)}.values())
    totals = {total for run in runs if "settings" in run for total in run["settings"]["total_bytes"]}
    report = BenchmarkReport(settings={}, machine=runs[0]["machine"])
    report.best = best_of_found(found, sorted(totals))
    record = run_record(report.to_dict(), codec_tables(report))
    return {
        "command": [line for run in runs for line in _lines(run["command"])],
        "date": max(run["date"] for run in runs),
        "machine": {**report.machine, "versions": _versions(runs)},
        "data": data[0],
        "tables": {BEST: record["tables"][BEST]},
        "best": record["best"],
        "found": [dataclasses.asdict(each) for each in sorted(found, key=lambda each: each.code_bytes)],
    }


def _found(run: Record) -> list[FoundBy]:
    """What the codecs of a run found."""
    if "results" not in run:
        sizes = [(row["ours"], row["best_peer"], *row["better_peers"]) for row in run["best"]]
        return [FoundBy(**each) for size in sizes for each in size if each is not None]
    return [
        FoundBy(
            codec=each["codec"],
            code_bytes=each["code_bytes"],
            recall=each["recall"]["ten_recall_10"],
            unseen_recall=each["unseen_recall"]["ten_recall_10"],
        )
        for each in run["results"]
    ]


def _lines(command: str | list[str]) -> list[str]:
    return [command] if isinstance(command, str) else command


def _in_table(record: Record) -> list[FoundBy]:
    """What the table of refine codes, or that of other libraries, says of the passages."""
    found = []
    for row in record["rows"]:
        cells = [f"{cell}".strip("*") for cell in row]
        if "codec" in record["columns"]:
            (codec, bits), (size, recall, unseen) = cells[:2], cells[2:5]
            name = _name(codec, bits)
        else:
            size, recall, unseen = cells[:3]
            name = "rqmoe-16" if size == "16" else "rqmoe-16+pq"
        if size != "-":
            found.append(
                FoundBy(codec=name, code_bytes=int(size), recall=float(recall), unseen_recall=float(unseen))
            )
    return found


def _name(codec: str, bits: str) -> str:
    """The name that `bench codec` has for what a table calls "EDEN (FAISS)"."""
    name, _, library = codec.lower().partition(" (")
    if not library or name == "opq":
        return name
    return f"{library.rstrip(')')}-{name.replace('_', '-')}-{bits}"


def _versions(runs: list[Record]) -> dict[str, str]:
    """Versions of all libraries; those that a run did not need may be missing from it."""
    return {
        name: version for run in runs if "data" in run for name, version in run["machine"]["versions"].items()
    }


if __name__ == "__main__":
    main()
