"""Residual quantizer: the codebooks, partitions, mean, scale and recursion that all codec kinds share.

    I^1 = e_part[p] or 0      r^1 = x - centroid[p] or x
    i_m = argmin_k || r^m - c~^m_k ||^2
    r^{m+1} = r^m - c~^m[i_m]           I^{m+1} = I^m + increment of the chosen codeword

The kinds differ in the increment only. RQ-MoE adds the codeword's expert component, which follows from the
index alone, so every I^m is a prefix sum of look-ups. QINCo adds the deformed codeword, which makes I the
running reconstruction. RQ has no experts. The recursion works on (x - mean) / scale.

Shape legend: B batch, M steps, K codewords, D dimension, E conditioning width, P partitions, W network
width, S steps with experts (all of them with partitions, else all but the first), C principal directions.
"""

import abc
from typing import ClassVar

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from rqmoe_store.codecs.device import as_tensor
from rqmoe_store.codecs.experts import ExpertMixture, FoldedExperts
from rqmoe_store.codecs.rounding import round_rows
from rqmoe_store.config import CodecConfig

_WEIGHT_STEPS = 10
_STEPS_OF = {"codebooks_MKD": 16, "centroids_PD": 16, "mixture.contract_SLNHW": 5}
"""Grid steps per root mean square of a row of rounded weights, where not `_WEIGHT_STEPS`. A finer grid takes
more bytes. It lowers the error the most in codebooks, the least in contracting weights."""

_EXACT_DIM = 1024  # widest vectors whose principal directions are computed exactly: D^3 work


class ResidualQuantizer(nn.Module, abc.ABC):
    """Parameters and recursion of one codec. A new one has zero codebooks, to be initialized."""

    mean_D: Tensor
    scale: Tensor
    centroids_PD: Tensor

    def __init__(self, config: CodecConfig, dim: int) -> None:
        super().__init__()
        assert config.num_partitions is not None, "config is resolved"
        self.config, self.dim = config, dim
        self.num_steps, self.codebook_size = config.code_bytes, config.codebook_size
        self.num_partitions = config.num_partitions
        self.register_buffer("mean_D", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("centroids_PD", torch.zeros(config.num_partitions, dim))
        self.codebooks_MKD = nn.Parameter(torch.zeros(config.code_bytes, config.codebook_size, dim))
        # Without partitions nothing is known before the first code: c~ = c there.
        self.first_expert_step = 0 if config.num_partitions else 1
        num_expert_steps = config.code_bytes - self.first_expert_step
        self.mixture: ExpertMixture | None = None
        if self.condition_dim and num_expert_steps:
            self.mixture = ExpertMixture(
                config, dim=dim, num_steps=num_expert_steps, condition_dim=self.condition_dim
            )

    @property
    @abc.abstractmethod
    def condition_dim(self) -> int:
        """Width of the conditioning vector; 0 if the codec has no experts."""

    @abc.abstractmethod
    def initial_condition(self, partitions_B: Tensor) -> Tensor:
        """I^1 (B, E)."""

    condition_follows_codewords: ClassVar[bool] = False
    """Whether `condition_increment` reads the deformed codewords, not the indices alone."""

    @abc.abstractmethod
    def condition_increment(self, step: int, indices: Tensor, codewords: Tensor | None) -> Tensor:
        """I^{m+1} - I^m (..., E) for chosen indices (...) and deformed codewords (..., D).

        The codewords may be None unless `condition_follows_codewords`.
        """

    @abc.abstractmethod
    def chosen_codewords(
        self, codes_BM: Tensor, partitions_B: Tensor, folded: FoldedExperts | None
    ) -> Tensor:
        """Deformed codewords (M, B, D) of given codes, differentiable, for training and decoding.

        M may be smaller than `num_steps` (a prefix code). `folded` comes from `fold`.
        """

    @property
    def deformation_dim(self) -> int:
        """Width of the space that all deformations lie in; 0 without experts."""
        if self.mixture is None:
            return 0
        assert self.config.network_dim is not None, "config is resolved"
        return self.config.network_dim

    @torch.no_grad()
    def round_weights(self) -> None:
        """Round parameters and centroids to a byte each; they stay float32 in memory.

        An artifact packs such weights without loss. Rounding moves a codeword by about
        2 % of its length, most of which later steps encode. Mean and scale are small and keep
        their precision.
        """
        if self.mixture is not None:
            self.mixture.absorb_codeword_weights()
        for name, weights in (*self.named_parameters(), ("centroids_PD", self.centroids_PD)):
            steps = _STEPS_OF.get(name, _WEIGHT_STEPS)
            weights.copy_(as_tensor(round_rows(weights.cpu().numpy(), steps)))

    @torch.no_grad()
    def start_experts(self) -> None:
        """Set conditioning weights from the initialized codebooks; c~ stays equal to c."""
        if self.mixture is not None and self.mixture.input_projection_WD is not None:
            width = len(self.mixture.input_projection_WD)
            self.mixture.input_projection_WD.copy_(self.main_directions(width))

    def main_directions(self, count: int) -> Tensor:
        """The `count` leading principal directions (C, D) of all codewords, zeros beyond D."""
        words_XD = torch.cat([self.centroids_PD, self.codebooks_MKD.flatten(0, 1)])
        if self.dim <= _EXACT_DIM:
            words_XD = words_XD.double()
            vectors_DC = torch.linalg.eigh(words_XD.T @ words_XD).eigenvectors.flip(1)[:, :count]
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # the randomized decomposition draws from the global generator
                vectors_DC = torch.svd_lowrank(words_XD, q=min(count, *words_XD.shape))[2]
        directions_CD = self.codebooks_MKD.new_zeros(count, self.dim)
        directions_CD[: vectors_DC.shape[1]] = vectors_DC.T
        return directions_CD

    def normalize(self, vectors_BD: Tensor) -> Tensor:
        """Vectors in the units of the codebooks: (x - mean) / scale."""
        return (vectors_BD - self.mean_D) / self.scale

    def denormalize(self, vectors_BD: Tensor) -> Tensor:
        """Inverse of `normalize`."""
        return vectors_BD * self.scale + self.mean_D

    def partition_offset(self, partitions_B: Tensor) -> Tensor:
        """Centroids (B, D) of the given partitions, zeros without partitions."""
        if self.num_partitions:
            return self.centroids_PD[partitions_B]
        return self.centroids_PD.new_zeros(len(partitions_B), self.dim)

    def base_codewords(self, codes_BM: Tensor) -> Tensor:
        """Undeformed codewords (M, B, D)."""
        starts_M1 = self.codebook_size * torch.arange(codes_BM.shape[1], device=codes_BM.device)[:, None]
        return functional.embedding(codes_BM.T + starts_M1, self.codebooks_MKD.flatten(0, 1))

    def fold(self) -> FoldedExperts | None:
        """First-layer tables of all steps with experts; None without any."""
        if self.mixture is None:
            return None
        return self.mixture.fold(self.codebooks_MKD[self.first_expert_step :])

    def decode(self, codes_BM: Tensor, partitions_B: Tensor, folded: FoldedExperts | None) -> Tensor:
        """Reconstructions (B, D) in the units of the input, all steps at once if the kind allows it."""
        summed_BD = self.summed_codewords(codes_BM, partitions_B, folded)
        return self.denormalize(self.partition_offset(partitions_B) + summed_BD)

    def summed_codewords(
        self, codes_BM: Tensor, partitions_B: Tensor, folded: FoldedExperts | None
    ) -> Tensor:
        """Sum over steps of the deformed codewords (B, D), float32, without gradient."""
        return self.chosen_codewords(codes_BM, partitions_B, folded).sum(dim=0).float()

    def summed_base_codewords(self, codes_BM: Tensor) -> Tensor:
        """Sum over steps of the undeformed codewords (B, D)."""
        starts_M = self.codebook_size * torch.arange(codes_BM.shape[1], device=codes_BM.device)
        return functional.embedding_bag(codes_BM + starts_M, self.codebooks_MKD.flatten(0, 1), mode="sum")

    def decode_sequentially(self, codes_BM: Tensor, partitions_B: Tensor) -> Tensor:
        """`decode` as the recursion defines it, one step after the other."""
        reconstruction_BD = self.partition_offset(partitions_B)
        condition_BE = self.initial_condition(partitions_B)
        for step, indices_B in enumerate(codes_BM.unbind(dim=1)):
            codewords_BD = self.codebooks_MKD[step, indices_B]
            if self.mixture is not None and step >= self.first_expert_step:
                codewords_BD = codewords_BD + self.mixture.deform_plainly(
                    step - self.first_expert_step, codewords_BD, condition_BE
                )
            reconstruction_BD = reconstruction_BD + codewords_BD
            condition_BE = condition_BE + self.condition_increment(step, indices_B, codewords_BD)
        return self.denormalize(reconstruction_BD)
