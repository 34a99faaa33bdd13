"""Tables for framework adapters: created by their first rows, trained when they are due, used by many."""

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from other_processes import processes
from small_managed_tables import COLUMNS, DIM, QUICKLY, SMALL, add_in_process, managed, many, rows

import rqmoe_store as rqs
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError, RQMoEError, TableError
from rqmoe_store.managed_table import Added, ManagedTable
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import create_table, open_table


def opened(table: ManagedTable) -> CompressedTable:
    found = table.open()
    assert found is not None
    return found


def texts_of(table: ManagedTable) -> dict[str, str]:
    found = opened(table).search().select(["id", "text"]).limit(None).to_list()
    texts = {row["id"]: row["text"] for row in found}
    assert len(texts) == len(found), "every key once"
    return texts


def folders(database: Path) -> set[str]:
    return {path.name for path in database.glob("*.lance")}


def test_it_is_public() -> None:
    assert rqs.ManagedTable is ManagedTable


def test_nothing_is_made_before_the_first_rows(tmp_path: Path) -> None:
    table = managed(tmp_path / "db")
    assert table.open() is None and table.open(text_index=True) is None
    assert table.dim is None and table.metric == "cosine"
    assert table.add(many(0, 0)) == Added(inserted=0, updated=0)
    assert not table.train_if_due()
    table.require_dim(5)
    table.drop()
    assert table.open() is None and folders(tmp_path / "db") == set()


def test_the_first_rows_create_the_table_in_one_commit(tmp_path: Path) -> None:
    table = managed(tmp_path)
    assert table.add(many(0, 5)) == Added(inserted=5, updated=0)
    store = opened(table)
    assert [version["version"] for version in store.list_versions()] == [1]
    assert store.key == "id" and store.count_rows() == 5 and table.dim == store.dim == DIM
    assert store.codecs.metadata.config == SMALL
    assert opened(managed(lancedb.connect(tmp_path))).count_rows() == 5


def test_the_metric_is_cosine_unless_said_otherwise(tmp_path: Path) -> None:
    by_default, by_dot = (
        managed(tmp_path, config=None),
        managed(tmp_path, "dot", config=CodecConfig(metric="dot")),
    )
    for table, metric in ((by_default, "cosine"), (by_dot, "dot")):
        assert table.metric == metric
        table.add(many(0, 2))
        assert table.metric == opened(table).metric == metric
    assert managed(tmp_path, "dot", config=None).metric == "dot", "that of the table counts"


@pytest.mark.parametrize("as_given", [str, Path, lancedb.connect, lambda uri: lambda: lancedb.connect(uri)])
def test_ways_to_name_a_database(tmp_path: Path, as_given: Callable[[Any], Any]) -> None:
    database = as_given(tmp_path)
    managed(database).add(many(0, 3))
    table = managed(as_given(tmp_path))
    assert opened(table).count_rows() == 3
    assert table.connection.uri == str(tmp_path) and table.connection is table.connection
    if isinstance(database, lancedb.DBConnection):
        assert managed(database).connection is database


def test_a_function_connects_once_and_not_before_it_is_needed(tmp_path: Path) -> None:
    connections: list[object] = []

    def connect() -> lancedb.DBConnection:
        connections.append(lancedb.connect(tmp_path))
        return connections[-1]

    table = managed(connect)
    assert connections == []
    table.add(many(0, 3))
    assert texts_of(table).keys() == {"0", "1", "2"} and len(connections) == 1


def test_an_open_table_is_used_as_it_is(tmp_path: Path) -> None:
    managed(tmp_path).add(many(0, 3))
    store = open_table(lancedb.connect(tmp_path), "docs")
    assert managed(tmp_path, table=store).open() is store
    with pytest.raises(TableError, match="no column 'other'"):
        managed(tmp_path, table=store, vector_column="other")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["replace", "keep", "none"]),
        st.lists(st.sampled_from("abcdef"), max_size=4, unique=True),
    ),
    max_size=6,
)


@settings(max_examples=15)
@given(steps=STEPS)
def test_rows_are_upserted(tmp_path_factory: pytest.TempPathFactory, steps: Any) -> None:
    table, expected = managed(tmp_path_factory.mktemp("db")), dict[str, str]()
    for number, (existing, ids) in enumerate(steps):
        if existing == "none":  # as the caller promises
            ids = [one for one in ids if one not in expected]
        known, new = set(ids) & set(expected), set(ids) - set(expected)
        added = table.add(rows(ids, text=f"{number}"), existing=existing)
        assert added == Added(inserted=len(new), updated=len(known) if existing == "replace" else 0)
        expected |= dict.fromkeys(ids if existing == "replace" else new, f"{number}")
    assert (table.open() is None) == (not expected)
    assert not expected or texts_of(table) == expected


def together(calls: list[Callable[[], object]]) -> None:
    """Make the calls at once, each in a thread of its own."""
    barrier = threading.Barrier(len(calls))
    with ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(lambda call=call: (barrier.wait(), call())) for call in calls]
        for one in running:
            one.result()


@pytest.mark.parametrize("handles", [1, 4])
def test_threads_that_add_the_first_rows_at_once(tmp_path: Path, handles: int) -> None:
    tables = [managed(tmp_path) for _ in range(handles)]
    names = ["shared", *(f"{thread}-{number}" for thread in range(4) for number in range(5))]
    together(
        [
            lambda thread=thread: tables[thread % handles].add(
                rows(["shared", *(f"{thread}-{number}" for number in range(5))])
            )
            for thread in range(4)
        ]
    )
    assert all(sorted(texts_of(table)) == sorted(names) for table in tables)
    assert folders(tmp_path) >= {"docs.lance"}


def test_processes_that_add_the_first_rows_at_once(tmp_path: Path) -> None:
    barrier = processes.Barrier(2)
    running = [
        processes.Process(target=add_in_process, args=(tmp_path, number, barrier)) for number in range(2)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0]
    names = [f"{process}-{number}" for process in range(2) for number in range(10)]
    assert sorted(texts_of(managed(tmp_path))) == sorted([*names, "shared"])


def test_threads_that_open_it_at_once_share_one_handle(tmp_path: Path) -> None:
    managed(tmp_path).add(many(0, 3))
    table, found = managed(tmp_path), list[Any]()
    together([lambda: found.append(table.open())] * 4)
    assert all(one is found[0] for one in found)


def test_a_table_that_others_make_is_found(tmp_path: Path) -> None:
    early = managed(tmp_path)
    assert early.open() is None
    managed(tmp_path).add(rows(["a"]))
    assert early.add(rows(["a", "b"])) == Added(inserted=1, updated=1)


def test_another_table_made_in_between_is_told(tmp_path: Path) -> None:
    """Of another model, of another metric and without vectors: made when it was known that there is none."""
    by_model, by_metric, by_columns = (managed(tmp_path, name) for name in ("model", "metric", "columns"))
    assert by_model.open() is by_metric.open() is by_columns.open() is None
    managed(tmp_path, "model").add(many(0, 2, dim=3))
    managed(tmp_path, "metric", config=CodecConfig(metric="dot")).add(many(0, 2))
    lancedb.connect(tmp_path).create_table("columns", [{"id": "a"}])
    with pytest.raises(InvalidInputError, match="vectors of 8 numbers, but table 'model' holds vectors of 3"):
        by_model.add(many(0, 2))
    with pytest.raises(TableError, match=r"metric 'cosine' and .*CodecConfig\(metric='dot'"):
        by_metric.add(many(0, 2))
    with pytest.raises(TableError, match="not a compressed table"):
        by_columns.add(many(0, 2))
    assert opened(by_model).count_rows() == 2


class Paused:
    """Training that begins when a thread gets there, and goes on when it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on, self.calls = threading.Event(), threading.Event(), 0
        optimize = CompressedTable.optimize

        def wait_and_optimize(table: CompressedTable, **options: Any) -> Any:
            self.calls += 1
            self.begun.set()
            assert self.go_on.wait(600)
            return optimize(table, **options)

        patch.setattr(CompressedTable, "optimize", wait_and_optimize)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Let it go on, also after a test has failed."""
        self.go_on.set()


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> Paused:
    return Paused(monkeypatch)


def test_training_when_there_are_enough_rows(tmp_path: Path) -> None:
    table = managed(tmp_path, train_from=40)
    table.add(many(0, 39))
    without = {f"bare{number}": None for number in range(9)}
    table.add(rows(list(without), **without))  # rows without a vector do not count
    store = opened(table)
    assert store.codecs.newest is None and not table.train_if_due()
    table.add(many(39, 40))
    assert store.codecs.newest is not None
    assert store.table.count_rows(store.columns.raw_filter) == 0
    assert not table.train_if_due() and len(store.codecs.metadata.generations) == 1
    assert len(texts_of(table)) == 49


def test_it_can_be_the_first_rows_that_are_enough(tmp_path: Path) -> None:
    table = managed(tmp_path, train_from=20)
    table.add(many(0, 20))
    assert opened(table).codecs.newest is not None
    never = managed(tmp_path, "never", train_from=None)
    never.add(many(0, 20))
    assert opened(never).codecs.newest is None


def test_others_add_while_one_trains(tmp_path: Path, paused: Paused) -> None:
    table, other = managed(tmp_path, train_from=30), managed(tmp_path, train_from=30)
    with ThreadPoolExecutor(1) as pool, paused:
        training = pool.submit(table.add, many(0, 30))
        assert paused.begun.wait(600)
        assert table.add(many(30, 40)) == Added(inserted=10, updated=0)
        assert other.add(many(35, 45)) == Added(inserted=5, updated=5)
        assert not table.train_if_due() and not other.train_if_due()
        store = opened(table)
        assert store.codecs.newest is None and not training.done()
        (nearest,) = store.search(many(0, 30)["vector"][7].as_py()).limit(1).to_list()
        assert nearest["id"] == "7", "searched exactly meanwhile"
        paused.go_on.set()
        assert training.result() == Added(inserted=30, updated=0)
    assert paused.calls == 1
    assert len(store.codecs.metadata.generations) == 1
    assert sorted(texts_of(other)) == sorted(map(str, range(45)))
    assert store.table.count_rows(store.columns.raw_filter) == 0


def test_another_process_may_be_quicker(tmp_path: Path, paused: Paused) -> None:
    table = managed(tmp_path, train_from=30)
    with ThreadPoolExecutor(1) as pool, paused:
        training = pool.submit(table.add, many(0, 30))
        assert paused.begun.wait(600)
        theirs = open_table(lancedb.connect(tmp_path), "docs").train(QUICKLY, progress=False)
        paused.go_on.set()
        assert training.result() == Added(inserted=30, updated=0)
    assert opened(table).codec.fingerprint == theirs.fingerprint
    assert len(opened(table).codecs.metadata.generations) == 1


def test_training_that_fails_keeps_rows_and_says_so(tmp_path: Path) -> None:
    nowhere = TrainConfig(epochs=1, progress=False, device="cuda:99")
    table = managed(tmp_path, training=nowhere, train_from=30)
    table.add(many(0, 29))
    for first in (29, 31):  # the second time, too
        with pytest.raises(InvalidInputError, match="cuda:99") as caught:
            table.add(many(first, first + 2))
        assert any("No row was lost" in note for note in caught.value.__notes__)
    assert sorted(texts_of(table)) == sorted(map(str, range(33)))
    assert opened(table).codecs.newest is None
    managed(tmp_path, train_from=30).add(many(33, 34))
    assert opened(table).codecs.newest is not None and len(texts_of(table)) == 34


@pytest.mark.parametrize(
    ("of_table", "of_call", "training", "shown"),
    [
        (None, None, TrainConfig(epochs=0), True),
        (None, None, QUICKLY, False),
        (False, None, None, False),
        (True, False, None, False),
        (False, True, None, True),
    ],
)
def test_bars_are_shown_when_asked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], of_table: Any, of_call: Any, training: Any, shown: bool
) -> None:
    table = managed(tmp_path, train_from=30, training=training, progress=of_table)
    table.add(many(0, 30), progress=of_call)
    assert ("Encoding" in capfd.readouterr().out) == shown


def test_the_text_index_is_made_when_it_is_needed(tmp_path: Path) -> None:
    table = managed(tmp_path)
    table.add(rows(["a"], text="honey"))
    store = opened(table)
    assert store.list_indices() == []
    together([lambda: table.open(text_index=True)] * 3)
    assert [index.columns for index in store.list_indices()] == [["text"]]
    version = store.version
    found = opened(table).search(rqs.words_query("honey", "text"), query_type="fts").limit(1).to_list()
    assert [row["id"] for row in found] == ["a"] and opened(table).version == version
    assert table.open(text_index=True) is store and store.version == version
    with pytest.raises(InvalidInputError, match="text_column"):
        managed(tmp_path, text_column=None).open(text_index=True)


def test_functions_are_called_in_threads(tmp_path: Path) -> None:
    table = managed(tmp_path)

    async def use() -> None:
        together = (table.in_thread(table.add, many(start, start + 5)) for start in range(0, 20, 5))
        assert sum(added.inserted for added in await asyncio.gather(*together)) == 20
        assert await table.in_thread(table.add, many(0, 3), existing="keep") == Added(inserted=0, updated=0)
        assert await table.in_thread(threading.get_ident) != threading.get_ident()
        with pytest.raises(InvalidInputError, match="vectors of 3 numbers"):
            await table.in_thread(table.require_dim, 3)

    asyncio.run(use())
    assert len(texts_of(table)) == 20


def test_dropping(tmp_path: Path) -> None:
    table = managed(tmp_path)
    table.add(many(0, 3))
    table.drop()
    assert table.open() is None and "docs.lance" not in folders(tmp_path)
    table.add(many(0, 2, dim=3))
    assert table.dim == 3 and len(texts_of(table)) == 2


def test_a_table_that_holds_something_else_is_not_dropped(tmp_path: Path) -> None:
    lancedb.connect(tmp_path).create_table("docs", [{"id": "a"}])
    with pytest.raises(TableError):
        managed(tmp_path).drop()
    assert lancedb.connect(tmp_path).open_table("docs").count_rows() == 1


def test_a_table_that_others_drop_and_make_again_is_followed(tmp_path: Path) -> None:
    table, other = managed(tmp_path), managed(tmp_path)
    table.add(many(0, 3))
    other.drop()
    other.add(rows(["new"]))
    table.add(rows(["newer"]))
    assert sorted(texts_of(table)) == ["new", "newer"]


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        ([float("nan")] * DIM, "of document 'odd' has NaN or infinite components"),
        ([1.0] * (DIM - 1) + [float("inf")], "of document 'odd' has NaN or infinite"),
        ([0.0] * DIM, "of document 'odd' is zero, which has no direction under metric 'cosine'"),
    ],
)
def test_vectors_that_cannot_be_kept(tmp_path: Path, vector: Any, reason: str) -> None:
    table = managed(tmp_path, row_name="document")
    bad = rows(["bare", "good", "odd"], bare=None, odd=vector)
    with pytest.raises(InvalidInputError, match=reason):
        table.add(bad)
    assert table.open() is None and folders(tmp_path) == set()
    table.add(rows(["first"]))
    with pytest.raises(InvalidInputError, match=reason):
        table.add(bad)
    assert texts_of(table).keys() == {"first"}


def test_numbers_beyond_single_precision(tmp_path: Path) -> None:
    fields = [*COLUMNS, pa.field("vector", pa.list_(pa.float64(), DIM))]
    table, wide = managed(tmp_path), pa.table([["a"], ["x"], [[1e300] * DIM]], schema=pa.schema(fields))
    with pytest.raises(InvalidInputError, match="of row 'a' has NaN or infinite components as float32"):
        table.add(wide)


def test_zeros_where_they_mean_something(tmp_path: Path) -> None:
    table = managed(tmp_path, config=CodecConfig(metric="l2"))
    table.add(rows(["zero"], zero=[0.0] * DIM))
    assert opened(table).search(np.zeros(DIM)).limit(1).to_list()[0]["_distance"] == 0


def test_rows_without_any_vector(tmp_path: Path) -> None:
    table = managed(tmp_path)
    table.add(rows(["a", "b"], a=None, b=None))
    assert texts_of(table).keys() == {"a", "b"} and table.dim == DIM


@pytest.mark.parametrize("there", [False, True])
def test_rows_that_no_table_takes(tmp_path: Path, there: bool) -> None:
    table = managed(tmp_path)
    if there:
        table.add(rows(["a"]))
    bad = [
        (rows(["b", "b"]), "same key"),
        (rows(["b"]).drop_columns("vector"), "vector"),
        (rows(["b"]).set_column(2, "vector", pa.array([[1.0]], pa.list_(pa.float32()))), "fixed length"),
        (rows(["b"]).append_column("a.b", pa.array([1])), "a.b"),
    ]
    for given_rows, message in bad:
        with pytest.raises(RQMoEError, match=message):
            table.add(given_rows)
    assert texts_of(table).keys() == {"a"} if there else table.open() is None


def test_another_dimension(tmp_path: Path) -> None:
    told = managed(tmp_path, dim=4)
    assert told.dim == 4
    with pytest.raises(InvalidInputError, match="vectors of 8 numbers; expected 4"):
        told.add(many(0, 2))
    managed(tmp_path).add(many(0, 2))
    table = managed(tmp_path)
    table.require_dim(DIM)
    with pytest.raises(InvalidInputError, match="vectors of 3 numbers, but table 'docs' holds vectors of 8"):
        table.require_dim(3)
    with pytest.raises(InvalidInputError, match="vectors of 3 numbers, but table 'docs' holds vectors of 8"):
        table.add(many(0, 2, dim=3))
    with pytest.raises(TableError, match="vectors of 4 numbers, but table 'docs' holds vectors of 8"):
        told.open()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CodecConfig(), r"a config with metric 'l2' and code_bytes 16.*CodecConfig\(metric='cosine', code_b"),
        (CodecConfig(metric="l2", code_bytes=4), r"metric 'l2', but table 'docs' .*\(metric='cosine'\)"),
        (
            CodecConfig(metric="cosine", code_bytes=8),
            r"code_bytes 8, but .*\(code_bytes=4\)\. Leave config out",
        ),
        (
            CodecConfig(metric="cosine", code_bytes=4, refine_bytes=6),
            r"refine_bytes 6, but .*\(refine_bytes=0\)\. Leave config out",
        ),
    ],
)
def test_another_codec(tmp_path: Path, config: CodecConfig, message: str) -> None:
    managed(tmp_path).add(many(0, 2))
    with pytest.raises(TableError, match=message):
        managed(tmp_path, config=config).open()
    assert managed(tmp_path, config=None).open() is not None
    assert managed(tmp_path, config=CodecConfig(metric="cosine", code_bytes=4)).open() is not None


def test_refine_codes(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, refine_bytes=6)
    managed(tmp_path, config=config).add(many(0, 30))
    store = opened(managed(tmp_path, config=config))
    assert store.train(QUICKLY, progress=False).config.refine_bytes == store.columns.refine_bytes == 6
    managed(tmp_path, config=config).add(many(30, 40))
    store.refresh()
    assert store.table.count_rows("vector_refine IS NOT NULL") == 40
    assert managed(tmp_path, config=SMALL).open() is not None, "a store that asks for none uses them, too"


@pytest.mark.parametrize(
    ("fields", "key", "message"),
    [
        ([("id", pa.string())], "id", "no column 'text' of type string"),
        ([("id", pa.int64()), ("text", pa.string())], "id", "no column 'id' of type string"),
        ([("id", pa.string()), ("text", pa.string())], None, "no key 'id'"),
    ],
)
def test_a_table_of_something_else(tmp_path: Path, fields: Any, key: Any, message: str) -> None:
    columns = [pa.field(name, kind, nullable=name != "id") for name, kind in fields]
    schema = pa.schema([*columns, pa.field("vector", pa.list_(pa.float32(), DIM))])
    create_table(lancedb.connect(tmp_path), "docs", schema=schema, key=key)
    table = managed(tmp_path, config=None, row_name="document", column_settings=["id_key", "text_key"])
    with pytest.raises(TableError, match=f"{message}.*no documents as this store .*say by id_key, text_key"):
        table.open()


def test_more_columns_do_no_harm(tmp_path: Path) -> None:
    table = managed(tmp_path)
    table.add(many(0, 2))
    opened(table).add_columns({"year": "cast(2000 as int)"})
    again = managed(tmp_path)
    again.add(many(1, 3))
    assert opened(again).count_rows("year = 2000") == 2 and opened(again).count_rows() == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"database": 5}, "Got (database=)?5"),
        ({"database": None}, "Got (database=)?None"),
        ({"train_from": 0}, "train_from=0"),
        ({"train_from": True}, "train_from=True"),
        ({"dim": "8"}, "dim='8'"),
        ({"config": {"metric": "dot"}}, "config="),
        ({"training": 5}, "training=5"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        managed(**({"database": tmp_path} | wrong))


def test_calls_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be a table name"):
        managed(tmp_path, "../x").open()
    table = managed(tmp_path)
    with pytest.raises(InvalidInputError, match="existing='append'; expected 'replace', 'keep' or 'none'"):
        table.add(many(0, 2), existing="append")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="rows"):
        table.add([{"id": "a"}])
    with pytest.raises(TableError, match="folder or bucket"):
        managed(lancedb.connect("memory://")).add(many(0, 2))
    assert table.open() is None
