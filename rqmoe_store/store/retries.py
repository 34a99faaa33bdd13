"""Doing again what another writer came in between."""

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_message, stop_after_attempt, wait_random_exponential

Result = TypeVar("Result")

_ATTEMPTS = 20


def despite_conflicts(action: Callable[[], Result]) -> Result:
    """What `action` returns, called again after every commit conflict, a bounded number of times.

    Args:
        action: reads the newest version of a table and commits a change to it, or raises what Lance raises
            when that version has been changed meanwhile.
    """
    for attempt in Retrying(
        retry=retry_if_exception_message(match="(?is).*conflict.*"),  # Lance has no class of its own for it
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.05, max=5),
        reraise=True,
    ):
        with attempt:
            return action()
    raise AssertionError("the last attempt returns or raises")
