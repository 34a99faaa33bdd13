"""ISO dates in metadata: what moment they name, as numbers that the store compares whatever way they are
written.

A date without a time zone is at the same moment as one with a zone when their clocks show the same, as
Haystack has it. So a date is kept as what its clock shows (`local`) and, when it has a zone, as its moment
(`utc`), both in microseconds since 1970.
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
    """The date that `value` is, or None: a text like 2000-01-01, 2000-01-01T12:00 or 2000-01-01
    12:00:00.5+02:00, or a `date` or `datetime`, which such a text is stored for."""
    value = rqs.as_json_value(value)
    if not isinstance(value, str) or not _looks_like_date(value):
        return None
    try:
        return _instant(datetime.datetime.fromisoformat(value))
    except ValueError:
        return None


def _looks_like_date(text: str) -> bool:
    """Whether it is worth parsing: "20000101" and "2000-W01-1" are dates, too, but seldom meant to be."""
    return (
        len(text) >= _DATE_CHARACTERS
        and text[4] == text[7] == "-"
        and (len(text) == _DATE_CHARACTERS or text[_DATE_CHARACTERS] in "Tt ")
    )


def _instant(moment: datetime.datetime) -> Instant:
    local = (moment.replace(tzinfo=None) - _START) // _MICROSECOND
    offset = moment.utcoffset()
    return {LOCAL: local} if offset is None else {LOCAL: local, UTC: local - offset // _MICROSECOND}
