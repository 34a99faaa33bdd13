"""`train`: stored embeddings -> codec.

Shape legend: n training vectors, D dimension, M steps.
"""

import dataclasses
import math
import os
import time
from typing import Any

import numpy as np
from torch import Tensor

from rqmoe_store.codecs.additive import CALIBRATION_ROWS, fit_tables
from rqmoe_store.codecs.artifact import Artifact, TrainingReport
from rqmoe_store.codecs.base import Codec, require_storable
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.device import as_tensor
from rqmoe_store.codecs.encoding import encode_vectors, encoding_tables
from rqmoe_store.codecs.frame import Frame, frame_for
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.training.checkpoint import read_checkpoint, run_identity
from rqmoe_store.training.initialize import check_trainable, fresh_start, resumed_start, warn_if_few
from rqmoe_store.training.loop import TrainingLoop
from rqmoe_store.training.loss import validation_mse
from rqmoe_store.training.sampler import count_vectors, sample_vectors, without_outliers
from rqmoe_store.training.workers import Workers, join_workers

_CALIBRATION_PRESELECT = 4
_LEAST_CALIBRATION_ROWS = 2_048
_REHEARSED_ROWS = 512
_MOST_RESERVED = 0.4  # of the budget: the rest is for codebooks and experts
_CODEBOOKS = 0.4  # of what is left of the budget once vectors have been sampled


@dataclasses.dataclass(frozen=True)
class FinishingTime:
    """What is left to do when training ends: fitting look-up tables, and measuring the codec."""

    per_row: float = 0.0
    """Seconds for every vector that tables are fitted on."""
    measuring: float = 0.0
    """Seconds for measuring."""

    @classmethod
    def rehearsed(
        cls, quantizer: ResidualQuantizer, training_nD: Tensor, validation_nD: Tensor
    ) -> "FinishingTime":
        """As it takes on some of the vectors."""
        began, some = time.monotonic(), training_nD[:_REHEARSED_ROWS]
        fit_tables(quantizer, _calibration_codes(quantizer, some))
        fitted, few = time.monotonic(), validation_nD[:_REHEARSED_ROWS]
        validation_mse(quantizer, few)
        measuring = (time.monotonic() - fitted) / len(few) * len(validation_nD)
        return cls((fitted - began) / len(some), measuring)

    def reserved(self, rows: int, max_minutes: float) -> float:
        """Seconds of the budget to keep for it, with `rows` training vectors."""
        needed = self.measuring + self.per_row * min(rows, CALIBRATION_ROWS)
        return min(needed, 60 * max_minutes * _MOST_RESERVED)

    def rows_within(self, seconds: float) -> int:
        """Vectors that tables can be fitted on in that time; never so few that they would be of no use."""
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
) -> Codec:
    """Train a codec on the vectors of a LanceDB table or array.

    Args:
        data: LanceDB table, or array-like or torch tensor of shape (rows, D), any castable type.
        vector_column: the table's column of vectors; null vectors are skipped.
        config: shape of the codec; None for the defaults of CodecConfig.
        training: how to train; None for the defaults of TrainConfig.
        validation: vectors (rows, D) to measure on; None holds some of the sample out.

    Returns:
        The codec with the lowest validation error seen: at worst that of the plain RQ training starts
        from, as the quick encoder used for validation measures it. Processes that a launcher started
        together (`accelerate launch`, torchrun) all call this, train one codec and all return it.
        The same seed gives the same codec again on the same machine, if `max_minutes` is not set;
        on others, one with other weights and much the same error (see TrainConfig).

    Raises:
        TableError: empty table, unknown column or column of another type.
        InvalidInputError: unusable vectors (NaN, infinite, zero under cosine, all the same), fewer
            vectors than codewords, settings that do not fit the vectors, a device that is not there,
            or a learning rate at which training fails again and again.
        ArtifactError: a checkpoint that is damaged or belongs to another run.
        KeyboardInterrupt: Ctrl-C without a `checkpoint_dir`.

    Warns:
        UserWarning: fewer training vectors than codebooks need to generalize, a few that lie so far from
            all others that the codec cannot fit both, or training that became NaN and went back to better
            weights.
    """
    started = time.monotonic()
    config, settings = config or CodecConfig(), training or TrainConfig()
    workers = join_workers(settings.device)
    device = workers.device
    with TrainingProgress(visible=settings.progress and workers.is_main) as progress:
        progress.stage("sampling vectors")
        sample_nD = sample_vectors(
            data,
            vector_column=vector_column,
            metric=config.metric,
            max_rows=settings.max_rows,
            seed=settings.seed,
        )
        config = config.resolve(dim=sample_nD.shape[1], rows=count_vectors(data))
        training_nD, validation_nD = _split(sample_nD, validation, config, settings)
        frame = Frame.plain(sample_nD.shape[1])
        if config.metric != "cosine":  # vectors of length one are neither far away nor of other units
            training_nD, validation_nD = without_outliers(training_nD, validation_nD, warn=workers.is_main)
            frame = frame_for(training_nD)
        check_trainable(as_tensor(training_nD), config)
        if workers.is_main:
            warn_if_few(len(training_nD), config)
        training_nD, validation_nD = frame.transform(training_nD), frame.transform(validation_nD)
        vectors = as_tensor(training_nD).to(device), as_tensor(validation_nD).to(device)
        quantizer, rq_mse, epochs, finishing = _fit(*vectors, config, settings, started, workers, progress)
        progress.stage("fitting look-up tables")
        codec = None
        if workers.is_main:
            rows = finishing.rows_within(_seconds_left(settings, started))
            made = _finish(quantizer, frame, *vectors, rows, rq_mse, epochs, started)
            codec = require_storable(made)
        return _on_all(workers, codec)


def _seconds_left(settings: TrainConfig, started: float) -> float:
    """What is left of the budget, negative when it is exceeded; infinite without one."""
    if settings.max_minutes is None:
        return math.inf
    return started + 60 * settings.max_minutes - time.monotonic()


def _split(
    sample_nD: Float32Array, validation: Any, config: CodecConfig, settings: TrainConfig
) -> tuple[Float32Array, Float32Array]:
    """Training and validation vectors; held-out rows are the last of the shuffled sample."""
    if validation is not None:
        held_out = as_vectors(validation, dim=sample_nD.shape[1], metric=config.metric)
        return sample_nD, held_out
    held = max(1, min(settings.validation_rows, len(sample_nD) // 10))
    if len(sample_nD) - held < config.least_training_rows:
        held = 0
    cut = len(sample_nD) - held
    # A table with hardly more rows than are needed needs them all; errors are then training errors.
    return sample_nD[:cut], sample_nD[cut if held else 0 :]


def _fit(
    training_nD: Tensor,
    validation_nD: Tensor,
    config: CodecConfig,
    settings: TrainConfig,
    started: float,
    workers: Workers,
    progress: TrainingProgress,
) -> tuple[ResidualQuantizer, tuple[float, ...], float, FinishingTime]:
    """The trained quantizer, the prefix errors of plain RQ, the epochs made, and the time to finish it."""
    identity = run_identity(training_nD, config, settings)
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
        )
    else:
        start = resumed_start(checkpoint, config, training_nD)
    finishing = FinishingTime()
    if settings.max_minutes is not None and workers.is_main:  # the clock is the main process's
        progress.stage("timing look-up tables")
        finishing = FinishingTime.rehearsed(start.quantizer, training_nD, validation_nD)
    if start.quantizer.mixture is None:
        return start.quantizer, start.rq_prefix_mse, 0.0, finishing
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
    return start.quantizer, start.rq_prefix_mse, loop.epochs, finishing


def _finish(
    quantizer: ResidualQuantizer,
    frame: Frame,
    training_nD: Tensor,
    validation_nD: Tensor,
    calibration_rows: int,
    rq_prefix_mse: tuple[float, ...],
    epochs: float,
    started: float,
) -> Codec:
    """The codec: weights as they are stored, look-up tables fitted on training codes, and the report.

    Vectors, and the errors of plain RQ, are those in the frame; the report has the units of the input.
    """
    quantizer.round_weights()
    calibration = _calibration_codes(quantizer, training_nD[:calibration_rows])
    used = [len(np.unique(calibration.codes[:, step])) for step in range(quantizer.num_steps)]
    centered_nD = validation_nD - validation_nD.mean(dim=0)
    tables = fit_tables(quantizer, calibration)
    report = TrainingReport(
        rows=len(training_nD),
        epochs=epochs,
        validation_rows=len(validation_nD),
        variance=float(centered_nD.square().sum(dim=1).mean()) * frame.square_unit,
        prefix_mse=tuple(error * frame.square_unit for error in validation_mse(quantizer, validation_nD)),
        rq_prefix_mse=tuple(error * frame.square_unit for error in rq_prefix_mse),
        utilisation=float(np.mean(used)) / quantizer.codebook_size,
        seconds=time.monotonic() - started,
    )
    return Codec(quantizer, tables, calibration, report, frame)


def _calibration_codes(quantizer: ResidualQuantizer, vectors_nD: Tensor) -> Codes:
    """Codes to fit tables on: beam 1 is close enough for that and much quicker."""
    tables, plain = encoding_tables(quantizer, quantizer.fold()), Frame.plain(quantizer.dim)
    return encode_vectors(quantizer, tables, plain, vectors_nD, beam=1, preselect=_CALIBRATION_PRESELECT)


def _on_all(workers: Workers, codec: Codec | None) -> Codec:
    """The main process's codec in every process: measured once, and equal to the last bit."""
    artifact = Artifact("", b"") if codec is None else codec.to_artifact()
    description, weights = workers.share(artifact.config_json), workers.share_bytes(artifact.weights)
    if codec is not None:
        return codec
    return Codec.from_artifact(Artifact(description, weights), device=str(workers.device))
