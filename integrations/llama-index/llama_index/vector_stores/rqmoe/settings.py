"""Settings of a store: the fields that are serialized, and the table that they name."""

from collections.abc import Mapping
from typing import Any, Self, cast

import lancedb
from lancedb.db import DBConnection, LanceDBConnection
from lancedb.rerankers import Reranker
from lancedb.table import LanceTable
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQuery
from llama_index.vector_stores.rqmoe.columns import ID, NodeColumns
from llama_index.vector_stores.rqmoe.options import require_known
from llama_index.vector_stores.rqmoe.queries import NodeSearch, SearchSettings

from rqmoe_store import (
    CodecConfig,
    CompressedTable,
    InvalidInputError,
    ManagedTable,
    TableNotFoundError,
    TrainConfig,
)


class StoreSettings(BasePydanticVectorStore):
    """The fields of a store, which `to_dict` and `from_dict` write and read, and its table."""

    stores_text: bool = True
    flat_metadata: bool = False
    uri: str | None = None
    """The database: a folder or bucket."""
    table_name: str = "vectors"
    storage_options: dict[str, str] | None = Field(default=None, exclude=True, repr=False)
    """LanceDB's options for a bucket. They may hold secrets, and so `to_dict` leaves them out."""
    text_key: str = "text"
    """The column of texts."""
    doc_id_key: str = "doc_id"
    """The column of the ids of documents."""
    vector_column_name: str = "vector"
    """The column of embeddings."""
    config: CodecConfig | None = None
    """The codec to train, metric and code size among it; None for the defaults with metric "cosine"."""
    training: TrainConfig | None = None
    """How to train it; None for the defaults."""
    train_from: int | None = Field(default=10_000, ge=1)
    """Nodes from which a codec is trained, by the `add` that reaches them; None for never."""
    nprobes: int | None = Field(default=None, ge=1)
    """Partitions to search; None for the table's own default."""
    shortlist: int | None = Field(default=None, ge=1)
    """Nodes decoded and ordered by exact distance; None for the table's own default."""
    show_progress: bool = False
    """Whether an `add` that trains shows progress bars."""

    _nodes: ManagedTable = PrivateAttr()
    _columns: NodeColumns = PrivateAttr()
    _reranker: Reranker | None = PrivateAttr()

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    def __init__(
        self,
        uri: str | None = None,
        table_name: str = "vectors",
        *,
        connection: DBConnection | None = None,
        table: CompressedTable | None = None,
        reranker: Reranker | None = None,
        **settings: Any,
    ) -> None:
        """Name the table; it is opened now if it exists.

        Args:
            uri: the database. One of `uri`, `connection` and `table` is needed; the last of them is used.
            table_name: the table.
            connection: an open database on disk, instead of `uri`.
            table: an open table, instead of the names of database and table.
            reranker: orders the results of mode "hybrid"; None for LanceDB's reciprocal ranks, weighted by
                `alpha` in queries that have it.
            settings: any other field of this class.

        Raises:
            InvalidInputError: none of the three, or one of another type.
            ValueError: an unknown setting, or a value out of range (pydantic's).
            TableError: the table does not hold nodes, or has another metric or code size than `config`.
            ArtifactError: its codec is missing or damaged.
        """
        if table is not None:
            connection, table_name = _database_of(table), table.name
        database = _connect(uri, connection, settings.get("storage_options"))
        fields = {**settings, "uri": database.uri, "table_name": table_name}
        super().__init__(**fields)
        if reranker is not None and not isinstance(reranker, Reranker):
            raise InvalidInputError(f"Got {reranker!r} as reranker; expected one of lancedb.rerankers.")
        self._reranker = reranker
        columns = NodeColumns(text=self.text_key, document=self.doc_id_key, vector=self.vector_column_name)
        self._columns = columns
        self._nodes = ManagedTable(
            database,
            table_name,
            columns=columns.without_vector,
            key=ID,
            vector_column=columns.vector,
            text_column=columns.text,
            config=self.config,
            training=self.training,
            train_from=self.train_from,
            progress=self.show_progress,
            table=table,
            row_name="node",
            column_settings=["text_key", "doc_id_key", "vector_column_name"],
        )
        self._nodes.open()  # so that a wrong table is refused now

    @classmethod
    def class_name(cls) -> str:
        """Class name."""
        return "RQMoEVectorStore"

    @classmethod
    def from_params(cls, uri: str | None = None, table_name: str = "vectors", **settings: Any) -> Self:
        """A store of the table `table_name` in the database at `uri`; takes what the constructor takes."""
        return cls(uri, table_name, **settings)

    @classmethod
    def from_table(cls, table: CompressedTable, **settings: Any) -> Self:
        """A store of an open table; `settings` are what else the constructor takes."""
        return cls(table=table, **settings)

    @property
    def client(self) -> LanceDBConnection:
        """The connection to the database."""
        return cast(LanceDBConnection, self._nodes.connection)

    @property
    def table(self) -> CompressedTable:
        """The table, for everything else: `optimize`, `stats`, `health`, `tune`, `retrain`, ...

        Raises:
            TableNotFoundError: there is none yet.
        """
        table = self._nodes.open()
        if table is None:
            raise TableNotFoundError(f"There is no table {self.table_name!r} yet; the first add creates it.")
        return table

    def _search(self, query: VectorStoreQuery, options: Mapping[str, Any]) -> NodeSearch:
        require_known(options, "query", ["mmr_threshold", "mmr_method", "nprobes", "shortlist", "where"])
        settings = SearchSettings(
            nprobes=options.get("nprobes", self.nprobes),
            shortlist=options.get("shortlist", self.shortlist),
            reranker=self._reranker,
            where=options.get("where"),
        )
        threshold = options.get("mmr_threshold", query.mmr_threshold)
        return NodeSearch(query, self._columns, settings, threshold, options.get("mmr_method", "mmr"))


def _connect(
    uri: str | None, connection: DBConnection | None, storage_options: dict[str, str] | None
) -> LanceDBConnection:
    """The connection that was given, or one to the database at `uri`.

    Raises:
        InvalidInputError: neither of them, or something else.
    """
    if connection is None and uri is None:
        raise InvalidInputError(
            "Got neither uri, connection nor table; expected one of them, such as uri='./data'."
        )
    if connection is None:
        connection = lancedb.connect(cast(str, uri), storage_options=storage_options)
    if not isinstance(connection, LanceDBConnection):
        raise InvalidInputError(
            f"Got {connection!r} as the database; expected one in a folder or bucket, as opened by "
            "lancedb.connect(<folder or bucket>)."
        )
    return connection


def _database_of(table: CompressedTable) -> LanceDBConnection:
    """A connection to the database of a table. Raises InvalidInputError for another kind of table."""
    if not isinstance(table, CompressedTable):
        raise InvalidInputError(
            f"Got {type(table).__name__} as the table; expected a CompressedTable, as opened by "
            "rqmoe_store.open_table(<database>, <name>)."
        )
    stored: LanceTable = table.table
    uri, options = stored.uri.rpartition("/")[0], stored.initial_storage_options()
    return cast(LanceDBConnection, lancedb.connect(uri, storage_options=options))
