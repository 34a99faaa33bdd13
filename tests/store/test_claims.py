"""Of several processes that ingest one source, the last to claim it goes on."""

import concurrent.futures

import pytest
from small_ingestions import OPTIONS, ROWS, commit, finished, fold

from rqmoe_store.errors import TableError
from rqmoe_store.store.ingest_log import PieceProgress, claim


@pytest.fixture
def table(db):
    return db.create_table("rows", ROWS, storage_options=OPTIONS)


def test_beginning_anew(table):
    first = claim(table, "job")
    commit(table, first, a=None)
    again = claim(table, "job", restart=True)
    assert again.state.pieces == {}
    commit(table, first, b=None)  # a process that was not stopped in time
    commit(table, again, c=1)
    assert finished(table) == {"c": 1}
    assert claim(table, "job", round=again.state.round).state.pieces == {"c": PieceProgress("s", 1)}
    assert claim(table, "job", round=again.state.round + 1).state.pieces == {}


def test_only_the_last_to_claim_may_go_on(table, db):
    first = claim(table, "job")
    first.require_held()
    commit(table, first, a=1)
    second = claim(db.open_table("rows"), "job")
    with pytest.raises(TableError, match="Another process"):
        first.require_held()
    commit(table, first, a=2)  # checked before the second one came
    with pytest.raises(TableError, match="Another process"):
        second.require_held()
    assert finished(table) == {"a": 2}


def test_other_jobs_and_other_writers_are_no_obstacle(table, db):
    held, other = claim(table, "job"), claim(table, "other")
    for rows in (1, 2):
        commit(table, other, x=rows)
        db.open_table("rows").add(ROWS)
        fold(db.open_table("rows"))
        commit(table, held, a=rows)
        held.require_held()
        other.require_held()
    table.restore(table.version - 1)
    with pytest.raises(TableError, match="restored"):
        held.require_held()


def test_claims_at_the_same_time(table, db):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: claim(db.open_table("rows"), "job"), range(8)))
    table.checkout_latest()

    def holds(held):
        try:
            held.require_held()
        except TableError:
            return False
        return True

    assert sum(map(holds, claims)) == 1


def test_a_check_comes_before_anything_is_written(table):
    commit(table, claim(table, "job", version_note="version 3"), a=1)
    before = table.to_lance().latest_version

    def check(ingested):
        assert (ingested.version_note, ingested.pieces) == ("version 3", {"a": PieceProgress("s", 1)})
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        claim(table, "job", check=check)
    assert table.to_lance().latest_version == before
