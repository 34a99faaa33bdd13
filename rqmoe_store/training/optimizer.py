"""AdamW over a quantizer, and its memory: to be kept in checkpoints, and lost for some codewords."""

import torch
from torch import Tensor

from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import TrainConfig

_CODEWORD_RATE = 10.0


def make_optimizer(quantizer: ResidualQuantizer, settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW that decays the matrices of the experts only: codewords have no reason to shrink.

    Codewords and expert components learn faster than the networks: each is seen by the few vectors of
    a batch that chose it, and has a long way to go from where k-means left it.
    """
    experts = [] if quantizer.mixture is None else list(quantizer.mixture.parameters())
    decayed = {id(parameter) for parameter in experts}
    others = [parameter for parameter in quantizer.parameters() if id(parameter) not in decayed]
    groups = [{"params": others, "weight_decay": 0.0, "rate_factor": _CODEWORD_RATE}]
    if experts:
        groups.append({"params": experts, "weight_decay": settings.weight_decay, "rate_factor": 1.0})
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Make `rate` the experts' learning rate, and that of codewords as many times higher as it is to be."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`; the optimizer must hold the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def forget_rows(optimizer: torch.optim.Optimizer, stack_MKX: Tensor, step: int, rows_X: Tensor) -> None:
    """Set the moments of some codewords of one step to zero, as if they were new."""
    for name in ("exp_avg", "exp_avg_sq"):
        moment = optimizer.state.get(stack_MKX, {}).get(name)
        if moment is not None:
            moment[step, rows_X] = 0
