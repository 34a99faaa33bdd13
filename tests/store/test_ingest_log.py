"""What ingestions have put into a table, and which of several processes may go on."""

import concurrent.futures
import datetime

import lance
import lancedb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


def cleaned(table):
    table.to_lance().cleanup_old_versions(datetime.timedelta(0), delete_unverified=True)


def test_notes_add_up(table):
    held = claim(table, "job")
    assert held.state.pieces == {}
    commit(table, held, a=3)
    commit(table, held, a=None, b=2)
    held.require_held()
    assert claim(table, "job").state.pieces == {"a": PieceProgress("s", None), "b": PieceProgress("s", 2)}
    assert finished(table, "other") == {}


@settings(max_examples=15)
@given(data=st.data())
def test_every_history_is_remembered(tmp_path_factory, data):
    table = lancedb.connect(tmp_path_factory.mktemp("db")).create_table("rows", ROWS, storage_options=OPTIONS)
    held, expected, oldest = claim(table, "job"), {}, table.to_lance().latest_version
    versions = {}
    for step in range(data.draw(st.integers(1, 10))):
        table.checkout_latest()
        versions[table.version] = dict(expected)
        match data.draw(st.sampled_from(["commit", "add", "fold", "cleanup", "compact", "restore", "claim"])):
            case "commit":
                key, rows = data.draw(st.sampled_from("abc")), data.draw(st.sampled_from([step, None]))
                commit(table, held, **{key: rows})
                expected[key] = rows
            case "add":
                table.add(ROWS)
            case "fold":
                fold(table)
            case "cleanup":
                fold(table)
                cleaned(table)
                oldest = table.to_lance().latest_version
            case "compact":
                table.to_lance().optimize.compact_files()
            case "restore":
                version = data.draw(st.sampled_from([v for v in versions if v >= oldest] or [table.version]))
                expected = dict(versions.get(version, expected))
                table.restore(version)
            case "claim":
                held = claim(table, "job")
                assert {key: done.rows for key, done in held.state.pieces.items()} == expected
    assert finished(table) == expected


def test_versions_that_are_gone(table):
    held = claim(table, "job")
    commit(table, held, a=None)
    table.add(ROWS)
    cleaned(table)
    with pytest.raises(TableError, match=r"cleaned up before .* resume=False"):
        claim(table, "job")
    fold(table)  # other jobs go on
    with pytest.raises(TableError, match="cleaned up before"):
        claim(table, "job")
    assert claim(table, "job", restart=True).state.pieces == {}
    assert finished(table) == {}


def test_folding_where_nothing_was_ingested(table):
    fold(table)
    assert table.to_lance().latest_version == 1


def test_an_overwritten_table_has_nothing(table):
    commit(table, claim(table, "job"), a=None)
    lance.write_dataset(ROWS, table.uri, mode="overwrite")
    assert finished(table) == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"run": "x"}', '{"pieces": 3}'])
def test_damaged_metadata(table, text):
    table.to_lance().update_metadata({"rqmoe_store.ingested.job": text})
    with pytest.raises(TableError, match="damaged"):
        claim(table, "job")
