"""Bulk ingestion, of several commits to two tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from killed.intact import Contents, assert_intact, has_vector, rows_of
from killed.operation import (
    TABLE,
    TRAINING,
    Operation,
    assert_steady,
    block,
    database,
    small_config,
    tiny_codec,
)
from rqmoe_store.codecs.base import load_codec
from rqmoe_store.ingestion.job import ingest
from rqmoe_store.store.databases import open_if_exists
from rqmoe_store.tables import create_table

_FILES, _ROWS = 2, 50
"""Of the source: files, and rows of each."""


class Ingest(Operation):
    """Files ingested, with a bad row in each of them."""

    first = 100
    """Id of the first row of the source; those before are in the table to begin with."""

    def __init__(self, name: str) -> None:
        self.name = name

    def prepare(self, folder: Path) -> None:
        rows = rows_of(block(0, self.first))
        create_table(database(folder), TABLE, rows, config=small_config()).train(TRAINING, progress=False)
        self.write_source(folder)

    def write_source(self, folder: Path) -> None:
        (folder / "source").mkdir(parents=True)
        for number in range(_FILES):
            start = self.first + number * _ROWS
            rows = rows_of(dict.fromkeys(range(start, start + _ROWS), 0))
            vectors = [np.full(4, np.nan) if is_bad(row["id"]) else row["vector"] for row in rows.to_pylist()]
            place = rows.schema.get_field_index("vector")
            rows = rows.set_column(place, "vector", pa.array(vectors, pa.list_(pa.float32())))
            pq.write_table(rows, folder / "source" / f"{number}.parquet")

    def begin(self, folder: Path) -> Any:
        return folder / "source", (database(folder), TABLE), None

    def call(self, target: Any, number: int) -> None:
        source, into, codec = target
        ingest(str(source), into, codec=codec, commit_rows=25, progress=False)

    def check(self, folder: Path, acknowledged: int) -> int:
        """Any number of the first rows may be there before the call has returned."""
        most = _FILES * _ROWS
        counts = range(most if acknowledged else 0, most + 1)
        count = counts[assert_intact(database(folder), TABLE, *map(self._first_rows, counts))]
        new = range(self.first, self.first + count)
        assert_steady(folder, sum(has_vector(row) and not is_bad(row) for row in new))
        found = self._quarantined(folder)
        assert len(found) == len(set(found))
        # Bad rows are kept first: those of the next commit may be there.
        assert {row for row in new if is_bad(row)} <= set(found)
        assert all(is_bad(row) for row in found) and (not acknowledged or len(found) == _FILES)
        return acknowledged

    def _first_rows(self, count: int) -> Contents:
        rows = range(self.first + count)
        return {row: 0 for row in rows if row < self.first or not is_bad(row)}

    def _quarantined(self, folder: Path) -> list[int]:
        """Ids of the rows in quarantine."""
        table = open_if_exists(database(folder), f"{TABLE}_quarantine")
        rows = [] if table is None else table.to_arrow().to_pylist()
        return [self.first + int(Path(row["source"]).stem) * _ROWS + row["position"] for row in rows]


class IngestNew(Ingest):
    """Files ingested into a table that is made on the way."""

    first = 0

    def prepare(self, folder: Path) -> None:
        tiny_codec(num_partitions=3).save(folder / "codec")
        self.write_source(folder)

    def begin(self, folder: Path) -> Any:
        return folder / "source", (database(folder), TABLE), load_codec(folder / "codec")

    def check(self, folder: Path, acknowledged: int) -> int:
        if not acknowledged and open_if_exists(database(folder), TABLE) is None:
            return 0
        return super().check(folder, acknowledged)


def is_bad(row: int) -> bool:
    """Whether a row of the source has a vector that cannot be used."""
    return row % _ROWS == 7
