"""How far a query looks, and who said so."""

import pytest

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.reach import Reach, reach
from rqmoe_store.store.tuning import TunedSearch

TUNED = TunedSearch(nprobes=7, shortlist=80, limit=10, target_recall=0.95)


def of_page(nprobes, shortlist, page, tuned=None, refine_factor=1) -> Reach:
    return reach(nprobes, shortlist, page=page, least=page * refine_factor, tuned=tuned)


def test_what_the_query_asks_for_comes_first() -> None:
    assert of_page(3, 40, 10, TUNED) == (3, "asked for", 40, "asked for")
    assert of_page(3, None, 10, TUNED) == (3, "asked for", 80, "tuned")
    assert of_page(None, 40, 10, TUNED) == (7, "tuned", 40, "asked for")
    assert of_page(None, 40, 10) == (20, "default", 40, "asked for")


@pytest.mark.parametrize(
    ("page", "factor", "rows"), [(1, 1, 30), (10, 1, 30), (11, 1, 33), (1000, 1, 3000), (10, 8, 80)]
)
def test_the_default_shortlist_grows_with_the_limit(page, factor, rows) -> None:
    assert of_page(None, None, page, refine_factor=factor) == (20, "default", rows, "default")


@pytest.mark.parametrize(
    ("page", "factor", "rows", "origin"),
    [
        *((1, 1, 80, "tuned"), (10, 1, 80, "tuned"), (26, 1, 80, "tuned"), (27, 1, 81, "default")),
        *((50, 1, 150, "default"), (10, 8, 80, "tuned"), (10, 9, 90, "default")),
    ],
)
def test_a_tuned_shortlist_is_one_for_its_limit(page, factor, rows, origin) -> None:
    assert of_page(None, None, page, TUNED, factor) == (7, "tuned", rows, origin)


def test_a_short_tuned_shortlist_serves_its_limit() -> None:
    short = TunedSearch(nprobes=7, shortlist=12, limit=10, target_recall=0.5)
    assert of_page(None, None, 10, short)[2:] == (12, "tuned")
    assert of_page(None, None, 11, short)[2:] == (33, "default")


def test_a_shortlist_below_what_is_returned_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least 15"):
        of_page(None, 14, 15, TUNED)
    with pytest.raises(InvalidInputError, match="at least 30"):
        of_page(None, 29, 15, TUNED, refine_factor=2)
