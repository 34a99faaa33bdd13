"""Initialization: mean and scale, k-means partitions, greedy residual codebooks; or a checkpoint.

Shape legend: n vectors, M steps, K codewords, D dimension, P partitions.

Shape legend: n vectors, K centroids, D dimension, B rows of a chunk.

Shape legend: n vectors, D dimension.
"""

import dataclasses
import math
import time

import torch
from torch import Tensor

from rqmoe_store.codecs.encoding import assign_partitions
from rqmoe_store.codecs.kinds import RQ, make_quantizer
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import InvalidInputError, warn_caller
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.training.checkpoint import Checkpoint
from rqmoe_store.training.loss import quick_mse, validation_mse
from rqmoe_store.training.sampler import enlarged
from rqmoe_store.training.workers import Workers

ITERATIONS = 10
"""How often centroids are moved."""

_CHUNK = 65_536
_START = 0.3  # share of the way from the mean at which centroids start


def kmeans(
    vectors_nD: Tensor, count: int, *, generator: torch.Generator, iterations: int = ITERATIONS
) -> Tensor:
    """Centroids (count, D); needs n >= count.

    Starts from distinct random vectors drawn towards the mean. In high dimension a centroid that is a
    data point is far from all other points and never attracts any; near the mean every centroid
    competes from the first iteration. A centroid that loses all its vectors is moved next to the
    most crowded one, so every centroid returned is in use unless vectors repeat.
    """
    start_K = torch.randperm(len(vectors_nD), generator=generator)[:count].to(vectors_nD.device)
    centroids_KD = vectors_nD.mean(dim=0).lerp(vectors_nD[start_K], _START)
    for _ in range(iterations):
        assignment_n = nearest(vectors_nD, centroids_KD)
        sizes_K = torch.bincount(assignment_n, minlength=count)
        sums_KD = torch.zeros_like(centroids_KD).index_add_(0, assignment_n, vectors_nD)
        centroids_KD = torch.where(
            sizes_K[:, None] > 0, sums_KD / sizes_K.clamp_min(1)[:, None], centroids_KD
        )
        _split_crowded(centroids_KD, sizes_K, generator)
    return centroids_KD


def nearest(vectors_nD: Tensor, centroids_KD: Tensor) -> Tensor:
    """Index (n,), int64, of the nearest centroid to each vector."""
    norms_K = centroids_KD.square().sum(dim=1)
    chunks = [
        (norms_K - 2 * chunk_BD @ centroids_KD.T).argmin(dim=1) for chunk_BD in vectors_nD.split(_CHUNK)
    ]
    return torch.cat(chunks)


def _split_crowded(centroids_KD: Tensor, sizes_K: Tensor, generator: torch.Generator) -> None:
    """Move every empty centroid beside a crowded one, in place."""
    empty_X = (sizes_K == 0).nonzero()[:, 0]
    if len(empty_X) == 0:
        return
    crowded_X = sizes_K.topk(len(empty_X)).indices
    noise_XD = torch.randn(len(empty_X), centroids_KD.shape[1], generator=generator)
    spread = centroids_KD.std() * 1e-2
    centroids_KD[empty_X] = centroids_KD[crowded_X] + noise_XD.to(centroids_KD.device) * spread


FULL_ROWS = 65_536
"""Vectors that k-means sees for codebooks at most, as many per codeword as FAISS uses."""

_ROWS_PER_PARTITION = 40
_ROWS_PER_CODEWORD = 64
_MOST_TIMES = 6  # as many rows with mixtures as without, at most
_LEAST_ROWS_PER_CODEWORD = 16
_TIMED_ROWS = 8_192
_OTHER_WORK = 2.0  # times what looking for the nearest centroids takes


@torch.no_grad()
def initialize(
    vectors_nD: Tensor,
    config: CodecConfig,
    *,
    seed: int,
    progress: TrainingProgress,
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
    """Vectors that `initialize` can give to k-means in that time, by how long a look at some of them takes.

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


def warn_if_few(rows: int, config: CodecConfig) -> None:
    """Warn when there are fewer training vectors than make codebooks that generalize.

    A codeword is the mean of the vectors that choose it. The mean of n vectors misses the mean of all
    there could be by a squared distance of 1/n of their variance: with 64 of them, by less than 2 %.
    """
    wanted = _ROWS_PER_CODEWORD * config.codebook_size
    if rows < wanted:
        warn_caller(
            f"Training on {rows:,} vectors; {wanted:,} would do for codebooks that hold for unseen vectors "
            f"too ({_ROWS_PER_CODEWORD} for each of codebook_size={config.codebook_size} codewords). "
            "Add rows, or lower codebook_size."
        )


_FEW_ROWS = FULL_ROWS // 2  # below this, at least half of what k-means could use would be mixtures
_ENOUGH_PER_CODEWORD = 512
_PROBE_ROWS, _PROBE_STEPS = 8_192, 4


@dataclasses.dataclass(frozen=True)
class Start:
    """A quantizer to train, and what it has to beat."""

    quantizer: ResidualQuantizer
    rq_prefix_mse: tuple[float, ...]
    """Validation error of plain RQ, by the default encoder."""
    rq_mse: float
    """The same by the training encoder, in normalized units."""
    mixing: bool
    """Whether to train on mixtures of vectors."""


def fresh_start(
    training_nD: Tensor,
    validation_nD: Tensor,
    config: CodecConfig,
    *,
    seed: int,
    workers: Workers,
    progress: TrainingProgress,
    seconds: float = math.inf,
) -> Start:
    """The untrained quantizer, and plain RQ's errors to compare with.

    Where vectors are few and fill their space, codebooks fitted to mixtures of them too are far
    better on unseen vectors; where they lie on a curved surface, mixtures leave it. The validation
    vectors decide which codebooks the experts start from, and whether training mixes as well. With
    more vectors k-means gains nothing from mixtures while training still does, so there a small
    sample of the vectors decides, up to where there are enough vectors for every codeword.

    In a limited time k-means sees fewer vectors, and mixtures are tried if there is as much time left
    again as codebooks have taken.
    """
    began, most_rows = time.monotonic(), rows_within(seconds / 2, training_nD, config)
    plain = best = initialize(training_nD, config, seed=seed, progress=progress, most_rows=most_rows)
    hurried = time.monotonic() - began > seconds / 2
    normalized_nD = plain.normalize(validation_nD)
    rq_mse = quick_mse(plain, normalized_nD)
    if hurried:
        mixing = False
    elif config.kind != "rq" and len(training_nD) < _FEW_ROWS:
        progress.stage("again with mixtures")
        enlarged = initialize(
            training_nD, config, seed=seed, progress=progress, enlarge=True, most_rows=most_rows
        )
        best = enlarged if quick_mse(enlarged, normalized_nD) < rq_mse else plain
        mixing = best is not plain
    else:
        many = len(training_nD) >= _ENOUGH_PER_CODEWORD * config.codebook_size
        mixing = config.kind != "rq" and not many and mixing_pays(training_nD, validation_nD, config, seed)
    quantizer = with_experts(best, config, seed=seed)
    # Processes may round differently, and must not start from different weights.
    workers.broadcast_(quantizer.state_dict().values())
    rq_prefix_mse, rq_mse, mixing = workers.share([validation_mse(plain, validation_nD), rq_mse, mixing])
    return Start(quantizer, tuple(rq_prefix_mse), rq_mse, mixing)


def mixing_pays(training_nD: Tensor, validation_nD: Tensor, config: CodecConfig, seed: int) -> bool:
    """Whether the first codebooks of a small sample do better on the validation vectors when they are
    fitted to mixtures too: a sign that mixtures lie where unseen vectors do."""
    generator = torch.Generator().manual_seed(seed)
    chosen_n = torch.randperm(len(training_nD), generator=generator)[:_PROBE_ROWS]
    sample_nD = training_nD[chosen_n.to(training_nD.device)]
    steps = min(_PROBE_STEPS, config.code_bytes)
    plain_config = dataclasses.replace(config, kind="rq", code_bytes=steps, num_partitions=0)
    errors = []
    for enlarge in (False, True):
        quantizer = initialize(
            sample_nD, plain_config, seed=seed, progress=TrainingProgress(visible=False), enlarge=enlarge
        )
        errors.append(quick_mse(quantizer, quantizer.normalize(validation_nD)))
    return errors[1] < errors[0]


def resumed_start(checkpoint: Checkpoint, config: CodecConfig, training_nD: Tensor) -> Start:
    """The quantizer of a checkpoint, and what its run had to beat."""
    quantizer = make_quantizer(config, training_nD.shape[1]).to(training_nD.device)
    quantizer.load_state_dict(checkpoint.group("weights"))
    kept = checkpoint.counters
    return Start(quantizer, tuple(kept["rq_prefix_mse"]), kept["rq_mse"], kept["mixing"])
