"""`train`: stored embeddings -> codec.

Shape legend: n training vectors, D dimension, M steps.
"""

import dataclasses
import hashlib
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rqmoe_store.codecs import encoding
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.calibration import CALIBRATION_ROWS, fit_tables
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.device import select_device
from rqmoe_store.codecs.encoding_tables import encoding_tables
from rqmoe_store.codecs.kinds import make_quantizer
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.report import TrainingReport
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.config import CodecConfig, TrainConfig, scored_pairs
from rqmoe_store.training.checkpoint import read_checkpoint
from rqmoe_store.training.evaluate import prefix_mse
from rqmoe_store.training.initialise import FULL_ROWS, check_trainable, initialise, with_experts
from rqmoe_store.training.loop import TrainingLoop, quick_mse
from rqmoe_store.training.progress import Progress
from rqmoe_store.training.sampler import count_vectors, sample_vectors

_CHUNK_ROWS = 256
_FEW_ROWS = FULL_ROWS // 2  # below this, at least half of what k-means could use would be mixtures
_CALIBRATION_PRESELECT = 4


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
        from, as the quick encoder used for validation measures it.

    Raises:
        TableError: empty table, unknown column or column of another type.
        InvalidInputError: unusable vectors (NaN, infinite, zero under cosine, all the same), fewer
            vectors than codewords, or settings that do not fit the vectors.
        ArtefactError: a checkpoint that is damaged or belongs to another run.
        KeyboardInterrupt: Ctrl-C without a `checkpoint_dir`.
    """
    started = time.monotonic()
    config, settings = config or CodecConfig(), training or TrainConfig()
    device = select_device(settings.device)
    with Progress(visible=settings.progress) as progress:
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
        check_trainable(training_nD, config)
        quantizer, rq_mse, epochs = _fit(
            training_nD.to(device), validation_nD.to(device), config, settings, started, progress
        )
        progress.stage("fitting look-up tables")
        return _finish(quantizer, training_nD.to(device), validation_nD.to(device), rq_mse, epochs, started)


def _split(
    sample_nD: Float32Array, validation: Any, config: CodecConfig, settings: TrainConfig
) -> tuple[Tensor, Tensor]:
    """Training and validation vectors; held-out rows are the last of the shuffled sample."""
    if validation is not None:
        held_out = as_vectors(validation, dim=sample_nD.shape[1], metric=config.metric)
        return torch.from_numpy(sample_nD), torch.from_numpy(held_out)
    held = max(1, min(settings.validation_rows, len(sample_nD) // 10))
    if len(sample_nD) - held < config.codebook_size:
        held = 0
    cut = len(sample_nD) - held
    # A table with hardly more rows than codewords needs them all; errors are then training errors.
    return torch.from_numpy(sample_nD[:cut]), torch.from_numpy(sample_nD[cut if held else 0 :])


def _fit(
    training_nD: Tensor,
    validation_nD: Tensor,
    config: CodecConfig,
    settings: TrainConfig,
    started: float,
    progress: Progress,
) -> tuple[ResidualQuantizer, tuple[float, ...], float]:
    """The trained quantizer, the prefix errors of plain RQ, and the epochs made."""
    identity = _identity(training_nD, config, settings)
    checkpoint = None
    if settings.checkpoint_dir is not None:
        checkpoint = read_checkpoint(settings.checkpoint_dir, identity)
    if checkpoint is None:
        start = _start(training_nD, validation_nD, config, settings.seed, progress)
    else:
        quantizer = make_quantizer(config, training_nD.shape[1]).to(training_nD.device)
        quantizer.load_state_dict(checkpoint.group("weights"))
        kept = checkpoint.counters
        start = _Start(quantizer, tuple(kept["rq_prefix_mse"]), kept["rq_mse"], kept["mixing"])
    if start.quantizer.mixture is None:
        return start.quantizer, start.rq_prefix_mse, 0.0
    loop = TrainingLoop(
        start.quantizer,
        start.quantizer.normalize(training_nD),
        start.quantizer.normalize(validation_nD),
        settings,
        rq_prefix_mse=start.rq_prefix_mse,
        rq_mse=start.rq_mse,
        mixing=start.mixing,
        started=started,
        progress=progress,
    )
    if checkpoint is not None:
        loop.restore(checkpoint)
    loop.run(identity)
    return start.quantizer, start.rq_prefix_mse, loop.epochs


@dataclasses.dataclass(frozen=True)
class _Start:
    """What training starts from."""

    quantizer: ResidualQuantizer
    rq_prefix_mse: tuple[float, ...]
    """Validation error of plain RQ, by the default encoder."""
    rq_mse: float
    """The same by the training encoder, in normalized units."""
    mixing: bool
    """Whether to train on mixtures of vectors."""


def _start(
    training_nD: Tensor, validation_nD: Tensor, config: CodecConfig, seed: int, progress: Progress
) -> _Start:
    """The untrained quantizer, and plain RQ's errors to compare with.

    Where vectors are few and fill their space, codebooks fitted to mixtures of them too are far
    better on unseen vectors; where they lie on a curved surface, mixtures leave it. The validation
    vectors decide which codebooks the experts start from, and whether training mixes as well.
    """
    plain = best = initialise(training_nD, config, seed=seed, progress=progress)
    normalized_nD = plain.normalize(validation_nD)
    rq_mse = quick_mse(plain, normalized_nD)
    if config.kind != "rq" and len(training_nD) < _FEW_ROWS:
        progress.stage("again with mixtures")
        enlarged = initialise(training_nD, config, seed=seed, progress=progress, enlarge=True)
        best = enlarged if quick_mse(enlarged, normalized_nD) < rq_mse else plain
    quantizer = with_experts(best, config, seed=seed)
    return _Start(quantizer, validation_mse(plain, validation_nD), rq_mse, mixing=best is not plain)


def validation_mse(quantizer: ResidualQuantizer, validation_nD: Tensor) -> tuple[float, ...]:
    """Prefix errors with the quantizer's default encoder, in the units of the input."""
    config = quantizer.config
    normalized_nD = quantizer.normalize(validation_nD)
    errors = prefix_mse(
        quantizer, normalized_nD, beam=config.beam, preselect=scored_pairs(config.beam, config.preselect)
    )
    return tuple(error * float(quantizer.scale) ** 2 for error in errors)


def _finish(
    quantizer: ResidualQuantizer,
    training_nD: Tensor,
    validation_nD: Tensor,
    rq_prefix_mse: tuple[float, ...],
    epochs: float,
    started: float,
) -> Codec:
    """The codec: weights as they are stored, look-up tables fitted on training codes, and the report."""
    quantizer.round_weights()
    calibration = _calibration_codes(quantizer, training_nD[:CALIBRATION_ROWS])
    used = [len(np.unique(calibration.codes[:, step])) for step in range(quantizer.num_steps)]
    centred_nD = validation_nD - validation_nD.mean(dim=0)
    tables = fit_tables(quantizer, calibration)
    report = TrainingReport(
        rows=len(training_nD),
        epochs=epochs,
        validation_rows=len(validation_nD),
        variance=float(centred_nD.square().sum(dim=1).mean()),
        prefix_mse=validation_mse(quantizer, validation_nD),
        rq_prefix_mse=rq_prefix_mse,
        utilisation=float(np.mean(used)) / quantizer.codebook_size,
        seconds=time.monotonic() - started,
    )
    return Codec(quantizer, tables, calibration, report)


@torch.inference_mode()
def _calibration_codes(quantizer: ResidualQuantizer, vectors_nD: Tensor) -> Codes:
    """Codes of training vectors; beam 1 is close enough for fitting tables and much quicker."""
    tables = encoding_tables(quantizer, quantizer.fold())
    codes, partitions = [], []
    for chunk_BD in quantizer.normalize(vectors_nD).split(_CHUNK_ROWS):
        codes_BM, partitions_B = encoding.encode(
            quantizer, tables, chunk_BD, beam=1, preselect=_CALIBRATION_PRESELECT
        )
        codes.append(codes_BM.cpu().numpy().astype(np.uint8))
        partitions.append(partitions_B.cpu().numpy().astype(np.int32))
    return Codes(np.concatenate(codes), np.concatenate(partitions))


def _identity(training_nD: Tensor, config: CodecConfig, settings: TrainConfig) -> dict[str, Any]:
    """What must be the same for a checkpoint to be resumed."""
    fields = dataclasses.asdict(settings)
    for name in ("checkpoint_dir", "checkpoint_minutes", "progress", "device"):
        del fields[name]
    data_hash = hashlib.sha256(training_nD.cpu().contiguous().numpy().data).hexdigest()
    return {"codec": config.to_dict(), "training": fields, "vectors_sha256": data_hash}
