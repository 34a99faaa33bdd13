"""Scalar and binary quantization to compare with: one byte, or one bit, per component.

Shape suffixes: N vectors, D vector dimension, C bytes of a code.

- "int8": every component as one of 256 levels between the 0.5 % and 99.5 % quantiles of all components, as
  vector databases with scalar quantization keep them by default. D bytes.
- "binary": the sign of every component. Decoded, it is the mean size of that component, so queries are
  compared in full precision: that finds more than counting equal signs. D / 8 bytes.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from rqmoe_store.codecs.vectors import Float32Array

_TAIL = 0.005
_LEVELS = 256
_SAMPLED_ROWS = 20_000


@dataclasses.dataclass(frozen=True)
class Int8Codec:
    """Levels at equal distances, the same for all components."""

    lowest: float
    step: float

    @classmethod
    def fit(cls, training_ND: Float32Array) -> "Int8Codec":
        """Levels for vectors like these."""
        lowest, highest = np.quantile(training_ND[:_SAMPLED_ROWS], (_TAIL, 1 - _TAIL))
        return cls(float(lowest), float(highest - lowest) / (_LEVELS - 1))

    @property
    def artifact_bytes(self) -> int:
        return 8

    @property
    def epochs(self) -> float | None:
        return None

    @property
    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def encode(self, vectors_ND: Float32Array) -> Any:
        """Codes, uint8 (N, D)."""
        levels_ND = np.rint((vectors_ND - self.lowest) / (self.step or 1.0))
        return levels_ND.clip(0, _LEVELS - 1).astype(np.uint8)

    def decode(self, codes: Any) -> Float32Array:
        return np.asarray(codes * np.float32(self.step) + np.float32(self.lowest), dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write both numbers to `path` with the suffix .npy."""
        _save(path, np.array([self.lowest, self.step]))


@dataclasses.dataclass(frozen=True)
class BinaryCodec:
    """Signs, and what they stand for."""

    sizes_D: Float32Array

    @classmethod
    def fit(cls, training_ND: Float32Array) -> "BinaryCodec":
        """The mean size of every component."""
        return cls(np.abs(training_ND).mean(axis=0, dtype=np.float64).astype(np.float32))

    @property
    def artifact_bytes(self) -> int:
        return self.sizes_D.nbytes

    @property
    def epochs(self) -> float | None:
        return None

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def encode(self, vectors_ND: Float32Array) -> Any:
        """Codes, uint8 (N, C): eight signs in a byte."""
        return np.packbits(vectors_ND > 0, axis=1)

    def decode(self, codes: Any) -> Float32Array:
        signs_ND = np.unpackbits(codes, axis=1, count=len(self.sizes_D))
        return np.asarray(np.where(signs_ND, self.sizes_D, -self.sizes_D), dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write the sizes to `path` with the suffix .npy."""
        _save(path, self.sizes_D)


def _save(path: Path, array: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(f"{path}.npy", array)
