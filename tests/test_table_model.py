"""A table beside a dictionary: whatever is done to both, in whichever order, they hold the same."""

import dataclasses
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from costly_examples import number_of_examples
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from small_tables import source_table, tiny_codec

from rqmoe_store.errors import TableError
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, open_table

DIM, PARTITIONS, FIRST_ROWS = 8, 3, 12
POOL = np.random.default_rng(5).normal(size=(60, DIM)).astype(np.float32)
"""Vectors that rows may have."""
CODECS = [tiny_codec(POOL, "l2", PARTITIONS), tiny_codec(POOL, "l2", PARTITIONS, refine_bytes=6)]
"""Without and with refine codes."""
DECODED = [codec.decode(codec.encode(POOL)) for codec in CODECS]
CODES = [[code.tobytes() for code in codec.encode(POOL).codes] for codec in CODECS]
REFINE = [code.tobytes() for code in CODECS[1].encode(POOL).refine]
QUERY = POOL[0] + np.float32(0.1)


@dataclasses.dataclass(frozen=True)
class Row:
    """What a row is to hold."""

    text: str | None
    vector: int | None
    """Its place in POOL."""
    raw: bool = False

    def distance(self, decoded: np.ndarray) -> float:
        """From the query, as a search is to find it, given what all vectors decode to."""
        assert self.vector is not None
        vector_D = POOL[self.vector] if self.raw else decoded[self.vector]
        return float(np.square(QUERY - vector_D, dtype=np.float32).sum())


ids = st.integers(0, 30)
texts = st.one_of(st.none(), st.sampled_from(["one", "it's two", "3;", "-- four"]))
places = st.one_of(st.none(), st.integers(0, len(POOL) - 1))
some_rows = st.dictionaries(ids, st.tuples(texts, places), min_size=1, max_size=5)


def as_dicts(rows: dict[int, tuple[str | None, int | None]]) -> list[dict[str, Any]]:
    return [
        {"id": row, "lang": "en", "text": text, "vector": None if place is None else POOL[place]}
        for row, (text, place) in rows.items()
    ]


def among(rows: Iterable[int]) -> str:
    return f"id IN ({', '.join(map(str, rows))})"


@pytest.fixture(scope="module", autouse=True)
def template(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Databases to begin with, one of which is copied for every run."""
    TableBesideDictionary.templates = []
    for codec in CODECS:
        folder = tmp_path_factory.mktemp("template")
        docs = lancedb.connect(folder).create_table("docs", source_table(POOL[:FIRST_ROWS]))
        compress(docs, codec, "table", key="id", progress=False)
        TableBesideDictionary.templates.append(folder)


class TableBesideDictionary(RuleBasedStateMachine):
    templates: list[Path]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()

    @initialize(refined=st.booleans(), cached=st.booleans())
    def begin(self, refined: bool, cached: bool) -> None:
        """With a table that has refine codes or none, and with columns in memory or without."""
        self.refined, self.cache_columns = refined, ["id", "text"] if cached else None
        shutil.copytree(self.templates[refined], self.folder.name, dirs_exist_ok=True)
        self.handles = [self.opened(), self.opened()]
        self.rows = {row: Row(f"text {row}", row) for row in range(FIRST_ROWS)}
        self.shown = self.rows
        """What the first handle shows: an earlier state, if it is checked out."""
        self.states = {self.store.version: dict(self.rows)}

    @property
    def store(self) -> CompressedTable:
        return self.handles[0]

    def opened(self) -> CompressedTable:
        return open_table(lancedb.connect(self.folder.name), "table", cache_columns=self.cache_columns)

    def teardown(self) -> None:
        self.folder.cleanup()

    def done(self) -> None:
        """Take note of the state that the table is in now."""
        if self.store.checked_out is None:
            self.store.refresh()
            self.shown = self.rows
            self.states[self.store.version] = dict(self.rows)

    def writable(self, second: bool) -> CompressedTable:
        return self.handles[1 if second or self.store.checked_out is not None else 0]

    # Rows.

    @rule(rows=some_rows, encode=st.booleans(), second=st.booleans())
    def add(self, rows: Any, encode: bool, second: bool) -> None:
        rows = {row: values for row, values in rows.items() if row not in self.rows}
        assert self.writable(second).add(as_dicts(rows), encode=encode) == len(rows)
        self.rows |= {
            row: Row(text, place, raw=not encode and place is not None) for row, (text, place) in rows.items()
        }
        self.done()

    @rule(rows=some_rows, action=st.sampled_from(["drop", "null", "fill"]))
    def add_bad_vectors(self, rows: Any, action: Any) -> None:
        """Nulls are bad; to be filled they get the components of the first vector."""
        rows = {row: (text, None) for row, (text, _) in rows.items() if row not in self.rows}
        bad = [{**row, "vector": [float("nan")] * DIM} for row in as_dicts(rows)]
        if action == "fill":
            bad = [{**row, "vector": [*POOL[0].tolist(), 7.0]} for row in bad]
        left = 0 if action == "drop" else len(rows)
        assert self.writable(False).add(bad, on_bad_vectors=action) == left
        if action != "drop":
            place = 0 if action == "fill" else None
            self.rows |= {row: Row(text, place) for row, (text, _) in rows.items()}
        self.done()

    @rule(rows=some_rows, insert=st.booleans(), update=st.booleans(), second=st.booleans())
    def merge(self, rows: Any, insert: bool, update: bool, second: bool) -> None:
        merge = self.writable(second).merge_insert()
        merge = merge.when_not_matched_insert_all() if insert else merge
        merge = merge.when_matched_update_all() if update or not insert else merge
        result = merge.execute(as_dicts(rows))
        there = {row: Row(*rows[row]) for row in rows if row in self.rows and (update or not insert)}
        new = {row: Row(*rows[row]) for row in rows if row not in self.rows and insert}
        assert (result.num_updated_rows, result.num_inserted_rows) == (len(there), len(new))
        self.rows |= there | new
        self.done()

    @rule(rows=some_rows, vectors=st.booleans())
    def merge_some_columns(self, rows: Any, vectors: bool) -> None:
        names = ["id", "vector"] if vectors else ["id", "text"]
        data = [{name: row[name] for name in names} for row in as_dicts(rows)]
        self.writable(False).merge_insert("id").when_matched_update_all().execute(data)
        for row in rows.keys() & self.rows.keys():
            text, place = rows[row]
            old = self.rows[row]
            self.rows[row] = Row(old.text, place) if vectors else dataclasses.replace(old, text=text)
        self.done()

    @rule(rows=st.sets(ids, min_size=1, max_size=8), above=ids)
    def merge_deleting(self, rows: set[int], above: int) -> None:
        merge = self.writable(False).merge_insert("id").when_not_matched_by_source_delete(f"id > {above}")
        gone = {row for row in self.rows if row > above and row not in rows}
        result = merge.execute([{"id": row} for row in rows])
        assert result.num_deleted_rows == len(gone)
        for row in gone:
            del self.rows[row]
        self.done()

    @rule(rows=st.sets(ids, min_size=1, max_size=5), text=texts, place=places, which=st.integers(1, 3))
    def update(self, rows: set[int], text: str | None, place: int | None, which: int) -> None:
        values: dict[str, Any] = {"text": text} if which & 1 else {}
        if which & 2:
            values["vector"] = None if place is None else POOL[place]
        matching = rows & self.rows.keys()
        assert self.writable(False).update(among(rows), values).rows_updated == len(matching)
        for row in matching:
            changed = dataclasses.replace(self.rows[row], text=text) if which & 1 else self.rows[row]
            self.rows[row] = dataclasses.replace(changed, vector=place, raw=False) if which & 2 else changed
        self.done()

    @rule(rows=st.sets(ids, min_size=1, max_size=5))
    def update_by_expression(self, rows: set[int]) -> None:
        self.writable(False).update(among(rows), values_sql={"text": "text || '+'"})
        for row in rows & self.rows.keys():
            text = self.rows[row].text
            self.rows[row] = dataclasses.replace(self.rows[row], text=text and f"{text}+")
        self.done()

    @rule(rows=st.sets(ids, min_size=1, max_size=4), second=st.booleans())
    def delete(self, rows: set[int], second: bool) -> None:
        gone = rows & self.rows.keys()
        assert self.writable(second).delete(among(rows)) == len(gone)
        for row in gone:
            del self.rows[row]
        self.done()

    # The table as a whole.

    @rule()
    def optimize(self) -> None:
        self.writable(True).optimize(progress=False)
        self.rows = {row: dataclasses.replace(value, raw=False) for row, value in self.rows.items()}
        self.done()

    @rule(data=st.data())
    def checkout(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.states)))
        self.store.checkout(version)
        self.shown = self.states[version]

    @precondition(lambda self: self.store.checked_out is not None)
    @rule()
    def checkout_latest(self) -> None:
        with pytest.raises(TableError, match="is checked out"):
            self.store.add(as_dicts({100: ("no", 1)}))
        self.store.checkout_latest()
        self.done()

    @rule(data=st.data(), by_tag=st.booleans())
    def restore(self, data: st.DataObject, by_tag: bool) -> None:
        version = data.draw(st.sampled_from(sorted(self.states)))
        if by_tag:
            self.store.tags.create(f"tag{len(self.store.tags.list())}", version)
            self.store.restore(f"tag{len(self.store.tags.list()) - 1}")
        else:
            self.store.restore(version)
        self.rows = dict(self.states[version])
        self.done()

    @rule()
    def reopen(self) -> None:
        self.handles[1] = self.opened()

    # What is to hold.

    def codes_of(self, row: Row) -> tuple[bytes | None, bytes | None]:
        if row.raw or row.vector is None:
            return None, None
        return CODES[self.refined][row.vector], REFINE[row.vector] if self.refined else None

    @invariant()
    def rows_are_the_same(self) -> None:
        names = ["id", "text", "vector", "vector_code", *(["vector_refine"] if self.refined else [])]
        stored = self.store.table.search().select(names).limit(None).to_arrow()
        found = {
            row["id"]: (row["text"], row["vector_code"], row.get("vector_refine"), row["vector"] is not None)
            for row in stored.to_pylist()
        }
        wanted = {row: (value.text, *self.codes_of(value), value.raw) for row, value in self.shown.items()}
        assert found == wanted and stored.num_rows == len(wanted) == self.store.count_rows()

    @invariant()
    def searches_find_them(self) -> None:
        search = self.store.search(QUERY).nprobes(PARTITIONS).shortlist(100).limit(100)
        hits = search.select(["id", "text"]).to_list()
        wanted = {row: value for row, value in self.shown.items() if value.vector is not None}
        assert {hit["id"]: hit["text"] for hit in hits} == {row: value.text for row, value in wanted.items()}
        assert len(hits) == len(wanted)
        for hit in hits:
            distance = wanted[hit["id"]].distance(DECODED[self.refined])
            # The length of a refined vector is kept in two bytes.
            close = {"rtol": 1e-3, "atol": 1e-2} if self.refined else {"rtol": 1e-4, "atol": 1e-5}
            np.testing.assert_allclose(hit["_distance"], distance, **close)


TestTableBesideDictionary = pytest.mark.costly(TableBesideDictionary.TestCase)
TestTableBesideDictionary.settings = settings(
    max_examples=number_of_examples(60, part=10),
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
