"""Loops over arrays that are compiled to machine code at their first call."""

from typing import Any

import numba


def compiled(function: Any) -> Any:
    """The function, compiled at its first call, and from then on for good where a file can be kept.

    It releases the interpreter's lock, so calls of several threads run side by side. Multiplications and
    additions may be contracted into one instruction.
    """
    try:
        return numba.njit(nogil=True, cache=True, fastmath={"contract"})(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written to
        return numba.njit(nogil=True, fastmath={"contract"})(function)
