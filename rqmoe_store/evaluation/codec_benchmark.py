"""Benchmark of codecs on one set of vectors: distortion, recall, time, memory, and the Gaussian bound.

Shape suffixes: N vectors, Q queries, D vector dimension, B vectors of a block, C coordinates with variance.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rqmoe_store.codecs.device import select_device
from rqmoe_store.codecs.frame import Float64Array
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.best_by_bytes import best_by_bytes
from rqmoe_store.evaluation.codec_measurement import (
    NEIGHBORS,
    Workbench,
    cyclic_file,
    measure_matmul_rate,
    measure_scaling,
    measure_speed,
    relative_error,
    require_disk,
)
from rqmoe_store.evaluation.codec_results import BenchmarkReport, GaussianBound
from rqmoe_store.evaluation.contenders import (
    REFERENCE,
    Contender,
    OwnCodec,
    check_contenders,
    plan_contenders,
)
from rqmoe_store.evaluation.machine import describe_machine
from rqmoe_store.evaluation.peer_names import (
    LANCEDB_PQ,
    LANCEDB_RQ,
    QDRANT,
    describe_missing,
    family_of,
    installed_peers,
    is_peer,
    missing_peers,
)

RATE = "float32_multiply_adds_per_second"
"""Entry of the machine's description: speed of a large matrix product."""

_BLOCK_ROWS = 8192

_INDEXED = 2
"""Most space that a table of vectors with an index takes, as a multiple of the raw vectors' size."""

_WITHOUT_PARTITIONS, _TRAINING = CodecConfig(num_partitions=0), TrainConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Codecs to compare, and how to train and measure them."""

    codecs: tuple[str, ...] = ("rq", "rqmoe")
    """Kinds of our codecs, names of other codecs, and folders of trained codecs. Plain "rq" is measured at
    every size to train, because errors are relative to its error, except where only transform codes are."""
    code_bytes: tuple[int, ...] = (8, 16)
    """Sizes to train. A codec from a folder has its own, and so has one whose size follows from bits."""
    refine_bytes: tuple[int, ...] = ()
    """Sizes of refine codes that each of our codecs is also measured with."""
    total_bytes: tuple[int, ...] = ()
    """Sizes to compare at: there, transform codes and other libraries' codecs are measured, and our other
    codecs with refine codes for what is beyond the longest code of `code_bytes`."""
    config: CodecConfig = _WITHOUT_PARTITIONS
    """All other settings of our codecs. Without partitions, codes of all codecs have the same size."""
    training: TrainConfig = _TRAINING
    """How to train each of our codecs."""
    held_out: int = 5_000
    """Vectors at the end that are held out of training."""
    save: Path | None = None
    """Folder to save trained codecs in, as `{kind}-{bytes}`."""
    scaling: tuple[int, ...] = ()
    """Numbers of vectors that our codecs also encode from a file."""

    def __post_init__(self) -> None:
        check_contenders(self.codecs, self.code_bytes, self.refine_bytes, self.config)
        installed_peers(self.codecs)  # some of them
        if self.total_bytes and self.refine_bytes:
            raise InvalidInputError(
                f"Got refine_bytes={self.refine_bytes} and total_bytes={self.total_bytes}, from which sizes "
                "of refine codes follow; expected one of them."
            )
        for total in self.total_bytes:
            shorter = [size for size in self.code_bytes if size <= total]
            dataclasses.replace(self.config, code_bytes=total)
            dataclasses.replace(self.config, refine_bytes=total - max(shorter, default=total))
        if any(count < 1 for count in self.scaling):
            raise InvalidInputError(
                f"Got scaling={self.scaling}; expected numbers of vectors, at least 1 each."
            )
        select_device(self.training.device)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        fields = dataclasses.asdict(self)
        for name in ("kind", "code_bytes", "refine_bytes"):
            del fields["config"][name]  # `codecs` and the sizes above say that
        return {**fields, "save": None if self.save is None else str(self.save)}


def benchmark_codecs(
    vectors: Any,
    queries: Any,
    *,
    settings: BenchmarkSettings,
    console: Console | None = None,
    on_done: Callable[[BenchmarkReport], None] = lambda report: None,
) -> BenchmarkReport:
    """Train every codec at every size, and measure it.

    Training does not see the last `held_out` vectors, not even to choose the best weights. Errors are
    measured on them. Recall compares exhaustive search over reconstructions, of all vectors and of the
    held-out ones alone, with exhaustive search over the vectors themselves. Codes that are not decoded are
    searched by the library that they are from; LanceDB trains on what it indexes, held-out vectors included.

    Args:
        vectors: (N, D).
        queries: (Q, D).
        settings: codecs to compare, and how.
        console: console for progress. None means standard error.
        on_done: called with all results so far whenever a codec has been measured.

    Raises:
        InvalidInputError: vectors or queries are unusable, there are too few to hold out `held_out`, or the
            settings do not fit them. Nothing has been trained by then.
        ArtifactError: a folder has no readable codec.
        RQMoEError: nothing is left to measure, as no library that is needed is installed.
    """
    console = console or Console(stderr=True)
    vectors_ND, queries_QD = _checked(vectors, queries, settings)
    dim = vectors_ND.shape[1]
    contenders = _planned(settings, dim, len(vectors_ND) - settings.held_out)
    if settings.scaling:
        require_disk(max(settings.scaling), 4 * dim)
    if any(_is_on_disk(contender.name) for contender in contenders):
        require_disk(len(vectors_ND), _INDEXED * 4 * dim)
    device = select_device(settings.training.device)
    machine = {**describe_machine(device), RATE: measure_matmul_rate(device)}
    skipped = missing_peers(settings.codecs)
    report = BenchmarkReport(settings=settings.to_dict(), machine=machine, skipped=skipped)
    for line in describe_missing(skipped):
        console.print(line, highlight=False, soft_wrap=True)
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
        for place, contender in enumerate(contenders, 1):
            _measure(contender, workbench, report, settings, many_ND)
            if contender.name == REFERENCE:
                report.bounds.append(_bound(variances_D, report))
            # Only where everything within so many bytes has been measured.
            left = min((later.code_bytes for later in contenders[place:]), default=math.inf)
            done = [total for total in settings.total_bytes if total < left]
            report.best = best_by_bytes(report.results, done)
            on_done(report)
    return report


def _planned(settings: BenchmarkSettings, dim: int, training_rows: int) -> list[Contender]:
    return plan_contenders(
        installed_peers(settings.codecs),
        settings.code_bytes,
        config=settings.config,
        training=settings.training,
        dim=dim,
        training_rows=training_rows,
        refine_bytes=settings.refine_bytes,
        total_bytes=settings.total_bytes,
    )


def _is_on_disk(name: str) -> bool:
    """Whether the codec is measured by an index on disk, beside the vectors."""
    return name == LANCEDB_PQ or family_of(name) == LANCEDB_RQ or (is_peer(name) and name.startswith(QDRANT))


def _checked(vectors: Any, queries: Any, settings: BenchmarkSettings) -> tuple[Float32Array, Float32Array]:
    metric, held_out = settings.config.metric, settings.held_out
    vectors_ND = as_vectors(vectors, metric=metric)
    try:
        queries_QD = as_vectors(queries, dim=vectors_ND.shape[1], metric=metric)
    except InvalidInputError as error:
        raise InvalidInputError(f"Queries: {error}") from error
    if len(queries_QD) == 0:
        raise InvalidInputError("Got no queries; expected at least one.")
    if not NEIGHBORS <= held_out <= len(vectors_ND) - NEIGHBORS:
        raise InvalidInputError(
            f"Got {len(vectors_ND)} vectors to hold {held_out} out of; expected at least "
            f"{NEIGHBORS} on either side. Give more vectors or change the number held out."
        )
    return vectors_ND, queries_QD


def _measure(
    contender: Contender,
    workbench: Workbench,
    report: BenchmarkReport,
    settings: BenchmarkSettings,
    many_ND: Float32Array | None,
) -> None:
    """Measure one codec, and add the results to the report."""
    reference = [
        result.mse
        for result in report.results
        if (result.codec, result.code_bytes) == (REFERENCE, contender.code_bytes)
    ]
    codec, result = workbench.measure(
        contender, reference_mse=reference[0] if reference else None, save=settings.save
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
    """The Gaussian bound at the size of the newest result, which is that of plain RQ."""
    plain = report.results[-1]
    assert plain.mse is not None, "plain RQ is decoded"
    mse = gaussian_distortion(variances_D, 8 * plain.code_bytes)
    return GaussianBound(code_bytes=plain.code_bytes, mse=mse, relative_to_rq=relative_error(mse, plain.mse))


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
    # Rounding may make the variance of a direction without any slightly negative.
    return np.asarray(np.linalg.eigvalsh(covariance_DD / len(vectors_ND))[::-1].clip(min=0))


def water_level(variances_D: Float64Array, bits: float) -> float:
    """The error of every coordinate that gets bits, when `bits` per vector are spent in the best way.

    Args:
        variances_D: at least one, none of them negative.
        bits: per vector, at least 0.

    Raises:
        InvalidInputError: variances or bits are negative.
    """
    if bits < 0 or len(variances_D) == 0 or not np.all(variances_D >= 0):
        raise InvalidInputError(f"Got bits={bits} and variances {variances_D}; expected none below 0.")
    variances_C = np.sort(variances_D[variances_D > 0])[::-1]
    if len(variances_C) == 0:
        return 0.0
    log_C = np.log2(variances_C)
    counts_C = np.arange(1, len(log_C) + 1)
    # Bits that lower the first k coordinates to the variance of the k-th. They grow with k, so the largest k
    # within the budget is the number of coordinates that get bits.
    cost_C = (np.cumsum(log_C) - counts_C * log_C) / 2
    active = int(np.count_nonzero(cost_C <= bits))
    return float(2 ** ((log_C[:active].sum() - 2 * bits) / active))


def gaussian_distortion(variances_D: Float64Array, bits: float) -> float:
    """Mean squared error of the best code of `bits` per vector for a Gaussian with these variances.

    This is the rate-distortion function, by reverse water-filling over the principal variances (Cover and
    Thomas, "Elements of Information Theory", theorem 10.3.3). Coordinates above a level share the bits, so
    that the error of each equals the level. The others get no bits, and their variance is their error. Among
    all sources of one covariance the Gaussian is the hardest. For real vectors this is therefore an upper
    bound on the distortion achievable with blocks of unbounded length. Vectors with structure, such as
    clusters, can be coded better.

    Raises:
        InvalidInputError: variances or bits are negative.
    """
    return math.fsum(np.minimum(variances_D, water_level(variances_D, bits)))
