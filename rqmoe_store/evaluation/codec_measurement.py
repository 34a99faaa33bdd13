"""One codec's distortion, recall, time and memory on a set of vectors.

Shape suffixes: N vectors, Q queries, D vector dimension, K neighbours, B vectors of a block.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.evaluation.codec_results import CodecResult, Recalls
from rqmoe_store.evaluation.codec_speed import mean_squared_error
from rqmoe_store.evaluation.codec_timing import time_codec
from rqmoe_store.evaluation.contenders import Contender, MeasuredCodec
from rqmoe_store.evaluation.memory import PeakMemory
from rqmoe_store.evaluation.recall import Indices, exact_neighbours, k_recall_at_k, one_recall_at

NEIGHBOURS = 100
"""Nearest vectors looked at; no fewer can be searched."""

_BLOCK_ROWS = 4096


def relative_error(error: float, reference: float) -> float | None:
    """The one as a multiple of the other; None where the other is 0."""
    return error / reference if reference else None


@dataclasses.dataclass(frozen=True)
class _Distortion:
    """What training, encoding and decoding gave."""

    codec: MeasuredCodec
    seconds: float
    growth_bytes: int
    cuda_growth_bytes: int | None


class Workbench:
    """The vectors, their true neighbours, and room for reconstructions; the same for every codec."""

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
        self._truth_QK = self._neighbours(vectors_ND)
        self._unseen_truth_QK = self._neighbours(self.held_out_ND)
        # Written to now, so that it does not count as memory of the first codec that fills it.
        self._decoded_ND = np.full_like(vectors_ND, np.nan)

    def measure(
        self, contender: Contender, *, reference_mse: float | None, save: Path | None
    ) -> tuple[MeasuredCodec, CodecResult]:
        """Train (or take) a codec and measure it.

        Args:
            contender: the codec.
            reference_mse: error of plain RQ at the same bytes; None for plain RQ itself.
            save: folder to keep the codec in, if it was trained.
        """
        made = self._make(contender)
        if save is not None and contender.is_trained:
            made.codec.save(save / f"{contender.name}-{contender.code_bytes}")
        with self.stage(f"searching {contender}"):
            recall = self._recalls(self._decoded_ND, self._truth_QK)
            unseen_ND = self._decoded_ND[-len(self.held_out_ND) :]
            unseen_recall = self._recalls(unseen_ND, self._unseen_truth_QK)
        with self.stage(f"timing {contender}"):
            encoding, decoding = time_codec(made.codec, self.held_out_ND)
        mse = mean_squared_error(self.held_out_ND, unseen_ND)
        return made.codec, CodecResult(
            codec=contender.name,
            code_bytes=contender.code_bytes,
            settings=made.codec.settings,
            training_seconds=made.seconds if contender.is_trained else None,
            epochs=made.codec.epochs,
            mse=mse,
            relative_to_rq=relative_error(mse, mse if reference_mse is None else reference_mse),
            recall=recall,
            unseen_recall=unseen_recall,
            encode_microseconds=encoding,
            decode_microseconds=decoding,
            artefact_bytes=made.codec.artefact_bytes,
            peak_memory_bytes=made.growth_bytes,
            peak_cuda_bytes=made.cuda_growth_bytes,
        )

    def _make(self, contender: Contender) -> _Distortion:
        """Train, then fill `_decoded_ND`."""
        if contender.is_trained:
            self._console.print(f"Training {contender}", highlight=False)
        with PeakMemory(contender.device) as memory:
            started = time.perf_counter()
            codec = contender.prepare(self.training_ND)
            seconds = time.perf_counter() - started
            with self.stage(f"encoding and decoding {contender}") as show_share:
                for start in range(0, len(self.vectors_ND), _BLOCK_ROWS):
                    block = slice(start, start + _BLOCK_ROWS)
                    self._decoded_ND[block] = codec.decode(codec.encode(self.vectors_ND[block]))
                    show_share(start / len(self.vectors_ND))
        return _Distortion(codec, seconds, memory.growth_bytes, memory.cuda_growth_bytes)

    def _neighbours(self, vectors_ND: Float32Array) -> Indices:
        return exact_neighbours(self.queries_QD, vectors_ND, NEIGHBOURS, metric=self.metric)[0]

    def _recalls(self, decoded_ND: Float32Array, truth_QK: Indices) -> Recalls:
        found_QK = self._neighbours(decoded_ND)
        return Recalls(
            one_recall_1=one_recall_at(found_QK, truth_QK, 1),
            one_recall_10=one_recall_at(found_QK, truth_QK, 10),
            one_recall_100=one_recall_at(found_QK, truth_QK, 100),
            ten_recall_10=k_recall_at_k(found_QK, truth_QK, 10),
        )

    @contextlib.contextmanager
    def stage(self, description: str) -> Iterator[Callable[[float], None]]:
        """Say on a terminal what is being done; gives a function that shows the share done (0..1)."""
        # Redrawn when there is news only: a thread that draws would disturb what is being timed.
        columns = (TextColumn("{task.description}"), BarColumn())
        shown = self._console.is_terminal
        with Progress(
            *columns, console=self._console, transient=True, auto_refresh=False, disable=not shown
        ) as progress:
            task = progress.add_task(description, total=1.0)
            progress.refresh()
            yield lambda share: progress.update(task, completed=share, refresh=True)
