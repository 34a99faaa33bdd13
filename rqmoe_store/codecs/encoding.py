"""Encoding: any number of vectors to codes, by the nearest partition and a beam search over the steps.

At every step each of R beam entries proposes all K codewords. Scoring them exactly runs the experts on
R x K candidates. With `preselect=A`, the undeformed codewords rank these pairs first, in one matrix
product, and the experts score only the best A. `beam=1, preselect=None` is the exhaustive encoder of the
RQ-MoE paper (arXiv 2605.14359). It scores `_BLOCK` candidates at a time, so no tensor of size
batch x codebook x dimension ever exists.

Shape legend: n vectors, B vectors of one chunk, D dimension, M steps, K codewords, P partitions, R beam
entries, A candidates, W network width, X width of the encoder's coordinates (see `EncodingTables`),
E conditioning width, S steps with experts, F first-layer features, G gated hidden units.
"""

import copy
import dataclasses
import functools

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from torch import Tensor

from rqmoe_store.codecs.beam_search import CodecArrays, CompiledQuantizer
from rqmoe_store.codecs.candidates import best_pairs, deformed_residuals, gated_units
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.deformation import ExpertArrays
from rqmoe_store.codecs.device import as_tensor, full_precision
from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.graphs import HostComputation
from rqmoe_store.codecs.parallel import rows_in_budget, run_chunks
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.vectors import Float32Array

_CPU_BYTES, _GPU_BYTES = 2**24, 2**31
"""Memory for one chunk: about a CPU's last-level cache, a small part of a GPU's memory."""

_MOST_ROWS = 2**13
"""As many as `codes.encode_vectors` passes at a time: larger chunks would be padding for the most part."""

_PADDING, _LEAST_PADDED = 4, 32
"""Ratio of two sizes that chunks are padded to, and the smallest one that there may be."""

_MOST_RECORDED = 512
"""Most vectors that a GPU encodes by one launch. Of more, kernels take longer than their launches."""

_RECORDED_SHARE = 8
"""A recording, which keeps its memory, takes at most one part in this many of the memory for a chunk."""

_BLOCK = 32
"""Candidates per vector that the experts score at a time."""


@dataclasses.dataclass(frozen=True)
class EncodingTables:
    """A quantizer's codebooks and expert weights in the encoder's coordinates.

    Experts narrower than the vectors end in a projection Q (W x D), so their deformations lie in a
    W-dimensional subspace. The encoder's coordinates are [part outside that subspace; coordinates inside it],
    X = D + W. They preserve distances, and a deformation changes the last W of them only, so no candidate is
    ever widened to D. Without a projection X = D = W.
    """

    quantizer: ResidualQuantizer
    codebooks_MKX: Tensor
    norms_MK: Tensor
    """Squared lengths of the codewords."""
    folded: FoldedExperts | None
    contract_SGW: Tensor | None
    """Maps gated hidden units to the coordinates that deformations change."""
    subspace_WD: Tensor | None
    """Orthonormal rows that span the deformations; None if these fill the whole space."""

    @functools.cached_property
    def compiled(self) -> CompiledQuantizer:
        """The quantizer on a CPU, whose weights must be there."""
        with torch.device("cpu"):  # the caller may have another default
            return _compiled_quantizer(self)

    def transform(self, vectors: Tensor) -> Tensor:
        """Vectors (..., D) in the encoder's coordinates (..., X)."""
        if self.subspace_WD is None:
            return vectors
        inside = vectors @ self.subspace_WD.T
        return torch.cat([vectors - inside @ self.subspace_WD, inside], dim=-1)

    def inverse_transform(self, vectors: Tensor) -> Tensor:
        """Inverse of `transform`: coordinates (..., X) as vectors (..., D)."""
        if self.subspace_WD is None:
            return vectors
        dim = self.subspace_WD.shape[1]
        return vectors[..., :dim] + vectors[..., dim:] @ self.subspace_WD.to(vectors.dtype)


def encoding_tables(
    quantizer: ResidualQuantizer, folded: FoldedExperts | None, *, with_subspace: bool = True
) -> EncodingTables:
    """The encoding tables of a quantizer.

    Args:
        quantizer: the quantizer.
        folded: its `fold()`, outside the autograd graph.
        with_subspace: find the subspace of the deformations, which takes a decomposition. Without it,
            candidates are widened to D, which takes little time for few of them.
    """
    codebooks_MKD = quantizer.codebooks_MKD.detach()
    norms_MK = codebooks_MKD.square().sum(dim=2)
    if folded is None:
        return EncodingTables(quantizer, codebooks_MKD, norms_MK, None, None, None)
    contract_SGW = folded.contracting(slice(None))
    if folded.output_projection_WD is None:
        return EncodingTables(quantizer, codebooks_MKD, norms_MK, folded, contract_SGW, None)
    if not with_subspace:
        contract_SGD = contract_SGW @ folded.output_projection_WD
        return EncodingTables(quantizer, codebooks_MKD, norms_MK, folded, contract_SGD, None)
    # With Q^T = O R, O orthonormal, g V Q = (g V R^T) O^T: the rows of O^T are a basis of the subspace.
    subspace_DW, mixing_WW = torch.linalg.qr(folded.output_projection_WD.T)
    tables = EncodingTables(
        quantizer, codebooks_MKD, norms_MK, folded, contract_SGW @ mixing_WW.T, subspace_DW.T.contiguous()
    )
    return dataclasses.replace(tables, codebooks_MKX=tables.transform(codebooks_MKD))


@torch.no_grad()
def exact_tables(quantizer: ResidualQuantizer) -> EncodingTables:
    """The encoding tables of a quantizer that stays as it is, computed in float64 and rounded to float32."""
    exact = _in_float64(quantizer)
    tables = encoding_tables(exact, exact.fold())
    if tables.folded is None or quantizer.mixture is None:
        return encoding_tables(quantizer, None)
    mixture = quantizer.mixture
    folded = FoldedExperts(
        tables.folded.codeword_SKF.float(),
        tables.folded.condition_SEF.float(),
        mixture.contract_SLNHW.detach(),
        mixture.expand_SLNHW.detach(),
        None if mixture.output_projection_WD is None else mixture.output_projection_WD.detach(),
    )
    if tables.subspace_WD is None or tables.contract_SGW is None:
        return encoding_tables(quantizer, folded)  # which multiplies no matrices, and shares memory
    return EncodingTables(
        quantizer,
        tables.codebooks_MKX.float(),
        tables.norms_MK.float(),
        folded,
        tables.contract_SGW.float(),
        tables.subspace_WD.float(),
    )


def _in_float64(quantizer: ResidualQuantizer) -> ResidualQuantizer:
    """A copy that computes in float64, which no setting of the caller changes.

    `torch.autocast` and `torch.set_float32_matmul_precision` have float32 matrices multiplied in bfloat16,
    and codes would follow.
    """
    return copy.deepcopy(quantizer).double()


@torch.inference_mode()
def _compiled_quantizer(tables: EncodingTables) -> CompiledQuantizer:
    """A quantizer on the CPU, as arrays; they share the memory of its weights where they can."""
    quantizer, folded = tables.quantizer, tables.folded
    num_steps, codebook_size, width = tables.codebooks_MKX.shape
    partitions_P = torch.arange(max(1, quantizer.num_partitions))
    components_MKE, narrow_XE = torch.empty(num_steps, codebook_size, 0), torch.empty(width, 0)
    conditions_PE = torch.empty(len(partitions_P), 0)
    if folded is not None and quantizer.condition_follows_codewords:
        exact = _in_float64(quantizer)
        conditions_PE = exact.initial_condition(partitions_P)
        identity_XX = torch.eye(width, dtype=torch.float64)
        narrow_XE = exact.condition_increment(0, partitions_P, tables.inverse_transform(identity_XX))
    elif folded is not None:
        conditions_PE = quantizer.initial_condition(partitions_P)
        indices_K = torch.arange(codebook_size)
        components_MKE = torch.stack(
            [quantizer.condition_increment(step, indices_K, None) for step in range(num_steps)]
        )
    return CompiledQuantizer(
        CodecArrays(
            _expert_arrays(quantizer, tables),
            as_array(tables.codebooks_MKX),
            as_array(components_MKE),
            as_array(narrow_XE),
        ),
        as_array(quantizer.mean_D),
        np.float32(float(quantizer.scale)),
        as_array(quantizer.partition_offset(partitions_P)),
        as_array(conditions_PE),
        None if tables.subspace_WD is None else as_array(tables.subspace_WD),
    )


def as_array(tensor: Tensor) -> Float32Array:
    """A tensor on the CPU as a contiguous array, in the same memory if it is contiguous."""
    return np.ascontiguousarray(tensor.detach().float().numpy())


def _expert_arrays(quantizer: ResidualQuantizer, tables: EncodingTables) -> ExpertArrays:
    folded, output_SGW = tables.folded, tables.contract_SGW
    if folded is None or output_SGW is None:
        none = np.empty((0, 0, 0), np.float32)
        return ExpertArrays(0, 1, none, none, none, none, none[..., None])
    num_experts = folded.contract_SLNHW.shape[2]
    return ExpertArrays(
        quantizer.first_expert_step,
        num_experts,
        as_array(folded.codeword_SKF),
        as_array(folded.condition_SEF),
        as_array(output_SGW),
        as_array(folded.contracting(slice(None))),
        as_array(folded.expand_SLNHW[:, 1:].flatten(1, 2).transpose(2, 3)),
    )


def encode_block(
    quantizer: ResidualQuantizer,
    tables: EncodingTables,
    vectors_nD: Float32Array,
    *,
    beam: int,
    preselect: int | None,
) -> Codes:
    """Encode clamped vectors in the frame of the codec: in compiled loops on a CPU, with torch on a GPU."""
    if quantizer.codebooks_MKD.device.type == "cpu":
        return tables.compiled.encode(vectors_nD, beam=beam, preselect=preselect)
    return encode_with_torch(quantizer, tables, vectors_nD, beam=beam, preselect=preselect)


class Encoder:
    """Encodes as `encode_block` does. A GPU encodes few vectors by one launch, recorded at its first use.

    They are padded as without a recording, and have the same codes.
    """

    def __init__(self, quantizer: ResidualQuantizer, tables: EncodingTables) -> None:
        self._quantizer, self._tables = quantizer, tables
        device = quantizer.codebooks_MKD.device
        self._recordings: HostComputation | None = None
        if device.type != "cpu":
            self._recordings = HostComputation(device, largest_batch=_MOST_RECORDED)

    def encode(self, vectors_nD: Float32Array, *, beam: int, preselect: int | None) -> Codes:
        """Encode clamped vectors."""
        codes = None
        if self._recordings is not None and 0 < len(vectors_nD) <= self._recordings.largest_batch:
            codes = self._encode_few(self._recordings, vectors_nD, beam, preselect)
        if codes is None:
            return encode_block(self._quantizer, self._tables, vectors_nD, beam=beam, preselect=preselect)
        return codes

    def _encode_few(
        self, recordings: HostComputation, vectors_nD: Float32Array, beam: int, preselect: int | None
    ) -> Codes | None:
        """The codes of few vectors by a recorded launch; None if there is none now."""
        count, dim = vectors_nD.shape
        most = chunk_rows(self._quantizer, beam=beam, preselect=preselect)
        rows = padded_rows(count, most)
        if rows * _RECORDED_SHARE > most:
            return None
        key = rows, beam, preselect
        encode_rows = functools.partial(self._encode_rows, rows, beam, preselect)
        try:
            recording = recordings.take(key, 4 * rows * dim, encode_rows)
        except torch.OutOfMemoryError:
            return None
        if recording is None:
            return None
        given_BD = recording.given_X.view(np.float32).reshape(rows, dim)
        given_BD[:count], given_BD[count:] = vectors_nD, 0
        recording.start()
        codes = _codes_of(recording.wait()[:count])
        recordings.give_back(key, recording)
        return codes

    @torch.inference_mode()
    def _encode_rows(self, rows: int, beam: int, preselect: int | None, given_X: Tensor) -> Tensor:
        given_BD = given_X.view(torch.float32).view(rows, -1)
        with full_precision(given_X.device):  # codes do not follow a context or a setting of the caller
            return _encode_padded(self._quantizer, self._tables, given_BD, beam=beam, preselect=preselect)


def _encode_padded(
    quantizer: ResidualQuantizer,
    tables: EncodingTables,
    padded_BD: Tensor,
    *,
    beam: int,
    preselect: int | None,
) -> Tensor:
    """Codes and partition ids (B, M + 1), int32, of clamped vectors on a GPU."""
    codes_BM, partitions_B = encode(
        quantizer, tables, quantizer.normalize(padded_BD), beam=beam, preselect=preselect
    )
    return torch.cat([codes_BM, partitions_B[:, None]], dim=1).int()


def _codes_of(numbers_nX: npt.NDArray[np.int32]) -> Codes:
    """Codes, given codes and partition ids (n, M + 1)."""
    return Codes(numbers_nX[:, :-1].astype(np.uint8), numbers_nX[:, -1].copy())


def encode_with_torch(
    quantizer: ResidualQuantizer,
    tables: EncodingTables,
    vectors_nD: Float32Array,
    *,
    beam: int,
    preselect: int | None,
) -> Codes:
    """Encode clamped vectors chunk by chunk, each padded to one of a few sizes."""
    device = quantizer.codebooks_MKD.device
    codes_nM = np.empty((len(vectors_nD), quantizer.num_steps), dtype=np.uint8)
    partitions_n = np.empty(len(vectors_nD), dtype=np.int32)

    @torch.inference_mode()
    def encode_chunk(start: int, stop: int, rows: int) -> None:
        padded_BD = torch.zeros(padded_rows(stop - start, rows), quantizer.dim, device=device)
        padded_BD[: stop - start].copy_(as_tensor(vectors_nD[start:stop]), non_blocking=True)
        numbers_BX = _encode_padded(quantizer, tables, padded_BD, beam=beam, preselect=preselect)
        found = _codes_of(numbers_BX[: stop - start].cpu().numpy())
        codes_nM[start:stop], partitions_n[start:stop] = found.codes, found.partitions

    with full_precision(device):  # codes do not follow a context or a setting of the caller
        run_chunks(len(vectors_nD), chunk_rows(quantizer, beam=beam, preselect=preselect), encode_chunk)
    return Codes(codes_nM, partitions_n)


def padded_rows(rows: int, most: int) -> int:
    """Rows that a chunk of `rows` is padded to: `most`, or a fourth, a sixteenth, ... of it.

    A few sizes, because matrix products may round differently for every shape. They also let a GPU choose its
    kernels only once for each.
    """
    padded = most
    while padded % _PADDING == 0 and padded // _PADDING >= max(rows, _LEAST_PADDED):
        padded //= _PADDING
    return padded


def chunk_rows(quantizer: ResidualQuantizer, *, beam: int, preselect: int | None) -> int:
    """Vectors that torch encodes at once: as many as fit the device's memory budget, a power of two."""
    budget = _CPU_BYTES if quantizer.codebooks_MKD.device.type == "cpu" else _GPU_BYTES
    pairs = beam * quantizer.codebook_size
    scored = min(_BLOCK, pairs if preselect is None else min(preselect, pairs))
    floats_per_row = 2 * pairs + 3 * beam * quantizer.dim
    if quantizer.mixture is not None:
        hidden = quantizer.mixture.num_layers * quantizer.mixture.num_experts * quantizer.mixture.hidden_dim
        floats_per_row += scored * (2 * quantizer.mixture.width + 2 * hidden)
    return rows_in_budget(budget, floats_per_row, _MOST_ROWS)


def assign_partitions(quantizer: ResidualQuantizer, vectors_BD: Tensor) -> Tensor:
    """Index (B,) of the centroid nearest to each normalized vector; zeros without partitions."""
    centroids_PD = quantizer.centroids_PD
    if not quantizer.num_partitions:
        return torch.zeros(len(vectors_BD), dtype=torch.long, device=vectors_BD.device)
    scores_BP = centroids_PD.square().sum(dim=1) - 2 * vectors_BD @ centroids_PD.T
    return scores_BP.argmin(dim=1)


@dataclasses.dataclass(frozen=True)
class _Beam:
    """The partial encodings kept after a step."""

    residual_BRX: Tensor
    distance_BR: Tensor
    """Squared lengths of the residuals."""
    condition_BRE: Tensor
    codes_BRM: Tensor


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """Continuations of beam entries by one codeword."""

    distance_BA: Tensor
    source_BA: Tensor
    """The beam entries that they continue."""
    index_BA: Tensor
    """The codewords that continue them."""

    def __getitem__(self, columns: slice) -> "_Candidates":
        return _Candidates(
            self.distance_BA[:, columns], self.source_BA[:, columns], self.index_BA[:, columns]
        )


def encode(
    quantizer: ResidualQuantizer,
    tables: EncodingTables,
    vectors_BD: Tensor,
    *,
    beam: int,
    preselect: int | None,
) -> tuple[Tensor, Tensor]:
    """Encode normalized vectors to codes (B, M) and partitions (B,), both int64."""
    partitions_B = assign_partitions(quantizer, vectors_BD)
    residual_BX = tables.transform(vectors_BD - quantizer.partition_offset(partitions_B))
    state = _Beam(
        residual_BX.unsqueeze(1),
        residual_BX.square().sum(dim=1, keepdim=True),
        quantizer.initial_condition(partitions_B).unsqueeze(1),
        torch.empty(len(vectors_BD), 1, 0, dtype=torch.long, device=vectors_BD.device),
    )
    for step in range(quantizer.num_steps):
        keep = 1 if step + 1 == quantizer.num_steps else beam
        keep = min(keep, state.residual_BRX.shape[1] * quantizer.codebook_size)
        has_experts = tables.folded is not None and step >= quantizer.first_expert_step
        if has_experts:
            candidates = _candidates(tables, state, step, preselect and max(keep, preselect))
            chosen, residual_BRX = _best_deformed(quantizer, tables, state, step, candidates, keep)
        else:
            chosen = _candidates(tables, state, step, keep)
            residual_BRX = _undeformed(tables.codebooks_MKX[step], state.residual_BRX, chosen)
        state = _continued(quantizer, tables, state, step, chosen, residual_BRX)
    return state.codes_BRM[:, 0], partitions_B


def _candidates(tables: EncodingTables, state: _Beam, step: int, count: int | None) -> _Candidates:
    """The best `count` continuations by their undeformed codewords; None for all of them."""
    codebook_KX, size = tables.codebooks_MKX[step], tables.codebooks_MKX.shape[1]
    products_PK = state.residual_BRX.flatten(0, 1) @ codebook_KX.T  # training may compute it in bfloat16
    if count is not None and products_PK.device.type == "cpu":
        count = min(count, state.residual_BRX.shape[1] * size)
        distance_BA, pair_BA = best_pairs(products_PK, tables.norms_MK[step], state.distance_BR, count)
        return _Candidates(distance_BA, pair_BA // size, pair_BA % size)
    distance_PK = torch.add(tables.norms_MK[step], products_PK, alpha=-2)
    distance_BP = distance_PK.add_(state.distance_BR.view(-1, 1)).view(len(state.residual_BRX), -1)
    if count is None:
        pairs_BA = torch.arange(distance_BP.shape[1], device=distance_BP.device).expand_as(distance_BP)
        return _Candidates(distance_BP, pairs_BA // size, pairs_BA % size)
    best = distance_BP.topk(min(count, distance_BP.shape[1]), dim=1, largest=False, sorted=False)
    return _Candidates(best.values, best.indices // size, best.indices % size)


def _best_deformed(
    quantizer: ResidualQuantizer,
    tables: EncodingTables,
    state: _Beam,
    step: int,
    candidates: _Candidates,
    keep: int,
) -> tuple[_Candidates, Tensor]:
    """The best `keep` candidates by their deformed codewords, and their residuals (B, R, X)."""
    folded, expert_step = tables.folded, step - quantizer.first_expert_step
    assert folded is not None, "this step has experts"
    condition_BRF = state.condition_BRE @ folded.condition_SEF[expert_step]
    best: _Candidates | None = None
    best_BRW = state.residual_BRX[:, :0]  # residuals in the coordinates that deformations change
    for start in range(0, candidates.index_BA.shape[1], _BLOCK):
        block = candidates[start : start + _BLOCK]
        block, left_BAW = _deformed(quantizer, tables, state, step, block, condition_BRF)
        if best is not None:
            block, left_BAW = _joined(best, block), torch.cat([best_BRW, left_BAW], dim=1)
        if block.distance_BA.shape[1] <= keep:
            best, best_BRW = block, left_BAW  # all of them; their order does not matter
            continue
        distance_BR, column_BR = block.distance_BA.topk(
            min(keep, block.distance_BA.shape[1]), dim=1, largest=False
        )
        best_BRW = _gathered(left_BAW, column_BR)
        best = _Candidates(
            distance_BR, block.source_BA.gather(1, column_BR), block.index_BA.gather(1, column_BR)
        )
    assert best is not None, "a codebook has codewords"
    if tables.subspace_WD is None:
        return best, best_BRW
    outside = slice(0, -best_BRW.shape[2])
    outside_BRX = _undeformed(tables.codebooks_MKX[step, :, outside], state.residual_BRX[..., outside], best)
    return best, torch.cat([outside_BRX, best_BRW], dim=2)


def _deformed(
    quantizer: ResidualQuantizer,
    tables: EncodingTables,
    state: _Beam,
    step: int,
    block: _Candidates,
    condition_BRF: Tensor,
) -> tuple[_Candidates, Tensor]:
    """The candidates with the distances of their deformed codewords, and their residuals (B, A, W) in the
    coordinates that deformations change.

    `condition_BRF` is the beam entries' share of the first-layer features.
    """
    folded, contract_SGW = tables.folded, tables.contract_SGW
    assert folded is not None and contract_SGW is not None, "this step has experts"
    expert_step = step - quantizer.first_expert_step
    if condition_BRF.device.type == "cpu" and folded.contract_SLNHW.shape[1] == 1:
        return _deformed_by_loops(tables, folded, state, step, expert_step, block, condition_BRF)
    features_BAF = functional.embedding(block.index_BA, folded.codeword_SKF[expert_step])
    features_BAF = features_BAF.add_(_gathered(condition_BRF, block.source_BA))
    gated_1XG = folded.gated(features_BAF.flatten(0, 1).unsqueeze(0), expert_step)
    contract_GW = contract_SGW[expert_step]
    inside = slice(-contract_GW.shape[1], None)
    left_BAW = _undeformed(tables.codebooks_MKX[step, :, inside], state.residual_BRX[..., inside], block)
    # Deformations do not change the rest of the distance. Without a projection there is no rest.
    rest_BA: Tensor | float = 0.0
    if tables.subspace_WD is not None:
        rest_BA = block.distance_BA - left_BAW.square().sum(dim=2)
    left_BAW.flatten(0, 1).sub_(gated_1XG[0] @ contract_GW)
    distance_BA = torch.linalg.vector_norm(left_BAW, dim=2).square() + rest_BA
    return dataclasses.replace(block, distance_BA=distance_BA), left_BAW


def _deformed_by_loops(
    tables: EncodingTables,
    folded: FoldedExperts,
    state: _Beam,
    step: int,
    expert_step: int,
    block: _Candidates,
    condition_BRF: Tensor,
) -> tuple[_Candidates, Tensor]:
    """`_deformed` of experts of a single layer, on a CPU."""
    contract_SGW = tables.contract_SGW
    assert contract_SGW is not None, "this step has experts"
    index_C, entry_C = block.index_BA.flatten(), _rows_of(block.source_BA, condition_BRF).flatten()
    experts = folded.contract_SLNHW.shape[2]
    gated_CG = gated_units(
        folded.codeword_SKF[expert_step], condition_BRF.flatten(0, 1), index_C, entry_C, experts
    )
    left_CW, distance_C = deformed_residuals(
        state.residual_BRX.flatten(0, 1),
        tables.codebooks_MKX[step],
        index_C,
        entry_C,
        gated_CG @ contract_SGW[expert_step],
        block.distance_BA.flatten(),
    )
    found = dataclasses.replace(block, distance_BA=distance_C.view(block.index_BA.shape))
    return found, left_CW.view(*block.index_BA.shape, -1)


def _undeformed(codebook_KX: Tensor, residual_BRX: Tensor, candidates: _Candidates) -> Tensor:
    """Residuals (B, A, X) after the candidates' undeformed codewords."""
    left_BAX = _gathered(residual_BRX, candidates.source_BA)
    return left_BAX.sub_(functional.embedding(candidates.index_BA, codebook_KX))


def _joined(first: _Candidates, second: _Candidates) -> _Candidates:
    pairs = [(getattr(first, field.name), getattr(second, field.name)) for field in dataclasses.fields(first)]
    return _Candidates(*(torch.cat(pair, dim=1) for pair in pairs))


def _continued(
    quantizer: ResidualQuantizer,
    tables: EncodingTables,
    state: _Beam,
    step: int,
    chosen: _Candidates,
    residual_BRX: Tensor,
) -> _Beam:
    """The beam after the step that chose the given codewords."""
    codewords_BRD = None
    if quantizer.condition_follows_codewords:
        codewords_BRD = tables.inverse_transform(
            _gathered(state.residual_BRX, chosen.source_BA) - residual_BRX
        )
    increment_BRE = quantizer.condition_increment(step, chosen.index_BA, codewords_BRD)
    return _Beam(
        residual_BRX,
        chosen.distance_BA,
        _gathered(state.condition_BRE, chosen.source_BA).add_(increment_BRE),
        torch.cat([_gathered(state.codes_BRM, chosen.source_BA), chosen.index_BA.unsqueeze(2)], dim=2),
    )


def _gathered(values_BRX: Tensor, rows_BA: Tensor) -> Tensor:
    """values_BRX[b, rows_BA[b, a]] for every b and a."""
    # A look-up in the flattened rows is several times faster than two-dimensional indexing.
    chosen_BAX: Tensor = functional.embedding(_rows_of(rows_BA, values_BRX), values_BRX.flatten(0, 1))
    return chosen_BAX


def _rows_of(rows_BA: Tensor, values_BRX: Tensor) -> Tensor:
    """Numbers (B, A) of rows of each vector, counted over the rows of all vectors."""
    first_B1 = values_BRX.shape[1] * torch.arange(len(rows_BA), device=rows_BA.device)[:, None]
    return first_B1 + rows_BA
