"""The memory of tensors, counted operation by operation: what a GPU would have to hold."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside a `with` block: the bytes of the tensors made there that are alive, and the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if _is_tensor(each)}
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if _is_tensor(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given:
                    self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._storages = {key: each for key, each in self._storages.items() if not each[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._storages.values()))
        return made


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)
