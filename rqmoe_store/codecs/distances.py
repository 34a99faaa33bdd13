"""Distances on a GPU: codes are decoded and compared with queries there, and one number for each comes back.

Queries, codes and their partition ids go to the GPU in one piece of pinned memory. Small batches are one
launch, a CUDA graph that has the copies of both ways, too; larger ones are computed chunk by chunk. The host
waits once, when it reads the result.

Distances are computed as `search.rerank` does on a CPU: in float64, from differences of float32 vectors in
the units of the input. Equal codes have equal distances to a query: they are decoded once, and the sums of
all vectors are added in the same order.

Shape legend: n pairs of a code and a query, B pairs of a chunk, U distinct codes, C distinct codes of a
chunk, M code bytes, Q queries, D dimension, S slots of a hash table, X bytes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.decoding import HostCopy, leave_frame, unit_and_offset
from rqmoe_store.codecs.device import full_precision, upload
from rqmoe_store.codecs.frame import Float64Array, Frame
from rqmoe_store.codecs.graphs import HostComputation, HostRecording, power_of_two
from rqmoe_store.codecs.kernels import has_kernels, run_kernel
from rqmoe_store.codecs.parallel import compiled, run_chunks
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric

FLOATS_PER_COMPONENT = 8
"""Float32 numbers in memory for each component of a decoded vector: copies of it in float64."""

_ALIGNMENT = 16  # bytes

Numbers = npt.NDArray[np.int64]

DecodeRows = Callable[[Tensor, Tensor], Tensor]
"""Function from codes (C, M), uint8, and partition ids (C,), int64, to vectors (C, D) in a codec's frame."""


class StartedDistances(Protocol):
    """Distances on their way from a GPU."""

    def wait(self) -> Float64Array:
        """The distances (n,). It is called once."""


class _StartedChunks(NamedTuple):
    """Distances that come in the order of the codes' first places."""

    copy: HostCopy
    order_n: Numbers
    """Where each of them belongs."""

    def wait(self) -> Float64Array:
        """The distances (n,)."""
        ordered_n = np.empty(len(self.order_n))
        ordered_n[self.order_n] = self.copy.wait()
        return ordered_n


class _StartedRecording(NamedTuple):
    """Distances that a recording computes."""

    recordings: HostComputation
    layout: "_Layout"
    recording: HostRecording
    num_pairs: int

    def wait(self) -> Float64Array:
        """The distances (n,)."""
        values_n: Float64Array = self.recording.wait()[: self.num_pairs].copy()
        self.recordings.give_back(self.layout, self.recording)
        return values_n


class GpuDistances:
    """Distances of codes to queries, on a GPU."""

    def __init__(
        self, decode_rows: DecodeRows, frame: Frame, metric: Metric, device: torch.device, *, rows: int
    ) -> None:
        """Prepare to compute.

        Args:
            decode_rows: decodes a batch on the device.
            frame: the frame of the codec.
            metric: the metric.
            device: the GPU.
            rows: codes that there is memory for at once.
        """
        self._decode_rows, self._device, self._rows = decode_rows, device, rows
        self._distances = Distances(frame, metric, device)
        self._recordings = HostComputation(device, largest_batch=rows)

    def start(self, codes: Codes, queries_QD: Float32Array, queries_n: Numbers) -> StartedDistances:
        """Begin to compute the distances (n,), float64; inner products under "dot".

        Args:
            codes: checked codes.
            queries_QD: checked queries.
            queries_n: for every code, the number of its query.

        Raises:
            InvalidInputError: the GPU has no memory for a single code.
        """
        if 0 < len(codes) <= self._recordings.largest_batch:
            launched = self._start_small(codes, queries_QD, queries_n)
            if launched is not None:
                return launched
        first_U, places_n = distinct(codes)
        found = codes if len(first_U) == len(codes) else codes[first_U]
        with torch.cuda.device(self._device):
            return self._start_chunks(_Pairs(found, queries_QD, places_n, queries_n))

    def _start_small(
        self, codes: Codes, queries_QD: Float32Array, queries_n: Numbers
    ) -> StartedDistances | None:
        """Distances by a recorded graph; None if there is none now."""
        rows, (queries, dim) = power_of_two(len(codes)), queries_QD.shape
        layout = _Layout(rows, codes.codes.shape[1], rows, power_of_two(queries), dim)
        compute = functools.partial(self._compute, layout, rows)
        try:
            recording = self._recordings.take(layout, layout.num_bytes, compute)
        except torch.OutOfMemoryError:
            return None
        if recording is None:
            return None
        if not recording.views:
            recording.views = layout.views(recording.given_X)
        _fill(recording.views, codes, queries_QD, queries_n)
        recording.start()
        return _StartedRecording(self._recordings, layout, recording, len(codes))

    @torch.inference_mode()
    def _start_chunks(self, pairs: "_Pairs") -> StartedDistances:
        """Distances, chunk by chunk of distinct codes."""
        order_n = np.argsort(pairs.places_n, kind="stable")
        places_n, queries_n = pairs.places_n[order_n], pairs.queries_n[order_n]
        values_n = torch.empty(len(order_n), dtype=torch.float64, device=self._device)

        @torch.inference_mode()
        def compute_chunk(start: int, stop: int, rows: int) -> None:
            first, last = np.searchsorted(places_n, (start, stop)).tolist()
            some = _Pairs(
                pairs.codes[start:stop], pairs.queries_QD, places_n[first:last] - start, queries_n[first:last]
            )
            steps, shape = some.codes.codes.shape[1], some.queries_QD.shape
            layout = _Layout(stop - start, steps, last - first, *shape)
            packed_X = layout.packed(some).to(self._device, non_blocking=True)
            values_n[first:last] = self._compute(layout, rows, packed_X)

        run_chunks(len(pairs.codes), self._rows, compute_chunk)
        return _StartedChunks(HostCopy.of(values_n), order_n)

    @torch.inference_mode()
    def _compute(self, layout: "_Layout", most: int, packed_X: Tensor) -> Tensor:
        """The distances of packed pairs, `most` of them at a time."""
        queries_QD, queries_B, places_B, partitions_C, codes_CM = layout.unpacked(packed_X)
        with full_precision(self._device):
            decoded_CD = self._decode_rows(codes_CM, partitions_C.long())
        parts = [
            self._distances.of(decoded_CD, queries_QD, places, queries)
            for places, queries in zip(places_B.split(most), queries_B.split(most), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Pairs(NamedTuple):
    """Pairs of a code and a query."""

    codes: Codes
    queries_QD: Float32Array
    places_n: Numbers
    """Places of the codes of pairs."""
    queries_n: Numbers
    """Numbers of the queries of pairs."""


class _Layout(NamedTuple):
    """How queries, the numbers of pairs, partition ids and codes lie one behind the other."""

    codes: int
    steps: int
    pairs: int
    queries: int
    dim: int

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (
            4 * self.queries * self.dim,
            4 * self.pairs,
            4 * self.pairs,
            4 * self.codes,
            self.codes * self.steps,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of everything."""
        return sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in self._sizes)

    def packed(self, pairs: _Pairs) -> Tensor:
        """Everything in pinned memory."""
        packed_X = torch.empty(self.num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        views = self.views(packed_X.numpy())
        codes = pairs.codes
        arrays = pairs.queries_QD, pairs.queries_n, pairs.places_n, codes.partitions, codes.codes
        for view, array in zip(views, arrays, strict=True):
            view[...] = array
        return packed_X

    def views(self, packed_X: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[Any], ...]:
        """Queries (Q, D), the queries (B,) and places (B,) of pairs, partition ids (C,) and codes (C, M)."""
        queries, numbers, places, partitions, codes = (packed_X[each] for each in self._slices)
        return (
            queries.view(np.float32).reshape(self.queries, self.dim),
            numbers.view(np.int32),
            places.view(np.int32),
            partitions.view(np.int32),
            codes.reshape(self.codes, self.steps),
        )

    @property
    def _slices(self) -> list[slice]:
        """Where each part lies."""
        slices, start = [], 0
        for size in self._sizes:
            slices.append(slice(start, start + size))
            start += -(-size // _ALIGNMENT) * _ALIGNMENT
        return slices

    def unpacked(self, packed_X: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Queries (Q, D), the queries (B,) and places (B,) of pairs, partition ids (C,) and codes (C, M)."""
        queries, numbers, places, partitions, codes = (packed_X[each] for each in self._slices)
        return (
            queries.view(torch.float32).view(self.queries, self.dim),
            numbers.view(torch.int32),
            places.view(torch.int32),
            partitions.view(torch.int32),
            codes.view(self.codes, self.steps),
        )


def _fill(
    views: tuple[npt.NDArray[Any], ...], codes: Codes, queries_QD: Float32Array, queries_n: Numbers
) -> None:
    """Pack distinct codes, and pairs of all codes and queries; there may be more room, with codes and numbers
    of a codec and queries like these."""
    queries, numbers, places, partitions, filled = views
    queries[: len(queries_QD)] = queries_QD
    numbers[: len(codes)] = queries_n
    slots_S = np.full(2 * len(places), -1)
    _pack_distinct(_plain(codes.codes), _plain(codes.partitions), slots_S, filled, partitions, places)


class Distances:
    """Distances of vectors to queries, in float64."""

    def __init__(self, frame: Frame, metric: Metric, device: torch.device) -> None:
        """Prepare to compute on a device, given vectors in a frame."""
        self.metric, self._frame = metric, frame
        self.unit_and_offset = unit_and_offset(frame, device)
        self._by_kernel = has_kernels(device)

    def of(self, decoded_CD: Tensor, queries_QD: Tensor, places_B: Tensor, queries_B: Tensor) -> Tensor:
        """Distances (B,) of the vectors at some places to the queries with some numbers, both int32.

        Under "dot" they are inner products.
        """
        values_B = None
        if self._by_kernel:
            launch = functools.partial(self._launched, decoded_CD, queries_QD, places_B, queries_B)
            values_B = run_kernel("distances of decoded vectors", launch)
        if values_B is None:
            return self.by_operations(decoded_CD, queries_QD, places_B, queries_B)
        return values_B

    def _launched(
        self, decoded_CD: Tensor, queries_QD: Tensor, places_B: Tensor, queries_B: Tensor
    ) -> Tensor:
        from rqmoe_store.codecs.distance_kernel import distances_by_kernel

        frame_F = None if self._frame.is_plain else self.unit_and_offset
        return distances_by_kernel(decoded_CD, queries_QD, places_B, queries_B, self.metric, frame_F)

    def by_operations(
        self, decoded_CD: Tensor, queries_QD: Tensor, places_B: Tensor, queries_B: Tensor
    ) -> Tensor:
        """`of`, by array operations."""
        vectors_BD = decoded_CD[places_B.long()]
        if not self._frame.is_plain:
            vectors_BD = leave_frame(vectors_BD, self.unit_and_offset)
        vectors_BD = vectors_BD.double()
        queries_QD = queries_QD.double()
        queries_BD = queries_QD[queries_B.long()]
        if self.metric == "l2":
            return _row_sums(vectors_BD.sub_(queries_BD).square_())
        products_B = _row_sums(queries_BD.mul_(vectors_BD))
        if self.metric == "dot":
            return products_B
        squares_Q = _row_sums(queries_QD.square_())
        lengths_B = _row_sums(vectors_BD.square_()).sqrt_().mul_(squares_Q.sqrt_()[queries_B.long()])
        return 1 - products_B / lengths_B.masked_fill_(lengths_B == 0, torch.nan)


@torch.inference_mode()
def nearest_of_all(
    queries_QD: Float64Array,
    vectors_CD: Tensor,
    metric: Metric,
    count: int,
    excluded_QC: npt.NDArray[np.bool_] | None,
) -> tuple[Float64Array, Numbers]:
    """Distances (Q, K) and places (Q, K) of the `count` vectors nearest to every query, in any order.

    Distances are those of all pairs, in float64 by the expanded square, infinite where they are undefined.

    Args:
        queries_QD: the queries.
        vectors_CD: vectors on a GPU.
        metric: the metric.
        count: how many are wanted, at least 1.
        excluded_QC: pairs that do not count; None for none.
    """
    device = vectors_CD.device
    distances_QC = _of_all_pairs(upload(torch.from_numpy(queries_QD), device), vectors_CD.double(), metric)
    if excluded_QC is not None:
        distances_QC.masked_fill_(upload(torch.from_numpy(excluded_QC), device), torch.inf)
    found = distances_QC.topk(min(count, len(vectors_CD)), dim=1, largest=False, sorted=False)
    return found.values.cpu().numpy(), found.indices.cpu().numpy()


def _of_all_pairs(queries_QD: Tensor, vectors_CD: Tensor, metric: Metric) -> Tensor:
    """Distances (Q, C) of all pairs, in float64."""
    if metric == "l2":  # centering keeps the precision of differences between vectors far from the origin
        middle_D = queries_QD.mean(dim=0)
        queries_QD, vectors_CD = queries_QD - middle_D, vectors_CD - middle_D
    products_QC = queries_QD @ vectors_CD.T
    if metric == "dot":
        return 1 - products_QC
    squares_Q1, squares_C = queries_QD.square().sum(dim=1, keepdim=True), vectors_CD.square().sum(dim=1)
    if metric == "l2":
        return products_QC.mul_(-2).add_(squares_C).add_(squares_Q1).clamp_(min=0)
    lengths_QC = squares_Q1.sqrt() * squares_C.sqrt()
    return (1 - products_QC.div_(lengths_QC)).masked_fill_(lengths_QC == 0, torch.inf)


def _row_sums(values_BD: Tensor) -> Tensor:
    """Sums (B,) of rows, each in the same order, by halving; overwrites the values."""
    width = values_BD.shape[1]
    while width > 1:
        half = (width + 1) // 2
        values_BD[:, : width - half] += values_BD[:, half:width]
        width = half
    return values_BD[:, 0]


def distinct(codes: Codes) -> tuple[Numbers, Numbers]:
    """Rows (U,) that have all distinct pairs of code and partition id, and the place (n,) of every row's pair
    among them."""
    count = len(codes)
    slots_S = np.full(2 * power_of_two(count), -1)
    first_n, places_n = np.empty(count, np.int64), np.empty(count, np.int32)
    found = _find_distinct(_plain(codes.codes), _plain(codes.partitions), slots_S, first_n, places_n)
    return first_n[:found], places_n.astype(np.int64)


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The numbers in an array for which functions are compiled: a contiguous and writable one."""
    return array if array.flags.carray else np.array(array)


@compiled
def _pack_distinct(
    codes_nM: Any, partitions_n: Any, slots_S: Any, codes_CM: Any, partitions_C: Any, places_n: Any
) -> None:
    """Fill in distinct codes, their partition ids, and the places of all codes among them."""
    first_n = np.empty(len(codes_nM), np.int64)
    found = _find_distinct(codes_nM, partitions_n, slots_S, first_n, places_n)
    for place in range(found):
        partitions_C[place] = partitions_n[first_n[place]]
        for step in range(codes_nM.shape[1]):
            codes_CM[place, step] = codes_nM[first_n[place], step]


@compiled
def _find_distinct(codes_nM: Any, partitions_n: Any, slots_S: Any, first_n: Any, places_n: Any) -> int:
    """Fill in rows and places; returns the number of distinct rows."""
    found, steps = 0, codes_nM.shape[1]
    for row in range(len(codes_nM)):
        mixed = np.uint64(partitions_n[row])
        for step in range(steps):  # the hash function of Fowler, Noll and Vo
            mixed = (mixed ^ np.uint64(codes_nM[row, step])) * np.uint64(0x100000001B3)
        slot = np.int64((mixed ^ (mixed >> np.uint64(32))) & np.uint64(len(slots_S) - 1))
        while True:
            place = slots_S[slot]
            if place < 0:
                slots_S[slot], first_n[found], places_n[row] = found, row, found
                found += 1
                break
            other = first_n[place]
            same = partitions_n[other] == partitions_n[row]
            for step in range(steps):
                same = same and codes_nM[other, step] == codes_nM[row, step]
            if same:
                places_n[row] = place
                break
            slot = (slot + 1) & (len(slots_S) - 1)
    return found
