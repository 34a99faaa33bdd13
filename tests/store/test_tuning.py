"""The tuned setting in a table's metadata."""

import lance
import pytest

from rqmoe_store.errors import TableError
from rqmoe_store.store.databases import reopen
from rqmoe_store.store.metadata import KEY, TunedSearch
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress

SETTING = TunedSearch(nprobes=3, shortlist=40, limit=10, target_recall=0.9)


def kept(store) -> TunedSearch | None:
    return TunedSearch.read(reopen(store.table).to_lance().metadata, store.name)


def test_a_setting_stays_through_every_change(store, db, docs_table, vectors) -> None:
    assert kept(store) is None
    SETTING.write(store.table)
    store.add(docs_table(vectors[:3]))
    store.delete("id = 5")
    store.table.optimize()
    assert kept(store) == SETTING
    assert kept(CompressedTable.open(db, "store")) == SETTING
    assert store.schema.metadata == {b"owner": b"ann"}


def test_the_last_of_several_writers_wins(store, db) -> None:
    other = CompressedTable.open(db, "store")  # both stand at the version before any of the writes
    later = TunedSearch(nprobes=1, shortlist=10, limit=5, target_recall=1.0)
    SETTING.write(store.table)
    later.write(other.table)
    assert kept(store) == later
    SETTING.write(store.table)
    assert kept(store) == SETTING


def test_a_writer_that_comes_second_starts_again(store, monkeypatch) -> None:
    """Another setting is committed between opening the table and writing to it."""
    later = TunedSearch(nprobes=1, shortlist=10, limit=5, target_recall=1.0)
    update, calls = lance.LanceDataset.update_metadata, []

    def update_late(dataset: lance.LanceDataset, values: dict[str, str]) -> None:
        calls.append(dataset.version)
        if len(calls) == 1:
            update(reopen(store.table).to_lance(), {KEY: "another"})
        update(dataset, values)

    monkeypatch.setattr(lance.LanceDataset, "update_metadata", update_late)
    later.write(store.table)
    assert calls == [calls[0], calls[0] + 1]
    assert kept(store) == later


def test_a_table_that_cannot_be_written_is_an_error(store, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(lance.LanceDataset, "update_metadata", refuse)
    with pytest.raises(OSError, match="read-only"):
        SETTING.write(store.table)


def test_a_table_made_from_a_tuned_one_is_not_tuned(store, db, codec, vectors, vector_array) -> None:
    SETTING.write(store.table)
    tuned = reopen(store.table).to_arrow().drop_columns([*store.columns.names, "vector"])
    docs = db.create_table("again", tuned.append_column("vector", vector_array(vectors)))
    assert kept(compress(docs, codec, "new", progress=False)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "{}",
        '{"nprobes": 0, "shortlist": 40, "limit": 10, "target_recall": 0.9}',
        '{"nprobes": 3, "shortlist": "40", "limit": 10, "target_recall": 0.9}',
        '{"nprobes": 3, "shortlist": 40, "limit": 10, "target_recall": 0.9, "more": 1}',
    ],
)
def test_damage_is_reported(text) -> None:
    with pytest.raises(TableError, match=r"of table 'docs' is .* expected what tune"):
        TunedSearch.read({KEY: text}, "docs")
