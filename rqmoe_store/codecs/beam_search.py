"""Beam search in compiled loops: vectors to codes, and codes to vectors, on a CPU.

This computes what `encoding.encode` and `ResidualQuantizer.decode` compute on a GPU, in the encoder's
coordinates (see `EncodingTables`), without torch. A row's sums have one order whatever rows are computed with
it, so codes and vectors depend neither on batches nor on the number of threads.

Shape legend: n rows, B rows of one task, D dimension, M steps, K codewords, P partitions (at least 1), R beam
entries, A candidates of one vector, V = B * R beam entries of all vectors, X width of the encoder's
coordinates, W network width, E conditioning width, F first-layer features.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.deformation import (
    LANES,
    DeformationBuffers,
    ExpertArrays,
    deformation_buffers,
    squared_length,
    subtract_deformation,
)
from rqmoe_store.codecs.parallel import compiled, num_threads, run_chunks_parallel
from rqmoe_store.codecs.products import multiply_rows
from rqmoe_store.codecs.vectors import Float32Array


class CodecArrays(NamedTuple):
    """What encoding and decoding read of a quantizer."""

    experts: ExpertArrays
    codebooks_MKX: Float32Array
    components_MKE: Float32Array
    """What every codeword adds to the conditioning vector; without columns if that follows the deformed
    codeword."""
    narrow_XE: Float32Array
    """Maps a deformed codeword to what it adds to the conditioning vector; without columns otherwise."""


class SearchArrays(NamedTuple):
    """What encoding reads besides."""

    transposed_MXK: Float32Array
    """The codebooks once more, in the layout of matrix products."""
    norms_MK: Float32Array
    """Squared lengths of the codewords."""


_TASK_BYTES = 2**20
"""Memory for the rows of one task: a core's second cache."""

_MOST_ROWS = 64
"""Rows of a task: enough to read weights from memory once for many rows."""


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledQuantizer:
    """A residual quantizer that encodes and decodes on a CPU."""

    arrays: CodecArrays
    mean_D: Float32Array
    scale: np.float32
    centroids_PD: Float32Array
    """Zeros without partitions."""
    conditions_PE: Float32Array
    """Conditioning vectors of the first step."""
    subspace_WD: Float32Array | None
    """Of `EncodingTables`."""

    def encode(self, vectors_nD: Float32Array, *, beam: int, preselect: int | None) -> Codes:
        """Encode clamped vectors in the frame of the codec."""
        codes_nM = np.empty((len(vectors_nD), len(self.arrays.codebooks_MKX)), np.uint8)
        partitions_n = np.zeros(len(vectors_nD), np.int32)

        def encode_rows(start: int, stop: int, _: int) -> None:
            normalized_BD = (vectors_nD[start:stop] - self.mean_D) / self.scale
            if len(self.centroids_PD) > 1:
                nearest_centroids(normalized_BD, *self._centroids, partitions_n[start:stop])
            chosen_B = partitions_n[start:stop]
            residual_BX = self._transform(normalized_BD - self.centroids_PD[chosen_B])
            condition_BE, codes_BM = self.conditions_PE[chosen_B], codes_nM[start:stop]
            search_codes(self.arrays, self._search, residual_BX, condition_BE, beam, preselect or 0, codes_BM)

        size, width = self.arrays.codebooks_MKX.shape[1:]
        self._run(len(vectors_nD), beam * (size + 2 * width), encode_rows)
        return Codes(codes_nM, partitions_n)

    def decode(self, codes: Codes) -> Float32Array:
        """Decode checked codes, or prefixes of them, to vectors (n, D)."""
        decoded_nD = np.empty((len(codes), len(self.mean_D)), np.float32)

        def decode_rows(start: int, stop: int, _: int) -> None:
            # Copies, as compiled loops take arrays of one layout, which can be written to.
            codes_BM, chosen_B = np.array(codes.codes[start:stop], order="C"), codes.partitions[start:stop]
            left_BX = np.zeros((stop - start, self.arrays.codebooks_MKX.shape[2]), np.float32)
            subtract_codewords(self.arrays, codes_BM, self.conditions_PE[chosen_B], left_BX)
            summed_BD = self.centroids_PD[chosen_B] - self._inverse_transform(left_BX)
            decoded_nD[start:stop] = summed_BD * self.scale + self.mean_D

        self._run(len(codes), 2 * self.arrays.codebooks_MKX.shape[2], decode_rows)
        return decoded_nD

    def _run(self, total: int, floats_per_row: int, work: Any) -> None:
        """Do the work on all rows, in as many tasks as there are threads, or more."""
        floats_per_row += self.arrays.experts.codeword_SKF.shape[2]
        rows = min(_MOST_ROWS, _TASK_BYTES // (4 * floats_per_row), -(-total // num_threads()))
        run_chunks_parallel(total, max(1, rows), work)

    @functools.cached_property
    def _search(self) -> SearchArrays:
        codebooks_MKX = self.arrays.codebooks_MKX
        transposed_MXK = np.ascontiguousarray(codebooks_MKX.transpose(0, 2, 1))
        return SearchArrays(transposed_MXK, np.square(codebooks_MKX).sum(axis=2))

    @functools.cached_property
    def _centroids(self) -> tuple[Float32Array, Float32Array]:
        """The centroids in the layout of matrix products, and their squared lengths."""
        return np.ascontiguousarray(self.centroids_PD.T), np.square(self.centroids_PD).sum(axis=1)

    @functools.cached_property
    def _subspace_DW(self) -> Float32Array | None:
        return None if self.subspace_WD is None else np.ascontiguousarray(self.subspace_WD.T)

    def _transform(self, vectors_BD: Float32Array) -> Float32Array:
        """Vectors in the encoder's coordinates (B, X)."""
        if self.subspace_WD is None or self._subspace_DW is None:
            return vectors_BD
        inside_BW = _product(vectors_BD, self._subspace_DW)
        outside_BD = vectors_BD - _product(inside_BW, self.subspace_WD)
        return np.concatenate([outside_BD, inside_BW], axis=1)

    def _inverse_transform(self, vectors_BX: Float32Array) -> Float32Array:
        """Inverse of `_transform`."""
        if self.subspace_WD is None:
            return vectors_BX
        dim = self.subspace_WD.shape[1]
        inside_BW = np.ascontiguousarray(vectors_BX[:, dim:])
        return np.asarray(vectors_BX[:, :dim] + _product(inside_BW, self.subspace_WD))


def _product(vectors_BD: Float32Array, matrix_DE: Float32Array) -> Float32Array:
    product_BE = np.empty((len(vectors_BD), matrix_DE.shape[1]), np.float32)
    multiply_rows(vectors_BD, matrix_DE, product_BE)
    return product_BE


@compiled
def nearest_centroids(vectors_BD: Any, centroids_DP: Any, norms_P: Any, nearest_B: Any) -> None:
    """Fill in the number of the centroid that is nearest to each vector."""
    products_BP = np.empty((len(vectors_BD), len(norms_P)), np.float32)
    multiply_rows(vectors_BD, centroids_DP, products_BP)
    for row in range(len(vectors_BD)):
        nearest, best = 0, np.float32(np.inf)
        for centroid in range(len(norms_P)):
            score = norms_P[centroid] - np.float32(2) * products_BP[row, centroid]
            if score < best:
                nearest, best = centroid, score
        nearest_B[row] = nearest


class _Beam(NamedTuple):
    """The partial encodings of B vectors: R entries of each, one vector after the other."""

    residual_VX: Float32Array
    distance_V: Float32Array
    """Squared lengths of the residuals."""
    condition_VE: Float32Array
    codes_VM: Any
    source_V: Any
    """The entries of the step before that they continue."""


class _Kept(NamedTuple):
    """The best continuations of one vector, nearest first."""

    distance_R: Float32Array
    pair_R: Any
    """Numbers of beam entry and codeword: entry * K + codeword."""
    slot_R: Any
    """Their places in `residual_RX`."""
    residual_RX: Float32Array


class _Buffers(NamedTuple):
    """Memory for the work on one vector."""

    scores_A: Float32Array
    pairs_A: Any
    lanes: Float32Array
    features_F: Float32Array
    left_X: Float32Array
    deformation: DeformationBuffers
    kept: _Kept


@compiled
def search_codes(
    arrays: CodecArrays,
    search: SearchArrays,
    residual_BX: Any,
    condition_BE: Any,
    beam: int,
    preselect: int,
    codes_BM: Any,
) -> None:
    """Fill in the codes of B vectors.

    Args:
        arrays: arrays of the quantizer.
        search: further arrays for encoding.
        residual_BX: normalized vectors after their centroids, in the encoder's coordinates.
        condition_BE: conditioning vectors of the first step.
        beam: partial encodings kept per vector.
        preselect: candidates that the experts score per vector and step; 0 for all of them.
        codes_BM: result.
    """
    experts, size = arrays.experts, arrays.codebooks_MKX.shape[1]
    rows, num_steps = codes_BM.shape
    buffers = _new_buffers(arrays, beam)
    state, following = _new_beam(arrays, rows * beam), _new_beam(arrays, rows * beam)
    scores_VK = np.empty((rows * beam, size), np.float32)
    features_VF = np.empty((rows * beam, experts.codeword_SKF.shape[2]), np.float32)
    for row in range(rows):
        _copy(residual_BX[row], state.residual_VX[row])
        _copy(condition_BE[row], state.condition_VE[row])
        state.distance_V[row] = squared_length(residual_BX[row], buffers.lanes)
    entries = 1  # of every vector
    for step in range(num_steps):
        index = _expert_index(experts, step)
        keep = min(1 if step + 1 == num_steps else beam, entries * size)
        _score_codewords(search, step, state, scores_VK[: rows * entries])
        if index >= 0:
            condition_VE = state.condition_VE[: rows * entries]
            multiply_rows(condition_VE, experts.condition_SEF[index], features_VF[: rows * entries])
        for row in range(rows):
            own = slice(row * entries, (row + 1) * entries)
            count = keep
            if index >= 0:
                count = entries * size if preselect == 0 else min(max(keep, preselect), entries * size)
            preselect_pairs(scores_VK[own], count, buffers.scores_A, buffers.pairs_A)
            _keep_best(arrays, step, index, state.residual_VX[own], features_VF[own], count, keep, buffers)
            _continue(arrays, step, state, row * entries, buffers.kept, following, row * keep, keep)
        if arrays.narrow_XE.shape[1]:
            _follow_codewords(arrays, state, following, rows * keep)
        state, following, entries = following, state, keep
    for row in range(rows):
        _copy(state.codes_VM[row], codes_BM[row])


@compiled
def _expert_index(experts: ExpertArrays, step: int) -> int:
    """The number of the experts of a step; -1 without any."""
    index = step - experts.first_step
    return index if 0 <= index < len(experts.codeword_SKF) else -1


@compiled
def _new_beam(arrays: CodecArrays, most: int) -> _Beam:
    num_steps, _, width = arrays.codebooks_MKX.shape
    return _Beam(
        np.empty((most, width), np.float32),
        np.empty(most, np.float32),
        np.empty((most, arrays.experts.condition_SEF.shape[1]), np.float32),
        np.empty((most, num_steps), np.uint8),
        np.empty(most, np.int64),
    )


@compiled
def _new_buffers(arrays: CodecArrays, beam: int) -> _Buffers:
    size, width = arrays.codebooks_MKX.shape[1], arrays.codebooks_MKX.shape[2]
    return _Buffers(
        np.empty(beam * size, np.float32),
        np.empty(beam * size, np.int64),
        np.empty(LANES, np.float32),
        np.empty(arrays.experts.codeword_SKF.shape[2], np.float32),
        np.empty(width, np.float32),
        deformation_buffers(arrays.experts),
        _Kept(
            np.empty(beam, np.float32),
            np.empty(beam, np.int64),
            np.empty(beam, np.int64),
            np.empty((beam, width), np.float32),
        ),
    )


@compiled
def _score_codewords(search: SearchArrays, step: int, state: _Beam, scores_VK: Any) -> None:
    """Fill in the squared lengths of residuals after every undeformed codeword of the step."""
    norms_K = search.norms_MK[step]
    multiply_rows(state.residual_VX[: len(scores_VK)], search.transposed_MXK[step], scores_VK)
    for entry in range(len(scores_VK)):
        distance, scores_K = state.distance_V[entry], scores_VK[entry]
        for codeword in range(len(norms_K)):
            scores_K[codeword] = norms_K[codeword] - np.float32(2) * scores_K[codeword] + distance


@compiled
def preselect_pairs(scores_RK: Any, count: int, chosen_A: Any, pairs_A: Any) -> None:
    """Fill in the `count` smallest scores and the numbers of their pairs, in ascending order; in any order if
    that is all of them."""
    entries, size = scores_RK.shape
    everything, found = count == entries * size, 0
    for entry in range(entries):
        scores_K = scores_RK[entry]
        for codeword in range(size):
            score = scores_K[codeword]
            if found == count:
                if not score < chosen_A[count - 1]:
                    continue
                found -= 1
            place = found
            while not everything and place > 0 and score < chosen_A[place - 1]:
                chosen_A[place], pairs_A[place] = chosen_A[place - 1], pairs_A[place - 1]
                place -= 1
            chosen_A[place], pairs_A[place] = score, entry * size + codeword
            found += 1


@compiled
def _keep_best(
    arrays: CodecArrays,
    step: int,
    index: int,
    residual_RX: Any,
    features_RF: Any,
    count: int,
    keep: int,
    buffers: _Buffers,
) -> None:
    """Keep the best of the first `count` candidates of one vector in `buffers.kept`.

    Args:
        arrays: arrays of the quantizer.
        step: number of the step.
        index: number of its experts, -1 without any.
        residual_RX: residuals of the vector's beam entries.
        features_RF: the entries' shares of the first-layer features.
        count: candidates in `buffers`.
        keep: how many to keep.
        buffers: memory.
    """
    size, left_X = arrays.codebooks_MKX.shape[1], buffers.left_X
    inside_W = left_X[len(left_X) - arrays.experts.output_SGW.shape[2] :]
    found = 0
    for candidate in range(count):
        pair, distance = buffers.pairs_A[candidate], buffers.scores_A[candidate]
        entry, codeword = pair // size, pair % size
        _copy(residual_RX[entry], left_X)
        _subtract(left_X, arrays.codebooks_MKX[step, codeword], left_X)
        if index >= 0:
            # Deformations do not change the rest of the distance. Without a projection there is no rest.
            rest = np.float32(0)
            if len(inside_W) < len(left_X):
                rest = distance - squared_length(inside_W, buffers.lanes)
            _subtract_experts(arrays, index, codeword, features_RF[entry], buffers, inside_W)
            distance = squared_length(inside_W, buffers.lanes) + rest
        found = _insert(buffers.kept, found, keep, distance, pair, left_X)


@compiled
def _subtract_experts(
    arrays: CodecArrays, index: int, codeword: int, share_F: Any, buffers: _Buffers, inside_W: Any
) -> None:
    """Subtract the deformation of a codeword, given the condition's share of the first-layer features."""
    features_F, codeword_F = buffers.features_F, arrays.experts.codeword_SKF[index, codeword]
    for feature in range(len(features_F)):
        features_F[feature] = codeword_F[feature] + share_F[feature]
    subtract_deformation(arrays.experts, index, features_F, buffers.deformation, inside_W)


@compiled
def _insert(kept: _Kept, found: int, keep: int, distance: Any, pair: int, left_X: Any) -> int:
    """Insert a continuation if it is among the best; return how many there are."""
    slot, at = found, found
    if found == keep:
        if not distance < kept.distance_R[keep - 1]:
            return found
        slot, at = kept.slot_R[keep - 1], keep - 1
    _copy(left_X, kept.residual_RX[slot])
    while at > 0 and distance < kept.distance_R[at - 1]:
        kept.distance_R[at], kept.pair_R[at] = kept.distance_R[at - 1], kept.pair_R[at - 1]
        kept.slot_R[at] = kept.slot_R[at - 1]
        at -= 1
    kept.distance_R[at], kept.pair_R[at], kept.slot_R[at] = distance, pair, slot
    return min(found + 1, keep)


@compiled
def _continue(
    arrays: CodecArrays,
    step: int,
    state: _Beam,
    first: int,
    kept: _Kept,
    following: _Beam,
    start: int,
    keep: int,
) -> None:
    """Write the beam entries of one vector after the step, from those that begin at `first`."""
    size = arrays.codebooks_MKX.shape[1]
    for place in range(keep):
        entry, codeword = kept.pair_R[place] // size + first, kept.pair_R[place] % size
        _copy(kept.residual_RX[kept.slot_R[place]], following.residual_VX[start + place])
        following.distance_V[start + place] = kept.distance_R[place]
        _copy(state.codes_VM[entry, :step], following.codes_VM[start + place])
        following.codes_VM[start + place, step] = codeword
        following.source_V[start + place] = entry
        _copy(state.condition_VE[entry], following.condition_VE[start + place])
        if arrays.components_MKE.shape[2]:
            _add(arrays.components_MKE[step, codeword], following.condition_VE[start + place])


@compiled
def _follow_codewords(arrays: CodecArrays, state: _Beam, following: _Beam, used: int) -> None:
    """Add to the conditioning vectors what they follow of the deformed codewords."""
    chosen_VX = np.empty((used, state.residual_VX.shape[1]), np.float32)
    for entry in range(used):
        source_X = state.residual_VX[following.source_V[entry]]
        _subtract(source_X, following.residual_VX[entry], chosen_VX[entry])
    _add_narrowed(arrays, chosen_VX, following.condition_VE[:used])


@compiled
def _add_narrowed(arrays: CodecArrays, chosen_VX: Any, condition_VE: Any) -> None:
    increment_VE = np.empty(condition_VE.shape, np.float32)
    multiply_rows(chosen_VX, arrays.narrow_XE, increment_VE)
    for entry in range(len(condition_VE)):
        _add(increment_VE[entry], condition_VE[entry])


@compiled
def subtract_codewords(arrays: CodecArrays, codes_BM: Any, condition_BE: Any, left_BX: Any) -> None:
    """Subtract from vectors, in the encoder's coordinates, the deformed codewords of B codes.

    `condition_BE` has the conditioning vectors of the first step, and is overwritten.
    """
    experts, buffers = arrays.experts, _new_buffers(arrays, 1)
    width, inside = left_BX.shape[1], left_BX.shape[1] - experts.output_SGW.shape[2]
    features_BF = np.empty((len(codes_BM), experts.codeword_SKF.shape[2]), np.float32)
    chosen_BX = np.empty((len(codes_BM), width if arrays.narrow_XE.shape[1] else 0), np.float32)
    # The outer loop is that of steps, so that a step's weights are read from memory once.
    for step in range(codes_BM.shape[1]):
        index = _expert_index(experts, step)
        if index >= 0:
            multiply_rows(condition_BE, experts.condition_SEF[index], features_BF)
        for row in range(len(codes_BM)):
            codeword = codes_BM[row, step]
            if arrays.narrow_XE.shape[1]:
                _copy(left_BX[row], chosen_BX[row])
            _subtract(left_BX[row], arrays.codebooks_MKX[step, codeword], left_BX[row])
            if index >= 0:
                _subtract_experts(arrays, index, codeword, features_BF[row], buffers, left_BX[row, inside:])
            if arrays.components_MKE.shape[2]:
                _add(arrays.components_MKE[step, codeword], condition_BE[row])
            if arrays.narrow_XE.shape[1]:
                _subtract(chosen_BX[row], left_BX[row], chosen_BX[row])
        if arrays.narrow_XE.shape[1]:
            _add_narrowed(arrays, chosen_BX, condition_BE)


@compiled
def _copy(values_X: Any, copies_X: Any) -> None:
    # Compilers take far longer for assignments of slices, which can fail.
    for place in range(len(values_X)):
        copies_X[place] = values_X[place]


@compiled
def _add(values_X: Any, totals_X: Any) -> None:
    for place in range(len(values_X)):
        totals_X[place] += values_X[place]


@compiled
def _subtract(values_X: Any, others_X: Any, differences_X: Any) -> None:
    for place in range(len(values_X)):
        differences_X[place] = values_X[place] - others_X[place]
