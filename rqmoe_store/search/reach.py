"""How far a query looks, and who said so: the query itself, the table's tuning, or nobody."""

from typing import Literal, NamedTuple

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.store.tuning import TunedSearch

Origin = Literal["asked for", "tuned", "default"]

DEFAULT_NPROBES = 20
DEFAULT_SHORTLIST = 30
SHORTLIST_PER_ROW = 3
"""A shortlist not asked for is this many times limit + offset, and at least DEFAULT_SHORTLIST. In a tuned
table it is as tuned up to the limit it was tuned for, and beyond that the longer of the two."""


class Reach(NamedTuple):
    """How many partitions and rows a query looks at."""

    nprobes: int
    nprobes_from: Origin
    shortlist: int
    shortlist_from: Origin


def reach(
    nprobes: int | None, shortlist: int | None, *, page: int, least: int, tuned: TunedSearch | None = None
) -> Reach:
    """What a query uses.

    Args:
        nprobes, shortlist: what it asks for; None for nothing.
        page: limit + offset.
        least: rows that the shortlist must have: the page, times the refine factor.
        tuned: the setting of the table.

    Raises:
        InvalidInputError: a shortlist below `least`.
    """
    if shortlist is not None and shortlist < least:
        raise InvalidInputError(
            f"Got shortlist={shortlist}; expected at least {least}, limit + offset times the "
            "refine factor: only shortlisted rows can be returned. Raise it, or leave it out."
        )
    return Reach(*_nprobes(nprobes, tuned), *_shortlist(shortlist, page, least, tuned))


def _nprobes(asked: int | None, tuned: TunedSearch | None) -> tuple[int, Origin]:
    if asked is not None:
        return asked, "asked for"
    return (DEFAULT_NPROBES, "default") if tuned is None else (tuned.nprobes, "tuned")


def _shortlist(asked: int | None, page: int, least: int, tuned: TunedSearch | None) -> tuple[int, Origin]:
    if asked is not None:
        return asked, "asked for"
    if tuned is None:
        return max(SHORTLIST_PER_ROW * page, DEFAULT_SHORTLIST, least), "default"
    needed = least if page <= tuned.limit else max(SHORTLIST_PER_ROW * page, least)
    return (tuned.shortlist, "tuned") if needed <= tuned.shortlist else (needed, "default")
