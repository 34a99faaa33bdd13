"""Join records of runs of `rqmoe bench codec --total-bytes` that measured some of the codecs each.

    python docs/benchmarks/join_bytes.py RUN.json ... --json docs/benchmarks/bytes.json

What is written has the commands of all runs, and two tables of all that they measured: the best codec at
each number of bytes, and what every codec finds. They must have measured the same vectors and queries; of a
codec that several measured at a size, the first counts. A run that was ended before its last codec has those
before, and one that kept the best at each size has these.
"""

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

from rqmoe_store.evaluation.best_by_bytes import best_of_found
from rqmoe_store.evaluation.codec_results import BenchmarkReport, FoundBy
from rqmoe_store.evaluation.peer_names import family_of, is_peer
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
    """One record of several runs of `bench codec`, with their sizes to compare at.

    Raises:
        ValueError: runs differ in the vectors that they measured.
    """
    data = [run["data"] for run in runs]
    if any(each != data[0] for each in data):
        raise ValueError(f"Got runs on {data}; expected the same vectors for all.")
    known = [each for run in runs for each in _found(run)]
    found = list({(each.codec, each.code_bytes): each for each in reversed(known)}.values())
    totals = sorted({total for run in runs for total in run["settings"]["total_bytes"]})
    report = BenchmarkReport(settings={}, machine=runs[0]["machine"])
    report.best = best_of_found(found, totals)
    record = run_record(report.to_dict(), codec_tables(report))
    return {
        "command": [run["command"] for run in runs],
        "date": max(run["date"] for run in runs),
        "machine": {**report.machine, "versions": _versions(runs)},
        "data": data[0],
        "tables": {BEST: record["tables"][BEST], "by-codec": by_codec(found, totals)},
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


def by_codec(found: list[FoundBy], totals: list[int]) -> dict[str, list[Any]]:
    """A table of what every codec finds at each size, or at the largest below it, after the size before.

    Forms of a codec, such as bits per component, are in one row; ours are the first. Where the bytes are
    not those of the column, they follow in parentheses.
    """
    bounds = [0, *totals, max([*totals, *(each.code_bytes for each in found)])]
    names = sorted({family_of(each.codec) for each in found}, key=lambda name: (_is_other(name, found), name))
    rows = []
    for name in names:
        own = [each for each in found if family_of(each.codec) == name]
        cells = [
            _cell([each for each in own if least < each.code_bytes <= most], most)
            for least, most in itertools.pairwise(bounds)
        ]
        rows.append([name, *cells])
    return {"columns": ["codec", *map(str, totals), f"beyond {totals[-1]}"], "rows": rows}


def _is_other(family: str, found: list[FoundBy]) -> bool:
    return any(is_peer(each.codec) for each in found if family_of(each.codec) == family)


def _cell(found: list[FoundBy], size: int) -> str:
    """What the best of them finds, and its bytes where they are not `size`."""
    best = max(found, key=lambda each: each.recall, default=None)
    if best is None:
        return ""
    return f"{best.recall:.3f}{'' if best.code_bytes == size else f' ({best.code_bytes})'}"


def _versions(runs: list[Record]) -> dict[str, str]:
    """Versions of all libraries; those that a run did not need may be missing from it."""
    return {name: version for run in runs for name, version in run["machine"]["versions"].items()}


if __name__ == "__main__":
    main()
