"""Lifecycle of a table: training its first codec, retraining, encoding raw rows, and optimizing.

Shape suffixes: n sampled rows, D vector dimension.
"""

import dataclasses
import datetime
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.table import LanceTable

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError, TableError, warn_caller
from rqmoe_store.progress import progress_bar
from rqmoe_store.store import databases, health, ingest_log, registry
from rqmoe_store.store.columns import Vectors
from rqmoe_store.store.databases import remove_old_versions
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.lance import commit_schema, on_newest, retry_on_conflict, take_rows, to_newest
from rqmoe_store.store.metadata import GenerationMetadata, MultiVector, TableMetadata
from rqmoe_store.store.multivector import ENCODINGS_FITTED, as_lists, encodings_of, left_over, row_means
from rqmoe_store.store.neighbor_graph import GraphReport, has_graph, remove_old_graphs
from rqmoe_store.store.ragged import Ragged
from rqmoe_store.store.reencoding import BackgroundEncoding, Reencoded, reencode_table, stale_filter
from rqmoe_store.store.registry import RemovedCodecs, remove_unused
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.sql import quoted
from rqmoe_store.store.statistics import disk_bytes, readable
from rqmoe_store.store.table_codec import TableCodec, generation_metadata, require_token_match
from rqmoe_store.store.vector_lists import ROWS_PER_BATCH

ROWS_TO_TRAIN = 10_000
"""Raw rows from which `optimize` trains the first codec of a table."""


Encode = bool | Literal["background"]
"""Whether a training encodes the rows that are there before it returns, in the background, or not at all."""

StartOfTraining = Codec | Literal["auto"] | None
"""What a training starts from: a codec, the table's own if it is of the right shape, or new codebooks."""

_NEVER = datetime.timedelta(days=36_500)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizeReport:
    """What `optimize` did; prints as a few lines."""

    trained: bool
    """Whether the table got its first codec."""
    encoded: Reencoded
    """Rows that were encoded, and the error of a sample, read back before their vectors were dropped."""
    raw_rows: int
    """Rows that are still raw."""
    bytes_before: int
    """Bytes of the table on disk before, older versions included."""
    bytes_after: int
    """The same afterwards."""
    removed: RemovedCodecs
    """Codecs that nothing in the database needed any more."""
    graph: GraphReport | None = None
    """What bringing the neighbor graph up to date did; None in a table without one."""

    def __str__(self) -> str:
        error = "" if self.encoded.mse is None else f", mean squared error {self.encoded.mse:.4g}"
        lines = [
            f"encoded {self.encoded.rows:,} rows{error}" + (" by a new codec" if self.trained else ""),
            f"{self.raw_rows:,} rows are raw",
            f"{readable(self.bytes_before)} on disk before, {readable(self.bytes_after)} now",
        ]
        if self.graph is not None:
            lines.append(f"neighbor graph: {self.graph}")
        if self.removed.codecs:
            size = readable(self.removed.bytes)
            lines.append(f"removed {self.removed.codecs} codecs that nothing needs any more, {size}")
        if self.removed.kept_because is not None:
            lines.append(f"kept all codecs, for {self.removed.kept_because}")
        return "\n".join(lines)


def train(
    handle: Handle, training: TrainConfig | None, *, vectors: Any, encode: Encode, progress: bool
) -> Codec:
    """See `CompressedTable.train`."""
    handle.refresh()
    if handle.codecs.newest is not None:
        raise TableError(f"Table {handle.name!r} has a codec already; give it another one with retrain().")
    _require_encode(encode)
    config = handle.codecs.metadata.vector_config
    trained = _train_codecs(handle, training, vectors, config, progress)
    if not add_generation(handle, trained.codec, config, first=True, token_codec=trained.token_codec):
        raise TableError(
            f"Table {handle.name!r} was given a codec by another process while this one was trained. That "
            "one stays, and nothing was written; go on with optimize(), or replace it with retrain()."
        )
    _encode(handle, encode, progress)
    return trained.of_vectors


def retrain(
    handle: Handle,
    training: TrainConfig | None,
    *,
    vectors: Any,
    config: CodecConfig | None,
    encode: Encode,
    start: StartOfTraining,
    progress: bool,
) -> Codec:
    """See `CompressedTable.retrain`."""
    handle.refresh()
    config = handle.codecs.metadata.vector_config if config is None else config
    if handle.codecs.metadata.multi_vector is not None:
        config = config.without_partitions()
    lost = handle.table.count_rows(handle.columns.decoded_filter)
    if lost:
        warn_caller(
            f"{lost:,} rows of table {handle.name!r} have codes only: they are decoded by the old codec "
            "and encoded by the new one, which adds its own error to what the old one lost."
        )
    _require_encode(encode)
    trained = _train_codecs(handle, training, vectors, config, progress, start=start)
    add_generation(handle, trained.codec, config, first=False, token_codec=trained.token_codec)
    _encode(handle, encode, progress)
    return trained.of_vectors


def encode_in_background(handle: Handle) -> BackgroundEncoding:
    """See `CompressedTable.encode_in_background`."""
    handle.refresh()
    if handle.encoding is None or not handle.encoding.request_another_pass():
        handle.encoding = BackgroundEncoding(handle.table, handle.codecs)
    return handle.encoding


def optimize(
    handle: Handle,
    *,
    training: TrainConfig | None,
    train_from: int | None,
    cleanup_older_than: datetime.timedelta | None,
    codecs_older_than: datetime.timedelta,
    update_graph: Callable[[], GraphReport],
    progress: bool,
) -> OptimizeReport:
    """See `CompressedTable.optimize`.

    `update_graph` brings the neighbor graph up to date; it is called if the table has one, and a codec.
    """
    handle.refresh()
    before = disk_bytes(handle.table)
    if handle.encoding is not None:
        handle.encoding.stop()
    trained = is_due_for_training(handle, train_from)
    if trained:
        config = handle.codecs.metadata.vector_config
        codecs = _train_codecs(handle, training, None, config, progress)
        # If others were quicker, theirs is used.
        trained = add_generation(handle, codecs.codec, config, first=True, token_codec=codecs.token_codec)
    encoded = _reencode(handle, progress)
    newest = handle.newest()
    graph = update_graph() if has_graph(newest.dataset, handle.name) and newest.codecs.newest else None
    tidy(handle.table, handle.codecs, cleanup_older_than)
    remove_old_graphs(handle.table, cleanup_older_than)
    handle.refresh()
    removed = remove_unused(databases.database_of(handle.table), codecs_older_than)
    return OptimizeReport(
        trained=trained,
        encoded=encoded,
        raw_rows=handle.table.count_rows(handle.columns.raw_filter),
        bytes_before=before,
        bytes_after=disk_bytes(handle.table),
        removed=removed,
        graph=graph,
    )


def is_due_for_training(handle: Handle, train_from: int | None) -> bool:
    """Whether `optimize(train_from=train_from)` would train a first codec."""

    def is_due(snapshot: Snapshot) -> bool:
        if train_from is None or snapshot.codecs.newest is not None:
            return False
        rows = max(train_from, snapshot.codecs.metadata.vector_config.least_training_rows)
        # The number of all rows is known without reading any.
        return snapshot.rows >= rows and snapshot.dataset.count_rows(handle.columns.raw_filter) >= rows

    return handle.snapshots.read(is_due)


class TrainedCodecs(NamedTuple):
    """The codecs of a new generation."""

    codec: Codec
    """That of what scans score: vectors, or fixed dimensional encodings."""
    token_codec: Codec | None = None
    """That of the vectors where rows have many; None where they have one."""

    @property
    def of_vectors(self) -> Codec:
        """The codec of the user's vectors."""
        return self.codec if self.token_codec is None else self.token_codec


def _train_codecs(
    handle: Handle,
    training: TrainConfig | None,
    vectors: Any,
    config: CodecConfig,
    progress: bool,
    start: StartOfTraining = None,
) -> TrainedCodecs:
    """Train the codecs of a generation on `vectors`, or on a sample of the table's own; the table does not
    use them yet.

    Raises as `_require_columns`, and for a start of another shape, before it trains.
    """
    # Imported here, since tables are opened and searched without torch.
    from rqmoe_store.training.encodings import fit_encoding_codec
    from rqmoe_store.training.sampler import draw_sample
    from rqmoe_store.training.warm_start import starting_config

    _require_columns(handle, handle.codecs.metadata.column_refine_bytes(config))
    if isinstance(start, str) and start != "auto":
        raise InvalidInputError(f"Got start={start!r}; expected a codec, 'auto' or None.")
    metadata, many = handle.codecs.metadata, handle.codecs.metadata.multi_vector
    if many is not None:
        config = _token_config(config, many, handle.name)
    if not isinstance(start, str):
        starting_config(start, config, metadata.encodes)
    training = TrainConfig(progress=progress) if training is None else training
    decoded = isinstance(vectors, str) and vectors == "decoded"
    stored = StoredVectors(handle, decoded=decoded) if vectors is None or decoded else None
    if many is None:
        if stored is not None:
            vectors = draw_sample(stored, max_rows=training.max_rows, seed=training.seed)
        return TrainedCodecs(_train_codec(handle, training, vectors, config, start))
    if stored is not None:
        lists = draw_lists(stored, max_vectors=training.max_rows, seed=training.seed)
    else:
        lists = as_lists(vectors, many)
    encodings_nD = encodings_of(lists[:ENCODINGS_FITTED], many)
    codec = fit_encoding_codec(encodings_nD, metadata.config, training.seed)
    vectors_TD = _left_over(lists, many, codec, encodings_nD)
    order = np.random.default_rng(training.seed).permutation(len(vectors_TD))[: training.max_rows]
    return TrainedCodecs(codec, _train_codec(handle, training, vectors_TD[order], config, start))


def _token_config(config: CodecConfig, many: MultiVector, table_name: str) -> CodecConfig:
    """The configuration of a codec of vectors where rows have many, given that which was asked for."""
    if config.metric != many.config.metric:
        raise InvalidInputError(
            f"Got a config of metric {config.metric!r} for table {table_name!r}; expected "
            f"{many.config.metric!r}, as a table keeps its metric. Make a new one for another."
        )
    return dataclasses.replace(config, metric=many.token_metric)


def _left_over(lists: Ragged, many: MultiVector, codec: Codec, first_nD: Float32Array) -> Float32Array:
    """What the codec of vectors is to encode of rows (T, D).

    Args:
        lists: the vectors of rows.
        many: how rows have many vectors.
        codec: the codec of their encodings.
        first_nD: the encodings of the first rows, `ENCODINGS_FITTED` of them if there are as many.
    """
    parts = []
    for start in range(0, len(lists), ENCODINGS_FITTED):
        some = lists[start : start + ENCODINGS_FITTED]
        means = None
        if many.encoding.subtract_mean:
            encodings_nD = first_nD if start == 0 else encodings_of(some, many)
            means = row_means(codec.encode(encodings_nD), many, codec)
        parts.append(left_over(some, means, many))
    return np.concatenate(parts)


def _train_codec(
    handle: Handle, training: TrainConfig, vectors: Any, config: CodecConfig, start: StartOfTraining
) -> Codec:
    """Train a codec of the user's vectors (n, D)."""
    from rqmoe_store.training.trainer import train as train_codec
    from rqmoe_store.training.trainer import train_on_residuals
    from rqmoe_store.training.warm_start import can_start_from

    encodes = handle.codecs.metadata.encodes
    checked = as_vectors(vectors, dim=handle.dim, metric=config.metric)
    if isinstance(start, str):
        own = handle.codecs.newest
        start = own if own is not None and can_start_from(own, config, len(checked), encodes) else None
    if encodes == "vectors":
        return train_codec(checked, config=config, training=training, start=start)
    return train_on_residuals(checked, encodes, config=config, training=training, start=start)


class StoredVectors:
    """The vectors of a table, for `draw_sample`: the raw ones, or those that codes decode to."""

    def __init__(self, handle: Handle, *, decoded: bool) -> None:
        """Find the rows that have a raw vector, or a code.

        Args:
            handle: the table; its newest version is read.
            decoded: whether to decode codes, instead of reading raw vectors.

        Raises:
            TableError: there are no such rows.
        """
        self._columns, self._codecs, self._decoded = handle.columns, handle.codecs, decoded
        self._table = databases.reopen(handle.table)
        column = self._columns.code if decoded else self._columns.vector_column
        condition = f"{quoted(column)} IS NOT NULL"
        found = self._table.to_lance().scanner(columns=[], filter=condition, with_row_id=True).to_table()
        if found.num_rows == 0:
            raise TableError(
                f"Table {handle.name!r} has no {'codes to decode' if decoded else 'raw vectors'} to train "
                "on. Add rows, or pass vectors."
            )
        self._row_ids: npt.NDArray[np.uint64] = found["_rowid"].to_numpy()

    def __len__(self) -> int:
        return len(self._row_ids)

    def take(self, positions: npt.NDArray[np.int64]) -> Vectors:
        """The vectors of the rows at these positions: (n, D), or `Ragged` where rows have many."""
        row_ids, codecs = self._row_ids[positions], self._codecs
        if self._decoded:
            names = list(self._columns.names)
            taken = pa.table(take_rows(self._table, names, row_ids), names=names)
            return codecs.decode_rows(codecs.read(taken)[0])
        (column,) = take_rows(self._table, [self._columns.vector_column], row_ids)
        return codecs.metadata.kept.read(column, 0)[0]


def draw_lists(stored: StoredVectors, *, max_vectors: int, seed: int) -> Ragged:
    """The vectors of rows drawn at random, until there are at least `max_vectors` or no more rows."""
    order = np.random.default_rng(seed).permutation(len(stored))
    parts: list[Ragged] = []
    count = 0
    for start in range(0, len(order), ROWS_PER_BATCH):
        parts.append(stored.take(np.sort(order[start : start + ROWS_PER_BATCH])))
        count += len(parts[-1].values)
        if count >= max_vectors:
            break
    return Ragged.joined(parts)


def add_generation(
    handle: Handle, codec: Codec, config: CodecConfig, *, first: bool, token_codec: Codec | None = None
) -> bool:
    """Make `codec` the newest codec of a table, which encodes from the next commit on; no row is encoded yet.

    Args:
        handle: the table; it is at the newest version afterwards.
        codec: has the table's dimension, metric and code bytes.
        config: the config that was asked for, without what training decides by the rows.
        first: whether to leave the table unchanged if it has a codec, which another process may have given
            it in the meantime: rows that are encoded twice lose twice.
        token_codec: codec of the vectors where rows have many; `codec` is then that of their encodings.

    Returns:
        Whether it is the newest codec now.

    Raises:
        InvalidInputError: the codec has another dimension, metric or code bytes, or refine codes of another
            size than those that the table has a column for.
        TableError: the user has a column named as that of refine codes.
    """
    database = databases.database_of(handle.table)
    _require_fit(codec, handle.codecs, handle.name)
    if token_codec is not None:
        require_token_match(token_codec, handle.codecs.metadata)
        registry.save(database, token_codec)
    _require_columns(handle, codec.config.refine_bytes)
    registry.save(database, codec)  # before a table names it
    added = _commit_generation(handle.table, generation_metadata(codec, token_codec), config, first=first)
    handle.refresh()
    return added


def _require_columns(handle: Handle, refine_bytes: int) -> None:
    """Raise unless the table has, or can get, the columns for a codec with refine codes of this size.

    Raises:
        InvalidInputError: it has a column for refine codes of another size.
        TableError: the user has a column of that name.
    """
    metadata = handle.codecs.metadata
    columns = metadata.columns_with(refine_bytes)
    if columns != metadata.columns:
        columns.require_absent_from(handle.table.schema, [columns.refine])


def _commit_generation(
    table: LanceTable, newest_codec: GenerationMetadata, config: CodecConfig, *, first: bool
) -> bool:
    def commit() -> bool:
        newest = databases.reopen(table)
        metadata = TableMetadata.read(newest.schema, table.name)
        if metadata.generations and (first or metadata.generations[-1] == newest_codec):
            return metadata.generations[-1] == newest_codec
        changed = metadata.with_generation(newest_codec, config)
        if changed.columns == metadata.columns:
            newest.to_lance().update_schema_metadata({**_as_text(changed)})
        else:
            changed.columns.require_absent_from(newest.schema, [changed.columns.refine])
            commit_schema(newest.to_lance(), _as_text(changed), added=changed.columns.refine_field)
        return True

    return retry_on_conflict(commit)


def _drop_unused_refine_column(table: LanceTable) -> None:
    """Drop the column of refine codes if neither the newest codec nor any row has any."""

    def drop() -> None:
        newest = databases.reopen(table)
        metadata = TableMetadata.read(newest.schema, newest.name)
        name = metadata.columns.refine
        if not metadata.refine_bytes or metadata.config.refine_bytes:
            return
        if newest.count_rows(f"{quoted(name)} IS NOT NULL") == 0:
            without = dataclasses.replace(metadata, refine_bytes=0)
            commit_schema(newest.to_lance(), _as_text(without), dropped=name)

    retry_on_conflict(drop)


def _as_text(metadata: TableMetadata) -> dict[str, str]:
    """The metadata as Lance takes it."""
    return {key.decode(): value.decode() for key, value in metadata.write(None).items()}


def _require_fit(codec: Codec, known: TableCodec, table_name: str) -> None:
    expected = {"dim": known.dim, "metric": known.metric, "code_bytes": known.code_bytes}
    found = {"dim": codec.dim, "metric": codec.config.metric, "code_bytes": codec.config.code_bytes}
    for name, value in expected.items():
        if found[name] != value:
            raise InvalidInputError(
                f"Got a codec of {name} {found[name]!r} for table {table_name!r}; expected {name} {value!r}, "
                "which a table has for good. Compress it into a new table to change that."
            )


def _encode(handle: Handle, encode: Encode, progress: bool) -> None:
    if encode == "background":
        encode_in_background(handle)
    elif encode:
        _reencode(handle, progress)


def _reencode(handle: Handle, progress: bool) -> Reencoded:
    handle.refresh()
    if handle.codecs.newest is None:
        return Reencoded()
    with progress_bar(progress) as bar:
        rows = handle.table.count_rows(stale_filter(handle.columns, handle.codecs))
        task = bar.add_task("Encoding", total=rows)
        done = reencode_table(handle.table, handle.codecs, lambda count: bar.advance(task, count))
    handle.refresh()
    return done


def _require_encode(encode: object) -> None:
    if not (isinstance(encode, bool) or encode == "background"):
        raise InvalidInputError(f"Got encode={encode!r}; expected True, False or 'background'.")


def tidy(table: LanceTable, codecs: TableCodec, older_than: datetime.timedelta | None) -> None:
    """Merge small files, update indexes and remove old versions.

    Notes that commits carry are copied into the table's metadata before their versions are removed. Versions
    that have a tag or a branch stay.

    Args:
        table: any handle on the table; it is at the newest version afterwards.
        codecs: the codecs of its newest version.
        older_than: versions older than this are removed; None for 7 days.
    """
    # LanceDB's own clean-up fails if an old version has a tag.
    _drop_unused_refine_column(table)
    on_newest(table, lambda: table.optimize(cleanup_older_than=_NEVER))
    _keep_notes(table, codecs)  # after the commits of `optimize`, whose notes are needed, too
    remove_old_versions(table, older_than)
    to_newest(table)


def _keep_notes(table: LanceTable, codecs: TableCodec) -> None:
    """Copy the notes of commits on drift and ingestions into the table's metadata.

    Both in one commit: a second commit would be a version that the first does not count.
    """

    def write() -> None:
        dataset = databases.reopen(table).to_lance()
        notes: dict[str, str | None] = {**ingest_log.folded_notes(dataset, table.name)}
        if codecs.newest is not None:
            notes |= health.folded_drift(dataset, codecs)
        if notes:
            dataset.update_metadata(notes)

    retry_on_conflict(write)
