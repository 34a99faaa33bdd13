"""The formats that a table can be exported to.

Shapes: N rows of a batch, V of them with a vector, D components, M code bytes.
"""

import abc
import contextlib
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.exports.destination import describe
from rqmoe_store.exports.parquet import ROWS_PER_FILE, ParquetParts
from rqmoe_store.exports.rows import RowBatch, others_schema
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.kept_vectors import KeptVectors
from rqmoe_store.store.sql import quoted
from rqmoe_store.store.table_codec import TableCodec

_SUFFIX = ".parquet"


class Format(abc.ABC):
    """Writes the rows of one version of a table."""

    def __init__(self, path: Path, dataset: lance.LanceDataset, codecs: TableCodec) -> None:
        """Prepare for an export to `path`.

        Raises:
            InvalidInputError: not a path that this format can be written to.
        """
        self.path, self.dataset, self.codecs = path, dataset, codecs
        self.columns = CodeColumns(codecs.marks.vector_column)
        self.others = others_schema(dataset, codecs.marks)
        self.vectors = KeptVectors(column=codecs.marks.vector_column, keep="float32", dim=codecs.dim)

    @property
    def targets(self) -> list[Path]:
        """The files or folders to write, all in one folder."""
        return [self.path]

    @abc.abstractmethod
    def begin(self, written: list[Path], stack: contextlib.ExitStack) -> None:
        """Open what is written instead of the targets; `stack` closes it, after an error, too."""

    @abc.abstractmethod
    def write(self, batch: RowBatch) -> int:
        """Write rows; returns how many of them."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Write or check what comes after the last row; everything that `begin` opened is closed."""


class ParquetFormat(Format):
    """Vectors and the user's columns, in one file or a folder of files."""

    def begin(self, written: list[Path], stack: contextlib.ExitStack) -> None:
        (self._folder,) = written
        single = self.path.suffix == _SUFFIX
        self._parts = stack.enter_context(
            ParquetParts(
                self._folder,
                self.others.append(self.vectors.field),
                plain=(self.vectors.column,),
                rows_per_file=None if single else ROWS_PER_FILE,
            )
        )

    def write(self, batch: RowBatch) -> int:
        vectors_VD, valid_N = batch.vectors(self.codecs)
        self._parts.write([*batch.others, self.vectors.raw_array(vectors_VD, valid_N)])
        return len(valid_N)

    def finish(self) -> None:
        if self._folder.is_dir():
            describe(self._folder, format="parquet", vector_column=self.vectors.column)


class NpyFormat(Format):
    """Vectors as an array, and the user's columns of the same rows in a Parquet file beside it."""

    def __init__(self, path: Path, dataset: lance.LanceDataset, codecs: TableCodec) -> None:
        super().__init__(path, dataset, codecs)
        if path.suffix != ".npy":
            raise InvalidInputError(
                f"Got {str(path)!r} to export an array to; expected a name ending in .npy."
            )
        code, partition = (quoted(name) for name in self.columns.names)
        self._rows = dataset.count_rows(
            f"{quoted(self.vectors.column)} IS NOT NULL OR ({code} IS NOT NULL AND {partition} IS NOT NULL)"
        )
        self._left = self._rows

    @property
    def targets(self) -> list[Path]:
        beside = [self.path.with_suffix(_SUFFIX)] if self.others.names else []
        return [*beside, self.path]

    def begin(self, written: list[Path], stack: contextlib.ExitStack) -> None:
        *beside, array = written
        self._file = stack.enter_context(array.open("wb"))
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
            "fortran_order": False,
            "shape": (self._rows, self.codecs.dim),
        }
        np.lib.format.write_array_header_1_0(self._file, header)
        self._parts = None
        if beside:
            parts = ParquetParts(beside[0], self.others, plain=(), rows_per_file=None)
            self._parts = stack.enter_context(parts)

    def write(self, batch: RowBatch) -> int:
        vectors_VD, valid_N = batch.vectors(self.codecs)
        self._file.write(np.ascontiguousarray(vectors_VD, dtype=np.float32).data)
        if self._parts is not None:
            valid = pa.array(valid_N)
            self._parts.write([array.filter(valid) for array in batch.others])
        self._left -= len(vectors_VD)
        return len(vectors_VD)

    def finish(self) -> None:
        if self._left:
            raise TableError(
                f"The table counts {self._rows:,} rows with a vector; {self._rows - self._left:,} were read. "
                "Look what is wrong with verify()."
            )


class CodesFormat(Format):
    """Codes, partitions and the user's columns as Parquet files, and every codec as a folder."""

    def begin(self, written: list[Path], stack: contextlib.ExitStack) -> None:
        (self._folder,) = written
        self._folder.mkdir()
        self._codec_column = f"{self.vectors.column}_codec"
        if self._codec_column in self.others.names:
            raise InvalidInputError(
                f"The table has a column {self._codec_column!r}, which an export of codes would write. "
                "Rename it, or export vectors."
            )
        fields = [*self.columns.fields(self.codecs.code_bytes), pa.field(self._codec_column, pa.string())]
        if self.dataset.count_rows(f"{quoted(self.vectors.column)} IS NOT NULL"):
            fields.append(self.vectors.field)
        self._has_vectors = fields[-1] == self.vectors.field
        schema = pa.schema([*self.others, *fields], metadata=self.others.metadata)
        plain = (self.columns.code, self.vectors.column)
        parts = ParquetParts(self._folder / "rows", schema, plain=plain, rows_per_file=ROWS_PER_FILE)
        self._parts = stack.enter_context(parts)
        self._used: set[int] = set()

    def write(self, batch: RowBatch) -> int:
        self.codecs.check(batch.codes)
        firsts = np.array(self.codecs.marks.first_partitions)
        owners_C = np.searchsorted(firsts, batch.codes.partitions, side="right") - 1
        self._used.update(np.unique(owners_C).tolist())
        local_C = (batch.codes.partitions - firsts[owners_C]).astype(np.int32)
        arrays = self.columns.to_arrow(Codes(batch.codes.codes, local_C), batch.coded_N)
        names_N = np.full(len(batch.coded_N), None, dtype=object)
        names_N[batch.coded_N] = np.array([*map(self._name, range(len(firsts) - 1))], dtype=object)[owners_C]
        arrays.append(pa.array(names_N, pa.string()))
        if self._has_vectors:
            arrays.append(self.vectors.raw_array(batch.raw_RD, batch.raw_N))
        self._parts.write([*batch.others, *arrays])
        return len(names_N)

    def finish(self) -> None:
        for place in self._used:
            self.codecs.generations[place].codec.save(self._folder / self._name(place))
        describe(
            self._folder,
            format="codes",
            vector_column=self.vectors.column,
            codecs={self._name(place): self._fingerprint(place) for place in sorted(self._used)},
        )

    def _name(self, place: int) -> str:
        return f"codec-{self._fingerprint(place)[:12]}"

    def _fingerprint(self, place: int) -> str:
        return self.codecs.marks.generations[place].fingerprint


FORMATS: dict[str, type[Format]] = {"parquet": ParquetFormat, "npy": NpyFormat, "codes": CodesFormat}
"""By the names that people know them by."""
