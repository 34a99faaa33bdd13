"""Expert deformations in compiled loops, on a CPU, one codeword at a time.

About four of five rectified units are zero. A matrix product multiplies by them; the loops here skip them.
A deformation is summed in the same order whatever is computed beside it, so results do not depend on batches.

Shape legend: S steps that have experts, K codewords, W network width, E conditioning width, L layers, N
experts, H hidden width, G = L * N * H hidden units, F = G + N first-layer features, U = (L - 1) * N networks
of the later layers.
"""

from typing import Any, NamedTuple

import numpy as np

from rqmoe_store.codecs.parallel import compiled
from rqmoe_store.codecs.vectors import Float32Array

LANES = 16


class ExpertArrays(NamedTuple):
    """The networks of S steps, as `FoldedExperts` has them. S is 0 without experts."""

    first_step: int
    """The first step that has experts."""
    num_experts: int
    codeword_SKF: Float32Array
    """First-layer features of every codeword, bias included."""
    condition_SEF: Float32Array
    """Maps a conditioning vector to its share of the first-layer features."""
    output_SGW: Float32Array
    """What every gated unit adds to a deformation."""
    contract_SGW: Float32Array
    """What every unit adds to the input of the next layer."""
    expand_SUWH: Float32Array
    """Maps the input of a later layer to its hidden units; empty with one layer."""


class DeformationBuffers(NamedTuple):
    """Memory that one deformation needs."""

    gates_N: Float32Array
    factors_G: Float32Array
    used_G: Any
    moved_NW: Float32Array


@compiled
def deformation_buffers(experts: ExpertArrays) -> DeformationBuffers:
    """New buffers for `subtract_deformation`."""
    num_hidden, width = experts.contract_SGW.shape[1], experts.contract_SGW.shape[2]
    return DeformationBuffers(
        np.empty(experts.num_experts, np.float32),
        np.empty(num_hidden, np.float32),
        np.empty(num_hidden, np.int64),
        np.empty((experts.num_experts, width), np.float32),
    )


@compiled
def subtract_deformation(
    experts: ExpertArrays, index: int, features_F: Any, buffers: DeformationBuffers, left_W: Any
) -> None:
    """Subtract from a vector the deformation by the experts number `index`.

    `features_F` has the summed first-layer features: the hidden units of every layer and expert before
    rectification (G of them), then one gate logit per expert. With several layers, it is overwritten.
    """
    num_hidden = experts.contract_SGW.shape[1]
    softmax(features_F[num_hidden:], buffers.gates_N)
    if experts.expand_SUWH.shape[1]:
        _add_later_layers(experts, index, features_F, buffers)
    used = _gate(features_F, buffers.gates_N, experts.expand_SUWH.shape[1], buffers.factors_G, buffers.used_G)
    _add_rows(buffers.factors_G, buffers.used_G, used, experts.output_SGW[index], left_W)


@compiled
def softmax(logits_N: Any, gates_N: Any) -> None:
    total, top = np.float32(0), logits_N[0]
    for expert in range(1, len(logits_N)):
        top = max(top, logits_N[expert])
    for expert in range(len(logits_N)):
        gates_N[expert] = np.exp(logits_N[expert] - top)
        total += gates_N[expert]
    for expert in range(len(logits_N)):
        gates_N[expert] /= total


@compiled
def _add_later_layers(
    experts: ExpertArrays, index: int, features_F: Any, buffers: DeformationBuffers
) -> None:
    """Add to the hidden units of the later layers what the layers before them contribute."""
    num_experts, moved_NW = experts.num_experts, buffers.moved_NW
    later = experts.expand_SUWH.shape[1]
    hidden_dim = experts.expand_SUWH.shape[3]
    moved_NW[:] = 0
    for network in range(later):  # the layers one after the other, and all experts of each
        units = slice(network * hidden_dim, (network + 1) * hidden_dim)
        moved_W = moved_NW[network % num_experts]
        used = _positive(features_F[units], buffers.used_G)
        _add_rows(features_F[units], buffers.used_G, used, experts.contract_SGW[index, units], moved_W)
        first = (network + num_experts) * hidden_dim
        next_H, expand_WH = features_F[first : first + hidden_dim], experts.expand_SUWH[index, network]
        for component in range(len(moved_W)):
            moved = moved_W[component]
            for unit in range(hidden_dim):
                next_H[unit] += moved * expand_WH[component, unit]


@compiled
def _gate(features_F: Any, gates_N: Any, later: int, factors_G: Any, used_G: Any) -> int:
    """Write the negative gated units, not rectified, and the places of the rectified units that are not zero;
    return their count."""
    networks = later + len(gates_N)
    hidden_dim = len(factors_G) // networks
    for network in range(networks):
        gate = -gates_N[network % len(gates_N)]
        for unit in range(network * hidden_dim, (network + 1) * hidden_dim):
            factors_G[unit] = features_F[unit] * gate
    used: int = _positive(features_F[: len(factors_G)], used_G)
    return used


@compiled
def _positive(features_H: Any, used_H: Any) -> int:
    """Write the places of the positive features; return their count."""
    used = 0
    for unit in range(len(features_H)):
        used_H[used] = unit
        # No branch to mispredict. NaN counts, as it must show in the result.
        used += not features_H[unit] <= 0
    return used


@compiled
def _add_rows(factors_G: Any, used_G: Any, used: int, rows_GW: Any, total_W: Any) -> None:
    """Add the rows in the first `used` places, times their factors. Four at a time save memory traffic."""
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


@compiled
def squared_length(vector_W: Any, lanes_L: Any) -> Any:
    """The squared length of a vector, summed in lanes, which compilers vectorize. `lanes_L` is a buffer."""
    lanes_L[:] = 0
    whole = len(vector_W) - len(vector_W) % LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            lanes_L[lane] += vector_W[start + lane] * vector_W[start + lane]
    for lane in range(len(vector_W) - whole):
        lanes_L[lane] += vector_W[whole + lane] * vector_W[whole + lane]
    total = np.float32(0)
    for lane in range(LANES):
        total += lanes_L[lane]
    return total
