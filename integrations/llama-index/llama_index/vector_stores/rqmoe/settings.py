"""What a store is set to, the table it stands for, and how it is made of either."""

from collections.abc import Mapping
from typing import Any, Self

from lancedb.db import DBConnection, LanceDBConnection
from lancedb.rerankers import Reranker
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQuery
from llama_index.vector_stores.rqmoe.columns import NodeColumns
from llama_index.vector_stores.rqmoe.options import require_known
from llama_index.vector_stores.rqmoe.queries import NodeSearch, SearchSettings
from llama_index.vector_stores.rqmoe.tables import NodeTable, connected, database_of

from rqmoe_store import CodecConfig, CompressedTable, InvalidInputError, TableNotFoundError, TrainConfig


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
    """Nodes from which that is done, by the `add` that reaches them; None for never."""
    nprobes: int | None = Field(default=None, ge=1)
    """Partitions to search; None for the table's own default."""
    shortlist: int | None = Field(default=None, ge=1)
    """Nodes decoded and ordered by exact distance; None for the table's own default."""
    show_progress: bool = False
    """Whether an `add` that trains shows progress bars."""

    _nodes: NodeTable = PrivateAttr()
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
        """Say which table; one that is there is opened now.

        Args:
            uri: the database. One of `uri`, `connection` and `table` is needed; the last of them counts.
            table_name: the table.
            connection: an open database on disk, instead of `uri`.
            table: an open table, instead of the names of database and table.
            reranker: orders the results of mode "hybrid"; None for LanceDB's reciprocal ranks, weighted by
                `alpha` in queries that have it.
            settings: any other field of this class.

        Raises:
            InvalidInputError: none of the three, or not what they should be.
            ValueError: an unknown setting, or a value out of range (pydantic's).
            TableError: the table is another kind of table, or does not fit `config`.
            ArtifactError: its codec is missing or damaged.
        """
        if table is not None:
            connection, table_name = database_of(table), table.name
        database = connected(uri, connection, settings.get("storage_options"))
        fields = {**settings, "uri": database.uri, "table_name": table_name}
        super().__init__(**fields)
        if reranker is not None and not isinstance(reranker, Reranker):
            raise InvalidInputError(f"Got {reranker!r} as reranker; expected one of lancedb.rerankers.")
        self._reranker = reranker
        columns = NodeColumns(text=self.text_key, document=self.doc_id_key, vector=self.vector_column_name)
        self._nodes = NodeTable(database, table_name, columns, self.config, table)

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
        return self._nodes.connection

    @property
    def table(self) -> CompressedTable:
        """The table, for everything else: `optimize`, `stats`, `health`, `tune`, `retrain`, ...

        Raises:
            TableNotFoundError: there is none yet.
        """
        table = self._nodes.opened()
        if table is None:
            raise TableNotFoundError(f"There is no table {self.table_name!r} yet; the first add makes it.")
        return table

    def _train_if_due(self, table: CompressedTable, options: Mapping[str, Any]) -> None:
        """Train the first codec once there are enough nodes, unless another thread is doing so."""
        if table.is_due_for_training(self.train_from) and self._nodes.training.acquire(blocking=False):
            progress = bool(options.get("show_progress", self.show_progress))
            training = TrainConfig(progress=progress) if self.training is None else self.training
            try:
                table.optimize(train_from=self.train_from, training=training, progress=progress)
            finally:
                self._nodes.training.release()

    def _search(self, query: VectorStoreQuery, options: Mapping[str, Any]) -> NodeSearch:
        require_known(options, "query", ["mmr_threshold", "nprobes", "shortlist", "where"])
        settings = SearchSettings(
            nprobes=options.get("nprobes", self.nprobes),
            shortlist=options.get("shortlist", self.shortlist),
            reranker=self._reranker,
            where=options.get("where"),
        )
        threshold = options.get("mmr_threshold", query.mmr_threshold)
        return NodeSearch(query, self._nodes.columns, settings, threshold)
