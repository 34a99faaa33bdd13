"""Bad rows in a table of their own, remembered like the good ones."""

import datetime
import json

import pytest

from rqmoe_store.errors import TableError
from rqmoe_store.ingestion.quarantine import BadRow, Quarantine, as_json
from rqmoe_store.store.ingest_log import PieceProgress

PIECES = {"key": PieceProgress("state", 7)}


def bad(position):
    return BadRow(source="a", position=position, reason="no vector", row="{}")


def rows(db):
    return sorted(db.open_table("docs_quarantine").to_arrow()["position"].to_pylist())


def test_the_table_is_made_with_the_first_bad_row(db):
    quarantine = Quarantine(db, "docs", "job", 0)
    quarantine.add([], PIECES)
    assert (db.list_tables().tables, quarantine.pieces) == ([], {})
    quarantine.add([bad(3), bad(5)], PIECES)
    quarantine.add([bad(8)], {"key": PieceProgress("state", None)})
    assert rows(db) == [3, 5, 8]
    assert Quarantine(db, "docs", "job", 0).pieces == {"key": PieceProgress("state", None)}
    assert Quarantine(db, "docs", "other", 0).pieces == {}
    assert Quarantine(db, "docs", "job", 1).pieces == {}  # begun anew


def test_what_is_remembered_survives_a_clean_up(db):
    quarantine = Quarantine(db, "docs", "job", 0)
    quarantine.add([bad(3)], PIECES)
    quarantine.fold_notes()
    db.open_table("docs_quarantine").to_lance().cleanup_old_versions(datetime.timedelta(0))
    assert Quarantine(db, "docs", "job", 0).pieces == PIECES


def test_of_two_processes_the_last_goes_on(db):
    first = Quarantine(db, "docs", "job", 0)
    first.add([bad(3)], PIECES)
    Quarantine(db, "docs", "job", 0)
    with pytest.raises(TableError, match="Another process"):
        first.add([bad(5)], PIECES)
    assert rows(db) == [3]


def test_nothing_is_remembered_of_rows_without_a_job(db):
    Quarantine(db, "docs", None, 0).add([bad(3)], PIECES)
    quarantine = Quarantine(db, "docs", None, 0)
    assert quarantine.pieces == {}
    quarantine.add([bad(3)], PIECES)
    assert rows(db) == [3, 3]


def test_a_table_of_the_same_name(db):
    db.create_table("docs_quarantine", [{"id": 1}])
    with pytest.raises(TableError, match="on_bad_rows='error'"):
        Quarantine(db, "docs", "job", 0)


def test_rows_as_json():
    row = {
        "vector": [1.5, float("nan"), float("-inf"), None],
        "nested": {"when": datetime.date(2020, 1, 2), "bytes": b"\x00\xff"},
        "text": "ä\n",
    }
    assert json.loads(as_json(row)) == {
        "vector": [1.5, "nan", "-inf", None],
        "nested": {"when": "2020-01-02", "bytes": "AP8="},
        "text": "ä\n",
    }
