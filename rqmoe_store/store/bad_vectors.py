"""What becomes of rows whose vector cannot be used.

Shapes: N rows, D components.
"""

import dataclasses
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.store.kept_vectors import KeptVectors
from rqmoe_store.store.vector_arrays import dense_vectors

OnBadVectors = Literal["error", "drop", "fill", "null"]

_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class BadVectors:
    """What the user wants done with them, in LanceDB's words."""

    action: OnBadVectors = "error"
    fill_value: float = 0.0

    def __post_init__(self) -> None:
        if self.action not in get_args(OnBadVectors):
            raise InvalidInputError(
                f"Got on_bad_vectors={self.action!r}; expected one of "
                f"{', '.join(map(repr, get_args(OnBadVectors)))}."
            )
        if self.action == "fill":
            object.__setattr__(self, "fill_value", _finite(self.fill_value))

    def repaired(
        self, column: pa.Array, kept: KeptVectors, metric: str
    ) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
        """The vectors with nothing bad left that can be helped, and which rows are to stay, (N,).

        A vector is bad if it has another dimension, a missing, NaN or infinite component, one beyond the
        numbers it is kept in, or, under "cosine", no direction. With "drop" and "fill" nulls are bad as well.
        With "fill" components are put in the place of bad and missing ones, which helps against most of it.

        Args:
            column: N rows of a type that `is_vector_type` accepts.
            kept: how the table keeps vectors.
            metric: that it is searched by.
        """
        everything_N = np.ones(len(column), dtype=bool)
        if self.action == "error":
            return column, everything_N
        given_ND, whole_N = dense_vectors(column, kept.dim)
        rounded_ND = kept.rounded(given_ND)
        usable_ND = np.isfinite(rounded_ND)
        if self.action == "fill":
            filled_ND = np.where(usable_ND, given_ND, np.float32(self.fill_value))
            return pa.FixedSizeListArray.from_arrays(pa.array(filled_ND.ravel()), kept.dim), everything_N
        good_N = whole_N & usable_ND.all(axis=1)
        if metric == "cosine":
            good_N &= rounded_ND.any(axis=1)
        nulled = pa.FixedSizeListArray.from_arrays(
            pa.array(given_ND.ravel()), kept.dim, mask=pa.array(~good_N)
        )
        return nulled, good_N if self.action == "drop" else everything_N


ALL_GOOD = BadVectors()
"""Bad ones are an error."""


def _finite(fill_value: Any) -> float:
    number = isinstance(fill_value, (int, float, np.integer, np.floating))
    if not number or isinstance(fill_value, bool) or not abs(fill_value) <= _LARGEST:
        raise InvalidInputError(f"Got fill_value={fill_value!r}; expected a finite number, as float32.")
    return float(fill_value)
