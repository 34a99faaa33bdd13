"""What an actor of ours asks the cluster for."""

import dataclasses
from typing import Any

import ray

import rqmoe_store as rqs


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

    def most_actors(self, num_workers: int | None) -> int:
        """How many of them there are to be at most: as said, or as the cluster has room for now.

        Raises InvalidInputError unless what is said is a whole number from 1.
        """
        if num_workers is not None:
            if type(num_workers) is not int or num_workers < 1:
                raise rqs.InvalidInputError(f"Got num_workers={num_workers!r}; expected a number from 1.")
            return num_workers
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
