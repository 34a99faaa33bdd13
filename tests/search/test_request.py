"""How far a query looks, stage by stage, and who said so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.request import RankingStage, SearchParameters, VectorOptions
from rqmoe_store.store.metadata import TableMetadata, TunedSearch
from rqmoe_store.store.table_codec import TableCodec

CODECS = TableCodec.of(
    TableMetadata(vector_column="vector", dim=4, keep_vectors="none", config=CodecConfig()), []
)
TUNED = TunedSearch(nprobes=7, shortlist=80, limit=10, target_recall=0.95)


def parameters_of(nprobes, shortlist, refine_factor, tuned) -> SearchParameters:
    options = VectorOptions(nprobes=nprobes, shortlist=shortlist, refine_factor=refine_factor)
    return options.parameters(CODECS, tuned)


def of_page(nprobes, shortlist, page, tuned=None, refine_factor=None) -> tuple:
    """What the last stage of a page uses."""
    reach = parameters_of(nprobes, shortlist, refine_factor, tuned)
    last = reach.stages(page)[-1]
    return reach.nprobes, reach.nprobes_from, last.shortlist, last.shortlist_from


def test_what_the_query_asks_for_comes_first() -> None:
    assert of_page(3, 40, 10, TUNED) == (3, "asked for", 40, "asked for")
    assert of_page(3, None, 10, TUNED) == (3, "asked for", 80, "tuned")
    assert of_page(None, 40, 10, TUNED) == (7, "tuned", 40, "asked for")
    assert of_page(None, 40, 10) == (20, "default", 40, "asked for")


@pytest.mark.parametrize(
    ("page", "factor", "rows"),
    [
        *((1, 1, 30), (10, 1, 30), (11, 1, 45), (25, 1, 75), (50, 1, 150), (100, 1, 300), (1000, 1, 3000)),
        *((10, 8, 80), (1, 8, 80), (25, 2, 75)),
    ],
)
def test_the_default_shortlist_grows_with_the_stages(page, factor, rows) -> None:
    assert of_page(None, None, page, refine_factor=factor) == (20, "default", rows, "default")


@given(rows=st.integers(1, 10**6), factor=st.none() | st.integers(1, 9))
def test_no_page_decodes_much_more_than_it_needs(rows, factor) -> None:
    stages = parameters_of(None, None, factor, None).stages(rows)
    needed = max(30, 3 * rows, (factor or 1) * rows)
    assert needed <= stages[-1].shortlist <= max(2 * needed, 10 * (factor or 3))
    assert len(stages) == 1 or stages[-2].end < rows <= stages[-1].end


@pytest.mark.parametrize(
    ("page", "factor", "rows", "origin"),
    [
        *((1, 1, 80, "tuned"), (10, 1, 80, "tuned"), (25, 1, 80, "tuned"), (26, 1, 150, "default")),
        *((50, 1, 150, "default"), (10, 8, 80, "tuned"), (10, 9, 90, "default")),
    ],
)
def test_a_tuned_shortlist_is_one_for_its_limit(page, factor, rows, origin) -> None:
    assert of_page(None, None, page, TUNED, factor) == (7, "tuned", rows, origin)


@pytest.mark.parametrize("limit", [3, 10, 12, 100])
def test_a_short_tuned_shortlist_serves_its_limit(limit) -> None:
    short = TunedSearch(nprobes=7, shortlist=limit + 2, limit=limit, target_recall=0.5)
    assert of_page(None, None, limit, short)[2:] == (limit + 2, "tuned")
    rows, origin = of_page(None, None, limit + 1, short)[2:]
    assert rows >= 3 * (limit + 1) and origin == "default"


def test_a_shortlist_below_what_is_returned_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least 15"):
        of_page(None, 14, 15, TUNED)
    with pytest.raises(InvalidInputError, match="at least 30"):
        of_page(None, 29, 15, TUNED, refine_factor=2)


reaches = st.builds(
    parameters_of,
    st.none(),
    st.none() | st.integers(400, 2000),
    st.none() | st.integers(1, 4),
    st.none()
    | st.builds(
        TunedSearch,
        nprobes=st.just(3),
        shortlist=st.integers(1, 500),
        limit=st.integers(1, 120),
        target_recall=st.just(0.9),
    ),
)


@given(reach=reaches, rows=st.integers(1, 100))
def test_stages_do_not_depend_on_the_page(reach, rows) -> None:
    every = reach.stages(100)
    stages = reach.stages(rows)
    assert every[: len(stages)] == stages
    assert [stage.end for stage in every] == sorted({stage.end for stage in every})
    shortlists = [stage.shortlist for stage in every]
    assert shortlists == sorted(shortlists)
    assert all(stage.end <= (stage.refined or stage.end) <= stage.shortlist for stage in every)
    more = reach.one_more(stages)
    if len(stages) < len(every):
        assert more == every[: len(stages) + 1]


def test_a_shortlist_asked_for_ends_the_ranking() -> None:
    reach = parameters_of(None, 40, 2, None)
    stages = reach.stages(20)
    assert stages == tuple(RankingStage(end, 40, "asked for", 2 * end) for end in (10, 15, 20))
    assert reach.one_more(stages) is None
