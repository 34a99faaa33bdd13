"""What every group of a table's methods works with."""

import pyarrow as pa
from lancedb.table import LanceTable

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import Metric
from rqmoe_store.errors import TableError
from rqmoe_store.storage_errors import TranslatesErrors
from rqmoe_store.store.columns import CodeColumns, KeptVectors, user_schema
from rqmoe_store.store.conditions import Conditions
from rqmoe_store.store.embeddings import TableEmbedding
from rqmoe_store.store.health import DriftWatch
from rqmoe_store.store.keys import key_of
from rqmoe_store.store.lance import follow, to_newest
from rqmoe_store.store.metadata import without_ours
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.snapshot import Snapshot, Snapshots, snapshots_of
from rqmoe_store.store.table_codec import TableCodec


class OpenTable(TranslatesErrors):
    """A table, its columns and its codecs; methods come in groups, each a class that derives from it."""

    def __init__(self, table: LanceTable, codecs: TableCodec) -> None:
        """Wrap `table`; use `StoredTable.open` or `compress` instead of calling this.

        Args:
            table: one that this package made.
            codecs: those that its marks name.

        Raises:
            TableError: a column is missing or of another type than the marks say.
        """
        self.columns = CodeColumns(codecs.metadata.vector_column)
        """Names of the code and partition columns."""
        self.columns.require_in(table.schema, code_bytes=codecs.code_bytes)
        self.kept = KeptVectors(
            column=codecs.metadata.vector_column, keep=codecs.metadata.keep_vectors, dim=codecs.dim
        )
        """Whether the table keeps its raw vectors, and how."""
        self.kept.require_in(table.schema, table.name)
        self.conditions = Conditions(self.columns, self.kept.kept)
        """Reads the conditions and expressions that users write over the table."""
        self.table = table
        """The LanceDB table. Rows written through it directly need their own codes; check versions out by
        `checkout`, not through it. Read directly, it is at the version it was brought to last."""
        self.checked_out: int | None = None
        """The version that everything is read from; None for the newest one."""
        self.snapshots = self._followed(snapshots_of(table, codecs))
        """The version that everything is read from."""
        self._marks = codecs.metadata
        self._watch = DriftWatch()
        self.embedding = TableEmbedding.read(table.schema.metadata, codecs.dim, codecs.metric, table.name)
        """The LanceDB embedding function its vectors come from; None when there is none."""

    def _followed(self, snapshots: Snapshots) -> Snapshots:
        """What to read from, and to tell of what is written through this handle."""
        follow(self.table, snapshots.freshness)
        return snapshots

    @property
    def codecs(self) -> TableCodec:
        """The codecs of all generations of rows."""
        return self.snapshots.current().codecs

    @property
    def codec(self) -> Codec:
        """The newest codec: encodes the vectors that are added.

        Raises:
            TableError: the table has none yet.
        """
        return self._codec_of(self.snapshots.current())

    def _codec_of(self, snapshot: Snapshot) -> Codec:
        if snapshot.codecs.newest is None:
            raise TableError(
                f"Table {self.name!r} has no codec yet: its {snapshot.rows} rows are kept raw. "
                "Train one with train()."
            )
        return snapshot.codecs.newest

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return self._marks.dim

    @property
    def metric(self) -> Metric:
        """The distance that the table is searched by."""
        return self._marks.config.metric

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.table.name

    @property
    def version(self) -> int:
        """Version of the table that everything is read from; grows with every change."""
        return self.snapshots.current().version

    @property
    def schema(self) -> pa.Schema:
        """The user's columns: the table's schema without codes, partitions and our metadata.

        The vector column is among them, as the last, where the table keeps raw vectors.
        """
        return self._users_of(self.snapshots.current().schema)

    def _users_of(self, schema: pa.Schema) -> pa.Schema:
        """The user's columns of a version with this schema."""
        return without_ours(user_schema(schema, without=self.hidden_columns))

    @property
    def hidden_columns(self) -> tuple[str, ...]:
        """Columns that results leave out unless they are named: codes, partitions, and raw vectors where
        rows keep them only until they are encoded."""
        return self.columns.names if self.kept.kept else (*self.columns.names, self.columns.vector_column)

    @property
    def key(self) -> str | None:
        """The column that tells rows apart, if it was said which does; see `merge_insert`."""
        return key_of(self.snapshots.current().schema)

    def refresh(self) -> Snapshot:
        """Bring this handle to the newest version of the table now, which writing does as well.

        Without it, reads look for the newest version themselves, but for a `read_consistency_interval`.

        Returns:
            That version.

        Raises:
            TableError: an earlier version is checked out; the table was dropped, or made again as one that
                cannot take its place.
            ArtifactError: as `open`.
        """
        if self.checked_out is not None:
            raise TableError(
                f"Table {self.name!r} is checked out at version {self.checked_out}, which cannot be changed. "
                "Call checkout_latest() to go on with the newest version, or restore() to make this one it."
            )
        self.snapshots.freshness.expire()
        snapshot = self.snapshots.current()
        to_newest(self.table)
        return snapshot

    def _encoder(self, encode: bool | None = None) -> RowEncoder:
        """What makes rows ready to be written to the newest version, which the handle is brought to.

        Args:
            encode: None to encode if the table has a codec.

        Raises as `refresh`, and TableError if there is nothing to encode with.
        """
        snapshot = self.refresh()
        if encode is None:
            encode = snapshot.codecs.newest is not None
        if encode:
            _ = self._codec_of(snapshot)  # raises when there is none
        return RowEncoder(snapshot.schema, snapshot.codecs, table_name=self.name, encode=encode)
