"""Refine codes: wherever codes are written, read, replaced or dropped, theirs are, too."""

import copy
import datetime
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from brute_force import plain_distances
from lancedb.query import MatchQuery
from small_tables import source_table, tiny_codec

import rqmoe_store as rqs
from rqmoe_store import lifecycle
from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import Metric, TrainConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store import registry
from rqmoe_store.store.appends import commit_rows, write_rows
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, create_table, open_table

DIM, ROWS, CODE_BYTES, REFINE_BYTES = 16, 120, 4, 8
random = np.random.default_rng(3)
VECTORS = (random.normal(size=(ROWS, 6)) @ random.normal(size=(6, DIM))).astype(np.float32)
TRAINING = TrainConfig(epochs=0, progress=False)
NOW = datetime.timedelta(0)


@pytest.fixture(scope="module")
def plain() -> Codec:
    """Without refine codes."""
    return tiny_codec(VECTORS, "l2", 3)


@pytest.fixture(scope="module")
def refined() -> Codec:
    """With refine codes."""
    return tiny_codec(VECTORS, "l2", 2, REFINE_BYTES)


@pytest.fixture(scope="module")
def narrower() -> Codec:
    """With refine codes of another size."""
    return tiny_codec(VECTORS, "l2", 2, REFINE_BYTES - 2)


@pytest.fixture
def db(tmp_path: Path) -> lancedb.DBConnection:
    return lancedb.connect(tmp_path / "db")


@pytest.fixture
def docs(db: lancedb.DBConnection) -> Any:
    """Rows of which every tenth has no vector."""
    whole = source_table(VECTORS)
    rows = whole.to_pylist()
    for row in rows[::10]:
        row["vector"] = None
    docs = db.create_table("docs", schema=whole.schema)
    docs.add(pa.Table.from_pylist(rows, schema=whole.schema))
    return docs


@pytest.fixture
def store(docs: Any, refined: Codec) -> CompressedTable:
    return compress(docs, refined, "store", key="id", progress=False)


@pytest.fixture
def plain_store(docs: Any, plain: Codec) -> CompressedTable:
    return compress(docs, plain, "store", key="id", progress=False)


def give(store: CompressedTable, codec: Codec) -> None:
    """Make a codec the newest of a table; its rows stay as they are."""
    assert lifecycle.add_generation(store.handle, codec, codec.config, first=False)


def with_vector(rows: Any = range(ROWS)) -> list[int]:
    return [row for row in rows if row % 10]


def stored(store: CompressedTable) -> dict[int, tuple[bytes, bytes | None] | None]:
    """Code and refine code of every row, by id; None where it has no code."""
    rows = store.table.search().limit(None).to_list()
    return {
        row["id"]: None if row["vector_code"] is None else (row["vector_code"], row.get("vector_refine"))
        for row in rows
    }


def coded(codec: Codec, vectors: Mapping[int, np.ndarray]) -> dict[int, tuple[bytes, bytes | None]]:
    """What `stored` is to return for rows with these vectors."""
    codes = codec.encode(np.stack(list(vectors.values())))
    refine = [None] * len(vectors) if codes.refine is None else [code.tobytes() for code in codes.refine]
    return dict(zip(vectors, zip([code.tobytes() for code in codes.codes], refine, strict=True), strict=True))


def decoded(codec: Codec, rows: Any) -> dict[int, np.ndarray]:
    """What the codec makes of rows that have the vectors of these places."""
    rows = list(rows)
    return dict(zip(rows, codec.decode(codec.encode(VECTORS[rows])), strict=True))


def found(store: CompressedTable, query: np.ndarray, **settings: Any) -> list[tuple[int, float]]:
    search = store.search(query).limit(2 * ROWS).nprobes(100).shortlist(2 * ROWS).select(["id"])
    return [(row["id"], row["_distance"]) for row in search.to_list()]


def assert_found(store: CompressedTable, wanted: dict[int, np.ndarray], metric: Metric = "l2") -> None:
    """Searches find these vectors and no others, at their distances, and the same wherever codes are."""
    codes_alone = len(store) * (CODE_BYTES + 8)  # bytes, with the ids of the rows
    for query in VECTORS[:2] + np.float32(0.01):
        distances = plain_distances(metric, query, np.stack(list(wanted.values())))
        first = found(store.use_cache("memory", codes_alone), query)
        got = dict(first)
        assert got.keys() == wanted.keys() and list(got.values()) == sorted(got.values())
        np.testing.assert_allclose([got[row] for row in wanted], distances, rtol=1e-3, atol=0.05)
        assert found(store.use_cache("memory"), query) == first
        assert found(store.use_cache("disk"), query) == first
    store.use_cache("memory")


def selected(store: CompressedTable) -> dict[int, np.ndarray]:
    rows = store.search().select(["id", "vector"]).limit(2 * ROWS).to_list()
    return {row["id"]: np.float32(row["vector"]) for row in rows if row["vector"] is not None}


def assert_selected(store: CompressedTable, wanted: dict[int, np.ndarray]) -> None:
    got = selected(store)
    assert got.keys() == wanted.keys()
    np.testing.assert_allclose(
        np.stack([got[row] for row in wanted]), np.stack(list(wanted.values())), atol=1e-5
    )


# Compressing.


@pytest.mark.parametrize("keep", ["none", "float16", "float32"])
def test_a_new_table(docs: Any, refined: Codec, keep: Any) -> None:
    store = compress(docs, refined, "store", keep_vectors=keep, progress=False)
    rows = with_vector()
    assert stored(store) == {
        **dict.fromkeys(range(0, ROWS, 10)),
        **coded(refined, dict(zip(rows, VECTORS[rows], strict=True))),
    }
    assert_found(store, decoded(refined, rows))
    partitions = store.table.to_arrow()["vector_partition"].drop_null().to_pylist()
    assert partitions == sorted(partitions)
    kept = dict(zip(rows, VECTORS[rows], strict=True)) if keep != "none" else decoded(refined, rows)
    got = selected(store)
    np.testing.assert_allclose([got[row] for row in rows], [kept[row] for row in rows], rtol=2e-3, atol=2e-3)
    assert store.schema.names == ["id", "lang", "text"] + (["vector"] if keep != "none" else [])
    assert "8 refine bytes" in repr(store)


def test_they_are_in_files_of_their_own(store: CompressedTable, db: lancedb.DBConnection) -> None:
    """Scans of codes never read them: without their file, everything else goes on."""
    dataset = lance.dataset(store.table.uri)
    ids = {field.name(): field.id() for field in dataset.lance_schema.fields()}
    (fragment,) = dataset.get_fragments()
    files = {tuple(file.fields): Path(dataset.uri) / "data" / file.path for file in fragment.data_files()}
    (file,) = [path for fields, path in files.items() if ids["vector_refine"] in fields]
    assert (ids["vector_refine"],) in files
    file.unlink()
    again = open_table(db, "store").use_cache("disk")
    assert len(again.search(VECTORS[1]).limit(5).rerank("decoded").to_list()) == 5
    assert len(again.search(VECTORS[1]).limit(5).rerank("none").to_list()) == 5
    with pytest.raises(TableError, match="not all of its files"):
        again.search(VECTORS[1]).limit(5).to_list()


def test_in_place(docs: Any, refined: Codec) -> None:
    store = compress(docs, refined, in_place=True, progress=False)
    rows = with_vector()
    assert stored(store) == {
        **dict.fromkeys(range(0, ROWS, 10)),
        **coded(refined, dict(zip(rows, VECTORS[rows], strict=True))),
    }
    assert_found(store, decoded(refined, rows))
    assert store.verify(progress=False).ok


def test_a_column_of_the_users_own_of_that_name(
    db: lancedb.DBConnection, plain: Codec, refined: Codec
) -> None:
    rows = source_table(VECTORS).append_column("vector_refine", pa.array([b"mine"] * ROWS))
    docs = db.create_table("docs", rows)
    for arguments in ({"into": "store"}, {"in_place": True}):
        with pytest.raises(TableError, match="already has column 'vector_refine'"):
            compress(docs, refined, progress=False, **arguments)
    with pytest.raises(TableError, match="already has column 'vector_refine'"):
        create_table(db, "new", rows, config=refined.config)
    store = compress(docs, plain, "store", progress=False)
    before = store.version, store.table.to_arrow().schema, registry_rows(db)
    with pytest.raises(TableError, match="already has column 'vector_refine'"):
        store.retrain(TRAINING, vectors=VECTORS, config=refined.config, progress=False)
    with pytest.raises(TableError, match="already has column 'vector_refine'"):
        give(store, refined)
    assert (store.version, store.table.to_arrow().schema, registry_rows(db)) == before
    store.optimize(cleanup_older_than=NOW, progress=False)
    assert store.table.to_arrow()["vector_refine"].to_pylist() == [b"mine"] * ROWS


def registry_rows(db: lancedb.DBConnection) -> int:
    rows = registry.open_or_create_registry(db).count_rows()
    return int(rows)


# Writing.


def new_rows(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"id": 1000 + place, "lang": "en", "text": "new", "vector": VECTORS[place]}
        for place in range(first, first + count)
    ]


@pytest.mark.parametrize("as_arrow", [False, True])
def test_adding(store: CompressedTable, refined: Codec, as_arrow: bool) -> None:
    rows = [*new_rows(0, 20), {"id": 2000, "lang": "en", "text": "without", "vector": None}]
    schema = source_table(VECTORS).schema
    store.add(pa.Table.from_pylist(rows, schema=schema) if as_arrow else rows)
    added = {row: code for row, code in stored(store).items() if row >= 1000}
    assert added == {2000: None, **coded(refined, {row["id"]: row["vector"] for row in rows[:20]})}
    store.add(new_rows(20, 5), encode=False)
    assert stored(store)[1020] is None
    raw = {1000 + place: VECTORS[place] for place in range(20, 25)}
    again = {1000 + place: vector for place, vector in decoded(refined, range(20)).items()}
    assert_found(store, decoded(refined, with_vector()) | again | raw)
    store.optimize(progress=False)
    assert {row: code for row, code in stored(store).items() if row in raw} == coded(refined, raw)


def test_merging(store: CompressedTable, refined: Codec) -> None:
    changed = {3: VECTORS[40], 20: VECTORS[41], 500: VECTORS[42]}
    rows = [{"id": row, "text": "merged", "vector": vector} for row, vector in changed.items()]
    merge = store.merge_insert().when_matched_update_all().when_not_matched_insert_all()
    merge.when_not_matched_by_source_delete("id = 7").execute(
        [*rows, {"id": 4, "text": "none", "vector": None}]
    )
    got = stored(store)
    assert {row: got[row] for row in changed} == coded(refined, changed)
    assert got[4] is None and 7 not in got
    (row,) = store.table.search().where("id = 4").to_list()
    assert row["vector_refine"] is None
    store.merge_insert().when_matched_update_all().execute([{"id": row, "text": "later"} for row in changed])
    assert {row: code for row, code in stored(store).items() if row in changed} == coded(refined, changed)
    assert store.verify(progress=False).ok


def test_updating_and_deleting(store: CompressedTable, refined: Codec) -> None:
    store.update("id IN (5, 20)", {"vector": VECTORS[50]})
    store.update("id = 6", {"vector": None})
    store.update("id = 8", {"text": "other"})
    assert store.delete("id = 9") == 1
    got = stored(store)
    assert {row: got[row] for row in (5, 20)} == coded(refined, {5: VECTORS[50], 20: VECTORS[50]})
    assert got[8] == coded(refined, {8: VECTORS[8]})[8]
    assert got[6] is None and 9 not in got
    (row,) = store.table.search().where("id = 6").to_list()
    assert row["vector_refine"] is None
    rows = [row for row in with_vector() if row not in (5, 6, 9)]
    wanted = decoded(refined, rows) | dict.fromkeys((5, 20), decoded(refined, [50])[50])
    assert_found(store, wanted)
    assert_selected(store, wanted)
    with pytest.raises(InvalidInputError, match="'vector_refine', which is written along with the vector"):
        store.update("id = 1", {"vector_refine": b"x" * REFINE_BYTES})


# From one codec to the next.


@pytest.mark.parametrize("encode", [True, "background"])
def test_a_table_gets_them(plain_store: CompressedTable, plain: Codec, refined: Codec, encode: Any) -> None:
    store, rows = plain_store, with_vector()
    other = open_table(lancedb.connect(store.snapshots._place.database), "store")
    other.table.checkout(other.version)
    first = store.version
    give(store, refined)
    assert store.table.schema.field("vector_refine").type == pa.binary(REFINE_BYTES)
    assert [code and code[1] for code in stored(store).values()] == [None] * ROWS
    for handle in (store, other):
        assert_found(handle, decoded(plain, rows))
    # Rows of both generations are in one order, by distances to what their codes stand for.
    other.add(new_rows(0, 20))
    other.merge_insert("id").when_matched_update_all().execute([{"id": 3, "vector": VECTORS[3]}])
    mixed = decoded(plain, rows) | {1000 + row: vector for row, vector in decoded(refined, range(20)).items()}
    mixed |= decoded(refined, [3])
    for handle in (store, other):
        assert_found(handle, mixed)
        assert_selected(handle, mixed)
    assert store.verify(progress=False).ok
    if encode == "background":
        store.encode_in_background().wait()
        store.refresh()
    else:
        store.optimize(progress=False)
    assert all(code is None or code[1] is not None for code in stored(store).values())
    assert store.verify(progress=False).ok and store.stats().refine_codes_in == "memory"
    # The new codes of codes are not those of the vectors; rows that had a new code keep it.
    after = stored(store)
    added = {1000 + row: VECTORS[row] for row in range(20)} | {3: VECTORS[3]}
    assert {row: after[row] for row in added} == coded(refined, added)
    np.testing.assert_allclose(selected(store)[1003], decoded(refined, [3])[3], atol=1e-5)
    store.checkout(first)
    assert "vector_refine" not in store.columns.names
    assert_found(store, decoded(plain, rows))
    store.checkout_latest()
    store.restore(first)
    assert_found(store, decoded(plain, rows))
    assert "vector_refine" not in store.table.schema.names and store.verify(progress=False).ok


def test_retraining(plain_store: CompressedTable, refined: Codec) -> None:
    store = plain_store
    codec = store.retrain(TRAINING, vectors=VECTORS, config=refined.config, progress=False)
    assert codec.config.refine_bytes == store.columns.refine_bytes == REFINE_BYTES
    assert all(code is None or code[1] is not None for code in stored(store).values())
    before = {row: code for row, code in stored(store).items() if code}
    again = store.retrain(TrainConfig(epochs=0, seed=1, progress=False), vectors=VECTORS, progress=False)
    assert again.fingerprint != codec.fingerprint and store.columns.refine_bytes == REFINE_BYTES
    assert all(code != before[row] for row, code in stored(store).items() if code)
    assert store.verify(progress=False).ok
    assert_found(store, selected(store))


def test_a_table_loses_them(store: CompressedTable, plain: Codec, refined: Codec, narrower: Codec) -> None:
    rows, first = with_vector(), store.version
    give(store, plain)
    store.add(new_rows(0, 10))
    assert stored(store)[1000] == coded(plain, {1000: VECTORS[0]})[1000]
    mixed = decoded(refined, rows) | {1000 + row: vector for row, vector in decoded(plain, range(10)).items()}
    assert_found(store, mixed)
    store.delete("id >= 1000")
    with pytest.raises(InvalidInputError, match="of 6 bytes; the table has a column for 8"):
        give(store, narrower)  # rows still have theirs
    store.optimize(progress=False)
    assert "vector_refine" not in store.table.schema.names and store.columns.refine_bytes == 0
    assert "vector_refine" not in store.schema.names and store.verify(progress=False).ok
    assert store.search(VECTORS[0]).to_arrow().schema.names == ["id", "lang", "text", "_distance"]
    without = selected(store)
    assert_found(store, without)
    assert_found(open_table(lancedb.connect(store.snapshots._place.database), "store"), without)
    give(store, narrower)
    store.optimize(progress=False)
    assert store.columns.refine_bytes == REFINE_BYTES - 2 and store.verify(progress=False).ok
    store.checkout(first)
    assert_found(store, decoded(refined, rows))
    store.checkout_latest()
    store.restore(first)
    assert_found(store, decoded(refined, rows))
    assert store.verify(progress=False).ok


def test_another_size_is_refused_before_anything_is_done(
    store: CompressedTable, db: lancedb.DBConnection, narrower: Codec
) -> None:
    before = store.version, registry_rows(db)
    with pytest.raises(InvalidInputError, match="Retrain with refine_bytes=0, call optimize"):
        store.retrain(TrainConfig(epochs=10**6), vectors=VECTORS, config=narrower.config)
    with pytest.raises(InvalidInputError, match="Retrain with refine_bytes=0, call optimize"):
        give(store, narrower)
    assert (store.version, registry_rows(db)) == before


def test_where_they_are_read_from(store: CompressedTable) -> None:
    codes_alone = len(store) * (CODE_BYTES + 8)
    places = []
    for cache in (("memory", codes_alone), ("memory", None), ("disk", None), ("memory", codes_alone)):
        search = store.use_cache(*cache).search(VECTORS[1])
        assert search.to_list()
        (plan,) = [line for line in search.explain_plan().splitlines() if "refine codes" in line]
        stats = store.stats()
        assert f"read from {stats.refine_codes_in}" in str(stats)
        assert f"rows with refine codes, {stats.refine_codes_in}" in plan
        assert stats.refine_disk_bytes > REFINE_BYTES * len(with_vector())
        places.append(stats.refine_codes_in)
        if len(places) == 1:
            assert 0 < stats.resident_bytes < codes_alone + 100
    # Once they are in memory, searches use them.
    assert places == ["disk", "memory", "disk", "memory"]


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_queries_that_find_nothing(store: CompressedTable, cache: Any) -> None:
    """Alone, and beside others that find something."""
    store.use_cache(cache)
    assert store.search(VECTORS[1]).where("id < 0").to_list() == []
    assert store.search(VECTORS[1]).where("id < 0").select(["id", "vector"]).to_list() == []
    far = store.search(np.stack([VECTORS[1], VECTORS[1] + 1e6])).distance_range(None, 1000.0).limit(5)
    assert {row["query_index"] for row in far.to_list()} == {0}


def test_only_the_shortlist_is_read_from_disk(store: CompressedTable) -> None:
    """Whatever is wrong with the refine codes of other rows."""
    vector = VECTORS[1]
    store.use_cache("disk")
    first = store.search(vector).limit(3).shortlist(10).nprobes(100)
    near = [row["id"] for row in store.search(vector).limit(10).shortlist(10).nprobes(100).to_list()]
    before = first.to_list()
    store.table.update(where=f"id NOT IN ({', '.join(map(str, near))})", values={"vector_refine": None})
    store.refresh()
    assert first.to_list() == before
    with pytest.raises(TableError, match="rows without the refine code of 8 bytes"):
        store.search(vector).limit(11).shortlist(11).nprobes(100).to_list()


# At the same time.


def meanwhile(first: list[dict[str, Any]], action: Any, second: list[dict[str, Any]]) -> Iterator[list[Any]]:
    """Rows in two parts, and something that happens in between."""
    yield first
    action()
    yield second


def test_a_column_that_comes_while_rows_are_encoded(
    plain_store: CompressedTable, db: lancedb.DBConnection, plain: Codec, refined: Codec
) -> None:
    store, other = plain_store, open_table(db, "store")
    store.add(meanwhile(new_rows(0, 10), lambda: give(other, refined), new_rows(10, 10)))
    rows = {1000 + row: VECTORS[row] for row in range(20)}
    got = stored(store)
    assert {row: got[row] for row in rows} == coded(plain, rows)
    wanted = {1000 + row: vector for row, vector in decoded(plain, range(20)).items()}
    for handle in (store, other):
        assert_found(handle, decoded(plain, with_vector()) | wanted)
    store.optimize(progress=False)
    assert store.verify(progress=False).ok and store.columns.refine_bytes == REFINE_BYTES


def test_files_that_were_written_before_the_column_came(plain_store: CompressedTable, refined: Codec) -> None:
    store = plain_store
    (rows,) = store.handle.encoder(store.refresh()).encoded(new_rows(0, 10))
    written = write_rows(store.table, rows.to_reader())
    give(store, refined)
    commit_rows(store.table, written, {})
    assert [stored(store)[1000 + row][1] for row in range(10)] == [None] * 10  # type: ignore[index]
    assert store.verify(progress=False).ok


@pytest.mark.parametrize("merge", [False, True])
def test_a_column_that_goes_while_rows_are_encoded(
    store: CompressedTable, db: lancedb.DBConnection, plain: Codec, merge: bool
) -> None:
    other = open_table(db, "store")

    def lose() -> None:
        give(other, plain)
        other.optimize(progress=False)

    rows = meanwhile(new_rows(0, 10), lose, new_rows(10, 10))
    with pytest.raises(TableError, match=r"lost their column, while rows were encoded\. Nothing was written"):
        if merge:
            store.merge_insert("id").when_not_matched_insert_all().execute(rows)
        else:
            store.add(rows)
    assert len(store) == ROWS
    assert store.add(new_rows(0, 10)) == 10
    assert store.verify(progress=False).ok


@pytest.mark.parametrize("comes", [True, False])
def test_others_write_while_the_column_comes_or_goes(
    plain_store: CompressedTable,
    db: lancedb.DBConnection,
    plain: Codec,
    refined: Codec,
    comes: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The change of the schema meets a conflict, and is made again upon what the others wrote."""
    store, other = plain_store, open_table(db, "store")
    if not comes:
        give(store, refined)
        give(store, plain)
    commit, calls = lifecycle.commit_schema, [0]

    def commit_after_others(*arguments: Any, **settings: Any) -> None:
        calls[0] += 1
        if calls[0] == 1:
            other.add(new_rows(0, 5))
            other.table.to_lance().update_schema_metadata({"owner": "ann"})
        commit(*arguments, **settings)

    monkeypatch.setattr(lifecycle, "commit_schema", commit_after_others)
    if comes:
        give(store, refined)
    else:
        store.optimize(progress=False)
    assert calls == [2] and len(store) == ROWS + 5
    assert store.columns.refine_bytes == (REFINE_BYTES if comes else 0)
    assert store.table.schema.metadata[b"owner"] == b"ann"
    assert_found(store, selected(store))
    assert store.verify(progress=False).ok


def test_a_handle_knows_the_columns_once_it_is_open(
    store: CompressedTable, db: lancedb.DBConnection, plain: Codec
) -> None:
    """Also if another handle of the process, whose versions it shares, has not looked since they changed."""
    other = open_table(
        lancedb.connect(db.uri, read_consistency_interval=datetime.timedelta(hours=1)), "store"
    )
    give(other, plain)
    other.optimize(progress=False)
    assert store.columns.refine_bytes == REFINE_BYTES
    assert open_table(db, "store").columns.refine_bytes == 0


# Whoever reads.


def test_other_queries_and_handles(store: CompressedTable, refined: Codec) -> None:
    vector_of = decoded(refined, with_vector())
    store.create_fts_index("text")
    queries = [
        store.search("text 7", query_type="fts"),
        store.search(query_type="hybrid").vector(VECTORS[7]).text("text 7").nprobes(100),
        store.search(VECTORS[7]).rerank("decoded"),
        store.search(VECTORS[7]).diversify(0.9),
        store.search().where("id = 7"),
    ]
    for query in queries:
        rows = query.select(["id", "vector"]).limit(5).to_list()
        assert rows
        for row in rows:
            if row["vector"] is not None:
                np.testing.assert_allclose(row["vector"], vector_of[row["id"]], atol=1e-5)
    near = store.search(VECTORS[7]).limit(1).to_list()
    for again in (copy.copy(store), pickle.loads(pickle.dumps(store))):  # noqa: S301  # made here
        assert again.search(VECTORS[7]).limit(1).to_list() == near
    assert store.head(3).schema.names == ["id", "lang", "text"]
    lances = store.table.search(MatchQuery("text", "text"), query_type="fts").with_row_id(True)
    ranked = lances.rerank(rqs.DecodedReranker(store, VECTORS[7])).limit(5).to_list()
    distances = plain_distances("l2", VECTORS[7], np.stack([vector_of[row["id"]] for row in ranked]))
    np.testing.assert_allclose([-row["_relevance_score"] for row in ranked], distances, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_tuning(store: CompressedTable, cache: Any) -> None:
    report = store.use_cache(cache).tune(target_recall=0.9, limit=5, sample=20, progress=False)
    assert report.recall >= 0.9
    assert len(store.search(VECTORS[1]).limit(5).to_list()) == 5


def test_health_and_statistics_count_them(store: CompressedTable, plain: Codec, refined: Codec) -> None:
    store.add(new_rows(0, 40))
    errors = np.square(refined.decode(refined.encode(VECTORS[:40])) - VECTORS[:40]).sum(axis=1)
    health, stats = store.health(), store.stats()
    assert health.added_mse == pytest.approx(errors.mean(), rel=1e-3)
    assert health.trained_mse == stats.mse_estimate == refined.report.whole_mse < plain.report.whole_mse / 4
    assert stats.relative_mse == pytest.approx(refined.report.whole_mse / refined.report.variance)
    assert stats.code_disk_bytes - stats.refine_disk_bytes >= (ROWS + 40) * CODE_BYTES
