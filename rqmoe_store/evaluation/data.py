"""Benchmark data: vectors from a .npy file or a LanceDB table.

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
    """A file or table of vectors that is open, but not read yet."""

    option: str
    """The option that named it, for messages."""
    location: str
    """Path of a .npy file, or path or URI of a LanceDB table's folder."""
    vector_column: str
    """Column of the table with the vectors."""
    data: Any
    """A memory-mapped array, or a LanceDB table."""

    @classmethod
    def open(cls, option: str, location: str, vector_column: str) -> "VectorSource":
        """Open the source without reading it.

        Raises:
            InvalidInputError: it is neither a .npy file nor a .lance folder, or cannot be read.
            TableError: there is no such table.
        """
        suffix = Path(location.rstrip("/")).suffix
        if suffix == _ARRAY_SUFFIX:
            data = open_array(option, location)
        elif suffix == _TABLE_SUFFIX:
            data = _open_table(option, location.rstrip("/"))
        else:
            raise InvalidInputError(
                f"Got {option} {location!r}; expected a .npy file, or a LanceDB table as the path or URI of "
                "its folder, such as ./data/docs.lance."
            )
        return cls(option, location, vector_column, data)

    def read(self, *, rows: int, metric: Metric, seed: int) -> tuple[Float32Array, int]:
        """Read and check at most `rows` vectors; returns them and the number of rows in the source.

        Vectors of a file keep their order, even if they are a sample. Those of a table come in random order,
        and null vectors are left out.

        Raises:
            TableError: the column is missing or has another type, or the table is empty.
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
                # A copy, so that results do not depend on which pages of the file the system has in memory.
                return as_vectors(np.array(self.data), metric=metric), len(self.data)
            chosen = np.sort(np.random.default_rng(seed).choice(len(self.data), size=rows, replace=False))
            return as_vectors(self.data[chosen], metric=metric, positions=chosen), len(self.data)
        except (InvalidInputError, TableError) as error:
            raise type(error)(f"{self.option} {self.location!r}: {error}") from error


def read_all(
    wanted: Mapping[str, tuple[str, int]], *, vector_column: str, metric: Metric, seed: int
) -> dict[str, tuple[Float32Array, int]]:
    """Read vectors from several sources, after all of them have been opened.

    Args:
        wanted: option -> location that it names, and the most rows to read.
        vector_column: column of tables with the vectors.
        metric: under "cosine" vectors are scaled to unit length.
        seed: of samples.

    Returns:
        option -> what `VectorSource.read` returns.

    Raises:
        InvalidInputError, TableError: as `VectorSource.open` and `VectorSource.read`.
    """
    sources = [
        (VectorSource.open(option, location, vector_column), rows)
        for option, (location, rows) in wanted.items()
    ]
    # The last source is read first: queries are few, so errors in them show early.
    return {
        source.option: source.read(rows=rows, metric=metric, seed=seed) for source, rows in reversed(sources)
    }


def read_described(
    vectors: str | None,
    queries: str,
    vector_column: str,
    most_rows: tuple[int, int],
    *,
    metric: Metric,
    seed: int,
) -> tuple[Float32Array | None, Float32Array, dict[str, Any]]:
    """Read vectors, if any, and queries, at most so many rows; and describe both for the report."""
    wanted = {} if vectors is None else {"--vectors": (vectors, most_rows[0])}
    wanted["--queries"] = (queries, most_rows[1])
    read = read_all(wanted, vector_column=vector_column, metric=metric, seed=seed)
    queries_QD, query_rows = read["--queries"]
    vectors_ND, all_rows = read.get("--vectors", (None, 0))
    data = {
        "vectors": vectors,
        "queries": queries,
        "vector_column": vector_column,
        "metric": metric,
        "dim": queries_QD.shape[1],
        "rows": all_rows,
        "rows_used": 0 if vectors_ND is None else len(vectors_ND),
        "query_rows": query_rows,
        "query_rows_used": len(queries_QD),
    }
    return vectors_ND, queries_QD, data


def summary_of(data: dict[str, Any]) -> str:
    """The vectors and queries of a benchmark in one line."""
    used = data["rows_used"]
    of_all = f" (of {data['rows']:,})" if used < data["rows"] else ""
    vectors = f"{used:,} vectors{of_all}" if used else "Random codes"
    held_out = f", the last {data['rows_held_out']:,} of them held out" if "rows_held_out" in data else ""
    of_queries = f" (of {data['query_rows']:,})" if data["query_rows_used"] < data["query_rows"] else ""
    return (
        f"{vectors} of dimension {data['dim']}{held_out}; {data['query_rows_used']:,} queries{of_queries}; "
        f"metric {data['metric']}."
    )


def open_array(option: str, location: str) -> Any:
    """The array in a .npy file, memory-mapped; raises InvalidInputError if there is none."""
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
    # LanceDB would create a folder that does not exist.
    table = None
    if not is_local or Path(path).is_dir():
        table = open_if_exists(lancedb.connect(folder or "."), name)
    if table is None:
        raise TableError(
            f"There is no table at {option} {location!r}; expected the folder of a LanceDB table, "
            "<database>/<table>.lance."
        )
    return table
