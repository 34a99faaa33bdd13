"""Errors that `rqmoe_store` raises, and warnings that point at the caller's line.

Every message says what was got, what was expected and what to do next. Errors are raised before anything is
written, except for errors of the write itself.
"""

import os
import sys
import warnings
from pathlib import Path

_PACKAGE = f"{Path(__file__).parent}{os.sep}"


class RQMoEError(Exception):
    """Base class of all errors that this package raises on purpose."""


class InvalidInputError(RQMoEError, ValueError):
    """An argument cannot be used: wrong dimension, NaN, zero vector under cosine, bad setting, ..."""


class TableError(RQMoEError, ValueError):
    """A LanceDB table is not in the state that a call needs: missing column, empty, name taken, ..."""


class TableNotFoundError(TableError):
    """The database has no table of this name."""


class ArtifactError(RQMoEError):
    """A stored codec or checkpoint is missing, truncated, tampered with, or does not fit."""


class StorageError(RQMoEError, OSError):
    """A disk or bucket refused a write: full, read-only or not permitted. Earlier content is intact."""


def warn_caller(message: str) -> None:
    """Issue a UserWarning at the line outside this package that called into it.

    A fixed `stacklevel` points elsewhere as soon as a call is wrapped, or made from one more place.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        UserWarning,
        filename=frame.f_code.co_filename,
        lineno=frame.f_lineno,
        module=frame.f_globals.get("__name__", "<unknown>"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )
