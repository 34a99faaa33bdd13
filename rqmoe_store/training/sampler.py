"""Training vectors: a seeded sample in bounded memory, without outliers, drawn in batches.

Shape legend: n sampled vectors, B batch, D dimension, X mixtures.
"""

import hashlib
import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from rqmoe_store.codecs.device import upload
from rqmoe_store.codecs.frame import Float64Array
from rqmoe_store.codecs.parallel import use_storage
from rqmoe_store.codecs.vectors import Float32Array, as_vectors, is_dense
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError, TableError, warn_caller
from rqmoe_store.training.positives import Positions, PositiveValues, positions_in

MAX_SHARE = 0.8
"""Largest weight of the partner in a mixture."""

_READ_ROWS = 8192
"""Rows read from a table at a time."""
_READ_LISTS = 128
"""Rows of many vectors each read from a table at a time."""
_NUMBERS = (pa.types.is_floating, pa.types.is_integer)

_OUTLIER_FACTOR = 1024.0
"""Outliers are so many times as far from the middle as nearly all vectors are."""
_COMMON_SHARE = 0.95
"""Share of the vectors that counts as nearly all."""
_LENGTH_ROWS = 65_536
"""Vectors whose distances from the middle are computed at a time."""
_CENTER_ROWS = 4_096
"""Vectors whose median is the middle."""


def count_vectors(data: Any) -> int:
    """Rows of a LanceDB table or of an array-like."""
    if hasattr(data, "count_rows"):
        return int(data.count_rows())
    try:
        return len(data)
    except TypeError as error:
        raise InvalidInputError(
            f"Got data of type {type(data).__name__} to train on; expected a LanceDB table, or vectors of "
            "shape (rows, D)."
        ) from error


def require_countable(data: Any) -> None:
    """Raise InvalidInputError for data without a number of rows, such as streams, which are read once."""
    if not hasattr(data, "count_rows") and not hasattr(data, "__len__"):
        raise InvalidInputError(
            f"Got {type(data).__name__} to train on; expected a LanceDB table, or an array or tensor (rows, "
            "dim), of which rows can be chosen at random. Ingest a stream into a table, or put its vectors "
            "into an array, such as np.stack(list(...))."
        )


class VectorReader(Protocol):
    """Reads vectors by their positions."""

    def __len__(self) -> int:
        """Number of positions."""

    def take(self, positions: npt.NDArray[np.int64]) -> Float32Array:
        """The vectors (n, D) at ascending positions, without those that are null."""


def draw_sample(vectors: VectorReader, *, max_rows: int, seed: int) -> Float32Array:
    """Sample at most `max_rows` vectors (n, D), in random order. Memory is that of the sample."""
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.choice(len(vectors), size=min(len(vectors), max_rows), replace=False))
    # Reading is fastest in table order. Training needs neighboring rows of the table apart.
    chunks = [vectors.take(chosen[start : start + _READ_ROWS]) for start in range(0, len(chosen), _READ_ROWS)]
    filled = [chunk for chunk in chunks if len(chunk)]
    sample_nD = np.concatenate(filled) if filled else np.empty((0, 0), dtype=np.float32)
    return sample_nD[generator.permutation(len(sample_nD))]


def draw_sample_of_lists(rows: VectorReader, *, max_rows: int, seed: int) -> Float32Array:
    """Sample at most `max_rows` vectors (n, D) of rows that have many each, in random order."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(rows))
    chunks, count = [np.empty((0, 0), dtype=np.float32)], 0
    for start in range(0, len(order), _READ_LISTS):
        chunk_nD = rows.take(np.sort(order[start : start + _READ_LISTS]))
        if len(chunk_nD):
            chunks = [*(chunk for chunk in chunks if len(chunk)), chunk_nD]
            count += len(chunk_nD)
        if count >= max_rows:
            break
    sample_nD = np.concatenate(chunks)
    return sample_nD[generator.permutation(len(sample_nD))[:max_rows]]


def sample_vectors(
    data: Any, *, vector_column: str, metric: Metric, max_rows: int, seed: int
) -> Float32Array:
    """Sample at most `max_rows` vectors (n, D), in random order. Memory is that of the sample.

    Args:
        data: a LanceDB table, or an array-like or torch tensor of shape (rows, D).
        vector_column: column of the table that holds the vectors. Null vectors are skipped.
        metric: under "cosine" vectors are scaled to unit length.
        max_rows: largest sample.
        seed: of the sample and its order.

    Raises:
        TableError: the column is missing or has another type, or the table is empty.
        InvalidInputError: vectors that `as_vectors` refuses.
    """
    require_countable(data)
    is_table = hasattr(data, "count_rows")
    if is_table:
        use_storage()
        _check_column(data, vector_column)
    rows = count_vectors(data)
    if rows == 0:
        error = TableError if is_table else InvalidInputError
        raise error("Got no vectors to train on; add rows first.")
    if is_table:
        column = _TableColumn(data, vector_column, metric)
        draw = draw_sample_of_lists if has_many_vectors(data, vector_column) else draw_sample
        sample_nD = draw(column, max_rows=max_rows, seed=seed)
        if len(sample_nD) == 0:
            raise TableError(
                f"Column {vector_column!r} of table {data.name!r} holds only nulls; expected vectors."
            )
        return sample_nD
    chosen = np.random.default_rng(seed).choice(rows, size=min(rows, max_rows), replace=False)
    if is_dense(data):
        return as_vectors(data[chosen], metric=metric, positions=chosen)
    return as_vectors(data, metric=metric)[chosen]


def _check_column(table: Any, vector_column: str) -> None:
    schema: pa.Schema = table.schema
    if vector_column not in schema.names:
        raise TableError(
            f"Table {table.name!r} has no column {vector_column!r}; it has {schema.names}. "
            "Name the one that holds the embeddings with vector_column=."
        )
    column_type = schema.field(vector_column).type
    is_tensor = isinstance(column_type, pa.FixedShapeTensorType) and len(column_type.shape) == 1
    column_type = column_type.storage_type if is_tensor else column_type
    if has_many_vectors(table, vector_column):
        column_type = column_type.value_type
    if not _is_list(column_type):
        raise TableError(
            f"Column {vector_column!r} has type {column_type}; expected a list of numbers. "
            "Name the column that holds the embeddings with vector_column=."
        )
    value_type = column_type.value_type
    if not any(is_number(value_type) for is_number in _NUMBERS):
        raise TableError(
            f"Column {vector_column!r} holds lists of {value_type}; expected lists of numbers. "
            "Name the column that holds the embeddings with vector_column=."
        )


def has_many_vectors(data: Any, vector_column: str) -> bool:
    """Whether `data` is a table whose rows have a list of vectors each."""
    if not hasattr(data, "count_rows") or vector_column not in data.schema.names:
        return False
    column_type = data.schema.field(vector_column).type
    return _is_list(column_type) and _is_list(column_type.value_type)


def _is_list(column_type: pa.DataType) -> bool:
    checks = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    return any(is_kind(column_type) for is_kind in checks)


class _TableColumn:
    """The vectors in a column of a LanceDB table, for `draw_sample`."""

    def __init__(self, table: Any, column: str, metric: Metric) -> None:
        self._table, self._metric = table, metric
        self.name = column
        """Name of the column."""
        self._dims = set[int]()
        self._many = has_many_vectors(table, column)

    def __len__(self) -> int:
        return int(self._table.count_rows())

    def take(self, positions: npt.NDArray[np.int64]) -> Float32Array:
        """The vectors (n, D) at ascending positions, without those that are null.

        Raises:
            InvalidInputError: vectors differ in dimension, or `as_vectors` refuses them.
        """
        column = self._table.take_offsets(positions.tolist()).select([self.name]).to_arrow()[self.name]
        return self.vectors(column, positions)

    def vectors(self, column: pa.ChunkedArray, positions: npt.NDArray[np.int64]) -> Float32Array:
        """As `take`, of rows of the column that were read, and the positions that they are at."""
        rows = positions[np.flatnonzero(column.is_valid().to_numpy())]
        values = column.drop_null().combine_chunks()
        values = getattr(values, "storage", values)  # tensors of Arrow are stored as lists
        if self._many:
            rows = np.repeat(rows, values.value_lengths().to_numpy(zero_copy_only=False))
            values = values.flatten()
            if values.null_count:
                raise InvalidInputError(
                    f"Column {self.name!r} of table {self._table.name!r} has rows with a null in "
                    "their list of vectors; expected vectors only. Repair these rows."
                )
        if len(values) == 0:
            return np.empty((0, 0), dtype=np.float32)
        self._dims.update(np.unique(values.value_lengths().to_numpy(zero_copy_only=False)).tolist())
        if len(self._dims) > 1:
            raise InvalidInputError(
                f"Column {self.name!r} holds vectors of dimensions {sorted(self._dims)}; expected one. "
                "Were they made by different embedding models?"
            )
        flat = values.flatten().to_numpy(zero_copy_only=False)
        try:
            vectors_nD = flat.reshape(len(values), *self._dims)
            return as_vectors(vectors_nD, metric=self._metric, positions=rows)
        except InvalidInputError as error:
            raise InvalidInputError(f"Table {self._table.name!r}, column {self.name!r}: {error}") from error


def sample_with_positives(
    data: Any,
    positives: Any,
    queries: int,
    *,
    on: str | None,
    vector_column: str,
    metric: Metric,
    max_rows: int,
    seed: int,
) -> tuple[Float32Array, list[Positions]]:
    """The positives of all queries, and as many other vectors as `max_rows` leaves room for, drawn at random.

    Args:
        data: as for `sample_vectors`.
        positives: for each query a position in an array, or a value of the column `on` of a table; or a list.
        queries: number of queries.
        on: a column of the table; None for an array.
        vector_column, metric, max_rows, seed: as for `sample_vectors`.

    Returns:
        Vectors (n, D), and for each query the positions of its positives among them.

    Raises:
        InvalidInputError: positives that the data does not have, or a column that there is not.
    """
    rows = count_vectors(data)
    drawn = np.random.default_rng(seed).choice(rows, size=min(rows, max_rows), replace=False)
    if hasattr(data, "count_rows"):
        if on is None or on not in data.schema.names:
            raise InvalidInputError(
                f"Got on={on!r}; expected a column of table {data.name!r} that has the positives."
            )
        values = PositiveValues(positives, queries, data.schema.field(on))
        return _read_with_positives(data, values, drawn, on, _TableColumn(data, vector_column, metric))
    if on is not None:
        raise InvalidInputError(
            f"Got on={on!r} for an array; expected positions of its vectors as positives, and on=None."
        )
    relevant = positions_in(positives, queries, rows)
    wanted = np.unique(np.concatenate(relevant))
    others = np.setdiff1d(drawn, wanted, assume_unique=True)[: max(0, max_rows - len(wanted))]
    chosen_n = np.union1d(wanted, others)
    if is_dense(data):
        vectors_nD = as_vectors(data[chosen_n], metric=metric, positions=chosen_n)
    else:
        vectors_nD = as_vectors(data, metric=metric)[chosen_n]
    return vectors_nD, [np.searchsorted(chosen_n, each) for each in relevant]


def _read_with_positives(
    table: Any, values: PositiveValues, drawn: Positions, on: str, column: _TableColumn
) -> tuple[Float32Array, list[Positions]]:
    """Read the vectors of rows that have one of the values, and of the rows drawn, in one pass."""
    is_drawn_N, first = np.zeros(len(column), np.bool_), 0
    is_drawn_N[drawn] = True
    parts: list[Float32Array] = []
    places: list[Positions] = []
    for batch in table.search().select(list({on, column.name})).to_batches(_READ_ROWS):
        places_B = values.places(batch[on])
        taken_B = is_drawn_N[first : first + batch.num_rows] | (places_B >= 0)
        taken_B &= batch[column.name].is_valid().to_numpy(zero_copy_only=False)
        rows_B = np.flatnonzero(taken_B)
        if len(rows_B):
            taken = pa.chunked_array([batch[column.name]]).take(pa.array(rows_B))
            parts.append(column.vectors(taken, first + rows_B))
            places.append(places_B[rows_B])
        first += batch.num_rows
    places_n = np.concatenate([np.empty(0, np.int64), *places])
    relevant = values.rows_of_queries(places_n, np.arange(len(places_n)), f"table {table.name!r}")
    return np.concatenate(parts), relevant


def without_outliers(
    training_nD: Float32Array, validation_nD: Float32Array, *, warn: bool
) -> tuple[Float32Array, Float32Array]:
    """The vectors without those much farther from the middle than nearly all training vectors.

    Codebooks minimize squared errors, and float32 has 24 bits. One vector a million times as far away as the
    others would decide the scale, and the others would become one point. The codec is fitted to the others.

    Args:
        training_nD: at least one vector, in random order.
        validation_nD: if all of them are outliers, training vectors take their place.
        warn: whether to warn of training vectors left out.
    """
    center_D = np.median(training_nD[:_CENTER_ROWS].astype(np.float64), axis=0)
    lengths_n = _lengths(training_nD, center_D)
    limit = _OUTLIER_FACTOR * _common_length(lengths_n)
    near_n = lengths_n <= limit
    far = len(near_n) - int(near_n.sum())
    if far and warn:
        warn_caller(
            f"{far:,} of {len(near_n):,} training vectors lie more than {_OUTLIER_FACTOR:,.0f} times as far "
            f"from the middle as {_COMMON_SHARE:.0%} of them do. The codec is fitted to the others; the "
            "codes of such vectors will tell little but their direction. Look for missing values, or values "
            "in another unit."
        )
    training_nD = _kept(training_nD, near_n)
    validation_nD = _kept(validation_nD, _lengths(validation_nD, center_D) <= limit)
    return training_nD, validation_nD if len(validation_nD) else training_nD


def _kept(vectors_nD: Float32Array, near_n: npt.NDArray[np.bool_]) -> Float32Array:
    return vectors_nD if near_n.all() else vectors_nD[near_n]


def _common_length(lengths_n: Float64Array) -> float:
    """The 95 % quantile of the lengths that are not zero; 0 if all are zero."""
    # "lower": interpolating with the next length would let an outlier raise the limit.
    positive_n = lengths_n[lengths_n > 0]
    return float(np.quantile(positive_n, _COMMON_SHARE, method="lower")) if len(positive_n) else 0.0


def _lengths(vectors_nD: Float32Array, center_D: Float64Array) -> Float64Array:
    """Distances (n,) of the vectors from the center."""
    parts = [
        np.linalg.norm(vectors_nD[start : start + _LENGTH_ROWS] - center_D, axis=1)
        for start in range(0, len(vectors_nD), _LENGTH_ROWS)
    ]
    return np.concatenate([np.empty(0), *parts])


class Batches:
    """Batches of normalized vectors, each vector once per epoch.

    Seed and step alone determine a batch, so a resumed run and each of several processes draw the same one.
    """

    def __init__(self, vectors_nD: Tensor, *, size: int, seed: int, mixing: bool) -> None:
        self.vectors_nD, self.size, self.seed, self.mixing = vectors_nD, size, seed, mixing
        self.per_epoch = math.ceil(len(vectors_nD) / size)
        self._order: tuple[int, Tensor] | None = None  # an epoch and its order of the vectors
        self._prepared: tuple[int, Tensor] | None = None  # a step and its batch

    def prepare(self, step: int) -> None:
        """Draw the batch of a step before it is asked for, such as while a GPU computes the step before."""
        self._prepared = step, self._drawn(step)

    def at(self, step: int) -> Tensor:
        """The batch (B, D) of a step; with `mixing`, each vector is mixed with a random partner."""
        if self._prepared is not None and self._prepared[0] == step:
            return self._prepared[1]
        return self._drawn(step)

    def _drawn(self, step: int) -> Tensor:
        epoch, position = divmod(step, self.per_epoch)
        order_n = self._order_of(epoch)
        rows_B = order_n[position * self.size : (position + 1) * self.size]
        batch_BD = self.vectors_nD[rows_B]
        if not self.mixing:
            return batch_BD
        generator = torch.Generator().manual_seed(derived_seed(self.seed, f"mixtures of step {step}"))
        partners_B = _random_rows(len(self.vectors_nD), len(rows_B), generator)
        partners_BD = self.vectors_nD[upload(partners_B, rows_B.device)]
        # Normalized vectors have mean zero.
        return mixed(batch_BD, partners_BD, torch.zeros_like(batch_BD[0]), generator=generator)

    def _order_of(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, f"order of epoch {epoch}"))
            self._order = epoch, upload(random_order(len(self.vectors_nD), generator), self.vectors_nD.device)
        return self._order[1]


def mixed(vectors_BD: Tensor, partners_BD: Tensor, mean_D: Tensor, *, generator: torch.Generator) -> Tensor:
    """Each vector mixed with its partner: sqrt(1 - a^2) and a times their deviations from the mean.

    The squared weights sum to one, so mixtures of independent vectors have the covariance of the vectors
    themselves. The weight a is uniform in [0, MAX_SHARE]. Codebooks fitted to few vectors overfit: mixtures
    lower the error on unseen vectors, whereas more passes over the same vectors raise it.
    """
    random_B1 = torch.rand(len(vectors_BD), 1, generator=generator, device="cpu")
    share_B1 = upload(random_B1, vectors_BD.device) * MAX_SHARE
    own_B1 = (1 - share_B1.square()).sqrt()
    return mean_D + own_B1 * (vectors_BD - mean_D) + share_B1 * (partners_BD - mean_D)


def enlarged(vectors_BD: Tensor, rows: int, *, generator: torch.Generator) -> Tensor:
    """The vectors, followed by mixtures of random pairs of them up to `rows` in total."""
    missing = rows - len(vectors_BD)
    if missing <= 0:
        return vectors_BD
    pairs_X = _random_rows(len(vectors_BD), 2 * missing, generator).to(vectors_BD.device)
    first_X, second_X = pairs_X.split(missing)
    mixtures_XD = mixed(
        vectors_BD[first_X], vectors_BD[second_X], vectors_BD.mean(dim=0), generator=generator
    )
    return torch.cat([vectors_BD, mixtures_XD])


def random_order(rows: int, generator: torch.Generator) -> Tensor:
    """The numbers below `rows` in random order, on the CPU: devices have random numbers of their own."""
    return torch.randperm(rows, generator=generator, device="cpu")


def _random_rows(rows: int, count: int, generator: torch.Generator) -> Tensor:
    """Random numbers (count,) below `rows`, on the CPU."""
    return torch.randint(rows, (count,), generator=generator, device="cpu")


def derived_seed(seed: int, purpose: str) -> int:
    """A separate seed for every purpose, the same in every process."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8]) % 2**63
