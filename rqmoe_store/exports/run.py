"""Writing a table to files."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Literal

import lance

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.exports.destination import size_of, written_whole
from rqmoe_store.exports.formats import FORMATS
from rqmoe_store.exports.report import ExportReport
from rqmoe_store.exports.rows import read_batches
from rqmoe_store.refusals import names_refusals
from rqmoe_store.store.progress import progress_bar
from rqmoe_store.store.table_codec import TableCodec

FormatName = Literal["parquet", "npy", "codes"]


@names_refusals
def export(
    dataset: lance.LanceDataset,
    codecs: TableCodec,
    path: str | os.PathLike[str],
    *,
    format: FormatName = "parquet",
    overwrite: bool = False,
    progress: bool = True,
) -> ExportReport:
    """Write one version of a table to files; see `TableContents.export`, which says all about it.

    Args:
        dataset: the version.
        codecs: of it.
        path, format, overwrite, progress: as there.
    """
    if format not in FORMATS:
        raise InvalidInputError(f"Got format={format!r}; expected one of {', '.join(map(repr, FORMATS))}.")
    if "://" in str(path):
        raise InvalidInputError(f"Got {path!r}; expected a path on this machine to export to.")
    target = Path(path).expanduser().absolute()
    writer = FORMATS[format](target, dataset, codecs)
    report = ExportReport(path=target, version=int(dataset.version))
    with (
        written_whole(writer.targets, overwrite=overwrite) as written,
        progress_bar(progress) as bar,
    ):
        task = bar.add_task("Exporting", total=dataset.count_rows())
        with contextlib.ExitStack() as stack:
            writer.begin(written, stack)
            for batch in read_batches(dataset, codecs.marks):
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
