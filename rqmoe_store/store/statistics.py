"""Statistics of a compressed table: sizes on disk and in memory, compression ratio, error, use of codewords.

Shape legend: M steps (code bytes), K codewords per step, V rows of a batch that have a vector.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from lancedb.table import LanceTable

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.subject import describe_subject
from rqmoe_store.store import databases
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.lance import field_ids
from rqmoe_store.store.neighbor_graph import NeighborGraph
from rqmoe_store.store.ragged import RowCodes
from rqmoe_store.store.registry import places_in_use
from rqmoe_store.store.sql import quoted
from rqmoe_store.store.table_codec import TableCodec

_SCAN_ROWS = 131_072
_LIST_ROWS = 4_096
"""Rows of many vectors each whose codes are read at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableStats:
    """Size and quality of a compressed table; `print(stats)` shows them."""

    rows: int
    """Rows in the table."""
    raw_rows: int
    """Rows that are not encoded yet and keep their raw vectors until then."""
    dim: int
    """Dimension of the vectors."""
    codes_of: str
    """What codes are of: "whole vectors" or, where rows have many each, perhaps "residuals of row means"."""
    raw_bytes: int
    """Size of the vectors as float32: rows * dim * 4, or vectors * dim * 4 where rows have many."""
    disk_bytes: int
    """Size of the whole table on disk: all columns, indexes, deletions, older versions."""
    code_disk_bytes: int
    """Size of its code, partition and refine code columns in the data files of the present version."""
    refine_disk_bytes: int
    """The part of it that refine codes take; 0 if there are none."""
    vector_disk_bytes: int
    """Size of its raw vectors there; 0 if there are none."""
    bytes_per_vector: float
    """code_disk_bytes / rows; 0.0 for an empty table."""
    codec_bytes: int
    """Size of the codecs that its rows need; the database has them once for all tables that use them."""
    bytes_per_vector_with_codec: float
    """(code_disk_bytes + codec_bytes) / rows; 0.0 for an empty table."""
    break_even_rows: int | None
    """Number of rows from which codes and codec together are smaller than the raw vectors: codec_bytes over
    the bytes saved per vector, rounded up. None if codes are not smaller, or there are none yet."""
    compression_ratio: float
    """raw_bytes / code_disk_bytes; 0.0 for an empty table."""
    mse_estimate: float | None
    """Mean squared error of the newest codec on held-out training rows; None without a codec."""
    relative_mse: float | None
    """mse_estimate as a share of the variance of the training vectors."""
    codeword_utilisation: float
    """Share of codewords that stored codes use, from 0 to 1, averaged over the steps."""
    resident_bytes: int = 0
    """Memory of this process that codes, refine codes, row ids, norms and cached columns take."""
    norm_bytes: int = 0
    """The part of it that norms take: lengths of codes, for scans under cosine."""
    cached_columns: tuple[str, ...] = ()
    """Columns whose values are in memory; see `CompressedTable.use_cache`."""
    cached_column_bytes: int = 0
    """The part of `resident_bytes` that they take."""
    refine_codes_in: str = "none"
    """Where searches read refine codes: "memory", "disk", or "none" if there are none."""

    graph_neighbors: int = 0
    """Neighbors of a row in the neighbor graph of this version; 0 if it has none."""
    graph_rows: int = 0
    """Rows of the neighbor graph."""
    graph_version: int | None = None
    """Version of the table whose rows it has; None if there is none."""
    graph_disk_bytes: int = 0
    """Size of the neighbor graph in its data files; part of `disk_bytes`."""

    def __str__(self) -> str:
        lines = {
            "rows": f"{self.rows:,}" + (f", {self.raw_rows:,} of them raw" if self.raw_rows else ""),
            "dimension": f"{self.dim:,}",
            "vectors as float32": readable(self.raw_bytes),
            "codes are of": self.codes_of,
            "codes on disk": f"{readable(self.code_disk_bytes)} ({self.bytes_per_vector:.2f} per vector)",
            "of them refine codes": self._refine_codes(),
            "raw vectors on disk": readable(self.vector_disk_bytes) if self.vector_disk_bytes else "none",
            "compression": f"{self.compression_ratio:.1f} to 1",
            "whole table on disk": readable(self.disk_bytes),
            "codec": readable(self.codec_bytes),
            "codes and codec": f"{self.bytes_per_vector_with_codec:,.2f} bytes per vector",
            "codec pays for itself": self._break_even(),
            "squared error": self._error(),
            "codewords in use": f"{self.codeword_utilisation:.1%}",
            "neighbor graph": self._neighbor_graph(),
            "in memory": readable(self.resident_bytes),
            "of it cached columns": self._cached_columns(),
        }
        width = max(len(label) for label in lines)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in lines.items())

    def _refine_codes(self) -> str:
        if not self.refine_disk_bytes:
            return "none"
        return f"{readable(self.refine_disk_bytes)}, read from {self.refine_codes_in}"

    def _cached_columns(self) -> str:
        if not self.cached_columns:
            return "none"
        return f"{readable(self.cached_column_bytes)}: {', '.join(self.cached_columns)}"

    def _neighbor_graph(self) -> str:
        if self.graph_version is None:
            return "none"
        return (
            f"{self.graph_neighbors} neighbors of each of {self.graph_rows:,} rows, as of version "
            f"{self.graph_version}, {readable(self.graph_disk_bytes)}"
        )

    def _error(self) -> str:
        if self.mse_estimate is None or self.relative_mse is None:
            return "no codec yet"
        return f"{self.mse_estimate:.6g} ({self.relative_mse:.1%} of the variance)"

    def _break_even(self) -> str:
        if self.break_even_rows is not None:
            return f"from {self.break_even_rows:,} rows"
        return "never: codes are not smaller than the vectors" if self.rows else "unknown without rows"


def measure(table: LanceTable, codecs: TableCodec, columns: CodeColumns) -> TableStats:
    """Measure `table`: reads its codes once, in batches, and the sizes of its files.

    Raises:
        TableError: the table has a code or partition id that none of its codecs has.
    """
    rows = table.count_rows()
    raw_bytes = 4 * codecs.metadata.vector_dim * _count_vectors(table, codecs, rows)
    code_bytes = column_bytes(table, columns.names)
    refine_bytes = column_bytes(table, [columns.refine]) if columns.refine_bytes else 0
    bytes_per_vector = code_bytes / rows if rows else 0.0
    used = [codecs.generations[place] for place in places_in_use(table.to_lance(), codecs.metadata)]
    in_use = [each.codec for each in used]
    artifacts = [codec.to_artifact() for codec in {*in_use, *(each.vector_codec for each in used)}]
    codec_bytes = sum(len(artifact.config_json.encode()) + len(artifact.weights) for artifact in artifacts)
    saved = (raw_bytes / rows if rows else 0) - bytes_per_vector
    report = None if codecs.newest is None else codecs.newest.report
    graph = NeighborGraph.find(table.to_lance(), databases.database_of(table), table.name)
    return TableStats(
        rows=rows,
        raw_rows=table.count_rows(columns.raw_filter),
        dim=codecs.metadata.vector_dim,
        codes_of=describe_subject(codecs.metadata.encodes),
        raw_bytes=raw_bytes,
        disk_bytes=disk_bytes(table),
        code_disk_bytes=code_bytes,
        refine_disk_bytes=refine_bytes,
        vector_disk_bytes=column_bytes(table, [columns.vector_column]),
        bytes_per_vector=bytes_per_vector,
        codec_bytes=codec_bytes,
        bytes_per_vector_with_codec=(code_bytes + codec_bytes) / rows if rows else 0.0,
        break_even_rows=math.ceil(codec_bytes / saved) if rows and codec_bytes and saved > 0 else None,
        compression_ratio=raw_bytes / code_bytes if code_bytes else 0.0,
        mse_estimate=None if report is None else report.whole_mse,
        relative_mse=None if report is None else report.relative_mse,
        codeword_utilisation=_utilisation(table, codecs, columns, in_use),
        graph_neighbors=0 if graph is None else graph.neighbors,
        graph_rows=0 if graph is None else len(graph),
        graph_version=None if graph is None else graph.covers,
        graph_disk_bytes=0 if graph is None else graph.nbytes,
    )


def _count_vectors(table: LanceTable, codecs: TableCodec, rows: int) -> int:
    """Number of vectors that all rows have, or had before they were encoded."""
    if codecs.metadata.multi_vector is None:
        return rows
    columns, count = codecs.columns, 0
    for batch in table.search().select([*columns.scanned, columns.tokens]).to_batches(_LIST_ROWS):
        codes, _ = codecs.read(batch)
        assert isinstance(codes, RowCodes), "read with the column"
        for generation, some in codecs.by_generation(codes) if len(codes) else ():
            config = generation.vector_codec.config
            count += int(codes.tokens.lengths_B[some].sum()) // (config.code_bytes + config.refine_bytes)
    column = quoted(columns.vector_column)
    raw = table.to_lance().scanner(columns={"vectors": f"array_length({column})"}, filter=columns.raw_filter)
    return count + int(pc.sum(raw.to_table()["vectors"]).as_py() or 0)


def disk_bytes(table: LanceTable) -> int:
    """Size in bytes of the whole table on disk, including older versions."""
    return sum(int(batch["size_bytes"].to_numpy().sum()) for batch in table.to_lance().all_files())


def column_bytes(table: LanceTable, names: Collection[str]) -> int:
    """Size in bytes of these columns in the data files, including deleted rows that are not compacted yet."""
    dataset = table.to_lance()
    fields = [field for field in dataset.lance_schema.fields() if field.name() in names]
    wanted = {each for field in fields for each in field_ids(field)}
    sizes: Any = dataset.stats.data_stats().fields  # a list, annotated by pylance as one item
    return sum(int(size.bytes_on_disk) for size in sizes if size.id in wanted)


def _utilisation(
    table: LanceTable, codecs: TableCodec, columns: CodeColumns, in_use: Sequence[Codec]
) -> float:
    sizes = [codec.config.codebook_size for codec in in_use]
    used_MK = np.zeros((codecs.code_bytes, max(sizes, default=1)), dtype=bool)
    steps_M = np.arange(codecs.code_bytes)
    for batch in table.search().select(list(columns.scanned)).to_batches(_SCAN_ROWS):
        codes, _ = codecs.read(batch)
        used_MK[steps_M, codes.codes] = True  # (V, M) indexes, of one codeword in every step
    return float(used_MK.mean())


def readable(size: int) -> str:
    """A number of bytes in a unit that suits its size."""
    if size < 10_000:
        return f"{size:,} bytes"
    for unit, scale in (("kB", 10**3), ("MB", 10**6), ("GB", 10**9)):
        if size < 10_000 * scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size / 10**12:,.1f} TB"
