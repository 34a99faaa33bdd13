"""Codecs side by side on one set of vectors: distortion, recall, time and memory.

Shape suffixes: N vectors, Q queries, D vector dimension.

Shape suffixes: N vectors, D vector dimension, C coordinates with variance.

The rate-distortion function of a Gaussian, by reverse water-filling over the principal variances
(Cover and Thomas, "Elements of Information Theory", theorem 10.3.3): coordinates above a level share
the bits so that each keeps an error equal to the level, the others get no bits and keep their variance.
Among all sources of one covariance the Gaussian is the hardest, so for real vectors this is an upper
bound on the distortion achievable with blocks of unbounded length; vectors with structure, such as
clusters, can be coded better than it.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from rqmoe_store.codecs.device import select_device
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_measurement import (
    NEIGHBOURS,
    Workbench,
    cyclic_file,
    measure_matmul_rate,
    measure_scaling,
    measure_speed,
    relative_error,
    require_disk,
)
from rqmoe_store.evaluation.codec_results import BenchmarkReport, GaussianBound
from rqmoe_store.evaluation.contenders import REFERENCE, Contender, OwnCodec, check_names, plan
from rqmoe_store.evaluation.machine import describe_machine

Float64Array = npt.NDArray[np.float64]

_BLOCK_ROWS = 8192


def principal_variances(vectors_ND: Float32Array) -> Float64Array:
    """Variances (D,), float64, descending, along the principal directions of at least one vector.

    They sum to the mean squared distance of the vectors to their mean.
    """
    dim = vectors_ND.shape[1]
    mean_D = vectors_ND.mean(axis=0, dtype=np.float64)
    covariance_DD = np.zeros((dim, dim))
    for start in range(0, len(vectors_ND), _BLOCK_ROWS):
        centered_BD = vectors_ND[start : start + _BLOCK_ROWS] - mean_D
        covariance_DD += centered_BD.T @ centered_BD
    # A direction without variance may come out slightly negative.
    return np.asarray(np.linalg.eigvalsh(covariance_DD / len(vectors_ND))[::-1].clip(min=0))


def water_level(variances_D: Float64Array, bits: float) -> float:
    """The error that every coordinate with bits is left with, when `bits` are spent in the best way.

    Args:
        variances_D: at least one, none of them negative.
        bits: per vector, at least 0.

    Raises:
        InvalidInputError: negative variances or bits.
    """
    if bits < 0 or len(variances_D) == 0 or not np.all(variances_D >= 0):
        raise InvalidInputError(f"Got bits={bits} and variances {variances_D}; expected none below 0.")
    variances_C = np.sort(variances_D[variances_D > 0])[::-1]
    if len(variances_C) == 0:
        return 0.0
    log_C = np.log2(variances_C)
    counts_C = np.arange(1, len(log_C) + 1)
    # What it takes to push the first k coordinates down to the variance of the k-th. It grows with k,
    # so as many coordinates get bits as there are such costs within the budget.
    cost_C = (np.cumsum(log_C) - counts_C * log_C) / 2
    active = int(np.count_nonzero(cost_C <= bits))
    return float(2 ** ((log_C[:active].sum() - 2 * bits) / active))


def gaussian_distortion(variances_D: Float64Array, bits: float) -> float:
    """Mean squared error norm of the best code of `bits` per vector for a Gaussian of these variances.

    Raises:
        InvalidInputError: negative variances or bits.
    """
    return math.fsum(np.minimum(variances_D, water_level(variances_D, bits)))


RATE = "float32_multiply_adds_per_second"
"""Entry of the machine's description: what a large matrix product reaches."""

_WITHOUT_PARTITIONS, _TRAINING = CodecConfig(num_partitions=0), TrainConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """What to compare, and how."""

    codecs: tuple[str, ...] = ("rq", "rqmoe")
    """Kinds of our codecs, names of FAISS peers, and folders of codecs already trained. Plain "rq" is
    measured in any case: errors are given relative to its."""
    code_bytes: tuple[int, ...] = (8, 16)
    """Sizes to train; a codec from a folder has its own."""
    config: CodecConfig = _WITHOUT_PARTITIONS
    """Every other setting of our codecs. Without partitions, bytes are compared with bytes."""
    training: TrainConfig = _TRAINING
    """How each of our codecs is trained."""
    held_out: int = 5_000
    """Last vectors, kept from training."""
    save: Path | None = None
    """Folder for what is trained: `{kind}-{bytes}` in it."""
    scaling: tuple[int, ...] = ()
    """Numbers of vectors that our codecs also encode from a file."""

    def __post_init__(self) -> None:
        check_names(self.codecs)
        for size in self.code_bytes:
            dataclasses.replace(self.config, code_bytes=size)  # checks it
        if any(count < 1 for count in self.scaling):
            raise InvalidInputError(
                f"Got scaling={self.scaling}; expected numbers of vectors, at least 1 each."
            )
        select_device(self.training.device)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        fields = dataclasses.asdict(self)
        for name in ("kind", "code_bytes"):
            del fields["config"][name]  # `codecs` and the other `code_bytes` say that
        return {**fields, "save": None if self.save is None else str(self.save)}


def benchmark_codecs(
    vectors: Any,
    queries: Any,
    *,
    settings: BenchmarkSettings,
    console: Console | None = None,
    on_done: Callable[[BenchmarkReport], None] = lambda report: None,
) -> BenchmarkReport:
    """Train every codec at every size and measure it.

    The last `held_out` vectors take no part in training, not even to choose the best weights; errors are
    measured on them. Recall is that of exhaustive search over the reconstructions of all vectors, and of
    the held-out ones alone, against exhaustive search over the vectors themselves.

    Args:
        vectors: (N, D).
        queries: (Q, D).
        settings: what to compare.
        console: where progress is shown; None for standard error.
        on_done: called with everything found so far whenever a codec has been measured.

    Raises:
        InvalidInputError: unusable vectors or queries, too few of them to hold `held_out` out, or settings
            that do not fit them. Nothing has been trained by then.
        ArtifactError: a folder without a readable codec.
        RQMoEError: a peer is wanted but FAISS is not installed.
    """
    console = console or Console(stderr=True)
    vectors_ND, queries_QD = _checked(vectors, queries, settings)
    dim = vectors_ND.shape[1]
    contenders = plan(
        settings.codecs,
        settings.code_bytes,
        config=settings.config,
        training=settings.training,
        dim=dim,
        training_rows=len(vectors_ND) - settings.held_out,
    )
    if settings.scaling:
        require_disk(max(settings.scaling), 4 * dim)
    device = select_device(settings.training.device)
    machine = {**describe_machine(device), RATE: measure_matmul_rate(device)}
    report = BenchmarkReport(settings=settings.to_dict(), machine=machine)
    console.print("Finding the true neighbors", highlight=False)
    workbench = Workbench(
        vectors_ND,
        queries_QD,
        held_out=settings.held_out,
        metric=settings.config.metric,
        console=console,
    )
    variances_D = principal_variances(workbench.training_ND)
    with contextlib.ExitStack() as files:
        many_ND = None
        if settings.scaling:
            many_ND = files.enter_context(cyclic_file(vectors_ND, max(settings.scaling)))
        for contender in contenders:
            _measure(contender, workbench, report, settings, many_ND)
            if contender.name == REFERENCE:
                report.bounds.append(_bound(variances_D, report))
            on_done(report)
    return report


def _checked(vectors: Any, queries: Any, settings: BenchmarkSettings) -> tuple[Float32Array, Float32Array]:
    metric, held_out = settings.config.metric, settings.held_out
    vectors_ND = as_vectors(vectors, metric=metric)
    try:
        queries_QD = as_vectors(queries, dim=vectors_ND.shape[1], metric=metric)
    except InvalidInputError as error:
        raise InvalidInputError(f"Queries: {error}") from error
    if len(queries_QD) == 0:
        raise InvalidInputError("Got no queries; expected at least one.")
    if not NEIGHBOURS <= held_out <= len(vectors_ND) - NEIGHBOURS:
        raise InvalidInputError(
            f"Got {len(vectors_ND)} vectors to hold {held_out} out of; expected at least "
            f"{NEIGHBOURS} on either side. Give more vectors or change the number held out."
        )
    return vectors_ND, queries_QD


def _measure(
    contender: Contender,
    workbench: Workbench,
    report: BenchmarkReport,
    settings: BenchmarkSettings,
    many_ND: Float32Array | None,
) -> None:
    """Add everything about one codec to the report."""
    # Plain RQ is the first of every size.
    reference = [result for result in report.results if result.code_bytes == contender.code_bytes][:1]
    codec, result = workbench.measure(
        contender, reference_mse=reference[0].mse if reference else None, save=settings.save
    )
    report.results.append(result)
    if not isinstance(codec, OwnCodec):
        return
    held_out_ND = workbench.held_out_ND
    with workbench.stage(f"timing the forms of {contender}"):
        report.speed += measure_speed(codec.codec, contender.name, held_out_ND, report.machine[RATE])
    if many_ND is not None:
        with workbench.stage(f"encoding many vectors with {contender}"):
            report.scaling += measure_scaling(codec.codec, contender.name, many_ND, settings.scaling)


def _bound(variances_D: Any, report: BenchmarkReport) -> GaussianBound:
    """The bound at the bytes of the newest result, which is plain RQ's."""
    plain = report.results[-1]
    mse = gaussian_distortion(variances_D, 8 * plain.code_bytes)
    return GaussianBound(code_bytes=plain.code_bytes, mse=mse, relative_to_rq=relative_error(mse, plain.mse))
