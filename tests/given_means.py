"""Means of rows with many vectors that a test chooses, in place of those that follow from encodings."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class GivenMeans:
    """As `RowMeans`."""

    values_BD: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "GivenMeans":
        return GivenMeans(self.values_BD[rows])

    def products(self, queries_DP: np.ndarray) -> np.ndarray:
        return self.values_BD @ queries_DP
