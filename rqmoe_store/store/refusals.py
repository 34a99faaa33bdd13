"""Naming what a disk or bucket refuses.

LanceDB and Lance raise OSError or RuntimeError for it, and say why in text only.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from rqmoe_store.errors import RQMoEError, StorageError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_MORE_ROOM = "make room there"
_MORE_RIGHTS = "write as someone who may, or have the right to write there given"

_REFUSALS = {
    "No space left on device": _MORE_ROOM,
    "Disk quota exceeded": _MORE_ROOM,
    "Read-only file system": "have it mounted for writing, or work on a copy",
    "Permission denied": _MORE_RIGHTS,
    "Operation not permitted": _MORE_RIGHTS,
    "403 Forbidden": _MORE_RIGHTS,
    "AccessDenied": _MORE_RIGHTS,
}
"""What errors say, and what to do about it."""


def names_refusals(write: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A function that writes, raising StorageError when it is refused.

    Args:
        write: leaves intact what was there, whenever it fails.
    """

    @functools.wraps(write)
    def named(*arguments: Parameters.args, **settings: Parameters.kwargs) -> Result:
        try:
            return write(*arguments, **settings)
        except (OSError, RuntimeError) as error:
            found = None if isinstance(error, RQMoEError) else _refusal(str(error))
            if found is None:
                raise
            raise StorageError(
                f"Storage refused a write: {found}. What was there before is intact; {_REFUSALS[found]}, and "
                f"try again. In the words of the storage: {error}"
            ) from error

    return named


def _refusal(text: str) -> str | None:
    return next((refusal for refusal in _REFUSALS if refusal.lower() in text.lower()), None)
