"""Health: drift of the newest codec from what is added, in numbers and in words.

Shapes: P partitions.

Every commit of encoded rows says in its properties how far a sample of them lay from what their codes decode
to. The sums of all commits are kept in the table's metadata, brought up to date before old versions, and
the properties with them, are cleaned up. They are advice: what cannot be read of them is left out and
counted, so that it never keeps anybody from the rows.
Shapes: V vectors, D components.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
from lancedb.table import LanceTable

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.store import databases
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.lance import on_newest
from rqmoe_store.store.metadata import PREFIX, as_count, as_sum, json_object, readable_text, require_types
from rqmoe_store.store.table_codec import TableCodec

KEY = PREFIX + "drift"

_SAMPLED_ROWS = 128
"""Rows of every batch that are decoded again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftSums:
    """Sums over rows that one codec has encoded; they stop at the largest number that can be kept."""

    fingerprint: str
    """Of the codec."""
    rows: int = 0
    """Rows added."""
    sampled: int = 0
    """Those of them that were decoded again."""
    squared_error: float = 0.0
    """Sum of ||x - x_hat||^2 over these."""

    def plus(self, other: "DriftSums") -> "DriftSums":
        """Both together; those of the other codec count for nothing."""
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
        """Mean squared error; None without a row."""
        return self.squared_error / self.sampled if self.sampled else None

    @property
    def properties(self) -> dict[str, str]:
        """What the commit of the rows is to say."""
        text = json.dumps(dataclasses.asdict(self))
        return {KEY: readable_text(self, text, _parsed)} if self.rows else {}


class DriftMeter:
    """Measures rows while they are encoded."""

    def __init__(self, codecs: TableCodec) -> None:
        """Begin with none; `codecs` must have a newest one."""
        self._codecs = codecs
        self._sums = self._none = DriftSums(fingerprint=codecs.generations[-1].metadata.fingerprint)

    def take(self) -> DriftSums:
        """What was measured since this was asked last."""
        taken, self._sums = self._sums, self._none
        return taken

    def add(self, vectors_VD: Float32Array, codes: Codes) -> None:
        """Take note of vectors and their codes; a sample of them, evenly spread, is decoded."""
        if len(codes) == 0:
            return
        chosen = np.linspace(0, len(codes) - 1, min(len(codes), _SAMPLED_ROWS)).astype(np.int64)
        wanted_SD = as_vectors(vectors_VD[chosen], metric=self._codecs.metric)
        # In doubles: single ones overflow for vectors far from all others.
        errors_SD = wanted_SD.astype(np.float64) - self._codecs.decode(codes[chosen])
        more = dataclasses.replace(
            self._none,
            rows=len(codes),
            sampled=len(chosen),
            squared_error=as_sum(float(np.square(errors_SD).sum())),
        )
        self._sums = self._sums.plus(more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """The sums of a table."""

    sums: DriftSums
    complete: bool
    """Whether all commits since the codec was made are in them; False when somebody cleaned up versions
    before they were counted."""
    version: int
    """The version up to which commits were counted."""
    unreadable: tuple[str, ...] = ()
    """What was said and could not be read; it is not in the sums."""


def note_apart(table: LanceTable, sums: DriftSums) -> None:
    """Say in a commit of its own, which changes nothing, how rows fit that another commit has written."""

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
class _Kept:
    """What the table's metadata keeps."""

    version: int
    sums: dict[str, Any]


def read_drift(table: LanceTable, codecs: TableCodec) -> Drift:
    """What commits up to the newest version have said about the newest codec."""
    return drift_of(databases.reopen(table).to_lance(), codecs)


def folded(dataset: lance.LanceDataset, codecs: TableCodec) -> dict[str, str]:
    """Table metadata that keeps the sums of all commits up to the version that `dataset` is at."""
    drift = drift_of(dataset, codecs)
    kept = _Kept(version=drift.version, sums=dataclasses.asdict(drift.sums))
    return {KEY: readable_text(kept, json.dumps(dataclasses.asdict(kept)), _parsed_kept)}


def drift_of(dataset: lance.LanceDataset, codecs: TableCodec) -> Drift:
    """What commits up to the version that `dataset` is at have said about the newest codec."""
    sums, unreadable = DriftSums(fingerprint=codecs.generations[-1].metadata.fingerprint), list[str]()
    folded_at, stored = _stored(dataset.metadata, unreadable)
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


def _stored(metadata: Mapping[str, str], unreadable: list[str]) -> tuple[int, DriftSums | None]:
    """The version that sums were kept for, and these; 0 and None in a table without, or if they are among
    those that are `unreadable`."""
    text = metadata.get(KEY)
    if text is None:
        return 0, None
    try:
        kept = _parsed_kept(text)
        return kept.version, _sums(kept.sums)
    except (ValueError, TypeError):
        unreadable.append(text)
        return 0, None


def _parsed(text: str) -> DriftSums:
    return _sums(json_object(text))


def _parsed_kept(text: str) -> _Kept:
    return require_types(_Kept(**json_object(text)))


def _sums(values: Mapping[str, Any]) -> DriftSums:
    """The sums, with an error that overflowed in earlier releases at the largest that there is."""
    sums = DriftSums(**values)
    if type(sums.squared_error) is float:
        sums = dataclasses.replace(sums, squared_error=as_sum(sums.squared_error))
    return require_types(sums)


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
    columns = CodeColumns(codecs.metadata.vector_column)
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
