"""What the blocking and the awaited methods of a document store share: its settings and its table."""

import dataclasses
import threading
from typing import Any, Self

from haystack import default_from_dict, default_to_dict
from haystack.document_stores.errors import DocumentStoreError
from haystack.utils import Secret
from haystack_integrations.document_stores.rqmoe._rows import dimension_of, rows_of
from haystack_integrations.document_stores.rqmoe._table import DocumentTable, StorageOptions
from haystack_integrations.document_stores.rqmoe._work import Batch

import rqmoe_store as rqs


class DocumentStoreBase:
    """Settings of a document store, which can be written down and read again, and its table."""

    def __init__(
        self,
        database: str,
        table_name: str = "documents",
        *,
        embedding_dims: int | None = None,
        config: rqs.CodecConfig | None = None,
        training: rqs.TrainConfig | None = None,
        train_from: int | None = 10_000,
        return_embedding: bool = True,
        progress_bar: bool = True,
        storage_options: StorageOptions | None = None,
    ) -> None:
        """Describe a document store. Nothing is opened or made before it is first used.

        Args:
            database: folder of a LanceDB database, or a bucket such as "s3://bucket/folder".
            table_name: the table of the documents.
            embedding_dims: components of an embedding; None for as many as the first embedding written has.
                Without it the first documents cannot all be without embeddings.
            config: of the codec that embeddings will be encoded by, for a new table; None for the defaults,
                with the metric "cosine".
            training: how the codec is trained; None for the defaults.
            train_from: embeddings from which on a codec is trained, by the call that writes the last of them;
                None for never. Until then embeddings are kept as they are, and searched exactly.
            return_embedding: whether `filter_documents` returns embeddings: those written, in single
                precision, or what their codes decode to.
            progress_bar: whether training and encoding show progress bars.
            storage_options: of a bucket, as LanceDB has them; keys and tokens as a Secret from an environment
                variable, so that they are not written down with a pipeline.

        Raises:
            DocumentStoreError: a setting of another kind, or too small a `train_from`.
        """
        self.database = str(database)
        self.table_name = table_name
        self.embedding_dims = _whole("embedding_dims", embedding_dims)
        self.config = _of_kind("config", config, rqs.CodecConfig)
        self.training = _of_kind("training", training, rqs.TrainConfig)
        self.train_from = _whole("train_from", train_from)
        _require_trainable(self.train_from, self.config)
        self.return_embedding = return_embedding
        self.progress_bar = progress_bar
        self.storage_options = storage_options
        self._training_lock = threading.Lock()
        self._table = DocumentTable(self.database, table_name, storage_options, embedding_dims, config)

    @property
    def table(self) -> rqs.CompressedTable | None:
        """The table of the documents, for everything else that can be done with it: `tune`, `retrain`,
        `health`, `optimize`, ... None until documents were written."""
        return self._table.opened()

    def to_dict(self) -> dict[str, Any]:
        """The settings, as `from_dict` reads them."""
        options = self.storage_options
        return default_to_dict(
            self,
            database=self.database,
            table_name=self.table_name,
            embedding_dims=self.embedding_dims,
            config=None if self.config is None else dataclasses.asdict(self.config),
            training=None if self.training is None else dataclasses.asdict(self.training),
            train_from=self.train_from,
            return_embedding=self.return_embedding,
            progress_bar=self.progress_bar,
            storage_options=None if options is None else {name: _written(options[name]) for name in options},
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """A store with the settings that `to_dict` wrote.

        Raises:
            DeserializationError: `data` is of another class.
            InvalidInputError: settings of a codec or its training that there are not.
        """
        settings = dict(data.get("init_parameters", {}))
        for name, kind in (("config", rqs.CodecConfig), ("training", rqs.TrainConfig)):
            if settings.get(name) is not None:
                settings[name] = kind(**settings[name])
        if settings.get("storage_options") is not None:
            options = settings["storage_options"]
            settings["storage_options"] = {name: _read(options[name]) for name in options}
        return default_from_dict(cls, {**data, "init_parameters": settings})

    def _made_for(self, batch: Batch) -> tuple[rqs.CompressedTable, Any]:
        """The table, and the rows of documents to be written to it; it is not made before they are known to
        be good."""
        dim = self._table.dim_for(dimension_of(batch.documents))
        rows = rows_of(batch.documents, dim, self._table.metric)
        return self._table.made(dim), rows

    def _train_when_due(self, table: rqs.CompressedTable) -> None:
        """Give the table its first codec when it has enough embeddings, once, whoever else is writing to the
        store."""
        if table.is_due_for_training(self.train_from):
            with self._training_lock:
                if table.is_due_for_training(self.train_from):
                    table.optimize(
                        training=self.training, train_from=self.train_from, progress=self.progress_bar
                    )


def _written(option: str | Secret) -> Any:
    return option.to_dict() if isinstance(option, Secret) else option


def _read(option: Any) -> str | Secret:
    return Secret.from_dict(option) if isinstance(option, dict) else str(option)


def _whole(name: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise DocumentStoreError(f"Got {name}={value!r}; expected a whole number from 1 on, or None.")
    return value


def _require_trainable(train_from: int | None, config: rqs.CodecConfig | None) -> None:
    least = (rqs.CodecConfig() if config is None else config).least_training_rows
    if train_from is not None and train_from < least:
        raise DocumentStoreError(
            f"Got train_from={train_from}; expected {least} or more, for so many embeddings are needed to "
            "train a codec of this config, or None for no training."
        )


def _of_kind(name: str, value: Any, kind: type) -> Any:
    if value is not None and not isinstance(value, kind):
        raise DocumentStoreError(f"Got {name}={value!r}; expected a rqmoe_store.{kind.__name__}, or None.")
    return value
