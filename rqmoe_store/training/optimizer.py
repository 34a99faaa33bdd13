"""Optimizer: AdamW with clipped gradients, on a CPU one parameter per task.

Shape legend: M steps, K codewords, X some codewords of a step, or their components.
"""

import functools

import torch
from torch import Tensor

from rqmoe_store.codecs.device import run_on_device
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import TrainConfig

_CODEWORD_RATE = 10.0  # times the learning rate of the networks


class Optimizer:
    """AdamW with weight decay on the experts only: codewords have no reason to shrink.

    Codewords and expert components learn faster than the networks. Only the few vectors of a batch that chose
    a codeword train it, and it has a long way to go from its k-means centroid.
    """

    def __init__(self, quantizer: ResidualQuantizer, settings: TrainConfig) -> None:
        self.clip_norm, self.device = settings.clip_norm, quantizer.codebooks_MKD.device
        experts = [] if quantizer.mixture is None else list(quantizer.mixture.parameters())
        decayed = {id(parameter) for parameter in experts}
        codewords = [parameter for parameter in quantizer.parameters() if id(parameter) not in decayed]
        self._parameters = [*codewords, *experts]  # by their place here, `tensors` names them
        places = range(len(self._parameters))
        # A GPU steps all parameters in a few launches, a CPU each of them on a core of its own.
        self._shares = [[place] for place in places] if self.device.type == "cpu" else [list(places)]
        self._algorithms = [self._algorithm(share, len(codewords), settings) for share in self._shares]

    def _algorithm(self, share: list[int], num_codewords: int, settings: TrainConfig) -> torch.optim.AdamW:
        """AdamW for the parameters at some places, of which the first ones are codewords."""
        codewords = [self._parameters[place] for place in share if place < num_codewords]
        experts = [self._parameters[place] for place in share if place >= num_codewords]
        groups = [
            {"params": codewords, "weight_decay": 0.0, "rate_factor": _CODEWORD_RATE},
            {"params": experts, "weight_decay": settings.weight_decay, "rate_factor": 1.0},
        ]
        on_gpu = self.device.type != "cpu"
        algorithm = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.learning_rate,
            fused=True,
        )
        if on_gpu:  # a recorded step reads the rates that `set_rate` writes
            for group in algorithm.param_groups:
                group["lr"] = torch.zeros((), dtype=torch.float32, device=self.device)
        return algorithm

    def gradient_norm(self) -> Tensor:
        """Length of the gradient of all parameters together, on their device."""
        gradients = [each.grad for each in self._parameters if each.grad is not None]
        norms = run_on_device(
            self.device, [functools.partial(torch.linalg.vector_norm, gradient) for gradient in gradients]
        )
        if not norms:
            return torch.zeros((), device=self.device)
        length: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return length

    def set_rate(self, rate: float) -> None:
        """Set the experts' learning rate. That of codewords is a multiple of it."""
        for algorithm in self._algorithms:
            for group in algorithm.param_groups:
                group_rate = rate * group["rate_factor"]
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(group_rate)
                else:
                    group["lr"] = group_rate

    def step(self, gradient_norm: Tensor, failed: Tensor) -> None:
        """Move the parameters against their gradients, which are scaled down to `clip_norm`.

        Nothing waits for the device.

        Args:
            gradient_norm: what `gradient_norm` returns.
            failed: 1 to leave parameters and moments as they are, else 0.
        """
        # In double precision, as it would be computed from numbers that were read.
        factor = (self.clip_norm / (gradient_norm.double() + 1e-6)).clamp_max(1.0).float()
        # The largest first, so that no core is left with one of them at the end.
        sizes = [sum(self._parameters[place].numel() for place in share) for share in self._shares]
        order = sorted(range(len(sizes)), key=lambda index: -sizes[index])
        run_on_device(self.device, [functools.partial(self._step, index, factor, failed) for index in order])

    def _step(self, index: int, factor: Tensor, failed: Tensor) -> None:
        gradients = [self._parameters[place].grad for place in self._shares[index]]
        found = [gradient for gradient in gradients if gradient is not None]
        if not found:
            return
        if self.device.type != "cpu" or factor < 1.0:
            torch._foreach_mul_(found, factor)
        algorithm = self._algorithms[index]
        if self.device.type == "cuda":
            recording = torch.cuda.is_current_stream_capturing()
            for group in algorithm.param_groups:  # which changes nothing, but torch warns and refuses by it
                group["capturable"] = recording
        algorithm.found_inf = failed  # type: ignore[attr-defined]  # as torch.amp.GradScaler tells it
        algorithm.step()

    def clear(self) -> None:
        """Forget all moments, as if training began."""
        for algorithm in self._algorithms:
            algorithm.state.clear()

    def moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """The moments of a parameter by their names; none before the first step."""
        found = [algorithm.state[parameter] for algorithm in self._algorithms if parameter in algorithm.state]
        return {name: found[0][name] for name in ("exp_avg", "exp_avg_sq")} if found else {}

    def reset_moments(self, stack_MKX: Tensor, step: int, rows_X: Tensor) -> None:
        """Zero the moments of some codewords of one step, as if they were new."""
        for moment in self.moments(stack_MKX).values():
            moment[step, rows_X] = 0

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors."""
        return {
            f"{place}.{name}": value
            for share, algorithm in zip(self._shares, self._algorithms, strict=True)
            for place in share
            for name, value in algorithm.state.get(self._parameters[place], {}).items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Load what `tensors` returned into an optimizer of the same parameters."""
        for share, algorithm in zip(self._shares, self._algorithms, strict=True):
            state: dict[int, dict[str, Tensor]] = {}
            for index, place in enumerate(share):  # by which torch numbers them
                prefix = f"{place}."
                named = {
                    name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)
                }
                if named:
                    state[index] = named
            algorithm.load_state_dict({**algorithm.state_dict(), "state": state})
