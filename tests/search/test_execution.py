"""Stages of a query: whichever way rows are filtered, and wherever codes lie, results are the same."""

import numpy as np
import pytest
from costly_examples import costly_examples
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.search import execution
from rqmoe_store.search.request import Trace

WHERE = ["lang = 'de'", "id >= 20", "id < 250", "lang = 'en' AND id < 60", "id < 0", "text LIKE '%7%'"]


def answer(world, cache, queries, where, nprobes, limit, shortlist):
    search = world.store.use_cache(cache).search(queries).where(where).nprobes(nprobes).limit(limit)
    return search.shortlist(shortlist).with_row_id().to_arrow()


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@costly_examples(25, part=8)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 3),
    where=st.sampled_from(WHERE),
    nprobes=st.integers(1, 4),
    limit=st.integers(1, 40),
    more=st.integers(0, 60),
)
def test_every_way_to_filter_gives_the_same(worlds, metric, seed, count, where, nprobes, limit, more) -> None:
    world = worlds(metric, 4)
    queries = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    options = queries, where, nprobes, limit, limit + more
    memory, disk = answer(world, "memory", *options), answer(world, "disk", *options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "_MANY_ROWS", 0)
        world.store._source.codes.resident.filtered.clear()
        tried = answer(world, "memory", *options)
    assert memory.equals(disk)
    assert tried.equals(memory)


def test_candidates_come_in_the_order_of_their_estimates(world) -> None:
    search = world.store.use_cache("memory").search(world.vectors[:9]).limit(5).shortlist(40)
    state = search._reader.state()
    run = execution.Execution(search._request(state), state, world.store.columns, Trace())
    in_order, in_any = run.candidates(), run.candidates(ordered=False)
    for found, same in zip(in_order.each(), in_any.each(), strict=True):
        assert len(found.rows) == 40
        assert (np.diff(found.estimates_H) >= 0).all()
        assert set(found.rows.row_ids_N.tolist()) == set(same.rows.row_ids_N.tolist())


def stages(search) -> list[str]:
    return [line.strip().split(":")[0] for line in search.analyze_plan().splitlines()]


def test_a_filter_that_most_rows_match_is_tried_on_few(world, monkeypatch) -> None:
    monkeypatch.setattr(execution, "_MANY_ROWS", 0)
    world.store.use_cache("memory")
    query = world.vectors[3]
    for where, wanted in [("id >= 1", ["Filter", "Scan"]), ("id = 77", ["Scan", "Filter", "Filter", "Scan"])]:
        search = world.store.search(query).where(where).limit(5).shortlist(20)
        assert stages(search) == ["Take", "Rerank", *wanted]
    # What was found out about the second is remembered; the first never became known.
    assert stages(world.store.search(query).where("id = 77").limit(5)) == ["Take", "Rerank", "Scan", "Filter"]


def test_plans(world) -> None:
    search = world.store.use_cache("memory").search(world.vectors[:2]).limit(7).nprobes(2).select(["text"])
    assert search.explain_plan() == (
        "Take: query_index, text, _distance\n"
        "  Rerank: l2 distance to decoded rows, keep 7\n"
        "    Scan: look-up tables, 2 of 4 partitions (asked for), memory, keep 30 (default)"
    )
    filtered = search.where("id > 3").explain_plan().splitlines()
    assert filtered[-1].strip() == "Filter: id > 3, before the scan"
    later = search.where("id > 5", prefilter=False).explain_plan().splitlines()
    assert later[1].strip() == "Filter: id > 3 AND id > 5, of the results"


def test_measured_plans_count_rows(world) -> None:
    lines = world.store.search(world.vectors[0]).limit(7).analyze_plan().splitlines()
    assert [line.split("rows=")[1].split()[0] for line in lines] == ["7", "30", "30"]
    assert all("time=" in line and line.endswith("ms") for line in lines)
    wide = world.store.search(world.vectors[0]).nprobes(1).limit(300).shortlist(300).analyze_plan()
    assert wide.count("Scan: ") == 2  # one partition held fewer than 300 rows
    assert "4 of 4 partitions (fewer held too few)" in wide.splitlines()[-2]
