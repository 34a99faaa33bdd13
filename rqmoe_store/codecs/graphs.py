"""CUDA graphs: decoding of small batches, recorded once and launched as a whole.

Launching the few dozen kernels one by one takes far longer than decoding a shortlist. A CUDA graph records
them once per batch size and replays them with a single launch.

By default a recording makes other threads fail that use the GPU meanwhile. Ours is confined to its own
thread, to a stream of its own, and to one at a time. Recordings also share memory, so all of them run on that
stream, one after the other.

Shape legend: B batch, M steps, D dimension.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.parallel import Lock
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.errors import warn_caller

LARGEST_BATCH = 4096
"""Largest batch that a CUDA graph decodes: beyond it, kernels take longer than their launches."""

_MOST_RECORDINGS = 24
"""Recordings that a decoder keeps. The least recently used one makes room for a new one."""

_WARNING = 3  # failures in a row after which there is a warning
_LONGEST_WAIT = 2**12  # batches after which a recording that failed is tried again, at the latest
_WARM_UPS = 3  # runs before recording, so that libraries have chosen their kernels and workspaces


class _Recording:
    """A CUDA graph with its input and output buffers."""

    def __init__(self, decoder: "GraphedDecoder", rows: int, num_steps: int, place: "_Place") -> None:
        quantizer, device = decoder.quantizer, place.stream.device
        self.codes_BM = torch.zeros(rows, num_steps, dtype=torch.long, device=device)
        self.partitions_B = torch.zeros(rows, dtype=torch.long, device=device)
        self.decoded_BD = torch.empty(rows, quantizer.dim, device=device)
        for _ in range(_WARM_UPS):
            quantizer.decode(self.codes_BM, self.partitions_B, decoder.folded)
        with place.recorded() as self._graph:
            # The output is outside the pool, so that the next recording can use all of the pool again.
            self.decoded_BD.copy_(quantizer.decode(self.codes_BM, self.partitions_B, decoder.folded))

    def replay(self, codes_BM: Tensor, partitions_B: Tensor, decoded_BD: Tensor) -> None:
        """Decode codes of at most as many rows as were recorded, on the current stream."""
        rows = len(codes_BM)
        self.codes_BM[:rows].copy_(codes_BM)
        self.partitions_B[:rows].copy_(partitions_B)
        self._graph.replay()
        decoded_BD.copy_(self.decoded_BD[:rows])


class _Place:
    """What all recordings on one device share: the stream they run on, and their memory."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.lock = Lock()
        self._pool = torch.cuda.graph_pool_handle()
        # torch gives a pool up with the last recording in it. This one stays.
        with torch.cuda.device(device), self.recorded() as self._first:
            torch.zeros(1, device=device)

    def recorded(self) -> contextlib.AbstractContextManager[torch.cuda.CUDAGraph]:
        """Record what is launched in this context, on the device that is current."""
        return recorded(self.stream, self._pool)


@contextlib.contextmanager
def recorded(stream: torch.cuda.Stream, pool: Any = None) -> Iterator[torch.cuda.CUDAGraph]:
    """Record what is launched in this context, on the device that is current, without making it run.

    Args:
        stream: the stream that records, and is to run the recording.
        pool: memory shared with other recordings; None for memory of its own.
    """
    graph = torch.cuda.CUDAGraph()
    with (
        _one_recording,
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
    ):
        yield graph


_places: dict[torch.device, _Place] = {}
_places_lock = Lock()
_one_recording = Lock()
"""Held while anything is recorded: torch allows a process one recording at a time."""


def _place_on(device: torch.device) -> _Place:
    with _places_lock:
        if device not in _places:
            _places[device] = _Place(device)
        return _places[device]


class GraphedDecoder:
    """`ResidualQuantizer.decode` on a CUDA device, recorded as a graph for batches of 2, 4, 8, ... codes."""

    def __init__(
        self, quantizer: ResidualQuantizer, folded: FoldedExperts | None, *, largest_batch: int
    ) -> None:
        """Create the decoder; recordings are made when they are first needed.

        Args:
            quantizer: the codec's parameters, on the device.
            folded: its folded experts, in the number format to compute in.
            largest_batch: the largest batch that is worth the memory of a recording.
        """
        self.quantizer, self.folded = quantizer, folded
        self.largest_batch = min(largest_batch, LARGEST_BATCH)
        self._recordings: OrderedDict[tuple[int, int], _Recording] = OrderedDict()
        self._failures = self._wait = 0

    @torch.inference_mode()
    def decode(self, codes_BM: Tensor, partitions_B: Tensor) -> Tensor:
        """Decode codes (int64, on the device) to reconstructions (B, D)."""
        decoded_BD = None
        if len(codes_BM) <= self.largest_batch:
            decoded_BD = self._replayed(codes_BM, partitions_B)
        if decoded_BD is None:
            return self.quantizer.decode(codes_BM, partitions_B, self.folded)
        return decoded_BD

    def _replayed(self, codes_BM: Tensor, partitions_B: Tensor) -> Tensor | None:
        """The reconstructions by a recording; None if there is none now."""
        device = codes_BM.device
        decoded_BD = torch.empty(len(codes_BM), self.quantizer.dim, device=device)
        place = _place_on(device)
        with torch.cuda.device(device), place.lock:
            callers = torch.cuda.current_stream()
            place.stream.wait_stream(callers)
            with torch.cuda.stream(place.stream):
                recording = self._recording(place, len(codes_BM), codes_BM.shape[1])
                if recording is None:
                    return None
                recording.replay(codes_BM, partitions_B, decoded_BD)
            callers.wait_stream(place.stream)
        return decoded_BD

    def _recording(self, place: _Place, batch: int, num_steps: int) -> _Recording | None:
        """The recording for `batch` codes, rounded up to a power of two, made at its first use."""
        key = max(2, 1 << (batch - 1).bit_length()), num_steps
        if key in self._recordings:
            self._recordings.move_to_end(key)
            return self._recordings[key]
        if self._wait:
            self._wait -= 1
            return None
        if len(self._recordings) == _MOST_RECORDINGS:
            place.stream.synchronize()  # it may be running
            self._recordings.popitem(last=False)
        try:
            recording = _Recording(self, *key, place)
        except torch.OutOfMemoryError:
            raise  # the caller tries again with smaller chunks
        except RuntimeError as error:
            self._note_failure(error)
            return None
        self._failures = 0
        self._recordings[key] = recording
        return recording

    def _note_failure(self, error: RuntimeError) -> None:
        """Wait longer after every failure in a row before recording again."""
        self._failures += 1
        self._wait = min(4**self._failures, _LONGEST_WAIT)
        if self._failures == _WARNING:
            warn_caller(
                f"No CUDA graph could be recorded {_WARNING} times in a row ({error}). Until that works, "
                "small batches are decoded with one launch per kernel: slower, with the same vectors."
            )
