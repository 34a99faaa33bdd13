"""CUDA graphs: work on small batches, recorded once and launched as a whole.

Launching the few dozen kernels one by one takes far longer than decoding a shortlist. A CUDA graph records
them once per batch size and replays them with a single launch.

By default a recording makes other threads fail that use the GPU meanwhile. Ours is confined to its own
thread, to a stream of its own, and to one at a time. Recordings also share memory, so all of them run on that
stream, one after the other.

Shape legend: B batch, M steps, D dimension.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
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

Tensors = tuple[Tensor, ...]
Compute = Callable[..., Tensor]
"""Function from the inputs of a recording to its output."""


def power_of_two(batch: int) -> int:
    """The number of rows that are recorded for a batch: a power of two, at least 2."""
    return max(2, 1 << (batch - 1).bit_length())


class Recording:
    """A CUDA graph with its inputs and its output."""

    def __init__(self, place: "_Place", inputs: Tensors, compute: Compute) -> None:
        self.inputs = inputs
        for _ in range(_WARM_UPS):
            self.output = torch.empty_like(compute(*inputs))
        with place.recorded() as self._graph:
            # The output is outside the pool, so that the next recording can use all of the pool again.
            self.output.copy_(compute(*inputs))

    def replay(self) -> None:
        """Compute the output from what the inputs hold now, on the current stream."""
        self._graph.replay()


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


class GraphedComputation:
    """Recordings of a computation, one for each shape of its inputs."""

    def __init__(self, *, largest_batch: int) -> None:
        """Record nothing yet.

        Args:
            largest_batch: the largest batch that is worth the memory of a recording.
        """
        self.largest_batch = min(largest_batch, LARGEST_BATCH)
        self._recordings: OrderedDict[tuple[int, ...], Recording] = OrderedDict()
        self._failures = self._wait = 0

    @contextlib.contextmanager
    def recording(
        self, device: torch.device, key: tuple[int, ...], blank: Callable[[], Tensors], compute: Compute
    ) -> Iterator[Recording | None]:
        """The recording for a shape, for this thread alone, on the stream that is current in the context.

        It is made at its first use, from `blank` inputs; None if that fails now.
        """
        place = _place_on(device)
        with torch.cuda.device(device), place.lock:
            callers = torch.cuda.current_stream()
            with torch.cuda.stream(place.stream):
                yield self._held(key) or self._made(place, callers, key, blank, compute)

    def _held(self, key: tuple[int, ...]) -> Recording | None:
        """The recording of a shape, if there is one."""
        if key in self._recordings:
            self._recordings.move_to_end(key)
        return self._recordings.get(key)

    def _made(
        self,
        place: _Place,
        callers: torch.cuda.Stream,
        key: tuple[int, ...],
        blank: Callable[[], Tensors],
        compute: Compute,
    ) -> Recording | None:
        """A new recording for a shape; None if that fails now."""
        if self._wait:
            self._wait -= 1
            return None
        if len(self._recordings) == _MOST_RECORDINGS:
            place.stream.synchronize()  # it may be running
            self._recordings.popitem(last=False)
        place.stream.wait_stream(callers)  # which may still be computing what is recorded with
        try:
            recording = Recording(place, blank(), compute)
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


class GraphedDecoder(GraphedComputation):
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
        super().__init__(largest_batch=largest_batch)
        self.quantizer, self.folded = quantizer, folded

    @torch.inference_mode()
    def decode(self, codes_BM: Tensor, partitions_B: Tensor) -> Tensor:
        """Decode codes (int64, on the device) to reconstructions (B, D)."""
        decoded_BD = None
        if len(codes_BM) <= self.largest_batch:
            decoded_BD = self._replayed(codes_BM, partitions_B)
        if decoded_BD is None:
            return self._compute(codes_BM, partitions_B)
        return decoded_BD

    def _compute(self, codes_BM: Tensor, partitions_B: Tensor) -> Tensor:
        return self.quantizer.decode(codes_BM, partitions_B, self.folded)

    def _replayed(self, codes_BM: Tensor, partitions_B: Tensor) -> Tensor | None:
        """The reconstructions by a recording; None if there is none now."""
        batch, device = len(codes_BM), codes_BM.device
        rows, steps = power_of_two(batch), codes_BM.shape[1]
        decoded_BD = torch.empty(batch, self.quantizer.dim, device=device)
        callers = torch.cuda.current_stream(device)

        def blank() -> Tensors:
            return codes_BM.new_zeros(rows, steps), partitions_B.new_zeros(rows)

        with self.recording(device, (rows, steps), blank, self._compute) as recording:
            if recording is None:
                return None
            running = torch.cuda.current_stream()
            running.wait_stream(callers)
            for held, given in zip(recording.inputs, (codes_BM, partitions_B), strict=True):
                held[:batch].copy_(given)
            recording.replay()
            decoded_BD.copy_(recording.output[:batch])
            callers.wait_stream(running)
        return decoded_BD
