"""Candidates of the encoder in compiled loops: what torch's encoder does between matrix products on a CPU.

torch would write every candidate to memory and read it again for each of a dozen operations. These loops read
and write it once. The products stay torch's, which may compute them in bfloat16.

Shape legend: B vectors, R beam entries of each, V = B * R entries, K codewords, A candidates of each vector,
C = B * A candidates, X width of the encoder's coordinates, W of these that deformations change, F first-layer
features, N experts, G gated hidden units.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rqmoe_store.codecs.beam_search import preselect_pairs
from rqmoe_store.codecs.deformation import LANES, softmax, squared_length
from rqmoe_store.codecs.parallel import compiled


def best_pairs(
    products_VK: Tensor, norms_K: Tensor, distance_BR: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The best `count` pairs of beam entry and undeformed codeword of every vector.

    Args:
        products_VK: inner products of residuals and codewords.
        norms_K: squared lengths of the codewords.
        distance_BR: squared lengths of the residuals.
        count: how many, at most R * K.

    Returns:
        Squared lengths (B, A) of the residuals after the codewords, and numbers entry * K + codeword (B, A).
    """
    distance_BA = torch.empty(len(distance_BR), count)
    pair_BA = torch.empty(len(distance_BR), count, dtype=torch.long)
    _find_pairs(
        *(tensor.contiguous().numpy() for tensor in (products_VK.float(), norms_K, distance_BR)),
        distance_BA.numpy(),
        pair_BA.numpy(),
    )
    return distance_BA, pair_BA


@compiled
def _find_pairs(products_VK: Any, norms_K: Any, distance_BR: Any, distance_BA: Any, pair_BA: Any) -> None:
    entries, size = distance_BR.shape[1], len(norms_K)
    scores_RK = np.empty((entries, size), np.float32)
    for vector in range(len(distance_BR)):
        for entry in range(entries):
            products_K, distance = products_VK[vector * entries + entry], distance_BR[vector, entry]
            scores_K = scores_RK[entry]
            for codeword in range(size):
                scores_K[codeword] = norms_K[codeword] - np.float32(2) * products_K[codeword] + distance
        preselect_pairs(scores_RK, pair_BA.shape[1], distance_BA[vector], pair_BA[vector])


def gated_units(
    codeword_KF: Tensor, condition_VF: Tensor, index_C: Tensor, entry_C: Tensor, num_experts: int
) -> Tensor:
    """Rectified hidden units (C, G) of a single layer, times their expert's gate.

    Args:
        codeword_KF: the codewords' shares of the first-layer features.
        condition_VF: the beam entries' shares.
        index_C: codewords of the candidates.
        entry_C: entries that they continue.
        num_experts: N.
    """
    gated_CG = torch.empty(len(index_C), codeword_KF.shape[1] - num_experts)
    _gate_units(
        *(tensor.contiguous().numpy() for tensor in (codeword_KF, condition_VF.float(), index_C, entry_C)),
        num_experts,
        gated_CG.numpy(),
    )
    return gated_CG


@compiled
def _gate_units(
    codeword_KF: Any, condition_VF: Any, index_C: Any, entry_C: Any, num_experts: int, gated_CG: Any
) -> None:
    num_hidden = gated_CG.shape[1]
    hidden_dim = num_hidden // num_experts
    logits_N, gates_N = np.empty(num_experts, np.float32), np.empty(num_experts, np.float32)
    for candidate in range(len(index_C)):
        codeword_F, condition_F = codeword_KF[index_C[candidate]], condition_VF[entry_C[candidate]]
        gated_G = gated_CG[candidate]
        for expert in range(num_experts):
            logits_N[expert] = codeword_F[num_hidden + expert] + condition_F[num_hidden + expert]
        softmax(logits_N, gates_N)
        for expert in range(num_experts):
            own = slice(expert * hidden_dim, (expert + 1) * hidden_dim)
            codeword_H, condition_H, gated_H = codeword_F[own], condition_F[own], gated_G[own]
            for unit in range(len(gated_H)):
                feature = codeword_H[unit] + condition_H[unit]
                # NaN is kept, as it must show in the result.
                gated_H[unit] = (np.float32(0) if feature <= 0 else feature) * gates_N[expert]


def deformed_residuals(
    residual_VX: Tensor,
    codebook_KX: Tensor,
    index_C: Tensor,
    entry_C: Tensor,
    deformation_CW: Tensor,
    distance_C: Tensor,
) -> tuple[Tensor, Tensor]:
    """Residuals (C, W) after the candidates' deformed codewords, and the squared lengths (C,) of all X
    coordinates.

    Args:
        residual_VX: residuals of the beam entries.
        codebook_KX: undeformed codewords.
        index_C: codewords of the candidates.
        entry_C: entries that they continue.
        deformation_CW: what the experts add to the last W coordinates of the codewords.
        distance_C: squared lengths of the residuals after the undeformed codewords.
    """
    left_CW, deformed_C = torch.empty(deformation_CW.shape), torch.empty(len(index_C))
    given = (residual_VX, codebook_KX, index_C, entry_C, deformation_CW.float(), distance_C)
    _subtract_deformed(
        *(tensor.contiguous().numpy() for tensor in given), left_CW.numpy(), deformed_C.numpy()
    )
    return left_CW, deformed_C


@compiled
def _subtract_deformed(
    residual_VX: Any,
    codebook_KX: Any,
    index_C: Any,
    entry_C: Any,
    deformation_CW: Any,
    distance_C: Any,
    left_CW: Any,
    deformed_C: Any,
) -> None:
    width = left_CW.shape[1]
    outside = residual_VX.shape[1] - width
    lanes = np.empty(LANES, np.float32)
    for candidate in range(len(index_C)):
        residual_W = residual_VX[entry_C[candidate], outside:]
        codeword_W = codebook_KX[index_C[candidate], outside:]
        deformation_W, left_W = deformation_CW[candidate], left_CW[candidate]
        for place in range(width):
            left_W[place] = residual_W[place] - codeword_W[place]
        rest = np.float32(0)
        if outside:  # deformations do not change the rest of the distance
            rest = distance_C[candidate] - squared_length(left_W, lanes)
        for place in range(width):
            left_W[place] -= deformation_W[place]
        deformed_C[candidate] = squared_length(left_W, lanes) + rest
