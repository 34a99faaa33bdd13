"""Whether the key of a table tells its rows apart, however many there are.

Shapes: N rows of a batch.
"""

import collections
from pathlib import Path
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pandas.util import hash_array

from rqmoe_store.verification.duplicates import Duplicates
from rqmoe_store.verification.findings import Findings

_LOOKED_AT = 1000
_SHOWN = 3


class KeyCheck:
    """Looks for values that several rows have: first by hashes of 64 bits, then of those that may repeat."""

    def __init__(self, name: str, path: Path, most: int, findings: Findings) -> None:
        """Begin with no rows.

        Args:
            name: the column that is the key.
            path: of a file to make.
            most: rows that are looked at.
            findings: takes values that are repeated.
        """
        self.name = name
        """The column that is the key."""
        self._hashes, self._findings = Duplicates(path, most), findings

    def add(self, batch: pa.RecordBatch) -> None:
        """Take note of N rows that have the key."""
        self._hashes.add(_hashes(_values(batch[self.name])))

    def find_repeated(self, dataset: lance.LanceDataset) -> None:
        """Note values that are there more than once, from a second look at the rows that may have them."""
        suspects = self._hashes.repeated()
        some, counts = suspects[:_LOOKED_AT], collections.Counter[Any]()
        if len(some) == 0:
            return
        for batch in dataset.scanner(columns=[self.name]).to_batches():
            values = _values(batch[self.name])
            counts.update(values[np.isin(_hashes(values), some)].tolist())
        repeated = [(value, count) for value, count in counts.most_common() if count > 1]
        if repeated:
            shown = ", ".join(f"{value!r} ({count} rows)" for value, count in repeated[:_SHOWN])
            more = " and others" if len(repeated) > _SHOWN else ""
            number = len(repeated) + len(suspects) - len(some)
            self._findings.problems.append(
                f"{number:,} values of the key {self.name!r} are there more than once: {shown}{more}"
            )


def _values(column: pa.Array) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = column.drop_null().to_numpy(zero_copy_only=False)
    return values


def _hashes(values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    hashes: npt.NDArray[np.uint64] = hash_array(values, categorize=False)
    return hashes
