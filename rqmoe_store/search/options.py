"""Checks that turn what the user passes to a query into usable values."""

import importlib
import math
from types import ModuleType
from typing import Any

import numpy as np
import torch

from rqmoe_store.arguments import whole_number
from rqmoe_store.codecs.vectors import Float32Array, as_vectors, is_frame, listed
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError, RQMoEError


def as_queries(query: Any, *, dim: int, metric: Metric) -> Float32Array:
    """One vector (D,) or a batch (Q, D) as checked float32 queries (Q, D).

    Raises:
        InvalidInputError: what `as_vectors` refuses, or an empty batch.
    """
    query = listed(query)
    if _is_single(query):
        query = query[None] if isinstance(query, torch.Tensor) else [query]
    queries_QD = as_vectors(query, dim=dim, metric=metric)
    if len(queries_QD) == 0:
        raise InvalidInputError("Got an empty batch of queries; expected at least one vector.")
    return queries_QD


def batch_length(length: Any) -> int | None:
    """Rows per batch at most as an int, None for no such limit; raises InvalidInputError below 1."""
    return None if length is None else whole_number("max_batch_length", length, 1)


def bound(name: str, value: Any) -> float | None:
    """A side of a distance range as a float; raises InvalidInputError unless a number or None."""
    if value is None:
        return None
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or math.isnan(value):
        raise InvalidInputError(f"Got {name}={value!r}; expected a number, or None for no bound.")
    return float(value)


def share(name: str, value: Any) -> float:
    """`value` as a float from 0 to 1; raises InvalidInputError otherwise."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:
        raise InvalidInputError(f"Got {name}={value!r}; expected a number from 0 to 1.")
    return float(value)


def require_installed(module: str) -> ModuleType:
    """The module, imported; raises RQMoEError with the install command when it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RQMoEError(
            f"to_{module}() needs {module}, which is not installed. Run: pip install {module}"
        ) from error


def _is_single(query: Any) -> bool:
    if isinstance(query, (torch.Tensor, np.ndarray)):
        return query.ndim == 1
    if isinstance(query, str) or is_frame(query) or not hasattr(query, "__len__") or len(query) == 0:
        return False
    # Only the first element is looked at: rows of different lengths are reported by `as_vectors`.
    try:
        return np.ndim(query[0]) == 0
    except (KeyError, TypeError, IndexError):  # no sequence: `as_vectors` says what it is
        return False
