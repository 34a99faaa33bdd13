"""Values that are there more than once, among more of them than the memory may hold."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

_CHUNK = 2**20


class Duplicates:
    """Finds the repeated ones of up to a number of 64-bit values, which are kept in a file."""

    def __init__(self, path: Path, most: int) -> None:
        """Begin with none.

        Args:
            path: of a file to make.
            most: values that are taken; further ones are not looked at.
        """
        self._values = np.memmap(path, dtype=np.uint64, mode="w+", shape=(max(1, most),))
        self._count = 0

    def add(self, values_N: npt.NDArray[np.uint64]) -> None:
        """Add some."""
        values_N = values_N[: len(self._values) - self._count]
        self._values[self._count : self._count + len(values_N)] = values_N
        self._count += len(values_N)

    def repeated(self) -> npt.NDArray[np.uint64]:
        """Every value that was added more than once, in ascending order."""
        values = self._values[: self._count]
        values.sort()
        found = [np.empty(0, dtype=np.uint64)]
        for start in range(0, self._count, _CHUNK):
            part = values[start : start + _CHUNK + 1]
            found.append(part[1:][part[1:] == part[:-1]])
        return np.unique(np.concatenate(found))
