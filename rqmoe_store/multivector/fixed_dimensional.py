"""Fixed dimensional encodings (MUVERA): one vector for many, whose inner products approximate MaxSim.

After "MUVERA: Multi-Vector Retrieval via Fixed Dimensional Encodings" (Dhulipala et al., NeurIPS 2024).
Random hyperplanes divide the space into partitions. A query's encoding has the sum of its vectors in each of
them, a document's the mean, so that a vector of the query meets vectors of the document that are near it.

Random numbers are counts of the raw bits of numpy's PCG64, whose sequence for a seed numpy keeps. No float is
computed for them, so that settings alone give the same encoder on every platform, and in years to come.

Shape legend: B documents or queries, T vectors of all of them, n vectors of one, D vector dimension,
R repetitions, H hyperplanes of all repetitions, P partitions of a repetition, X projected dimension,
E dimension before the final projection, F dimension of an encoding.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rqmoe_store.arguments import whole_number
from rqmoe_store.codecs.parallel import compiled, run_parallel
from rqmoe_store.codecs.products import multiply_rows, product
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.multivector.max_sim import document_shares
from rqmoe_store.multivector.vector_lists import VectorLists, as_vector_lists

_FORMAT = 1
"""Number of the way in which random numbers and encodings are made of settings."""

_MAX_DIM = 2**16
_MAX_REPETITIONS = 2**12
_MAX_HYPERPLANES = 16
_MAX_UNPROJECTED = 2**24
"""Largest dimension before the final projection."""

_BITS = 256
"""Bits counted for a component of a hyperplane: the count less its mean is nearly Gaussian."""

_TASK_WORK = 2**21
"""Least multiply-adds of a task. Less is not worth another thread."""

_RIDGE = 0.03
"""What is added to the squares of a projection before it is inverted, in shares of their mean. Directions
that projections hardly keep would be noise otherwise."""

_FARTHER = 2**32
"""What one bit of distance counts beside the position of a vector."""
_NOWHERE = 2**62


class _CountSketch(NamedTuple):
    """A random projection that adds every component, or its negative, to one of a few."""

    places: npt.NDArray[np.int64]
    signs: Float32Array


class _Randomness(NamedTuple):
    """All random numbers of an encoder."""

    planes_DH: Float32Array
    inner_RD: _CountSketch
    """Empty without an inner projection."""
    final_E: _CountSketch
    """Empty without a final projection."""


@dataclasses.dataclass(frozen=True)
class FixedDimensionalEncoder:
    """Encodes documents and queries of many vectors as one vector each (MUVERA).

    The inner product of a query's and a document's encoding approximates their MaxSim: the largest inner
    product with the document of every vector of the query, summed. Vectors should have unit length. Without
    projections the inner product is never larger than MaxSim, and equal to it for documents of one vector.

    Encodings depend on the settings alone: neither on other documents nor on threads or platforms, up to the
    rounding of sums.
    """

    dim: int
    """Dimension of the vectors."""
    _: dataclasses.KW_ONLY
    num_repetitions: int = 20
    """Independent random partitions of the space. More of them lower the error."""
    num_hyperplanes: int = 5
    """Random hyperplanes of a repetition, which divide the space into 2**num_hyperplanes partitions. With 0,
    encodings are those of the mean."""
    projected_dim: int | None = None
    """Dimension to which vectors are projected at random in every partition; None leaves them as they are."""
    final_dim: int | None = None
    """Dimension to which encodings are projected at random (a count sketch); None leaves them as they are."""
    fill_empty_partitions: bool = True
    """Whether a document's partition without vectors gets the vector of the document whose side of the
    hyperplanes differs least from it."""
    seed: int = 0
    """Seed of everything random. Queries and documents need the same."""

    def __post_init__(self) -> None:
        limits = {
            "dim": (1, _MAX_DIM),
            "num_repetitions": (1, _MAX_REPETITIONS),
            "num_hyperplanes": (0, _MAX_HYPERPLANES),
            "projected_dim": (1, _MAX_DIM),
            "final_dim": (1, _MAX_UNPROJECTED),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None or name not in ("projected_dim", "final_dim"):
                object.__setattr__(self, name, whole_number(name, value, low, high))
        if not isinstance(self.fill_empty_partitions, bool | np.bool_):
            raise InvalidInputError(
                f"Got fill_empty_partitions={self.fill_empty_partitions!r:.80}; expected True or False."
            )
        if self._unprojected_dim > _MAX_UNPROJECTED:
            raise InvalidInputError(
                f"Got num_repetitions={self.num_repetitions} with num_hyperplanes={self.num_hyperplanes} and "
                f"vectors of {self._block_dim} dimensions, which is {self._unprojected_dim} altogether; "
                f"expected at most {_MAX_UNPROJECTED}. Take fewer, or a smaller projected_dim."
            )

    @property
    def fde_dim(self) -> int:
        """Dimension of the encodings."""
        return self._unprojected_dim if self.final_dim is None else self.final_dim

    @property
    def _block_dim(self) -> int:
        return self.dim if self.projected_dim is None else self.projected_dim

    @property
    def _unprojected_dim(self) -> int:
        return self.num_repetitions * self._block_dim << self.num_hyperplanes

    def encode_documents(self, vectors: Any, lengths: Any = None) -> Float32Array:
        """Encode documents: the mean of the vectors in every partition.

        Args:
            vectors: with `lengths`, vectors (T, dim) of all documents one after the other; without, a list of
                matrices (n, dim), one for each document.
            lengths: number of vectors of each document (B).

        Returns:
            Encodings (B, fde_dim), float32. A document without vectors has zeros.

        Raises:
            InvalidInputError: vectors of another dimension, that are not numbers, or NaN or infinite; lengths
                that do not add up to the vectors.
        """
        return self._encode(as_vector_lists(vectors, lengths, dim=self.dim), is_query=False)

    def encode_queries(self, vectors: Any, lengths: Any = None) -> Float32Array:
        """Encode queries: the sum of the vectors in every partition, divided by the number of repetitions.

        Args:
            vectors: with `lengths`, vectors (T, dim) of all queries one after the other; without, a list of
                matrices (n, dim), one for each query.
            lengths: number of vectors of each query (B), at least one.

        Returns:
            Encodings (B, fde_dim), float32.

        Raises:
            InvalidInputError: as for `encode_documents`, and a query without vectors.
        """
        queries = as_vector_lists(vectors, lengths, dim=self.dim)
        if not queries.lengths_B.all():
            raise InvalidInputError(
                f"Got no vectors for query {int(np.argmin(queries.lengths_B))} (counted from 0); expected at "
                "least one vector of every query."
            )
        return self._encode(queries, is_query=True)

    def estimate_means(self, encodings: Any) -> Float32Array:
        """The mean of each document's vectors, as far as its encoding tells it.

        Without projections and hyperplanes an encoding is that mean. Partitions count alike, whether they
        have many vectors of a document or few, and projections lose some of it.

        Args:
            encodings: encodings (B, fde_dim) of documents.

        Returns:
            Estimates (B, dim), float32.

        Raises:
            InvalidInputError: encodings of another dimension, that are not numbers, or NaN or infinite.
        """
        encodings_BF = as_vectors(encodings, dim=self.fde_dim)
        return product(encodings_BF, self.means_FD)

    @functools.cached_property
    def means_FD(self) -> Float32Array:
        """The matrix that `estimate_means` multiplies encodings with: the regularized inverse of the encoding
        of a single vector, which is linear if all partitions are filled."""
        filled = dataclasses.replace(self, fill_empty_partitions=True)
        units_DD, one_D = np.eye(self.dim, dtype=np.float32), np.ones(self.dim, np.int64)
        encoded_DF = filled.encode_documents(units_DD, one_D).astype(np.float64)
        products_DD = encoded_DF @ encoded_DF.T
        # A count sketch to very few components may leave nothing: means are zero then.
        products_DD += _RIDGE * (np.trace(products_DD) / self.dim or 1.0) * np.eye(self.dim)
        return np.ascontiguousarray(np.linalg.solve(products_DD, encoded_DF).T, np.float32)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready values, from which `from_dict` makes the same encoder."""
        return {"format": _FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "FixedDimensionalEncoder":
        """The encoder that `to_dict` describes.

        Raises:
            InvalidInputError: settings of another version, or that are none.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(settings, Mapping) or set(settings) != {"format", *names}:
            raise InvalidInputError(
                f"Got settings={settings!r:.80}; expected what FixedDimensionalEncoder.to_dict() returns."
            )
        if settings["format"] != _FORMAT:
            raise InvalidInputError(
                f"Got settings of format {settings['format']!r:.80}; expected {_FORMAT}. Another version of "
                "rqmoe_store made them."
            )
        return cls(**{name: settings[name] for name in names})

    @functools.cached_property
    def _randomness(self) -> _Randomness:
        planes = [
            _gaussian(self._random_bits(0, repetition), (self.dim, self.num_hyperplanes))
            for repetition in range(self.num_repetitions)
        ]
        inner_dim = 0 if self.projected_dim is None else self.projected_dim
        inner = [
            _count_sketch(self._random_bits(1, repetition), self.dim, inner_dim)
            for repetition in range(self.num_repetitions)
        ]
        final_dim = 0 if self.final_dim is None else self.final_dim
        return _Randomness(
            np.ascontiguousarray(np.concatenate(planes, axis=1)),
            _CountSketch(np.stack([each.places for each in inner]), np.stack([each.signs for each in inner])),
            _count_sketch(self._random_bits(2, 0), self._unprojected_dim, final_dim),
        )

    def _random_bits(self, purpose: int, repetition: int) -> np.random.PCG64:
        """Random bits of its own for each purpose and repetition, so that none moves another's."""
        return np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(purpose, repetition)))

    def _encode(self, lists: VectorLists, *, is_query: bool) -> Float32Array:
        starts_B1 = lists.starts_B1
        fdes_BF = np.zeros((len(lists.lengths_B), self.fde_dim), np.float32)
        kind = _Kind(
            self.num_repetitions, self.num_hyperplanes, self._block_dim, is_query, self.fill_empty_partitions
        )
        arguments = self._randomness, kind, lists.vectors_TD, starts_B1
        work_per_vector = self._randomness.planes_DH.size
        run_parallel(
            functools.partial(_encode_range, *arguments, first, last, fdes_BF)
            for first, last in document_shares(starts_B1, work_per_vector, _TASK_WORK)
        )
        return fdes_BF


def _gaussian(source: np.random.PCG64, shape: tuple[int, ...]) -> Float32Array:
    """Whole numbers that are nearly normally distributed around 0: counts of random bits."""
    words = source.random_raw(int(np.prod(shape)) * _BITS // 64).reshape(*shape, _BITS // 64)
    counts = np.bitwise_count(words).sum(axis=-1, dtype=np.int64)
    return np.asarray(counts - _BITS // 2, np.float32)


def _count_sketch(source: np.random.PCG64, components: int, dim: int) -> _CountSketch:
    """A place from 0 to `dim` - 1 and a sign for every component; nothing if `dim` is 0."""
    words = source.random_raw(components if dim else 0)
    places = (words & np.uint64(2**63 - 1)) % np.uint64(max(1, dim))
    signs = np.where(words >> np.uint64(63), np.float32(1), np.float32(-1))
    return _CountSketch(places.astype(np.int64), signs.astype(np.float32))


class _Kind(NamedTuple):
    """What the compiled loops need to know of the settings."""

    num_repetitions: int
    num_hyperplanes: int
    block_dim: int
    is_query: bool
    fill: bool


class _Buffers(NamedTuple):
    """Memory that one repetition of one document needs."""

    sums_PD: Float32Array
    counts_P: Any
    nearest_P: Any
    """For the sides of a partition: which vector is nearest, and how many hyperplanes it is away."""
    projected_X: Float32Array


@compiled
def _encode_range(
    randomness: Any, kind: Any, vectors_TD: Any, starts_B1: Any, first: int, last: int, fdes_BF: Any
) -> None:
    """Add up the encodings of the documents or queries from `first` to `last`."""
    partitions, dim = 1 << kind.num_hyperplanes, vectors_TD.shape[1]
    buffers = _Buffers(
        np.empty((partitions, dim), np.float32),
        np.empty(partitions, np.int64),
        np.empty(partitions, np.int64),
        np.empty(kind.block_dim, np.float32),
    )
    for document in range(first, last):
        vectors_nD = vectors_TD[starts_B1[document] : starts_B1[document + 1]]
        if len(vectors_nD) == 0:
            continue
        sides_nH = np.empty((len(vectors_nD), randomness.planes_DH.shape[1]), np.float32)
        multiply_rows(vectors_nD, randomness.planes_DH, sides_nH)
        for repetition in range(kind.num_repetitions):
            _divide(vectors_nD, sides_nH, repetition, kind, buffers)
            _add_partitions(vectors_nD, randomness, repetition, kind, buffers, fdes_BF[document])


@compiled
def _divide(vectors_nD: Any, sides_nH: Any, repetition: int, kind: Any, buffers: Any) -> None:
    """Sum up the vectors in each partition; find the nearest vector of every partition, to fill it."""
    buffers.sums_PD[:] = 0
    buffers.counts_P[:] = 0
    buffers.nearest_P[:] = _NOWHERE
    first = repetition * kind.num_hyperplanes
    for row in range(len(vectors_nD)):
        partition, sides = 0, 0
        for plane in range(first, first + kind.num_hyperplanes):
            side = 1 if sides_nH[row, plane] > 0 else 0
            sides = (sides << 1) + side
            partition = (partition << 1) + (side ^ (partition & 1))  # the sides are read as a Gray code
        vector_D, sum_D = vectors_nD[row], buffers.sums_PD[partition]
        for component in range(len(vector_D)):
            sum_D[component] += vector_D[component]
        buffers.counts_P[partition] += 1
        buffers.nearest_P[sides] = min(buffers.nearest_P[sides], row)
    # After each hyperplane, what is nearest if sides of this one and of those before may differ.
    for plane in range(kind.num_hyperplanes):
        for sides in range(len(buffers.nearest_P)):
            if sides >> plane & 1 == 0:
                other = sides | 1 << plane
                here, there = buffers.nearest_P[sides], buffers.nearest_P[other]
                buffers.nearest_P[sides] = min(here, there + _FARTHER)
                buffers.nearest_P[other] = min(there, here + _FARTHER)


@compiled
def _add_partitions(
    vectors_nD: Any, randomness: Any, repetition: int, kind: Any, buffers: Any, fde_F: Any
) -> None:
    """Add the sums of a query's partitions, or the means of a document's, to its encoding."""
    for partition in range(len(buffers.counts_P)):
        count, vector_D = buffers.counts_P[partition], buffers.sums_PD[partition]
        factor = np.float32(1)
        if kind.is_query:
            factor = np.float32(1 / kind.num_repetitions)
        elif count > 0:
            factor = np.float32(1 / count)
        elif kind.fill:
            vector_D = vectors_nD[buffers.nearest_P[partition ^ partition >> 1] & (_FARTHER - 1)]
        if count > 0 or (kind.fill and not kind.is_query):
            _add_block(vector_D, factor, randomness, repetition, partition, buffers, fde_F)


@compiled
def _add_block(
    vector_D: Any,
    factor: Any,
    randomness: Any,
    repetition: int,
    partition: int,
    buffers: Any,
    fde_F: Any,
) -> None:
    """Project the vector of a partition, and add it to the encoding."""
    block_X = buffers.projected_X
    if randomness.inner_RD.places.shape[1]:
        places_D, signs_D = randomness.inner_RD.places[repetition], randomness.inner_RD.signs[repetition]
        block_X[:] = 0
        for component in range(len(vector_D)):
            block_X[places_D[component]] += factor * signs_D[component] * vector_D[component]
    else:
        for component in range(len(vector_D)):
            block_X[component] = factor * vector_D[component]
    start = (repetition * len(buffers.counts_P) + partition) * len(block_X)
    places_E, signs_E = randomness.final_E.places, randomness.final_E.signs
    if len(places_E):
        for component in range(len(block_X)):
            fde_F[places_E[start + component]] += signs_E[start + component] * block_X[component]
    else:
        for component in range(len(block_X)):
            fde_F[start + component] = block_X[component]
