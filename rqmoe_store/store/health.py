"""Health: whether the newest codec still fits the rows that are added (drift), and when to retrain.

Every commit of encoded rows carries a note in its transaction properties: the reconstruction error of a
sample of its rows. `folded_drift` sums the notes of all commits for the table's metadata, where they are
written before old versions, and the notes with them, are cleaned up. The notes are advice only: those that
cannot be read are left out and counted, and never prevent access to rows.

Shape legend: V vectors, S of them sampled, D components, P partitions.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.table import LanceTable

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.vectors import as_vectors
from rqmoe_store.store import databases
from rqmoe_store.store.columns import CodeColumns, Vectors
from rqmoe_store.store.graph_health import GraphHealth, measure_graph
from rqmoe_store.store.lance import on_newest
from rqmoe_store.store.metadata import PREFIX, as_count, as_sum, json_object, readable_text, require_types
from rqmoe_store.store.ragged import Ragged, components_of
from rqmoe_store.store.table_codec import TableCodec

KEY = PREFIX + "drift"

WORSE_ERROR = 1.5
"""Ratio of the error of added rows to that of training above which to retrain."""

WORSE_BALANCE = 0.25
"""Population stability index above which to retrain: the usual threshold for a major shift."""

LEAST_ROWS = 256
"""Added rows below which there is no verdict."""

_SAMPLED_ROWS = 128
"""Rows of every batch that are decoded to measure their error."""
_SAMPLED_LISTS = 8
"""The same where rows have many vectors."""

_SCAN_ROWS = 131_072

_RECENT_VERSIONS = 200
_DECODED_ROWS = 8_192
"""Rows of a table that are decoded to measure errors by partition."""
_READ_ROWS = 2_048


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftSums:
    """Sums over rows that one codec has encoded, clipped to the largest numbers that can be stored."""

    fingerprint: str
    """Fingerprint of the codec."""
    rows: int = 0
    """Rows added."""
    sampled: int = 0
    """Rows of which the error was measured."""
    squared_error: float = 0.0
    """Sum of ||x - x_hat||^2 over the sampled rows."""

    def plus(self, other: "DriftSums") -> "DriftSums":
        """The sums over the rows of both; without those of `other` if they are of another codec."""
        if other.fingerprint != self.fingerprint:
            return self
        return dataclasses.replace(
            self,
            rows=as_count(self.rows + other.rows),
            sampled=as_count(self.sampled + other.sampled),
            squared_error=as_sum(self.squared_error + other.squared_error),
        )

    @property
    def mse(self) -> float | None:
        """Mean squared error; None if no row was sampled."""
        return self.squared_error / self.sampled if self.sampled else None

    @property
    def properties(self) -> dict[str, str]:
        """The note for the commit of the rows, as transaction properties."""
        text = json.dumps(dataclasses.asdict(self))
        return {KEY: readable_text(self, text, _parsed)} if self.rows else {}


class DriftMeter:
    """Measures the error of rows while they are encoded."""

    def __init__(self, codecs: TableCodec) -> None:
        """Start without rows; `codecs` must have at least one codec."""
        self._codecs = codecs
        self._sums = self._none = DriftSums(fingerprint=codecs.generations[-1].metadata.fingerprint)

    def take(self) -> DriftSums:
        """Return the sums since the last call, and start again."""
        taken, self._sums = self._sums, self._none
        return taken

    def add(self, vectors_VD: Vectors, codes: Codes) -> None:
        """Add vectors and their codes; an evenly spread sample of the codes is decoded."""
        if len(codes) == 0:
            return
        most = _SAMPLED_ROWS if self._codecs.metadata.multi_vector is None else _SAMPLED_LISTS
        sample_S = np.linspace(0, len(codes) - 1, min(len(codes), most)).astype(np.int64)
        sample_SD = as_vectors(components_of(vectors_VD[sample_S]), metric=self._codecs.metadata.metric)
        # float32 overflows for vectors far from all others.
        errors_SD = sample_SD.astype(np.float64) - components_of(self._codecs.decode_rows(codes[sample_S]))
        more = dataclasses.replace(
            self._none,
            rows=len(codes),
            sampled=len(sample_SD),
            squared_error=as_sum(float(np.square(errors_SD).sum())),
        )
        self._sums = self._sums.plus(more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """The sums over the rows of a table that its newest codec has encoded."""

    sums: DriftSums
    complete: bool
    """Whether the sums have all commits since the codec was added; False if versions were cleaned up before
    their notes were counted, or if notes are unreadable."""
    version: int
    """Version up to which commits were counted."""
    unreadable: tuple[str, ...] = ()
    """Notes that could not be read; they are not in the sums."""


def commit_drift(table: LanceTable, sums: DriftSums) -> None:
    """Commit a note on rows that an earlier commit added without one; the commit changes nothing else."""

    def write() -> None:
        dataset = table.to_lance()
        note = lance.Transaction(
            read_version=dataset.version,
            operation=lance.LanceOperation.UpdateConfig(),
            transaction_properties=sums.properties,
        )
        lance.LanceDataset.commit(dataset, note)

    on_newest(table, write)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FoldedSums:
    """What the table's metadata has, as JSON."""

    version: int
    sums: dict[str, Any]


def read_drift(table: LanceTable, codecs: TableCodec) -> Drift:
    """The drift of the newest codec at the newest version of a table."""
    return drift_of(databases.reopen(table).to_lance(), codecs)


def folded_drift(dataset: lance.LanceDataset, codecs: TableCodec) -> dict[str, str]:
    """Table metadata with the sums of all commits up to the version of `dataset`."""
    drift = drift_of(dataset, codecs)
    folded = _FoldedSums(version=drift.version, sums=dataclasses.asdict(drift.sums))
    return {KEY: readable_text(folded, json.dumps(dataclasses.asdict(folded)), _parsed_folded)}


def drift_of(dataset: lance.LanceDataset, codecs: TableCodec) -> Drift:
    """The drift of the newest codec at the version of `dataset`."""
    sums, unreadable = DriftSums(fingerprint=codecs.generations[-1].metadata.fingerprint), list[str]()
    folded_at, stored = _read_folded(dataset.metadata, unreadable)
    if stored is not None:
        sums = sums.plus(stored)
    version = int(dataset.version)
    transactions = dataset.get_transactions(version - folded_at) if version > folded_at else []
    known = [transaction for transaction in transactions if transaction is not None]
    for transaction in known:
        text = (transaction.transaction_properties or {}).get(KEY)
        if text is not None:
            try:
                sums = sums.plus(_parsed(text))
            except (ValueError, TypeError):
                unreadable.append(text)
    return Drift(
        sums=sums,
        complete=len(known) == version - folded_at and not unreadable,
        version=version,
        unreadable=tuple(unreadable),
    )


def _read_folded(metadata: Mapping[str, str], unreadable: list[str]) -> tuple[int, DriftSums | None]:
    """The sums in the table's metadata and the version they reach to; 0 and None if there are none.

    Sums that cannot be read are added to `unreadable`.
    """
    text = metadata.get(KEY)
    if text is None:
        return 0, None
    try:
        folded = _parsed_folded(text)
        return folded.version, _sums(folded.sums)
    except (ValueError, TypeError):
        unreadable.append(text)
        return 0, None


def _parsed(text: str) -> DriftSums:
    return _sums(json_object(text))


def _parsed_folded(text: str) -> _FoldedSums:
    return require_types(_FoldedSums(**json_object(text)))


def _sums(values: Mapping[str, Any]) -> DriftSums:
    """The sums; clips an error that earlier releases let overflow."""
    sums = DriftSums(**values)
    if type(sums.squared_error) is float:
        sums = dataclasses.replace(sums, squared_error=as_sum(sums.squared_error))
    return require_types(sums)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HealthReport:
    """Rows added since the newest codec was trained, compared with its training rows; prints as text."""

    rows: int
    """Rows that the newest codec has encoded as they were added."""
    raw_rows: int
    """Rows that have no code yet."""
    older_rows: int
    """Rows that an older codec has encoded."""
    trained_mse: float | None
    """Mean squared error on held-out training rows; None in a table without a codec."""
    added_mse: float | None
    """Mean squared error of a sample of the added rows; None if no rows were added."""
    balance: float | None
    """Population stability index of the distribution of rows over partitions, against training: 0 for no
    shift, from 0.25 a major one. None for a codec without partitions."""
    complete: bool
    """Whether all commits were counted; False if old versions were removed before their notes were counted,
    or if notes cannot be read."""
    unreadable: int = 0
    """Notes on how rows fit that cannot be read; `verify` shows them, and `optimize` removes them."""
    graph: GraphHealth | None = None
    """The neighbor graph; None in a table without one."""

    @property
    def error_ratio(self) -> float | None:
        """added_mse / trained_mse; None if one of them is unknown or trained_mse is zero."""
        if self.added_mse is None or not self.trained_mse:
            return None
        return self.added_mse / self.trained_mse

    @property
    def needs_retraining(self) -> bool:
        """Whether the codec fits the added rows clearly worse than its training rows."""
        if self.rows < LEAST_ROWS:
            return False
        worse = self.error_ratio is not None and self.error_ratio > WORSE_ERROR
        return worse or (self.balance is not None and self.balance > WORSE_BALANCE)

    def __str__(self) -> str:
        lines = [self.verdict]
        if self.error_ratio is not None:
            lines.append(
                f"squared error: {self.added_mse:.4g} for {self.rows:,} rows added, {self.trained_mse:.4g} "
                f"in training: {self.error_ratio:,.3g} times as much (retrain above {WORSE_ERROR})"
            )
        if self.balance is not None:
            lines.append(
                f"partitions: stability index {self.balance:.3f} against training "
                f"(retrain above {WORSE_BALANCE})"
            )
        graph = [] if self.graph is None else [str(self.graph)]
        return "\n".join([*lines, *self.notes, *graph])

    @property
    def notes(self) -> list[str]:
        """Rows that the newest codec has not encoded, and rows that are missing in the figures, in words."""
        notes = []
        if self.raw_rows:
            notes.append(f"{self.raw_rows:,} rows have no code yet; optimize() encodes them")
        if self.older_rows:
            notes.append(f"{self.older_rows:,} rows are of an older codec; optimize() encodes them again")
        if self.unreadable:
            notes.append(
                f"{self.unreadable:,} notes on how rows fit cannot be read: these rows are missing here; "
                "optimize() leaves such notes out for good"
            )
        elif not self.complete:
            notes.append("old versions were removed before they were counted: some rows are missing here")
        return notes

    @property
    def verdict(self) -> str:
        """Whether there is something to do, and what."""
        if self.trained_mse is None:
            return "no codec yet: rows are raw and searched exactly; train() makes one"
        if self.needs_retraining:
            return "the codec does not fit the rows added any more: retrain()"
        if self.rows < LEAST_ROWS:
            return f"too few rows added to tell ({self.rows:,} of {LEAST_ROWS}); nothing to do"
        return "the codec fits the rows added; nothing to do"


def measure_health(table: LanceTable, codecs: TableCodec) -> HealthReport:
    """Measure the newest codec against the rows of `table`: reads its partition ids and notes."""
    columns = codecs.columns
    raw_rows = table.count_rows(columns.raw_filter)
    if codecs.newest is None:
        return HealthReport(
            rows=0,
            raw_rows=raw_rows,
            older_rows=0,
            trained_mse=None,
            added_mse=None,
            balance=None,
            complete=True,
        )
    drift, counts_P = read_drift(table, codecs), partition_counts(table, columns, codecs)
    newest = codecs.generations[-1].partitions
    newest_codec = codecs.generations[-1].codec
    trained_P = np.bincount(newest_codec.calibration.partitions, minlength=newest_codec.num_partitions)
    return HealthReport(
        rows=drift.sums.rows,
        raw_rows=raw_rows,
        older_rows=int(counts_P[: newest.start].sum()),
        trained_mse=codecs.newest.report.whole_mse,
        added_mse=drift.sums.mse,
        balance=stability_index(trained_P, counts_P[newest]),
        complete=drift.complete,
        unreadable=len(drift.unreadable),
        graph=measure_graph(table, columns.code),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommitError:
    """How well the newest codec fits the rows that one commit added."""

    version: int
    """The version that the commit made."""
    rows: int
    mse: float | None
    """Mean squared error of a sample of them; None if none was sampled."""


def recent_errors(dataset: lance.LanceDataset, codecs: TableCodec) -> list[CommitError]:
    """Errors of the newest codec by commit, oldest first, of the newest 200 versions that are still there."""
    fingerprint, found = codecs.generations[-1].metadata.fingerprint, list[CommitError]()
    for age, transaction in enumerate(dataset.get_transactions(min(_RECENT_VERSIONS, int(dataset.version)))):
        text = None if transaction is None else (transaction.transaction_properties or {}).get(KEY)
        try:
            sums = None if text is None else _parsed(text)
        except (ValueError, TypeError):
            continue  # the report counts it as unreadable
        if sums is not None and sums.fingerprint == fingerprint:
            found.append(CommitError(version=int(dataset.version) - age, rows=sums.rows, mse=sums.mse))
    return found[::-1]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PartitionHealth:
    """Rows and errors of the newest codec by partition."""

    trained_P: npt.NDArray[np.int64]
    """Training vectors of a sample, at most 32,768."""
    rows_P: npt.NDArray[np.int64]
    """Rows of the table."""
    sampled_P: npt.NDArray[np.int64]
    """Rows whose error was measured."""
    squared_error_P: npt.NDArray[np.float64]
    """Sum of their squared errors."""
    against: Literal["raw", "refined", "none"]
    """What was compared: decoded vectors with the raw vectors that the table keeps, or, without those, codes
    without refine codes with refined vectors. "none" if the table has neither: then nothing was measured."""

    @property
    def mse_P(self) -> npt.NDArray[np.float64]:
        """Mean squared error by partition; NaN where no row was sampled."""
        with np.errstate(invalid="ignore"):
            return np.where(self.sampled_P > 0, self.squared_error_P, np.nan) / np.maximum(self.sampled_P, 1)


def measure_partitions(table: LanceTable, codecs: TableCodec) -> PartitionHealth:
    """Measure the newest codec of `table` by partition: reads all partition ids, decodes a sample of rows."""
    assert codecs.generations, "the table has a codec"
    newest_codec, columns = codecs.generations[-1].codec, codecs.columns
    newest = codecs.generations[-1].partitions
    kept = codecs.metadata.keep_vectors != "none"
    refined = bool(codecs.generations[-1].metadata.refine_bytes)
    against: Literal["raw", "refined", "none"] = "raw" if kept else "refined" if refined else "none"
    sampled_P, error_P = np.zeros(codecs.num_partitions, np.int64), np.zeros(codecs.num_partitions)
    rows = table.count_rows()
    if rows and against != "none":
        chosen = np.linspace(0, rows - 1, min(rows, _DECODED_ROWS)).astype(np.int64)
        wanted = [*columns.names, columns.vector_column] if kept else list(columns.names)
        for start in range(0, len(chosen), _READ_ROWS):
            offsets = chosen[start : start + _READ_ROWS].tolist()
            read = table.take_offsets(offsets).select(wanted).to_arrow()
            partitions_V, errors_V = _row_errors(read, codecs, kept=kept)
            sampled_P += np.bincount(partitions_V, minlength=codecs.num_partitions)
            error_P += np.bincount(partitions_V, errors_V, minlength=codecs.num_partitions)
    return PartitionHealth(
        trained_P=np.bincount(newest_codec.calibration.partitions, minlength=newest_codec.num_partitions),
        rows_P=partition_counts(table, columns, codecs)[newest],
        sampled_P=sampled_P[newest],
        squared_error_P=error_P[newest],
        against=against,
    )


def _row_errors(
    rows: pa.Table, codecs: TableCodec, *, kept: bool
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Partitions and squared errors (V,) of the rows that have a code, and a raw vector if those are kept."""
    columns = codecs.columns
    if kept:
        rows = rows.filter(rows[columns.vector_column].is_valid())
    codes, valid_N = codecs.read(rows)
    if not kept:
        difference_VD = codecs.decode(codes).astype(np.float64) - codecs.decode(codes.unrefined)
    else:
        raw, raw_N = codecs.metadata.kept.read(rows[columns.vector_column], 0)
        given, decoded = raw[valid_N[raw_N]], codecs.decode_rows(codes)
        difference_VD = components_of(given).astype(np.float64) - components_of(decoded)
        if isinstance(given, Ragged):
            rows_T = np.repeat(np.arange(len(given)), given.lengths_B)
            errors_V = np.zeros(len(given))
            np.add.at(errors_V, rows_T, np.square(difference_VD).sum(axis=1))
            return codes.partitions, errors_V
    return codes.partitions, np.square(difference_VD).sum(axis=1)


class DriftWatch:
    """Gives one warning, once rows added through a handle on a table do not fit its codec any more."""

    def __init__(self) -> None:
        self._sums: DriftSums | None = None
        self._warned = False

    def add(self, table: LanceTable, codecs: TableCodec, added: DriftSums) -> str | None:
        """Add rows that are about to be committed; return a warning to give, or None.

        The sums over earlier rows are read from the table on the first call. The warning must be given before
        the commit: where warnings are errors, a later one would suggest that the rows are not committed.
        """
        if self._sums is None or self._sums.fingerprint != added.fingerprint:
            self._sums = read_drift(table, codecs).sums
        self._sums = self._sums.plus(added)
        assert codecs.newest is not None, "rows were encoded"
        mse, trained = self._sums.mse, codecs.newest.report.whole_mse
        if self._warned or self._sums.rows < LEAST_ROWS or mse is None or mse <= WORSE_ERROR * trained:
            return None
        self._warned = True
        times = f"{mse / trained:,.3g}" if trained else "infinitely many"
        return (
            f"The codec of table {table.name!r} does not fit the rows added any more: their squared error is "
            f"{times} times that of training. health() says more, retrain() makes another codec."
        )


def partition_counts(table: LanceTable, columns: CodeColumns, codecs: TableCodec) -> npt.NDArray[np.int64]:
    """Number of rows in every partition of all generations, (P,)."""
    counts_P = np.zeros(codecs.num_partitions, dtype=np.int64)
    for batch in table.search().select([columns.partition]).to_batches(_SCAN_ROWS):
        partitions = batch[columns.partition].drop_null().to_numpy()
        counts_P += np.bincount(partitions, minlength=len(counts_P))
    return counts_P


def stability_index(before_P: npt.NDArray[np.int64], now_P: npt.NDArray[np.int64]) -> float | None:
    """Population stability index between two counts per partition; None for fewer than two partitions.

    Every count is increased by one, since empty partitions would make the index infinite. The value that
    chance alone is expected to give is subtracted.
    """
    if len(now_P) < 2 or not before_P.sum() or not now_P.sum():
        return None
    before, now = ((counts + 1) / (counts.sum() + len(counts)) for counts in (before_P, now_P))
    index = float(((now - before) * np.log(now / before)).sum())
    by_chance = (len(now_P) - 1) * (1 / float(before_P.sum()) + 1 / float(now_P.sum()))
    return max(0.0, index - by_chance)
