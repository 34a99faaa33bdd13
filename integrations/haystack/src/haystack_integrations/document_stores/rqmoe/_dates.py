"""ISO dates in metadata as numbers, which compare by their moment however the dates are written.

To Haystack, a date without a time zone equals one with a zone if their clocks show the same. So a date is
kept as the time on its clock (`local`) and, if it has a zone, as its moment (`utc`), both in microseconds
since 1970.
"""

import datetime
from typing import Any

import rqmoe_store as rqs

LOCAL, UTC = "local", "utc"
"""Names of the two numbers of a date."""

_START = datetime.datetime(1970, 1, 1)
_MICROSECOND = datetime.timedelta(microseconds=1)
_DATE_CHARACTERS = len("2000-01-01")

Instant = dict[str, int]


def instant_of(value: Any) -> Instant | None:
    """The moment of a date; None for other values. Dates are texts like 2000-01-01, 2000-01-01T12:00 or
    2000-01-01 12:00:00.5+02:00, and `date`s and `datetime`s, which are stored as such texts."""
    value = rqs.as_json_value(value)
    if not isinstance(value, str) or not _looks_like_date(value):
        return None
    try:
        return _instant(datetime.datetime.fromisoformat(value))
    except ValueError:
        return None


def _looks_like_date(text: str) -> bool:
    """Whether to parse a text: "20000101" and "2000-W01-1" are ISO dates, too, but seldom meant as such."""
    return (
        len(text) >= _DATE_CHARACTERS
        and text[4] == text[7] == "-"
        and (len(text) == _DATE_CHARACTERS or text[_DATE_CHARACTERS] in "Tt ")
    )


def _instant(moment: datetime.datetime) -> Instant:
    local = (moment.replace(tzinfo=None) - _START) // _MICROSECOND
    offset = moment.utcoffset()
    return {LOCAL: local} if offset is None else {LOCAL: local, UTC: local - offset // _MICROSECOND}
