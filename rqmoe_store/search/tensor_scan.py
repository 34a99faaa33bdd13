"""Scan on a GPU by look-up tables, over codes that stay on the device.

Many rows are scanned by a Triton kernel (`scan_kernel`), where Triton is installed. Everything else, and what
the kernel has no room for, is scanned by array operations, chunk by chunk; they define what the kernel finds.
Scores are summed in the same order as in the compiled loop for CPUs, and shortlists are the same. Their rows
are scored by refine codes (`tensor_refine`) before they leave the device.

Shape legend: Q queries, P partitions, R runs of rows, N rows of a segment, C rows of a chunk, H rows of all
queries, M code bytes, K codewords, W words of four code bytes, G sides (ranges of scores).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.kernels import has_kernels, run_kernel
from rqmoe_store.codecs.norms import DROPPED_BITS, LEAST_BITS
from rqmoe_store.codecs.parallel import run_chunks
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.device_copies import copy_of, device_of, sent, to_host, upload, upload_codes
from rqmoe_store.search.device_copies import fits as fits_on
from rqmoe_store.search.row_ids import Positions
from rqmoe_store.search.scan import Refinement, norms_of
from rqmoe_store.search.scan_loops import WORD
from rqmoe_store.search.segments import Mask, Segment, Selection
from rqmoe_store.search.shortlists import Shortlists, Side
from rqmoe_store.search.tensor_refine import RefineScorer

_CHUNK_BYTES = 2**30
"""Memory for a chunk of rows that array operations score."""

_BYTES_PER_SCORE = 32
"""Of a row and query: the score, entries that are added at a time, and what bounds make of the score."""

_BYTES_PER_ROW = 48
"""Of a row, beside its code: positions, partition and length."""

KERNEL_ROWS = 2**18
"""Fewest rows that the kernel scans. Array operations score as many for its first bound."""


def fits(segment: Segment, name: str) -> bool:
    """Whether the segment is on the device of this name, or has room there."""
    return fits_on(segment, device_of(name))


@torch.inference_mode()
def nearest(
    name: str,
    selection: Selection,
    tables: LookupTables,
    probed_QP: Mask,
    sides: list[Side],
    size: int,
    refinement: Refinement | None = None,
) -> list[list[Shortlists]]:
    """For every side, rows of the selection that include the `size` best ones of every query.

    These are the rows that are at least as good as the worst one that may be kept, including equal ones.
    `Shortlists.best` decides by row id which of these are kept, as on a CPU. When the GPU runs out of
    memory, chunks are smaller; shortlists are the same. With a refinement, rows have refined scores; it takes
    what `tensor_refine.prepare` has copied.

    Raises:
        InvalidInputError: the GPU has no memory for a single row, or for the look-up tables.
    """
    device, runs = device_of(name), Runs.of(selection.segment, probed_QP)
    if runs.rows == 0:
        return [[] for _ in sides]
    scorer = _prepared(selection, tables, probed_QP, runs, device)
    refiner = None if refinement is None else RefineScorer(scorer, selection.segment, refinement)
    output = _Output(selection.segment, refiner)
    if len(sides) == 1 and runs.rows >= KERNEL_ROWS and has_kernels(device) and scorer.is_finite:
        found = _scan_by_kernel(scorer, size, output)
        if found is not None:
            return [[found]]
    return _scan_chunks(scorer, output, sides, size)


def _prepared(
    selection: Selection, tables: LookupTables, probed_QP: Mask, runs: "Runs", device: torch.device
) -> "Scorer":
    """A scorer with its tables on the device. Raises as `nearest`."""
    try:
        return Scorer(selection, tables, probed_QP, runs, device)
    except torch.OutOfMemoryError as error:
        raise InvalidInputError(
            f"The GPU ran out of memory for the look-up tables of {len(probed_QP):,} queries, "
            f"{tables.scores_QT.nbytes:,} bytes: {error} Search for fewer queries at a time, free memory on "
            "it, or move the codec to the CPU with codec.to('cpu')."
        ) from error


class _Output(NamedTuple):
    """Where rows that were found on a device leave it."""

    segment: Segment
    refiner: RefineScorer | None

    def shortlists(self, queries_H: Tensor, scores_H: Tensor, rows_H: Tensor) -> Shortlists:
        """The rows on the host, which waits once. With refined scores, they come without refine codes."""
        if self.refiner is None:
            queries, scores, rows = to_host(queries_H, scores_H, rows_H)
            return Shortlists(queries, scores, self.segment.rows(rows))
        refined_H = self.refiner.scores(queries_H, rows_H)
        queries, scores, rows, refined = to_host(queries_H, scores_H, rows_H, refined_H)
        return Shortlists(queries, scores, self.segment.rows(rows, refine=False), refined)


def _scan_by_kernel(scorer: "Scorer", size: int, output: _Output) -> Shortlists | None:
    """Rows that include the best ones; None if the kernel has no room, or does not run here."""

    def scan_by_kernel() -> tuple[Tensor, Tensor, Tensor] | None:
        from rqmoe_store.search.scan_kernel import scan_tiles

        return scan_tiles(scorer, size)

    try:
        found = run_kernel("scan", scan_by_kernel)
        return None if found is None else output.shortlists(*found)
    except torch.OutOfMemoryError:
        return None


def _scan_chunks(scorer: "Scorer", output: _Output, sides: list[Side], size: int) -> list[list[Shortlists]]:
    """For every side, rows that include the best ones, by array operations."""
    found: list[list[Shortlists]] = [[] for _ in sides]
    bounds = [_bounds_of(side, scorer) for side in sides]
    worst_GQ = torch.full((len(sides), scorer.queries), torch.inf, device=scorer.device)

    @torch.inference_mode()
    def scan_chunk(start: int, stop: int, _: int) -> None:
        rows_C = scorer.runs.positions(torch.arange(start, stop, device=scorer.device))
        scores_QC = scorer.scores(rows_C)
        parts = []
        for index, side in enumerate(sides):
            low_Q1, high_Q1 = bounds[index]
            inside_QC = (scores_QC >= low_Q1) & (scores_QC < high_Q1)
            signed_QC = torch.where(inside_QC, scores_QC * float(side.sign), torch.inf)
            if size <= len(rows_C):
                worst_Q = signed_QC.topk(size, dim=1, largest=False).values[:, -1]
                worst_GQ[index] = torch.minimum(worst_GQ[index], worst_Q)
            kept_QC = inside_QC & (signed_QC <= worst_GQ[index, :, None])
            queries_H, columns_H = kept_QC.nonzero(as_tuple=True)
            # By positions: another look at the mask would wait for the GPU again.
            scores_H = signed_QC[queries_H, columns_H]
            parts.append(output.shortlists(queries_H, scores_H, rows_C[columns_H]))
        for part, side_found in zip(parts, found, strict=True):  # the whole chunk, or it is scanned again
            side_found.append(part)

    rows = scorer.runs.rows
    run_chunks(rows, min(rows, scorer.chunk_rows), scan_chunk)
    return found


def _bounds_of(side: Side, scorer: "Scorer") -> list[Tensor]:
    """Low and high bounds (Q, 1) of a side, in the units of every query's scores."""
    bounds = scorer.tables.units.scores_of(side.low), scorer.tables.units.scores_of(side.high)
    return [sent(bounds_Q[:, None], scorer.device) for bounds_Q in bounds]


class Runs:
    """The rows in partitions that any query probes, in runs of consecutive rows, one of each partition; for
    one device."""

    def __init__(self, starts_R: Positions, stops_R: Positions, partitions_R: Positions) -> None:
        self.starts_R, self.stops_R, self.partitions_R = starts_R, stops_R, partitions_R
        self.ends_R = np.cumsum(stops_R - starts_R)
        self._sent: tuple[Tensor, Tensor] | None = None
        self.rows = int(self.ends_R[-1]) if len(starts_R) else 0

    @classmethod
    def of(cls, segment: Segment, probed_QP: Mask) -> "Runs":
        """The runs of a segment that are not empty."""
        starts_P, stops_P = segment.starts_P[:-1], segment.starts_P[1:]
        partitions_R = np.flatnonzero(probed_QP.any(axis=0) & (stops_P > starts_P))
        return cls(starts_P[partitions_R], stops_P[partitions_R], partitions_R)

    def positions(self, places_C: Tensor) -> Tensor:
        """Positions in the segment of rows that are given by their places in all runs together."""
        if self._sent is None:
            self._sent = sent(self.ends_R, places_C.device), sent(self.stops_R, places_C.device)
        ends_R, stops_R = self._sent
        runs_C = torch.searchsorted(ends_R, places_C, right=True)
        return stops_R[runs_C] - (ends_R[runs_C] - places_C)


class Scorer:
    """Computes scores of rows of a selection, in the order of additions of the compiled loop for CPUs."""

    def __init__(
        self, selection: Selection, tables: LookupTables, probed_QP: Mask, runs: Runs, device: torch.device
    ) -> None:
        segment, norms_N = selection.segment, norms_of(selection.segment, tables)
        self.queries, self.steps = len(probed_QP), tables.num_steps
        self.tables, self.runs, self.device = tables, runs, device
        self.codes_NW = copy_of(segment.codes_NM, device, upload_codes)
        self.norms_N = copy_of(norms_N, device, upload) if len(norms_N) else None
        self.first_norm = int(segment.starts_P[0])
        allowed_N = selection.allowed_N
        self.allowed_N = None if allowed_N is None else copy_of(allowed_N, device, upload)
        entries_QMK = tables.by_codeword.reshape(self.queries, self.steps, -1)
        self.scores_QP = sent(tables.by_partition, device)
        self.entries_MQK = sent(np.ascontiguousarray(entries_QMK.swapaxes(0, 1)), device)
        self.probed_QP = sent(probed_QP, device)
        self._stops_P = sent(np.ascontiguousarray(segment.starts_P[1:]), device)

    @property
    def is_finite(self) -> bool:
        """Whether all table entries are finite."""
        return bool(np.isfinite(self.tables.scores_QT).all() and np.isfinite(self.tables.constants_Q).all())

    @property
    def chunk_rows(self) -> int:
        """Rows whose scores for all queries are computed together."""
        row_bytes = _BYTES_PER_SCORE * self.queries + 6 * self.codes_NW[0].nbytes + _BYTES_PER_ROW
        return max(1, _CHUNK_BYTES // row_bytes)

    def scores(self, rows_C: Tensor) -> Tensor:
        """Scores (Q, C) of all queries; infinite for rows that they may not find."""

        def entries_of(step: int, codes_C: Tensor) -> Tensor:
            return self.entries_MQK[step][:, codes_C]

        partitions_C = self.partitions_of(rows_C)
        scores_QC = self._summed(self.scores_QP[:, partitions_C], rows_C, entries_of)
        hidden_QC = ~self.probed_QP[:, partitions_C]
        if self.allowed_N is not None:
            hidden_QC |= ~self.allowed_N[rows_C]
        return scores_QC.masked_fill_(hidden_QC, torch.inf)

    def scores_of_own(self, rows_QC: Tensor) -> Tensor:
        """Scores (Q, C) of rows of each query's own."""

        def entries_of(step: int, codes_QC: Tensor) -> Tensor:
            return self.entries_MQK[step].gather(1, codes_QC.long())

        initial_QC = self.scores_QP.gather(1, self.partitions_of(rows_QC))
        return self._summed(initial_QC, rows_QC, entries_of)

    def partitions_of(self, rows: Tensor) -> Tensor:
        """Partition ids of rows, beginning at 0."""
        return torch.searchsorted(self._stops_P, rows, right=True)

    def codes_of(self, rows: Tensor) -> Tensor:
        """Codes (..., M) of rows, uint8."""
        return self.codes_NW[rows].view(torch.uint8)[..., : self.steps]

    def _summed(self, scores: Tensor, rows: Tensor, entries_of: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Scores of rows: the initial ones, and the entries of all steps."""
        codes = self.codes_of(rows).int()

        def pair(step: int) -> Tensor:
            return entries_of(step, codes[..., step]).add_(entries_of(step + 1, codes[..., step + 1]))

        whole = self.steps - self.steps % WORD
        for step in range(0, whole, WORD):
            first = pair(step).add_(pair(step + 2))
            scores += first.add_(pair(step + 4).add_(pair(step + 6)))
        for step in range(whole, self.steps):
            scores += entries_of(step, codes[..., step])
        if self.norms_N is None:
            return scores
        return 1 - scores / self.squares_of(rows).sqrt()

    def squares_of(self, rows: Tensor) -> Tensor:
        """Squared lengths of rows, under cosine."""
        assert self.norms_N is not None, "under cosine"
        norms = self.norms_N[(rows - self.first_norm).clamp_(0, len(self.norms_N) - 1)]
        bits = ((norms.int() & 0xFFFF) << DROPPED_BITS) + LEAST_BITS
        return bits.view(torch.float32)
