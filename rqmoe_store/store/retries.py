"""Doing again what another writer came in between."""

import datetime
from collections.abc import Callable
from typing import Any, TypeVar

from lancedb.table import LanceTable
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_message,
    stop_after_delay,
    wait_random_exponential,
)

from rqmoe_store.errors import TableError
from rqmoe_store.store import freshness

Result = TypeVar("Result")

PATIENCE = datetime.timedelta(seconds=60)
"""How long a write is tried again by default."""

# Lance has no class of its own for it. Nothing was written then.
_CONFLICT = "(?is).*(commit conflict|concurrent writers|concurrent transaction).*"


def despite_conflicts(action: Callable[[], Result], *, patience: datetime.timedelta = PATIENCE) -> Result:
    """What `action` returns, called again after every commit conflict for as long as there is patience.

    Args:
        action: reads the newest version of a table and commits a change to it, or raises what Lance raises
            when that version has been changed meanwhile.
        patience: no attempt but the first begins after it.

    Raises:
        TableError: other writers came first every time.
    """
    attempts = Retrying(
        retry=retry_if_exception_message(match=_CONFLICT),
        stop=stop_after_delay(patience),
        wait=wait_random_exponential(multiplier=0.05, max=5),
        retry_error_callback=_give_up,
    )
    return attempts(action)


def on_newest(
    table: LanceTable, write: Callable[[], Result], *, patience: datetime.timedelta = PATIENCE
) -> Result:
    """As `despite_conflicts`, of the newest version of `table`.

    Args:
        table: brought to the newest version before every attempt, and in the end.
        write: makes one commit through any handle, or none and raises.
        patience: as for `despite_conflicts`.
    """

    def attempt() -> Result:
        to_newest(table)
        return write()

    result = despite_conflicts(attempt, patience=patience)
    to_newest(table)  # which another handle may have made
    return result


def to_newest(table: LanceTable) -> None:
    """Bring the handle to the newest version, whichever process made it, and have reads look for it, too.

    This is done after every write.
    """
    table.checkout_latest()  # type: ignore[no-untyped-call]  # LanceDB leaves it unannotated
    freshness.expire(table)


def _give_up(state: RetryCallState) -> Any:
    assert state.outcome is not None, "there was an attempt"
    error = state.outcome.exception()
    raise TableError(
        f"Others changed the same rows during each of {state.attempt_number} attempts to write. Nothing was "
        f"written by these; try again when there are fewer writers. In Lance's words: {error}"
    ) from error
