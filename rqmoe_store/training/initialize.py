"""Initialization: mean and scale, k-means partitions, greedy residual codebooks; or a checkpoint.

Shape legend: n vectors, B vectors of one chunk, D dimension, M steps, K codewords or centroids,
P partitions, X empty centroids.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from rqmoe_store.codecs.device import run_on_device
from rqmoe_store.codecs.grouped_sums import GroupedSums
from rqmoe_store.codecs.kinds import RQ, make_quantizer
from rqmoe_store.codecs.parallel import run_chunks
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import InvalidInputError, warn_caller
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.training.checkpoint import Checkpoint
from rqmoe_store.training.loss import quick_mse, validation_mse
from rqmoe_store.training.sampler import enlarged, random_order
from rqmoe_store.training.warm_start import WarmStart
from rqmoe_store.training.workers import Workers

FULL_ROWS = 65_536
"""Most vectors that k-means uses for a codebook: 256 per codeword, as in FAISS."""

_ITERATIONS = 6  # of k-means
_FURTHER_ITERATIONS = 3  # of k-means that goes on from codebooks of other vectors
_STRIDE = 1.9  # centroids move so many times the way to the mean of their vectors
_LEAST_KEPT = 0.1  # of a centroid's deviation from the mean, however few vectors it is the mean of
_MIXTURE_NOISE = 0.5  # with mixtures, noise grows by this share of what independent vectors would lower it
_START = 0.3  # centroids start at this share of the way from the mean to a vector
_GPU_CHUNK, _CPU_CHUNK = 65_536, 1_024  # vectors that look for their nearest centroid at a time
_MOST_PARTS = 16  # of the vectors, each with sums of its own

_ROWS_PER_PARTITION = 40
_ROWS_PER_CODEWORD = 64  # fewer cause a warning
_LEAST_ROWS_PER_CODEWORD = 16  # in a limited time
_MOST_TIMES = 6  # mixtures make up to so many times as many rows
_FEW_ROWS = FULL_ROWS // 2  # with fewer, at least half of the rows that k-means can use would be mixtures
_ENOUGH_PER_CODEWORD = 512  # vectors per codeword from which on training gains nothing from mixtures
_PROBE_ROWS, _PROBE_STEPS = 8_192, 4  # sample and codebooks that decide on mixtures
_TIMED_ROWS = 8_192
_OTHER_WORK = 2.0  # time of all of k-means, in times of its search for nearest centroids


@dataclasses.dataclass(frozen=True)
class Start:
    """An initialized quantizer, and the errors of plain RQ that it has to beat."""

    quantizer: ResidualQuantizer
    rq_prefix_mse: tuple[float, ...]
    """Validation errors of plain RQ with the default encoder."""
    rq_mse: float
    """Validation error of plain RQ with the training encoder, in normalized units."""
    mixing: bool
    """Whether to train on mixtures of vectors."""
    continued: str | None = None
    """Fingerprint of the codec that the quantizer comes from; None if it comes from plain RQ."""


def fresh_start(
    training_nD: Tensor,
    validation_nD: Tensor,
    config: CodecConfig,
    *,
    seed: int,
    workers: Workers,
    progress: TrainingProgress,
    seconds: float = math.inf,
    warm: WarmStart | None = None,
) -> Start:
    """Initialize a quantizer, and measure plain RQ's errors to compare with.

    If vectors are few and fill their space, codebooks that are fitted to mixtures as well are far better on
    unseen vectors. If vectors lie on a curved surface, mixtures lie off it. The validation vectors decide
    which codebooks the experts start from, and whether training uses mixtures too. With more vectors k-means
    gains nothing from mixtures but training does. Then a small sample of the vectors decides, unless there
    are enough vectors for every codeword.

    `seconds` limits the time: k-means uses fewer vectors, and mixtures are tried only if the first codebooks
    took at most half of the time.

    A trained quantizer (`warm`) is the start instead if its validation error is lower than that of the
    codebooks.
    """
    began, most_rows = time.monotonic(), kmeans_rows_within(seconds / 2, training_nD, config)
    plain = best = initialize(training_nD, config, seed=seed, progress=progress, most_rows=most_rows)
    is_late = time.monotonic() - began > seconds / 2
    normalized_nD = plain.normalize(validation_nD)
    rq_mse = quick_mse(plain, normalized_nD)
    if is_late:
        mixing = False
    elif config.kind != "rq" and len(training_nD) < _FEW_ROWS:
        progress.stage("again with mixtures")
        fit = functools.partial(
            initialize, training_nD, config, seed=seed, progress=progress, start=plain, most_rows=most_rows
        )
        further, with_mixtures = fit(), fit(enlarge=True)  # alike but for the mixtures
        errors = [quick_mse(each, normalized_nD) for each in (further, with_mixtures)]
        mixing = errors[1] < errors[0]
        if errors[0] < rq_mse:
            plain, rq_mse = further, errors[0]
        best = with_mixtures if errors[1] < rq_mse else plain
    else:
        many = len(training_nD) >= _ENOUGH_PER_CODEWORD * config.codebook_size
        mixing = config.kind != "rq" and not many and mixtures_help(training_nD, validation_nD, config, seed)
    if warm is not None and not workers.broadcast_json(_is_better(warm.quantizer, best, validation_nD)):
        warm = None
    quantizer = with_experts(best, config, seed=seed) if warm is None else warm.quantizer
    # Processes may round differently but must start from the same weights.
    workers.broadcast_(quantizer.state_dict().values())
    rq_prefix_mse, rq_mse, mixing = workers.broadcast_json(
        [validation_mse(plain, validation_nD), rq_mse, mixing]
    )
    rq_mse *= float(plain.scale / quantizer.scale) ** 2  # in the units of the quantizer
    return Start(quantizer, tuple(rq_prefix_mse), rq_mse, mixing, None if warm is None else warm.fingerprint)


def _is_better(first: ResidualQuantizer, second: ResidualQuantizer, validation_nD: Tensor) -> bool:
    """Whether the first one has the lower validation error, with the training encoder; NaN is never lower."""
    errors = [
        quick_mse(each, each.normalize(validation_nD)) * float(each.scale) ** 2 for each in (first, second)
    ]
    return errors[0] < errors[1]


def resumed_start(checkpoint: Checkpoint, config: CodecConfig, training_nD: Tensor) -> Start:
    """The quantizer of a checkpoint, and the errors that its run has to beat."""
    with torch.device("cpu"):  # the caller may have another default
        quantizer = make_quantizer(config, training_nD.shape[1]).to(training_nD.device)
    quantizer.load_state_dict(checkpoint.group("weights"))
    kept = checkpoint.counters
    return Start(
        quantizer, tuple(kept["rq_prefix_mse"]), kept["rq_mse"], kept["mixing"], kept.get("continued")
    )


def mixtures_help(training_nD: Tensor, validation_nD: Tensor, config: CodecConfig, seed: int) -> bool:
    """Whether mixtures lie where unseen vectors lie.

    They do if the first codebooks of a small sample have a lower validation error with mixtures than without.
    """
    generator = torch.Generator().manual_seed(seed)
    sample_nD = training_nD[random_order(len(training_nD), generator)[:_PROBE_ROWS].to(training_nD.device)]
    steps = min(_PROBE_STEPS, config.code_bytes)
    plain_config = dataclasses.replace(config, kind="rq", code_bytes=steps, num_partitions=0)
    fit = functools.partial(
        initialize, sample_nD, plain_config, seed=seed, progress=TrainingProgress(visible=False)
    )
    errors = [quick_mse(each, each.normalize(validation_nD)) for each in (fit(), fit(enlarge=True))]
    return errors[1] < errors[0]


@torch.no_grad()
def initialize(
    vectors_nD: Tensor,
    config: CodecConfig,
    *,
    seed: int,
    progress: TrainingProgress,
    enlarge: bool = False,
    start: RQ | None = None,
    most_rows: int | None = None,
) -> RQ:
    """Fit the greedy RQ of a resolved configuration of any kind.

    Args:
        vectors_nD: training vectors.
        config: the configuration.
        seed: of everything random.
        progress: shows the stages.
        enlarge: whether to add mixtures of the vectors.
        start: what this returned for the vectors before. Its codebooks are where k-means goes on from, with
            fewer iterations.
        most_rows: most vectors that k-means uses. None means as many as it gains from.

    Raises:
        InvalidInputError: there are fewer vectors than codewords or partitions, or all vectors are the same.
    """
    check_trainable(vectors_nD, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.device("cpu"):  # the caller may have another default
        quantizer = RQ(config, vectors_nD.shape[1]).to(vectors_nD.device)
    quantizer.mean_D.copy_(vectors_nD.mean(dim=0))
    quantizer.scale.copy_((vectors_nD - quantizer.mean_D).square().mean().sqrt())
    if not quantizer.scale > 0:
        raise InvalidInputError(
            f"The {len(vectors_nD)} training vectors differ so little that squares of their differences are "
            "zero in float32. Check how the embeddings were made."
        )
    wanted = max(FULL_ROWS, _ROWS_PER_PARTITION * quantizer.num_partitions)
    wanted = wanted if most_rows is None else min(wanted, most_rows)
    chosen_n = random_order(len(vectors_nD), generator)[:wanted]
    residual_nD, noise = quantizer.normalize(vectors_nD[chosen_n.to(vectors_nD.device)]), 1.0
    if enlarge:
        rows = min(wanted, FULL_ROWS, _MOST_TIMES * len(residual_nD))
        noise = max(1.0, _MIXTURE_NOISE * rows / len(residual_nD))
        residual_nD = enlarged(residual_nD, rows, generator=generator)
    fit = functools.partial(kmeans, generator=generator, noise=noise)
    if quantizer.num_partitions:
        progress.stage(f"k-means for {quantizer.num_partitions} partitions")
        start_PD = None if start is None else start.centroids_PD
        centroids_PD = fit(residual_nD, quantizer.num_partitions, start_KD=start_PD)
        quantizer.centroids_PD.copy_(centroids_PD)
        residual_nD = residuals(residual_nD, centroids_PD)
    for step in range(quantizer.num_steps):
        progress.stage(f"residual codebook {step + 1} of {quantizer.num_steps}")
        start_KD = None if start is None else start.codebooks_MKD[step]
        codebook_KD = fit(residual_nD, quantizer.codebook_size, start_KD=start_KD)
        quantizer.codebooks_MKD[step] = codebook_KD
        residual_nD = residuals(residual_nD, codebook_KD)
    # Training is compared with plain RQ, and falls back on it, as it would be stored.
    quantizer.round_weights()
    return quantizer


@torch.no_grad()
def kmeans_rows_within(seconds: float, vectors_nD: Tensor, config: CodecConfig) -> int | None:
    """Vectors that k-means can use in the given time, by the time of one nearest-centroid search.

    At least 16 per codeword and as many as partitions. None if the time is not limited.
    """
    if math.isinf(seconds):
        return None
    some_nD, centroids_KD = vectors_nD[:_TIMED_ROWS], vectors_nD[: config.codebook_size]
    nearest(some_nD, centroids_KD)  # the first call is slower
    began = time.monotonic()
    int(nearest(some_nD, centroids_KD)[0])  # reading a number waits for the GPU
    seconds_per_search = (time.monotonic() - began) / len(some_nD)
    codebooks = config.code_bytes + (config.num_partitions or 0) / config.codebook_size
    searches = (_ITERATIONS + 1) * codebooks
    least = max(_LEAST_ROWS_PER_CODEWORD * config.codebook_size, config.least_training_rows)
    return max(least, int(seconds / (seconds_per_search * searches * _OTHER_WORK)))


@torch.no_grad()
def with_experts(plain: RQ, config: CodecConfig, *, seed: int) -> ResidualQuantizer:
    """A quantizer of the configured kind with untrained experts: it encodes and decodes as `plain` does."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # the caller may have another default
        torch.default_generator.manual_seed(seed)
        quantizer = make_quantizer(config, plain.dim).to(plain.codebooks_MKD.device)
    shared = plain.state_dict()
    quantizer.load_state_dict({**quantizer.state_dict(), **shared})
    run_on_device(plain.codebooks_MKD.device, [quantizer.start_experts])
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
    """Warn if there are fewer training vectors than codebooks need to generalize.

    A codeword is the mean of the vectors that choose it. The mean of n vectors misses the true mean by a
    squared distance of 1/n of their variance: with 64 vectors, by less than 2 %.
    """
    wanted = 0 if config.is_transform else _ROWS_PER_CODEWORD * config.codebook_size
    if rows < wanted:
        warn_caller(
            f"Training on {rows:,} vectors; codebooks that hold for unseen vectors too need {wanted:,} "
            f"({_ROWS_PER_CODEWORD} for each of codebook_size={config.codebook_size} codewords). "
            "Add rows, or lower codebook_size."
        )


def kmeans(
    vectors_nD: Tensor,
    count: int,
    *,
    generator: torch.Generator,
    iterations: int | None = None,
    start_KD: Tensor | None = None,
    noise: float = 1.0,
) -> Tensor:
    """Fit `count` centroids (K, D) to at least as many vectors.

    Centroids start at distinct random vectors, moved towards the mean. In high dimension a centroid at a data
    point is far from all other points and never attracts any. Near the mean every centroid competes from the
    first iteration. A centroid that loses all its vectors moves next to the most crowded one, so every
    centroid returned is in use unless vectors repeat.

    Iterations before the last one move a centroid nearly twice as far as to the mean of its vectors. For
    these, any move of less than twice as far lowers the error, and 6 such iterations reach what 10 to the
    mean itself do, or less. The last one shrinks centroids (see `_shrunk`), for the sake of vectors that are
    not seen here.

    Args:
        vectors_nD: the vectors.
        count: number of centroids.
        generator: for what is random.
        iterations: how many there are; None for as many as suffice.
        start_KD: centroids of similar vectors to start from instead, in fewer iterations.
        noise: variance of the mean of n vectors, in n-ths of their variance: above 1 if they are not
            independent of each other.
    """
    mean_D = vectors_nD.mean(dim=0)
    if start_KD is None:
        chosen_K = random_order(len(vectors_nD), generator)[:count].to(vectors_nD.device)
        centroids_KD = mean_D.lerp(vectors_nD[chosen_K], _START)
        iterations = _ITERATIONS if iterations is None else iterations
    else:
        centroids_KD = start_KD.clone()
        iterations = _FURTHER_ITERATIONS if iterations is None else iterations
    for iteration in range(iterations):
        sums_KD, sizes_K = _sums_of_nearest(vectors_nD, centroids_KD)
        means_KD = sums_KD / sizes_K.clamp_min(1)[:, None]
        if iteration + 1 < iterations:
            means_KD = centroids_KD.lerp(means_KD, _STRIDE)
        else:
            means_KD = _shrunk(means_KD, sizes_K, vectors_nD, mean_D, noise)
        centroids_KD = torch.where(sizes_K[:, None] > 0, means_KD, centroids_KD)
        _split_crowded(centroids_KD, sizes_K, generator)
    return centroids_KD


def _shrunk(means_KD: Tensor, sizes_K: Tensor, vectors_nD: Tensor, mean_D: Tensor, noise: float) -> Tensor:
    """The means of groups of vectors, moved towards the mean of all by as much as chance moves them away.

    The mean of n vectors misses that of further vectors of its kind by a squared distance of 1/n of their
    variance. By so much its squared deviation from the mean of all vectors is too large on average (James and
    Stein). Codebooks of few vectors, or of what many steps leave over, consist of such deviations to a good
    part.
    """

    def squares(part_nD: Tensor) -> Tensor:
        return (part_nD - mean_D).square().sum()

    parts = [functools.partial(squares, part_nD) for part_nD in _parts(vectors_nD)]
    variance = torch.stack(run_on_device(vectors_nD.device, parts)).sum() / len(vectors_nD)
    deviations_KD = means_KD - mean_D
    squares_K = deviations_KD.square().sum(dim=1)
    within = (variance - (sizes_K * squares_K).sum() / len(vectors_nD)).clamp_min(0)
    noise_K = noise * within / sizes_K.clamp_min(1)
    kept_K = (1 - noise_K / squares_K.clamp_min(torch.finfo(squares_K.dtype).tiny)).clamp(_LEAST_KEPT, 1)
    return mean_D + kept_K[:, None] * deviations_KD


def _sums_of_nearest(vectors_nD: Tensor, centroids_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Sums (K, D) and numbers (K,) of the vectors that each centroid is nearest to."""

    def sums(part_nD: Tensor) -> tuple[Tensor, Tensor]:
        assignment_n1 = _nearest_in_chunks(part_nD, centroids_KD)[:, None]
        grouped = GroupedSums(assignment_n1, len(centroids_KD))
        return grouped.of(part_nD), grouped.sizes()

    parts = [functools.partial(sums, part_nD) for part_nD in _parts(vectors_nD)]
    (sums_KD, sizes_K), *others = run_on_device(vectors_nD.device, parts)
    for other_KD, other_K in others:
        sums_KD += other_KD
        sizes_K += other_K
    return sums_KD, sizes_K


def nearest(vectors_nD: Tensor, centroids_KD: Tensor) -> Tensor:
    """Index (n,), int64, of the centroid nearest to each vector."""
    parts = [functools.partial(_nearest_in_chunks, part_nD, centroids_KD) for part_nD in _parts(vectors_nD)]
    return torch.cat(run_on_device(vectors_nD.device, parts))


def residuals(vectors_nD: Tensor, centroids_KD: Tensor) -> Tensor:
    """The vectors less their nearest centroids."""

    def subtract(part_nD: Tensor) -> Tensor:
        return part_nD - centroids_KD[_nearest_in_chunks(part_nD, centroids_KD)]

    parts = [functools.partial(subtract, part_nD) for part_nD in _parts(vectors_nD)]
    return torch.cat(run_on_device(vectors_nD.device, parts))


def _parts(vectors_nD: Tensor) -> Sequence[Tensor]:
    """The vectors in as many parts as there may be threads to work on them, whatever their number is."""
    parts = min(_MOST_PARTS, math.ceil(len(vectors_nD) / _CPU_CHUNK))
    return vectors_nD.tensor_split(parts if vectors_nD.device.type == "cpu" else 1)


def _nearest_in_chunks(vectors_nD: Tensor, centroids_KD: Tensor) -> Tensor:
    norms_K = centroids_KD.square().sum(dim=1)
    nearest_n = torch.empty(len(vectors_nD), dtype=torch.long, device=vectors_nD.device)

    @torch.no_grad()
    def find(start: int, stop: int, _: int) -> None:
        scores_BK = torch.addmm(norms_K, vectors_nD[start:stop], centroids_KD.T, alpha=-2)
        nearest_n[start:stop] = scores_BK.argmin(dim=1)

    run_chunks(len(vectors_nD), _CPU_CHUNK if vectors_nD.device.type == "cpu" else _GPU_CHUNK, find)
    return nearest_n


def _split_crowded(centroids_KD: Tensor, sizes_K: Tensor, generator: torch.Generator) -> None:
    """Move every empty centroid next to a crowded one, in place."""
    empty_X = (sizes_K == 0).nonzero()[:, 0]
    if len(empty_X) == 0:
        return
    crowded_X = sizes_K.topk(len(empty_X)).indices
    noise_XD = torch.randn(len(empty_X), centroids_KD.shape[1], generator=generator, device="cpu")
    spread = centroids_KD.std() * 1e-2
    centroids_KD[empty_X] = centroids_KD[crowded_X] + noise_XD.to(centroids_KD.device) * spread
