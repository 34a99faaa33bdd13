"""Verify a table: read all of it and report what is damaged, without changing anything."""

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
from rqmoe_store.store.embeddings import TableEmbedding
from rqmoe_store.store.keys import key_of
from rqmoe_store.store.metadata import TableMetadata, TunedSearch
from rqmoe_store.store.neighbor_graph import GRAPH_FOLDER
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

_UNTRACKED = ("_refs/", "latest_version_hint.json", f"{GRAPH_FOLDER}/")
"""Parts of the names of files that are needed although no version lists them."""

_INDEX_ROWS = 1024
"""Rows of an index file read at a time."""

_NOTE_CHARACTERS = 200
"""Most characters to show of a note that cannot be read."""


def verify(
    db: DBConnection,
    name: str,
    *,
    branch: str | None = None,
    version: int | None = None,
    progress: bool = True,
) -> VerifyReport:
    """Read a whole table and report what is wrong with it; nothing is changed.

    Works on damaged tables: after a problem, everything else is still checked. Memory is bounded; temporary
    files take 16 bytes per row. Lance keeps no checksums, so a changed byte of a code, text or number goes
    unnoticed if the row is still valid. If a length within a file is damaged, Lance may try to reserve more
    memory than there is, which ends the process.

    Args:
        db: a database in a folder or bucket.
        name: name of a compressed table.
        branch: branch of the table; None for the main branch.
        version: version to read; None for the newest.
        progress: show a progress bar.

    Raises:
        TableError: there is no such table.
        InvalidInputError: `name` is not a valid table name.
    """
    databases.require_table_name(name)
    findings, table, is_there = Findings(), None, True
    with findings.recording("the table cannot be opened"):
        table = cast(LanceTable | None, databases.open_if_exists(db, name, branch=branch, version=version))
        is_there = table is not None
    if not is_there:
        raise databases.no_such_table(db.uri, name)
    report = None
    if table is not None:
        with findings.recording("the table cannot be read"):
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
    """The verification of one version of a table that could be opened."""

    def __init__(self, db: DBConnection, table: LanceTable, findings: Findings) -> None:
        self._db, self._table, self._findings = db, table, findings
        self._dataset = table.to_lance()

    def run(self, progress: bool) -> VerifyReport:
        findings, metadata = self._findings, self._read_metadata()
        codecs = [] if metadata is None else verify_codecs(self._db, self._dataset, metadata, findings)
        if metadata is not None:
            self._read_other_metadata(metadata)
        counts = self._read_rows(None if metadata is None else self._row_checks(metadata, codecs), progress)
        self._advise(counts, bool(codecs))
        orphans: list[OrphanedFile] = []
        with findings.recording("its files cannot be listed"):
            orphans = verify_files(self._dataset, self._table.current_branch(), findings)
        with findings.recording("its indexes cannot be read"):
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

    def _read_metadata(self) -> TableMetadata | None:
        metadata = None
        with self._findings.recording("metadata"):
            metadata = TableMetadata.read(self._dataset.schema, self._table.name)
        return metadata

    def _read_other_metadata(self, metadata: TableMetadata) -> None:
        """Read all other metadata with the functions that its users call."""
        dataset, name = self._dataset, self._table.name
        with self._findings.recording("embedding function"):
            TableEmbedding.read(dataset.schema.metadata, metadata.vector_dim, metadata.metric, name)
        with self._findings.recording("search setting"):
            TunedSearch.read(dataset.metadata, name)
        with self._findings.recording("notes on ingested rows"):
            ingest_log.require_readable_log(dataset, name)
        if metadata.generations:
            with self._findings.recording("notes on how well the codec fits"):
                drift = health.drift_of(dataset, TableCodec(metadata, generations_in(self._db, metadata)))
                self._findings.problems += [
                    f"notes on how well the codec fits: {_shortened(text)} cannot be read, and counts for "
                    "nothing; optimize() leaves it out for good"
                    for text in drift.unreadable
                ]

    def _row_checks(self, metadata: TableMetadata, codecs: list[VerifiedCodec]) -> RowChecks | None:
        """The checks of rows; None if code or vector columns are missing or have other types."""
        checks = None
        kept = metadata.kept
        with self._findings.recording("columns"):
            columns = metadata.columns
            columns.require_in(self._dataset.schema, code_bytes=metadata.config.code_bytes)
            columns.require_all_in(self._dataset.schema)
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
            self._findings.add_rows("rows have the id of another row", row_ids.repeated())
            if key is not None:
                with self._findings.recording("values of the key cannot be compared"):
                    key.find_repeated(self._dataset)
            del row_ids, key  # closes their files in the folder
        return counts

    def _advise(self, counts: RowCounts, has_codec: bool) -> None:
        if counts.raw and has_codec:
            self._findings.advice.append(f"{counts.raw:,} rows have no code yet; optimize() encodes them")
        if counts.older:
            self._findings.advice.append(
                f"{counts.older:,} rows are of an older codec; optimize() encodes them again"
            )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= _NOTE_CHARACTERS else f"{text[:_NOTE_CHARACTERS]}...")


@dataclasses.dataclass
class _TrackedFile:
    """A file that some version lists."""

    kind: str
    in_this_version: bool = False


def verify_files(dataset: lance.LanceDataset, branch: str | None, findings: Findings) -> list[OrphanedFile]:
    """Compare the files that all versions list with the files that exist.

    Args:
        dataset: a version of a table.
        branch: branch of that version; None for the main branch.
        findings: records missing files.

    Returns:
        Files that no version lists, largest first.
    """
    tracked: dict[str, _TrackedFile] = {}
    for each in [None, *dataset.branches.list()]:
        for batch in dataset.checkout_version((each, None)).tracked_files():
            for row in batch.to_pylist():
                file = tracked.setdefault(f"{row['base_uri']}/{row['path']}", _TrackedFile(row["type"]))
                file.in_this_version |= each == branch and row["version"] == dataset.version
    present = {
        f"{row['base_uri']}/{row['path']}": row["size_bytes"]
        for batch in dataset.all_files()
        for row in batch.to_pylist()
    }
    _find_missing_files(f"{dataset.uri}/", tracked, present, findings)
    orphans = [
        OrphanedFile(name=name.removeprefix(f"{dataset.uri}/"), bytes=size)
        for name, size in present.items()
        if name not in tracked and not any(part in name for part in _UNTRACKED)
    ]
    return sorted(orphans, key=lambda file: (-file.bytes, file.name))


def _find_missing_files(
    folder: str, tracked: dict[str, _TrackedFile], present: dict[str, int], findings: Findings
) -> None:
    for name, file in sorted(tracked.items()):
        # `present` has no files of other folders. Reading a version does not need its transaction file.
        if name in present or not name.startswith(folder) or file.kind == "transaction file":
            continue
        missing = f"{file.kind} {name.removeprefix(folder)} is missing"
        if file.in_this_version:
            findings.problems.append(f"{missing}; this version needs it")
        else:  # also after a clean-up that was interrupted after a version's files and before its manifest
            findings.advice.append(
                f"{missing}, which an older version or another branch needs: that cannot be restored"
            )


def verify_indexes(table: LanceTable, dataset: lance.LanceDataset, findings: Findings) -> None:
    """Record indexes that lack rows, and read all index files."""
    for index in table.list_indices():
        if index.num_unindexed_rows:
            findings.advice.append(
                f"index {index.name!r} lacks {index.num_unindexed_rows:,} rows, which makes it slower; "
                "optimize() adds them"
            )
    for batch in dataset.tracked_files(min_version=dataset.version):
        for row in batch.to_pylist():
            if row["type"] == "index file" and row["path"].endswith(".lance"):
                with findings.recording(f"index file {row['path']} cannot be read; make the index again"):
                    _read_file(f"{row['base_uri']}/{row['path']}", dataset)


def _read_file(path: str, dataset: lance.LanceDataset) -> None:
    """Read a Lance file to its end; raises if it is damaged."""
    reader = LanceFileReader(path, storage_options=dataset.initial_storage_options)
    for _ in reader.read_all(batch_size=_INDEX_ROWS).to_batches():
        pass
