"""Errors raised by `rqmoe_store`: one root, few leaves.

Every message says what was got, what was expected and what to do next, and every error is raised
before anything is written, but for those of the writing itself.
"""


class RQMoEError(Exception):
    """Root of every error this package raises on purpose."""


class InvalidInputError(RQMoEError, ValueError):
    """An argument cannot be used: wrong dimension, NaN, zero vector under cosine, bad setting, ..."""


class TableError(RQMoEError, ValueError):
    """A LanceDB table is not in the state the call needs: missing column, empty, name taken, ..."""


class TableNotFoundError(TableError):
    """The database has no table of this name."""


class ArtifactError(RQMoEError):
    """A stored codec or checkpoint is missing, truncated, tampered with, or does not fit."""


class StorageError(RQMoEError, OSError):
    """A disk or bucket refused a write: full, read-only, or not permitted. What it held before is intact."""
