"""Least-squares fit of additive tables: rows that sum to the reconstructions of codes.

Shape legend: as in `additive`.
"""

import functools
import math

import torch
import torch.nn.functional as functional
from torch import Tensor

from rqmoe_store.codecs.additive import AdditiveTables, complete_tables, undeformed_rows
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.decoding import decode
from rqmoe_store.codecs.device import as_tensor, full_precision, run_on_device
from rqmoe_store.codecs.encoding import encoding_tables
from rqmoe_store.codecs.grouped_sums import GroupedSums
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.rounding import round_rows
from rqmoe_store.codecs.weights import QuantizerWeights

CALIBRATION_ROWS = 32_768
"""Codes kept inside a codec, to which `truncate` fits the tables of the shorter code."""

_ITERATIONS = 24
_COLUMNS = 256  # fitted at a time on a CPU; fewer take longer, as rows are read as often
_RIDGE = 1.0  # pseudo-observations of the initial value per row: rows of rare codewords stay close to it
_CORRECTION_STEPS = 8  # grid steps per root mean square
_WEAKEST_DIRECTION = 1e-4  # relative to the strongest; an inverse would only amplify rounding errors below it


@torch.inference_mode()
def fit_tables(quantizer: ResidualQuantizer, calibration: Codes) -> AdditiveTables:
    """Fit tables whose selected rows sum to the reconstructions of the calibration codes."""
    with full_precision(quantizer.codebooks_MKD.device):
        return _fitted_tables(quantizer, calibration)


def _fitted_tables(quantizer: ResidualQuantizer, calibration: Codes) -> AdditiveTables:
    weights = QuantizerWeights.of(quantizer)
    reconstructions_nD = decode(quantizer, encoding_tables(quantizer, quantizer.fold()), calibration)
    norms_n1 = reconstructions_nD.square().sum(dim=1, keepdim=True)
    num_partitions = max(1, quantizer.num_partitions)
    rows_nM = table_rows(calibration, num_partitions, quantizer.codebook_size, norms_n1.device)
    undeformed_TD = as_tensor(undeformed_rows(weights)).to(norms_n1.device)
    undeformed_nD = functional.embedding_bag(rows_nM, undeformed_TD, mode="sum")
    deformations_nW = _in_network_width(quantizer, reconstructions_nD - undeformed_nD)
    initial_TX = undeformed_TD.new_zeros(len(undeformed_TD), quantizer.deformation_dim + 1)
    initial_TX[:num_partitions, -1] = norms_n1.mean()
    targets_nX = torch.cat([deformations_nW, norms_n1], dim=1)
    fitted_TX = _fit_in_parts(rows_nM, targets_nX, initial_TX)
    # Round here, not only in the artifact, so that saved and loaded codecs are equal.
    corrections_TW = round_rows(fitted_TX[:, :-1].cpu().numpy(), _CORRECTION_STEPS)
    return complete_tables(weights, corrections_TW, fitted_TX[:, -1:].cpu().contiguous().numpy())


def _in_network_width(quantizer: ResidualQuantizer, deformations_nD: Tensor) -> Tensor:
    """What the output projection maps to the deformations (n, W); the shortest one if several fit."""
    if quantizer.mixture is None:
        return deformations_nD[:, :0]
    projection_WD = quantizer.mixture.output_projection_WD
    if projection_WD is None:
        return deformations_nD
    # The projection is zero in an untrained codec, so it may have no inverse.
    inverse_DW: Tensor = torch.linalg.pinv(projection_WD, rtol=_WEAKEST_DIRECTION)
    return deformations_nD @ inverse_DW


def table_rows(codes: Codes, num_partitions: int, codebook_size: int, device: torch.device) -> Tensor:
    """Numbers (n, 1 + M), int32, of the table rows that each code selects."""
    rows_nM = torch.empty(len(codes), 1 + codes.codes.shape[1], dtype=torch.int32, device=device)
    rows_nM[:, 0] = as_tensor(codes.partitions)
    rows_nM[:, 1:] = as_tensor(codes.codes)
    steps_M = torch.arange(codes.codes.shape[1], dtype=torch.int32, device=device)
    rows_nM[:, 1:] += num_partitions + codebook_size * steps_M
    return rows_nM


def _fit_in_parts(rows_nM: Tensor, targets_nX: Tensor, initial_TX: Tensor) -> Tensor:
    """`fit_additive`, on a CPU with some of the columns, which are independent, on each core."""
    count = 1 if initial_TX.is_cuda else math.ceil(initial_TX.shape[1] / _COLUMNS)
    parts = zip(targets_nX.tensor_split(count, dim=1), initial_TX.tensor_split(count, dim=1), strict=True)
    fits = [functools.partial(fit_additive, rows_nM, *map(Tensor.contiguous, part)) for part in parts]
    return torch.cat(run_on_device(initial_TX.device, fits), dim=1)


@torch.inference_mode()
def fit_additive(rows_nM: Tensor, targets_nX: Tensor, initial_TX: Tensor) -> Tensor:
    """Fit a table (T, X) whose selected rows sum to the targets in the least-squares sense.

    This runs conjugate gradients on the normal equations, from `initial_TX` and with a ridge towards it.
    Memory is that of the table, and rows without observations keep their initial value. Every column has a
    unit of its own, a power of two, so that squares of sums of the targets fit float32.
    """
    largest_X = torch.maximum(targets_nX.abs().amax(dim=0), initial_TX.abs().amax(dim=0))
    unit_X = torch.exp2(torch.frexp(largest_X).exponent.clamp(-126, 126))
    targets_nX, initial_TX = targets_nX / unit_X, initial_TX / unit_X
    correction_TX = torch.zeros_like(initial_TX)
    residual_nX = targets_nX - functional.embedding_bag(rows_nM, initial_TX, mode="sum")
    by_row = GroupedSums(rows_nM, len(initial_TX))
    gradient_TX = by_row.of(residual_nX)
    direction_TX = gradient_TX.clone()
    energy_X = gradient_TX.square().sum(dim=0)
    floor_X = energy_X * 1e-8 + torch.finfo(energy_X.dtype).tiny
    for _ in range(_ITERATIONS):
        selected_nX = functional.embedding_bag(rows_nM, direction_TX, mode="sum")
        product_TX = by_row.of(selected_nX) + _RIDGE * direction_TX
        curvature_X = (direction_TX * product_TX).sum(dim=0)
        # A column that has converged has no energy left; dividing by it would give NaN.
        step_X = torch.where(energy_X > floor_X, energy_X / curvature_X, 0.0)
        correction_TX += step_X * direction_TX
        gradient_TX -= step_X * product_TX
        next_energy_X = gradient_TX.square().sum(dim=0)
        ratio_X = torch.where(energy_X > floor_X, next_energy_X / energy_X, 0.0)
        direction_TX = gradient_TX + ratio_X * direction_TX
        energy_X = next_energy_X
    return (initial_TX + correction_TX) * unit_X
