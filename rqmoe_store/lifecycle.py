"""What a table goes through: raw rows, a first codec, further ones, and upkeep."""

import dataclasses
import datetime
import os
import warnings
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.table import LanceTable

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.exports.run import ExportReport, FormatName, export
from rqmoe_store.progress import progress_bar
from rqmoe_store.store import databases, health, ingest_log, registry
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.databases import remove_old_versions
from rqmoe_store.store.lance import on_newest, retry_on_conflict, take_rows, to_newest
from rqmoe_store.store.metadata import TableMetadata
from rqmoe_store.store.reencoding import BackgroundEncoding, Reencoded, reencode_table, stale_filter
from rqmoe_store.store.registry import GRACE, RemovedCodecs, remove_unused
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.sql import quoted
from rqmoe_store.store.statistics import disk_bytes, readable
from rqmoe_store.store.table import StoredTable
from rqmoe_store.store.table_codec import TableCodec, generation_metadata
from rqmoe_store.store.vector_arrays import read_vectors, rows_per_batch
from rqmoe_store.training.trainer import train
from rqmoe_store.verification.report import VerifyReport
from rqmoe_store.verification.run import verify


def add_generation(
    table: LanceTable, codec: Codec, config: CodecConfig, known: TableCodec, *, first: bool
) -> bool:
    """Make `codec` the newest one of a table, from the next commit on; no row is encoded by it yet.

    Args:
        table: any handle on it.
        codec: of the table's dimension, metric and code width.
        config: what it was asked to be, with nothing decided from the rows yet.
        known: the codecs of some version.
        first: leave a table alone that has a codec, which others may have given it while this one was
            trained: what theirs has encoded would lose more by being encoded again.

    Returns:
        Whether it is the newest one now.

    Raises:
        InvalidInputError: a codec of another shape.
    """
    database = databases.database_of(table)
    _require_fit(codec, known, table.name)
    registry.save(database, codec)  # before the table that needs it says so
    mark = generation_metadata(codec)
    while True:
        newest = databases.reopen(table)
        marks = TableMetadata.read(newest.schema, table.name)
        if marks.generations and (first or marks.generations[-1] == mark):
            return marks.generations[-1] == mark
        dataset = newest.to_lance()
        changed = marks.with_generation(mark, config)
        written: dict[str, str | None] = {
            key.decode(): value.decode() for key, value in changed.write(None).items()
        }
        try:
            dataset.update_schema_metadata(written)
        except OSError:
            # Two writers of the marks are a conflict: the one that comes second starts again.
            if dataset.latest_version == dataset.version:
                raise
        else:
            return True


def sampled_vectors(
    table: LanceTable, codecs: TableCodec, *, decoded: bool, max_rows: int, seed: int
) -> Float32Array:
    """A seeded sample of the vectors of a table, at most `max_rows` (n, D), in random order.

    Args:
        table: any handle on it.
        codecs: of its newest version.
        decoded: take what codes decode to, instead of vectors that are there as they were.
        max_rows, seed: of the sample.

    Raises:
        TableError: there are none.
    """
    columns, newest = CodeColumns(codecs.metadata.vector_column), databases.reopen(table)
    column = columns.code if decoded else columns.vector_column
    condition = f"{quoted(column)} IS NOT NULL"
    found = newest.to_lance().scanner(columns=[], filter=condition, with_row_id=True).to_table()
    if found.num_rows == 0:
        raise TableError(
            f"Table {table.name!r} has no {'codes to decode' if decoded else 'raw vectors'} to train on. "
            "Add rows, or pass vectors."
        )
    random = np.random.default_rng(seed)
    row_ids = found["_rowid"].to_numpy()
    chosen = np.sort(random.choice(row_ids, min(max_rows, len(row_ids)), replace=False))
    step = rows_per_batch(codecs.dim)
    parts = [
        _vectors_of(newest, columns, codecs, chosen[start : start + step], decoded)
        for start in range(0, len(chosen), step)
    ]
    return random.permutation(np.concatenate(parts))  # what lies together in a table is often alike


def _vectors_of(
    table: LanceTable,
    columns: CodeColumns,
    codecs: TableCodec,
    row_ids: npt.NDArray[np.uint64],
    decoded: bool,
) -> Float32Array:
    if decoded:
        taken = pa.table(take_rows(table, columns.names, row_ids), names=list(columns.names))
        return codecs.decode(columns.from_arrow(taken)[0])
    (column,) = take_rows(table, [columns.vector_column], row_ids)
    return read_vectors(column, dim=codecs.dim, metric=codecs.metric, first_row=0)[0]


def _require_fit(codec: Codec, known: TableCodec, table_name: str) -> None:
    expected = {"dim": known.dim, "metric": known.metric, "code_bytes": known.code_bytes}
    found = {"dim": codec.dim, "metric": codec.config.metric, "code_bytes": codec.config.code_bytes}
    for name, value in expected.items():
        if found[name] != value:
            raise InvalidInputError(
                f"Got a codec of {name} {found[name]!r} for table {table_name!r}; expected {name} {value!r}, "
                "which a table has for good. Compress it into a new table to change that."
            )


_NEVER = datetime.timedelta(days=36_500)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizeReport:
    """What `optimize` did; prints as a few lines."""

    trained: bool
    """Whether the table got its first codec."""
    encoded: Reencoded
    """Rows that were encoded, and the error of a sample of them, read back before their vectors went."""
    raw_rows: int
    """Rows that are still raw."""
    bytes_before: int
    """What the table took on disk, older versions included."""
    bytes_after: int
    """What it takes now."""
    removed: RemovedCodecs
    """Codecs that the database kept and nothing needs any more."""

    def __str__(self) -> str:
        error = "" if self.encoded.mse is None else f", mean squared error {self.encoded.mse:.4g}"
        lines = [
            f"encoded {self.encoded.rows:,} rows{error}" + (" by a new codec" if self.trained else ""),
            f"{self.raw_rows:,} rows are raw",
            f"{readable(self.bytes_before)} on disk before, {readable(self.bytes_after)} now",
        ]
        if self.removed.codecs:
            size = readable(self.removed.bytes)
            lines.append(f"removed {self.removed.codecs} codecs that nothing needs any more, {size}")
        if self.removed.kept_because is not None:
            lines.append(f"kept all codecs, for {self.removed.kept_because}")
        return "\n".join(lines)


def tidy(table: LanceTable, codecs: TableCodec, older_than: datetime.timedelta | None) -> None:
    """Merge small files, bring indexes up to date and remove old versions.

    What commits say about rows is kept before the versions that carry it are removed. Versions that a tag or
    a branch keeps stay.

    Args:
        table: any handle on it; it is at the newest version afterwards.
        codecs: of its newest version.
        older_than: versions older than this are removed; None for 7 days.
    """
    # LanceDB would remove old versions, too, but refuses to where one has a tag.
    on_newest(table, lambda: table.optimize(cleanup_older_than=_NEVER))
    _keep_notes(table, codecs)  # those of the commits just made, too: a version without its commit is a gap
    remove_old_versions(table, older_than)
    to_newest(table)


def _keep_notes(table: LanceTable, codecs: TableCodec) -> None:
    """Write what commits say about drift and ingestions into the table's metadata.

    In one commit: another one would be a version that the first does not count.
    """

    def write() -> None:
        dataset = databases.reopen(table).to_lance()
        notes: dict[str, str | None] = {**ingest_log.folded_notes(dataset, table.name)}
        if codecs.newest is not None:
            notes |= health.folded(dataset, codecs)
        if notes:
            dataset.update_metadata(notes)

    retry_on_conflict(write)


class TableContents(StoredTable):
    """A table that can be verified, and written to files."""

    def verify(self, *, progress: bool = True) -> VerifyReport:
        """Read the whole table, as it is now or is checked out, and tell what is wrong with it.

        Looked at are marks, codecs, every column of every row, codes and a sample of what they decode to, row
        ids, the key, indexes and files; nothing is changed, and memory is bounded. `print(report)` says it in
        words, `report.ok` whether there are no problems. For a table that is too damaged to be opened there
        are `rqmoe verify DB TABLE` and `rqmoe_store.verification.run.verify(db, name)`.

        Args:
            progress: show a progress bar.
        """
        database, branch = databases.database_of(self.table), self.table.current_branch()
        return verify(database, self.name, branch=branch, version=self.checked_out, progress=progress)

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: FormatName = "parquet",
        overwrite: bool = False,
        progress: bool = True,
    ) -> ExportReport:
        """Write all rows, as they are now or are checked out, to files that others can read.

        Vectors are written as float32: raw ones where a row has one, as it was added, and decoded ones
        elsewhere (of unit length under cosine). Memory is bounded. Files are written under another name and
        moved to `path` when they are complete; after an error, or Ctrl-C, nothing is left of them.

        - "parquet": the user's columns and the vectors, in one file if `path` ends in ".parquet" and
          otherwise in a folder of files; rows without a vector have a null.
        - "npy": the vectors of all rows that have one, as an array (n, dim), in `path`, which ends in ".npy";
          the user's columns of these rows, in the same order, are beside it in a Parquet file of that name.
        - "codes": a folder that makes do without this table, and without LanceDB. In its folder `rows` are
          Parquet files of the user's columns, `vector_code`, `vector_partition` and `vector_codec` (after the
          name of the vector column), and `vector` if any row has a raw one. `vector_codec` names the folder,
          beside `rows`, of the codec of a row; partition ids are those of that codec:

              rows = pyarrow.parquet.read_table("out/rows").to_pandas()
              for folder, some in rows.groupby("vector_codec"):
                  codes = numpy.stack([numpy.frombuffer(code, "uint8") for code in some["vector_code"]])
                  partitions = some["vector_partition"].to_numpy("int32")
                  codec = rqmoe_store.load_codec(f"out/{folder}")
                  vectors = codec.decode(rqmoe_store.Codes(codes, partitions))

        Args:
            path: on this machine; the folder it is in must exist.
            format: "parquet", "npy" or "codes".
            overwrite: replace files that are there, or a folder that was exported before.
            progress: show a progress bar.

        Raises:
            InvalidInputError: an unknown format, a path that does not fit it, exists or has no folder; a raw
                vector with NaN or infinite values; a column that Parquet cannot hold.
            TableError: codes that no codec of the table has, of which `verify` says more.
            ArtifactError: a codec is missing or damaged.
            StorageError: the disk refuses a write.
        """
        snapshot = self.snapshots.current()
        return export(
            snapshot.dataset,
            snapshot.codecs,
            path,
            format=format,
            overwrite=overwrite,
            progress=progress,
        )


ROWS_TO_TRAIN = 10_000
"""Raw rows from which `optimize` trains the first codec of a table."""


Encode = bool | Literal["background"]
"""Whether the rows that there are get codes before a call returns, after it has, or not by it."""


class LifecycleTable(TableContents):
    """A table that can be trained, and kept in good order."""

    encoding: BackgroundEncoding | None = None
    """What was begun last, through this handle, by `encode_in_background` or alike; None if nothing was."""

    def train(
        self,
        training: TrainConfig | None = None,
        *,
        vectors: Any = None,
        encode: Encode = True,
        progress: bool = True,
    ) -> Codec:
        """Train the first codec of the table on its raw rows, and encode them.

        Args:
            training: how to train; None for the defaults of TrainConfig.
            vectors: (n, D) to train on instead.
            encode: "background" to return once there is a codec and go on as `encode_in_background`, with
                progress in `encoding`; False to leave the rows that there are to `optimize`.
            progress: show progress bars.

        Returns:
            The codec. From now on it encodes what is added.

        Raises:
            TableError: the table has a codec already (`retrain` gives it another), be it that another process
                was quicker; or no raw rows.
            InvalidInputError: as `rqmoe_store.train`, or another word for `encode`.
            StorageError: the disk or bucket refuses to take codec or codes; rows that have none stay raw.
        """
        self.refresh()
        if self.codecs.newest is not None:
            raise TableError(f"Table {self.name!r} has a codec already; give it another one with retrain().")
        _require_encode(encode)
        config = self.codecs.metadata.config
        codec = self._trained(training, vectors, config, progress)
        if not self._adopted(codec, config, first=True):
            raise TableError(
                f"Table {self.name!r} was given a codec by another process while this one was trained. That "
                "one stays, and nothing was written; go on with optimize(), or replace it with retrain()."
            )
        self._encode(encode, progress)
        return codec

    def retrain(
        self,
        training: TrainConfig | None = None,
        *,
        vectors: Any | Literal["decoded"] = None,
        config: CodecConfig | None = None,
        encode: Encode = True,
        progress: bool = True,
    ) -> Codec:
        """Train another codec and bring all rows to it, a part at a time; searches find every row meanwhile.

        Interrupted, it can be finished by `optimize`, which any process may call. A row whose raw vector is
        gone is decoded by the old codec and encoded by the new one: what the old one lost stays lost, and the
        new one loses a little more. With raw vectors kept (`keep_vectors`) nothing is lost.

        Args:
            training: how to train; None for the defaults of TrainConfig.
            vectors: (n, D) to train on; None for the raw vectors that the table has, "decoded" for what its
                codes decode to, of which a codec cannot learn what the old one lost.
            config: of the new codec, with the metric and code bytes of the table; None for the same.
            encode: as for `train`.
            progress: show progress bars.

        Returns:
            The new codec.

        Raises:
            TableError: no vectors to train on.
            InvalidInputError: as `rqmoe_store.train`, or a config of another metric or code size.
            StorageError: as `train`; rows that were not reached keep the codes that they have.
        """
        self.refresh()
        config = self.codecs.metadata.config if config is None else config
        lost = self.table.count_rows(self.columns.decoded_filter)
        if lost:
            warnings.warn(
                f"{lost:,} rows of table {self.name!r} have codes only: they are decoded by the old codec "
                "and encoded by the new one, which adds its own error to what the old one lost.",
                stacklevel=3,
            )
        _require_encode(encode)
        codec = self._trained(training, vectors, config, progress)
        self._adopted(codec, config, first=False)
        self._encode(encode, progress)
        return codec

    def encode_in_background(self) -> BackgroundEncoding:
        """Begin to encode, in a thread, rows that are raw or of an older codec; return at once.

        Searches and writes go on meanwhile, through this handle and others, and find every row. While one is
        under way that was begun through this handle, it is that one which goes on, with these rows as well.
        What is not done when the process ends is left to another call, of any process, or to `optimize`.

        Returns:
            What tells how far it is, waits for it and stops it; `encoding` is the same from now on.

        Raises:
            TableError: an earlier version is checked out.
        """
        self.refresh()
        if self.encoding is None or not self.encoding.takes_more():
            self.encoding = BackgroundEncoding(self.table, self.codecs)
        return self.encoding

    def optimize(
        self,
        *,
        training: TrainConfig | None = None,
        train_from: int | None = ROWS_TO_TRAIN,
        cleanup_older_than: datetime.timedelta | None = None,
        codecs_older_than: datetime.timedelta = GRACE,
        progress: bool = True,
    ) -> OptimizeReport:
        """Encode what is raw or of an older codec, merge small files, bring indexes up to date, clean up.

        Every row that was encoded takes its code's bytes instead of its vector's once versions older than
        `cleanup_older_than` have gone. Before a vector goes, a sample is decoded from disk and compared.
        Then codecs are removed that nothing in the database needs: no row of any version, of any table, that
        can still be restored. What this handle is encoding in the background is stopped, and done here.

        Args:
            training: how to train the first codec of a table that has none; None for the defaults.
            train_from: raw rows from which that is done, but no fewer than a codec of the table's config can
                be trained on; None for never.
            cleanup_older_than: versions older than this cannot be restored any more; None for 7 days. Zero
                makes room at once; other processes must not be writing then. Versions that a tag or a branch
                keeps stay.
            codecs_older_than: codecs that nothing needs stay until they were saved, and replaced, longer ago
                than this; 7 days. Shorter only while no other process writes to any table of the database.
            progress: show progress bars.

        Raises:
            TableError: a codec does not fit the vectors; these stay.
            StorageError: the disk or bucket refuses a write; what was not done yet is left as it was.
        """
        self.refresh()
        before = disk_bytes(self.table)
        if self.encoding is not None:
            self.encoding.stop()
        trained = self.is_due_for_training(train_from)
        if trained:
            config = self.codecs.metadata.config
            codec = self._trained(training, None, config, progress)
            trained = self._adopted(codec, config, first=True)  # if others were quicker, theirs is used
        encoded = self._reencode(progress)
        tidy(self.table, self.codecs, cleanup_older_than)
        self.refresh()
        removed = remove_unused(databases.database_of(self.table), codecs_older_than)
        return OptimizeReport(
            trained=trained,
            encoded=encoded,
            raw_rows=self.table.count_rows(self.columns.raw_filter),
            bytes_before=before,
            bytes_after=disk_bytes(self.table),
            removed=removed,
        )

    def is_due_for_training(self, train_from: int | None = ROWS_TO_TRAIN) -> bool:
        """Whether `optimize(train_from=train_from)` would train a first codec."""
        return self.snapshots.read(lambda snapshot: self._is_due(snapshot, train_from))

    def _is_due(self, snapshot: Snapshot, train_from: int | None) -> bool:
        if train_from is None or snapshot.codecs.newest is not None:
            return False
        rows = max(train_from, snapshot.codecs.metadata.config.least_training_rows)
        # All rows are counted first: that takes no look at them.
        return snapshot.rows >= rows and snapshot.dataset.count_rows(self.columns.raw_filter) >= rows

    def _trained(
        self, training: TrainConfig | None, vectors: Any, config: CodecConfig, progress: bool
    ) -> Codec:
        """Another codec for the table, which does not have it yet."""
        training = TrainConfig(progress=progress) if training is None else training
        if vectors is None or (isinstance(vectors, str) and vectors == "decoded"):
            vectors = sampled_vectors(
                self.table,
                self.codecs,
                decoded=vectors is not None,
                max_rows=training.max_rows,
                seed=training.seed,
            )
        checked = as_vectors(vectors, dim=self.dim, metric=self.metric)
        return train(checked, config=config, training=training)

    def _adopted(self, codec: Codec, config: CodecConfig, *, first: bool) -> bool:
        """Make a codec the newest of the table; says whether it is. See `add_generation`."""
        added = add_generation(self.table, codec, config, self.codecs, first=first)
        self.refresh()
        return added

    def _encode(self, encode: Encode, progress: bool) -> None:
        if encode == "background":
            self.encode_in_background()
        elif encode:
            self._reencode(progress)

    def _reencode(self, progress: bool) -> Reencoded:
        self.refresh()
        if self.codecs.newest is None:
            return Reencoded()
        with progress_bar(progress) as bar:
            rows = self.table.count_rows(stale_filter(self.columns, self.codecs))
            task = bar.add_task("Encoding", total=rows)
            done = reencode_table(self.table, self.codecs, lambda count: bar.advance(task, count))
        self.refresh()
        return done


def _require_encode(encode: object) -> None:
    if not (isinstance(encode, bool) or encode == "background"):
        raise InvalidInputError(f"Got encode={encode!r}; expected True, False or 'background'.")
