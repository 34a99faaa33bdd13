"""What an actor of ours asks the cluster for."""

import dataclasses
from typing import Any

import ray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """Of one actor."""

    num_cpus: float
    num_gpus: float
    device: str
    """Where its codec is, as in `Codec.to`."""

    @property
    def options(self) -> dict[str, Any]:
        """For Ray."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}

    @property
    def most_actors(self) -> int:
        """How many of them the cluster has room for now, at least 1."""
        room = ray.cluster_resources()
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        fits = [int(room.get(name, 0) / each) for name, each in wanted.items() if each]
        return max(1, min(fits, default=1))


def resources(num_cpus: float, num_gpus: float | None, device: str) -> Resources:
    """What is asked for, with a GPU for every actor where the cluster has any and nothing else is said.

    Starts or joins a cluster as `ray.init()` does, unless that was done.
    """
    if not ray.is_initialized():
        ray.init()
    if num_gpus is None:
        num_gpus = 1 if device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1 else 0
    return Resources(num_cpus=num_cpus, num_gpus=num_gpus, device=device if num_gpus else "cpu")
