"""Measurement of one codec: distortion, recall, speed of each way to encode and decode, and scaling.

Shape suffixes: N vectors, Q queries, D vector dimension, K neighbors.
"""

import contextlib
import dataclasses
import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig, Metric
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_results import CodecResult, Recalls, ScalingRow, SpeedRow
from rqmoe_store.evaluation.contenders import (
    REFERENCE,
    Contender,
    MeasuredCodec,
    SearchedCodec,
    cyclic,
    time_call,
    time_codec,
)
from rqmoe_store.evaluation.machine import PeakMemory
from rqmoe_store.evaluation.recall import Indices, exact_neighbors, k_recall_at_k, one_recall_at

NEIGHBORS = 100
"""Nearest vectors per query. A search needs at least so many vectors."""

_BLOCK_ROWS = 4096

_COPIED_ROWS = 8192

_MANY = 4096
_FEW = 256
"""Vectors that slow encoders are timed on, and that errors are measured on."""

_WARM_UP = 64
_CPU_SIZE, _GPU_SIZE = 2048, 8192


_Found = tuple[Indices, Indices]
"""Neighbors (Q, NEIGHBORS) found among all vectors, and among the held-out ones alone."""


class Workbench:
    """What all measurements share: the vectors, their true neighbors, and memory for reconstructions."""

    def __init__(
        self,
        vectors_ND: Float32Array,
        queries_QD: Float32Array,
        *,
        held_out: int,
        metric: Metric,
        console: Console,
    ) -> None:
        self.vectors_ND, self.queries_QD, self.metric = vectors_ND, queries_QD, metric
        self.training_ND, self.held_out_ND = vectors_ND[:-held_out], vectors_ND[-held_out:]
        self._console = console
        self._truth_QK = self._neighbors(vectors_ND)
        self._unseen_truth_QK = self._neighbors(self.held_out_ND)
        # Written to here, so that it does not count as memory of the first codec.
        self._decoded_ND = np.full_like(vectors_ND, np.nan)

    def measure(
        self, contender: Contender, *, reference_mse: float | None, save: Path | None
    ) -> tuple[MeasuredCodec | SearchedCodec, CodecResult]:
        """Train the codec, unless it is loaded, and measure it.

        Args:
            contender: the codec.
            reference_mse: error of plain RQ at the same size; None for plain RQ, or if that is not measured.
            save: folder to save the codec in, if it was trained and can be saved.
        """
        if contender.is_trained:
            self._console.print(f"Training {contender}", highlight=False)
        found: _Found | None = None
        with PeakMemory(contender.device) as memory:
            started = time.perf_counter()
            codec = contender.prepare(self.training_ND)
            seconds = time.perf_counter() - started
            if isinstance(codec, SearchedCodec):
                found = self._search_codes(contender, codec)
            else:
                self._decode_all(contender, codec)
        if save is not None and contender.is_trained and not isinstance(codec, SearchedCodec):
            codec.save(save / f"{contender.name}-{contender.code_bytes}")
        all_QK, unseen_QK = found or self._search_reconstructions(contender)
        result = CodecResult(
            codec=contender.name,
            code_bytes=contender.code_bytes,
            settings=codec.settings,
            recall=_recalls(all_QK, self._truth_QK),
            unseen_recall=_recalls(unseen_QK, self._unseen_truth_QK),
            training_seconds=seconds if contender.is_trained else None,
            peak_memory_bytes=memory.growth_bytes,
            peak_cuda_bytes=memory.cuda_growth_bytes,
        )
        if isinstance(codec, SearchedCodec):
            return codec, result
        return codec, self._with_error_and_times(result, contender, codec, reference_mse)

    def _decode_all(self, contender: Contender, codec: MeasuredCodec) -> None:
        """Fill `_decoded_ND` with reconstructions."""
        with self.stage(f"encoding and decoding {contender}") as show_share:
            for start in range(0, len(self.vectors_ND), _BLOCK_ROWS):
                block = slice(start, start + _BLOCK_ROWS)
                self._decoded_ND[block] = codec.decode(codec.encode(self.vectors_ND[block]))
                show_share(start / len(self.vectors_ND))

    def _search_codes(self, contender: Contender, codec: SearchedCodec) -> _Found:
        with self.stage(f"indexing and searching {contender}"):
            return (
                codec.search(self.vectors_ND, self.queries_QD, NEIGHBORS),
                codec.search(self.held_out_ND, self.queries_QD, NEIGHBORS),
            )

    def _search_reconstructions(self, contender: Contender) -> _Found:
        with self.stage(f"searching {contender}"):
            unseen_ND = self._decoded_ND[-len(self.held_out_ND) :]
            return self._neighbors(self._decoded_ND), self._neighbors(unseen_ND)

    def _with_error_and_times(
        self, result: CodecResult, contender: Contender, codec: MeasuredCodec, reference_mse: float | None
    ) -> CodecResult:
        with self.stage(f"timing {contender}"):
            encoding, decoding = time_codec(codec, self.held_out_ND)
        mse = mean_squared_error(self.held_out_ND, self._decoded_ND[-len(self.held_out_ND) :])
        reference = mse if contender.name == REFERENCE else reference_mse
        return dataclasses.replace(
            result,
            epochs=codec.epochs,
            mse=mse,
            relative_to_rq=None if reference is None else relative_error(mse, reference),
            encode_microseconds=encoding,
            decode_microseconds=decoding,
            artifact_bytes=codec.artifact_bytes,
        )

    def _neighbors(self, vectors_ND: Float32Array) -> Indices:
        return exact_neighbors(self.queries_QD, vectors_ND, NEIGHBORS, metric=self.metric)[0]

    @contextlib.contextmanager
    def stage(self, description: str) -> Iterator[Callable[[float], None]]:
        """Show the current stage on a terminal; yields a function that shows the share done (0 to 1)."""
        # Drawn on updates only: a thread that draws would disturb what is being timed.
        columns = (TextColumn("{task.description}"), BarColumn())
        shown = self._console.is_terminal
        with Progress(
            *columns, console=self._console, transient=True, auto_refresh=False, disable=not shown
        ) as progress:
            task = progress.add_task(description, total=1.0)
            progress.refresh()
            yield lambda share: progress.update(task, completed=share, refresh=True)


def _recalls(found_QK: Indices, truth_QK: Indices) -> Recalls:
    return Recalls(
        one_recall_1=one_recall_at(found_QK, truth_QK, 1),
        one_recall_10=one_recall_at(found_QK, truth_QK, 10),
        one_recall_100=one_recall_at(found_QK, truth_QK, 100),
        ten_recall_10=k_recall_at_k(found_QK, truth_QK, 10),
    )


def mean_squared_error(vectors_ND: Float32Array, decoded_ND: Float32Array) -> float:
    """Mean of ||x - x_hat||^2."""
    return float(np.square(vectors_ND - decoded_ND).sum(axis=1, dtype=np.float64).mean())


def relative_error(error: float, reference: float) -> float | None:
    """The error as a multiple of the reference; None if the reference is 0."""
    return error / reference if reference else None


@dataclasses.dataclass(frozen=True)
class _Form:
    """A way to encode or decode; the first of a list is the default."""

    name: str
    run: Callable[[Any], Any]
    vectors: int
    """Vectors that it is timed on."""
    counted: bool = False
    """Whether `decode_multiply_adds` counts its work."""


def measure_speed(codec: Codec, name: str, held_out_ND: Float32Array, matmul_rate: float) -> list[SpeedRow]:
    """Time every way to encode and decode, each against the default in the same run.

    To add a way, add an entry to `_encoders` or `_decoders`.

    Args:
        codec: the codec.
        name: its name in the report.
        held_out_ND: at least one vector; errors are over the first 256.
        matmul_rate: what `measure_matmul_rate` returned for the codec's device.
    """
    few_ND = held_out_ND[:_FEW]
    multiply_adds = decode_multiply_adds(codec.config, codec.dim)
    rows, codes = [], None
    for form, seconds, ratio, encoded in _compare(_encoders(codec), cyclic(held_out_ND, _MANY)):
        codes = encoded if codes is None else codes  # those of the default
        decoded_ND = codec.decode(encoded[: len(few_ND)])
        rows.append(_row(codec, name, "encode", form, seconds, ratio, few_ND, decoded_ND))
    for form, seconds, ratio, decoded_ND in _compare(_decoders(codec), codes):
        row = _row(codec, name, "decode", form, seconds, ratio, few_ND, decoded_ND)
        if form.counted:
            share = multiply_adds / seconds / matmul_rate
            row = dataclasses.replace(row, multiply_adds=multiply_adds, matmul_share=share)
        rows.append(row)
    return rows


def _decoders(codec: Codec) -> list[_Form]:
    return [
        _Form("default", codec.decode, _MANY, counted=True),
        _Form("step by step", functools.partial(codec.decode, sequential=True), _MANY),
        _Form("bfloat16", functools.partial(codec.decode, precision="bfloat16"), _FEW),
    ]


def _encoders(codec: Codec) -> list[_Form]:
    exhaustive = functools.partial(codec.encode, beam=1, preselect=None)
    return [
        _Form(f"default (beam {codec.config.beam})", codec.encode, _MANY),
        _Form("exhaustive (beam 1)", exhaustive, _FEW),
    ]


def _compare(forms: list[_Form], work: Any) -> Iterator[tuple[_Form, float, float, Any]]:
    """Time every form; yields it, its seconds per vector, their ratio to the default's, and its result."""
    default_seconds = None
    for form in forms:
        part = work[: form.vectors]
        form.run(part[:_WARM_UP])
        seconds, made = time_call(lambda: form.run(part), least=1)  # noqa: B023
        seconds /= form.vectors
        default_seconds = default_seconds or seconds
        yield form, seconds, seconds / default_seconds, made


def _row(
    codec: Codec,
    name: str,
    work: str,
    form: _Form,
    seconds: float,
    ratio: float,
    few_ND: Float32Array,
    decoded_ND: Float32Array,
) -> SpeedRow:
    return SpeedRow(
        codec=name,
        code_bytes=codec.config.code_bytes,
        work=work,
        form=form.name,
        vectors=form.vectors,
        microseconds=1e6 * seconds,
        times_default=ratio,
        mse=mean_squared_error(few_ND, decoded_ND[: len(few_ND)]),
    )


def decode_multiply_adds(config: CodecConfig, dim: int) -> int:
    """Multiply-adds to decode one vector in the default way, counted from shapes.

    Hidden units that are zero count too, although decoding on a CPU skips them.

    With S expert steps, E conditioning width, N experts, L layers, H hidden and W network width,
    F = N * L * H + N first-layer features, D dimension and M steps:

        S * E * F                    features from the conditioning vector
        S * N * H * W * (3 * L - 2)  layers: out of each, and into and across between two
        W * D                        back to the vectors' width, where W < D; S times as many for "qinco"
        M * D                        sum of the codewords
        (M + 1) * W * D              "qinco" with W < D: into the network's width, start and every step
    """
    steps = config.code_bytes
    additions = steps * dim
    expert_steps = steps if config.num_partitions else steps - 1
    if config.kind == "rq" or not expert_steps:
        return additions
    width, hidden, layers = config.network_dim, config.hidden_dim, config.num_layers
    condition_dim = width if config.kind == "qinco" else config.expert_dim
    assert width is not None and hidden is not None and condition_dim is not None, "config is resolved"
    features = config.num_experts * (layers * hidden + 1)
    per_step = condition_dim * features + config.num_experts * hidden * width * (3 * layers - 2)
    projections = 0
    if width < dim:
        projections = expert_steps + steps + 1 if config.kind == "qinco" else 1
    return expert_steps * per_step + projections * width * dim + additions


def measure_matmul_rate(device: torch.device) -> float:
    """Multiply-adds per second of a large float32 matrix product."""
    size = _GPU_SIZE if device.type == "cuda" else _CPU_SIZE
    matrix = torch.rand(size, size, device=device)

    def multiply() -> float:
        # Reading one number back waits for a GPU.
        return float((matrix @ matrix)[0, 0])

    multiply()
    return size**3 / time_call(multiply)[0]


def require_disk(rows: int, row_bytes: int) -> None:
    """Raise InvalidInputError unless the temporary folder has room for `rows` of so many bytes each."""
    folder, needed = tempfile.gettempdir(), rows * row_bytes
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InvalidInputError(
            f"{rows} rows of {row_bytes} bytes need {needed / 1e9:.1f} GB in {folder!r}, which has "
            f"{free / 1e9:.1f} GB left. Measure fewer, or set TMPDIR to a folder with more room."
        )


@contextlib.contextmanager
def cyclic_file(vectors_ND: Float32Array, rows: int) -> Iterator[Float32Array]:
    """`rows` vectors, repeated if there are fewer, memory-mapped from a temporary .npy file."""
    with tempfile.TemporaryDirectory(prefix="rqmoe-bench-") as folder:
        path = Path(folder) / "vectors.npy"
        written = np.lib.format.open_memmap(
            path, mode="w+", dtype=np.float32, shape=(rows, vectors_ND.shape[1])
        )
        for start in range(0, rows, _COPIED_ROWS):
            stop = min(start + _COPIED_ROWS, rows)
            written[start:stop] = vectors_ND[np.arange(start, stop) % len(vectors_ND)]
        written.flush()
        del written
        # Copy on write, because torch warns about read-only arrays. Nothing here writes.
        yield np.load(path, mmap_mode="c", allow_pickle=False)


def measure_scaling(
    codec: Codec, name: str, vectors_ND: Float32Array, counts: Sequence[int]
) -> Iterator[ScalingRow]:
    """Measure encoding of the first vectors, for each of the given numbers of them, smallest first.

    Args:
        codec: the codec.
        name: its name in the report.
        vectors_ND: at least max(counts) vectors, memory-mapped, so that reading them takes no memory.
        counts: numbers of vectors to encode.
    """
    codec.encode(np.array(vectors_ND[:_WARM_UP]))
    for count in sorted(counts):
        with PeakMemory(codec.device) as memory:
            started = time.perf_counter()
            codec.encode(vectors_ND[:count])
            seconds = time.perf_counter() - started
        yield ScalingRow(
            codec=name,
            code_bytes=codec.config.code_bytes,
            vectors=count,
            vectors_per_second=count / seconds,
            memory_growth_bytes=memory.growth_bytes,
        )
