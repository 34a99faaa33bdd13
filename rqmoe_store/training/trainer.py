"""Train a codec: vectors to sample, codebooks, experts, look-up tables, and report.

Shape legend: n training vectors, D dimension.
"""

import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rqmoe_store.arguments import whole_number
from rqmoe_store.codecs.additive_fit import CALIBRATION_ROWS, fit_tables
from rqmoe_store.codecs.artifact import Artifact, TrainingReport
from rqmoe_store.codecs.base import Codec, require_storable
from rqmoe_store.codecs.coder import ResidualCoder, TransformCoder
from rqmoe_store.codecs.codes import Codes, encode_vectors
from rqmoe_store.codecs.device import as_tensor
from rqmoe_store.codecs.encoding import encode_block, exact_tables
from rqmoe_store.codecs.frame import Frame, clamp_vectors, frame_for
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.subject import RowResiduals, require_vectors
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.codecs.weights import QuantizerWeights
from rqmoe_store.config import CodecConfig, RefineBase, TrainConfig, TransformKind
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.training.checkpoint import read_checkpoint, run_identity
from rqmoe_store.training.initialize import Start, check_trainable, fresh_start, resumed_start, warn_if_few
from rqmoe_store.training.loop import TrainingLoop
from rqmoe_store.training.loss import validation_mse
from rqmoe_store.training.relevance import KnownQueries, require_no_refine_codes, tune_for
from rqmoe_store.training.sampler import (
    count_vectors,
    has_many_vectors,
    sample_vectors,
    sample_with_positives,
    without_outliers,
)
from rqmoe_store.training.transform import (
    FITTED_ROWS,
    fit_refiner,
    fit_transform,
    mean_square,
    refined_mse,
)
from rqmoe_store.training.warm_start import WarmStart, require_dim, starting_config
from rqmoe_store.training.workers import Workers, join_workers

_CALIBRATION_PRESELECT = 4
_LEAST_CALIBRATION_ROWS = 2_048
_TIMED_ROWS = 512
_MOST_RESERVED = 0.4  # of the budget; the rest is for codebooks and experts
_CODEBOOKS = 0.4  # of the time left once vectors are sampled


@dataclasses.dataclass(frozen=True)
class FinishingTime:
    """Time needed after training: to fit look-up tables and refine codes, and to measure the codec."""

    per_row: float = 0.0
    """Seconds per vector that tables and refine codes are fitted to."""
    measuring: float = 0.0
    """Seconds for measuring the codec."""

    @classmethod
    def measured(
        cls, quantizer: ResidualQuantizer, training_nD: Tensor, validation_nD: Tensor
    ) -> "FinishingTime":
        """The time, extrapolated from doing both on some of the vectors."""
        began, some = time.monotonic(), training_nD[:_TIMED_ROWS]
        fit_tables(quantizer, _calibration_codes(quantizer, some))
        fitted, few = time.monotonic(), validation_nD[:_TIMED_ROWS]
        validation_mse(quantizer, few)
        per_row, measuring = (fitted - began) / len(some), (time.monotonic() - fitted) / len(few)
        if quantizer.config.refine_bytes:  # for which vectors are encoded like those that are measured
            per_row, measuring = per_row + measuring, 2 * measuring
        return cls(per_row, measuring * len(validation_nD))

    def reserved(self, rows: int, max_minutes: float) -> float:
        """Seconds of the budget to reserve, with `rows` training vectors."""
        needed = self.measuring + self.per_row * min(rows, CALIBRATION_ROWS)
        return min(needed, 60 * max_minutes * _MOST_RESERVED)

    def rows_within(self, seconds: float) -> int:
        """Vectors that tables can be fitted on in the given time, but at least 2,048 to be of use."""
        if self.per_row == 0.0:
            return CALIBRATION_ROWS
        fitting = int((seconds - self.measuring) / self.per_row)
        return max(_LEAST_CALIBRATION_ROWS, min(CALIBRATION_ROWS, fitting))


@translates_errors
def train(
    data: Any,
    vector_column: str = "vector",
    *,
    config: CodecConfig | None = None,
    training: TrainConfig | None = None,
    validation: Any = None,
    start: Codec | None = None,
    queries: Any = None,
    positives: Any = None,
    on: str | None = None,
) -> Codec:
    """Train a codec on the vectors of a LanceDB table or array.

    Args:
        data: a LanceDB table, or an array-like or torch tensor of shape (rows, D), of any castable type.
        vector_column: the table's column of vectors. Null vectors are skipped. Where rows have lists of
            vectors, all vectors of a sample of rows are trained on, without partitions.
        config: shape of the codec. None means the defaults of CodecConfig, or the shape of `start`.
        training: how to train. None means the defaults of TrainConfig.
        validation: vectors (rows, D) to measure on. None means to hold out some of the sample.
        start: a codec to go on from, if its validation error is lower than that of the new codebooks
            from which training starts otherwise; `report.started_from` tells. Its shape must be the
            config's; refine codes, `beam` and `preselect` may differ. It is not changed. It must be of whole
            vectors, as is what is trained here: not of `RowResiduals`, for which there is
            `CompressedTable.retrain`.
        queries: vectors (Q, D) to tune the codec for, as `tune_codec` does, at least 100 different ones; the
            config must be without refine codes then. Tuning comes on top of `max_minutes`. The codec has a
            `correction` if queries held out gain by it; `tune_codec` tells how much. None to leave it out.
        positives: for each query the vector that answers it, or a list of several: positions in an array, or
            values that rows of a table have in the column `on`. None takes the 10 exact neighbors of each
            query in the sample.
        on: column of the table that has the positives.

    Returns:
        The codec with the lowest validation error seen. At worst that is the error of the plain RQ from
        which training starts, as the quick encoder for validation measures it. Processes that a launcher
        (`accelerate launch`, torchrun) started together all call this, train one codec, and all return it.
        Without `max_minutes`, the same seed gives the same codec again on the same machine. On other
        machines it gives other weights with about the same error (see TrainConfig).

    Raises:
        TableError: the table is empty, or the column is unknown or has another type.
        InvalidInputError: the vectors are unusable (NaN, infinite, zero under cosine, all the same) or fewer
            than codewords, the settings, `start`, queries or positives do not fit them, the device does not
            exist, or training keeps failing at this learning rate.
        ArtifactError: the checkpoint is damaged or belongs to another run.
        KeyboardInterrupt: Ctrl-C without a `checkpoint_dir`.

    Warns:
        UserWarning: there are fewer training vectors than codebooks need to generalize, some vectors are so
            far from all others that the codec cannot fit both, or a training step failed and training went
            back to its best weights.
    """
    config = starting_config(start, config)
    _require_tuning(config, data, vector_column, queries, positives, on)
    labels = None if positives is None else (positives, on)
    return _train(data, vector_column, config, training, validation, start, queries, labels)


@translates_errors
def train_on_residuals(
    residuals_TD: Float32Array,
    encodes: RowResiduals,
    *,
    config: CodecConfig,
    training: TrainConfig,
    start: Codec | None = None,
) -> Codec:
    """Train a codec on what the means of rows leave over of their vectors (T, D).

    Other arguments, and exceptions, are those of `train`. `start` must be of such residuals, too, or of an
    earlier release, which did not say.
    """
    config = starting_config(start, config, encodes)
    return _train(residuals_TD, "", config, training, start=start).with_subject(encodes)


def _train(
    data: Any,
    vector_column: str,
    config: CodecConfig,
    training: TrainConfig | None,
    validation: Any = None,
    start: Codec | None = None,
    queries: Any = None,
    labels: tuple[Any, str | None] | None = None,
) -> Codec:
    """Train a codec as `train` does, from checked arguments; `labels` are positives and their column."""
    started, settings = time.monotonic(), training or TrainConfig()
    workers = join_workers(settings.device)
    with TrainingProgress(visible=settings.progress and workers.is_main) as progress:
        progress.stage("sampling vectors")
        sample_nD = sample_vectors(
            data,
            vector_column=vector_column,
            metric=config.metric,
            max_rows=settings.max_rows,
            seed=settings.seed,
        )
        require_dim(start, sample_nD.shape[1])
        config = config.without_partitions() if has_many_vectors(data, vector_column) else config
        config = config.resolve(dim=sample_nD.shape[1], rows=count_vectors(data))
        known = None
        if queries is not None:
            known = _known_queries(data, vector_column, sample_nD, queries, labels, config, settings)
        codec = _train_on_sample(sample_nD, validation, config, settings, start, workers, progress, started)
        if known is None:
            return codec
        progress.stage("tuning for queries")
        return _share_codec(workers, tune_for(codec, known, settings.seed)[0] if workers.is_main else None)


def _require_tuning(
    config: CodecConfig, data: Any, vector_column: str, queries: Any, positives: Any, on: str | None
) -> None:
    """Raise InvalidInputError for positives without queries, and for what cannot be tuned for queries."""
    if queries is None:
        if positives is not None or on is not None:
            raise InvalidInputError(
                f"Got {'positives' if on is None else f'on={on!r}'} without queries; expected queries that "
                "the positives answer."
            )
        return
    if on is not None and positives is None:
        raise InvalidInputError(f"Got on={on!r} without positives; expected both, or neither.")
    require_no_refine_codes(config)
    if has_many_vectors(data, vector_column):
        raise InvalidInputError(
            f"Got queries to tune for, and column {vector_column!r}, whose rows have many vectors each; "
            "expected a column with one vector a row."
        )


def _known_queries(
    data: Any,
    vector_column: str,
    sample_nD: Float32Array,
    queries: Any,
    labels: tuple[Any, str | None] | None,
    config: CodecConfig,
    settings: TrainConfig,
) -> KnownQueries:
    """Check queries, and their positives and the column that has these, if there are any."""
    queries_QD = as_vectors(queries, dim=sample_nD.shape[1], metric=config.metric)
    if labels is None:
        return KnownQueries.of(sample_nD, queries_QD, None, seed=settings.seed)
    vectors_nD, relevant = sample_with_positives(
        data,
        labels[0],
        len(queries_QD),
        on=labels[1],
        vector_column=vector_column,
        metric=config.metric,
        max_rows=settings.max_rows,
        seed=settings.seed,
    )
    return KnownQueries.of(vectors_nD, queries_QD, relevant, seed=settings.seed)


def _train_on_sample(
    sample_nD: Float32Array,
    validation: Any,
    config: CodecConfig,
    settings: TrainConfig,
    start: Codec | None,
    workers: Workers,
    progress: TrainingProgress,
    started: float,
) -> Codec:
    """Train a codec of a resolved config on vectors in random order; every process returns it."""
    training_nD, validation_nD = _split(sample_nD, validation, config, settings)
    frame = Frame.plain(sample_nD.shape[1])
    if config.metric != "cosine":  # vectors of unit length have no outliers and need no frame
        training_nD, validation_nD = without_outliers(training_nD, validation_nD, warn=workers.is_main)
        frame = frame_for(training_nD)
    check_trainable(as_tensor(training_nD), config)
    if workers.is_main:
        warn_if_few(len(training_nD), config)
    training_nD, validation_nD = frame.transform(training_nD), frame.transform(validation_nD)
    if config.is_transform:
        progress.stage("fitting the transform code")
        codec = None
        if workers.is_main:
            codec = _fit_transform_codec(config, frame, training_nD, validation_nD, settings.seed, started)
        return _share_codec(workers, codec and require_storable(codec))
    vectors = as_tensor(training_nD).to(workers.device), as_tensor(validation_nD).to(workers.device)
    with _computing_on(workers.device, settings):
        warm = None if start is None else WarmStart.of(start, config, frame, workers.device)
        begun, epochs, finishing = _fit(*vectors, config, settings, started, workers, progress, warm)
        progress.stage("fitting look-up tables")
        rows = finishing.rows_within(_seconds_left(settings, started))
        finish = functools.partial(_finish, begun, frame, *vectors, rows, epochs, started, settings.seed)
        return _share_codec(workers, require_storable(finish()) if workers.is_main else None)


@translates_errors
def add_refine_codes(
    codec: Codec,
    data: Any,
    vector_column: str = "vector",
    *,
    refine_bytes: int,
    refine_kind: TransformKind = "pq",
    refine_base: RefineBase = "additive",
    seed: int = 0,
) -> Codec:
    """Add refine codes to a trained codec, in seconds: its code stays as it is.

    Args:
        codec: a codec with or without refine codes; it is not changed.
        data: a LanceDB table, or vectors (rows, D), of which at most 20,480 are fitted to and 5,000 more
            measured on. They should be of the kind that the codec was trained on.
        vector_column: the table's column of vectors. Null vectors are skipped.
        refine_bytes: bytes of a refine code; 0 for a codec without.
        refine_kind: as in CodecConfig.
        refine_base: as in CodecConfig.
        seed: seed of the sample, and of a random rotation.

    Returns:
        A codec with the same code and these refine codes, under another fingerprint.

    Raises:
        TableError: the table is empty, or the column is unknown or has another type.
        InvalidInputError: the vectors are unusable or of another dimension, the settings do not fit them, or
            the codec is not of whole vectors.
    """
    seed = whole_number("seed", seed, 0)
    again = "Give its table such codes with retrain(config=, start=)."
    require_vectors(codec.encodes, "to add refine codes to", again)
    changes = {"refine_bytes": refine_bytes, "refine_kind": refine_kind, "refine_base": refine_base}
    config = dataclasses.replace(codec.config, **changes).resolve(dim=codec.dim, rows=1)  # type: ignore[arg-type]
    coder = codec.coder.with_config(config)
    report = dataclasses.replace(codec.report, refined_mse=None)
    if not refine_bytes:
        return Codec(coder, codec.calibration, report, codec.frame, encodes=codec.encodes)
    rows, metric = FITTED_ROWS + TrainConfig.validation_rows, config.metric
    sample = sample_vectors(data, vector_column=vector_column, metric=metric, max_rows=rows, seed=seed)
    vectors_nD = codec.frame.transform(as_vectors(sample, dim=codec.dim, metric=metric))
    held = min(TrainConfig.validation_rows, len(vectors_nD) // 10)
    training_nD, held_out_nD = vectors_nD[: len(vectors_nD) - held], vectors_nD[-held or None :]
    refiner = fit_refiner(coder, training_nD, seed)
    error = refined_mse(coder, refiner, held_out_nD) * codec.frame.square_unit
    report = dataclasses.replace(report, refined_mse=error)
    own = codec.calibration, report, codec.frame, refiner
    return require_storable(Codec(coder, *own, encodes=codec.encodes))


@contextlib.contextmanager
def _computing_on(device: torch.device, settings: TrainConfig) -> Iterator[None]:
    """A context for training on a device, apart from a `torch.autocast` of the caller.

    Raises:
        InvalidInputError: the GPU has too little memory.
    """
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    except torch.OutOfMemoryError as error:
        raise InvalidInputError(
            f"The GPU ran out of memory in training with batch_size={settings.batch_size} and max_rows="
            f"{settings.max_rows}: {error} Lower one of them, free memory on {device}, or use device='cpu'."
        ) from error


def _seconds_left(settings: TrainConfig, started: float) -> float:
    """Seconds left of the budget: negative once it is exceeded, infinite without a budget."""
    if settings.max_minutes is None:
        return math.inf
    return started + 60 * settings.max_minutes - time.monotonic()


def _split(
    sample_nD: Float32Array, validation: Any, config: CodecConfig, settings: TrainConfig
) -> tuple[Float32Array, Float32Array]:
    """Training and validation vectors; the last rows of the shuffled sample are held out."""
    if validation is not None:
        held_out = as_vectors(validation, dim=sample_nD.shape[1], metric=config.metric)
        return sample_nD, held_out
    held = max(1, min(settings.validation_rows, len(sample_nD) // 10))
    if len(sample_nD) - held < config.least_training_rows:
        held = 0
    cut = len(sample_nD) - held
    # A table with hardly more rows than codewords trains on all of them; errors are then training errors.
    return sample_nD[:cut], sample_nD[cut if held else 0 :]


def _fit(
    training_nD: Tensor,
    validation_nD: Tensor,
    config: CodecConfig,
    settings: TrainConfig,
    started: float,
    workers: Workers,
    progress: TrainingProgress,
    warm: WarmStart | None,
) -> tuple[Start, float, FinishingTime]:
    """Train a quantizer; returns what it started as, the epochs, and the time to finish it."""
    identity = run_identity(training_nD, config, settings, None if warm is None else warm.fingerprint)
    workers.require_same(identity, "settings or vectors")
    checkpoint = None
    if settings.checkpoint_dir is not None:
        checkpoint = read_checkpoint(os.fspath(settings.checkpoint_dir), identity)
        workers.require_same(checkpoint and checkpoint.counters, "a checkpoint")
    if checkpoint is None:
        start = fresh_start(
            training_nD,
            validation_nD,
            config,
            seed=settings.seed,
            workers=workers,
            progress=progress,
            seconds=_CODEBOOKS * max(0.0, _seconds_left(settings, started)),
            warm=warm,
        )
    else:
        start = resumed_start(checkpoint, config, training_nD)
    finishing = FinishingTime()
    if settings.max_minutes is not None and workers.is_main:  # the clock is the main process's
        progress.stage("timing look-up tables")
        finishing = FinishingTime.measured(start.quantizer, training_nD, validation_nD)
    if start.quantizer.mixture is None:
        return start, 0.0, finishing
    loop = TrainingLoop(
        start,
        start.quantizer.normalize(training_nD),
        start.quantizer.normalize(validation_nD),
        settings,
        started=started,
        reserved=finishing.reserved(len(training_nD), settings.max_minutes or 0.0),
        workers=workers,
        progress=progress,
    )
    if checkpoint is not None:
        loop.restore(checkpoint)
    loop.run(identity)
    return start, loop.epochs, finishing


def _finish(
    start: Start,
    frame: Frame,
    training_nD: Tensor,
    validation_nD: Tensor,
    calibration_rows: int,
    epochs: float,
    started: float,
    seed: int,
) -> Codec:
    """Finish the codec: round the weights as they are stored, fit look-up tables, and write the report.

    Vectors and the errors of plain RQ are in the units of the frame, the report in those of the input.
    """
    quantizer = start.quantizer
    config, validation = quantizer.config, validation_nD.cpu().numpy()
    quantizer.round_weights()
    calibration = _calibration_codes(quantizer, training_nD[:calibration_rows])
    used = [len(np.unique(calibration.codes[:, step])) for step in range(quantizer.num_steps)]
    centered_nD = validation_nD - validation_nD.mean(dim=0)
    weights, device = QuantizerWeights.of(quantizer), str(training_nD.device)
    coder = ResidualCoder(weights, fit_tables(quantizer, calibration), device)
    refiner = None
    if config.refine_bytes:
        refiner = fit_refiner(coder, training_nD[:calibration_rows].cpu().numpy(), seed)
    report = TrainingReport(
        rows=len(training_nD),
        epochs=epochs,
        validation_rows=len(validation_nD),
        variance=float(centered_nD.square().sum(dim=1).mean()) * frame.square_unit,
        prefix_mse=tuple(error * frame.square_unit for error in validation_mse(quantizer, validation_nD)),
        rq_prefix_mse=tuple(error * frame.square_unit for error in start.rq_prefix_mse),
        utilisation=float(np.mean(used)) / quantizer.codebook_size,
        seconds=time.monotonic() - started,
        refined_mse=None if refiner is None else refined_mse(coder, refiner, validation) * frame.square_unit,
        started_from=start.continued,
    )
    return Codec(coder, calibration, report, frame, refiner)


def _fit_transform_codec(
    config: CodecConfig,
    frame: Frame,
    training_nD: Float32Array,
    validation_nD: Float32Array,
    seed: int,
    started: float,
) -> Codec:
    """Fit a transform code, and a refine code if there is to be one; vectors are in the frame."""
    kind = cast(TransformKind, config.kind)
    quantizer = fit_transform(kind, training_nD, num_bytes=config.code_bytes, seed=seed)
    coder = TransformCoder(config, quantizer)
    refiner = fit_refiner(coder, training_nD, seed) if config.refine_bytes else None
    codes_nM = quantizer.encode(training_nD[:FITTED_ROWS])
    errors = quantizer.prefix_errors(validation_nD).tolist()
    used = [len(np.unique(codes_nM[:, step])) for step in range(config.code_bytes)]
    # Look-up tables are exact, so that no more codes are needed than what checks and tuning take.
    kept_nM = codes_nM[:_LEAST_CALIBRATION_ROWS]
    calibration = Codes(kept_nM, np.zeros(len(kept_nM), np.int32))
    report = TrainingReport(
        rows=len(training_nD),
        epochs=0.0,
        validation_rows=len(validation_nD),
        variance=mean_square(validation_nD - validation_nD.mean(axis=0)) * frame.square_unit,
        prefix_mse=tuple(error * frame.square_unit for error in errors),
        rq_prefix_mse=(),
        utilisation=float(np.mean(used)) / config.codebook_size,
        seconds=time.monotonic() - started,
        refined_mse=None
        if refiner is None
        else refined_mse(coder, refiner, validation_nD) * frame.square_unit,
    )
    return Codec(coder, calibration, report, frame, refiner)


def _calibration_codes(quantizer: ResidualQuantizer, vectors_nD: Tensor) -> Codes:
    """Codes to fit tables on. A beam of 1 is much faster and good enough for that."""
    tables, plain = exact_tables(quantizer), Frame.plain(quantizer.dim)
    mean_D, scale = quantizer.mean_D.cpu().numpy(), float(quantizer.scale)

    def encode_checked(checked_nD: Float32Array) -> Codes:
        clamped_nD = clamp_vectors(checked_nD, plain, mean_D, scale)
        return encode_block(quantizer, tables, clamped_nD, beam=1, preselect=_CALIBRATION_PRESELECT)

    return encode_vectors(vectors_nD, encode_checked, dim=quantizer.dim, metric=quantizer.config.metric)


def _share_codec(workers: Workers, codec: Codec | None) -> Codec:
    """Send the main process's codec to every process: measured once, and equal to the last bit."""
    artifact = Artifact("", b"") if codec is None else codec.to_artifact()
    description, weights = (
        workers.broadcast_json(artifact.config_json),
        workers.broadcast_bytes(artifact.weights),
    )
    if codec is not None:
        return codec
    return Codec.from_artifact(Artifact(description, weights), device=str(workers.device))
