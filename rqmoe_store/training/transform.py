"""Fit transform codes: rotation, bits per coordinate, levels, and codebooks.

- "saq": principal components get bits by reverse water-filling, as the dynamic programme of SAQ does for
  segments of 64 (Li et al., "SAQ: Pushing the Limits of Vector Quantization through Code Adjustment and
  Dimension Segmentation", SIGMOD 2026), and the levels that Lloyd and Max found for a Gaussian.
- "pq": codebooks over principal components are fitted by k-means, from the levels of "saq". Codewords need
  not be combinations of levels, and components that are worth no bit of their own are coded along with
  others, but for those that hardly vary.
- "turboquant": a random rotation makes all coordinates alike, so that bits and levels need no data (Zandieh
  et al., "TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate", ICLR 2026). One number
  is measured, the mean squared length.

Coordinates share bytes. They are divided among bytes so that each byte has the same share of the bits of
reverse water-filling, as in OPQ (Ge et al., "Optimized Product Quantization", 2013). Whole bits of a
coordinate are spent within its byte. Where this gives coordinates more than 4 and less than 8 bits each, a
byte has room for one coordinate only, and some of its bits do little. There, codes whose bits are packed
across bytes have a smaller error, but no table of 256 entries per byte scores them. Refine codes of so many
bytes have two stages instead; codes of their own do not. (256 dimensions in 192 bytes of "pq": an error of
.0016 and a recall of .981; in two stages, .0006 and .986.)

Shape legend: n vectors, D coordinates, B bytes, K codewords, L levels, G coordinates of a group, X points of
a grid.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.coder import Coder, refine_base
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.frame import Float64Array, Frame
from rqmoe_store.codecs.parallel import compiled, run_parallel
from rqmoe_store.codecs.refine import Refiner, SquareCode, squared_lengths, stage_bytes
from rqmoe_store.codecs.rounding import round_to_bfloat16
from rqmoe_store.codecs.transform import (
    CODEWORDS,
    DenseRotation,
    HadamardRotation,
    Rotation,
    TransformQuantizer,
    encode_rows_into,
    hadamard_block,
    weighted_norms,
)
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import TransformKind, scored_pairs

FITTED_ROWS = 20_480
"""Most vectors that a transform code is fitted to."""

_BITS = 8
_SCHEDULE = ((8_192, 5), (16_384, 4), (FITTED_ROWS, 1))
"""Rows and iterations of k-means: the first iterations move codewords far, and need few rows for that."""

_STEP_APART = np.float32(0.1)
"""How far a codeword that loses all its vectors moves from the most crowded one to a vector of it."""

_LEAST_WEIGHT = 1e-3
_ROWS_AT_ONCE = 2_048
_BISECTIONS = 60
_NEGLIGIBLE = 1e-12
"""Variances below this share of the largest count as rounding errors."""

_SMALLEST_VARIANCE = 1e-300

_LEFT_OUT = 0.25
"""Most variance of components that are not coded at all, as a share of the error that reverse water-filling
leaves. Their bytes code other components better: errors are lower by up to .3 % (384 dimensions, 8 to 80
bytes), and the codec is smaller."""

_GRID = 2**14
_LLOYD_ITERATIONS = 400
_WIDE = 1_024
"""Dimension from which on a random rotation is a fast one, if a large power of two divides the dimension."""

_LEAST_BLOCK = 64
_ROTATION_STREAM = int.from_bytes(b"rotation")
"""Part of the seed of a rotation: a number that nobody else seeds a generator with."""


def fit_transform(
    kind: TransformKind,
    vectors_nD: Float32Array,
    *,
    num_bytes: int,
    seed: int,
    queries_nD: Float32Array | None = None,
) -> TransformQuantizer:
    """Fit a transform code of `num_bytes` to vectors in random order.

    Args:
        kind: kind of the code.
        vectors_nD: vectors (n, D), of which the first `FITTED_ROWS` are used.
        num_bytes: bytes of a code, at most one per dimension.
        seed: seed of a random rotation.
        queries_nD: vectors that inner products are asked with, or vectors distributed like these. An error
            along a principal component counts as much as the queries' root mean square along it. (Counting
            it as their mean square gives the least error of scores, but not of the largest scores.) None to
            lower the squared error.
    """
    vectors_nD = vectors_nD[:FITTED_ROWS]
    if kind == "turboquant":
        return _fit_turboquant(vectors_nD, num_bytes, seed)
    mean_D = vectors_nD.mean(axis=0, dtype=np.float64)
    variances_D, directions_DD = _principal_components(vectors_nD, mean_D)
    weights_D = np.ones(len(mean_D)) if queries_nD is None else _error_weights(queries_nD, directions_DD)
    used_C = worth_coding(weights_D * variances_D, num_bytes)
    variances_C, weights_C = variances_D[used_C], weights_D[used_C]
    groups = balance_groups(weights_C * variances_C, num_bytes)
    if kind == "saq":
        groups = [group.without_unused() for group in groups]
    order = [place for group in groups for place in group.places]
    rotation = DenseRotation.of(directions_DD[used_C[order]])
    quantizer = _assembled(mean_D, rotation, groups, weights_C, np.sqrt(variances_C), gaussian_levels)
    if kind != "saq":
        quantizer = _with_fitted_codebooks(quantizer, vectors_nD)
    return dataclasses.replace(quantizer, codebooks_CK=round_to_bfloat16(quantizer.codebooks_CK))


def _error_weights(queries_nD: Float32Array, directions_DD: Float64Array) -> Float64Array:
    """Weights (D,) of errors along directions, the largest of which is 1."""
    moments_DD = _second_moments(queries_nD[:FITTED_ROWS], np.zeros(queries_nD.shape[1]))
    squares_D = np.einsum("cd,cd->c", directions_DD @ moments_DD, directions_DD)
    lengths_D = np.sqrt(squares_D.clip(min=0) / max(squares_D.max(), _SMALLEST_VARIANCE))
    return np.asarray(np.maximum(lengths_D, _LEAST_WEIGHT), dtype=np.float64)


def _principal_components(
    vectors_nD: Float32Array, mean_D: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Variances (D,), descending, and the directions (D, D) that have them, one a row."""
    variances_D, columns_DD = np.linalg.eigh(_second_moments(vectors_nD, mean_D))
    # Rounding may make the variance of a direction without any slightly negative.
    return variances_D[::-1].clip(min=0), columns_DD.T[::-1]


def _second_moments(vectors_nD: Float32Array, center_D: Float64Array) -> Float64Array:
    """Mean products (D, D) of the components of vectors minus the center, a few vectors at a time."""
    total_DD = np.zeros((len(center_D), len(center_D)))
    for start in range(0, len(vectors_nD), _ROWS_AT_ONCE):
        centered_nD = vectors_nD[start : start + _ROWS_AT_ONCE] - center_D
        total_DD += centered_nD.T @ centered_nD
    return total_DD / len(vectors_nD)


def _fit_turboquant(vectors_nD: Float32Array, num_bytes: int, seed: int) -> TransformQuantizer:
    dim = vectors_nD.shape[1]
    mean_square = float(np.square(vectors_nD, dtype=np.float64).sum(axis=1).mean())
    # Levels are for coordinates of unit variance; a vector of length 1 has coordinates of variance 1 / D.
    deviations_D = np.full(dim, math.sqrt(mean_square / dim))
    weights_D = np.ones(dim)
    groups = [group.without_unused() for group in balance_groups(weights_D, num_bytes)]
    coded = sum(len(group.places) for group in groups)
    levels, rotation = functools.partial(sphere_levels, dim), random_rotation(dim, seed).cut(coded)
    return _assembled(np.zeros(dim), rotation, groups, weights_D, deviations_D, levels)


def random_rotation(dim: int, seed: int) -> Rotation:
    """A random rotation; a fast one for wide vectors."""
    # Vectors drawn by a generator of the same seed must not be what the rotation is made of.
    generator = np.random.default_rng([_ROTATION_STREAM, seed])
    if dim >= _WIDE and hadamard_block(dim) >= _LEAST_BLOCK:
        return HadamardRotation.draw(dim, generator)
    matrix_DD, triangle_DD = np.linalg.qr(generator.standard_normal((dim, dim)))
    return DenseRotation.of(matrix_DD * np.sign(np.diag(triangle_DD)))


@dataclasses.dataclass
class Group:
    """The coordinates that share a byte, with their bits, which sum to 8."""

    places: list[int] = dataclasses.field(default_factory=list)
    bits: list[int] = dataclasses.field(default_factory=list)

    def without_unused(self) -> "Group":
        """The group without the coordinates that have no bits."""
        used = [(place, bits) for place, bits in zip(self.places, self.bits, strict=True) if bits]
        return Group([place for place, _ in used], [bits for _, bits in used])


def worth_coding(variances_D: Float64Array, num_bytes: int) -> npt.NDArray[np.int64]:
    """The coordinates (C,), in their order, without those of the least variance that are not worth coding.

    Reverse water-filling gives these no bits. There is at least one coordinate for every byte.
    """
    rates_D = water_filling_rates(variances_D, num_bytes * _BITS)
    most_left = _LEFT_OUT * (variances_D / 4**rates_D).sum()
    order_D = np.argsort(-variances_D, kind="stable")
    left_D = np.cumsum(variances_D[order_D[::-1]])[::-1]  # of a coordinate and all after it
    kept = max(num_bytes, int((left_D > most_left).sum()), int((rates_D > 0).sum()))
    return np.sort(order_D[:kept])


def balance_groups(variances_D: Float64Array, num_bytes: int) -> list[Group]:
    """Divide all coordinates among bytes, each with about the same number of bits by reverse water-filling.

    Coordinates that get no bits go to the bytes with the fewest coordinates. Bytes are ordered by what they
    explain, so that prefixes of codes are good.
    """
    rates_D = water_filling_rates(variances_D, num_bytes * _BITS)
    groups, sums = [Group() for _ in range(num_bytes)], [0.0] * num_bytes
    for place in np.argsort(-rates_D, kind="stable").tolist():
        # A byte without any coordinate would be wasted.
        empty = [byte for byte, group in enumerate(groups) if not group.places]
        fewest = min(range(num_bytes), key=lambda byte: len(groups[byte].places))
        least = min(range(num_bytes), key=lambda byte: sums[byte])
        byte = empty[0] if empty else least if rates_D[place] > 0 else fewest
        groups[byte].places.append(place)
        sums[byte] += float(rates_D[place])
    for group in groups:
        _spend_bits(group, variances_D)
    return sorted(groups, key=lambda group: -_explained(group, variances_D))


def water_filling_rates(variances_D: Float64Array, bits: int) -> Float64Array:
    """Bits (D,) of every coordinate by reverse water-filling, which sum to `bits`; fractions are allowed."""
    log_D = np.log2(np.maximum(variances_D, max(variances_D.max(), _SMALLEST_VARIANCE) * _NEGLIGIBLE))
    low, high = log_D.min() - 2 * bits, log_D.max()
    for _ in range(_BISECTIONS):
        level = (low + high) / 2
        if np.maximum(0, (log_D - level) / 2).sum() > bits:
            low = level
        else:
            high = level
    return np.asarray(np.maximum(0, (log_D - high) / 2), dtype=np.float64)


def _spend_bits(group: Group, variances_D: Float64Array) -> None:
    """Give the bits of a byte to its coordinates, each where it lowers the squared error most."""
    group.bits = [0] * len(group.places)
    while sum(group.bits) < _BITS:
        gains = [
            float(variances_D[place]) * (gaussian_distortion_of(bits) - gaussian_distortion_of(bits + 1))
            for place, bits in zip(group.places, group.bits, strict=True)
        ]
        group.bits[int(np.argmax(gains))] += 1


def _explained(group: Group, variances_D: Float64Array) -> float:
    return sum(
        float(variances_D[place]) * (1 - gaussian_distortion_of(bits))
        for place, bits in zip(group.places, group.bits, strict=True)
    )


def _assembled(
    mean_D: Float64Array,
    rotation: Rotation,
    groups: Sequence[Group],
    weights_D: Float64Array,
    deviations_D: Float64Array,
    levels: Callable[[int], Float64Array],
) -> TransformQuantizer:
    """A quantizer whose codewords are all combinations of levels."""
    starts_B1 = np.cumsum([0, *(len(group.places) for group in groups)]).astype(np.int32)
    weights_C = weights_D[[place for group in groups for place in group.places]].astype(np.float32)
    codebooks_CK = np.empty((starts_B1[-1], CODEWORDS), np.float32)
    for start, group in zip(starts_B1[:-1], groups, strict=True):
        numbers_K, shift = np.arange(CODEWORDS), 0
        for offset, (place, bits) in enumerate(zip(group.places, group.bits, strict=True)):
            chosen_K = (numbers_K >> shift) & (2**bits - 1)
            codebooks_CK[start + offset] = levels(bits)[chosen_K] * deviations_D[place]
            shift += bits
    return TransformQuantizer(mean_D.astype(np.float32), rotation, starts_B1, codebooks_CK, weights_C)


def _with_fitted_codebooks(quantizer: TransformQuantizer, vectors_nD: Float32Array) -> TransformQuantizer:
    """The quantizer with codebooks that k-means has improved."""
    rotated_nD = quantizer.rotation.apply(vectors_nD - quantizer.mean_D)
    codebooks_CK = quantizer.codebooks_CK.copy()
    runs = list(zip(quantizer.starts_B1[:-1].tolist(), quantizer.starts_B1[1:].tolist(), strict=True))
    run_parallel(
        functools.partial(
            improve_codebook,
            np.ascontiguousarray(rotated_nD[:, start:stop]),
            codebooks_CK[start:stop],
            quantizer.weights_C[start:stop],
        )
        for start, stop in runs
    )
    return dataclasses.replace(quantizer, codebooks_CK=codebooks_CK)


def improve_codebook(values_nG: Float32Array, codebook_GK: Float32Array, weights_G: Float32Array) -> None:
    """Improve a codebook by k-means, in place."""
    starts_2 = np.array([0, len(codebook_GK)], np.int32)
    for rows, iterations in _SCHEDULE:
        some_nG = values_nG[:rows]
        codes_n1 = np.empty((len(some_nG), 1), np.uint8)
        for _ in range(iterations):
            norms_1K = weighted_norms(starts_2, codebook_GK, weights_G)
            encode_rows_into(some_nG, starts_2, codebook_GK, weights_G, norms_1K, codes_n1)
            _move_codewords(some_nG, codes_n1[:, 0], codebook_GK)


@compiled
def _move_codewords(values_nG: Any, codes_n: Any, codebook_GK: Any) -> None:
    """Move codewords to the means of the vectors that choose them, and those that none chooses next to the
    most crowded ones."""
    width, codewords = codebook_GK.shape
    sums_KG, counts_K = np.zeros((codewords, width)), np.zeros(codewords)
    members_K = np.zeros(codewords, np.int64)  # a vector of each
    for row in range(len(codes_n)):
        codeword = codes_n[row]
        counts_K[codeword] += 1
        members_K[codeword] = row
        for place in range(width):
            sums_KG[codeword, place] += values_nG[row, place]
    unused_K = counts_K == 0
    for codeword in range(codewords):
        if not unused_K[codeword]:
            for place in range(width):
                codebook_GK[place, codeword] = np.float32(sums_KG[codeword, place] / counts_K[codeword])
    for codeword in range(codewords):
        if unused_K[codeword]:
            crowded = np.argmax(counts_K)
            for place in range(width):
                mean = codebook_GK[place, crowded]
                step = _STEP_APART * (values_nG[members_K[crowded], place] - mean)
                codebook_GK[place, codeword] = mean + step
            counts_K[crowded] /= 2


def gaussian_distortion_of(bits: int) -> float:
    """Squared error of the best 2^bits levels for a coordinate of N(0, 1)."""
    return _gaussian_quantizer(bits)[1]


def gaussian_levels(bits: int) -> Float64Array:
    """The best 2^bits levels (L,) for N(0, 1) (Lloyd, 1957; Max, 1960)."""
    return _gaussian_quantizer(bits)[0]


@functools.cache
def _gaussian_quantizer(bits: int) -> tuple[Float64Array, float]:
    grid_X = np.linspace(-8, 8, _GRID)
    return lloyd_max(grid_X, np.exp(-np.square(grid_X) / 2), 2**bits)


@functools.cache
def sphere_levels(dim: int, bits: int) -> Float64Array:
    """The best 2^bits levels (L,) for a coordinate of a random unit vector, times the square root of `dim`.

    Its density is (1 - t^2)^((dim - 3) / 2); the product has variance 1.
    """
    if dim == 1:
        return np.resize(np.array([-1.0, 1.0]), 2**bits)
    # At half steps: in two dimensions the density is infinite at the ends.
    grid_X: Float64Array = (np.arange(_GRID, dtype=np.float64) + 0.5) * (2 / _GRID) - 1
    density_X: Float64Array = np.exp((dim - 3) / 2 * np.log1p(-np.square(grid_X)))
    return lloyd_max(grid_X, density_X, 2**bits)[0] * math.sqrt(dim)


def lloyd_max(grid_X: Float64Array, density_X: Float64Array, count: int) -> tuple[Float64Array, float]:
    """The levels (L,) of least squared error for a density on an even grid, and that error."""
    weights_X = density_X / density_X.sum()
    # Where levels are many, they are best distributed like the cube root of the density.
    share_X = np.cumsum(np.cbrt(weights_X))
    levels_L = np.interp((np.arange(count) + 0.5) / count * share_X[-1], share_X, grid_X)
    half = (grid_X[1] - grid_X[0]) / 2
    cells_X1 = np.concatenate([[grid_X[0] - half], grid_X + half])  # a level may get parts of a cell
    mass_X1 = np.concatenate([[0.0], np.cumsum(weights_X)])
    moment_X1 = np.concatenate([[0.0], np.cumsum(weights_X * grid_X)])
    for _ in range(_LLOYD_ITERATIONS):
        bounds_L1 = np.concatenate([cells_X1[:1], (levels_L[1:] + levels_L[:-1]) / 2, cells_X1[-1:]])
        masses_L = np.diff(np.interp(bounds_L1, cells_X1, mass_X1))
        moments_L = np.diff(np.interp(bounds_L1, cells_X1, moment_X1))
        levels_L = np.where(masses_L > 0, moments_L / np.where(masses_L > 0, masses_L, 1), levels_L)
    error = float((weights_X * np.square(grid_X)).sum() - (masses_L * np.square(levels_L)).sum())
    return levels_L, error


def fit_refiner(coder: Coder, vectors_nD: Float32Array, seed: int, *, codes: Codes | None = None) -> Refiner:
    """Fit refine codes to what the code of a coder leaves of vectors.

    The vectors are in random order, and in the frame of the codec. `codes` are those of the first
    `FITTED_ROWS` of them, if the caller has them; encoding takes most of the time.
    """
    config, plain = coder.config, Frame.plain(coder.dim)
    clamped_nD = coder.clamp(plain, vectors_nD[:FITTED_ROWS])
    codes = _encode(coder, clamped_nD) if codes is None else codes
    stages: list[TransformQuantizer] = []
    refined_nD = refine_base(coder, codes)
    for num_bytes in stage_bytes(config.refine_bytes, coder.dim, config.metric):
        stage = fit_transform(
            config.refine_kind,
            clamped_nD - refined_nD,
            num_bytes=num_bytes,
            seed=seed + len(stages),
            # Queries are distributed like vectors. A squared distance depends on how these differ.
            queries_nD=None if config.metric == "l2" else clamped_nD,
        )
        stages.append(stage)
        refined_nD = refined_nD + stage.decode(stage.encode(clamped_nD - refined_nD))
    square_code = None
    if config.metric != "dot":
        squares_n = squared_lengths(refined_nD)
        square_code = SquareCode.fit(squares_n - coder.estimate_squares(codes), squares_n)
    return Refiner(tuple(stages), config.refine_base, square_code)


def refined_mse(coder: Coder, refiner: Refiner, vectors_nD: Float32Array) -> float:
    """Mean squared error of vectors, in the frame of the codec, with refine codes."""
    clamped_nD = coder.clamp(Frame.plain(coder.dim), vectors_nD)
    codes = _encode(coder, clamped_nD)
    base_nD = refine_base(coder, codes)
    refine = refiner.encode(clamped_nD, base_nD, coder.estimate_squares(codes))
    return mean_square(vectors_nD - refiner.decode(refine, base_nD))


def mean_square(errors_nD: Float32Array) -> float:
    """Mean of the squared lengths."""
    return float(np.square(errors_nD, dtype=np.float64).sum(axis=1).mean())


def _encode(coder: Coder, clamped_nD: Float32Array) -> Codes:
    """Encode as the codec does by default."""
    config = coder.config
    return coder.encode(clamped_nD, beam=config.beam, preselect=scored_pairs(config.beam, config.preselect))
