"""The best weights that a run has seen."""

from typing import Any

from torch import Tensor

from rqmoe_store.codecs.quantizer import ResidualQuantizer


class BestWeights:
    """A copy of the weights with the lowest validation error so far, and how long ago that was."""

    def __init__(self, quantizer: ResidualQuantizer, mse: float) -> None:
        self.mse, self.step = mse, 0
        self.stale = 0
        """Validations since without improvement."""
        self.weights = _copied(quantizer.state_dict())

    def offer(self, quantizer: ResidualQuantizer, mse: float, step: int) -> None:
        """Keep these weights if their error is lower; an error that is NaN never is."""
        if mse < self.mse:
            self.mse, self.step, self.stale = mse, step, 0
            self.weights = _copied(quantizer.state_dict())
        else:
            self.stale += 1

    def counters(self) -> dict[str, Any]:
        """What `restore` needs beside the weights, as JSON values."""
        return {"best_mse": self.mse, "best_step": self.step, "stale": self.stale}

    def restore(self, counters: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Take up what another run kept."""
        self.mse, self.step = counters["best_mse"], counters["best_step"]
        self.stale = counters["stale"]
        self.weights = {name: value.to(self.weights[name].device) for name, value in weights.items()}


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}
