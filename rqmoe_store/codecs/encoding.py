"""Encoding: nearest partition, then a beam search over the steps.

Shape legend: B batch, M steps, R beam entries, A candidates, K codewords, D dimension,
E conditioning width, F first-layer features.

At every step each beam entry proposes all K codewords. Scoring them exactly runs the experts on
R x K candidates; with `preselect=A` the undeformed codewords rank the pairs first (one matrix
product) and the experts score the best A of them. `beam=1, preselect=None` is the exhaustive
encoder of the paper.
"""

import dataclasses

import torch
import torch.nn.functional as functional
from torch import Tensor

from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.quantizer import ResidualQuantizer

_CPU_CHUNK, _GPU_CHUNK = 32, 1024
_CPU_BYTES, _GPU_BYTES = 2**28, 2**31


@dataclasses.dataclass(frozen=True)
class _Beam:
    residual_BRD: Tensor
    condition_BRE: Tensor
    codes_BRM: Tensor


def chunk_rows(quantizer: ResidualQuantizer, *, beam: int, preselect: int | None) -> int:
    """Vectors encoded at once: a fixed number for given settings.

    Matrix products may round differently for different shapes, so every chunk is padded to this
    size; that is what makes codes independent of how the caller batches.
    """
    on_cpu = quantizer.codebooks_MKD.device.type == "cpu"
    rows, budget = (_CPU_CHUNK, _CPU_BYTES) if on_cpu else (_GPU_CHUNK, _GPU_BYTES)
    pairs = beam * quantizer.codebook_size
    candidates = pairs if preselect is None else min(preselect, pairs)
    features = 0
    if quantizer.mixture is not None:
        mixture = quantizer.mixture
        features = 2 * mixture.num_experts * (mixture.num_layers * mixture.hidden_dim + 1)
    bytes_per_row = 4 * (candidates * (3 * quantizer.dim + features) + 2 * pairs)
    while rows > 4 and rows * bytes_per_row > budget:
        rows //= 2
    return rows


def assign_partitions(quantizer: ResidualQuantizer, vectors_BD: Tensor) -> Tensor:
    """Index (B,) of the nearest centroid to normalized vectors; zeros without partitions."""
    centroids_PD = quantizer.centroids_PD
    if not quantizer.num_partitions:
        return torch.zeros(len(vectors_BD), dtype=torch.long, device=vectors_BD.device)
    scores_BP = centroids_PD.square().sum(dim=1) - 2 * vectors_BD @ centroids_PD.T
    return scores_BP.argmin(dim=1)


def encode(
    quantizer: ResidualQuantizer,
    folded: FoldedExperts | None,
    vectors_BD: Tensor,
    *,
    beam: int,
    preselect: int | None,
) -> tuple[Tensor, Tensor]:
    """Codes (B, M) and partitions (B,), both int64, of normalized vectors."""
    partitions_B = assign_partitions(quantizer, vectors_BD)
    residual_BD = vectors_BD - quantizer.partition_offset(partitions_B)
    state = _Beam(
        residual_BD.unsqueeze(1),
        quantizer.initial_condition(partitions_B).unsqueeze(1),
        torch.empty(len(vectors_BD), 1, 0, dtype=torch.long, device=vectors_BD.device),
    )
    for step in range(quantizer.num_steps):
        keep = 1 if step + 1 == quantizer.num_steps else beam
        state = _extend(quantizer, folded, state, step, keep=keep, preselect=preselect)
    return state.codes_BRM[:, 0], partitions_B


def _extend(
    quantizer: ResidualQuantizer,
    folded: FoldedExperts | None,
    state: _Beam,
    step: int,
    *,
    keep: int,
    preselect: int | None,
) -> _Beam:
    """The best `keep` continuations of the beam by one step."""
    codebook_KD = quantizer.codebooks_MKD[step]
    has_experts = folded is not None and step >= quantizer.first_expert_step
    scores_BX = _base_distances(state.residual_BRD, codebook_KD).flatten(1)
    count = scores_BX.shape[1]
    if has_experts and preselect is None:
        pairs_BA = torch.arange(count, device=scores_BX.device).expand_as(scores_BX)
    else:
        wanted = max(keep, preselect or 0) if has_experts else keep
        pairs_BA = scores_BX.topk(min(wanted, count), dim=1, largest=False).indices
    source_BA, index_BA = pairs_BA // len(codebook_KD), pairs_BA % len(codebook_KD)
    codewords_BAD = functional.embedding(index_BA, codebook_KD)
    if has_experts:
        codewords_BAD = codewords_BAD + _deformation(quantizer, folded, state, step, source_BA, index_BA)
    residual_BAD = _rows(state.residual_BRD, source_BA) - codewords_BAD
    if has_experts:
        distance_BA = residual_BAD.square().sum(dim=2)
        best_BR = distance_BA.topk(min(keep, distance_BA.shape[1]), dim=1, largest=False).indices
        source_BA, index_BA = source_BA.gather(1, best_BR), index_BA.gather(1, best_BR)
        codewords_BAD, residual_BAD = _rows(codewords_BAD, best_BR), _rows(residual_BAD, best_BR)
    increment_BAE = quantizer.condition_increment(step, index_BA, codewords_BAD)
    return _Beam(
        residual_BAD,
        _rows(state.condition_BRE, source_BA) + increment_BAE,
        torch.cat([_rows(state.codes_BRM, source_BA), index_BA.unsqueeze(2)], dim=2),
    )


def _deformation(
    quantizer: ResidualQuantizer,
    folded: FoldedExperts | None,
    state: _Beam,
    step: int,
    source_BA: Tensor,
    index_BA: Tensor,
) -> Tensor:
    """What the experts add to each candidate codeword (B, A, D)."""
    assert folded is not None and quantizer.mixture is not None
    expert_step = step - quantizer.first_expert_step
    condition_BRF = state.condition_BRE @ folded.condition_SEF[expert_step]
    chosen_BAF = functional.embedding(index_BA, folded.codeword_SKF[expert_step])
    features_BAF = chosen_BAF + _rows(condition_BRF, source_BA)
    delta_1XD = quantizer.mixture.deform(features_BAF.flatten(0, 1).unsqueeze(0), expert_step)
    return delta_1XD.view(*index_BA.shape, -1)


def _base_distances(residual_BRD: Tensor, codebook_KD: Tensor) -> Tensor:
    """Squared distances (B, R, K) from residuals to undeformed codewords."""
    norms_K = codebook_KD.square().sum(dim=1)
    norms_BR1 = residual_BRD.square().sum(dim=2, keepdim=True)
    products_BRK: Tensor = residual_BRD @ codebook_KD.T
    return norms_BR1 + norms_K - 2 * products_BRK


def _rows(values_BRX: Tensor, rows_BA: Tensor) -> Tensor:
    """values_BRX[b, rows_BA[b, a]] for every b and a."""
    # A look-up in the flattened rows: several times faster than two-dimensional indexing.
    first_B1 = values_BRX.shape[1] * torch.arange(len(rows_BA), device=rows_BA.device)[:, None]
    chosen_BAX: Tensor = functional.embedding(first_B1 + rows_BA, values_BRX.flatten(0, 1))
    return chosen_BAX
