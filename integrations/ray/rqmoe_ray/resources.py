"""Resources of the actors: CPUs, GPUs and the device of the codec."""

import dataclasses
from typing import Any

import ray

import rqmoe_store as rqs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """What one actor requests from the cluster."""

    num_cpus: float
    num_gpus: float
    device: str
    """Where its codec is, as in `Codec.to`."""

    @property
    def options(self) -> dict[str, Any]:
        """The request as Ray's options of an actor."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}

    def most_actors(self, num_workers: int | None) -> int:
        """The largest number of such actors: `num_workers`, or as many as the cluster has room for now.

        Raises:
            InvalidInputError: `num_workers` is not a whole number from 1.
        """
        if num_workers is not None:
            if type(num_workers) is not int or num_workers < 1:
                raise rqs.InvalidInputError(f"Got num_workers={num_workers!r}; expected a number from 1.")
            return num_workers
        room = ray.cluster_resources()
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        fits = [int(room.get(name, 0) / each) for name, each in wanted.items() if each]
        return max(1, min(fits, default=1))


def join_cluster() -> None:
    """Start or join a cluster as `ray.init()` does, unless that was done."""
    if not ray.is_initialized():
        ray.init()


def choose_resources(num_cpus: float, num_gpus: float | None, device: str) -> Resources:
    """Join the cluster, and choose the resources of an actor.

    Args:
        num_cpus: of each actor.
        num_gpus: of each actor; None for one where the cluster has any, unless `device` is "cpu".
        device: where its codec is.
    """
    join_cluster()
    if num_gpus is None:
        num_gpus = 1 if device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1 else 0
    return Resources(num_cpus=num_cpus, num_gpus=num_gpus, device=device if num_gpus else "cpu")
