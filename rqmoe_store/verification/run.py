"""Verification: a whole table read to tell whether it is intact."""

import dataclasses
import tempfile
from pathlib import Path
from typing import cast

import lance
from lance.file import LanceFileReader
from lancedb.db import DBConnection
from lancedb.table import LanceTable

from rqmoe_store.progress import progress_bar
from rqmoe_store.store import databases, health, ingest_log
from rqmoe_store.store.columns import CodeColumns, KeptVectors
from rqmoe_store.store.embeddings import TableEmbedding
from rqmoe_store.store.keys import key_of
from rqmoe_store.store.metadata import TableMetadata, TunedSearch
from rqmoe_store.store.table_codec import TableCodec, generations_in
from rqmoe_store.verification.report import Findings, OrphanedFile, RowCounts, VerifyReport
from rqmoe_store.verification.rows import (
    Duplicates,
    KeyCheck,
    RowChecks,
    VerifiedCodec,
    find_unused_codecs,
    read_rows,
    verify_codecs,
)

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


_SHOWN = 200
"""Characters of a note that is shown."""


def verify(
    db: DBConnection,
    name: str,
    *,
    branch: str | None = None,
    version: int | None = None,
    progress: bool = True,
) -> VerifyReport:
    """Read a table from end to end and tell what is wrong with it; nothing is changed.

    Works on damaged tables: whatever is found, the rest is looked at, too. Memory is bounded; temporary files
    take 16 bytes per row. Lance keeps no checksums: a byte of a code, text or number that became another goes
    unnoticed where the row is still one that could be. On damaged lengths within a file, Lance may try to
    reserve more memory than there is, which ends the process.

    Args:
        db: a database in a folder or bucket.
        name: a table of it that this package made.
        branch: of the table; None for the main one.
        version: to read; None for the newest.
        progress: show a progress bar.

    Raises:
        TableError: no such table.
        InvalidInputError: `name` cannot be the name of a table.
    """
    databases.require_table_name(name)
    findings, table, is_there = Findings(), None, True
    with findings.during("the table cannot be opened"):
        table = cast(LanceTable | None, databases.open_if_exists(db, name, branch=branch, version=version))
        is_there = table is not None
    if not is_there:
        raise databases.no_such_table(db.uri, name)
    report = None
    if table is not None:
        with findings.during("the table cannot be read"):
            report = _Verification(db, table, findings).run(progress)
    return report or VerifyReport(
        table=name,
        version=None,
        counts=RowCounts(),
        fragments=0,
        codecs=0,
        problems=tuple(findings.all_problems),
        advice=(),
        orphans=(),
    )


class _Verification:
    """One version of a table, looked at from all sides."""

    def __init__(self, db: DBConnection, table: LanceTable, findings: Findings) -> None:
        self._db, self._table, self._findings = db, table, findings
        self._dataset = table.to_lance()

    def run(self, progress: bool) -> VerifyReport:
        findings, metadata = self._findings, self._metadata()
        codecs = [] if metadata is None else verify_codecs(self._db, self._dataset, metadata, findings)
        if metadata is not None:
            self._read_notes(metadata)
        counts = self._read_rows(None if metadata is None else self._row_checks(metadata, codecs), progress)
        self._advise(counts, bool(codecs))
        orphans: list[OrphanedFile] = []
        with findings.during("its files cannot be listed"):
            orphans = verify_files(self._dataset, self._table.current_branch(), findings)
        with findings.during("its indexes cannot be read"):
            verify_indexes(self._table, self._dataset, findings)
        find_unused_codecs(self._db, findings)
        return VerifyReport(
            table=self._table.name,
            version=int(self._dataset.version),
            counts=counts,
            fragments=len(self._dataset.get_fragments()),
            codecs=sum(each.codec is not None for each in codecs),
            problems=tuple(findings.all_problems),
            advice=tuple(findings.advice),
            orphans=tuple(orphans),
        )

    def _metadata(self) -> TableMetadata | None:
        metadata = None
        with self._findings.during("metadata"):
            metadata = TableMetadata.read(self._dataset.schema, self._table.name)
        return metadata

    def _read_notes(self, metadata: TableMetadata) -> None:
        """Read what else the metadata says, as those do who use it."""
        dataset, name = self._dataset, self._table.name
        with self._findings.during("embedding function"):
            TableEmbedding.read(dataset.schema.metadata, metadata.dim, metadata.config.metric, name)
        with self._findings.during("search setting"):
            TunedSearch.read(dataset.metadata, name)
        with self._findings.during("notes on ingested rows"):
            ingest_log.require_readable(dataset, name)
        if metadata.generations:
            with self._findings.during("notes on how well the codec fits"):
                noted = health.drift_of(dataset, TableCodec(metadata, generations_in(self._db, metadata)))
                self._findings.problems += [
                    f"notes on how well the codec fits: {_shortened(text)} cannot be read, and counts for "
                    "nothing; optimize() leaves it out for good"
                    for text in noted.unreadable
                ]

    def _row_checks(self, metadata: TableMetadata, codecs: list[VerifiedCodec]) -> RowChecks | None:
        """What rows must be; None where columns of ours are not what they should be."""
        checks, kept = (
            None,
            KeptVectors(column=metadata.vector_column, keep=metadata.keep_vectors, dim=metadata.dim),
        )
        with self._findings.during("columns"):
            CodeColumns(metadata.vector_column).require_in(
                self._dataset.schema, code_bytes=metadata.config.code_bytes
            )
            kept.require_in(self._dataset.schema, self._table.name)
            checks = RowChecks(metadata, codecs, self._findings)
        return checks

    def _read_rows(self, checks: RowChecks | None, progress: bool) -> RowCounts:
        rows = sum(fragment.count_rows() for fragment in self._dataset.get_fragments())
        with tempfile.TemporaryDirectory(prefix="rqmoe_store_") as folder, progress_bar(progress) as bar:
            task = bar.add_task("Reading", total=2 * rows)
            row_ids = Duplicates(Path(folder) / "row_ids", rows)
            name = key_of(self._dataset.schema)
            key = None if name is None else KeyCheck(name, Path(folder) / "keys", rows, self._findings)
            counts = read_rows(
                self._dataset, checks, row_ids, key, self._findings, lambda count: bar.advance(task, count)
            )
            self._findings.rows("rows have the id of another row", row_ids.repeated())
            if key is not None:
                with self._findings.during("values of the key cannot be compared"):
                    key.find_repeated(self._dataset)
            del row_ids, key  # they hold files in the folder
        return counts

    def _advise(self, counts: RowCounts, has_codec: bool) -> None:
        if counts.raw and has_codec:
            self._findings.advice.append(f"{counts.raw:,} rows have no code yet; optimize() encodes them")
        if counts.older:
            self._findings.advice.append(
                f"{counts.older:,} rows are of an older codec; optimize() encodes them anew"
            )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
