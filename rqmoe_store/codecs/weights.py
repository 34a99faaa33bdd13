"""Weights of a residual quantizer, as arrays.

Shape legend: as in `quantizer` and `experts`.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig

if TYPE_CHECKING:
    from rqmoe_store.codecs.quantizer import ResidualQuantizer


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizerWeights:
    """The weights of a residual quantizer by the names that its module has for them."""

    config: CodecConfig
    arrays: Mapping[str, Float32Array]

    @classmethod
    def of(cls, quantizer: "ResidualQuantizer") -> "QuantizerWeights":
        """The weights of a quantizer, in the same memory if that is the CPU's."""
        state = quantizer.state_dict()
        return cls(quantizer.config, {name: tensor.detach().cpu().numpy() for name, tensor in state.items()})

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return len(self.mean_D)

    @property
    def num_partitions(self) -> int:
        """Partitions; 0 without any."""
        return len(self.arrays["centroids_PD"])

    @property
    def deformation_dim(self) -> int:
        """Width of the space that all deformations lie in; 0 without experts."""
        has_experts = "mixture.bias_SW" in self.arrays
        assert self.config.network_dim is not None, "config is resolved"
        return self.config.network_dim if has_experts else 0

    @property
    def mean_D(self) -> Float32Array:
        """The mean, which the quantizer subtracts from vectors."""
        return self.arrays["mean_D"]

    @property
    def scale(self) -> np.float32:
        """The scale, which it divides the difference by."""
        return np.float32(self.arrays["scale"])

    @property
    def codewords_XD(self) -> Float32Array:
        """Undeformed codewords (M * K, D) of all steps, in the units of the input."""
        codebooks_MKD = self.arrays["codebooks_MKD"]
        return codebooks_MKD.reshape(-1, codebooks_MKD.shape[2]) * self.scale

    @property
    def centroids_PD(self) -> Float32Array:
        """Centroids of the partitions, in the units of the input."""
        return self.arrays["centroids_PD"] * self.scale + self.mean_D

    @property
    def output_projection_WD(self) -> Float32Array | None:
        """What widens the experts' deformations; None if there are none, or as wide ones as the vectors."""
        return self.arrays.get("mixture.output_projection_WD")

    def truncate(self, config: CodecConfig) -> "QuantizerWeights":
        """The weights of the first steps, which are those of another configuration."""
        shapes = weight_shapes(config, self.dim)
        kept = {name: self.arrays[name] for name in shapes}
        return QuantizerWeights(
            config,
            {
                name: array if array.shape == shapes[name] else array[: shapes[name][0]]
                for name, array in kept.items()
            },
        )


def weight_shapes(config: CodecConfig, dim: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a resolved configuration, by name."""
    steps, codewords, partitions = config.code_bytes, config.codebook_size, config.num_partitions
    assert partitions is not None, "config is resolved"
    shapes: dict[str, tuple[int, ...]] = {
        "mean_D": (dim,),
        "scale": (),
        "centroids_PD": (partitions, dim),
        "codebooks_MKD": (steps, codewords, dim),
    }
    if config.kind == "rq":
        return shapes
    width, hidden, components = config.network_dim, config.hidden_dim, config.expert_dim
    assert width is not None and hidden is not None and components is not None, "config is resolved"
    condition = width
    if config.kind == "rqmoe":
        condition = components
        shapes["expert_components_MKE"] = (steps, codewords, components)
        shapes["partition_components_PE"] = (partitions, components)
    deformed = steps if partitions else steps - 1  # nothing is known before the first code without partitions
    if deformed:
        experts = {
            "codeword_weight_SWW": (width, width),
            "condition_weight_SWE": (width, condition),
            "bias_SW": (width,),
            "gate_SNW": (config.num_experts, width),
            "expand_SLNHW": (config.num_layers, config.num_experts, hidden, width),
            "contract_SLNHW": (config.num_layers, config.num_experts, hidden, width),
        }
        shapes |= {f"mixture.{name}": (deformed, *shape) for name, shape in experts.items()}
        if width < dim:
            for name in ("input_projection_WD", "output_projection_WD"):
                shapes[f"mixture.{name}"] = (width, dim)
    return shapes
