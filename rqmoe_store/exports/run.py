"""Export a table to files."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Literal

import lance

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.exports.formats import FORMATS, read_batches, replace_atomically, size_of
from rqmoe_store.progress import progress_bar
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store.statistics import readable
from rqmoe_store.store.table_codec import TableCodec


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


FormatName = Literal["parquet", "npy", "codes"]


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
            for batch in read_batches(dataset, codecs.metadata):
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
