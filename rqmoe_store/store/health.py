"""Whether the newest codec of a table still fits what is added, in numbers and in words.

Shapes: P partitions.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
from lancedb.table import LanceTable

from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.drift import DriftSums, read_drift
from rqmoe_store.store.table_codec import TableCodec

WORSE_ERROR = 1.5
"""Times the error of training from which a codec is said not to fit any more."""

WORSE_BALANCE = 0.25
"""Population stability index from which the same is said: the usual threshold for a major shift."""

LEAST_ROWS = 256
"""Rows that must have been measured before anything is said."""

_SCAN_ROWS = 131_072


@dataclasses.dataclass(frozen=True, kw_only=True)
class HealthReport:
    """Rows added since the newest codec was made, against those it was trained on; prints as words."""

    rows: int
    """Rows added and encoded by it since."""
    raw_rows: int
    """Rows that have no code yet."""
    older_rows: int
    """Rows that an older codec encoded."""
    trained_mse: float | None
    """Mean squared error on held-out rows in training; None in a table without a codec."""
    added_mse: float | None
    """That of the rows added since, by a sample; None before there are any."""
    balance: float | None
    """Population stability index of how rows spread over the partitions, against training: 0 for the same,
    from 0.25 a major shift. None without partitions."""
    complete: bool
    """Whether every commit was counted; some are not if others removed old versions of the table, or if what
    they say cannot be read."""
    unreadable: int = 0
    """Notes on how rows fit that cannot be read; `verify` shows them, and `optimize` leaves them out for
    good."""

    @property
    def error_ratio(self) -> float | None:
        """added_mse / trained_mse; None where one is unknown."""
        if self.added_mse is None or not self.trained_mse:
            return None
        return self.added_mse / self.trained_mse

    @property
    def needs_retraining(self) -> bool:
        """Whether the codec fits what is added clearly worse than what it was trained on."""
        if self.rows < LEAST_ROWS:
            return False
        worse = self.error_ratio is not None and self.error_ratio > WORSE_ERROR
        return worse or (self.balance is not None and self.balance > WORSE_BALANCE)

    def __str__(self) -> str:
        lines = [self._verdict]
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
        if self.raw_rows:
            lines.append(f"{self.raw_rows:,} rows have no code yet; optimize() encodes them")
        if self.older_rows:
            lines.append(f"{self.older_rows:,} rows are of an older codec; optimize() encodes them anew")
        if self.unreadable:
            lines.append(
                f"{self.unreadable:,} notes on how rows fit cannot be read: these rows are missing here; "
                "optimize() leaves such notes out for good"
            )
        elif not self.complete:
            lines.append("old versions were removed before they were counted: some rows are missing here")
        return "\n".join(lines)

    @property
    def _verdict(self) -> str:
        if self.trained_mse is None:
            return "no codec yet: rows are raw and searched exactly; train() makes one"
        if self.needs_retraining:
            return "the codec does not fit the rows added any more: retrain()"
        if self.rows < LEAST_ROWS:
            return f"too few rows added to tell ({self.rows:,} of {LEAST_ROWS}); nothing to do"
        return "the codec fits the rows added; nothing to do"


def measure_health(table: LanceTable, codecs: TableCodec) -> HealthReport:
    """Look at `table` now: reads its partitions and what commits said about their rows."""
    columns = CodeColumns(codecs.marks.vector_column)
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
    trained_P = np.bincount(codecs.newest.calibration.partitions, minlength=codecs.newest.num_partitions)
    return HealthReport(
        rows=drift.sums.rows,
        raw_rows=raw_rows,
        older_rows=int(counts_P[: newest.start].sum()),
        trained_mse=codecs.newest.report.validation_mse,
        added_mse=drift.sums.mse,
        balance=stability_index(trained_P, counts_P[newest]),
        complete=drift.complete,
        unreadable=len(drift.unreadable),
    )


class DriftWatch:
    """Tells, once, when rows added through one handle on a table do not fit its codec any more."""

    def __init__(self) -> None:
        self._sums: DriftSums | None = None
        self._told = False

    def note(self, table: LanceTable, codecs: TableCodec, added: DriftSums) -> str | None:
        """Take note of rows that are about to be committed; what to warn of, if there is anything.

        Earlier rows are read from the table when first needed. Once the new ones are committed it is too late
        to warn: an error, be it a warning that is made one, would say that they are not.
        """
        if self._sums is None or self._sums.fingerprint != added.fingerprint:
            self._sums = read_drift(table, codecs).sums
        self._sums = self._sums.plus(added)
        assert codecs.newest is not None, "rows were encoded"
        mse, trained = self._sums.mse, codecs.newest.report.validation_mse
        if self._told or self._sums.rows < LEAST_ROWS or mse is None or mse <= WORSE_ERROR * trained:
            return None
        self._told = True
        times = f"{mse / trained:,.3g}" if trained else "infinitely many"
        return (
            f"The codec of table {table.name!r} does not fit the rows added any more: their squared error is "
            f"{times} times that of training. health() says more, retrain() makes another codec."
        )


def partition_counts(table: LanceTable, columns: CodeColumns, codecs: TableCodec) -> npt.NDArray[np.int64]:
    """Rows in every partition of all generations, (P,)."""
    counts_P = np.zeros(codecs.num_partitions, dtype=np.int64)
    for batch in table.search().select([columns.partition]).to_batches(_SCAN_ROWS):
        partitions = batch[columns.partition].drop_null().to_numpy()
        counts_P += np.bincount(partitions, minlength=len(counts_P))
    return counts_P


def stability_index(before_P: npt.NDArray[np.int64], now_P: npt.NDArray[np.int64]) -> float | None:
    """Population stability index between two counts of partitions; None for fewer than two partitions.

    Shares are those of counts with one row more in every partition, so that empty ones are no infinity.
    Chance alone makes counts differ: what the index is expected to be without any shift is taken off.
    """
    if len(now_P) < 2 or not before_P.sum() or not now_P.sum():
        return None
    before, now = ((counts + 1) / (counts.sum() + len(counts)) for counts in (before_P, now_P))
    index = float(((now - before) * np.log(now / before)).sum())
    by_chance = (len(now_P) - 1) * (1 / float(before_P.sum()) + 1 / float(now_P.sum()))
    return max(0.0, index - by_chance)
