"""The untrained codec: mean and scale, k-means partitions and greedy residual codebooks.

Shape legend: n vectors, M steps, K codewords, D dimension, P partitions.
"""

import math
import time
import warnings

import torch
from torch import Tensor

from rqmoe_store.codecs.encoding import assign_partitions
from rqmoe_store.codecs.kinds import make_quantizer
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.rq import RQ
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.training.augmentation import enlarged
from rqmoe_store.training.kmeans import ITERATIONS, kmeans, nearest
from rqmoe_store.training.progress import Progress

FULL_ROWS = 65_536
"""Vectors that k-means sees for codebooks at most, as many per codeword as FAISS uses."""

_ROWS_PER_PARTITION = 40
_ROWS_PER_CODEWORD = 64
_MOST_TIMES = 6  # as many rows with mixtures as without, at most
_LEAST_ROWS_PER_CODEWORD = 16
_TIMED_ROWS = 8_192
_OTHER_WORK = 2.0  # times what looking for the nearest centroids takes


@torch.no_grad()
def initialise(
    vectors_nD: Tensor,
    config: CodecConfig,
    *,
    seed: int,
    progress: Progress,
    enlarge: bool = False,
    most_rows: int | None = None,
) -> RQ:
    """The greedy RQ of the (resolved) configuration, whatever its kind.

    With `enlarge`, mixtures of the vectors make up for there being few of them. K-means sees `most_rows`
    vectors at most; None for as many as it gains from.

    Raises:
        InvalidInputError: fewer vectors than codewords or partitions, or vectors all the same.
    """
    check_trainable(vectors_nD, config)
    generator = torch.Generator().manual_seed(seed)
    quantizer = RQ(config, vectors_nD.shape[1]).to(vectors_nD.device)
    quantizer.mean_D.copy_(vectors_nD.mean(dim=0))
    quantizer.scale.copy_((vectors_nD - quantizer.mean_D).square().mean().sqrt())
    wanted = max(FULL_ROWS, _ROWS_PER_PARTITION * quantizer.num_partitions)
    wanted = wanted if most_rows is None else min(wanted, most_rows)
    chosen_n = torch.randperm(len(vectors_nD), generator=generator)[:wanted].to(vectors_nD.device)
    residual_nD = quantizer.normalize(vectors_nD[chosen_n])
    if enlarge:
        rows = min(wanted, FULL_ROWS, _MOST_TIMES * len(residual_nD))
        residual_nD = enlarged(residual_nD, rows, generator=generator)
    if quantizer.num_partitions:
        progress.stage(f"k-means for {quantizer.num_partitions} partitions")
        quantizer.centroids_PD.copy_(kmeans(residual_nD, quantizer.num_partitions, generator=generator))
        residual_nD = residual_nD - quantizer.partition_offset(assign_partitions(quantizer, residual_nD))
    for step in range(quantizer.num_steps):
        progress.stage(f"residual codebook {step + 1} of {quantizer.num_steps}")
        codebook_KD = kmeans(residual_nD, quantizer.codebook_size, generator=generator)
        quantizer.codebooks_MKD[step] = codebook_KD
        residual_nD = residual_nD - codebook_KD[nearest(residual_nD, codebook_KD)]
    # What training is compared with, and what it falls back on, is plain RQ as it would be stored.
    quantizer.round_weights()
    return quantizer


@torch.no_grad()
def rows_within(seconds: float, vectors_nD: Tensor, config: CodecConfig) -> int | None:
    """Vectors that `initialise` can give to k-means in that time, by how long a look at some of them takes.

    Never fewer than 16 for a codeword, or than there are partitions; None where time is not limited.
    """
    if math.isinf(seconds):
        return None
    some_nD, centroids_KD = vectors_nD[:_TIMED_ROWS], vectors_nD[: config.codebook_size]
    nearest(some_nD, centroids_KD)  # the first call is slower
    began = time.monotonic()
    int(nearest(some_nD, centroids_KD)[0])  # the number is waited for where the vectors are on a GPU
    per_look = (time.monotonic() - began) / len(some_nD)
    looks = (ITERATIONS + 1) * (config.code_bytes + (config.num_partitions or 0) / config.codebook_size)
    least = max(_LEAST_ROWS_PER_CODEWORD * config.codebook_size, config.least_training_rows)
    return max(least, int(seconds / (per_look * looks * _OTHER_WORK)))


@torch.no_grad()
def with_experts(plain: RQ, config: CodecConfig, *, seed: int) -> ResidualQuantizer:
    """An untrained quantizer of the configured kind that encodes and decodes as `plain` does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        quantizer = make_quantizer(config, plain.dim).to(plain.codebooks_MKD.device)
    shared = plain.state_dict()
    quantizer.load_state_dict({**quantizer.state_dict(), **shared})
    quantizer.start_experts()
    return quantizer


def check_trainable(vectors_nD: Tensor, config: CodecConfig) -> None:
    """Raise InvalidInputError unless the vectors can fill the configured codebooks."""
    rows = len(vectors_nD)
    if rows < config.least_training_rows:
        raise InvalidInputError(
            f"Got {rows} vectors to train on; expected at least {config.least_training_rows} (codebook_size="
            f"{config.codebook_size}, num_partitions={config.num_partitions}). "
            "Add rows, or lower those two settings."
        )
    if bool((vectors_nD == vectors_nD[0]).all()):
        raise InvalidInputError(
            f"All {rows} training vectors are the same, so there is nothing to learn. "
            "Check how the embeddings were made."
        )


def warn_if_few(rows: int, config: CodecConfig, *, stacklevel: int) -> None:
    """Warn when there are fewer training vectors than make codebooks that generalise.

    A codeword is the mean of the vectors that choose it. The mean of n vectors misses the mean of all
    there could be by a squared distance of 1/n of their variance: with 64 of them, by less than 2 %.
    `stacklevel` is that of a warning issued where this is called.
    """
    wanted = _ROWS_PER_CODEWORD * config.codebook_size
    if rows < wanted:
        warnings.warn(
            f"Training on {rows:,} vectors; {wanted:,} would do for codebooks that hold for unseen vectors "
            f"too ({_ROWS_PER_CODEWORD} for each of codebook_size={config.codebook_size} codewords). "
            "Add rows, or lower codebook_size.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
