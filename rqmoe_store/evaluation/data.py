"""Vectors to measure on, from a .npy file or a LanceDB table.

Shape suffixes: N rows used, D vector dimension.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lancedb
import numpy as np

from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store.databases import open_if_exists
from rqmoe_store.training.sampler import sample_vectors

_ARRAY_SUFFIX, _TABLE_SUFFIX = ".npy", ".lance"


@dataclasses.dataclass(frozen=True)
class VectorSource:
    """Where vectors are: opened and known to be readable, but not read yet."""

    option: str
    """The argument that named it, for messages."""
    location: str
    """Path of a .npy file, or path or URI of a LanceDB table's folder."""
    vector_column: str
    """Column of the table."""
    data: Any
    """A memory-mapped array or a LanceDB table."""

    @classmethod
    def open(cls, option: str, location: str, vector_column: str) -> "VectorSource":
        """Look, but do not read.

        Raises:
            InvalidInputError: neither a .npy file nor a .lance folder, or a file that cannot be read.
            TableError: no such table.
        """
        suffix = Path(location.rstrip("/")).suffix
        if suffix == _ARRAY_SUFFIX:
            data = _open_array(option, location)
        elif suffix == _TABLE_SUFFIX:
            data = _open_table(option, location.rstrip("/"))
        else:
            raise InvalidInputError(
                f"Got {option} {location!r}; expected a .npy file, or a LanceDB table as the path or URI of "
                "its folder, such as ./data/docs.lance."
            )
        return cls(option, location, vector_column, data)

    def read(self, *, rows: int, metric: Metric, seed: int) -> tuple[Float32Array, int]:
        """At most `rows` vectors, checked, and how many rows there are.

        A file keeps its order, also where rows of it are drawn; a table's rows come in random order,
        without those whose vector is null.

        Raises:
            TableError: no such column, a column of another type, or an empty table.
            InvalidInputError: vectors that `as_vectors` refuses.
        """
        try:
            if not isinstance(self.data, np.ndarray):
                table_rows = int(self.data.count_rows())
                sampled_ND = sample_vectors(
                    self.data, vector_column=self.vector_column, metric=metric, max_rows=rows, seed=seed
                )
                return sampled_ND, table_rows
            if self.data.ndim != 2 or len(self.data) <= rows:
                # A copy: what is measured must not depend on what the system keeps of the file.
                return as_vectors(np.array(self.data), metric=metric), len(self.data)
            chosen = np.sort(np.random.default_rng(seed).choice(len(self.data), size=rows, replace=False))
            return as_vectors(self.data[chosen], metric=metric, positions=chosen), len(self.data)
        except (InvalidInputError, TableError) as error:
            raise type(error)(f"{self.option} {self.location!r}: {error}") from error


def read_all(
    wanted: Mapping[str, tuple[str, int]], *, vector_column: str, metric: Metric, seed: int
) -> dict[str, tuple[Float32Array, int]]:
    """Vectors from several places, all of which are opened before any is read.

    Args:
        wanted: the argument that named a place -> the place, and how many rows to read at most.

    Returns:
        The same arguments -> what `VectorSource.read` gives.

    Raises:
        InvalidInputError, TableError: as `VectorSource.open` and `VectorSource.read`.
    """
    sources = [
        (VectorSource.open(option, location, vector_column), rows)
        for option, (location, rows) in wanted.items()
    ]
    # From the last to the first: queries are few, and what is wrong with them is said sooner.
    return {
        source.option: source.read(rows=rows, metric=metric, seed=seed) for source, rows in reversed(sources)
    }


def _open_array(option: str, location: str) -> Any:
    try:
        return np.load(Path(location).expanduser(), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"Cannot read {option} {location!r} ({error}); expected a .npy file of vectors (rows, dim)."
        ) from error


def _open_table(option: str, location: str) -> Any:
    is_local = "://" not in location
    path = str(Path(location).expanduser()) if is_local else location
    folder, _, last = path.rpartition("/")
    name = last.removesuffix(_TABLE_SUFFIX)
    # Connecting to a folder that does not exist would create it.
    table = None
    if not is_local or Path(path).is_dir():
        table = open_if_exists(lancedb.connect(folder or "."), name)
    if table is None:
        raise TableError(
            f"There is no table at {option} {location!r}; expected the folder of a LanceDB table, "
            "<database>/<table>.lance."
        )
    return table
