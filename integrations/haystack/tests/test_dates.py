"""Texts that are dates, and the moments that they name."""

import datetime

import pytest
from haystack_integrations.document_stores.rqmoe._dates import instant_of
from hypothesis import given
from hypothesis import strategies as st

ZONES = st.none() | st.timedeltas(
    min_value=datetime.timedelta(hours=-23), max_value=datetime.timedelta(hours=23)
).map(datetime.timezone)


@given(moment=st.datetimes(timezones=ZONES), separator=st.sampled_from("T "))
def test_a_date_and_its_text_are_the_same(moment: datetime.datetime, separator: str) -> None:
    assert instant_of(moment.isoformat(separator)) == instant_of(moment)


@given(one=st.datetimes(timezones=ZONES), other=st.datetimes(timezones=ZONES))
def test_orders_as_python_does(one: datetime.datetime, other: datetime.datetime) -> None:
    first, second = instant_of(one), instant_of(other)
    assert first is not None and second is not None
    if (one.tzinfo is None) == (other.tzinfo is None):
        key = "local" if one.tzinfo is None else "utc"
        assert (first[key] < second[key]) == (one < other)
        assert (first[key] == second[key]) == (one == other)


@pytest.mark.parametrize(
    "value",
    ["", "2020", "2020-01", "20200101", "2020-W01-1", "2020-13-01", "2020-01-01x", "abcd-ef-gh", 2020, None],
)
def test_other_values_are_no_dates(value: object) -> None:
    assert instant_of(value) is None
