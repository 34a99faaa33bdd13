"""The experts' second half on a CPU: gates, rectified hidden units, and the sum of what they add.

Shape legend: S steps, B codes, F first-layer features, G hidden units of all experts, W network width.

About four of five rectified units are zero. A matrix product would multiply by them all the same; the loop
below skips them and takes half the time on one core. It also never stores a gate or a gated unit.
"""

from typing import Any

import numpy as np
import torch

from rqmoe_store.codecs.compiled import compiled
from rqmoe_store.codecs.vectors import Float32Array

_MANY_CODES = 256
"""For fewer, several cores spend more time on waiting for each other than they save."""


def summed_deformations(
    features_SBF: Float32Array, contract_SGW: Float32Array, num_experts: int
) -> Float32Array:
    """Sum over steps of the deformations (B, W) of experts with one layer, float32.

    Args:
        features_SBF: first-layer features: the hidden units of every expert before they are rectified (G of
            them), then one gate logit per expert.
        contract_SGW: what every hidden unit contributes.
        num_experts: G is a multiple of it.
    """
    summed_BW = np.zeros((features_SBF.shape[1], contract_SGW.shape[2]), dtype=np.float32)
    _add_deformations(features_SBF, contract_SGW, num_experts, summed_BW)
    return summed_BW


def pays(num_codes: int) -> bool:
    """Whether the loop is the quickest way for so many codes: it runs on one core, matrix products on all."""
    return num_codes < _MANY_CODES or torch.get_num_threads() == 1


@compiled
def _add_deformations(features_SBF: Any, contract_SGW: Any, num_experts: int, summed_BW: Any) -> None:
    num_steps, num_hidden = contract_SGW.shape[0], contract_SGW.shape[1]
    gated_G, used_G = np.empty(num_hidden, np.float32), np.empty(num_hidden, np.int64)
    gates_N = np.empty(num_experts, np.float32)
    for step in range(num_steps):  # outside, so that a step's weights are read once from memory
        for row in range(len(summed_BW)):
            features_F = features_SBF[step, row]
            _softmax(features_F[num_hidden:], gates_N)
            used = _gate(features_F, gates_N, gated_G, used_G)
            _add_rows(gated_G, used_G, used, contract_SGW[step], summed_BW[row])


@compiled
def _softmax(logits_N: Any, gates_N: Any) -> None:
    total = np.float32(0)
    top = logits_N.max()
    for expert in range(len(logits_N)):
        gates_N[expert] = np.exp(logits_N[expert] - top)
        total += gates_N[expert]
    for expert in range(len(logits_N)):
        gates_N[expert] /= total


@compiled
def _gate(features_F: Any, gates_N: Any, gated_G: Any, used_G: Any) -> int:
    """Fill in the gated units, not rectified, and the places of those not negative; returns their count."""
    hidden_dim = len(gated_G) // len(gates_N)
    for expert in range(len(gates_N)):
        gate = gates_N[expert]
        for unit in range(expert * hidden_dim, (expert + 1) * hidden_dim):
            gated_G[unit] = features_F[unit] * gate
    used = 0
    for unit in range(len(gated_G)):
        used_G[used] = unit
        used += not gated_G[unit] <= 0  # no branch to mispredict; counts NaN, which must show in the result
    return used


@compiled
def _add_rows(factors_G: Any, used_G: Any, used: int, rows_GW: Any, total_W: Any) -> None:
    """Add the rows in the first `used` places, times their factors; four at a time to save memory traffic."""
    first = 0
    while first + 4 <= used:
        place0, place1, place2, place3 = (
            used_G[first],
            used_G[first + 1],
            used_G[first + 2],
            used_G[first + 3],
        )
        factor0, factor1, factor2, factor3 = (
            factors_G[place0],
            factors_G[place1],
            factors_G[place2],
            factors_G[place3],
        )
        row0_W, row1_W, row2_W, row3_W = rows_GW[place0], rows_GW[place1], rows_GW[place2], rows_GW[place3]
        for column in range(len(total_W)):
            total = total_W[column] + factor0 * row0_W[column]
            total += factor1 * row1_W[column]
            total += factor2 * row2_W[column]
            total_W[column] = total + factor3 * row3_W[column]
        first += 4
    for place in used_G[first:used]:
        factor, row_W = factors_G[place], rows_GW[place]
        for column in range(len(total_W)):
            total_W[column] += factor * row_W[column]
