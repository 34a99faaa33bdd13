"""Transform coding: an orthogonal transform, and for every byte a codebook over some of the coordinates.

    z = R (x - mean)          every byte b has a group of the coordinates, and codewords C_b over it
    code_b = argmin_k sum_j w_j (z_j - C_b[k]_j)^2, over the coordinates j of the group
    x_hat = mean + R^T (C_1[code_1], ..., C_B[code_B], 0, ...)

The rows of R are orthonormal directions, of which a matrix has only those that are coded.

Groups are disjoint, so that errors and inner products are sums over bytes. One table of 256 entries per byte
scores a code exactly: <q, x_hat> = <q, mean> + sum_b <(R q)_b, C_b[code_b]>. Scalar quantizers are of this
form: the codewords of a byte are all combinations of the levels of its coordinates. Coordinates in no group
decode to the mean. Weights w are 1 where the squared error counts, and larger for coordinates whose errors
change scores more.

Everything here is compiled, without torch. A row is computed in the same order whatever rows are computed
with it, so codes and vectors do not depend on batches.

Shape legend: n vectors, D dimension, C coordinates, B bytes, K = 256 codewords, Q queries, H rounds of a fast
rotation, X panels of W columns.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.frame import Float64Array
from rqmoe_store.codecs.panels import in_panels, multiply_with_panels
from rqmoe_store.codecs.parallel import compiled, run_chunks_parallel
from rqmoe_store.codecs.products import multiply_rows, product
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError

Bytes = npt.NDArray[np.uint8]
Int32Array = npt.NDArray[np.int32]
Arrays = dict[str, npt.NDArray[Any]]

CODEWORDS = 256

_QUERIES_PER_TASK = 16  # some 0.3 ms
_ROWS_PER_TASK = 1_024
_FARTHEST = np.float32(2.0**50)
"""Coordinates are clamped to this size, so that their squares fit float32."""

_ORTHOGONAL = 1e-3
"""Largest deviation of R R^T from the identity, for a rotation that is read from storage."""

_WIDE = 256
"""Dimension from which on directions are rounded to float16: they stay orthonormal to some 1e-5. Narrower
ones would deviate more, and have little to save."""


class Rotation(Protocol):
    """An orthogonal transform, or the part of it that gives some of the coordinates."""

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""

    @property
    def num_coordinates(self) -> int:
        """Coordinates that it gives, C."""

    def apply(self, vectors_nD: Float32Array) -> Float32Array:
        """Coordinates (n, C) of vectors."""

    def invert(self, coordinates_nC: Float32Array) -> Float32Array:
        """The vectors (n, D) with these coordinates, and zeros for those that it doesn't give."""

    def cut(self, num_coordinates: int) -> "Rotation":
        """What gives at least the first coordinates, and no others where they take memory."""

    def arrays(self) -> Arrays:
        """The arrays that define it."""


@dataclasses.dataclass(frozen=True, eq=False)
class DenseRotation:
    """A rotation by a matrix: C D multiplications a vector."""

    matrix_CD: Float32Array
    """Rows are the directions of the coordinates."""

    @classmethod
    def of(cls, directions_CD: npt.NDArray[Any]) -> "DenseRotation":
        """A rotation to orthonormal directions, of float16 numbers if they are wide, as it is stored."""
        if directions_CD.shape[1] >= _WIDE:
            directions_CD = directions_CD.astype(np.float16)
        return cls(np.ascontiguousarray(directions_CD, dtype=np.float32))

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.matrix_CD.shape[1])

    @property
    def num_coordinates(self) -> int:
        """Coordinates that it gives, C."""
        return len(self.matrix_CD)

    @functools.cached_property
    def _panels_XDW(self) -> Float32Array:
        return in_panels(np.ascontiguousarray(self.matrix_CD.T))

    @functools.cached_property
    def _inverse_panels_XCW(self) -> Float32Array:
        return in_panels(self.matrix_CD)

    def apply(self, vectors_nD: Float32Array) -> Float32Array:
        """Coordinates (n, C) of vectors."""
        return _in_parallel(multiply_with_panels, vectors_nD, self.num_coordinates, self._panels_XDW)

    def invert(self, coordinates_nC: Float32Array) -> Float32Array:
        """The vectors (n, D) with these coordinates, and zeros for those that it doesn't give."""
        return _in_parallel(multiply_with_panels, coordinates_nC, self.dim, self._inverse_panels_XCW)

    def cut(self, num_coordinates: int) -> "DenseRotation":
        """The rotation to the first directions."""
        if num_coordinates == self.num_coordinates:
            return self
        return DenseRotation(self.matrix_CD[:num_coordinates].copy())  # a view would keep all of them

    def arrays(self) -> Arrays:
        """The arrays that define it."""
        return {"rotation": self.matrix_CD}


@dataclasses.dataclass(frozen=True, eq=False)
class HadamardRotation:
    """A pseudorandom rotation in D log D additions a vector: rounds of signs, a permutation and fast
    Walsh-Hadamard transforms of blocks (Ailon and Chazelle, "The Fast Johnson-Lindenstrauss Transform",
    2009)."""

    orders_HD: Int32Array
    """Permutation of every round."""
    signs_HD: Float32Array
    """1 or -1, before the permutation."""

    ROUNDS: ClassVar[int] = 3

    @classmethod
    def draw(cls, dim: int, generator: np.random.Generator) -> "HadamardRotation":
        """Draw a rotation of vectors whose dimension `hadamard_block` accepts."""
        orders_HD = np.stack([generator.permutation(dim) for _ in range(cls.ROUNDS)]).astype(np.int32)
        signs_HD = generator.choice(np.array([-1, 1], np.float32), (cls.ROUNDS, dim))
        return cls(orders_HD, signs_HD)

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.orders_HD.shape[1])

    @property
    def num_coordinates(self) -> int:
        """Coordinates that it gives: all D."""
        return self.dim

    def apply(self, vectors_nD: Float32Array) -> Float32Array:
        """Rotated vectors (n, D)."""
        return self._run(vectors_nD, inverse=False)

    def invert(self, coordinates_nC: Float32Array) -> Float32Array:
        """Inverse of `apply`."""
        return self._run(coordinates_nC, inverse=True)

    def cut(self, num_coordinates: int) -> "HadamardRotation":
        """Itself: it gives all coordinates, or none."""
        return self

    def arrays(self) -> Arrays:
        """The arrays that define it."""
        return {"orders": self.orders_HD, "signs": self.signs_HD}

    def _run(self, vectors_nD: Float32Array, *, inverse: bool) -> Float32Array:
        block = hadamard_block(self.dim)
        return _in_parallel(
            _hadamard_rows, vectors_nD, self.dim, self.orders_HD, self.signs_HD, block, inverse
        )


def hadamard_block(dim: int) -> int:
    """The largest power of two that divides `dim`: the block of a fast rotation, of little use if small."""
    return int(dim & -dim)


@dataclasses.dataclass(frozen=True, eq=False)
class TransformQuantizer:
    """A rotation and codebooks; immutable."""

    mean_D: Float32Array
    rotation: Rotation
    starts_B1: Int32Array
    """B + 1 positions: byte b codes the coordinates starts[b] : starts[b + 1]."""
    codebooks_CK: Float32Array
    """For every coordinate its value in each of the codewords of its byte."""
    weights_C: Float32Array
    """How much the squared error of every coordinate counts when a codeword is chosen."""

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return len(self.mean_D)

    @property
    def num_bytes(self) -> int:
        """Bytes of a code, B."""
        return len(self.starts_B1) - 1

    @functools.cached_property
    def _norms_BK(self) -> Float32Array:
        norms_BK: Float32Array = weighted_norms(self.starts_B1, self.codebooks_CK, self.weights_C)
        return norms_BK

    def encode(self, vectors_nD: Float32Array) -> Bytes:
        """Nearest codes, uint8 (n, B), of float32 vectors (n, D)."""
        codes_nB = np.empty((len(vectors_nD), self.num_bytes), np.uint8)
        codebooks = self.codebooks_CK, self.weights_C, self._norms_BK

        def encode_rows(start: int, stop: int, _: int) -> None:
            rotated_nD = self.rotation.apply(vectors_nD[start:stop] - self.mean_D)
            encode_rows_into(rotated_nD, self.starts_B1, *codebooks, codes_nB[start:stop])

        run_chunks_parallel(len(vectors_nD), _ROWS_PER_TASK, encode_rows)
        return codes_nB

    def decode(self, codes_nB: Bytes) -> Float32Array:
        """Reconstructions (n, D) of codes. A prefix of the bytes decodes, too; further bytes are ignored."""
        vectors_nD = self.rotation.invert(self._coordinates(codes_nB))
        return np.asarray(vectors_nD + self.mean_D, dtype=np.float32)

    def rotated_matrix(self, matrix_DE: Float32Array) -> Float32Array:
        """What (C, E) to multiply coordinates with, for the products of vectors with a matrix (D, E)."""
        return np.ascontiguousarray(self.rotation.apply(np.ascontiguousarray(matrix_DE.T)).T)

    def decode_products(self, codes_nB: Bytes, rotated_CE: Float32Array) -> Float32Array:
        """Products (n, E) of reconstructions, less the mean, with a matrix, given its `rotated_matrix`.

        Nothing is rotated back, which is most of the work of `decode`.
        """
        return product(self._coordinates(codes_nB), rotated_CE)

    def sum_products(self, codes_nB: Bytes, rotated_CE: Float32Array) -> Float32Array:
        """As `decode_products`, by look-up tables of the matrix: less work for many codes and few columns."""
        entries_BKE = np.empty((self.num_bytes, CODEWORDS, rotated_CE.shape[1]), np.float32)
        _fill_entries(rotated_CE, self.starts_B1, self.codebooks_CK, entries_BKE)
        products_nE = np.empty((len(codes_nB), rotated_CE.shape[1]), np.float32)

        def sum_rows(start: int, stop: int, _: int) -> None:
            _sum_entries(entries_BKE, codes_nB[start:stop], products_nE[start:stop])

        run_chunks_parallel(len(codes_nB), _ROWS_PER_TASK, sum_rows)
        return products_nE

    def _coordinates(self, codes_nB: Bytes) -> Float32Array:
        coordinates_nC = np.zeros((len(codes_nB), self.rotation.num_coordinates), np.float32)
        _decode_rows_into(np.ascontiguousarray(codes_nB), self.starts_B1, self.codebooks_CK, coordinates_nC)
        return coordinates_nC

    def prefix_errors(self, vectors_nD: Float32Array) -> Float64Array:
        """Mean squared errors (B,) of vectors encoded in the first byte, in the first two, and so on."""
        centered_nD = vectors_nD - self.mean_D
        whole = np.square(centered_nD, dtype=np.float64).sum(axis=1).mean()
        rotated_nC = self.rotation.apply(centered_nD)
        left_nC = rotated_nC - self._coordinates(self.encode(vectors_nD))
        # Errors are sums over coordinates, of which every byte changes its own.
        saved_nC = np.square(rotated_nC, dtype=np.float64) - np.square(left_nC, dtype=np.float64)
        saved_C1 = np.concatenate([[0.0], np.cumsum(saved_nC.mean(axis=0))])
        return np.asarray(whole - saved_C1[self.starts_B1[1:]], dtype=np.float64)

    def products(self, queries_QD: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Inner products of queries with the mean (Q,) and with every codeword (Q, B, K)."""
        rotated_QD = self.rotation.apply(queries_QD)
        products_QBK = np.empty((len(queries_QD), self.num_bytes, CODEWORDS), np.float32)

        def multiply(start: int, stop: int, _: int) -> None:
            some = slice(start, stop)
            _products_into(rotated_QD[some], self.starts_B1, self.codebooks_CK, products_QBK[some])

        run_chunks_parallel(len(queries_QD), _QUERIES_PER_TASK, multiply)
        return self.mean_products(queries_QD), products_QBK

    def mean_products(self, queries_QD: Float32Array) -> Float32Array:
        """Inner products (Q,) of queries with the mean, each computed alone."""
        products_Q1 = np.empty((len(queries_QD), 1), np.float32)
        multiply_rows(
            np.ascontiguousarray(queries_QD), np.ascontiguousarray(self.mean_D[:, None]), products_Q1
        )
        return products_Q1[:, 0]

    def squares(self) -> tuple[float, Float32Array]:
        """Summands of the squared length of a reconstruction: that of the mean, and (B, K) of codewords."""
        mean_1D = self.mean_D[None]
        _, crossed_1BK = self.products(mean_1D)
        squares_BK = np.stack(
            [
                np.square(self.codebooks_CK[start:stop]).sum(axis=0)
                for start, stop in zip(self.starts_B1[:-1], self.starts_B1[1:], strict=True)
            ]
        )
        return float(np.square(self.mean_D).sum()), squares_BK + 2 * crossed_1BK[0]

    def truncate(self, num_bytes: int) -> "TransformQuantizer":
        """The quantizer of the first bytes."""
        starts_B1 = self.starts_B1[: num_bytes + 1]
        coded = int(starts_B1[-1])
        return dataclasses.replace(
            self,
            rotation=self.rotation.cut(coded),
            starts_B1=starts_B1,
            codebooks_CK=self.codebooks_CK[:coded],
            weights_C=self.weights_C[:coded],
        )

    def arrays(self) -> Arrays:
        """The arrays that define it, by name."""
        return {
            "mean": self.mean_D,
            "starts": self.starts_B1,
            "codebooks": self.codebooks_CK,
            "weights": self.weights_C,
            **self.rotation.arrays(),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, *, dim: int, num_bytes: int) -> "TransformQuantizer":
        """Inverse of `arrays`.

        Raises:
            InvalidInputError: arrays are missing, of other shapes or types, or not those of a quantizer.
        """
        _require_arrays(arrays, {"mean": (dim,), "starts": (num_bytes + 1,)})
        starts_B1, names = arrays["starts"], set(arrays) - {"mean", "starts", "codebooks", "weights"}
        within = (starts_B1 >= 0) & (starts_B1 <= dim)  # first, as differences of other numbers may overflow
        if not within.all() or starts_B1[0] != 0 or (np.diff(starts_B1) < 1).any():
            raise InvalidInputError(f"groups of coordinates start at {starts_B1.tolist()}, of {dim}")
        coded = int(starts_B1[-1])
        _require_arrays(arrays, {"codebooks": (coded, CODEWORDS), "weights": (coded,)})
        if not (arrays["weights"] > 0).all():
            raise InvalidInputError("weights of errors are not positive")
        for name in ("mean", "codebooks"):
            if np.abs(arrays[name]).max() > _FARTHEST:
                raise InvalidInputError(f"{name} has values beyond {_FARTHEST}")
        rotation: Rotation
        if names == {"rotation"}:
            rotation = _checked_dense(arrays, coded, dim)
        elif names == {"orders", "signs"}:
            rotation = _checked_hadamard(arrays, dim)
        else:
            raise InvalidInputError(f"a rotation of {sorted(names)}")
        return cls(arrays["mean"], rotation, starts_B1, arrays["codebooks"], arrays["weights"])


def _require_arrays(arrays: Arrays, shapes: dict[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if name not in arrays:
            raise InvalidInputError(f"there is no {name}")
        array = arrays[name]
        dtype = np.int32 if name in ("starts", "orders") else np.float32
        if array.shape != shape or array.dtype != dtype or not np.isfinite(array).all():
            raise InvalidInputError(
                f"{name} is {array.dtype} {array.shape}; expected finite {np.dtype(dtype)} {shape}"
            )


def _checked_dense(arrays: Arrays, coded: int, dim: int) -> DenseRotation:
    given = len(arrays["rotation"]) if arrays["rotation"].ndim else 0
    _require_arrays(arrays, {"rotation": (min(max(given, coded), dim), dim)})
    matrix_CD = arrays["rotation"]
    if not np.abs(matrix_CD @ matrix_CD.T - np.eye(given)).max() < _ORTHOGONAL:
        raise InvalidInputError("the directions of the rotation are not orthonormal")
    return DenseRotation(matrix_CD)


def _checked_hadamard(arrays: Arrays, dim: int) -> HadamardRotation:
    shape = HadamardRotation.ROUNDS, dim
    _require_arrays(arrays, {"orders": shape, "signs": shape})
    if (np.sort(arrays["orders"], axis=1) != np.arange(dim)).any() or (np.abs(arrays["signs"]) != 1).any():
        raise InvalidInputError("the rotation has no permutations or signs")
    return HadamardRotation(arrays["orders"], arrays["signs"])


def _in_parallel(work: Any, rows_nD: Float32Array, columns: int, *arguments: Any) -> Float32Array:
    """What a compiled function makes of rows, with so many columns, on all cores if they are many."""
    made_nC = np.empty((len(rows_nD), columns), np.float32)
    rows_nD = np.ascontiguousarray(rows_nD, dtype=np.float32)
    if len(rows_nD) <= _ROWS_PER_TASK:
        work(rows_nD, *arguments, made_nC)
        return made_nC

    def make_rows(start: int, stop: int, _: int) -> None:
        work(rows_nD[start:stop], *arguments, made_nC[start:stop])

    run_chunks_parallel(len(rows_nD), _ROWS_PER_TASK, make_rows)
    return made_nC


@compiled
def _hadamard_rows(
    vectors_nD: Any, orders_HD: Any, signs_HD: Any, block: int, inverse: bool, rotated_nD: Any
) -> None:
    rounds, dim = orders_HD.shape
    moved_D = np.empty(dim, np.float32)
    norm = np.float32(1 / np.sqrt(block))
    for row in range(vectors_nD.shape[0]):
        current_D = rotated_nD[row]
        current_D[:] = vectors_nD[row]
        for step in range(rounds):
            turn = rounds - 1 - step if inverse else step
            if not inverse:
                for place in range(dim):
                    source = orders_HD[turn, place]
                    moved_D[place] = current_D[source] * signs_HD[turn, source]
                current_D[:] = moved_D
            width = 1
            while width < block:
                for start in range(0, dim, 2 * width):
                    for place in range(start, start + width):
                        first, second = current_D[place], current_D[place + width]
                        current_D[place], current_D[place + width] = first + second, first - second
                width *= 2
            for place in range(dim):
                current_D[place] *= norm
            if inverse:
                for place in range(dim):
                    source = orders_HD[turn, place]
                    moved_D[source] = current_D[place] * signs_HD[turn, source]
                current_D[:] = moved_D


@compiled
def weighted_norms(starts_B1: Any, codebooks_CK: Any, weights_C: Any) -> Any:
    """Weighted squared lengths (B, K) of the codewords."""
    norms_BK = np.zeros((len(starts_B1) - 1, codebooks_CK.shape[1]), np.float32)
    for byte in range(len(starts_B1) - 1):
        for place in range(starts_B1[byte], starts_B1[byte + 1]):
            norms_BK[byte] += weights_C[place] * codebooks_CK[place] ** 2
    return norms_BK


@compiled
def encode_rows_into(
    rotated_nD: Any, starts_B1: Any, codebooks_CK: Any, weights_C: Any, norms_BK: Any, codes_nB: Any
) -> None:
    """Fill in the number of the nearest codeword of every byte."""
    scores_X = np.empty(2 * CODEWORDS, np.float32)  # of codewords, then room for `_smallest`
    for byte in range(codes_nB.shape[1]):
        start, stop = starts_B1[byte], starts_B1[byte + 1]
        paired = stop - (stop - start) % 4
        for row in range(rotated_nD.shape[0]):
            for codeword in range(CODEWORDS):
                scores_X[codeword] = norms_BK[byte, codeword]
            for place in range(start, paired, 4):  # four at a time, for fewer reads and writes of sums
                first = _factor(rotated_nD, weights_C, row, place)
                second = _factor(rotated_nD, weights_C, row, place + 1)
                third = _factor(rotated_nD, weights_C, row, place + 2)
                fourth = _factor(rotated_nD, weights_C, row, place + 3)
                for codeword in range(CODEWORDS):
                    scores_X[codeword] = (
                        scores_X[codeword]
                        + first * codebooks_CK[place, codeword]
                        + second * codebooks_CK[place + 1, codeword]
                        + third * codebooks_CK[place + 2, codeword]
                        + fourth * codebooks_CK[place + 3, codeword]
                    )
            for place in range(paired, stop):
                factor = _factor(rotated_nD, weights_C, row, place)
                for codeword in range(CODEWORDS):
                    scores_X[codeword] += factor * codebooks_CK[place, codeword]
            codes_nB[row, byte] = _smallest(scores_X)


@compiled
def _factor(rotated_nD: Any, weights_C: Any, row: int, place: int) -> Any:
    """What codewords' coordinates are multiplied by: w (z - c)^2 = w c^2 - 2 w z c + (the same for all)."""
    clamped = min(max(rotated_nD[row, place], -_FARTHEST), _FARTHEST)
    return np.float32(-2) * weights_C[place] * clamped


@compiled
def _smallest(values_X: Any) -> int:
    """Position of the smallest of 256 values, followed by room for as many.

    Halves are compared with each other, which compilers vectorize, and the comparisons are traced back.
    """
    start, width = 0, CODEWORDS // 2
    while width >= 8:
        following = start + 2 * width
        for place in range(width):
            left, right = values_X[start + place], values_X[start + width + place]
            values_X[following + place] = left if left <= right else right
        start, width = following, width // 2
    smallest = 0
    for place in range(1, 8):
        if values_X[start + place] < values_X[start + smallest]:
            smallest = place
    value, width = values_X[start + smallest], 8
    while width < CODEWORDS:
        start -= 2 * width
        if values_X[start + smallest] != value:
            smallest += width
        width *= 2
    return smallest


@compiled
def _decode_rows_into(codes_nB: Any, starts_B1: Any, codebooks_CK: Any, coordinates_nD: Any) -> None:
    """Fill in the coordinates of the chosen codewords."""
    for row in range(codes_nB.shape[0]):
        for byte in range(min(codes_nB.shape[1], len(starts_B1) - 1)):
            codeword = codes_nB[row, byte]
            for place in range(starts_B1[byte], starts_B1[byte + 1]):
                coordinates_nD[row, place] = codebooks_CK[place, codeword]


@compiled
def _fill_entries(rotated_CE: Any, starts_B1: Any, codebooks_CK: Any, entries_BKE: Any) -> None:
    """Fill in the products of every codeword of every byte with a matrix."""
    for byte in range(entries_BKE.shape[0]):
        for codeword in range(entries_BKE.shape[1]):
            sums_E = entries_BKE[byte, codeword]
            sums_E[:] = 0
            for place in range(starts_B1[byte], starts_B1[byte + 1]):
                factor, values_E = codebooks_CK[place, codeword], rotated_CE[place]
                for column in range(len(sums_E)):
                    sums_E[column] += factor * values_E[column]


@compiled
def _sum_entries(entries_BKE: Any, codes_nB: Any, sums_nE: Any) -> None:
    """Fill in the sums of what codes select."""
    for row in range(codes_nB.shape[0]):
        sums_E = sums_nE[row]
        sums_E[:] = 0
        for byte in range(codes_nB.shape[1]):
            entry_E = entries_BKE[byte, codes_nB[row, byte]]
            for column in range(len(sums_E)):
                sums_E[column] += entry_E[column]


@compiled
def _products_into(rotated_QD: Any, starts_B1: Any, codebooks_CK: Any, products_QBK: Any) -> None:
    for query in range(rotated_QD.shape[0]):
        fill_products(rotated_QD[query], starts_B1, codebooks_CK, products_QBK[query])


@compiled
def fill_products(rotated_C: Any, starts_B1: Any, codebooks_CK: Any, products_BK: Any) -> None:
    """Fill in the products of the coordinates of one query with the codewords of every byte."""
    for byte in range(products_BK.shape[0]):
        start, stop = starts_B1[byte], starts_B1[byte + 1]
        products_K, paired = products_BK[byte], stop - (stop - start) % 4
        products_K[:] = 0
        for place in range(start, paired, 4):  # four at a time, for fewer reads and writes of sums
            first, second = rotated_C[place], rotated_C[place + 1]
            third, fourth = rotated_C[place + 2], rotated_C[place + 3]
            for codeword in range(codebooks_CK.shape[1]):
                products_K[codeword] = (
                    products_K[codeword]
                    + first * codebooks_CK[place, codeword]
                    + second * codebooks_CK[place + 1, codeword]
                    + third * codebooks_CK[place + 2, codeword]
                    + fourth * codebooks_CK[place + 3, codeword]
                )
        for place in range(paired, stop):
            factor = rotated_C[place]
            for codeword in range(codebooks_CK.shape[1]):
                products_K[codeword] += factor * codebooks_CK[place, codeword]
