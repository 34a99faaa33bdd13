"""The files of a table: missing ones, those that belong to nothing, and those of its indexes."""

import dataclasses

import lance
from lance.file import LanceFileReader
from lancedb.table import LanceTable

from rqmoe_store.verification.findings import Findings
from rqmoe_store.verification.report import OrphanedFile

_UNTRACKED = ("_refs/", "latest_version_hint.json")
"""Parts of the names of files that no version has and that are needed all the same."""

_INDEX_ROWS = 1024


@dataclasses.dataclass
class _Tracked:
    """A file that versions have."""

    kind: str
    by_this_version: bool = False


def verify_files(dataset: lance.LanceDataset, branch: str | None, findings: Findings) -> list[OrphanedFile]:
    """Compare what all versions say they consist of with what there is.

    Args:
        dataset: a version of a table.
        branch: that it is of; None for the main one.
        findings: takes what is missing.

    Returns:
        Files that no version has, largest first.
    """
    tracked: dict[str, _Tracked] = {}
    for line in [None, *dataset.branches.list()]:
        for batch in dataset.checkout_version((line, None)).tracked_files():
            for row in batch.to_pylist():
                file = tracked.setdefault(f"{row['base_uri']}/{row['path']}", _Tracked(row["type"]))
                file.by_this_version |= line == branch and row["version"] == dataset.version
    there = {
        f"{row['base_uri']}/{row['path']}": row["size_bytes"]
        for batch in dataset.all_files()
        for row in batch.to_pylist()
    }
    _find_missing(f"{dataset.uri}/", tracked, there, findings)
    orphans = [
        OrphanedFile(name=name.removeprefix(f"{dataset.uri}/"), bytes=size)
        for name, size in there.items()
        if name not in tracked and not any(part in name for part in _UNTRACKED)
    ]
    return sorted(orphans, key=lambda file: (-file.bytes, file.name))


def _find_missing(
    folder: str, tracked: dict[str, _Tracked], there: dict[str, int], findings: Findings
) -> None:
    for name, file in sorted(tracked.items()):
        # Files in other folders are listed nowhere; what made a version is not needed to read it.
        if name in there or not name.startswith(folder) or file.kind == "transaction file":
            continue
        missing = f"{file.kind} {name.removeprefix(folder)} is missing"
        if file.by_this_version:
            findings.problems.append(f"{missing}; this version needs it")
        else:  # also what a clean-up leaves that was interrupted between the files of a version and itself
            findings.advice.append(
                f"{missing}, which an older version or another branch needs: that cannot be restored"
            )


def verify_indexes(table: LanceTable, dataset: lance.LanceDataset, findings: Findings) -> None:
    """Note indexes that are behind the rows, and read what they consist of."""
    for index in table.list_indices():
        if index.num_unindexed_rows:
            findings.advice.append(
                f"index {index.name!r} lacks {index.num_unindexed_rows:,} rows, which makes it slower; "
                "optimize() adds them"
            )
    for batch in dataset.tracked_files(min_version=dataset.version):
        for row in batch.to_pylist():
            if row["type"] == "index file" and row["path"].endswith(".lance"):
                with findings.during(f"index file {row['path']} cannot be read; make the index again"):
                    _read(f"{row['base_uri']}/{row['path']}", dataset)


def _read(path: str, dataset: lance.LanceDataset) -> None:
    reader = LanceFileReader(path, storage_options=dataset.initial_storage_options)
    for _ in reader.read_all(batch_size=_INDEX_ROWS).to_batches():
        pass  # what counts is that it can be read
