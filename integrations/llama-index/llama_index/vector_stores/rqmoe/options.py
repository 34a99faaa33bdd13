"""Checks of the keyword arguments that LlamaIndex passes on to a store."""

from collections.abc import Mapping, Sequence
from typing import Any

from rqmoe_store import InvalidInputError


def require_known(given: Mapping[str, Any], called: str, known: Sequence[str] = ()) -> None:
    """Raise InvalidInputError for options that would otherwise be ignored silently."""
    unknown = [name for name in given if name not in known]
    if unknown:
        expected = f"expected {', '.join(known)}" if known else "it takes none"
        raise InvalidInputError(f"Got the option {unknown[0]!r} for {called}; {expected}.")
