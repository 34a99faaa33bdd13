"""Fit transform codes: rotation, bits per coordinate, levels, and codebooks.

- "saq": principal components get bits by greedy reverse water-filling, as the dynamic programme of SAQ does
  for segments of 64 (Li et al., "SAQ: Pushing the Limits of Vector Quantization through Code Adjustment and
  Dimension Segmentation", SIGMOD 2026), and the levels that Lloyd and Max found for a Gaussian.
- "pq": principal components are divided among bytes so that each byte has the same share of the bits that
  reverse water-filling gives them, as in OPQ (Ge et al., "Optimized Product Quantization", 2013), and
  codebooks are fitted by k-means. Codewords need not be combinations of levels, and components that are worth
  no bit of their own are coded along with others.
- "turboquant": a random rotation makes all coordinates alike, so that bits and levels need no data (Zandieh
  et al., "TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate", ICLR 2026). One number
  is measured, the mean squared length.

Coordinates share bytes: the bits of the coordinates of a byte sum to 8.

Shape legend: n vectors, D coordinates, B bytes, K codewords, L levels, G coordinates of a group, X points of
a grid.
"""

import dataclasses
import functools
import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.coder import ResidualCoder, TransformCoder, refine_base
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.frame import Float64Array, Frame
from rqmoe_store.codecs.parallel import compiled, run_parallel
from rqmoe_store.codecs.refine import Refiner, SquareCode, squared_lengths, transform_bytes
from rqmoe_store.codecs.transform import (
    CODEWORDS,
    DenseRotation,
    HadamardRotation,
    Rotation,
    TransformQuantizer,
    hadamard_block,
)
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import TransformKind, scored_pairs

FITTED_ROWS = 16_384
"""Most vectors that a transform code is fitted to."""

_BITS = 8
_ITERATIONS = 10
_BISECTIONS = 60
_NEGLIGIBLE = 1e-12
"""Variances below this share of the largest count as rounding errors."""

_GRID = 2**14
_LLOYD_ITERATIONS = 400
_WIDE = 1_024
"""Dimension from which on a random rotation is a fast one, if a large power of two divides the dimension."""

_LEAST_BLOCK = 64


def fit_transform(
    kind: TransformKind, vectors_nD: Float32Array, *, num_bytes: int, seed: int
) -> TransformQuantizer:
    """Fit a transform code of `num_bytes` to vectors (n, D) in random order, at most one byte per dimension.

    The first `FITTED_ROWS` vectors are used.
    """
    vectors_nD = vectors_nD[:FITTED_ROWS]
    if kind == "turboquant":
        return _fit_turboquant(vectors_nD, num_bytes, seed)
    mean_D = vectors_nD.mean(axis=0, dtype=np.float64)
    variances_D, directions_DD = _principal_components(vectors_nD, mean_D)
    if kind == "saq":
        groups = pack_bits(allocate_bits(variances_D, num_bytes * _BITS), num_bytes, variances_D)
    else:
        groups = balance_groups(variances_D, num_bytes)
    order_D = _order_of(groups, len(variances_D))
    rotation = DenseRotation(np.ascontiguousarray(directions_DD[order_D], dtype=np.float32))
    quantizer = _assembled(mean_D.astype(np.float32), rotation, groups, np.sqrt(variances_D), gaussian_levels)
    return quantizer if kind == "saq" else _with_fitted_codebooks(quantizer, vectors_nD)


def _principal_components(
    vectors_nD: Float32Array, mean_D: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Variances (D,), descending, and the directions (D, D) that have them, one a row."""
    centered_nD = vectors_nD - mean_D
    variances_D, columns_DD = np.linalg.eigh(centered_nD.T @ centered_nD / len(vectors_nD))
    # Rounding may make the variance of a direction without any slightly negative.
    return variances_D[::-1].clip(min=0), columns_DD.T[::-1]


def _fit_turboquant(vectors_nD: Float32Array, num_bytes: int, seed: int) -> TransformQuantizer:
    dim = vectors_nD.shape[1]
    mean_square = float(np.square(vectors_nD, dtype=np.float64).sum(axis=1).mean())
    # Levels are for coordinates of unit variance; a vector of length 1 has coordinates of variance 1 / D.
    deviations_D = np.full(dim, math.sqrt(mean_square / dim))
    groups = pack_bits(allocate_bits(np.ones(dim), num_bytes * _BITS), num_bytes, np.ones(dim))
    levels = functools.partial(sphere_levels, dim)
    return _assembled(np.zeros(dim, np.float32), random_rotation(dim, seed), groups, deviations_D, levels)


def random_rotation(dim: int, seed: int) -> Rotation:
    """A random rotation; a fast one for wide vectors."""
    generator = np.random.default_rng(seed)
    if dim >= _WIDE and hadamard_block(dim) >= _LEAST_BLOCK:
        return HadamardRotation.draw(dim, generator)
    matrix_DD, triangle_DD = np.linalg.qr(generator.standard_normal((dim, dim)))
    return DenseRotation(np.ascontiguousarray(matrix_DD * np.sign(np.diag(triangle_DD)), dtype=np.float32))


def allocate_bits(variances_D: Float64Array, bits: int) -> npt.NDArray[np.int64]:
    """Bits (D,) of every coordinate, at most 8: each bit goes where it lowers the squared error most."""
    distortions = [gaussian_distortion_of(count) for count in range(_BITS + 1)]
    gains = [before - after for before, after in itertools.pairwise(distortions)]
    bits_D = np.zeros(len(variances_D), np.int64)
    queue = [(-variance * gains[0], place) for place, variance in enumerate(variances_D.tolist())]
    heapq.heapify(queue)
    for _ in range(min(bits, _BITS * len(variances_D))):
        _, place = heapq.heappop(queue)
        bits_D[place] += 1
        if bits_D[place] < _BITS:
            heapq.heappush(queue, (-float(variances_D[place]) * gains[bits_D[place]], place))
    return bits_D


@dataclasses.dataclass
class Group:
    """The coordinates that share a byte, with their bits, which sum to 8 if there are coordinates enough."""

    places: list[int] = dataclasses.field(default_factory=list)
    bits: list[int] = dataclasses.field(default_factory=list)

    @property
    def free(self) -> int:
        """Bits that are left."""
        return _BITS - sum(self.bits)

    def add(self, place: int, bits: int) -> None:
        """Add a coordinate."""
        self.places.append(place)
        self.bits.append(bits)


def pack_bits(bits_D: npt.NDArray[np.int64], num_bytes: int, variances_D: Float64Array) -> list[Group]:
    """Divide coordinates among bytes: those with bits, from the most bits on, where they fit best.

    A coordinate that fits nowhere gets as many bits as there is room for. Bits that are left over go to the
    coordinates of the byte. Bytes are ordered by what they explain, so that prefixes of codes are good.
    """
    groups = [Group() for _ in range(num_bytes)]
    for place in np.argsort(-bits_D, kind="stable").tolist():
        wanted = int(bits_D[place])
        fitting = [group for group in groups if group.free >= max(1, wanted)]
        if wanted and fitting:
            min(fitting, key=lambda group: group.free).add(place, wanted)
        elif any(group.free and (wanted or not group.places) for group in groups):
            roomiest = max(groups, key=lambda group: group.free)
            roomiest.add(place, min(max(1, wanted), roomiest.free))
    for group in groups:
        _spend_left_over(group, variances_D)
    return sorted(groups, key=lambda group: -_explained(group, variances_D))


def balance_groups(variances_D: Float64Array, num_bytes: int) -> list[Group]:
    """Divide all coordinates among bytes, each with about the same number of bits by reverse water-filling.

    Coordinates that get no bits go to the bytes with the fewest coordinates. Bits within a byte are for the
    codebook that k-means starts from.
    """
    rates_D = water_filling_rates(variances_D, num_bytes * _BITS)
    groups, sums = [Group() for _ in range(num_bytes)], [0.0] * num_bytes
    for place in np.argsort(-rates_D, kind="stable").tolist():
        # A byte without any coordinate would be wasted.
        empty = [byte for byte, group in enumerate(groups) if not group.places]
        fewest = min(range(num_bytes), key=lambda byte: len(groups[byte].places))
        least = min(range(num_bytes), key=lambda byte: sums[byte])
        byte = empty[0] if empty else least if rates_D[place] > 0 else fewest
        groups[byte].add(place, 0)
        sums[byte] += float(rates_D[place])
    for group in groups:
        _spend_left_over(group, variances_D)
    return sorted(groups, key=lambda group: -_explained(group, variances_D))


def water_filling_rates(variances_D: Float64Array, bits: int) -> Float64Array:
    """Bits (D,) of every coordinate by reverse water-filling, which sum to `bits`; fractions are allowed."""
    log_D = np.log2(np.maximum(variances_D, max(variances_D.max(), 1e-300) * _NEGLIGIBLE))
    low, high = log_D.min() - 2 * bits, log_D.max()
    for _ in range(_BISECTIONS):
        level = (low + high) / 2
        if np.maximum(0, (log_D - level) / 2).sum() > bits:
            low = level
        else:
            high = level
    return np.asarray(np.maximum(0, (log_D - high) / 2), dtype=np.float64)


def _spend_left_over(group: Group, variances_D: Float64Array) -> None:
    while group.free:
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


def _order_of(groups: Sequence[Group], dim: int) -> npt.NDArray[np.int64]:
    """The coordinates in the order of bytes, then those that no byte codes."""
    coded = [place for group in groups for place in group.places]
    return np.array([*coded, *sorted(set(range(dim)) - set(coded))], dtype=np.int64)


def _assembled(
    mean_D: Float32Array,
    rotation: Rotation,
    groups: Sequence[Group],
    deviations_D: Float64Array,
    levels: Callable[[int], Float64Array],
) -> TransformQuantizer:
    """A quantizer whose codewords are all combinations of levels."""
    starts_B1 = np.cumsum([0, *(len(group.places) for group in groups)]).astype(np.int32)
    codebooks_CK = np.empty((starts_B1[-1], CODEWORDS), np.float32)
    for start, group in zip(starts_B1[:-1], groups, strict=True):
        numbers_K, shift = np.arange(CODEWORDS), 0
        for offset, (place, bits) in enumerate(zip(group.places, group.bits, strict=True)):
            chosen_K = (numbers_K >> shift) & (2**bits - 1)
            codebooks_CK[start + offset] = levels(bits)[chosen_K] * deviations_D[place]
            shift += bits
    return TransformQuantizer(mean_D, rotation, starts_B1, codebooks_CK)


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
            _ITERATIONS,
        )
        for start, stop in runs
    )
    return dataclasses.replace(quantizer, codebooks_CK=codebooks_CK)


@compiled
def improve_codebook(values_nG: Any, codebook_GK: Any, iterations: int) -> None:
    """Improve a codebook by iterations of k-means, in place; codewords without vectors stay as they are."""
    rows, width = values_nG.shape
    codewords = codebook_GK.shape[1]
    distances_K = np.empty(codewords, np.float32)
    for _ in range(iterations):
        sums_KG, counts_K = np.zeros((codewords, width)), np.zeros(codewords)
        for row in range(rows):
            distances_K[:] = 0
            for place in range(width):
                value = values_nG[row, place]
                for codeword in range(codewords):
                    difference = value - codebook_GK[place, codeword]
                    distances_K[codeword] += difference * difference
            nearest = np.argmin(distances_K)
            counts_K[nearest] += 1
            for place in range(width):
                sums_KG[nearest, place] += values_nG[row, place]
        for codeword in range(codewords):
            if counts_K[codeword]:
                for place in range(width):
                    codebook_GK[place, codeword] = np.float32(sums_KG[codeword, place] / counts_K[codeword])


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
    """The levels (L,) of least squared error for a density on a grid, and that error."""
    weights_X = density_X / density_X.sum()
    # Where levels are many, they are best distributed like the cube root of the density.
    share_X = np.cumsum(np.cbrt(weights_X))
    levels_L = np.interp((np.arange(count) + 0.5) / count * share_X[-1], share_X, grid_X)
    mass_X = np.concatenate([[0.0], np.cumsum(weights_X)])
    moment_X = np.concatenate([[0.0], np.cumsum(weights_X * grid_X)])
    for _ in range(_LLOYD_ITERATIONS):
        edges = np.searchsorted(grid_X, (levels_L[1:] + levels_L[:-1]) / 2)
        bounds = np.concatenate([[0], edges, [len(grid_X)]])
        masses_L, moments_L = np.diff(mass_X[bounds]), np.diff(moment_X[bounds])
        levels_L = np.where(masses_L > 0, moments_L / np.where(masses_L > 0, masses_L, 1), levels_L)
    error = float((weights_X * np.square(grid_X)).sum() - (masses_L * np.square(levels_L)).sum())
    return levels_L, error


def fit_refiner(coder: ResidualCoder | TransformCoder, vectors_nD: Float32Array, seed: int) -> Refiner:
    """Fit refine codes to what the code of a coder leaves of vectors.

    The vectors are in random order, and in the frame of the codec.
    """
    config, plain = coder.config, Frame.plain(coder.dim)
    clamped_nD = coder.clamp(plain, vectors_nD[:FITTED_ROWS])
    codes = _encode(coder, clamped_nD)
    base_nD = refine_base(coder, codes)
    num_bytes = transform_bytes(config.refine_bytes, config.metric)
    quantizer = fit_transform(config.refine_kind, clamped_nD - base_nD, num_bytes=num_bytes, seed=seed)
    square_code = None
    if config.metric != "dot":
        refined_nD = base_nD + quantizer.decode(quantizer.encode(clamped_nD - base_nD))
        square_code = SquareCode.fit(squared_lengths(refined_nD) - coder.estimate_squares(codes))
    return Refiner(quantizer, config.refine_base, square_code)


def refined_mse(coder: ResidualCoder | TransformCoder, refiner: Refiner, vectors_nD: Float32Array) -> float:
    """Mean squared error of vectors, in the frame of the codec, with refine codes."""
    clamped_nD = coder.clamp(Frame.plain(coder.dim), vectors_nD)
    codes = _encode(coder, clamped_nD)
    base_nD = refine_base(coder, codes)
    refine = refiner.encode(clamped_nD, base_nD, coder.estimate_squares(codes))
    return mean_square(vectors_nD - refiner.decode(refine, base_nD))


def mean_square(errors_nD: Float32Array) -> float:
    """Mean of the squared lengths."""
    return float(np.square(errors_nD, dtype=np.float64).sum(axis=1).mean())


def _encode(coder: ResidualCoder | TransformCoder, clamped_nD: Float32Array) -> Codes:
    """Encode as the codec does by default."""
    config = coder.config
    return coder.encode(clamped_nD, beam=config.beam, preselect=scored_pairs(config.beam, config.preselect))
