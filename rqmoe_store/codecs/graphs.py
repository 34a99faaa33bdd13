"""CUDA graphs: work on small batches, recorded once and launched as a whole.

Launching the few dozen kernels one by one takes far longer than decoding a shortlist. A CUDA graph records
them once per batch size and replays them with a single launch.

By default a recording makes other threads fail that use the GPU meanwhile. Ours is confined to its own
thread, to a stream of its own, and to one at a time. Recordings also share memory, so all of them run on that
stream, one after the other.

What comes from the host and goes back to it is recorded with its copies, from and to pinned memory that stays
where it is: a call fills that, launches once, and waits once.

Shape legend: B batch, M steps, D dimension, X bytes.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
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

_MOST_IDLE = 24
"""Recordings between pinned memory that a computation keeps while nobody uses them. Several callers at a time
have one each."""

_WARNING = 3  # failures in a row after which there is a warning
_LONGEST_WAIT = 2**12  # batches after which a recording that failed is tried again, at the latest
_WARM_UPS = 3  # runs before recording, so that libraries have chosen their kernels and workspaces

Tensors = tuple[Tensor, ...]
Compute = Callable[..., Tensor]
"""Function from the inputs of a recording to its output."""


def power_of_two(batch: int) -> int:
    """The number of rows that are recorded for a batch: a power of two, at least 2."""
    return max(2, 1 << (batch - 1).bit_length())


Made = TypeVar("Made")


class Recording:
    """A CUDA graph with its inputs and its output."""

    def __init__(self, place: "_Place", inputs: Tensors, compute: Compute, *, to_host: bool = False) -> None:
        self.inputs = inputs
        for _ in range(_WARM_UPS):
            computed = compute(*inputs)
        device = torch.device("cpu") if to_host else computed.device
        self.output = torch.empty(computed.shape, dtype=computed.dtype, device=device, pin_memory=to_host)
        with place.recorded() as self._graph:
            # The output is outside the pool, so that the next recording can use all of the pool again.
            self.output.copy_(compute(*inputs), non_blocking=to_host)

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


class _Attempts:
    """Attempts to record, which become rarer while they fail."""

    def __init__(self) -> None:
        self._failures = self._wait = 0

    def made(self, make: Callable[[], Made]) -> Made | None:
        """What `make` records; None if that fails now.

        Raises:
            torch.OutOfMemoryError: the caller tries again with smaller chunks.
        """
        if self._wait:
            self._wait -= 1
            return None
        try:
            recording = make()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._note_failure(error)
            return None
        self._failures = 0
        return recording

    def place_on(self, device: torch.device) -> _Place | None:
        """What recordings on a device share, which is recorded itself; None if that fails now."""
        return _places.get(device) or self.made(lambda: _place_on(device))

    def _note_failure(self, error: RuntimeError) -> None:
        """Wait longer after every failure in a row before recording again."""
        self._failures += 1
        self._wait = min(4**self._failures, _LONGEST_WAIT)
        if self._failures == _WARNING:
            warn_caller(
                f"No CUDA graph could be recorded {_WARNING} times in a row ({error}). Until that works, "
                "small batches are computed with one launch per kernel: slower, with the same results."
            )


class HostRecording:
    """A recording whose input comes from pinned memory, and whose output goes there, for one caller."""

    def __init__(self, place: _Place, device: torch.device, num_bytes: int, compute: Compute) -> None:
        self._place = place
        given_X = torch.zeros(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        on_gpu_X = torch.zeros(num_bytes, dtype=torch.uint8, device=device)

        def compute_given() -> Tensor:
            return compute(on_gpu_X.copy_(given_X, non_blocking=True))

        self._recording = Recording(place, (), compute_given, to_host=True)
        self.given_X: npt.NDArray[np.uint8] = given_X.numpy()
        """The input, to be filled before `start`. It still has what the caller before wrote."""
        self.views: tuple[npt.NDArray[Any], ...] = ()
        """Parts of the input, for callers to keep."""
        self._output: npt.NDArray[Any] = self._recording.output.numpy()
        self._done = torch.cuda.Event()

    def start(self) -> None:
        """Begin to compute."""
        with self._place.lock, torch.cuda.stream(self._place.stream):
            self._recording.replay()
            self._done.record(self._place.stream)

    def wait(self) -> npt.NDArray[Any]:
        """The output, which the next caller overwrites."""
        self._done.synchronize()
        return self._output


class HostComputation:
    """A computation on a GPU from pinned memory to pinned memory, with recordings for each shape."""

    def __init__(self, device: torch.device, *, largest_batch: int) -> None:
        """Record nothing yet.

        Args:
            device: the GPU.
            largest_batch: the largest batch that is worth the memory of a recording.
        """
        self.largest_batch = min(largest_batch, LARGEST_BATCH)
        self._device = device
        self._attempts = _Attempts()
        self._idle: OrderedDict[tuple[int | None, ...], list[HostRecording]] = OrderedDict()

    def take(
        self, key: tuple[int | None, ...], num_bytes: int, compute: Callable[[Tensor], Tensor]
    ) -> HostRecording | None:
        """A recording for a shape, for the caller alone until it is given back; None if there is none now.

        It is made if all recordings for this shape are in use.

        Args:
            key: the shape.
            num_bytes: bytes of the input.
            compute: function from the input (X,), uint8, on the GPU to the output.

        Raises:
            torch.OutOfMemoryError: the GPU has no memory for a recording.
        """
        place = self._attempts.place_on(self._device)
        if place is None:
            return None
        with place.lock:
            if idle := self._idle.get(key):
                self._idle.move_to_end(key)
                return idle.pop()
            with torch.cuda.device(self._device):
                callers = torch.cuda.current_stream()
                with torch.cuda.stream(place.stream):
                    place.stream.wait_stream(callers)  # which may still be computing what is recorded with
                    return self._attempts.made(lambda: HostRecording(place, self._device, num_bytes, compute))

    def give_back(self, key: tuple[int | None, ...], recording: HostRecording) -> None:
        """Let the next caller have a recording whose output is read."""
        with _place_on(self._device).lock:  # so that memory is not freed while something is recorded
            self._idle.setdefault(key, []).append(recording)
            self._idle.move_to_end(key)
            if sum(map(len, self._idle.values())) > _MOST_IDLE:
                oldest = next(iter(self._idle))
                self._idle[oldest].pop()
                if not self._idle[oldest]:
                    del self._idle[oldest]


class GraphedComputation:
    """Recordings of a computation, one for each shape of its inputs."""

    def __init__(self, *, largest_batch: int) -> None:
        """Record nothing yet.

        Args:
            largest_batch: the largest batch that is worth the memory of a recording.
        """
        self.largest_batch = min(largest_batch, LARGEST_BATCH)
        self._recordings: OrderedDict[tuple[int, ...], Recording] = OrderedDict()
        self._attempts = _Attempts()

    @contextlib.contextmanager
    def recording(
        self, device: torch.device, key: tuple[int, ...], blank: Callable[[], Tensors], compute: Compute
    ) -> Iterator[Recording | None]:
        """The recording for a shape, for this thread alone, on the stream that is current in the context.

        It is made at its first use, from `blank` inputs; None if that fails now.
        """
        place = self._attempts.place_on(device)
        if place is None:
            yield None
            return
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

        def make() -> Recording:
            if len(self._recordings) == _MOST_RECORDINGS:
                place.stream.synchronize()  # it may be running
                self._recordings.popitem(last=False)
            place.stream.wait_stream(callers)  # which may still be computing what is recorded with
            return Recording(place, blank(), compute)

        recording = self._attempts.made(make)
        if recording is not None:
            self._recordings[key] = recording
        return recording


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
