"""Training checkpoints: one safetensors file, replaced atomically, and the best weights so far."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from rqmoe_store.codecs.artifact import write_atomically
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import ArtifactError

CHECKPOINT_FILE = "training.safetensors"
_STATE_KEY = "state"
_DIGEST_KEY = "sha256"
_MAY_CHANGE = {"checkpoint_dir", "checkpoint_minutes", "progress", "device", "cuda_graphs"}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to continue as if it had not stopped."""

    identity: dict[str, Any]
    """Codec configuration, training settings and training data, which identify the run."""
    counters: dict[str, Any]
    """Progress and figures so far, as JSON values."""
    tensors: dict[str, Tensor]
    """Weights, best weights, optimizer moments and codeword usage. Names are `group.name`."""

    def group(self, name: str) -> dict[str, Tensor]:
        """The tensors of one group under their own names."""
        prefix = f"{name}."
        return {
            key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)
        }


def write_checkpoint(checkpoint: Checkpoint, directory: str) -> None:
    """Write the checkpoint to `directory`, replacing an earlier one; creates the directory if needed."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    state = json.dumps({"identity": checkpoint.identity, "counters": checkpoint.counters})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    metadata = {_STATE_KEY: state, _DIGEST_KEY: _digest(state, tensors)}
    write_atomically(folder / CHECKPOINT_FILE, save(tensors, metadata=metadata))


def read_checkpoint(directory: str, identity: dict[str, Any]) -> Checkpoint | None:
    """Read the checkpoint in `directory`; None if there is none yet.

    Raises:
        ArtifactError: it is damaged, or belongs to a run with other settings or data.
    """
    path = Path(directory) / CHECKPOINT_FILE
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata[_DIGEST_KEY] != _digest(metadata[_STATE_KEY], tensors):
            raise ValueError("its content has another hash than was written")
        state = json.loads(metadata[_STATE_KEY])
        found, counters = state["identity"], state["counters"]
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}). Delete it to train from the start.") from error
    _require_same_run(path, found, json.loads(json.dumps(identity)))
    return Checkpoint(found, counters, tensors)


def _digest(state: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(state.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def run_identity(
    training_nD: Tensor, config: CodecConfig, settings: TrainConfig, start: str | None = None
) -> dict[str, Any]:
    """Everything that must not change for a checkpoint to be resumed, by the names that users know.

    `start` is the fingerprint of the codec to start from, if there is one.
    """
    identity = {f"CodecConfig.{name}": value for name, value in config.to_dict().items()}
    for name, value in dataclasses.asdict(settings).items():
        if name not in _MAY_CHANGE:
            identity[f"TrainConfig.{name}"] = value
    if start is not None:
        identity["start"] = start
    identity["training vectors"] = hashlib.sha256(training_nD.cpu().contiguous().numpy().data).hexdigest()
    return identity


def _require_same_run(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    different = [
        f"{name} is {_shown(found, name)} in the checkpoint and {_shown(expected, name)} now"
        for name in dict.fromkeys([*expected, *found])
        if name not in found or name not in expected or found[name] != expected[name]
    ]
    if different:
        raise ArtifactError(
            f"{path} belongs to another run: {'; '.join(different)}. Give the settings and data of "
            "that run to go on with it, or another checkpoint_dir to start anew."
        )


def _shown(identity: dict[str, Any], name: str) -> str:
    if name == "training vectors" and name in identity:
        return f"data with hash {identity[name][:12]}..."
    return repr(identity[name]) if name in identity else "not there"


class BestWeights:
    """A copy of the weights with the lowest validation error so far, and the time since then."""

    def __init__(self, quantizer: ResidualQuantizer, mse: float) -> None:
        self.mse, self.step = mse, 0
        self.stale = 0
        """Validations since then, all without improvement."""
        self.weights = _copied(quantizer.state_dict())

    def offer(self, quantizer: ResidualQuantizer, mse: float, step: int) -> None:
        """Keep these weights if their error is lower. NaN never is."""
        if mse < self.mse:
            self.mse, self.step, self.stale = mse, step, 0
            self.weights = _copied(quantizer.state_dict())
        else:
            self.stale += 1

    def counters(self) -> dict[str, Any]:
        """The state that `restore` needs besides the weights, as JSON values."""
        return {"best_mse": self.mse, "best_step": self.step, "stale": self.stale}

    def restore(self, counters: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Restore the best weights and counters of a checkpoint."""
        self.mse, self.step = counters["best_mse"], counters["best_step"]
        self.stale = counters["stale"]
        self.weights = {name: value.to(self.weights[name].device) for name, value in weights.items()}


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}
