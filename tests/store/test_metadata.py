"""Metadata that is not what it was is noticed before it is used; the tuned setting is kept there."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import NamedTuple

import lance
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import TableError
from rqmoe_store.store import health
from rqmoe_store.store.databases import reopen
from rqmoe_store.store.ingest_log import (
    JobState,
    PieceProgress,
    as_metadata,
    as_property,
    folded_state,
    note_in,
)
from rqmoe_store.store.metadata import (
    KEY,
    LARGEST_COUNT,
    GenerationMetadata,
    TableMetadata,
    TunedSearch,
    as_sum,
    json_object,
    readable_text,
    require_types,
)
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress


class Part(NamedTuple):
    name: str
    rows: int | None


@dataclasses.dataclass(frozen=True)
class Whole:
    name: str
    count: int
    share: float
    parts: Mapping[str, Part]
    anything: object = None


GOOD = Whole("x", 3, 0.5, {"a": Part("p", 7), "b": Part("q", None)}, anything=[1])


def test_what_fits_is_passed_on() -> None:
    assert require_types(GOOD) is GOOD
    assert require_types(dataclasses.replace(GOOD, share=1, count=0, parts={})).share == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"name": 3},
        {"name": None},
        {"count": True},
        {"count": 1.0},
        {"count": -1},
        {"count": 2**63},
        {"count": "3"},
        {"share": "0.5"},
        {"share": float("nan")},
        {"share": 10**400},
        {"share": float("inf")},
        {"share": -0.5},
        {"share": {}},
        {"parts": {"a": Part("p", 7), "b": Part("q", "7")}},
        {"parts": {"a": Part(None, 7)}},
        {"parts": {"a": Part("p", -7)}},
        {"parts": {"a": Part("p", False)}},
    ],
)
def test_what_does_not_fit_is_named(changes: dict) -> None:
    with pytest.raises(ValueError, match="is "):
        require_types(dataclasses.replace(GOOD, **changes))


@given(
    value=st.recursive(st.none() | st.integers() | st.text(), st.lists)
    | st.dictionaries(st.text(), st.text())
)
def test_objects_alone_are_objects(value: object) -> None:
    if isinstance(value, dict):
        assert json_object(json.dumps(value)) == value
        return
    with pytest.raises(ValueError, match="not an object"):
        json_object(json.dumps(value))


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", "[" * 10**5, '{"a":' * 10**5, "9" * 5000])
def test_text_that_is_no_json(text: str) -> None:
    with pytest.raises(ValueError):
        json_object(text)


COUNTS = st.integers(-3, 3) | st.integers() | st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63), 10**30])

NUMBERS = st.floats() | st.sampled_from([2.0**63, 1e308, -0.0])

TEXTS = st.text() | st.sampled_from(["", "\ud800", "\0", "x" * 10_000, "\U0001f600"])

PIECES = st.dictionaries(TEXTS, st.builds(PieceProgress, TEXTS, st.none() | COUNTS), max_size=3)


@dataclasses.dataclass
class Commit:
    """What is read of a commit, or of a version, whose text was written."""

    transaction_properties: Mapping[str, str] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


@given(parts=st.lists(st.tuples(COUNTS, COUNTS, NUMBERS), min_size=1, max_size=4))
def test_sums_of_any_numbers_can_be_read_again(parts: list[tuple[int, int, float]]) -> None:
    sums = health.DriftSums(fingerprint="f")
    for rows, sampled, squared_error in parts:
        part = health.DriftSums(fingerprint="f", rows=rows, sampled=sampled, squared_error=squared_error)
        sums = sums.plus(part)
    assert 0 <= sums.squared_error < math.inf and 0 <= sums.rows <= LARGEST_COUNT
    for text in sums.properties.values():
        assert health._parsed(text) == sums


@given(text=TEXTS, run=TEXTS, round=COUNTS, at=COUNTS, pieces=PIECES)
def test_notes_of_ingestions_are_read_as_they_were_written_or_not_written(
    text: str, run: str, round: int, at: int, pieces: dict[str, PieceProgress]
) -> None:
    state = JobState(run=run, round=round, version_note=text, folded_at=at, pieces=pieces)
    numbers = [round, *(done.rows for done in pieces.values() if done.rows is not None)]
    try:
        note = note_in(Commit(as_property(text, state, pieces)), "docs")  # type: ignore[arg-type]
    except TableError as error:
        assert "Nothing was written" in str(error)
        assert not all(0 <= number < 2**63 for number in numbers)
        return
    assert note is not None and (note.job, note.run, note.round, note.pieces) == (text, run, round, pieces)
    if 0 <= at < 2**63:
        assert folded_state(Commit(metadata=as_metadata("job", state)), "job", "docs") == state  # type: ignore[arg-type]
    else:
        with pytest.raises(TableError, match="Nothing was written"):
            as_metadata("job", state)


@given(
    column=TEXTS,
    dim=COUNTS,
    keep=TEXTS,
    marks=st.lists(st.builds(GenerationMetadata, TEXTS, COUNTS | st.integers(1, 2**31 - 1)), max_size=3),
)
def test_marks_are_read_as_they_were_written_or_not_written(
    column: str, dim: int, keep: str, marks: list[GenerationMetadata]
) -> None:
    written = TableMetadata(
        vector_column=column, dim=dim, keep_vectors=keep, config=CodecConfig(), generations=tuple(marks)
    )
    try:
        metadata = written.write(None)
    except TableError as error:
        assert "Nothing was written" in str(error)
        return
    assert TableMetadata.read(pa.schema([], metadata=metadata), "docs") == written


@given(nprobes=COUNTS, shortlist=COUNTS, limit=COUNTS | st.integers(1), recall=NUMBERS | st.floats(0.1, 1))
def test_search_settings_are_read_as_they_were_written_or_not_written(
    nprobes: int, shortlist: int, limit: int, recall: float
) -> None:
    setting = TunedSearch(nprobes=nprobes, shortlist=shortlist, limit=limit, target_recall=recall)
    try:
        text = readable_text(setting, json.dumps(dataclasses.asdict(setting)), TunedSearch._parsed)
    except TableError:
        assert (
            not (min(nprobes, shortlist, limit) > 0 and 0 < recall <= 1)
            or max(nprobes, shortlist, limit) > 2**62
        )
        return
    assert TunedSearch.read({KEY: text}, "docs") == setting


@given(value=NUMBERS)
def test_sums_stop_at_the_largest_number(value: float) -> None:
    assert 0 <= as_sum(value) < math.inf
    assert as_sum(value) == value or not 0 <= value < math.inf


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
