"""Export: write a table to files that need neither LanceDB nor this package: Parquet, .npy or codes.

Everything is written to temporary paths, which replace the targets when the export is complete.

Shape legend: N rows of a batch, C of them with a code, R of them with a raw vector, V of them with either,
D components, M code bytes.
"""

import abc
import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.progress import progress_bar
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store.columns import Vectors, user_schema
from rqmoe_store.store.metadata import TableMetadata, without_ours
from rqmoe_store.store.sql import quoted
from rqmoe_store.store.statistics import readable
from rqmoe_store.store.table_codec import TableCodec

FormatName = Literal["parquet", "npy", "codes"]

ROWS_PER_FILE = 2**20
"""Rows of each file in a folder of Parquet files."""

DESCRIPTION = "_export.json"
"""File in every exported folder that describes its contents. Readers of folders of Parquet files ignore
names that begin with an underscore."""

_SUFFIX = ".parquet"

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportReport:
    """Rows and files of an export; prints as a line."""

    path: Path
    """The file or folder that was exported to."""
    version: int
    """Version of the table."""
    rows: int = 0
    """Rows written."""
    coded: int = 0
    """Rows of the table with a code."""
    raw: int = 0
    """Rows of the table with a vector and no code."""
    empty: int = 0
    """Rows of the table with neither; an .npy file leaves them out, other formats have them as nulls."""
    bytes: int = 0
    """Size of all files."""

    def __str__(self) -> str:
        kinds = {"coded": self.coded, "raw": self.raw, "without a vector": self.empty}
        some = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count) or "none"
        return f"{self.path}: {self.rows:,} rows, {readable(self.bytes)}; rows of the table: {some}"


@translates_errors
def export(
    dataset: lance.LanceDataset,
    codecs: TableCodec,
    path: str | os.PathLike[str],
    *,
    format: FormatName = "parquet",
    overwrite: bool = False,
    progress: bool = True,
) -> ExportReport:
    """Write one version of a table to files, as described at `CompressedTable.export`.

    Args:
        dataset: the version of the table.
        codecs: codecs of that version.
        path: file or folder to write.
        format: format of the files.
        overwrite: whether to replace what is there.
        progress: show a progress bar.
    """
    if format not in FORMATS:
        raise InvalidInputError(f"Got format={format!r}; expected one of {', '.join(map(repr, FORMATS))}.")
    if "://" in str(path):
        raise InvalidInputError(f"Got {path!r}; expected a path on this machine to export to.")
    target = Path(path).expanduser().absolute()
    writer = FORMATS[format](target, dataset, codecs)
    report = ExportReport(path=target, version=int(dataset.version))
    with (
        replace_atomically(writer.targets, overwrite=overwrite) as written,
        progress_bar(progress) as bar,
    ):
        task = bar.add_task("Exporting", total=dataset.count_rows())
        with contextlib.ExitStack() as stack:
            writer.open(written, stack)
            for batch in read_batches(dataset, codecs):
                report = dataclasses.replace(
                    report,
                    rows=report.rows + writer.write(batch),
                    coded=report.coded + int(batch.coded_N.sum()),
                    raw=report.raw + int((batch.raw_N & ~batch.coded_N).sum()),
                    empty=report.empty + int((~batch.raw_N & ~batch.coded_N).sum()),
                )
                bar.advance(task, len(batch.coded_N))
        writer.finish()
        report = dataclasses.replace(report, bytes=sum(map(size_of, written)))
    return report


@dataclasses.dataclass(frozen=True)
class RowBatch:
    """N rows of a table."""

    others: list[pa.Array]
    """The user's columns, without the vector column, in the order of `others_schema`."""
    codes: Codes
    """Codes of C rows, with partition ids that count over all codecs of the table."""
    coded_N: Mask
    """Which rows have a code."""
    raw_RD: Vectors
    """Raw vectors of R rows; a row may have a code and a raw vector."""
    raw_N: Mask
    """Which rows have a raw vector."""

    def vectors(self, codecs: TableCodec) -> tuple[Vectors, Mask]:
        """The vectors (V, D), raw where a row has one and decoded otherwise, and which rows have a vector.

        Raises as `TableCodec.decode_rows`.
        """
        return codecs.raw_or_decoded(self.raw_RD, self.raw_N, self.codes, self.coded_N)


def others_schema(dataset: lance.LanceDataset, metadata: TableMetadata) -> pa.Schema:
    """The user's columns and metadata, without the vector column."""
    ours = (*metadata.columns.names, metadata.vector_column)
    return without_ours(user_schema(dataset.schema, without=ours))


def read_batches(dataset: lance.LanceDataset, codecs: TableCodec) -> Iterator[RowBatch]:
    """Yield all rows in their order, about 32 MB of vectors at a time.

    Raises:
        InvalidInputError: a raw vector has missing, NaN or infinite values; names the position of the row.
        TableError: as `TableCodec.read`.
    """
    metadata = codecs.metadata
    others, first_row = others_schema(dataset, metadata), 0
    scanner = dataset.scanner(
        columns=[*others.names, *codecs.columns.names, metadata.vector_column],
        batch_size=metadata.rows_per_batch,
        scan_in_order=True,
    )
    for batch in scanner.to_batches():
        codes, coded_N = codecs.read(batch)
        raw_RD, raw_N = metadata.kept.read(batch[metadata.vector_column], first_row)
        yield RowBatch([batch[name] for name in others.names], codes, coded_N, raw_RD, raw_N)
        first_row += len(batch)


class Format(abc.ABC):
    """Writes the rows of one version of a table in one format."""

    def __init__(self, path: Path, dataset: lance.LanceDataset, codecs: TableCodec) -> None:
        """Prepare for an export to `path`.

        Raises:
            InvalidInputError: this format cannot be written to `path`.
        """
        self.path, self.dataset, self.codecs = path, dataset, codecs
        self.columns = codecs.columns
        self.others = others_schema(dataset, codecs.metadata)
        self.vectors = dataclasses.replace(codecs.metadata.kept, keep="float32")

    @property
    def targets(self) -> list[Path]:
        """The files or folders to write, all in one folder."""
        return [self.path]

    @abc.abstractmethod
    def open(self, temporary: list[Path], stack: contextlib.ExitStack) -> None:
        """Open the temporary paths of the targets for writing; leaving `stack` closes them."""

    @abc.abstractmethod
    def write(self, batch: RowBatch) -> int:
        """Write rows and return their number."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Check the export and write what follows the rows, after everything that `open` opened is closed."""


class ParquetFormat(Format):
    """Vectors and the user's columns, in one Parquet file or a folder of them."""

    def open(self, temporary: list[Path], stack: contextlib.ExitStack) -> None:
        (self._path,) = temporary
        single = self.path.suffix == _SUFFIX
        self._parts = stack.enter_context(
            ParquetParts(
                self._path,
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
        if self._path.is_dir():
            describe(self._path, format="parquet", vector_column=self.vectors.column)


class NpyFormat(Format):
    """Vectors as an array, and the user's columns of the same rows in a Parquet file next to it."""

    def __init__(self, path: Path, dataset: lance.LanceDataset, codecs: TableCodec) -> None:
        super().__init__(path, dataset, codecs)
        if path.suffix != ".npy":
            raise InvalidInputError(
                f"Got {str(path)!r} to export an array to; expected a name ending in .npy."
            )
        if codecs.metadata.multi_vector is not None:
            raise InvalidInputError(
                "Got format='npy' for a table whose rows have many vectors each, which are no array; "
                "expected 'parquet' or 'codes'."
            )
        code, partition = (quoted(name) for name in self.columns.scanned)
        self._rows = dataset.count_rows(
            f"{quoted(self.vectors.column)} IS NOT NULL OR ({code} IS NOT NULL AND {partition} IS NOT NULL)"
        )
        self._left = self._rows

    @property
    def targets(self) -> list[Path]:
        columns = [self.path.with_suffix(_SUFFIX)] if self.others.names else []
        return [*columns, self.path]

    def open(self, temporary: list[Path], stack: contextlib.ExitStack) -> None:
        *columns, array = temporary
        self._file = stack.enter_context(array.open("wb"))
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
            "fortran_order": False,
            "shape": (self._rows, self.codecs.dim),
        }
        np.lib.format.write_array_header_1_0(self._file, header)
        self._parts = None
        if columns:
            parts = ParquetParts(columns[0], self.others, plain=(), rows_per_file=None)
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

    def open(self, temporary: list[Path], stack: contextlib.ExitStack) -> None:
        (self._folder,) = temporary
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
        plain = (self.columns.code, self.columns.refine, self.columns.tokens, self.vectors.column)
        parts = ParquetParts(self._folder / "rows", schema, plain=plain, rows_per_file=ROWS_PER_FILE)
        self._parts = stack.enter_context(parts)
        self._used: set[int] = set()

    def write(self, batch: RowBatch) -> int:
        firsts = np.array(self.codecs.metadata.first_partitions)
        owners_C = np.searchsorted(firsts, batch.codes.partitions, side="right") - 1
        self._used.update(np.unique(owners_C).tolist())
        local_C = (batch.codes.partitions - firsts[owners_C]).astype(np.int32)
        local = dataclasses.replace(batch.codes, partitions=local_C)
        sizes = np.array([each.refine_bytes for each in self.codecs.metadata.generations], dtype=np.int64)
        arrays = self.columns.to_arrow(local, batch.coded_N, sizes[owners_C] > 0)
        names_N = np.full(len(batch.coded_N), None, dtype=object)
        names_N[batch.coded_N] = np.array([*map(self._name, range(len(firsts) - 1))], dtype=object)[owners_C]
        arrays.append(pa.array(names_N, pa.string()))
        if self._has_vectors:
            arrays.append(self.vectors.raw_array(batch.raw_RD, batch.raw_N))
        self._parts.write([*batch.others, *arrays])
        return len(names_N)

    def finish(self) -> None:
        many = self.codecs.metadata.multi_vector is not None
        for place in self._used:
            generation = self.codecs.generations[place]
            generation.codec.save(self._folder / self._name(place))
            if many:
                generation.vector_codec.save(self._folder / f"{self._name(place)}-tokens")
        describe(
            self._folder,
            format="codes",
            vector_column=self.vectors.column,
            codecs={self._name(place): self._fingerprint(place) for place in sorted(self._used)},
        )

    def _name(self, place: int) -> str:
        return f"codec-{self._fingerprint(place)[:12]}"

    def _fingerprint(self, place: int) -> str:
        return self.codecs.metadata.generations[place].reader


FORMATS: dict[str, type[Format]] = {"parquet": ParquetFormat, "npy": NpyFormat, "codes": CodesFormat}
"""Values of `format` -> the format."""


class ParquetParts:
    """Writes record batches to one file, or to files `part-00000.parquet` and so on in a new folder."""

    def __init__(
        self, path: Path, schema: pa.Schema, *, plain: tuple[str, ...], rows_per_file: int | None
    ) -> None:
        """Prepare to write; the first batch creates the file or folder, or closing the writer does.

        Args:
            path: path of the file or folder.
            schema: schema of the batches.
            plain: columns whose values seldom repeat, such as vectors; they get no dictionary encoding.
            rows_per_file: rows of each file in a folder; None for a single file.
        """
        self._path, self._schema, self._rows_per_file = path, schema, rows_per_file
        self._dictionaries = [name for name in schema.names if name not in plain]
        self._parts, self._rows = 0, 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, arrays: list[pa.Array]) -> None:
        """Write rows, given as arrays in the order of the schema."""
        if self._rows_per_file is not None and self._rows >= self._rows_per_file:
            self._close_file()
        writer = self._open_file() if self._writer is None else self._writer
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        writer.write_batch(batch)
        self._rows += len(batch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._parts == 0:
            self._open_file()  # an export without rows still has the columns
        self._close_file()

    def _open_file(self) -> pq.ParquetWriter:
        path = self._path
        if self._rows_per_file is not None:
            path.mkdir(exist_ok=True)
            path = path / f"part-{self._parts:05}.parquet"
        try:
            self._writer = pq.ParquetWriter(path, self._schema, use_dictionary=self._dictionaries)
        except pa.ArrowNotImplementedError as error:
            raise InvalidInputError(
                f"Parquet cannot hold one of the columns ({error}). Export a copy of the table without it."
            ) from error
        self._parts, self._rows = self._parts + 1, 0
        return self._writer

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@contextlib.contextmanager
def replace_atomically(targets: list[Path], *, overwrite: bool) -> Iterator[list[Path]]:
    """Give temporary paths to write to, and move them to `targets`, in this order, if the block succeeds.

    After any failure the targets are as they were before, and no temporary file is left.

    Args:
        targets: files or folders in one folder, which must exist.
        overwrite: whether to replace existing files, and folders that were exported.

    Raises:
        InvalidInputError: a target exists and may not be replaced, or the folder does not exist.
    """
    for target in targets:
        _require_free(target, overwrite)
    folder = Path(tempfile.mkdtemp(dir=targets[0].parent, prefix=f".{targets[0].name}."))
    try:
        written = [folder / target.name for target in targets]
        yield written
        for path in written:
            _sync_to_disk(path)
        for path, target in zip(written, targets, strict=True):
            _move(path, target, folder / f"{target.name}.replaced")
    finally:
        shutil.rmtree(folder)


def describe(folder: Path, **facts: Any) -> None:
    """Write the description of an exported folder into it."""
    (folder / DESCRIPTION).write_text(json.dumps(facts, indent=2))


def size_of(path: Path) -> int:
    """Size in bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in _files(path))


def _require_free(target: Path, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise InvalidInputError(f"There is no folder {str(target.parent)!r} to export to; make it first.")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise InvalidInputError(
            f"{str(target)!r} exists already; give another path to export to, or overwrite=True."
        )
    exported = (target / DESCRIPTION).is_file() or (target.is_dir() and not any(target.iterdir()))
    if target.is_dir() and (target.is_symlink() or not exported):
        raise InvalidInputError(
            f"{str(target)!r} is a folder that was not exported, or a link to one, and is not replaced even "
            "with overwrite=True. Give another path, or remove it first."
        )


def _sync_to_disk(path: Path) -> None:
    """Make the written files survive a power failure."""
    for file in _files(path):
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())


def _move(path: Path, target: Path, aside: Path) -> None:
    """Move `path` to `target`; a target that cannot be replaced directly, as folders, moves aside first."""
    if not target.is_dir() and not (path.is_dir() and target.exists()):
        path.replace(target)
        return
    target.replace(aside)
    try:
        path.replace(target)
    except OSError:
        aside.replace(target)
        raise


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
