"""What reads all rows of a table: verifying and exporting it."""

import os

from rqmoe_store.exports.report import ExportReport
from rqmoe_store.exports.run import FormatName, export
from rqmoe_store.store import databases
from rqmoe_store.store.table import StoredTable
from rqmoe_store.verification.report import VerifyReport
from rqmoe_store.verification.run import verify


class TableContents(StoredTable):
    """A table that can be verified, and written to files."""

    def verify(self, *, progress: bool = True) -> VerifyReport:
        """Read the whole table, as it is now or is checked out, and tell what is wrong with it.

        Looked at are marks, codecs, every column of every row, codes and a sample of what they decode to, row
        ids, the key, indexes and files; nothing is changed, and memory is bounded. `print(report)` says it in
        words, `report.ok` whether there are no problems. For a table that is too damaged to be opened there
        are `rqmoe verify DB TABLE` and `rqmoe_store.verification.run.verify(db, name)`.

        Args:
            progress: show a progress bar.
        """
        database, branch = databases.database_of(self.table), self.table.current_branch()
        return verify(database, self.name, branch=branch, version=self.checked_out, progress=progress)

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: FormatName = "parquet",
        overwrite: bool = False,
        progress: bool = True,
    ) -> ExportReport:
        """Write all rows, as they are now or are checked out, to files that others can read.

        Vectors are written as float32: raw ones where a row has one, as it was added, and decoded ones
        elsewhere (of unit length under cosine). Memory is bounded. Files are written under another name and
        moved to `path` when they are complete; after an error, or Ctrl-C, nothing is left of them.

        - "parquet": the user's columns and the vectors, in one file if `path` ends in ".parquet" and
          otherwise in a folder of files; rows without a vector have a null.
        - "npy": the vectors of all rows that have one, as an array (n, dim), in `path`, which ends in ".npy";
          the user's columns of these rows, in the same order, are beside it in a Parquet file of that name.
        - "codes": a folder that makes do without this table, and without LanceDB. In its folder `rows` are
          Parquet files of the user's columns, `vector_code`, `vector_partition` and `vector_codec` (after the
          name of the vector column), and `vector` if any row has a raw one. `vector_codec` names the folder,
          beside `rows`, of the codec of a row; partition ids are those of that codec:

              rows = pyarrow.parquet.read_table("out/rows").to_pandas()
              for folder, some in rows.groupby("vector_codec"):
                  codes = numpy.stack([numpy.frombuffer(code, "uint8") for code in some["vector_code"]])
                  partitions = some["vector_partition"].to_numpy("int32")
                  codec = rqmoe_store.load_codec(f"out/{folder}")
                  vectors = codec.decode(rqmoe_store.Codes(codes, partitions))

        Args:
            path: on this machine; the folder it is in must exist.
            format: "parquet", "npy" or "codes".
            overwrite: replace files that are there, or a folder that was exported before.
            progress: show a progress bar.

        Raises:
            InvalidInputError: an unknown format, a path that does not fit it, exists or has no folder; a raw
                vector with NaN or infinite values; a column that Parquet cannot hold.
            TableError: codes that no codec of the table has, of which `verify` says more.
            ArtefactError: a codec is missing or damaged.
            StorageError: the disk refuses a write.
        """
        snapshot = self.snapshots.current()
        return export(
            snapshot.dataset,
            snapshot.codecs,
            path,
            format=format,
            overwrite=overwrite,
            progress=progress,
        )
