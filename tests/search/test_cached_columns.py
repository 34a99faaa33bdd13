"""Columns in memory give the results that the table gives, whatever is done to it."""

import asyncio
import copy
import datetime
import decimal
import pickle
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from costly_examples import costly_examples
from hypothesis import example, given
from hypothesis import strategies as st
from small_tables import source_table, tiny_codec

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search import cached_columns, columns
from rqmoe_store.search import resident as residents
from rqmoe_store.search import source as sources
from rqmoe_store.search.cached_columns import CachedColumns
from rqmoe_store.search.columns import ROW_ID
from rqmoe_store.store.statistics import TableStats
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, open_table, open_table_async

DIM, PARTITIONS, ROWS = 8, 3, 60
VECTORS = np.random.default_rng(8).normal(size=(ROWS + 40, DIM)).astype(np.float32)
CODEC = tiny_codec(VECTORS, "l2", PARTITIONS)
DAY = datetime.date(2020, 2, 28)
START = datetime.datetime(2020, 2, 28, 23, 59, tzinfo=datetime.UTC)

KINDS = {
    "id": (pa.field("id", pa.int64(), nullable=False, metadata={"unit": "row"}), lambda n: n),
    "small": (pa.int8(), lambda n: n % 100),
    "half": (pa.float16(), lambda n: np.float16(n / 4)),
    "flag": (pa.bool_(), lambda n: n % 3 == 0),
    "price": (pa.decimal128(12, 2), lambda n: decimal.Decimal(n) / 4),
    "wide": (pa.decimal256(50, 1), lambda n: decimal.Decimal(n) / 2),
    "at": (pa.timestamp("us", "UTC"), lambda n: START + datetime.timedelta(minutes=n)),
    "day": (pa.date32(), lambda n: DAY + datetime.timedelta(days=n)),
    "took": (pa.duration("s"), lambda n: datetime.timedelta(seconds=n)),
    "two words": (pa.string(), lambda n: f"text {n} it's ü" * (n % 3)),
    "LONG": (pa.large_string(), lambda n: f"text {n}"),
    "data": (pa.binary(), lambda n: bytes([n % 256]) * (n % 4)),
    "hash": (pa.binary(3), lambda n: f"{n:03}".encode()[:3]),
}
"""Columns of every kind that can be cached, with values."""

OTHERS = {
    "tags": (pa.list_(pa.string()), lambda n: [f"tag {n}"]),
    "meta": (pa.struct([("n", pa.int64())]), lambda n: {"n": n}),
}


def rows_of(numbers: list[int], *, vectors: bool = True) -> pa.Table:
    """Rows with these ids; every third value is null, where there may be nulls."""
    fields, arrays = [], []
    for place, (name, (kind, value_of)) in enumerate({**KINDS, **OTHERS}.items()):
        field = kind if isinstance(kind, pa.Field) else pa.field(name, kind)
        values = [None if field.nullable and (n + place) % 3 == 1 else value_of(n) for n in numbers]
        fields.append(field)
        arrays.append(pa.array(values, field.type))
    lists = [VECTORS[n % len(VECTORS)].tolist() if vectors else None for n in numbers]
    fields.append(pa.field("vector", pa.list_(pa.float32(), DIM)))
    return pa.table([*arrays, pa.array(lists, fields[-1].type)], schema=pa.schema(fields))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    docs = lancedb.connect(folder).create_table("docs", rows_of(list(range(ROWS))))
    compress(docs, CODEC, "small", key="id", progress=False)
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "db")
    return tmp_path / "db"


def opened(folder: Path, names: list[str] | None = None, **options: Any) -> CompressedTable:
    return open_table(lancedb.connect(folder), "small", cache_columns=names, **options)


def uncached(folder: Path) -> CompressedTable:
    """A handle that reads everything from the table."""
    return opened(folder, cache="disk")


def never(*_: object) -> pa.Table:
    raise AssertionError("rows were taken from the table")


def found(store: CompressedTable, names: list[str] | None, **options: Any) -> pa.Table:
    queries = VECTORS[:3] + np.float32(0.1) if options.get("batch") else VECTORS[4]
    search = store.search(queries).nprobes(2).limit(options.get("limit", 7)).offset(options.get("offset", 0))
    search = search.with_row_id(options.get("row_id", False)).where(options.get("where"))
    return search.select(names).to_arrow()


def assert_equal(table: pa.Table, expected: pa.Table) -> None:
    assert table.schema.equals(expected.schema, check_metadata=True)
    assert table.to_pylist() == expected.to_pylist()
    table.validate(full=True)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch": True, "row_id": True},
    {"offset": 5, "limit": 30},
    {"where": "id % 2 = 0"},
    {"where": "id < 0"},
]


def assert_same_results(store: CompressedTable, plain: CompressedTable, names: list[str]) -> None:
    """With the columns named taken from memory alone."""
    for options in OPTIONS:
        with pytest.MonkeyPatch.context() as patched:
            expected = found(plain, names, **options)
            patched.setattr(columns, "take_existing_rows", never)
            assert_equal(found(store, names, **options), expected)
    for mixed in ([*names, "tags"], None):
        assert_equal(found(store, mixed), found(plain, mixed))


def test_values_of_every_type(folder: Path) -> None:
    store, plain = opened(folder, list(KINDS)), uncached(folder)
    assert_same_results(store, plain, list(KINDS))
    for names in (["LONG"], ["hash", "id"], ["_distance"], ["_rowid", "flag", "_distance"]):
        assert_same_results(store, plain, names)
    renamed = {"key": "id", "words": "two words"}
    assert_equal(found(store, renamed), found(plain, renamed))
    computed = {"twice": "2 * id", "id": "id"}
    assert_equal(found(store, computed), found(plain, computed))
    assert store.search(VECTORS[4]).select(["id"]).limit(2).to_list() == (
        plain.search(VECTORS[4]).select(["id"]).limit(2).to_list()
    )
    assert (
        store.search(VECTORS[4])
        .select(["id"])
        .to_pandas()
        .equals(plain.search(VECTORS[4]).select(["id"]).to_pandas())
    )


CHANGES = {
    "add": lambda table, n: table.add(rows_of([100 + n, 101 + n])),
    "add raw": lambda table, n: table.add(rows_of([200 + n]), encode=False),
    "add without a vector": lambda table, n: table.add(rows_of([300 + n], vectors=False)),
    "delete": lambda table, n: table.delete(f"id % 7 = {n % 7}"),
    "update": lambda table, n: table.update(f"id % 5 = {n % 5}", {"two words": f"new {n}", "flag": None}),
    "update by another": lambda table, n: table.table.update(f"id % 4 = {n % 4}", {"LONG": f"other {n}"}),
    "merge": lambda table, n: (
        # The version that "restore" goes back to may be older than the key.
        table.merge_insert(None if table.key else "id")
        .when_matched_update_all()
        .when_not_matched_insert_all()
        .execute(rows_of([n, n + 1, 400 + n]))
    ),
    "merge some": lambda table, n: (
        table.merge_insert("id").when_matched_update_all().execute([{"id": n, "LONG": "merged"}])
    ),
    "optimize": lambda table, n: table.optimize(progress=False),
    "add a column": lambda table, n: table.add_columns({f"more{n}_{table.version}": "id + 1"}),
    "drop and add": lambda table, n: (
        "LONG" in table.schema.names and table.drop_columns(["LONG"]),
        table.add_columns({"LONG": f"'{n}'"}),
    ),
    "swap": lambda table, n: (
        table.alter_columns({"path": "LONG", "rename": "spare"}),
        table.alter_columns({"path": "two words", "rename": "LONG"}),
        table.alter_columns({"path": "spare", "rename": "two words"}),
    ),
    "retype": lambda table, n: table.alter_columns({"path": "small", "data_type": pa.int16()}),
    "metadata": lambda table, n: (
        table.refresh(),
        table.table.to_lance().update_field_metadata({"LONG": {"unit": str(n)}}),
    ),
    "index": lambda table, n: table.create_scalar_index("id", replace=True),
    "restore": lambda table, n: table.restore(table.list_versions()[0]["version"]),
}
steps = st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 40)), min_size=1, max_size=6)


@costly_examples(60, part=4)
@given(steps=steps, small=st.booleans(), other=st.booleans())
@example(steps=[("restore", 0), ("merge", 0)], small=False, other=False)
def test_results_stay_those_of_the_table(template, steps, small, other) -> None:
    names = ["id", "two words", "LONG", "flag", "small"]
    with tempfile.TemporaryDirectory() as copied, pytest.MonkeyPatch.context() as patched:
        if small:
            patched.setattr(cached_columns, "_PAGE_ROWS", 7)
            patched.setattr(cached_columns, "_SMALL_ROWS", 10)
            patched.setattr(cached_columns, "_SMALL_SHARE", 0)
        folder = Path(copied) / "db"
        shutil.copytree(template, folder)
        store, plain = opened(folder, names), uncached(folder)
        writer = opened(folder) if other else store
        assert_same_results(store, plain, names)
        for change, number in steps:
            CHANGES[change](writer, number)
            assert_same_results(store, plain, names)
        first = store.list_versions()[0]["version"]
        for each in (store, plain):
            each.checkout(first)
        assert_same_results(store, plain, names)
        for each in (store, plain):
            each.checkout_latest()
        assert_same_results(store, plain, names)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_results_after_every_change(folder: Path, change: Any) -> None:
    names = ["id", "two words", "LONG", "flag", "small"]
    store, plain = opened(folder, names), uncached(folder)
    assert_equal(found(store, names), found(plain, names))  # so that columns are in memory before they change
    for number in (3, 5):
        change(store, number)
        assert_same_results(store, plain, names)


def test_rewritten_columns(folder: Path) -> None:
    """Lance does not list rows of which others replaced a column in place."""
    store, plain = opened(folder, ["id", "LONG"]), uncached(folder)
    before = found(store, ["id", "LONG"])
    dataset = store.table.to_lance()
    fragment, modified = dataset.get_fragments()[0].update_columns(
        pa.table({"id": before["id"], "LONG": pa.array(["new"] * len(before), pa.large_string())}), "id", "id"
    )
    operation = lance.LanceOperation.Update(
        updated_fragments=[fragment], fields_modified=modified, update_mode="rewrite_columns"
    )
    lance.LanceDataset.commit(dataset, operation, read_version=dataset.version)
    assert_same_results(store, plain, ["id", "LONG"])
    assert set(found(store, ["LONG"])["LONG"].to_pylist()) == {"new"}


def test_only_what_changed_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, plain = opened(folder, ["id", "LONG"]), uncached(folder)
    assert_same_results(store, plain, ["id", "LONG"])
    monkeypatch.setattr(CachedColumns, "load", never)
    store.update("id = 4", {"LONG": "new"})
    store.add(rows_of([500, 501]))
    store.delete("id = 5")
    assert_same_results(store, plain, ["id", "LONG"])


@costly_examples(60, part=10)
@given(
    updates=st.lists(st.lists(st.integers(0, 30), unique=True, max_size=8), max_size=4),
    page_rows=st.integers(1, 12),
    page_bytes=st.integers(1, 500),
    batch_rows=st.integers(1, 12),
    wanted=st.lists(st.integers(0, 40), max_size=20),
)
def test_rows_by_id(template, updates, page_rows, page_bytes, batch_rows, wanted) -> None:
    """Any rows in any order, from pages of any size, where rows moved in the table or not."""
    with tempfile.TemporaryDirectory() as copied, pytest.MonkeyPatch.context() as patched:
        patched.setattr(cached_columns, "_PAGE_ROWS", page_rows)
        patched.setattr(cached_columns, "_PAGE_BYTES", page_bytes)
        patched.setattr("rqmoe_store.search.loading._BATCH_ROWS", batch_rows)
        shutil.copytree(template, Path(copied) / "db")
        store = opened(Path(copied) / "db")
        for number, rows in enumerate(updates):
            if rows:
                store.table.update(f"id IN ({', '.join(map(str, rows))})", {"LONG": f"new {number}"})
        snapshot = store.handle.snapshots.current()
        stored = snapshot.dataset.to_table(columns=["LONG", "id"], with_row_id=True).to_pylist()
        values = {row[ROW_ID]: (row["LONG"], row["id"]) for row in stored}
        ids = np.array([*wanted, *values], np.uint64)
        for cached in (
            CachedColumns.load(snapshot, ["id", "LONG"], 10**6),
            CachedColumns.load(snapshot, ["LONG", "id"], 10**6).updated(
                snapshot, list(snapshot.dataset.to_batches(with_row_id=True, batch_size=5))
            ),
        ):
            rows, exists = cached.take(ids, ["LONG", "id"])
            assert exists.tolist() == [row_id in values for row_id in ids.tolist()]
            found = zip(rows["LONG"].to_pylist(), rows["id"].to_pylist(), strict=True)
            assert list(found) == [values[row_id] for row_id in ids[exists].tolist()]
            assert list(rows) == ["LONG", "id"]


def test_a_table_whose_row_ids_are_addresses(tmp_path: Path) -> None:
    """Those of its second file are beyond 32 bits."""
    docs = lancedb.connect(tmp_path).create_table("small", rows_of(list(range(30))))
    docs.add(rows_of(list(range(30, ROWS))))
    compress(docs, CODEC, in_place=True, progress=False)
    store, plain = opened(tmp_path, ["id", "LONG"]), uncached(tmp_path)
    assert not store.table.to_lance().has_stable_row_ids
    for change in ("add", "delete", "update", "optimize"):
        CHANGES[change](store, 3)
        assert_same_results(store, plain, ["id", "LONG"])


WRONG: list[tuple[Any, str]] = [
    ("id", r"Got cache_columns='id'; expected a list of column names"),
    ([], r"Got cache_columns=\[\]; expected at least one"),
    (["id", 3], r"Got cache_columns=\['id', 3\]"),
    ({"id": "id"}, "Got cache_columns="),
    (7, "Got cache_columns=7"),
    (["id", "id"], "Got column 'id' twice in cache_columns"),
    (["id", "nothing"], "Got unknown column 'nothing' in cache_columns; available are id, small"),
    (["_distance"], "Got unknown column '_distance' in cache_columns"),
    (["vector"], "Got column 'vector' .* in cache_columns; expected columns of numbers"),
    (["vector_code"], "Got column 'vector_code' .* in cache_columns"),
    (["tags"], "Got column 'tags' .*list"),
    (["meta"], "Got column 'meta' .*struct"),
    (["meta.n"], "Got unknown column 'meta.n'"),
]


@pytest.mark.parametrize(("names", "message"), WRONG)
def test_wrong_columns(folder: Path, names: Any, message: str) -> None:
    store = opened(folder)
    for call in (lambda: opened(folder, names), lambda: store.use_cache(cache_columns=names)):
        with pytest.raises(InvalidInputError, match=message):
            call()
    assert store._source.cache == sources.CacheSetting()


@pytest.mark.parametrize(
    "field",
    [
        pa.field("n", pa.dictionary(pa.int8(), pa.string())),
        pa.field("n", pa.list_(pa.int64())),
        pa.field("n", pa.list_(pa.float32(), 4)),
        pa.field("n", pa.map_(pa.string(), pa.int64())),
        pa.field("n", pa.json_()),
        pa.field("n", pa.large_binary(), metadata={"lance-encoding:blob": "true"}),
    ],
    ids=str,
)
def test_types_that_are_not_cached(field: pa.Field) -> None:
    schema = pa.schema([("id", pa.int64()), field])
    assert cached_columns.cacheable(["id", "n", "gone"], schema) == ["id"]
    with pytest.raises(InvalidInputError, match=r"Got column 'n' .* here id\. Leave it out"):
        cached_columns.require_cacheable(["id", "n"], schema, hidden=[])


def test_columns_with_codes_on_disk_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"Got cache_columns=.* with cache='disk'"):
        opened(folder, ["id"], cache="disk")


def test_a_column_that_others_added(folder: Path) -> None:
    store = opened(folder)
    found(store, ["id"])
    lancedb.connect(folder).open_table("small").add_columns({"new": "id + 1"})
    assert_same_results(store.use_cache(cache_columns=["new"]), uncached(folder), ["new"])


def test_a_column_that_is_dropped(folder: Path) -> None:
    store, plain = opened(folder, ["id", "LONG"]), uncached(folder)
    assert_same_results(store, plain, ["id", "LONG"])
    store.drop_columns(["LONG"])
    with pytest.raises(InvalidInputError, match="Got unknown column 'LONG' in select"):
        found(store, ["LONG"])
    assert_same_results(store, plain, ["id"])
    assert store.stats().cached_columns == ("id",)
    store.checkout(1)
    plain.checkout(1)
    assert_same_results(store, plain, ["id", "LONG"])


def test_budgets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = residents.bytes_needed(ROWS, CODEC.config.code_bytes)
    names, loads, load = ["id", "LONG"], [], CachedColumns.load
    expected = found(uncached(folder), names)

    def counted(*arguments: Any) -> CachedColumns | None:
        loads.append(arguments)
        return load(*arguments)

    def stats(budget: int) -> TableStats:
        loads.clear()
        store = opened(folder, names, memory_budget=budget)
        for _ in range(3):
            assert_equal(found(store, names), expected)
        assert len(loads) == (budget >= codes)  # what did not fit is not tried again
        return store.stats()

    monkeypatch.setattr(CachedColumns, "load", counted)
    needed = stats(codes + 10**6).cached_column_bytes
    assert ROWS * (8 + 8 + 4) < needed < 5_000
    for budget, held in [
        (codes - 1, False),
        (codes, False),
        (codes + needed - 1, False),
        (codes + needed, True),
    ]:
        held_bytes = stats(budget).cached_column_bytes
        assert held_bytes == (needed if held else 0)
        assert stats(budget).cached_columns == (("id", "LONG") if held else ())


def test_columns_that_outgrow_the_budget(folder: Path) -> None:
    budget = residents.bytes_needed(ROWS, CODEC.config.code_bytes) + 6_000
    store, plain = opened(folder, ["id", "LONG"], memory_budget=budget), uncached(folder)
    assert_same_results(store, plain, ["id", "LONG"])
    store.update("true", {"LONG": "longer" * 100})
    assert_equal(found(store, ["id", "LONG"]), found(plain, ["id", "LONG"]))
    assert store.stats().cached_columns == ()
    store.delete("id > 5")
    assert_same_results(store, plain, ["id", "LONG"])


def test_handles_share_columns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other, plain = opened(folder, ["id"]), opened(folder), uncached(folder)
    assert_same_results(store, plain, ["id"])
    assert_same_results(other.use_cache(cache_columns=["LONG"]), plain, ["id", "LONG"])
    assert_same_results(store, plain, ["id", "LONG"])
    assert store.stats().cached_columns == ("id", "LONG")
    assert opened(folder).stats() == store.stats()
    monkeypatch.setattr(columns, "take_existing_rows", never)
    for without in (opened(folder), store.use_cache()):
        with pytest.raises(AssertionError, match="rows were taken"):
            found(without, ["id"])


def test_copies_and_pickles_have_the_columns(folder: Path) -> None:
    store = opened(folder, ["id"])
    for again in (copy.copy(store), pickle.loads(pickle.dumps(store))):  # noqa: S301
        assert again._source.cache.columns == ("id",)
        assert_same_results(again, uncached(folder), ["id"])


def test_plans_say_where_columns_are(folder: Path) -> None:
    store = opened(folder, ["id", "LONG"])
    for names, detail in [
        (["LONG", "id"], "LONG, id, _distance; memory"),
        (["_distance"], "_distance; memory"),
        ({"key": "id"}, "key, _distance; memory"),
        (["id", "tags"], "id, tags, _distance"),
        (["id", "vector"], "id, vector, _distance"),
        ({"twice": "2 * id"}, "twice, _distance"),
    ]:
        search = store.search(VECTORS[4]).select(names)
        assert search.explain_plan().splitlines()[0] == f"Take: {detail}"
        assert search.analyze_plan().splitlines()[0].startswith(f"Take: {detail}  rows=")
    assert "memory" not in store.use_cache().search(VECTORS[4]).explain_plan().splitlines()[0]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_statistics(tmp_path: Path, metric: Any) -> None:
    vectors = np.random.default_rng(3).normal(size=(300, DIM)).astype(np.float32)
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(vectors))
    compress(docs, tiny_codec(vectors, metric, 2), "small", progress=False)
    store = opened(tmp_path, ["id", "lang"])
    assert store.stats().cached_columns == () and store.stats().resident_bytes == 0
    found(store, ["id"])
    stats = store.stats()
    norms = 2 * 300 if metric == "cosine" else 0
    assert stats.norm_bytes == norms
    assert stats.cached_columns == ("id", "lang")
    assert 300 * (8 + 4 + 2) <= stats.cached_column_bytes < 300 * (8 + 4 + 2) + 300
    assert stats.resident_bytes == store._source.codes.resident.nbytes
    codes = 300 * CODEC.config.code_bytes
    assert codes <= stats.resident_bytes - norms - stats.cached_column_bytes < codes + 300 * 4 + 200
    assert "of it cached columns" in str(stats) and ": id, lang" in str(stats)


def test_an_interrupted_load_leaves_the_table_usable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, plain, read = opened(folder, ["id"]), uncached(folder), cached_columns.scan_batches

    def interrupted(*arguments: Any) -> Iterator[pa.RecordBatch]:
        yield from read(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cached_columns, "scan_batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            found(store, ["id"])
    assert_same_results(store, plain, ["id"])


def text_searches(store: CompressedTable) -> list[pa.Table]:
    """Whole results in the order of ids, as LanceDB orders equal scores differently every time."""
    text = store.search("text it", query_type="fts").select(["id", "LONG"]).limit(500)
    hybrid = store.search(query_type="hybrid").vector(VECTORS[3]).text("text").limit(500).nprobes(PARTITIONS)
    searches = [text, copy.copy(text).where("id % 2 = 0").with_row_id(), hybrid.select(["LONG", "id"])]
    searches.append(store.search("nothing", query_type="fts").select(["id"]))
    return [search.to_arrow().sort_by("id") for search in searches]


@pytest.mark.parametrize("change", ["add", "add without a vector", "delete", "update", "merge", "optimize"])
def test_text_and_hybrid_searches(folder: Path, change: str) -> None:
    names = ["id", "LONG"]
    store, plain = opened(folder, names), uncached(folder)
    store.create_fts_index("two words")

    def is_in_memory() -> bool:
        plan = store.search("text it", query_type="fts").select(names).explain_plan()
        assert "LONG" in plain.search("text it", query_type="fts").select(names).explain_plan()
        return "LONG" not in plan

    for _ in range(2):
        assert not is_in_memory()  # before a vector search has loaded the columns of this version
        for load in (False, True):
            if load:
                found(store, names)
                assert is_in_memory()
            *by_text, hybrid, none = text_searches(store)
            *expected_by_text, expected_hybrid, expected_none = text_searches(plain)
            for result, expected in zip([*by_text, none], [*expected_by_text, expected_none], strict=True):
                assert_equal(result, expected)
            assert hybrid.schema.equals(expected_hybrid.schema, check_metadata=True)
            assert hybrid.select(["LONG", "id"]).equals(expected_hybrid.select(["LONG", "id"]))
            assert len(by_text[1]) and len(hybrid) > ROWS / 2 and len(none) == 0
        CHANGES[change](store, 3)


def test_the_twin_for_event_loops(folder: Path) -> None:
    async def results() -> list[pa.Table]:
        db = await lancedb.connect_async(folder)
        table = await open_table_async(db, "small", cache_columns=["id"])
        other = (await open_table_async(db, "small")).use_cache(cache_columns=["id", "flag"])
        for wrong in ({"cache_columns": "id"}, {"cache_columns": ["tags"]}):
            with pytest.raises(InvalidInputError, match=r"Got .*cache_columns"):
                await open_table_async(db, "small", **wrong)
            with pytest.raises(InvalidInputError, match=r"Got .*cache_columns"):
                other.use_cache(**wrong)
        return [
            await (await each.search(VECTORS[4])).select(["id"]).limit(7).nprobes(2).to_arrow()
            for each in (table, other)
        ]

    for result in asyncio.run(results()):
        assert_equal(result, found(uncached(folder), ["id"]))


def test_threads_beside_writes(folder: Path) -> None:
    """Every answer is one of a single version: each write gives all rows the same text."""
    store = opened(folder, ["id", "LONG"])
    store.update("true", {"LONG": "0"})
    failures: list[BaseException] = []
    done = threading.Event()

    def ask(number: int) -> None:
        try:
            while not done.is_set():
                search = store.search(VECTORS[number]).nprobes(PARTITIONS).limit(1000)
                result = search.select(["id", "LONG"]).to_arrow()
                (text,) = set(result["LONG"].to_pylist())
                ids, step = sorted(result["id"].to_pylist()), int(text)
                assert ids in (list(range(step, ROWS)), list(range(step + 1, ROWS)))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for step in range(12):
        store.update("true", {"LONG": str(step)})
        store.delete(f"id = {step}")
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert_same_results(store, uncached(folder), ["id", "LONG"])
