"""Sums by group in a fixed order.

A GPU's `index_add_` adds by atomic operations, in an order that differs from run to run, and so do the last
bits of the sums. There, rows are sorted by group first, and one thread adds up the rows of a group.

Shape legend: n rows, M groups of each row, G groups, X columns.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor


class GroupedSums:
    """Sums of rows over the groups that each of them belongs to."""

    def __init__(self, groups_nM: Tensor, num_groups: int) -> None:
        self._groups_nM, self._num_groups = groups_nM, num_groups
        if groups_nM.is_cuda:
            sorted_X, order_X = groups_nM.flatten().sort(stable=True)
            groups_G = torch.arange(num_groups + 1, dtype=groups_nM.dtype, device=groups_nM.device)
            self._starts_G = torch.searchsorted(sorted_X, groups_G)
            self._members_X = order_X // groups_nM.shape[1]

    def of(self, values_nX: Tensor) -> Tensor:
        """The sums (G, X); zeros for groups without rows."""
        if self._groups_nM.is_cuda:
            return functional.embedding_bag(self._members_X, values_nX, self._starts_G[:-1], mode="sum")
        sums_GX = values_nX.new_zeros(self._num_groups, values_nX.shape[1])
        for groups_n in self._groups_nM.unbind(dim=1):
            sums_GX.index_add_(0, groups_n, values_nX)
        return sums_GX

    def sizes(self) -> Tensor:
        """Rows (G,) of every group."""
        if self._groups_nM.is_cuda:
            return self._starts_G.diff()
        return torch.bincount(self._groups_nM.flatten(), minlength=self._num_groups)
