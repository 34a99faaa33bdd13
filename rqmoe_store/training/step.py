"""Training step: gradient, clipping and optimizer, on a GPU recorded as a CUDA graph and launched as a whole.

Launching the thousand small kernels of a step one by one takes a GPU longer than computing them. The first
steps are launched that way, so that libraries have chosen their kernels and the optimizer has its moments.
Then a step is recorded for batches of that size, and later ones are one launch each. The last batch of an
epoch, which may be smaller, has a recording of its own.

A recording repeats the same kernels on the same memory. So batch and learning rates are copied to where it
reads them, and a step that fails (loss or gradient not finite) is left out by the optimizer, not by a look at
the loss. Both ways of launching run the same kernels and give the same weights.

Shape legend: B batch, D dimension, M steps, K codewords, X codes of a batch.
"""

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rqmoe_store.codecs.graphs import recorded
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.errors import warn_caller
from rqmoe_store.training.gradients import GradientComputation
from rqmoe_store.training.optimizer import Optimizer
from rqmoe_store.training.workers import Workers

_WARM_UPS = 3
"""Steps on batches of a size before one is recorded."""

Launch = Callable[[Tensor], Tensor]
"""Function that launches a step on a batch and returns loss and norm of the gradient on the device."""


class TrainingStep:
    """Moves the weights of a quantizer by the gradient of a batch."""

    def __init__(
        self,
        quantizer: ResidualQuantizer,
        gradients: GradientComputation,
        optimizer: Optimizer,
        workers: Workers,
        *,
        record: bool = True,
    ) -> None:
        """Create the step.

        Args:
            quantizer: its parameters are trained.
            gradients: what computes their gradients.
            optimizer: what moves them.
            workers: processes that train together. Their exchange is not recorded, nor is a step then.
            record: record steps on a GPU.
        """
        self.parameters = list(quantizer.parameters())
        self.gradients, self.optimizer, self.workers = gradients, optimizer, workers
        shape = (quantizer.num_steps, quantizer.codebook_size)
        self.usage_MK = torch.zeros(shape, dtype=torch.long, device=workers.device)
        """How many vectors chose each codeword."""
        self._recorder: _Recorder | None = None
        if record and workers.device.type == "cuda" and workers.count == 1:
            self._recorder = _Recorder(workers.device)

    def launch(self, batch_BD: Tensor, rate: float) -> Tensor:
        """Launch a step; returns loss and norm of the gradient (2,) on the device.

        If they are not finite, weights stay as they are.

        Args:
            batch_BD: normalized vectors.
            rate: the experts' learning rate.
        """
        if self._recorder is None:
            self.optimizer.set_rate(rate)
            return self._launch_kernels(batch_BD)
        with self._recorder.on_stream():
            self.optimizer.set_rate(rate)
            return self._recorder.launch(self._launch_kernels, batch_BD)

    def clear(self) -> None:
        """Forget the optimizer's moments, as if training began."""
        self.optimizer.clear()
        self._forget_recordings()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue with moments that `Optimizer.tensors` returned."""
        self.optimizer.restore(tensors)
        self._forget_recordings()

    def _forget_recordings(self) -> None:
        """Forget recordings, which would go on with moments that are no longer used."""
        if self._recorder is not None:
            self._recorder.clear()

    @property
    def num_recordings(self) -> int:
        """Batch sizes for which a step is recorded."""
        return 0 if self._recorder is None else len(self._recorder.recordings)

    def _launch_kernels(self, batch_BD: Tensor) -> Tensor:
        own_BD = self.workers.slice_of(batch_BD)
        gradient = self.gradients.of_batch(own_BD)
        for parameter, own in zip(self.parameters, gradient.of_parameters, strict=True):
            parameter.grad = own
        share_of_batch = len(own_BD) / len(batch_BD)
        loss = self.workers.average_gradients(self.parameters, gradient.loss, share_of_batch)
        self._count_codes(gradient.codes_BM)
        norm = self.optimizer.gradient_norm()
        outcome_2 = torch.stack([loss, norm])
        self.optimizer.step(norm, outcome_2.isfinite().all().logical_not().float())
        return outcome_2

    def _count_codes(self, codes_BM: Tensor) -> None:
        numbers_BM = codes_BM + self.usage_MK.shape[1] * torch.arange(
            len(self.usage_MK), device=codes_BM.device
        )
        # torch.bincount would wait for a GPU.
        numbers_X = numbers_BM.flatten()
        self.usage_MK.view(-1).index_add_(0, numbers_X, torch.ones_like(numbers_X))


class _Recording:
    """A step recorded for batches of one size, with its input and output."""

    def __init__(self, launch_kernels: Launch, batch_BD: Tensor, stream: torch.cuda.Stream) -> None:
        self._batch_BD = batch_BD.clone()
        with recorded(stream) as self._graph:
            self._outcome_2 = launch_kernels(self._batch_BD)

    def replay(self, batch_BD: Tensor) -> Tensor:
        """Launch the step; what it returns is overwritten by the next one."""
        self._batch_BD.copy_(batch_BD)
        self._graph.replay()
        return self._outcome_2


class _Recorder:
    """Launches steps by recordings, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.recordings: dict[int, _Recording] = {}
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._warm_ups = Counter[int]()
        self._has_failed = False

    @contextlib.contextmanager
    def on_stream(self) -> Iterator[None]:
        """Launch on the stream of recordings, between what was and what will be launched on the caller's."""
        callers = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(callers)
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            yield
        callers.wait_stream(self._stream)

    def launch(self, launch_kernels: Launch, batch_BD: Tensor) -> Tensor:
        """Launch a step on the stream, which is current; record it if it is time for that.

        Args:
            launch_kernels: launches a step kernel by kernel.
            batch_BD: the batch to do that with.
        """
        rows = len(batch_BD)
        if rows not in self.recordings and not self._has_failed and self._warm_ups[rows] >= _WARM_UPS:
            self._record(launch_kernels, batch_BD)
        if rows in self.recordings:
            return self.recordings[rows].replay(batch_BD)
        self._warm_ups[rows] += 1
        return launch_kernels(batch_BD)

    def _record(self, launch_kernels: Launch, batch_BD: Tensor) -> None:
        gc.collect()  # which should not free another recording in the middle of this one
        try:
            self.recordings[len(batch_BD)] = _Recording(launch_kernels, batch_BD, self._stream)
        except RuntimeError as error:  # such as one for a lack of memory
            self._has_failed = True
            warn_caller(
                f"A training step on {len(batch_BD)} vectors could not be recorded as a CUDA graph "
                f"({error}). Training goes on with one launch per kernel: slower, with the same weights."
            )

    def clear(self) -> None:
        """Forget all recordings, which have run; there will be new ones."""
        self.recordings.clear()
        self._warm_ups.clear()
