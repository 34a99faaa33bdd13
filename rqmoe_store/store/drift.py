"""How well the newest codec has fitted the rows added since it was trained, told while they are added.

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
from lancedb.table import LanceTable

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.store import databases
from rqmoe_store.store.metadata import PREFIX
from rqmoe_store.store.retries import on_newest
from rqmoe_store.store.stored_values import as_count, as_sum, json_object, readable_text, require_types
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
        self._sums = self._none = DriftSums(fingerprint=codecs.generations[-1].mark.fingerprint)

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
    return drift_of(databases.reopened(table).to_lance(), codecs)


def folded(dataset: lance.LanceDataset, codecs: TableCodec) -> dict[str, str]:
    """Table metadata that keeps the sums of all commits up to the version that `dataset` is at."""
    drift = drift_of(dataset, codecs)
    kept = _Kept(version=drift.version, sums=dataclasses.asdict(drift.sums))
    return {KEY: readable_text(kept, json.dumps(dataclasses.asdict(kept)), _parsed_kept)}


def drift_of(dataset: lance.LanceDataset, codecs: TableCodec) -> Drift:
    """What commits up to the version that `dataset` is at have said about the newest codec."""
    sums, unreadable = DriftSums(fingerprint=codecs.generations[-1].mark.fingerprint), list[str]()
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
